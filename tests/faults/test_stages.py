"""A run with stages that is killed anywhere ends as one that was not: in a stage, and between."""

import json
import random
import signal
from pathlib import Path
from typing import Any

import pytest
from fault_runs import STEP, Forks, at, leftovers

STAGES = ("domain", "task", "last")
BETWEEN = [
    ("peftkit.pipeline.stages:stage_of", 2),
    ("peftkit.pipeline.whole_story:gather_losses", 1),
]
"""Calls at which a run of three stages is killed, and which of them."""
MORE = [
    ("peftkit.pipeline.stages:stage_of", 1),
    ("peftkit.pipeline.stages:stage_of", 3),
    ("peftkit.adapters.beginning:fold_in", 1),
    ("peftkit.adapters.beginning:go_on_as", 1),
    ("peftkit.adapters.store:save_adapter", 2),
    ("peftkit.pipeline.conclude:conclude", 2),
    ("peftkit.merge.final:save_final", 1),
    ("peftkit.report.page:write_report", 4),
]
"""Others, for `make faults`."""


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """Three stages of five steps: on text, folded into the base, and continued, with dropout."""
    folder = tmp_path_factory.mktemp("staged")
    (folder / "text.txt").write_text(
        "\n\n".join(f"Number {n} has {n % 7} hats." for n in range(60))
    )
    rows = [{"prompt": f"Hats of {n}:", "completion": f" {n % 7}"} for n in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"""\
name: staged
seed: 3
base: {{model: {tiny_llama}}}
adapter: {{rank: 4, dropout: 0.1}}
data: {{leakage: off, duplicates: off, validation: {{fraction: 0.1}}, max_length: 64}}
train:
  steps: 5
  batch: {{rows: 8, micro_rows: 2}}
  learning_rate: 1e-2
  save_every: 2
  threads: 1
evaluate: {{every: 2, samples: 1, rows: 4}}
stages:
  - {{name: domain, data: {{train: {{source: text.txt, format: text}}}}}}
  - {{name: task, as: folded, data: {{train: rows.jsonl}}}}
  - {{name: last, as: continued, data: {{train: rows.jsonl}}}}
"""
    )
    return recipe


@pytest.fixture(scope="module")
def whole(forks: Forks, staged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupted."""
    run = tmp_path_factory.mktemp("whole") / "run"
    done = forks.finish(staged, run)
    assert done.code == 0, done.told
    return run


def outcome(run: Path) -> dict[str, Any]:
    """What two runs must agree on, of each stage and of the whole."""
    found: dict[str, Any] = {}
    for folder in (run, *(run / "stages" / name for name in STAGES)):
        name = folder.relative_to(run)
        found[f"{name} weights"] = (folder / "adapter/adapter_model.safetensors").read_bytes()
        steps = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
        found[f"{name} steps"] = [(line["step"], line["loss"], line["grad_norm"]) for line in steps]
        evaluated = (folder / "evaluations.jsonl").read_text().splitlines()
        found[f"{name} losses"] = [(e["step"], e["loss"]) for e in map(json.loads, evaluated)]
    found["between"] = json.loads((run / "metrics.json").read_text())["losses"]
    return found


def kill_and_go_on(forks: Forks, recipe: Path, run: Path, point: Any) -> None:
    killed = forks.finish(recipe, run, points=[point])
    assert killed.code == -signal.SIGKILL, killed.told
    again = forks.finish(recipe, run)
    assert again.code == 0, again.told


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 8, pytest.param(13, marks=pytest.mark.faults)])
def test_killed_in_a_step_of_any_stage(
    forks: Forks, staged: Path, whole: Path, tmp_path: Path, step: int
) -> None:
    point = at(STEP, step, do=["signal", signal.SIGKILL])
    kill_and_go_on(forks, staged, tmp_path, point)
    assert outcome(tmp_path) == outcome(whole)
    assert leftovers(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "nth"), [*BETWEEN, *(pytest.param(*each, marks=pytest.mark.faults) for each in MORE)]
)
def test_killed_between_stages(
    forks: Forks, staged: Path, whole: Path, tmp_path: Path, place: str, nth: int
) -> None:
    point = at(place, nth, do=["signal", signal.SIGKILL])
    kill_and_go_on(forks, staged, tmp_path, point)
    assert outcome(tmp_path) == outcome(whole)
    assert leftovers(tmp_path) == []


@pytest.mark.slow
def test_asked_to_stop_in_a_later_stage(
    forks: Forks, staged: Path, whole: Path, tmp_path: Path
) -> None:
    point = at(STEP, 8, do=["signal", signal.SIGTERM])
    stopped = forks.finish(staged, tmp_path, points=[point])
    assert stopped.code == 128 + signal.SIGTERM
    assert "of 5 is saved" in stopped.told
    assert (tmp_path / "stages" / "domain" / "report.html").exists()
    again = forks.finish(staged, tmp_path)
    assert again.code == 0, again.told
    assert "`domain`" in again.told
    assert outcome(tmp_path) == outcome(whole)


@pytest.mark.slow
@pytest.mark.faults
def test_killed_at_random_places(
    forks: Forks, staged: Path, whole: Path, tmp_path: Path, record_property: Any
) -> None:
    killed = identical = 0
    for number in range(12):
        draw, run = random.Random(number), tmp_path / f"run{number}"
        for _ in range(3):
            point = at("*", draw.randint(1, 1_200_000), do=["signal", signal.SIGKILL])
            killed += forks.finish(staged, run, points=[point]).code != 0
        again = forks.finish(staged, run)
        assert again.code == 0, again.told
        identical += outcome(run) == outcome(whole)
    counts = {"runs": 12, "killed": killed, "identical": identical}
    record_property("up to three SIGKILLs in one run with stages", counts)
    assert identical == 12
    assert killed >= 12
