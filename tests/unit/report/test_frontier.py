"""Points of a frontier: which runs no other beats, and where they are drawn."""

from pathlib import Path

import run_folders as folders
from hypothesis import given
from hypothesis import strategies as some

from peftkit.report.comparison import named
from peftkit.report.frontier import Point, as_table, points, scatter
from peftkit.report.page import build_comparison
from peftkit.report.reading import read_run

FIGURES = some.floats(-5, 5)


def write(folder: Path, name: str, gain: float, rise: float) -> Path:
    run = folders.write_run(folder / name)
    metrics = folders.metrics()
    metrics["difference"] = {"test": {"loss": folders.change(4.0, 4.0 - gain, -gain - 1, 1 - gain)}}
    metrics["remember"] = [{"source": "a", "before": {"loss": 1.0}, "after": {"loss": 1.0 + rise}}]
    folders.write(run / "metrics.json", metrics)
    folders.write(run / "recipe.resolved.json", {"name": name})
    return run


def test_runs_that_no_other_beats_in_both_are_marked(tmp_path: Path) -> None:
    figures = {"a": (1.0, 0.1), "b": (2.0, 0.5), "c": (1.5, 0.6), "d": (2.0, 0.7), "e": (0.5, 0.1)}
    runs = [write(tmp_path, name, *each) for name, each in figures.items()]
    found = points(named([read_run(run) for run in runs]))
    assert {point.label for point in found if point.unbeaten} == {"a", "b"}
    assert [row[0] for row in as_table(found).rows][:2] == ["b", "d"]
    page = build_comparison(runs)
    assert "Learned and forgotten" in page
    assert page.count('<path class="mark tone-0" d="M-4 0a4') >= 2


def test_without_general_text_there_is_no_frontier(tmp_path: Path) -> None:
    runs = [write(tmp_path, name, 1.0, 0.1) for name in ("a", "b")]
    for run in runs:
        folders.write(run / "metrics.json", folders.metrics() | {"remember": []})
    assert points(named([read_run(run) for run in runs])) == []
    assert "Learned and forgotten" not in build_comparison(runs)


@given(some.lists(some.tuples(FIGURES, FIGURES), min_size=1, max_size=8))
def test_every_point_is_drawn_inside(figures: list[tuple[float, float]]) -> None:
    made = [Point(str(at), gain, None, rise) for at, (gain, rise) in enumerate(figures)]
    drawn = scatter(made)
    assert drawn.count('<path class="mark') == len(made)
    places = [part.split('"')[0] for part in drawn.split('<svg x="')[1:]]
    assert all(0 <= float(place.rstrip("%")) <= 100 for place in places)
