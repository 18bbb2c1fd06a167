"""Lays out the exact files that are published, from a run folder or a bare adapter folder."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.adapters.folders import NOTE
from peftkit.adapters.task_file import TASK_FILE
from peftkit.adapters.verify import CONFIG_FILE, DELTA_FILE, WEIGHTS_FILE
from peftkit.errors import InputError, RecipeError
from peftkit.recipe.paths import map_paths
from peftkit.report import tolerant
from peftkit.report.card import MADE_BY, build_card
from peftkit.report.card_merge import MERGE_FILE, read_merge
from peftkit.report.origin import BaseName, base_name
from peftkit.report.scrub import file_name, scrub

if TYPE_CHECKING:
    from collections.abc import Mapping

CARD = "README.md"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "chat_template.jinja",
)
RECORDS = ("recipe.resolved.json", "metrics.json", "findings.json", "lock.json")
"""What a run says about itself, published under `peftkit/`."""
PUBLISHED = frozenset(
    [CONFIG_FILE, WEIGHTS_FILE, DELTA_FILE, NOTE, TASK_FILE, CARD, MERGE_FILE, *TOKENIZER_FILES]
    + [f"peftkit/{name}" for name in RECORDS]
)
"""Every file that is ever published; anything else in an adapter folder stays where it is."""
_NAMES_A_PLACE = ("name_or_path", "tokenizer_file", "vocab_file", "special_tokens_map_file")


@dataclass(frozen=True, slots=True)
class Tree:
    """What is about to be published, laid out in a folder of its own."""

    folder: Path
    files: tuple[str, ...]
    base: BaseName
    absent: tuple[str, ...]
    """Records that the run lacks."""


def lay_out(run: Path, into: Path, *, repo: str, base: str | None = None) -> Tree:
    """Write what will be published of `run` into the empty folder `into`.

    Args:
        run: a run folder, or a folder that holds adapter_config.json.
        into: where the files go; made if it is not there.
        repo: where it will be published, which the card names.
        base: hub id of the base, where the run used a copy in a folder.

    Raises:
        RecipeError: there is nothing at `run`.
        InputError: what is there holds no adapter, or a damaged one.
    """
    run, adapter = _find(run)
    config = _config(adapter)
    lock = tolerant.table(tolerant.read_json(run / "lock.json").value)
    named = base_name(lock, config, base)
    into.mkdir(parents=True, exist_ok=True)
    config |= {"base_model_name_or_path": named.loadable, "revision": named.commit}
    _write_json(into / CONFIG_FILE, config)
    for name in (WEIGHTS_FILE, DELTA_FILE, NOTE, TASK_FILE, *TOKENIZER_FILES):
        if (adapter / name).is_file():
            _copy(adapter / name, into / name)
    (into / CARD).write_text(_card(run, adapter, repo, base), encoding="utf-8")
    absent = _records(run, into)
    if said := read_merge(adapter):
        _write_json(into / MERGE_FILE, _told_to_others(said, named))
        absent = ()  # it has no run, and says itself what it was made of
    files = sorted(path.relative_to(into) for path in into.rglob("*") if path.is_file())
    return Tree(into, tuple(path.as_posix() for path in files), named, absent)


def _find(run: Path) -> tuple[Path, Path]:
    """The folder with the records, and the one with the adapter."""
    if not run.is_dir():
        raise RecipeError(f"no run at `{run}`", hint="`peftkit runs` lists what ran")
    if run.name == "adapter" and (run.parent / "recipe.resolved.json").is_file():
        run = run.parent
    for adapter in (run / "adapter", run):
        if (adapter / CONFIG_FILE).is_file():
            return run, adapter
    raise InputError(
        f"`{run}` holds no adapter: neither adapter/{CONFIG_FILE} nor {CONFIG_FILE}",
        hint="an unfinished run goes on with the `peftkit finetune` command that began it",
    )


def _config(adapter: Path) -> dict[str, Any]:
    read = tolerant.read_json(adapter / CONFIG_FILE)
    if read.problem is not None or not isinstance(read.value, dict):
        raise InputError(f"`{adapter / CONFIG_FILE}` {read.problem or 'is not a JSON object'}")
    return dict(read.value)


def _card(run: Path, adapter: Path, repo: str, base: str | None) -> str:
    """A card somebody wrote by hand stays theirs; ours is made anew, with the repository in it."""
    own = tolerant.read_text(adapter / CARD).value
    if isinstance(own, str) and own.strip() and not _made(own):
        return own
    return build_card(run, base=base, repo=repo)


def _made(card: str) -> bool:
    """Whether a program wrote the card: ours, or the empty form that peft leaves."""
    return MADE_BY in card or "[More Information Needed]" in card


def _records(run: Path, into: Path) -> tuple[str, ...]:
    absent = []
    for name in RECORDS:
        value = tolerant.read_json(run / name).value
        if value is None:
            absent.append(name)
            continue
        (into / "peftkit").mkdir(exist_ok=True)
        _write_json(into / "peftkit" / name, scrub(value))
    return tuple(absent)


def _told_to_others(said: Mapping[str, Any], base: BaseName) -> dict[str, Any]:
    """What a merge says of itself, with names in place of places."""
    parents = [each | {"at": file_name(str(each["at"]))} for each in said["parents"]]
    told = {"parents": parents, "base": {**tolerant.table(said.get("base")), "name": base.name}}
    recipe = tolerant.table(said.get("recipe"))
    told["recipe"] = map_paths(recipe, Path(), file_name) | {"base": base.name}
    return dict(scrub({**said, **told}))


def _copy(source: Path, target: Path) -> None:
    """A plain copy, readable by all; of a tokenizer's settings without where they came from."""
    if source.name == "tokenizer_config.json":
        settings = tolerant.read_json(source).value
        if isinstance(settings, dict):
            places = {key: settings[key] for key in _NAMES_A_PLACE if key in settings}
            named = {key: file_name(at) for key, at in places.items() if isinstance(at, str)}
            _write_json(target, settings | named)
            return
    shutil.copyfile(source, target)


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    path.write_text(f"{text}\n", encoding="utf-8")
