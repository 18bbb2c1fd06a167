"""Whole runs whose blocks begin one after the other, or whose learning rate is found first."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import peftkit
from peftkit.errors import InputError, RecipeError, RunError

pytestmark = pytest.mark.slow
WEIGHTS = ("delta.safetensors", "adapter_model.safetensors")


@pytest.fixture(scope="module")
def recipe(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty short steps: a head that stands still, a block that helps, and one that does harm."""
    folder = tmp_path_factory.mktemp("gradual")
    lines = [f"Line {n} tells of the {n * 7 % 31} hats of number {n}." for n in range(240)]
    (folder / "text.txt").write_text("\n".join(lines))
    path = folder / "recipe.yaml"
    path.write_text(
        f"""\
base: {{model: {tiny_llama}}}
adapter: {{method: full}}
data: {{train: {{source: text.txt, format: text}}, max_length: 48}}
train:
  steps: 20
  batch: {{rows: 4}}
  learning_rate: 0.3
  schedule: constant
  weight_decay: 0.1
  unfreeze: {{every: plateau}}
  groups:
    - {{match: "*layers.1.*", times: 0.1}}
    - {{match: "*layers.0.*", times: 1}}
    - {{match: "*", times: 1e-15}}
  save_every: 1
  keep: 100
  threads: 1
evaluate: {{every: 2, samples: 1, rows: 16}}
"""
    )
    return path


def run(recipe: Path, out: Path, **changes: Any) -> Path:
    settings = {"train.threads": 1} | {key.replace("__", "."): v for key, v in changes.items()}
    peftkit.finetune(recipe, set=settings, out=out)
    return out


def weights(folder: Path) -> str:
    path = next(path for name in WEIGHTS if (path := folder / "adapter" / name).exists())
    return hashlib.sha256(path.read_bytes()).hexdigest()


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "steps.jsonl").read_text().splitlines()]


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


@pytest.fixture(scope="module")
def whole(recipe: Path) -> Path:
    return run(recipe, recipe.parent / "whole")


def interrupted_at(whole: Path, step: int, place: Path) -> Path:
    """The folder as a run that was killed after this step leaves it."""
    shutil.copytree(whole, place)
    for name in ("report.html", "report.md", "metrics.json", "findings.json", "unfreezing.json"):
        (place / name).unlink(missing_ok=True)
    shutil.rmtree(place / "adapter")
    for checkpoint in (place / "checkpoints").glob("step-*"):
        if int(checkpoint.name[5:]) > step:
            shutil.rmtree(checkpoint)
    return place


def curve(folder: Path) -> list[tuple[int, str, int, bool]]:
    found = read(folder, "unfreezing.json")["curve"]
    return [(each["depth"], each["name"], each["step"], each["kept"]) for each in found]


def checkpoint(folder: Path, step: int) -> dict[str, Any]:
    return load_file(folder / f"checkpoints/step-{step:06d}/weights.safetensors")


def turn_of(name: str) -> str:
    for part in ("layers.0.", "layers.1.", "embed_tokens"):
        if part in name:
            return part
    return "above"


def test_each_depth_is_measured_and_the_one_that_did_harm_is_taken_back(whole: Path) -> None:
    assert [(name, kept) for _, name, _, kept in curve(whole)] == [
        ("head and norm above", True),
        ("block 0", False),
        ("block 1", True),
    ]
    found = {item["id"]: item for item in read(whole, "findings.json")}
    assert "block 0" in found["unfreezing"]["sentence"]


def test_no_bit_of_a_block_moves_before_its_turn_or_after_it_was_taken_back(whole: Path) -> None:
    begins = {name: step for _, name, step, _ in curve(whole)}
    start, end = checkpoint(whole, 1), checkpoint(whole, 20)
    thawed = checkpoint(whole, begins["block 1"])
    for name in start:
        if turn_of(name) != "above":
            assert start[name].equal(end[name]) == (turn_of(name) != "layers.1."), name
            assert thawed[name].equal(start[name])
    tried = checkpoint(whole, begins["block 0"] + 1)
    assert any(not tried[name].equal(start[name]) for name in start if "layers.0." in name)


