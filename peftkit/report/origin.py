"""What a card and a published adapter say about the base: a name that others can use, or none."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from peftkit.report.scrub import file_name
from peftkit.report.tolerant import number, table, text

if TYPE_CHECKING:
    from peftkit.report.tolerant import Loose

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class BaseName:
    """The base of an adapter, as it may be told to others."""

    kind: Literal["hub", "builtin", "folder", "unknown"]
    name: str
    """A hub id, `builtin:tiny`, or the last name of a folder."""
    commit: str | None = None
    digest: str | None = None
    parameters: float | None = None

    @property
    def loadable(self) -> str | None:
        """For `base_model_name_or_path`: no folder, as anyone may take its name on a hub."""
        return self.name if self.kind in ("hub", "builtin") else None


def base_name(lock: Loose, config: Loose, stated: str | None = None) -> BaseName:
    """The base that the run's lock or else the adapter's own configuration names.

    Args:
        lock: lock.json of the run, empty where there is no run.
        config: adapter_config.json.
        stated: a hub id, perhaps with `@commit`, that the owner says the base is.
    """
    locked = table(lock.get("base"))
    model = text(locked.get("model")) or text(config.get("base_model_name_or_path"))
    found = BaseName(
        *_kind(model, fixed=text(locked.get("commit")), in_lock=bool(locked)),
        commit=text(locked.get("commit")) or text(config.get("revision")),
        digest=text(locked.get("digest")),
        parameters=number(locked.get("parameters")),
    )
    if stated is None:
        return found
    name, _, commit = stated.partition("@")
    kept = commit or (found.commit if found.name == name else None)
    return replace(found, kind="hub", name=name, commit=kept)


def _kind(
    model: str | None, *, fixed: str | None, in_lock: bool
) -> tuple[Literal["hub", "builtin", "folder", "unknown"], str]:
    if not model:
        return "unknown", "unknown"
    if model.startswith("builtin:"):
        return "builtin", model
    could_be_id = HUB_ID.fullmatch(model) is not None
    # A run knows the commit of every hub model, so what has none was a folder.
    if could_be_id and (fixed or not (in_lock or Path(model).is_dir())):
        return "hub", model
    return "folder", file_name(model)
