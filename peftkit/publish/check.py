"""What must hold of a laid-out tree before anyone else may see it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from peftkit.adapters.verify import DELTA_FILE, WEIGHTS_FILE, verify_adapter
from peftkit.errors import InputError
from peftkit.publish.redact import secrets_in
from peftkit.publish.tree import CARD, PUBLISHED, RECORDS
from peftkit.report import tolerant
from peftkit.report.scrub import paths_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    from peftkit.publish.tree import Tree

LARGEST_FILE = 50 * 10**9
"""Bytes; a hub refuses more in one file."""
UNUSUAL = 5 * 10**9
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json")
"""Lists of words, some of which look like paths."""
_SYSTEM = ("/bin", "/dev", "/etc", "/lib", "/opt", "/proc", "/sbin", "/sys", "/usr", "/var")
_PEOPLE = ("/home", "/Users", "/root")
_ADVICE = (
    (
        "looks like a",
        "take the secret out of the run's file of that name, and revoke it: it may have been seen",
    ),
    ("names a path", "take the path out of the file of that name in the run folder"),
    (
        "has no public name",
        "name the base's hub id with `--base ORG/NAME`, or publish without `--public`",
    ),
    ("random weights", "train it on the pretrained base: `--set base.weights=pretrained`"),
    (f"{CARD}: ", f"delete adapter/{CARD}, and a card is made from the run"),
    ("", "train it anew with `peftkit finetune`, or get it from its author again"),
)
"""What to type or to do, by what a problem says; the gravest first."""


def check_tree(tree: Tree, *, public: bool) -> tuple[str, ...]:
    """Refuse what must not be published, and return what is only worth a warning.

    Raises:
        InputError: the adapter does not verify, a file holds a secret or a path of this machine,
            the card is incomplete, or, in public, nobody else could load the base.
    """
    problems = [*_adapter(tree), *_card(tree), *_base(tree)]
    for name in tree.files:
        problems += _leaks(tree.folder / name, name)
        if name not in PUBLISHED:
            problems.append(f"{name}: not a file that is ever published")
    problems += _sizes(tree, LARGEST_FILE, f"a hub takes at most {LARGEST_FILE:,}")
    warnings = [*_license(tree), *_sizes(tree, UNUSUAL, "that is much for an adapter")]
    if tree.base.loadable is None:
        sentence = f"the base, `{tree.base.name}`, has no public name: nobody else can load it"
        (problems if public else warnings).append(sentence)
    if len(tree.absent) == len(RECORDS):
        warnings.append("an adapter without its run: the card only knows its configuration")
    elif tree.absent:
        warnings.append(f"the run has no {', '.join(tree.absent)}: the card cannot tell of it")
    if problems:
        raise InputError("it cannot be published", problems=problems, hint=_hint(problems))
    return tuple(warnings)


def _hint(problems: list[str]) -> str:
    """What to do about the gravest of the problems."""
    found = "\n".join(problems)
    return next(advice for sign, advice in _ADVICE if sign in found)


def _adapter(tree: Tree) -> list[str]:
    try:
        verify_adapter(tree.folder)
    except InputError as error:
        return list(error.problems) or [error.message]
    return []


def _base(tree: Tree) -> Iterator[str]:
    """An adapter is worth nothing without the weights that it was trained on."""
    recipe = tolerant.table(tolerant.read_json(tree.folder / "peftkit/recipe.resolved.json").value)
    base, method = (tolerant.table(recipe.get(name)) for name in ("base", "adapter"))
    if base.get("weights") == "random" and method.get("method") != "full":
        yield "it was trained on random weights (`base.weights: random`), which nobody else has"


def metadata(card: str) -> dict[str, object] | None:
    """The YAML in front of a card, or None where there is none that can be read."""
    found = re.match(r"---\r?\n([\s\S]*?)\r?\n---\r?\n", card)
    try:
        value = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:
        return None
    return value if isinstance(value, dict) else None


def _card(tree: Tree) -> Iterator[str]:
    text = (tree.folder / CARD).read_text(encoding="utf-8")
    if metadata(text) is None:
        yield f"{CARD}: no readable YAML between two lines of `---` at its start"
    if "[More Information Needed]" in text:
        yield f"{CARD}: still has `[More Information Needed]` in it"
    body = text.rpartition("\n---\n")[2]
    if len(body.split()) < 20:
        yield f"{CARD}: says next to nothing ({len(body.split())} words)"


def _license(tree: Tree) -> Iterator[str]:
    known = metadata((tree.folder / CARD).read_text(encoding="utf-8")) or {}
    if known.get("license") in (None, "", "other", "unknown"):
        yield "no license is set: nobody may use the adapter; set `publish.license` in the recipe"


def _sizes(tree: Tree, limit: int, what: str) -> Iterator[str]:
    for name in tree.files:
        size = (tree.folder / name).stat().st_size
        if size > limit:
            yield f"{name} has {size:,} bytes; {what}"


def _leaks(path: Path, name: str) -> Iterator[str]:
    """Secrets anywhere, and in text that is not a vocabulary also paths of this machine."""
    text = _readable_part(path)
    for line, kind in secrets_in(text):
        yield f"{name}: line {line}: looks like a {kind}"
    if name in VOCABULARIES:
        return
    for found in paths_in(text):
        if of_this_machine(found):
            yield f"{name}: names a path of this machine, `{found}`"


def _readable_part(path: Path) -> str:
    """The text of a file; of weights only the header, which is all that people write into."""
    if path.name in (WEIGHTS_FILE, DELTA_FILE):
        with path.open("rb") as file:
            length = min(int.from_bytes(file.read(8), "little"), 100 * 2**20)
            return file.read(length).decode("utf-8", errors="replace")
    return path.read_bytes().decode("utf-8", errors="replace")


def of_this_machine(path: str) -> bool:
    """Whether a path tells something about this machine rather than about machines in general."""
    if not path.startswith("/"):
        return True
    first = "/" + path.split("/")[1]
    if first in _SYSTEM and not path.startswith(str(Path.home())):
        return False
    return first in _PEOPLE or Path(first).exists()
