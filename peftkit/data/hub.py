"""Data sets from a hub, at one commit: the files of one split, of every kind that is read."""

from __future__ import annotations

import re
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from peftkit.data.lines import PACKED
from peftkit.data.readers import READERS, kind_of
from peftkit.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

NAME = re.compile(r"^hub:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<commit>[\w./-]+))?(:(?P<split>[\w.-]+))?$")
COMMIT = re.compile(r"[0-9a-f]{40}")
ENDINGS = tuple(product(READERS, ("", *PACKED)))


def resolve(names: Iterable[str], known: Mapping[str, str]) -> dict[str, str]:
    """The commit that each name of a data set means: as `known`, or what its branch is at now.

    Raises:
        RecipeError: there is no such data set or commit, or the hub cannot be reached.
    """
    return {name: known.get(name) or _commit_of(name) for name in names}


def _commit_of(name: str) -> str:
    from huggingface_hub import snapshot_download

    match = _parse(name)
    if match["commit"] and COMMIT.fullmatch(match["commit"]):
        return match["commit"]
    with _explained(name, match):
        # Nothing is downloaded, but the folder says the commit, with and without a connection.
        folder = snapshot_download(
            match["repo"], repo_type="dataset", revision=match["commit"], allow_patterns=[]
        )
    return Path(folder).name


def download(name: str, commit: str | None = None) -> list[Path]:
    """Local copies of the files of `hub:org/set@commit:split`, in name order.

    `commit` is what the name was resolved to, where it was.
    """
    from huggingface_hub import snapshot_download

    match = _parse(name)
    split = match["split"] or "train"
    with _explained(name, match):
        folder = Path(
            snapshot_download(
                match["repo"],
                repo_type="dataset",
                revision=commit or match["commit"],
                allow_patterns=[f"*{split}*{kind}{packed}" for kind, packed in ENDINGS],
            )
        )
    # `*test*` fits `latest` as well, and an earlier download of another split lies there too.
    word = re.compile(rf"(?<![A-Za-z]){re.escape(split)}(?![A-Za-z])")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and kind_of(path))
    wanted = [path for path in files if word.search(str(path.relative_to(folder)))]
    if not wanted:
        there = ", ".join(str(path.relative_to(folder)) for path in files[:5])
        raise RecipeError(
            f"`{name}`: no files of split `{split}`",
            hint=f"its copy here holds {there}" if there else "name the split: `hub:org/set:split`",
        )
    return wanted


def _parse(name: str) -> re.Match[str]:
    match = NAME.match(name)
    if match is None:
        raise RecipeError(f"`{name}`: expected `hub:org/set@commit:split`")
    return match


@contextmanager
def _explained(name: str, match: re.Match[str]) -> Iterator[None]:
    """What the hub refuses, as errors that say what would help."""
    import huggingface_hub.errors as refusals

    try:
        yield
    except (refusals.LocalEntryNotFoundError, refusals.OfflineModeIsEnabled):
        raise RecipeError(
            f"`{name}`: the hub cannot be reached, and there is no copy here",
            hint="check the connection (or HF_HUB_OFFLINE), or give a local file",
        ) from None
    except refusals.RepositoryNotFoundError:
        raise RecipeError(
            f"`{name}`: no such data set that you may read",
            hint="check the spelling; for a private one, `hf auth login` first",
        ) from None
    except refusals.RevisionNotFoundError:
        raise RecipeError(f"`{name}`: no revision `{match['commit']}`") from None
