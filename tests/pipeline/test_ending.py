"""How runs end: stopped by an evaluation, with the best or averaged weights, resumed or not."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import peftkit
from peftkit.errors import RecipeError, RunError


@pytest.fixture(scope="module")
def recipe(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve rows learned by heart at a high rate, judged by rows unlike them."""
    folder = tmp_path_factory.mktemp("ending")
    (folder / "train.txt").write_text(
        "\n".join(f"Row {n} has the letters {'abcdefgh'[n % 8] * 9}." for n in range(12))
    )
    (folder / "held.txt").write_text(
        "\n".join(f"Nobody counts {n * 37} sheep in a field of wheat." for n in range(8))
    )
    (folder / "general.txt").write_text("{}[]<>~^|#@$%QWXZ&*()_+=0987?!" * 4)
    path = folder / "recipe.yaml"
    path.write_text(
        f"""\
base: {{model: {tiny_llama}}}
adapter: {{rank: 4, dropout: 0.1}}
data:
  train: {{source: train.txt, format: text}}
  validation: {{source: held.txt, format: text}}
  max_length: 64
  leakage: "off"
train:
  steps: 60
  batch: {{rows: 4}}
  learning_rate: 2e-2
  save_every: 10
  keep: 1
  threads: 1
evaluate: {{every: 4, samples: 1, remember: {{source: general.txt, format: text}}}}
"""
    )
    return path


def finetune(recipe: Path, out: Path, **settings: Any) -> Any:
    return peftkit.finetune(recipe, out=out, set=settings)


def digest(run: Path) -> str:
    return hashlib.sha256((run / "adapter/adapter_model.safetensors").read_bytes()).hexdigest()


def lines(run: Path, name: str) -> list[dict[str, Any]]:
    """What was logged, but for how long it took."""
    found = [json.loads(line) for line in (run / name).read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


def cut_short(run: Path, step: int) -> None:
    """Leave the folder as if it had been killed some steps after the save of `step`."""
    for name in ("report.html", "report.md", "metrics.json", "findings.json", "samples.json"):
        (run / name).unlink()
    shutil.rmtree(run / "adapter")
    for folder in (run / "checkpoints").iterdir():
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)


def weights_of(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / f"checkpoints/step-{step:06d}/weights.safetensors")


def saved(run: Path) -> dict[str, torch.Tensor]:
    """The adapter's tensors by the names that checkpoints give them."""
    found = load_file(run / "adapter/adapter_model.safetensors")
    return {name.replace(".weight", ".default.weight"): value for name, value in found.items()}


def is_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    assert sorted(left) == sorted(right)
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def whole(recipe: Path) -> Path:
    """Every step, every save kept, nothing chosen."""
    finetune(recipe, recipe.parent / "whole", **{"train.keep": 99, "train.save_every": 1})
    return recipe.parent / "whole"


@pytest.fixture(scope="module")
def patient(recipe: Path) -> Path:
    stopping = {"train.early_stopping": {"patience": 3}, "train.keep": 99}
    finetune(recipe, recipe.parent / "patient", **stopping)
    return recipe.parent / "patient"


def test_it_stops_when_validation_no_longer_improves_and_keeps_the_best(
    patient: Path, whole: Path
) -> None:
    evaluations = lines(patient, "evaluations.jsonl")
    losses = [line["loss"] for line in evaluations]
    at = losses.index(min(losses))
    assert 0 < at == len(losses) - 4  # three more evaluations, and the end
    steps = json.loads((patient / "metrics.json").read_text())["steps"]
    best, last = 4 * at, 4 * (at + 3)
    assert steps["planned"] == 60
    assert steps["taken"] == last < 60
    assert steps["stopped"]["reason"] == "patience"
    assert steps["kept"] == {"weights": "best", "steps": [best]}
    assert is_same(saved(patient), weights_of(whole, best))
    metrics = json.loads((patient / "metrics.json").read_text())
    assert metrics["validation"]["loss"] == pytest.approx(min(losses), rel=1e-6)
    assert lines(patient, "steps.jsonl") == lines(whole, "steps.jsonl")[:last]


