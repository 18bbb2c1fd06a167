"""The end of a merge: what was found and measured, findings and report, in its folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peftkit.diagnose.merges import diagnose_merge
from peftkit.evaluate.retention import BASE, MERGED
from peftkit.evaluate.verdict import judge_sets
from peftkit.pipeline.provenance import add_to_record
from peftkit.report.merge_page import write_merge_report
from peftkit.report.record import RunFolder
from peftkit.report.wording import UNITS

if TYPE_CHECKING:
    from pathlib import Path

    from peftkit.pipeline.coefficients import Searched
    from peftkit.pipeline.judge_merge import Judgment


def conclude_merge(folder: Path, judgment: Judgment, searched: Searched | None) -> dict[str, Any]:
    """What was found in short; all of it is in the folder of the merge, the report written last.

    Args:
        folder: where the merge was saved.
        judgment: what was measured.
        searched: how the numbers were found, where they were searched.
    """
    run = RunFolder(folder)
    search = searched.facts if searched else None
    worsened = search["objective"] if search and search["direction"] == "worsen" else None
    metrics = dict(judgment.metrics)
    unit = UNITS.get(metrics["task"], "row")
    metrics["verdict"] = judge_sets(metrics["sets"], worsened, unit)
    if search is not None:
        run.write("search.json", search)
        kept = {key: value for key, value in search.items() if key != "trials"}
        add_to_record(folder, "search", kept | {"evaluations": len(search["trials"])})
    evaluation = {"verdict": metrics["verdict"], "sets": [_short(each) for each in metrics["sets"]]}
    add_to_record(folder, "evaluation", evaluation)
    error = run.read("merge.json").get("error", {}).get("relative", 0.0)
    findings = [finding.facts for finding in diagnose_merge(metrics, search, float(error))]
    run.write("metrics.json", metrics)
    run.write("samples.json", judgment.samples)
    run.write("findings.json", findings)
    report = write_merge_report(folder)
    return {"evaluation": evaluation, "findings": findings, "report": str(report)}


def _short(found: dict[str, Any]) -> dict[str, Any]:
    """One set in a few figures."""
    metric = found["metric"]
    models = {name: each[metric] for name, each in found["models"].items()}
    order = [BASE, *(name for name in models if name not in (BASE, MERGED)), MERGED]
    return {
        "name": found["name"],
        "role": found["role"],
        "rows": found["rows"],
        "metric": metric,
        "models": {name: models[name] for name in order},
        "retained": found["retained"],
        "performance": found["performance"][MERGED],
    }
