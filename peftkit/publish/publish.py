"""The front door: check an adapter, write its card, and put both where others can load them."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from peftkit.errors import RecipeError, WriteError
from peftkit.publish.check import check_tree
from peftkit.publish.hub import Destination, FolderDestination, HubDestination, check_repo_name
from peftkit.publish.tree import lay_out
from peftkit.report.origin import COMMIT, HUB_ID

if TYPE_CHECKING:
    from peftkit.publish.tree import Tree

DRY_RUN = "publish-dry-run"


@dataclass(frozen=True, slots=True)
class Published:
    """Where it went, what it is, and what is worth knowing about it."""

    repo: str
    public: bool
    url: str | None
    """Address on the hub; None after a dry run."""
    folder: str | None
    """Where a dry run left the files."""
    commit: str | None
    files: tuple[str, ...]
    warnings: tuple[str, ...]


def publish(
    run: Path | str,
    repo: str,
    *,
    public: bool = False,
    dry_run: bool = False,
    out: Path | str | None = None,
    base: str | None = None,
) -> Published:
    """Check the adapter of a run and upload it with its card, in one commit.

    Args:
        run: a run folder, or an adapter folder.
        repo: `owner/name` on the hub.
        public: let everyone see it; without this the repository is private.
        dry_run: write the exact files to a folder instead of uploading them.
        out: that folder; `publish-dry-run` in the run's own unless given.
        base: hub id of the base, perhaps with `@commit`, where the run used a copy in a folder.

    Raises:
        RecipeError: a name is wrong, or there is no such run.
        InputError: what is there must not be published; all reasons at once.
        WriteError: the hub or the disk did not take it.
    """
    check_repo_name(repo)
    _check_base(base)
    if out is not None and not dry_run:
        raise RecipeError("`--out` says where a dry run goes", hint="add `--dry-run`")
    run = Path(run)
    try:
        with tempfile.TemporaryDirectory(prefix="peftkit-publish-") as building:
            tree = lay_out(run, Path(building) / "tree", repo=repo, base=base)
            warnings = check_tree(tree, public=public)
            if not dry_run:
                return _to_hub(tree, repo, warnings, public=public)
            folder = Path(out) if out is not None else run / DRY_RUN
            made = _send(tree, FolderDestination(folder), repo, warnings, public=public)
            return replace(made, folder=str(folder))
    except OSError as error:
        where = f" `{error.filename}`" if error.filename else ""
        reason = (error.strerror or str(error)).lower()
        raise WriteError(f"could not write{where}: {reason}") from None


def _to_hub(tree: Tree, repo: str, warnings: tuple[str, ...], *, public: bool) -> Published:
    hub = HubDestination(repo)
    made = _send(tree, hub, repo, warnings, public=public)
    unseen = public and tree.base.kind == "hub" and not hub.visible_to_all(tree.base.name)
    if unseen:
        said = f"the base, `{tree.base.name}`, cannot be seen by everyone: not all can load this"
        made = replace(made, warnings=(*made.warnings, said))
    return replace(made, repo=hub.repo)


def _send(
    tree: Tree, place: Destination, repo: str, warnings: tuple[str, ...], *, public: bool
) -> Published:
    warnings += place.create(public=public)
    done = place.upload(tree, f"Publish {repo.rpartition('/')[2]} with peftkit")
    return Published(
        repo=repo,
        public=public,
        url=done.url,
        folder=None,
        commit=done.commit,
        files=tree.files,
        warnings=warnings,
    )


def _check_base(base: str | None) -> None:
    if base is None:
        return
    name, at, commit = base.partition("@")
    if not HUB_ID.fullmatch(name) or (at and not COMMIT.fullmatch(commit)):
        raise RecipeError(
            f"`{base}` is not a hub id: expected `owner/name` or `owner/name@COMMIT` of 40 digits",
            hint="for example `--base Qwen/Qwen3-0.6B`",
        )
