"""One thing that was checked about a run: a figure, its threshold, a sentence, an advice."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["ok", "note", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    id: str
    severity: Severity
    figure: float
    threshold: float
    sentence: str
    advice: str = ""

    @property
    def facts(self) -> dict[str, Any]:
        """What `findings.json` says."""
        return asdict(self)
