"""`finetune` of a recipe with stages: one run after the other, each from what an earlier one left.

A stage is an ordinary run in a folder of its own, `stages/<name>`, whose adapter starts from that
of an earlier folder; so it resumes, reports and is used as any run does and is. This module decides
their order, and what of the earlier part of a staged run still holds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from peftkit import __version__
from peftkit.adapters.folders import STAGES, digest_of, expand, find_adapter
from peftkit.base.machine import describe_machine
from peftkit.evaluate.losses import choose_rows
from peftkit.pipeline.conclude import read_run
from peftkit.pipeline.identity import (
    recipe_changes,
    refuse_another,
    with_versions,
    write_recipe,
)
from peftkit.pipeline.inspect_rows import inspect_rows, say_what_is_wrong
from peftkit.pipeline.plan import make_plan
from peftkit.pipeline.setup import set_up
from peftkit.pipeline.whole_story import tell_whole_story
from peftkit.recipe.following import start_of
from peftkit.recipe.lock import digest
from peftkit.recipe.sections.adapter import NOTHING
from peftkit.recipe.sections.stages import SECTIONS
from peftkit.report.record import RunFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from peftkit.data.example import Example
    from peftkit.data.task import Task
    from peftkit.pipeline.conclude import Run
    from peftkit.pipeline.plan import Plan
    from peftkit.pipeline.watch import Watch
    from peftkit.recipe.load import LoadedRecipe
    from peftkit.recipe.schema import Recipe

    Train = Callable[[LoadedRecipe, RunFolder, Sequence[str], Mapping[str, Sequence[Example]]], Run]
    """One training: of a recipe, in a folder, with what may have changed, measured there too."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a call says beside the recipe."""

    fresh: bool = False
    fresh_data: bool = False
    allow: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Look:
    """What is known of a stage before any is trained."""

    name: str
    plan: Plan
    task: Task
    validation: Sequence[Example]
    """The rows of it that are evaluated."""


def train_stages(
    loaded: LoadedRecipe, run: RunFolder, asked: Asked, watch: Watch, train: Train
) -> Run:
    """Train every stage that is not finished, and tell what all of them came to."""
    recipe = loaded.recipe
    allow = spread_allowed(asked.allow, [stage.name for stage in recipe.stages])
    looks, changes = prepare_stages(loaded, run, asked)
    _begin(loaded, run, changes)
    for number, stage in enumerate(recipe.stages):
        watch.say(f"stage {number + 1} of {len(recipe.stages)}: `{stage.name}`")
        own, folder = stage_of(recipe, number, run), stage_folder(run, stage.name)
        if _begins_anew(own, folder):
            watch.say(f"`{stage.name}` starts over: what it starts from has changed")
            run.reopen()
            folder.clear()
        if not folder.finished:
            run.reopen()
        elsewhere = {
            look.name: look.validation
            for look in looks
            if look.name != stage.name and look.task == looks[number].task
        }
        train(replace(loaded, recipe=own), folder, allowed_in(allow, stage.name), elsewhere)
    if run.finished:
        watch.say(f"`{run.path}` is finished; `--fresh` would start over")
    else:
        tell_whole_story(recipe, run)
    return read_run(run)


def prepare_stages(
    loaded: LoadedRecipe, run: RunFolder, asked: Asked, watch: Watch | None = None
) -> tuple[list[Look], list[str]]:
    """Check every stage's base and data, and write down what will happen in all of them.

    What changed since the run began, and may, comes with it. A `watch` is told what is wrong with
    rows, which otherwise each stage says as it begins.
    """
    recipe = loaded.recipe
    if asked.fresh:
        run.clear()
    allow = spread_allowed(asked.allow, [stage.name for stage in recipe.stages])
    refuse_another(run, recipe, allow)
    changes = recipe_changes(run, recipe)
    looks = look_ahead(recipe, fresh_data=asked.fresh_data, watch=watch)
    if not changes:  # else not before `lock.json` says so
        write_recipe(run, loaded)
    run.write("plan.json", plan_of(looks))
    return looks, changes


