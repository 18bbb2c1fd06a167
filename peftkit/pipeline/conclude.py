"""The end of a run: figures against the base, findings, samples, report and card."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftkit.base.machine import peak_memory
from peftkit.diagnose.diagnose import diagnose
from peftkit.evaluate.compare import compare, judge
from peftkit.evaluate.origins import tell_origins_apart
from peftkit.pipeline.ending import describe_end
from peftkit.pipeline.samples import gather_samples
from peftkit.report.card import build_card
from peftkit.report.page import write_report
from peftkit.report.record import EVALUATIONS, STEPS
from peftkit.report.wording import UNITS
from peftkit.train.spikes import find_spikes

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from peftkit.pipeline.judge import Judged
    from peftkit.pipeline.setup import Setup
    from peftkit.recipe.schema import Recipe
    from peftkit.report.record import RunFolder


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run: plain data and paths."""

    path: Path
    metrics: dict[str, Any]
    findings: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    adapter: Path
    report: Path


def read_run(run: RunFolder) -> Run:
    """What a finished run's folder says."""
    return Run(
        path=run.path,
        metrics=run.read("metrics.json"),
        findings=run.read("findings.json"),
        samples=run.read("samples.json"),
        adapter=run.adapter,
        report=run.path / "report.html",
    )


def conclude(
    run: RunFolder,
    recipe: Recipe,
    setup: Setup,
    before: Judged,
    after: Judged,
    drift: Mapping[str, Any],
) -> Run:
    """Write metrics, findings, samples, report and card of a run whose adapter is saved."""
    steps = describe_end(recipe, run, run.read("plan.json")["steps"])
    last = steps["taken"]
    if run.lines(EVALUATIONS)[-1]["step"] != last:
        run.append(EVALUATIONS, {"step": last} | after.line)
    metrics = gather_metrics(run, recipe, setup, before, after)
    metrics["steps"] = steps
    metrics["spikes"] = [spike.facts for spike in find_spikes(run.lines(STEPS))]
    metrics["drift"] = dict(drift)
    metrics["seen"] = setup.data.seen(last * recipe.train.batch.rows)
    metrics["by_origin"] = _by_origin(setup, before, after)
    metrics |= _elsewhere(before, after)
    run.write("metrics.json", metrics)
    run.write("samples.json", gather_samples(recipe, setup, before, after))
    run.write("findings.json", [finding.facts for finding in diagnose(run)])
    run.write("adapter/README.md", build_card(run.path))
    write_report(run.path)
    return read_run(run)


def gather_metrics(
    run: RunFolder, recipe: Recipe, setup: Setup, before: Judged, after: Judged
) -> dict[str, Any]:
    """What `metrics.json` says."""
    difference = {
        name: compare(before.sets[name], after.sets[name], seed=recipe.seed) for name in after.sets
    }
    test, task = after.sets.get("test"), recipe.base.task
    base = before.sets["validation"].summary
    base["test"] = before.sets["test"].summary if test else None
    return {
        "validation": after.sets["validation"].summary,
        "test": test.summary if test else None,
        "baselines": {"base": base},
        "difference": difference,
        "remember": [
            {"source": source, "before": {"loss": old}, "after": {"loss": after.remember[source]}}
            for source, old in before.remember.items()
        ],
        "speed": _speed(run),
        "verdict": judge(difference, len(after.shown.examples), UNITS.get(task, "row")),
        "task": task,
    } | _without_leaks(setup.data.checks.leaked, before, after, seed=recipe.seed)


def _without_leaks(
    leaked: Mapping[str, Collection[str]], before: Judged, after: Judged, *, seed: int
) -> dict[str, Any]:
    """Figures of the rows that did not leak, of each set of which some did and some did not."""
    found = {}
    for name, digests in leaked.items():
        old, new = before.sets[name].without(digests), after.sets[name].without(digests)
        if 0 < len(new.examples) < len(after.sets[name].examples):
            difference = compare(old, new, seed=seed)
            found[f"{name}_without_leaks"] = new.summary | {"difference": difference}
    return found


def _elsewhere(before: Judged, after: Judged) -> dict[str, Any]:
    """Losses on the validation rows of other stages, where there are any."""
    found = [
        {"stage": name, "before": {"loss": old}, "after": {"loss": after.elsewhere[name]}}
        for name, old in before.elsewhere.items()
    ]
    return {"elsewhere": found} if found else {}


def _by_origin(setup: Setup, before: Judged, after: Judged) -> dict[str, Any]:
    """Scores of each origin on every set whose rows say theirs."""
    sets = {"validation": setup.data.validation, "test": setup.data.test}
    found = {
        name: tell_origins_apart(before.sets[name], after.sets[name], dataset.origins)
        for name, dataset in sets.items()
        if dataset is not None
    }
    return {name: figures for name, figures in found.items() if figures}


def _speed(run: RunFolder) -> dict[str, Any]:
    steps = run.lines(STEPS)
    seconds = sum(line["seconds"] for line in steps)
    tokens = sum(line["tokens"] for line in steps)
    return {
        "tokens_per_second": tokens / max(seconds, 1e-9),
        "seconds": seconds,
        "tokens": tokens,
        "peak_memory_bytes": peak_memory(),
    }
