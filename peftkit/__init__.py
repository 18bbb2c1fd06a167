"""Adapt large language models with few trainable parameters, and know whether it worked."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peftkit.merge.delta import Delta as Delta
    from peftkit.pipeline.api import finetune as finetune
    from peftkit.pipeline.frontier import frontier as frontier
    from peftkit.publish.publish import publish as publish

__version__ = "0.1.0"

# peft imports bitsandbytes, which complains of a kernel that it does not need, and later on calls.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

LAZY = {
    "Delta": "peftkit.merge.delta",
    "finetune": "peftkit.pipeline.api",
    "frontier": "peftkit.pipeline.frontier",
    "publish": "peftkit.publish.publish",
}
"""Where each name is; nothing heavy is imported until one is used."""


def __getattr__(name: str) -> Any:
    """The public name, imported on first use."""
    if name not in LAZY:
        msg = f"module `peftkit` has no `{name}`; it has {', '.join(sorted(LAZY))}"
        raise AttributeError(msg)
    return getattr(import_module(LAZY[name]), name)


def __dir__() -> list[str]:
    """The public names."""
    return sorted([*LAZY, "__version__"])
