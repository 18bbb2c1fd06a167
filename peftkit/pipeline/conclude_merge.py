"""The end of a merge: what was planned, found and measured, findings and report, in its folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peftkit.diagnose.merges import diagnose_merge
from peftkit.evaluate.verdict import judge_sets
from peftkit.report.merge_page import write_merge_report
from peftkit.report.record import RunFolder
from peftkit.report.wording import UNITS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from peftkit.pipeline.coefficients import Searched
    from peftkit.pipeline.judge_merge import Judgment


def conclude_merge(
    folder: Path,
    facts: Mapping[str, Any],
    judgment: Judgment | None = None,
    searched: Searched | None = None,
    recipe: str | None = None,
) -> Path:
    """The path of the report, written last into the folder of a merge.

    Args:
        folder: where the merge was saved.
        facts: the formula, its terms and how they stand to each other, and the error of the cut.
        judgment: what was measured, if anything was.
        searched: how the numbers were found, where they were searched.
        recipe: the merge as somebody wrote it.
    """
    run = RunFolder(folder)
    run.write("plan.json", dict(facts))
    if recipe is not None:
        run.write("recipe.yaml", recipe)
    search = searched.facts if searched else None
    if search is not None:
        run.write("search.json", search)
    metrics: dict[str, Any] = {}
    if judgment is not None:
        metrics = dict(judgment.metrics)
        worsened = search["objective"] if search and search["direction"] == "worsen" else None
        unit = UNITS.get(metrics["task"], "row")
        metrics["verdict"] = judge_sets(metrics["sets"], worsened, unit)
        run.write("metrics.json", metrics)
        run.write("samples.json", judgment.samples)
    found = diagnose_merge(metrics, search, float(facts.get("error") or 0.0))
    run.write("findings.json", [finding.facts for finding in found])
    return write_merge_report(folder)
