"""The Python interface: what the commands do, as functions that return plain data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.recipe.load import load_recipe
from peftkit.report.holding import hold
from peftkit.train.processes import is_first

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from peftkit.pipeline.conclude import Run


def finetune(
    recipe: str | Path,
    *,
    set: Mapping[str, Any] | None = None,  # noqa: A002 - named as the command line names it
    out: str | Path | None = None,
    fresh: bool = False,
    allow_change: Sequence[str] = (),
) -> Run:
    """A finished run of the recipe: `.metrics`, `.findings`, `.adapter`, `.report`.

    Goes on where an earlier, interrupted call with the same recipe and folder stopped; keys in
    `allow_change`, such as `train.steps`, may be other than the run began with. Of the processes
    that a launcher started each returns the run.
    """
    if not is_first():
        from peftkit.pipeline.follow import follow

        return follow()
    from peftkit.pipeline.finetune import finetune as run_recipe

    overrides = [f"{key}={_as_text(value)}" for key, value in (set or {}).items()]
    loaded = load_recipe(Path(recipe), overrides)
    with hold(Path(out) if out else Path("runs") / loaded.recipe.name) as folder:
        return run_recipe(loaded, folder, fresh=fresh, allow=allow_change)


def _as_text(value: Any) -> str:
    """A value as it would be typed after `--set key=`."""
    import json

    return value if isinstance(value, str) else json.dumps(value)
