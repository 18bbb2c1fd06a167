"""What a merge is made of, file by file, and whether all is of one base and one vocabulary."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.adapters.folders import digest_of, find_adapter
from peftkit.adapters.verify import CONFIG_FILE
from peftkit.base.locate import BUILTIN, digest, locate, weight_files
from peftkit.disk.digest import sha256_of
from peftkit.errors import InputError, PeftkitError
from peftkit.merge.base_weights import open_base
from peftkit.merge.model_files import MERGE_FILE
from peftkit.merge.terms import is_whole_model
from peftkit.merge.vocabulary import digest_tokens
from peftkit.recipe.sections.base import BaseSection

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

FLOATING = (None, "main")
"""Revisions that say nothing: what they name moves on."""
BESIDE = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")
"""Files of an adapter that decide what it does, or what is known of it."""
JUDGED = ("metrics.json", "samples.json", "findings.json", "search.json")
"""Files that a merge has besides, where it was judged: made again it lacks them."""


@dataclass(frozen=True, slots=True)
class Parent:
    """One that goes into a merge."""

    name: str
    folder: Path
    digest: str
    """Of all that decides what it does."""
    files: Mapping[str, str]
    """By file: its sha256."""
    base: str | None
    revision: str | None = None
    base_digest: str | None = None
    """Of the base as it was when this was trained, where that was noted."""
    vocabulary: str | None = None
    """Digest of its own list of tokens, where it brings one."""
    whole: bool = False
    """Whether it is a whole model."""
    facts: Mapping[str, Any] = field(default_factory=dict)


def find_parent(name: str, path: str) -> Parent:
    """What is at a path, by content.

    Raises:
        RecipeError: there is nothing.
        InputError: it is damaged.
    """
    if is_whole_model(path):
        origin = open_base(path).origin
        files = {file.name: sha256_of(file) for file in weight_files(origin)}
        return Parent(
            name,
            origin.folder,
            digest(origin),
            files,
            None,
            vocabulary=digest_tokens(origin.folder),
            whole=True,
        )
    folder = find_adapter(path)
    config = _read(folder / CONFIG_FILE)
    lock = _read(folder.parent / "lock.json") if folder.name == "adapter" else {}
    earlier = _read(folder / MERGE_FILE)
    noted = [each.get("base") for each in (lock, earlier) if isinstance(each.get("base"), dict)]
    files = {
        file.name: sha256_of(file)
        for kind in BESIDE
        for file in sorted(folder.glob(kind))
        if file.is_file() and file.name not in JUDGED
    }
    return Parent(
        name,
        folder,
        digest_of(folder),
        dict(sorted(files.items())),
        config.get("base_model_name_or_path"),
        config.get("revision"),
        next((str(each["digest"]) for each in noted if each and each.get("digest")), None),
        digest_tokens(folder),
    )


def refuse_strangers(parents: Sequence[Parent], *, tokens_too: bool = True) -> None:
    """Say which of them are of different bases, or use different lists of tokens.

    Names are compared where adapters are added; here it is what names cannot tell.

    Raises:
        InputError: two are.
    """
    problems = [
        problem
        for one, other in combinations(parents, 2)
        for problem in _differences(one, other, tokens_too=tokens_too)
    ]
    if problems:
        raise InputError(
            "these cannot be merged",
            problems=problems,
            hint="only changes of one base, with one tokenizer, can be added",
        )


def base_facts(name: str | None, parents: Sequence[Parent]) -> dict[str, Any]:
    """Name, revision and digest of the base, as far as they are known here."""
    revisions = [each.revision for each in parents if each.revision is not None]
    digests = [each.base_digest for each in parents if each.base_digest is not None]
    if name is not None and (name in BUILTIN or Path(name).is_dir()):
        with suppress(PeftkitError):  # the sum does not need it, so it may be of any kind
            digests.insert(0, digest(locate(BaseSection(model=name))))
    return {
        "name": name,
        "revision": revisions[0] if revisions else None,
        "digest": digests[0] if digests else None,
    }


def _differences(one: Parent, other: Parent, *, tokens_too: bool) -> Iterator[str]:
    pair = f"`{one.name}` and `{other.name}`"
    revisions = [each.revision for each in (one, other)]
    if revisions[0] != revisions[1] and not set(revisions) & set(FLOATING):
        yield f"{pair}: of different revisions of the base, `{revisions[0]}` and `{revisions[1]}`"
    digests = [each.base_digest for each in (one, other)]
    if digests[0] != digests[1] and None not in digests:
        shown = " and ".join(f"`{str(each)[:12]}`" for each in digests)
        yield f"{pair}: trained on bases of different content, with digests {shown}"
    vocabularies = [each.vocabulary for each in (one, other)]
    if tokens_too and vocabularies[0] != vocabularies[1] and None not in vocabularies:
        yield f"{pair}: their tokenizers have different lists of tokens"


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
