"""Read a file people wrote as strict YAML with keys at the top, or say why it cannot be."""

from __future__ import annotations

import errno
import shlex
from typing import TYPE_CHECKING

from peftkit.errors import RecipeError
from peftkit.recipe.strict_yaml import MAX_BYTES, Document, InvalidYaml, parse

if TYPE_CHECKING:
    from pathlib import Path

SMALLEST = "the smallest recipe is `base: {model: builtin:tiny}` and `data: {train: rows.jsonl}`"


def read_document(path: Path, *, what: str = "recipe", hint: str = SMALLEST) -> Document:
    """The YAML document at `path`; `what` is the word for it in messages.

    Raises:
        RecipeError: the file is not there, is not YAML, or has no keys at the top.
    """
    try:
        document = parse(_content(path, what))
    except InvalidYaml as error:
        raise RecipeError(
            f"{path} is not a valid {what}",
            problems=error.problems,
            hint=check_again(path) if what == "recipe" else None,
        ) from None
    if document.value is None:
        raise RecipeError(f"{path} is empty", hint=hint)
    if not isinstance(document.value, dict):
        found = "a list" if isinstance(document.value, tuple) else "a single value"
        problem = f"line {document.lines[()]}: expected keys such as `base:`, got {found}"
        raise RecipeError(f"{path} is not a valid {what}", problems=[problem], hint=hint)
    return document


def check_again(path: Path) -> str:
    """What to type once a recipe has been mended."""
    return f"`peftkit recipes validate {shlex.quote(str(path))}` checks it and runs nothing"


def is_there(path: Path) -> bool:
    """Whether something is at `path`, be it hidden from us; an impossible name is not."""
    try:
        return path.exists()
    except OSError as error:
        return error.errno == errno.EACCES


def _content(path: Path, what: str) -> bytes:
    try:
        if path.is_dir():
            raise RecipeError(f"{path} is a folder, not a {what}", hint=_inside(path))
        if path.exists() and not path.is_file():
            raise RecipeError(f"{path} is not a regular file")
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise RecipeError(f"no {what} at {path}") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise RecipeError(f"{path} cannot be read: {reason}") from None


def _inside(folder: Path) -> str | None:
    found = sorted(folder.glob("*.yaml"))
    return f"it holds {found[0]}" if found else None
