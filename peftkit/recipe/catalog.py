"""The recipes that ship: what each is for, and a copy to start from."""

from __future__ import annotations

import filecmp
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from peftkit.errors import RecipeError, WriteError
from peftkit.recipe.layers import RecipeFile, read_chain
from peftkit.recipe.paths import absolute, map_paths
from peftkit.recipe.spelling import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_PACKAGE = Path(__file__).absolute().parents[1]
_PROGRAM = "peftkit "
_SHELF, _RUNS, _ENDING = "recipes/", "runs/", ".yaml"
"""What the files in a header's commands begin and end with."""
_FACT = re.compile(r"(Run|Needs|Expect):\s*(.*)")


@dataclass(frozen=True)
class ShippedRecipe:
    """A recipe that comes with peftkit, as its header describes it."""

    name: str
    """Its path without the ending, such as `lora/shakespeare`."""
    path: Path
    purpose: str
    run: str
    """One command after another, such as `peftkit finetune recipes/quickstart.yaml`."""
    needs: str
    """Memory and time."""
    expect: str
    """What was measured."""

    @property
    def commands(self) -> tuple[str, ...]:
        """What runs it, in order: the last one is its own."""
        return tuple(f"{_PROGRAM}{rest.strip()}" for rest in self.run.split(_PROGRAM)[1:])

    @property
    def needed(self) -> tuple[str, ...]:
        """The shipped recipes that are run before it."""
        words = " ".join(self.commands[:-1]).split()
        names = (w[len(_SHELF) : -len(_ENDING)] for w in words if w.endswith(_ENDING))
        return tuple(dict.fromkeys(names))

    def commands_for(self, copied: Path) -> tuple[str, ...]:
        """What runs a copy of it, in order."""
        *before, own = self.commands
        folder = copied.parents[len(Path(self.name).parts)] if before else Path()
        return (
            *(_beneath(folder, command) for command in before),
            f"{' '.join(own.split()[:2])} {copied}",
        )


def shelf() -> Path:
    """The folder of shipped recipes: inside an installed package, beside it in a checkout."""
    inside = _PACKAGE / "_recipes"
    return inside if inside.is_dir() else _PACKAGE.parent / "recipes"


def shipped(root: Path | None = None) -> tuple[ShippedRecipe, ...]:
    """Every recipe that ships, by name; what starts with `_` is only there to be extended."""
    root = (root or shelf()).absolute()
    files = {path.relative_to(root): path for path in sorted(root.rglob("*.yaml"))}
    return tuple(
        _described(path, root)
        for inside, path in files.items()
        if not any(part.startswith("_") for part in inside.parts)
    )


def find(name: str, root: Path | None = None) -> ShippedRecipe:
    """The shipped recipe called `name`.

    Raises:
        RecipeError: none is; it says which one is nearest.
    """
    known = {one.name: one for one in shipped(root)}
    if name not in known:
        raise RecipeError(
            f"no shipped recipe `{name}`{did_you_mean(name, list(known))}",
            hint="`peftkit recipes list` shows their names",
        )
    return known[name]


def name_of(path: Path, root: Path | None = None) -> str | None:
    """The shipped recipe that a path seems to mean: `quickstart`, `recipes/lora/x.yaml`."""
    known = {one.name for one in shipped(root)}
    words = path.with_suffix("").parts
    return next((tail for i in range(len(words)) if (tail := "/".join(words[i:])) in known), None)


def copy(name: str, destination: Path, root: Path | None = None) -> Path:
    """Copy a shipped recipe with all that it refers to, and return where the recipe now is.

    `destination` is a folder, or the new file when it ends in `.yaml`. What the recipe extends
    and reads keeps its place beside it, as far as it ships too, and so does what is run before it.

    Raises:
        RecipeError: there is no such recipe, or something else is at its destination already;
            nothing has been copied then.
        WriteError: the destination cannot be written.
    """
    one = find(name, root)
    recipe = one.path
    files = [recipe, *(find(before, root).path for before in one.needed)]
    chains = [file for path in files for file in read_chain(path)]
    shared = [path for file in chains for path in _needed_by(file)]
    needed = [path for path in shared if path.is_relative_to((root or shelf()).absolute())]
    top = Path(os.path.commonpath([path.parent for path in (recipe, *needed)]))
    folder, file_name = destination, None
    if one.needed:  # its adapters are where a checkout has them: beside the folder of recipes
        top, folder = (root or shelf()).absolute(), destination / _SHELF
    if destination.suffix in (".yaml", ".yml"):
        folder, file_name = destination.parent, destination.name
        if top != recipe.parent:
            raise RecipeError(
                f"`{name}` reads files outside its own folder, so it needs a folder to go to",
                hint=f"`peftkit recipes copy {name} {destination.with_suffix('')}`",
            )
    copies = {path: folder / path.relative_to(top) for path in needed}
    copies[recipe] = (folder / recipe.relative_to(top)).with_name(file_name or recipe.name)
    _refuse_to_overwrite(name, copies, recipe)
    for source, target in copies.items():
        _write_copy(source, target)
    return copies[recipe]


def _described(path: Path, root: Path) -> ShippedRecipe:
    purpose: list[str] = []
    facts: dict[str, list[str]] = {}
    part = purpose
    for line in _header(path.read_text(encoding="utf-8")):
        if fact := _FACT.match(line):
            part = facts[fact[1]] = [fact[2]]
        elif line:
            part.append(line)
    run, needs, expect = (" ".join(facts.get(key, [])) for key in ("Run", "Needs", "Expect"))
    name = path.relative_to(root).with_suffix("").as_posix()
    return ShippedRecipe(name, path, " ".join(purpose), run, needs, expect)


def _header(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if not line.startswith("#"):
            return
        if not line.startswith("# yaml-language-server:"):
            yield line.removeprefix("#").strip()


def _needed_by(file: RecipeFile) -> Iterator[Path]:
    """The file itself, and every file that it names and that is there."""
    folder = file.path.parent
    named: list[Path] = []

    def note(path: str) -> str:
        if not Path(path).is_absolute() and not path.startswith("~"):
            named.append(Path(absolute(path, folder)))
        return path

    map_paths(file.document.value, folder, note)
    yield Path(absolute(file.path.name, folder))
    for path in named:
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        yield from (one for one in found if one.is_file())


def _beneath(folder: Path, command: str) -> str:
    """The command with the files that it names in a folder."""
    words = (str(folder / w) if w.startswith((_SHELF, _RUNS)) else w for w in command.split())
    return " ".join(words)


def _refuse_to_overwrite(name: str, copies: Mapping[Path, Path], recipe: Path) -> None:
    there = [
        str(target)
        for source, target in copies.items()
        if target.exists() and (source == recipe or not filecmp.cmp(source, target, shallow=False))
    ]
    if there:
        raise RecipeError(
            f"{there[0]} exists already",
            problems=[f"{path} exists too" for path in there[1:]],
            hint=f"`peftkit recipes copy {name} FOLDER` copies it to a folder of its own",
        )


def _write_copy(source: Path, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise WriteError(f"could not write {target}: {reason}") from None