@pytest.mark.parametrize("left", [0, 10, 20, "best", "all"])
def test_a_run_that_stops_early_is_the_same_resumed(
    recipe: Path, patient: Path, tmp_path: Path, left: int | str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(patient, run)
    kept = json.loads((run / "metrics.json").read_text())["steps"]["kept"]["steps"][0]
    cut_short(run, {"best": kept, "all": 99}.get(str(left), left))  # type: ignore[arg-type]
    finetune(recipe, run, **{"train.early_stopping": {"patience": 3}, "train.keep": 99})
    assert digest(run) == digest(patient)
    for name in ("steps.jsonl", "evaluations.jsonl"):
        assert lines(run, name) == lines(patient, name), name


def test_the_best_save_outlives_the_newer_ones(recipe: Path, patient: Path) -> None:
    run = recipe.parent / "rotated"
    finetune(recipe, run, **{"train.early_stopping": {"patience": 3}})  # keep: 1
    assert digest(run) == digest(patient)
    steps = json.loads((run / "metrics.json").read_text())["steps"]
    left = sorted(folder.name for folder in (run / "checkpoints").iterdir())
    assert left == [f"step-{steps['kept']['steps'][0]:06d}", f"step-{steps['taken']:06d}"]


def test_a_damaged_best_save_is_said_and_nothing_is_saved_in_its_place(
    recipe: Path, patient: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(patient, run)
    best = json.loads((run / "metrics.json").read_text())["steps"]["kept"]["steps"][0]
    cut_short(run, 99)
    (run / f"checkpoints/step-{best:06d}/weights.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match=f"step-{best:06d}` is needed for the weights"):
        finetune(recipe, run, **{"train.early_stopping": {"patience": 3}, "train.keep": 99})
    assert not (run / "adapter").exists()


def test_it_stops_when_general_text_gets_harder(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    finetune(recipe, run, **{"train.early_stopping": {"forgetting": 0.02}})
    evaluations = lines(run, "evaluations.jsonl")
    ((source, before),) = evaluations[0]["remember"].items()
    rises = [line["remember"][source] - before for line in evaluations]
    assert rises[-1] > 0.02 >= max(rises[:-1])
    steps = json.loads((run / "metrics.json").read_text())["steps"]
    assert steps["stopped"]["reason"] == "forgetting"
    assert steps["stopped"]["figure"] == pytest.approx(rises[-1])
    kept = steps["kept"]["steps"][0]
    assert kept < steps["taken"]
    remembered = json.loads((run / "metrics.json").read_text())["remember"][0]
    assert remembered["after"]["loss"] - before <= 0.02


def test_the_mean_of_the_last_saves(recipe: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    finetune(recipe, run, **{"train.average": {"last": 3}})
    steps = json.loads((run / "metrics.json").read_text())["steps"]
    assert steps["kept"] == {"weights": "mean", "steps": [40, 50, 60]}
    parts = [weights_of(whole, step) for step in (40, 50, 60)]
    for name, value in saved(run).items():
        expected = torch.stack([part[name] for part in parts]).mean(dim=0)
        assert torch.allclose(value, expected, atol=1e-7), name
        assert not torch.equal(value, parts[-1][name])


@pytest.mark.parametrize(
    ("changed", "allowed"),
    [
        ({"train.average": {"last": 3}, "train.save_every": 15}, "train.save_every"),
        ({"train.average": {"last": 3}, "train.save_every": 7}, "train.save_every"),
        ({"train.keep_best": "on"}, "train"),
    ],
)
def test_weights_that_are_gone_are_missed_before_the_first_step(
    recipe: Path, tmp_path: Path, changed: dict[str, Any], allowed: str
) -> None:
    """Which saves are averaged follows from `save_every`, so it is no longer free to change."""
    run = tmp_path / "run"
    average = changed.get("train.average", "none")
    finetune(recipe, run, **{"train.average": average})
    digest_before = digest(run)
    cut_short(run, 99)
    with pytest.raises(RecipeError, match="holds a run of another recipe"):
        finetune(recipe, run, **changed)
    with pytest.raises(RecipeError, match="which were not kept") as raised:
        peftkit.finetune(recipe, out=run, set=changed, allow_change=[allowed])
    assert raised.value.hint
    finetune(recipe, run, **{"train.average": average})
    assert digest(run) == digest_before


def test_saves_may_come_at_other_steps_while_none_is_gone_that_is_averaged(
    recipe: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    finetune(recipe, run, **{"train.average": {"last": 3}})
    cut_short(run, 40)
    changed = {"train.average": {"last": 3}, "train.save_every": 5}
    peftkit.finetune(recipe, out=run, set=changed, allow_change=["train.save_every"])
    steps = json.loads((run / "metrics.json").read_text())["steps"]
    assert steps["kept"] == {"weights": "mean", "steps": [50, 55, 60]}


@pytest.mark.parametrize("average", [{"last": 3}, {"ema": 0.9}])
def test_a_plan_has_room_for_what_is_averaged(
    recipe: Path, tmp_path: Path, average: dict[str, Any]
) -> None:
    """Of the numbers; beside them a file says how they are called."""
    run = tmp_path / "run"
    finetune(recipe, run, **{"train.average": average, "train.steps": 44})
    tensors = [
        value
        for path in [*run.glob("checkpoints/*/*.safetensors"), *run.glob("adapter/*.safetensors")]
        for value in load_file(path).values()
    ]
    taken = sum(value.numel() * value.element_size() for value in tensors)
    assert taken <= json.loads((run / "plan.json").read_text())["disk_bytes"]


def test_the_exponential_mean_is_that_of_torch(recipe: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    finetune(recipe, run, **{"train.average": {"ema": 0.9}, "train.keep": 99})
    names = sorted(weights_of(whole, 1))

    def module(step: int) -> torch.nn.Module:
        values = weights_of(whole, step)
        return torch.nn.ParameterList([torch.nn.Parameter(values[name]) for name in names])

    oracle = AveragedModel(module(1), multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for step in range(1, 61):
        oracle.update_parameters(module(step))
    expected = dict(zip(names, oracle.module, strict=True))
    for name, value in saved(run).items():
        assert torch.allclose(value, expected[name], atol=1e-6), name
    again = tmp_path / "again"
    shutil.copytree(run, again)
    cut_short(again, 30)
    finetune(recipe, again, **{"train.average": {"ema": 0.9}, "train.keep": 99})
    assert digest(again) == digest(run)


def test_what_is_off_changes_no_bit(recipe: Path, whole: Path, tmp_path: Path) -> None:
    """Skipping spikes where there are none, and patience that never ends."""
    settings = {"train.on_spike": "skip", "train.early_stopping": {"patience": 99}}
    finetune(recipe, tmp_path / "run", **settings, **{"train.keep_best": "off"})
    assert digest(tmp_path / "run") == digest(whole)
    assert lines(tmp_path / "run", "steps.jsonl") == lines(whole, "steps.jsonl")


@pytest.fixture(scope="module")
def spiky(recipe: Path, tiny_llama: Path) -> Path:
    """Rows that are alike but for one, on a base that has learned; one row an update."""
    rows = [f"A quiet row, number {n % 10}{n // 10}, of many that are alike." for n in range(59)]
    odd = "{}[]<>~^|#@$%QWXZ&*()_+="
    (recipe.parent / "odd.txt").write_text("\n".join([*rows, odd]))
    path = recipe.parent / "spiky.yaml"
    path.write_text(
        recipe.read_text()
        .replace(str(tiny_llama), "builtin:tiny")
        .replace("learning_rate: 2e-2", "learning_rate: 3e-3")
        .replace("train.txt", "odd.txt")
        .replace("steps: 60", "steps: 120")
        .replace("batch: {rows: 4}", "batch: {rows: 1}")
        .replace("every: 4", "every: 40")
    )
    return path


@pytest.fixture(scope="module")
def warned(spiky: Path) -> Path:
    finetune(spiky, spiky.parent / "warned", **{"train.keep": 99, "train.save_every": 1})
    return spiky.parent / "warned"


def find(run: Path, name: str) -> dict[str, Any]:
    findings = json.loads((run / "findings.json").read_text())
    (found,) = (finding for finding in findings if finding["id"] == name)
    return dict(found)


def spikes_of(run: Path) -> list[dict[str, Any]]:
    return list(json.loads((run / "metrics.json").read_text())["spikes"])


def test_an_odd_row_is_a_spike_and_is_told(warned: Path) -> None:
    spikes = spikes_of(warned)
    by_step = {line["step"]: line for line in lines(warned, "steps.jsonl")}
    assert {spike["kind"] for spike in spikes} == {"loss"}
    fewest = min(line["tokens"] for line in by_step.values())  # the last piece of the text is odd
    odd = [step for step, line in by_step.items() if line["tokens"] == fewest]
    found = [spike["step"] for spike in spikes]
    assert len(found) >= 2
    assert found == odd[-len(found) :]  # once it is known what is usual, every time it comes
    assert spikes[0]["figure"] > spikes[0]["limit"] > spikes[0]["usual"]
    finding = find(warned, "loss-spike")
    assert finding["severity"] in ("note", "warning")
    worst = max(spikes, key=lambda spike: spike["figure"] / spike["usual"])
    assert f"jumped {len(found)} times, worst was training loss" in finding["sentence"]
    assert f"at step {worst['step']}, usually {worst['usual']:.3g}," in finding["sentence"]
    looked_at = [step for step, line in by_step.items() if "blocks" in line]
    assert looked_at == sorted({*range(20, 121, 20), *(spike["step"] for spike in spikes)})
    for step in looked_at:
        blocks = by_step[step]["blocks"]
        assert sorted(blocks) == [f"layers.{number}" for number in range(6)]
        square = sum(norm**2 for norm in blocks.values())
        assert square**0.5 == pytest.approx(by_step[step]["grad_norm"], rel=1e-3)


def test_a_skipped_spike_moves_no_weight_and_the_data_goes_on(
    spiky: Path, warned: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = {"train.on_spike": "skip", "train.keep": 99, "train.save_every": 1}
    finetune(spiky, run, **settings)
    at = spikes_of(run)[0]["step"]
    assert at == spikes_of(warned)[0]["step"]
    assert is_same(weights_of(run, at), weights_of(run, at - 1))
    assert not is_same(weights_of(warned, at), weights_of(warned, at - 1))
    assert is_same(weights_of(run, at), weights_of(warned, at - 1))
    log = lines(run, "steps.jsonl")
    skipped = [line["step"] for line in log if line.get("skipped")]
    assert skipped == [spike["step"] for spike in spikes_of(run)]
    tokens = [line["tokens"] for line in lines(warned, "steps.jsonl")]
    assert [line["tokens"] for line in log] == tokens
    assert json.loads((run / "metrics.json").read_text())["steps"]["skipped"] == len(skipped)
    for kind in ("loss", "gradient"):  # each finding counts its own
        count = sum(spike["kind"] == kind for spike in spikes_of(run))
        said = find(run, f"{kind}-spike")["sentence"]
        assert (f"; {count} of these updates were left out" in said) == (count > 0), said
    again = tmp_path / "again"
    shutil.copytree(run, again)
    cut_short(again, at - 3)
    finetune(spiky, again, **settings)
    assert digest(again) == digest(run)
    assert lines(again, "steps.jsonl") == log


def test_a_spike_may_stop_the_run_with_the_step_before_it_saved(
    spiky: Path, warned: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    at = spikes_of(warned)[0]["step"]
    for _ in range(2):  # the same command meets it again
        with pytest.raises(RunError, match=f"a spike: training loss .* at step {at}") as raised:
            finetune(spiky, run, **{"train.on_spike": "stop"})
        assert raised.value.exit_code == 1
        assert is_same(weights_of(run, at - 1), weights_of(warned, at - 1))
        assert len(lines(run, "steps.jsonl")) == at - 1
    peftkit.finetune(
        spiky, out=run, set={"train.on_spike": "warn"}, allow_change=["train.on_spike"]
    )
    assert digest(run) == digest(warned)


def test_a_rate_far_too_high_explodes_the_update(spiky: Path, warned: Path, tmp_path: Path) -> None:
    finetune(spiky, tmp_path / "run", **{"train.learning_rate": 0.3, "train.steps": 50})
    assert find(tmp_path / "run", "update-exploded")["severity"] == "warning"
    assert find(tmp_path / "run", "drift")["severity"] == "warning"
    assert find(warned, "update-exploded")["severity"] == "ok"


def test_a_rate_far_too_low_moves_nothing(spiky: Path, warned: Path, tmp_path: Path) -> None:
    finetune(spiky, tmp_path / "run", **{"train.learning_rate": 1e-7, "train.steps": 50})
    assert find(tmp_path / "run", "update-collapsed")["severity"] == "warning"
    assert find(tmp_path / "run", "drift")["severity"] == "ok"
    assert find(warned, "update-collapsed")["severity"] == "ok"


def test_a_stop_almost_at_once_is_a_warning(recipe: Path, patient: Path, tmp_path: Path) -> None:
    finetune(recipe, tmp_path / "run", **{"train.early_stopping": {"forgetting": 1e-9}})
    finding = find(tmp_path / "run", "stopped-too-early")
    assert finding["severity"] == "warning"
    assert "after 4 of 60 steps" in finding["sentence"]
    assert find(patient, "stopped-too-early")["severity"] == "ok"
