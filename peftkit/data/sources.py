"""The files that a source names, and their rows under the recipe's column names."""

from __future__ import annotations

from glob import glob, has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.data.lines import PACKED
from peftkit.data.readers import READERS, kind_of, read_file
from peftkit.data.rows import Intake, Row
from peftkit.errors import InputError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from peftkit.recipe.sections.data import SourceSection

KINDS = f"{', '.join(READERS)}, or one of text as {' or '.join(PACKED)}"


def read_rows(
    source: SourceSection, intake: Intake, files: Sequence[Path] | None = None
) -> Iterator[Row]:
    """Rows of one source in file order, with the recipe's column names.

    `files` are those of the source, where `find_files` was asked before.
    """
    fitting = 0
    for path in find_files(source) if files is None else files:
        count, bad = 0, len(intake.found)
        for row in read_file(path, intake):
            count += 1
            missing = [name for name in source.columns.values() if name not in row.values]
            if not missing:
                fitting += 1
                yield Row(_renamed(row.values, source.columns), row.where)
                continue
            has = ", ".join(f"`{name}`" for name in row.values) or "no columns"
            why = f"no column `{missing[0]}`; the row has {has}"
            if not fitting:  # the first row already: the recipe is wrong, not the row
                hint = f"correct `columns` of `{source.source}`"
                raise InputError(f"{row.where}: {why}", hint=hint)
            intake.refuse(row.where, why)
        if count == 0 and len(intake.found) == bad:
            raise InputError(f"`{path}` is empty: no rows", hint="check that it was written fully")


def _renamed(values: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    """The row with the recipe's names; a column that already bore one of them gives way."""
    taken = {*columns, *columns.values()}
    kept = {name: value for name, value in values.items() if name not in taken}
    return {expected: values[actual] for expected, actual in columns.items()} | kept


def find_files(source: SourceSection, commits: Mapping[str, str] | None = None) -> list[Path]:
    """The files a source names, in name order.

    `commits` says for data sets on a hub which of their commits is meant.

    Raises:
        RecipeError: there is no such source.
        InputError: there is, but none of its files can be read.
    """
    if source.source.startswith("hub:"):
        from peftkit.data.hub import download

        return download(source.source, (commits or {}).get(source.source))
    path = Path(source.source).expanduser()
    try:
        return _find(path)
    except PermissionError as problem:
        raise InputError(f"`{problem.filename}` cannot be read: permission denied") from None


def _find(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if kind_of(p) and p.is_file())
        if not files:
            raise InputError(f"`{path}` holds no file that can be read: {KINDS}")
        return files
    if path.is_symlink() and not path.exists():
        raise InputError(
            f"`{path}` is a link to `{path.readlink()}`, which is not there",
            hint="correct the link, or name the file itself",
        )
    if not path.exists():
        return _match(path)
    if kind_of(path) is None:
        raise RecipeError(f"`{path}`: expected {KINDS}, got `{path.suffix or path.name}`")
    return [path]


def _match(path: Path) -> list[Path]:
    """The files that a name with `*`, `?` or `[…]` fits."""
    if not has_magic(str(path)):
        raise RecipeError(f"no data at `{path}`", hint=_near(path.parent))
    found = [Path(name) for name in glob(str(path), recursive=True)]  # noqa: PTH207 - `**` as shells
    files = sorted(each for each in found if kind_of(each) and each.is_file())
    if not files:
        what = f"only others fit, such as `{min(found).name}`" if found else "no file fits"
        raise RecipeError(f"`{path}`: {what}; expected {KINDS}", hint=_near(_fixed(path)))
    return files


def _fixed(path: Path) -> Path:
    """The folder up to the first part of a pattern that is one."""
    return next(each for each in path.parents if not has_magic(str(each)))


def _near(folder: Path) -> str:
    """What lies where something was looked for."""
    if not folder.is_dir():
        return f"there is no folder `{folder}`; paths are relative to the recipe"
    near = sorted(p.name for p in folder.iterdir() if kind_of(p) or p.is_dir())
    shown = [name for name in near if not name.startswith(".")][:5]
    return f"beside it: {', '.join(shown)}" if shown else "paths are relative to the recipe"
