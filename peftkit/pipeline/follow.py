"""`finetune` in a process that is not the first: the same steps, told by the first, in silence.

It reads nothing of the run folder but the checkpoint to go on from, and the adapters of earlier
stages, and writes nothing into it.
Outside the steps a signal ends it at once, because nothing would be lost.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import torch

from peftkit.errors import InputError
from peftkit.fast.paths import restore_paths
from peftkit.pipeline.choices import keep_choices
from peftkit.pipeline.conclude import Run
from peftkit.pipeline.finetune import keep_base_states, load_adapted
from peftkit.pipeline.identity import identify
from peftkit.pipeline.setup import set_up
from peftkit.pipeline.signals import Requests, handling
from peftkit.pipeline.steps import Job, take_steps
from peftkit.pipeline.watch import Silent
from peftkit.train.processes import join

if TYPE_CHECKING:
    from peftkit.pipeline.finetune import Start
    from peftkit.train.processes import Processes


def follow() -> Run:
    """The result of the run that this process helps with, once the first has concluded it."""
    with handling(signal.SIG_DFL):
        processes = join()
        while not isinstance(told := processes.hear(), Run):  # of stages, each is begun like this
            _help(told, processes)
        return told


def _help(start: Start, processes: Processes) -> None:
    """Take every step together with the first process."""
    recipe = start.recipe
    setup = set_up(recipe, dtype=start.dtype, commits=start.identity["commits"])
    if identify(recipe, setup) != start.identity:
        raise InputError(
            f"process {processes.rank} finds another base or other data than the first",
            hint="give every machine the same files at the same places",
        )
    model = load_adapted(recipe, setup)
    choices = keep_choices(processes.hear().facts, model)
    torch.set_num_threads(choices.threads)
    processes.wait()  # until the first has filled what is kept
    kept = keep_base_states(setup, choices, model, Silent())
    paths = restore_paths(model, head=choices.head, kept=kept)
    job = Job(
        recipe,
        setup,
        start.run,
        start.steps,
        choices,
        paths,
        start.identity,
        start.checkpoint,
        processes,
    )
    requests = Requests()
    with handling(requests.note):
        take_steps(model, job, requests, Silent())
