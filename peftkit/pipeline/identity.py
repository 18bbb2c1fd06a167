"""What makes a run this run: recipe, base, data and versions by digest, in `lock.json`."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from peftkit import __version__
from peftkit.base.machine import describe_machine, describe_versions
from peftkit.errors import RecipeError
from peftkit.recipe.lock import difference, digest
from peftkit.train.checkpoint import read_state

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from peftkit.pipeline.choices import Choices
    from peftkit.pipeline.setup import Setup
    from peftkit.recipe.load import LoadedRecipe
    from peftkit.recipe.schema import Recipe
    from peftkit.report.record import RunFolder
    from peftkit.train.checkpoint import Checkpoint


WHOLE = ("base.", "data.")
"""Sections to allow as a whole: a change of one key in them changes what they are by digest."""


def refuse_another(run: RunFolder, recipe: Recipe, allow: Sequence[str] = ()) -> None:
    """Stop if the folder holds a run of another recipe; reads nothing else, so it comes first."""
    changes = recipe_changes(run, recipe)
    _refuse(f"`{run.path}` holds a run of another recipe", changes, allow)


def identify(recipe: Recipe, setup: Setup) -> dict[str, Any]:
    """The digests that must not change between a run and its resumption."""
    base = {
        "model": setup.origin.name,
        "commit": setup.origin.commit,
        "digest": setup.digest,
    }
    if setup.below:
        base["under"] = "+".join(each.digest for each in setup.below)
    return {
        "recipe": digest(recipe),
        "base": base,
        "data": setup.data.digests,
        "commits": dict(setup.reading.commits),
    }


def find_changes(
    run: RunFolder,
    recipe: Recipe,
    identity: Mapping[str, Any],
    checkpoint: Checkpoint | None,
    allow: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """What changed since the run began, for `lock.json`; stops at what `allow` does not name.

    Args:
        run: the folder.
        recipe: as it is now.
        identity: of the run as it is now.
        checkpoint: what the run would go on from.
        allow: keys, or sections with all their keys, that may be other than they were.
    """
    found = []
    known = [_parts(identity)]
    lock = run.read("lock.json")
    if lock is not None:
        changes = [*recipe_changes(run, recipe), *_digest_changes(lock, identity)]
        _refuse(f"`{run.path}` cannot go on: what it began with has changed", changes, allow)
        found += [{"changes": changes, "from": _parts(lock)}] if changes else []
        known += [_parts(lock), *(change["from"] for change in lock.get("changes", ()))]
    if checkpoint is not None and _parts(checkpoint.digests) not in known:
        was = read_state(checkpoint).get("recipe") or {}
        changes = [
            *difference(was, recipe.model_dump(mode="json")),
            *_digest_changes(checkpoint.digests, identity),
        ]
        _refuse(f"`{checkpoint.folder}` is of another run", changes, allow)
        found.append({"changes": changes, "from": _parts(checkpoint.digests)})
    return found


def recipe_changes(run: RunFolder, recipe: Recipe) -> list[str]:
    """What differs from the recipe that the folder holds a run of, as lines."""
    held = run.read("recipe.resolved.json")
    if held is None or run.read("lock.json") is None:
        return []  # nothing was trained as that recipe says; a plan alone binds nobody
    return difference(held, recipe.model_dump(mode="json"))


def _parts(digests: Mapping[str, Any]) -> dict[str, Any]:
    """What decides whether two are of the same run; where a base lies and its name do not."""
    base = dict(digests.get("base") or {})
    return {
        "recipe": digests.get("recipe"),
        "base": {name: base[name] for name in ("digest", "under") if base.get(name)},
        "data": dict(digests.get("data") or {}),
    }


def refuse_fewer_steps(checkpoint: Checkpoint, steps: int) -> None:
    """Stop if more steps are taken already than the run is to have."""
    if checkpoint.step > steps:
        raise RecipeError(
            f"train.steps: {steps} is less than the {checkpoint.step} that are already taken",
            hint=f"`--set train.steps={checkpoint.step}` or more; `--fresh` starts over",
        )


def with_versions(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of the run that it is of."""
    return {**identity, "versions": _versions()}


@cache
def _versions() -> dict[str, str]:
    return describe_versions()


def changed_versions(checkpoint: Checkpoint) -> list[str]:
    """Versions that are no longer those a checkpoint was saved under, as lines."""
    old, new = checkpoint.digests.get("versions", {}), _versions()
    names = sorted({*old, *new})
    return [
        f"{name} {old.get(name, 'not there')} -> {new.get(name, 'not there')}"
        for name in names
        if old.get(name) != new.get(name)
    ]


def _digest_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs in base and data, as lines such as `data.train: sha256 12… -> sha256 34…`."""
    before, after = _parts(old), _parts(new)
    return [
        f"{part}.{name}: {_short(before[part].get(name))} -> {_short(after[part].get(name))}"
        for part in ("base", "data")
        for name in {**before[part], **after[part]}
        if before[part].get(name) != after[part].get(name)
    ]


def _short(value: Any) -> str:
    return "(not there)" if value is None else f"sha256 {str(value)[:12]}…"


def _refuse(what: str, changes: Sequence[str], allow: Sequence[str]) -> None:
    """Stop unless each changed key, or a section that it is in, is among those allowed."""
    left = {
        change: key
        for change, key in ((change, change.partition(":")[0]) for change in changes)
        if not any(key == allowed or key.startswith(f"{allowed}.") for allowed in allow)
    }
    if not left:
        return
    keys = [key.partition(".")[0] if key.startswith(WHOLE) else key for key in left.values()]
    wanted = " ".join(f"--allow-change {key}" for key in dict.fromkeys([*allow, *keys]))
    raise RecipeError(
        what,
        problems=list(left),
        hint=f"`{wanted}` goes on all the same; `--fresh` starts over in this folder; "
        "`--out DIR` uses another one",
    )


def write_lock(
    run: RunFolder,
    identity: Mapping[str, Any],
    choices: Choices,
    changes: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Record what this run is, what was chosen for it, and what has been changed on the way."""
    earlier = (run.read("lock.json") or {}).get("changes", ())
    history = [dict(change) for change in (*earlier, *changes)]
    run.write(
        "lock.json",
        {"peftkit": __version__}
        | dict(identity)
        | {
            "versions": _versions(),
            "machine": describe_machine(),
            "choices": choices.facts,
        }
        | ({"changes": history} if history else {}),
    )


def write_recipe(run: RunFolder, loaded: LoadedRecipe) -> None:
    """Keep the recipe as written and with every default filled in."""
    run.write("recipe.yaml", loaded.text)
    run.write("recipe.resolved.json", loaded.recipe.model_dump(mode="json"))
