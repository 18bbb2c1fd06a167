"""Which folders may be replaced: empty ones, and those that hold an earlier result."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftkit.errors import RecipeError

if TYPE_CHECKING:
    from pathlib import Path


def refuse_to_replace(folder: Path, mark: str) -> None:
    """Say where anything but an earlier result stands, which its mark shows.

    Raises:
        RecipeError: it does, and would go.
    """
    own = folder.is_dir() and (not any(folder.iterdir()) or (folder / mark).is_file())
    if folder.exists() and not own:
        raise RecipeError(
            f"`{folder}` holds something else, and all of it would go",
            hint="name a new folder",
        )
