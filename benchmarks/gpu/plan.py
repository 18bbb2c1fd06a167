"""The grid in order of importance: what a cut-off leaves out stands last."""

from __future__ import annotations

from dataclasses import dataclass

OURS, OURS_PADDED, NF4 = "peftkit", "peftkit padded", "peftkit NF4"
VARLEN, MASK, PADDED = "plain within documents", "plain with a mask", "plain padded"
TRL = "trl default, imitated"
"""The arms, as results and tables call them."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One block of arms that take turns at one place in the grid."""

    shape: str
    tokens: int
    """Most positions of a micro-batch."""
    recompute: bool
    arms: tuple[str, ...]
    share: float
    """Most of the whole budget that it may take."""

    @property
    def name(self) -> str:
        """As results and tables call it."""
        again = "on" if self.recompute else "off"
        rows = " + ".join(arm for arm in self.arms[1:])
        return f"{self.shape}, {self.tokens} tokens, recompute {again}: {self.arms[0]} + {rows}"


PACKED = (OURS, VARLEN)
PADDING = (OURS, OURS_PADDED, PADDED)
"""The packed arm is in every block, for ratios between blocks."""

PLAN = (
    Cell("8B", 8192, False, (*PACKED, MASK), 0.18),
    Cell("8B", 8192, True, (*PACKED, TRL), 0.10),
    Cell("8B", 8192, False, PADDING, 0.12),
    Cell("8B", 2048, False, PACKED, 0.05),
    Cell("8B", 16384, False, PACKED, 0.08),
    Cell("1B", 8192, False, (*PACKED, MASK), 0.05),
    Cell("1B", 2048, False, PACKED, 0.03),
    Cell("8B", 16384, True, PACKED, 0.06),
    Cell("8B", 2048, False, PADDING, 0.05),
    Cell("1B", 8192, False, PADDING, 0.03),
    Cell("1B", 16384, False, PACKED, 0.03),
    Cell("8B", 2048, True, (*PACKED, TRL), 0.04),
    Cell("8B", 8192, False, (OURS, NF4), 0.05),
    Cell("1B", 2048, False, PADDING, 0.03),
    Cell("1B", 2048, True, (*PACKED, TRL), 0.03),
    Cell("1B", 8192, True, (*PACKED, TRL), 0.03),
    Cell("1B", 16384, True, PACKED, 0.03),
    Cell("8B", 16384, False, PADDING, 0.08),
    Cell("8B", 8192, True, PADDING, 0.08),
    Cell("8B", 2048, True, PADDING, 0.05),
    Cell("8B", 16384, True, PADDING, 0.08),
    Cell("1B", 16384, False, PADDING, 0.04),
    Cell("1B", 2048, True, PADDING, 0.03),
    Cell("1B", 8192, True, PADDING, 0.03),
    Cell("1B", 16384, True, PADDING, 0.04),
)
SMOKE_PLAN = (
    Cell("tiny", 2048, False, (*PACKED, MASK), 0.3),
    Cell("tiny", 2048, True, (*PACKED, TRL), 0.3),
    Cell("tiny", 2048, False, PADDING, 0.3),
    Cell("tiny", 2048, False, (OURS, NF4), 0.3),
)