def test_a_thaw_is_taken_back_to_the_last_bit(whole: Path) -> None:
    """The step after it is the one that the weights from before the thaw would have taken."""
    thaw = next(step for _, name, step, _ in curve(whole) if name == "block 0")
    before = whole / "checkpoints/before-thaw" / f"step-{thaw:06d}"
    saved = whole / "checkpoints" / f"step-{thaw:06d}"
    for name in ("weights.safetensors", "optimizer.safetensors"):
        assert (before / name).read_bytes() == (saved / name).read_bytes()
    after = load_file(whole / f"checkpoints/step-{thaw + 3:06d}/optimizer.safetensors")
    moments = load_file(before / "optimizer.safetensors")
    assert after.keys() == moments.keys()
    steps = {name: float(after[name] - moments[name]) for name in after if name.endswith(":step")}
    assert set(steps.values()) == {1.0}


@pytest.mark.parametrize("late", [-1, 0, 1, 2, 3])
def test_interrupted_or_not_it_ends_the_same(
    recipe: Path, whole: Path, tmp_path: Path, late: int
) -> None:
    """Before the last thaw, right at it, on trial, when it is taken back, and later."""
    thaw = next(step for _, name, step, _ in curve(whole) if name == "block 0")
    again = run(recipe, interrupted_at(whole, thaw + late, tmp_path / "again"))
    assert weights(again) == weights(whole)
    assert losses(again) == losses(whole)
    assert read(again, "unfreezing.json") == read(whole, "unfreezing.json")


def test_a_thaw_before_a_spike_that_stops_the_run_is_still_on_trial(
    recipe: Path, whole: Path, tmp_path: Path
) -> None:
    """What the run does at a spike is another key, so it is allowed; the log makes any step one."""
    thaw = next(step for _, name, step, kept in curve(whole) if not kept)
    again = interrupted_at(whole, thaw, tmp_path / "again")
    log = (again / "steps.jsonl").read_text()
    line = json.loads(log.splitlines()[0]) | {"loss": 1e-3}
    (again / "steps.jsonl").write_text((json.dumps(line) + "\n") * 30)
    settings: Any = {"recipe": recipe, "out": again, "allow_change": ["train.on_spike"]}
    with pytest.raises(RunError, match=f"a spike: training loss .* at step {thaw + 1}"):
        peftkit.finetune(**settings, set={"train.threads": 1, "train.on_spike": "stop"})
    (again / "steps.jsonl").write_text(log)
    peftkit.finetune(**settings, set={"train.threads": 1})
    assert weights(again) == weights(whole)
    assert read(again, "unfreezing.json") == read(whole, "unfreezing.json")


REGULARIZED = [{"l2sp": {"strength": 0.01}}, {"decay_to_init": {"strength": 0.01}}]


@pytest.fixture(scope="module")
def best(recipe: Path) -> Path:
    return run(recipe, recipe.parent / "best", train__keep_best="on", train__keep=1)


@pytest.mark.parametrize("late", [1, 2, 99])
def test_the_best_of_a_run_that_took_a_thaw_back_is_kept(
    recipe: Path, best: Path, tmp_path: Path, late: int
) -> None:
    """Ended with 20 steps it goes on from the last of them, and learns nothing new from that."""
    kept = read(best, "metrics.json")["steps"]["kept"]["steps"][0]
    evaluations = (best / "evaluations.jsonl").read_text().splitlines()
    losses_at = {line["step"]: line["loss"] for line in map(json.loads, evaluations[1:])}
    assert losses_at[kept] == min(losses_at.values())
    settings = {"train__keep_best": "on", "train__keep": 100}
    long = run(recipe, tmp_path / "long", **settings)
    thaw = next(step for _, name, step, _ in curve(long) if name == "block 0")
    again = run(recipe, interrupted_at(long, thaw + late, tmp_path / "again"), **settings)
    assert weights(again) == weights(best) == weights(long)
    assert read(again, "unfreezing.json") == read(best, "unfreezing.json")


def test_what_stands_still_is_regularized_once_it_learns(recipe: Path, tmp_path: Path) -> None:
    """A penalty of parameters that wait has no gradient yet, and is told all the same."""
    settings = {"train__regularize": REGULARIZED}
    whole = run(recipe, tmp_path / "whole", **settings)
    lines = [json.loads(line) for line in (whole / "steps.jsonl").read_text().splitlines()]
    assert all({*line["penalty"]} == {"l2sp", "decay_to_init"} for line in lines)
    thaw = next(step for _, name, step, _ in curve(whole) if name == "block 1")
    before, after = (lines[step]["penalty"]["l2sp"] for step in (thaw, thaw + 1))
    assert after > 10 * before
    again = run(recipe, interrupted_at(whole, thaw + 1, tmp_path / "again"), **settings)
    assert weights(again) == weights(whole)
    assert losses(again) == losses(whole)