def _begin(loaded: LoadedRecipe, run: RunFolder, changes: Sequence[str]) -> None:
    """Write down what the run is, before any stage begins or goes on."""
    lock = run.read("lock.json") or {}
    if lock and not changes:
        return
    run.reopen()
    new = with_versions({"peftkit": __version__, STAGES: {}}) | {"machine": describe_machine()}
    history = [*lock.get("changes", ()), *([{"changes": list(changes)}] if changes else [])]
    recipe = {"recipe": digest(loaded.recipe)}
    run.write("lock.json", new | lock | recipe | ({"changes": history} if history else {}))
    write_recipe(run, loaded)


def look_ahead(
    recipe: Recipe, *, fresh_data: bool = False, watch: Watch | None = None
) -> list[Look]:
    """Every stage as far as it can be known before the first is trained."""
    return [_look(recipe, number, fresh_data, watch) for number in range(len(recipe.stages))]


def _look(recipe: Recipe, number: int, fresh_data: bool, watch: Watch | None) -> Look:  # noqa: FBT001
    own = recipe.stage(number)
    setup = set_up(own, fresh_data=fresh_data)
    if watch is not None:
        watch.say(f"stage {number + 1} of {len(recipe.stages)}: `{recipe.stages[number].name}`")
        rows = setup.data.facts | inspect_rows(own, setup)
        say_what_is_wrong(rows, own.base.task, watch)
    chosen = choose_rows(setup.data.validation.examples, own.evaluate.rows)
    return Look(recipe.stages[number].name, make_plan(own, setup), setup.task, chosen)


def plan_of(looks: Sequence[Look]) -> dict[str, Any]:
    """What `plan.json` says: the last stage, each stage, and what they take together."""
    plans = [look.plan for look in looks]
    return plans[-1].facts | {
        "stages": [{"name": look.name} | look.plan.facts for look in looks],
        "total": {
            "steps": sum(plan.steps for plan in plans),
            "tokens": sum(plan.steps * plan.tokens_per_step for plan in plans),
            "memory_bytes": {
                use: max(plan.memory_bytes[use] for plan in plans) for use in plans[0].memory_bytes
            },
            "disk_bytes": sum(plan.disk_bytes for plan in plans),
        },
    }


def stage_folder(run: RunFolder, name: str) -> RunFolder:
    """The folder of a stage, swept of what a killed process left half-written."""
    folder = RunFolder(run.path / STAGES / name)
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.sweep()
    return folder


def stage_of(recipe: Recipe, number: int, run: RunFolder) -> Recipe:
    """One stage as a recipe of its own, which starts from the folder of an earlier one."""
    own, start = recipe.stage(number), start_of(recipe.stages, number)
    if start is None:
        return own
    under = run.path.absolute() / STAGES / recipe.stages[start].name
    beginning = {"under": str(under), "under_as": recipe.stages[number].how}
    return own.model_copy(update={"adapter": own.adapter.model_copy(update=beginning)})


def _begins_anew(recipe: Recipe, folder: RunFolder) -> bool:
    """Whether a stage began with another adapter than there now is."""
    lock = folder.read("lock.json")
    if lock is None:
        return False
    below = []
    if recipe.adapter.under != NOTHING:
        below = [digest_of(each) for each in expand(find_adapter(recipe.adapter.under))]
    return bool(lock["base"].get("under", "") != "+".join(below))


def spread_allowed(allow: Sequence[str], names: Sequence[str]) -> list[str]:
    """Keys as the whole recipe has them: one without a stage is meant of all."""
    found = []
    for key in allow:
        head, _, rest = key.partition(".")
        if head != STAGES:
            found += [key, *(f"{STAGES}.{name}.{key}" for name in names)]
            continue
        named, dot, inside = rest.partition(".")
        known = named.isdecimal() and int(named) < len(names)
        named = names[int(named)] if known else named
        found.append(f"{head}.{named}{dot}{inside}".rstrip("."))
    return found


def allowed_in(allow: Sequence[str], name: str) -> list[str]:
    """Keys that may have changed in one stage, as its own recipe has them."""
    whole = (STAGES, f"{STAGES}.{name}")
    if any(key in whole for key in allow):
        return list(SECTIONS)
    start = f"{STAGES}.{name}."
    own = [key.removeprefix(start) for key in allow if key.startswith(start)]
    return own + [key for key in allow if not key.startswith(f"{STAGES}.")]
