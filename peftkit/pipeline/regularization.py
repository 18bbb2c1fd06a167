"""What `train.regularize` asks of a run: what is added to its loss, and what it must do without."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peftkit.recipe.sections.regularize import acting
from peftkit.train.regularize.terms import Surroundings, Terms, make_terms

if TYPE_CHECKING:
    from peftkit.pipeline.steps import Job
    from peftkit.pipeline.watch import Watch


def add_terms(model: Any, job: Job, watch: Watch) -> Terms | None:
    """What is added to the loss of a run whose model is as it starts; None where nothing is."""
    wanted = acting(job.recipe.train.regularize)
    if not wanted:
        return None
    setup = job.setup
    if "ewc" in wanted and job.processes.first:
        rows = min(wanted["ewc"].rows, len(setup.data.general["ewc"].examples))
        watch.say(f"ewc: measuring what {rows} rows of general text depend on")
    around = Surroundings(
        job.paths,
        job.choices.lay_out(setup.pad_id, setup.task),
        {name: found.examples for name, found in setup.data.general.items()},
        setup.standing_on,
        job.recipe.seed,
        job.processes,
    )
    return make_terms(model, wanted, around)
