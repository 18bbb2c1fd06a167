"""Finds tokens, keys and passwords in text, to take them out of it or to refuse it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_ALONE = r"(?<![A-Za-z0-9_-])"
PATTERNS = {
    "Hugging Face token": re.compile(rf"{_ALONE}(?:hf|api_org)_[A-Za-z0-9]{{20,}}"),
    "GitHub token": re.compile(
        rf"{_ALONE}(?:gh[pousr]_[A-Za-z0-9]{{20,}}|github_pat_[A-Za-z0-9_]{{20,}})"
    ),
    "API key": re.compile(rf"{_ALONE}sk-(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{{20,}}"),
    "AWS access key": re.compile(r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])"),
    "AWS secret key": re.compile(
        r"(?i)aws_?secret_?(?:access_?)?key[\"']?\s*[=:]\s*[\"']?[A-Za-z0-9/+=]{40}"
    ),
    "Google API key": re.compile(rf"{_ALONE}AIza[A-Za-z0-9_-]{{35}}"),
    "GitLab token": re.compile(rf"{_ALONE}glpat-[A-Za-z0-9_-]{{20,}}"),
    "Slack token": re.compile(rf"{_ALONE}xox[abeprs]-[A-Za-z0-9-]{{10,}}"),
    "private key": re.compile(
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:[\s\S]*?-----END [A-Z ]*PRIVATE KEY-----)?"
    ),
    "address with a password": re.compile(
        r"(?<=://)(?:[^\s/@:\"']+:[^\s/@\"']+|[A-Za-z0-9_-]{16,})(?=@)"
    ),
}
"""What secrets look like, by what they are called in a message."""


def redact(text: str) -> str:
    """The text with every secret replaced by what kind of secret it was."""
    for kind, pattern in PATTERNS.items():
        text = pattern.sub(f"[{kind} removed]", text)
    return text


def secrets_in(text: str) -> Iterator[tuple[int, str]]:
    """Line and kind of every secret; the secret itself is never repeated."""
    for kind, pattern in PATTERNS.items():
        for found in pattern.finditer(text):
            yield text.count("\n", 0, found.start()) + 1, kind
