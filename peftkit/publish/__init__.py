"""Publishing; the package can be called, so `peftkit.publish(run, repo)` works once it is imported.

Importing any module in here makes `peftkit.publish` name the package instead of the function that
`peftkit` itself offers under that name, so the two must do the same.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from peftkit.publish.publish import Published


class _Callable(ModuleType):
    def __call__(self, run: Path | str, repo: str, **options: Any) -> Published:
        """What `peftkit.publish.publish.publish` returns."""
        from peftkit.publish.publish import publish

        return publish(run, repo, **options)


sys.modules[__name__].__class__ = _Callable
