"""Data sets from a hub, at one commit: the parquet, jsonl or csv files of one split."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

from peftkit.errors import RecipeError

NAME = re.compile(r"^hub:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<commit>[\w./-]+))?(:(?P<split>[\w.-]+))?$")
KINDS = (".parquet", ".jsonl", ".json", ".csv", ".tsv", ".txt")


def download(name: str) -> list[Path]:
    """Local copies of the files of `hub:org/set@commit:split`, in name order."""
    import huggingface_hub.errors as refusals
    from huggingface_hub import snapshot_download

    match = NAME.match(name)
    if match is None:
        raise RecipeError(f"`{name}`: expected `hub:org/set@commit:split`")
    split = match["split"] or "train"
    patterns = [f"*{split}*{kind}" for kind in KINDS]
    try:
        folder = Path(
            snapshot_download(
                match["repo"],
                repo_type="dataset",
                revision=match["commit"],
                allow_patterns=patterns,
            )
        )
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
    # An earlier download of another split lies in the same folder.
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    wanted = (name for name in names if any(fnmatch(name, pattern) for pattern in patterns))
    files = [folder / name for name in sorted(wanted)]
    if not files:
        raise RecipeError(f"`{name}`: no files of split `{split}` ({', '.join(KINDS)})")
    return files
