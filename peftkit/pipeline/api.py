"""The Python interface: what the commands do, as functions that return plain data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.data.given import NOT_YET, refuse_other_sets, write_sets
from peftkit.recipe.load import load_recipe
from peftkit.report.holding import hold
from peftkit.report.record import ROWS
from peftkit.train.processes import is_first

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from peftkit.pipeline.conclude import Run


def finetune(
    recipe: str | Path,
    *,
    set: Mapping[str, Any] | None = None,  # noqa: A002 - named as the command line names it
    out: str | Path | None = None,
    fresh: bool = False,
    allow_change: Sequence[str] = (),
    rows: Mapping[str, Iterable[Mapping[str, Any]]] | None = None,
    fresh_data: bool = False,
) -> Run:
    """A finished run of the recipe: `.metrics`, `.findings`, `.adapter`, `.report`.

    Goes on where an earlier, interrupted call with the same recipe and folder stopped; keys in
    `allow_change`, such as `train.steps`, may be other than the run began with. Of the processes
    that a launcher started each returns the run.

    `rows` are taken in place of the files under `data.train`, `data.validation` or `data.test`:
    they are written into the run folder first, so that bad ones have a line and the run goes on
    where the same rows are given again. `fresh_data` makes tokens anew that earlier runs kept.
    """
    if not is_first():
        from peftkit.pipeline.follow import follow

        return follow()
    from peftkit.pipeline.finetune import finetune as run_recipe

    overrides = [f"{key}={_as_text(value)}" for key, value in (set or {}).items()]
    given = rows or {}
    refuse_other_sets(given)
    loaded = load_recipe(Path(recipe), [*overrides, *(f"data.{name}={NOT_YET}" for name in given)])
    with hold(Path(out) if out else Path("runs") / loaded.recipe.name) as folder:
        if given:
            written = write_sets(folder.path / ROWS, given)
            overrides += [f"data.{name}={json.dumps(str(path))}" for name, path in written.items()]
            loaded = load_recipe(Path(recipe), overrides)
        return run_recipe(loaded, folder, fresh=fresh, fresh_data=fresh_data, allow=allow_change)


def _as_text(value: Any) -> str:
    """A value as it would be typed after `--set key=`."""
    return value if isinstance(value, str) else json.dumps(value)
