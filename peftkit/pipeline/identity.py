"""What makes a run this run: recipe, base, data and versions by digest, in `lock.json`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peftkit import __version__
from peftkit.base.machine import describe_machine, describe_versions
from peftkit.errors import RecipeError
from peftkit.recipe.lock import difference, digest

if TYPE_CHECKING:
    from peftkit.pipeline.choices import Choices
    from peftkit.pipeline.setup import Setup
    from peftkit.recipe.load import LoadedRecipe
    from peftkit.recipe.schema import Recipe
    from peftkit.report.record import RunFolder


def refuse_another(run: RunFolder, recipe: Recipe) -> None:
    """Stop if the folder holds a run of another recipe; needs no torch, so it comes first."""
    held = run.read("recipe.resolved.json")
    if held is None:
        return
    changes = difference(held, recipe.model_dump(mode="json"))
    if changes:
        raise RecipeError(
            f"`{run.path}` holds a run of another recipe",
            problems=changes,
            hint="`--fresh` starts over in this folder; `--out DIR` uses another one",
        )


def identify(recipe: Recipe, setup: Setup) -> dict[str, Any]:
    """The digests that must not change between a run and its resumption."""
    return {
        "recipe": digest(recipe),
        "base": {
            "model": setup.origin.name,
            "commit": setup.origin.commit,
            "digest": setup.digest,
        },
        "data": setup.data.digests,
    }


def refuse_changed(run: RunFolder, identity: dict[str, Any]) -> None:
    """Stop if base or data are no longer what the folder's run began with."""
    lock = run.read("lock.json")
    if lock is None:
        return
    problems = [
        f"{name} is not what the run began with"
        for name, now in (("base", identity["base"]), ("data", identity["data"]))
        if lock[name] != now
    ]
    if problems:
        raise RecipeError(
            f"`{run.path}` cannot go on",
            problems=problems,
            hint="`--fresh` starts over in this folder; `--out DIR` uses another one",
        )


def write_lock(run: RunFolder, identity: dict[str, Any], choices: Choices) -> None:
    """Record what this run is and what was chosen for it."""
    run.write(
        "lock.json",
        {"peftkit": __version__}
        | identity
        | {
            "versions": describe_versions(),
            "machine": describe_machine(),
            "choices": choices.facts,
        },
    )


def write_recipe(run: RunFolder, loaded: LoadedRecipe) -> None:
    """Keep the recipe as written and with every default filled in."""
    run.write("recipe.yaml", loaded.text)
    run.write("recipe.resolved.json", loaded.recipe.model_dump(mode="json"))