def test_without_what_was_known_it_would_end_elsewhere(
    recipe: Path, whole: Path, tmp_path: Path
) -> None:
    """A negative control for the test above: a thaw on trial that nobody remembers."""
    thaw = next(step for _, name, step, _ in curve(whole) if name == "block 0")
    folder = interrupted_at(whole, thaw + 1, tmp_path / "again")
    shutil.rmtree(folder / "checkpoints/before-thaw")
    with pytest.raises(InputError, match="does not hold what step"):
        run(recipe, folder)


BY_EPOCH = {
    "train__unfreeze": {"every": "epoch"},
    "train__learning_rate": 0.01,
    "train__groups": [],
}


def test_by_epoch_it_begins_as_the_plan_says(recipe: Path, tmp_path: Path) -> None:
    settings = BY_EPOCH | {"train__batch__rows": 24}
    whole = run(recipe, tmp_path / "whole", **settings)
    groups = {group["name"]: group["begins"] for group in read(whole, "plan.json")["groups"]}
    assert groups["head"] == 1
    second = groups["block 1"]
    assert 1 < second < 20
    assert "never" in groups.values()
    start = checkpoint(whole, 1)
    for step, moved in ((second - 1, False), (second, True)):
        now = checkpoint(whole, step)
        for name in start:
            if turn_of(name) == "layers.1.":
                assert now[name].equal(start[name]) != moved, name
    again = interrupted_at(whole, second - 1, tmp_path / "again")
    assert weights(run(recipe, again, **settings)) == weights(whole)


FIND = {
    "train__unfreeze": "none",
    "train__learning_rate": "find",
    "train__groups": [],
    "train__steps": 25,
    "adapter": {"method": "lora"},
}


def test_a_rate_that_was_found_gives_the_run_of_that_rate(recipe: Path, tmp_path: Path) -> None:
    found = run(recipe, tmp_path / "found", **FIND)
    rate = read(found, "lock.json")["choices"]["learning_rate"]
    assert read(found, "finder.json")["suggestion"] == rate
    told = run(recipe, tmp_path / "told", **FIND | {"train__learning_rate": rate})
    assert losses(told) == losses(found)
    assert weights(told) == weights(found)
    assert not (told / "finder.json").exists()
    again = interrupted_at_found(found, 10, tmp_path / "again")
    run(recipe, again, **FIND)
    assert weights(again) == weights(found)
    assert not (again / "finder.json").exists(), "it was looked for a second time"


def test_a_search_neither_sees_nor_leaves_what_else_a_run_has(recipe: Path, tmp_path: Path) -> None:
    general = {"source": str(recipe.parent / "text.txt"), "format": "text"}
    besides = FIND | {
        "train__steps": 24,
        "train__on_spike": "stop",
        "train__early_stopping": {"patience": 99},
        "train__average": {"ema": 0.9},
        "train__regularize": [
            {"ewc": {"strength": 10, "rows": 4, **general}},
            {"kl": {"strength": 0.5, "rows": 2, **general}},
            {"l2sp": {"strength": 0.1}},
            {"neftune": {"strength": 5}},
            {"decay_to_init": {"strength": 0.1}},
        ],
    }
    found = run(recipe, tmp_path / "found", **besides)
    alone = run(recipe, tmp_path / "alone", **FIND)
    assert read(found, "finder.json") == read(alone, "finder.json")
    rate = read(found, "finder.json")["suggestion"]
    told = run(recipe, tmp_path / "told", **besides | {"train__learning_rate": rate})
    assert losses(told) == losses(found)
    assert weights(told) == weights(found)


def interrupted_at_found(whole: Path, step: int, place: Path) -> Path:
    interrupted_at(whole, step, place)
    (place / "finder.json").unlink()
    return place


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (FIND | {"train__steps": 10}, "the run has 10 steps"),
        (FIND | {"train__batch__rows": 200}, "needs rows for 4 updates"),
        ({"evaluate__every": 20}, "no thaw could be judged"),
        ({"train__groups": [{"match": "*.nothing.*", "times": 2.0}]}, "fits no parameter"),
    ],
)
def test_what_cannot_be_is_said_before_the_first_step(
    recipe: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        run(recipe, tmp_path / "run", **changes)
    assert words in str(caught.value)
    assert not (tmp_path / "run" / "steps.jsonl").exists()
