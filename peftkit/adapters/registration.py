"""Makes our method known to peft as soon as peft is imported, and imports peft for nobody.

`bottleneck` loads in peft once `peftkit.adapters` has been imported. To register it there and then
would import peft, with transformers and bitsandbytes: seconds, and most of what adds up or checks
adapters needs none of them. So where peft is not there yet, its import is completed by the method.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType

PEFT = "peft"
METHOD = "peftkit.adapters.bottleneck"
"""Registers itself when it is imported."""


def register_with_peft() -> None:
    """Register the method now where peft is imported, else when it will be."""
    if PEFT in sys.modules:
        import_module(METHOD)
    else:
        sys.meta_path.insert(0, _Completed())


class _Completed(MetaPathFinder):
    """Finds peft where the others do, and lets the method follow its code.

    It stays: to look for peft is not yet to import it, and an import may fail and be tried again.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """What the others find, completed; nothing for all but peft."""
        if name != PEFT:
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        found = (finder.find_spec(name, path, target) for finder in others)
        spec = next((each for each in found if each is not None), None)
        if spec is not None and spec.loader is not None:
            _complete(spec.loader)
        return spec


def _complete(loader: Loader) -> None:
    """Only what runs the code is replaced: the loader stays the one that others ask for sources."""
    run = loader.exec_module

    def run_and_register(module: ModuleType) -> None:
        run(module)
        import_module(METHOD)

    loader.exec_module = run_and_register  # type: ignore[method-assign]  # of this one alone
