"""Takes the paths of this machine out of what others will read, and leaves the file names.

A path tells strangers a user's name and how a company lays out its disks, and is of no use to
them. Secrets are another matter: see `peftkit.publish.redact`.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_PART = r"[^\s/\\\"'`<>|:*?()\[\]{},;]+"
_IN_TEXT = re.compile(
    rf"file://[^\s\"'`<>]+"
    rf"|(?<![\w/.~<\\$])~?(?:/{_PART}){{2,}}/?"
    rf"|(?<!\w)[A-Za-z]:[\\/](?:{_PART}[\\/])*{_PART}"
    rf"|(?<!\\)\\\\{_PART}(?:\\{_PART})+"
)
_WHOLE = re.compile(r"(?:/|~/|file://|[A-Za-z]:[\\/]|\\\\)[^\n]*")
_MACHINE = ("hostname", "host", "node", "user", "username", "home", "cwd", "pid")
"""Keys that name a machine or a person rather than describe a run."""


def scrub(value: Any) -> Any:
    """JSON-like data with every path of this machine reduced to its last name.

    A text that is a path as a whole may hold spaces; inside a sentence, one ends a path.
    """
    if isinstance(value, dict):
        return {
            scrub(str(key)): scrub(item)
            for key, item in value.items()
            if str(key).lower() not in _MACHINE
        }
    if isinstance(value, list | tuple):
        return [scrub(item) for item in value]
    if not isinstance(value, str):
        return value
    return file_name(value) if _WHOLE.fullmatch(value) else scrub_text(value)


def scrub_text(text: str) -> str:
    """Text with every absolute path in it reduced to its last name; addresses stay."""
    return _replaced(text, file_name)


def paths_in(text: str) -> list[str]:
    """The absolute paths in a text, in order, each once."""
    found: dict[str, None] = {}

    def note(path: str) -> str:
        found[path] = None
        return path

    _replaced(text, note)
    return list(found)


def file_name(source: str) -> str:
    """The last name of a path; hub data sets and addresses are no paths and stay as they are."""
    if source.startswith("hub:") or re.match(r"(?!file:)[a-z][a-z0-9+.-]*://", source):
        return source
    if re.match(r"[A-Za-z]:[\\/]|\\\\", source):
        return PureWindowsPath(source).name or "a folder"
    return PurePosixPath(source.removeprefix("file://")).name or "a folder"


def _replaced(text: str, change: Callable[[str], str]) -> str:
    return _IN_TEXT.sub(lambda match: change(match[0]), text)
