"""Hold rows out for validation by their content, so that added rows never move an old one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peftkit.data.example import Example

STEPS = 1 << 48


def split_rows(examples: Sequence[Example], fraction: float) -> tuple[list[Example], list[Example]]:
    """Training and validation examples; copies of a row land on the same side.

    A row's side depends on its own text alone, case and punctuation aside. At least one row is
    held out if there are two different ones.
    """
    keys = [example.key for example in examples]
    held = {key for key in keys if _place(key) < fraction}
    if not held and len(set(keys)) > 1:
        held = {min(keys, key=_place)}
    if len(held) == len(set(keys)):
        held.discard(max(keys, key=_place, default=""))
    kept = [example for example, key in zip(examples, keys, strict=True) if key not in held]
    return kept, [example for example, key in zip(examples, keys, strict=True) if key in held]


def _place(key: str) -> float:
    """A number in [0, 1) that only the row's content decides."""
    return int(key[:12], 16) / STEPS
