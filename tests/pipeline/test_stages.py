"""Whole runs with stages: where each begins, what it leaves, and what the run as a whole says."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import peftkit
from peftkit.errors import InputError, RecipeError
from peftkit.pipeline.evaluate import evaluate
from peftkit.pipeline.setup import set_up
from peftkit.pipeline.target import open_target
from peftkit.publish.tree import lay_out
from peftkit.recipe.load import load_recipe

sys.path.append(str(Path(__file__).parent))

from bases import COLORS, write_base

pytestmark = pytest.mark.slow
WEIGHTS = "adapter_model.safetensors"


def write_data(folder: Path) -> None:
    """Text of a domain, questions with answers, and texts with a class, of the same few words."""
    words = [f"the {COLORS[n % 4]} paint of house {n % 8} is old" for n in range(40)]
    (folder / "domain.txt").write_text("\n\n".join(words))
    asked = [
        {"prompt": f"house {n % 8} the paint of", "completion": COLORS[n % 4]} for n in range(40)
    ]
    (folder / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    sorted_ = [
        {"text": f"{COLORS[n % 4]} is the paint of house {n % 8}", "label": COLORS[n % 4]}
        for n in range(40)
    ]
    (folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sorted_))


RECIPE = """\
name: staged
seed: 3
base: {{model: {base}, task: {task}}}
adapter: {{method: {first}}}
data: {{leakage: off, duplicates: off, validation: {{fraction: 0.2}}, max_length: 96}}
train: {{steps: 6, batch: {{rows: 8}}, learning_rate: 1e-2, save_every: 3, threads: 1}}
evaluate: {{every: 3, samples: 2, rows: 64}}
stages:
  - name: domain
    data: {{train: {{source: domain.txt, format: text}}}}
  - name: task
    as: {how}
    base: {{task: {then}}}
    adapter: {{method: {second}}}
    data: {{train: {rows}}}
"""


def write_recipe(folder: Path, base: Path, how: str, **said: str) -> Path:
    """A stage on text of a domain, and one on a task in it."""
    write_data(folder)
    said = {"first": "lora", "task": "causal-lm", "rows": "task.jsonl"} | said
    said = {"second": said["first"], "then": said["task"]} | said
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(base=base, how=how, **said))
    return path


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def loss_of(folder: Path, rows: Path) -> float:
    """What `peftkit evaluate` measures of a run or an adapter folder."""
    (found,) = evaluate(str(folder), data=[str(rows)]).values()
    return float(found["loss"])


@pytest.mark.parametrize(
    ("how", "first", "second", "final"),
    [
        ("continued", "lora", "lora", "copy"),
        ("folded", "lora", "lora", "sum"),
        ("stacked", "lora", "lora", "sum"),
        ("folded", "ia3", "lora", "copy"),
        ("folded", "lora", "ia3", "copy"),
        ("folded", "oft", "top", "copy"),
        ("stacked", "full", "lora", "copy"),
        ("stacked", "ia3", "ia3", "copy"),
        ("folded", "layernorm", "full", "copy"),
        ("stacked", "top", "layernorm", "copy"),
        ("folded", "full", "lora, rank: 2, variant: dora", "copy"),
        ("continued", "full", "full", "copy"),
        ("continued", "top", "top", "copy"),
        ("continued", "layernorm", "layernorm", "copy"),
        ("continued", "vera, rank: 8", "vera, rank: 8", "copy"),
        ("continued", "bottleneck", "bottleneck", "copy"),
        ("continued", "prompt", "prompt", "copy"),
        ("continued", "lora, variant: dora, dropout: 0.1", "lora, variant: dora", "copy"),
    ],
)
def test_a_stage_begins_where_the_one_before_it_ended(
    tmp_path: Path, tiny_llama: Path, how: str, first: str, second: str, final: str
) -> None:
    recipe = write_recipe(tmp_path, tiny_llama, how, first=first, second=second)
    run = peftkit.finetune(recipe, out=tmp_path / "run")
    losses, (domain, task) = run.metrics["losses"], run.metrics["stages"]
    assert losses["task"]["domain"] == pytest.approx(task["before"]["loss"], abs=2e-5)
    assert losses["task"]["base"] != pytest.approx(task["before"]["loss"], abs=1e-6)
    assert losses["domain"]["domain"] == domain["after"]["loss"]
    assert task["after"]["loss"] != pytest.approx(task["before"]["loss"], abs=1e-4)
    assert run.metrics["validation"]["loss"] == task["after"]["loss"]
    assert run.metrics["final"]["form"] == final
    lower = run.path / "stages" / "domain"
    measured = [
        loss_of(folder, tmp_path / "task.jsonl")
        for folder in (run.path, run.path / "stages" / "task", run.adapter, lower)
    ]
    assert measured[:3] == pytest.approx([measured[0]] * 3, abs=2e-5)
    assert measured[3] != pytest.approx(measured[0], abs=1e-3)


def test_each_stage_warms_up_anew_replays_its_share_and_trains_the_end_of_each_document(
    tmp_path: Path, tiny_llama: Path
) -> None:
    recipe = write_recipe(tmp_path, tiny_llama, "continued", rows="{source: domain.jsonl}")
    for name, of, count in (("domain", "old", 60), ("general", "new", 40)):
        texts = [f"{COLORS[n % 4]} house {n % 7} is {of} {n}" for n in range(count)]
        rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / f"{name}.jsonl").write_text(rows)
    replay = {"source": str(tmp_path / "general.jsonl"), "format": "text", "fraction": 0.25}
    domain = {"source": str(tmp_path / "domain.jsonl"), "format": "text"}
    pace: dict[str, Any] = {
        "train.warmup": 0.5,
        "train.schedule": "linear",
        "stages.domain.data.replay": replay,
    }
    pace["stages.domain.data.train"] = domain
    loaded = load_recipe(recipe, [f"{key}={json.dumps(value)}" for key, value in pace.items()])
    run = peftkit.finetune(recipe, out=tmp_path / "run", set=pace)
    rates = []
    for stage in ("domain", "task"):
        lines = (run.path / "stages" / stage / "steps.jsonl").read_text().splitlines()
        rates.append([json.loads(line)["learning_rate"] for line in lines])
    third = 1e-2 / 3
    assert rates[0] == pytest.approx([third, 2 * third, 3 * third, 3 * third, 2 * third, third])
    assert rates[1] == rates[0]
    seen = read(run.path / "stages" / "domain" / "metrics.json")["seen"]["sources"]
    assert [each["replay"] for each in seen] == [False, True]
    assert len(read(run.path / "stages" / "task" / "metrics.json")["seen"]["sources"]) == 1
    setup = set_up(loaded.recipe.stage(0))
    examples = setup.data.train.examples
    assert len(examples) > 70
    tokens, a_row = sum(each["tokens"] for each in seen), max(each.length for each in examples)
    assert abs(seen[1]["tokens"] - 0.25 * tokens) <= a_row < 0.2 * 0.25 * tokens
    for example in (examples[at] for at in range(len(examples))):
        assert example.tokens[-1] in setup.stops
        assert example.trained[-1]


@pytest.mark.parametrize("how", ["continued", "folded", "stacked"])
def test_vanilla_peft_loads_what_stages_of_lora_end_in(
    tmp_path: Path, tiny_llama: Path, how: str
) -> None:
    """Whatever a stage stood on, the one adapter at the top is all of it, on the untouched base."""
    recipe = write_recipe(tmp_path, tiny_llama, how)
    run = peftkit.finetune(recipe, out=tmp_path / "run")
    assert not (run.adapter / "under.json").exists()
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    theirs = PeftModel.from_pretrained(base, run.adapter).eval()
    ours = open_target(str(run.path / "stages" / "task")).model
    ids = torch.arange(6, 60)[None]
    with torch.inference_mode():
        torch.testing.assert_close(theirs(ids).logits, ours(ids).logits, rtol=1e-4, atol=1e-4)
    assert lay_out(run.path, tmp_path / "tree", repo="me/staged")


def test_what_goes_on_is_compared_with_what_it_was(tmp_path: Path, tiny_llama: Path) -> None:
    """To the last bit: both were measured on the same rows, with the same numbers."""
    recipe = write_recipe(tmp_path, tiny_llama, "continued")
    same = {"stages.1.data.train": str(tmp_path / "domain.txt")}
    run = peftkit.finetune(recipe, out=tmp_path / "run", set=same)
    domain, task = run.metrics["stages"]
    assert task["before"] == domain["after"]
    assert run.metrics["losses"]["domain"] == run.metrics["losses"]["task"]


TASKS = [
    ("bert", "masked-lm", "continued", "lora", "lora"),
    ("bert", "masked-lm", "folded", "lora", "lora"),
    ("bert", "masked-lm", "stacked", "lora", "lora"),
    ("bert", "masked-lm", "continued", "full", "full"),
    ("bert", "masked-lm", "folded", "full", "lora"),
    ("bert", "masked-lm", "continued", "bitfit", "bitfit"),
    ("bert", "masked-lm", "continued", "top", "top"),
    ("llama", "causal-lm", "continued", "lora", "lora"),
    ("llama", "causal-lm", "folded", "lora", "lora"),
    ("llama", "causal-lm", "stacked", "lora", "lora"),
    ("llama", "causal-lm", "continued", "full", "full"),
    ("llama", "causal-lm", "folded", "full", "head"),
    ("llama", "causal-lm", "continued", "ia3", "ia3"),
]


@pytest.mark.parametrize(("kind", "task", "how", "first", "second"), TASKS)
def test_what_a_domain_taught_is_carried_to_another_task(
    tmp_path: Path, tiny_llama: Path, kind: str, task: str, how: str, first: str, second: str
) -> None:
    base = tiny_llama if kind == "llama" else write_base(tmp_path / "base", kind)
    said = {"first": first, "second": second, "task": task, "then": "classification"}
    recipe = write_recipe(tmp_path, base, how, rows="labels.jsonl", **said)
    run = peftkit.finetune(recipe, out=tmp_path / "run")
    assert run.metrics["losses"]["domain"]["task"] is None
    domain, other = run.metrics["stages"]
    assert (domain["task"], other["task"]) == (task, "classification")
    alone = peftkit.finetune(
        recipe,
        out=tmp_path / "alone",
        set={"stages.task.start_from": "base", "stages.task.as": "auto"},
    )
    assert alone.metrics["stages"][1]["before"] != other["before"], "the head alone is the same"
    rows = tmp_path / "labels.jsonl"
    places = (run.path, run.path / "stages" / "task", run.adapter)
    measured = [loss_of(folder, rows) for folder in places]
    assert measured == pytest.approx([measured[0]] * 3, abs=2e-5)
    card = (run.adapter / "README.md").read_text()
    assert "classification" in card


def test_a_head_that_was_trained_first_goes_on_in_the_adapter(
    tmp_path: Path, tiny_llama: Path
) -> None:
    """All that the first stage changed is in the last adapter, so that stands on the base alone."""
    recipe = write_recipe(
        tmp_path,
        tiny_llama,
        "folded",
        first="head",
        second="lora",
        task="classification",
        rows="labels.jsonl",
    )
    labels = {"source": str(tmp_path / "labels.jsonl"), "format": "classification"}
    over = {"stages.0.data.train": labels}
    run = peftkit.finetune(recipe, out=tmp_path / "run", set=over)
    head, rest = run.metrics["stages"]
    assert rest["before"] == head["after"]
    assert run.metrics["final"] == {"form": "copy", "of": ["task"], "needs": []}
    base = AutoModelForSequenceClassification.from_pretrained(tiny_llama, num_labels=4)
    theirs = PeftModel.from_pretrained(base, run.adapter).eval()
    ours = open_target(str(run.path / "stages" / "task")).model
    ids = torch.arange(6, 60)[None]
    with torch.inference_mode():
        torch.testing.assert_close(theirs(ids).logits, ours(ids).logits, rtol=1e-4, atol=1e-4)


def test_a_folder_that_was_moved_is_still_whole(tmp_path: Path, tiny_llama: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_llama, "folded", first="ia3", second="lora")
    run = peftkit.finetune(recipe, out=tmp_path / "run")
    expected = loss_of(run.path, tmp_path / "task.jsonl")
    shutil.move(run.path, tmp_path / "elsewhere")
    moved = tmp_path / "elsewhere"
    for folder in (moved, moved / "stages" / "task"):
        assert loss_of(folder, tmp_path / "task.jsonl") == expected
    shutil.rmtree(moved / "stages")
    with pytest.raises(InputError, match="was trained above another adapter, `domain`"):
        open_target(str(moved))


def test_new_tokens_go_on_training(tmp_path: Path, tiny_llama: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_llama, "continued")
    run = peftkit.finetune(
        recipe, out=tmp_path / "run", set={"base.add_tokens": ["paint", "house"]}
    )
    stages = [load_file(run.path / "stages" / n / "adapter" / WEIGHTS) for n in ("domain", "task")]
    rows = [name for name in stages[0] if name.endswith("trainable_tokens_delta")]
    assert rows
    for name in rows:
        assert stages[0][name].shape[0] == 2
        assert not torch.equal(stages[0][name], stages[1][name])
    with pytest.raises(RecipeError, match="new tokens cannot be trained above an earlier adapter"):
        peftkit.finetune(
            recipe,
            out=tmp_path / "stacked",
            set={"base.add_tokens": ["paint"], "stages.task.as": "stacked"},
        )


def test_a_finished_stage_is_not_run_again(tmp_path: Path, tiny_llama: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_llama, "continued")
    out = tmp_path / "run"
    whole = peftkit.finetune(recipe, out=out)
    bytes_ = (whole.adapter / WEIGHTS).read_bytes()
    times = {path: path.stat().st_mtime_ns for path in sorted(out.rglob("*.jsonl"))}
    again = peftkit.finetune(recipe, out=out)
    assert again.metrics == whole.metrics
    assert times == {path: path.stat().st_mtime_ns for path in times}
    shutil.rmtree(out / "stages" / "task")
    redone = peftkit.finetune(recipe, out=out)
    assert (redone.adapter / WEIGHTS).read_bytes() == bytes_
    domain = out / "stages" / "domain" / "steps.jsonl"
    assert domain.stat().st_mtime_ns == times[domain]


def test_a_change_touches_its_stage_and_those_that_follow(tmp_path: Path, tiny_llama: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_llama, "continued")
    recipe.write_text(
        recipe.read_text() + "  - {name: other, start_from: base, data: {train: task.jsonl}}\n"
    )
    out = tmp_path / "run"
    first = peftkit.finetune(recipe, out=out)
    logs = {name: out / "stages" / name / "steps.jsonl" for name in ("domain", "task", "other")}
    kept = {name: path.read_text() for name, path in logs.items()}
    longer = {"stages.domain.train.steps": 8}
    with pytest.raises(RecipeError, match="holds a run of another recipe") as refusal:
        peftkit.finetune(recipe, out=out, set=longer)
    assert refusal.value.problems == ("stages.domain.train.steps: 6 -> 8",)
    assert "--allow-change stages.domain.train.steps" in str(refusal.value.hint)
    run = peftkit.finetune(recipe, out=out, set=longer, allow_change=["stages.0.train.steps"])
    now = {name: path.read_text() for name, path in logs.items()}
    assert now["domain"].startswith(kept["domain"])
    assert len(now["domain"].splitlines()) == 8
    assert now["task"] != kept["task"]
    assert now["other"] == kept["other"]
    assert read(out / "lock.json")["changes"] == [
        {"changes": ["stages.domain.train.steps: 6 -> 8"]}
    ]
    assert run.metrics["losses"]["task"]["other"] == first.metrics["losses"]["task"]["other"]


def test_a_stage_may_be_added_to_a_finished_run(tmp_path: Path, tiny_llama: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_llama, "continued")
    out = tmp_path / "run"
    peftkit.finetune(recipe, out=out)
    kept = (out / "stages" / "task" / "steps.jsonl").read_text()
    recipe.write_text(recipe.read_text() + "  - {name: more, data: {train: task.jsonl}}\n")
    run = peftkit.finetune(recipe, out=out, allow_change=["stages"])
    assert [stage["name"] for stage in run.metrics["stages"]] == ["domain", "task", "more"]
    assert (out / "stages" / "task" / "steps.jsonl").read_text() == kept


def test_bad_rows_of_a_late_stage_are_told_before_the_first_step(
    tmp_path: Path, tiny_llama: Path
) -> None:
    recipe = write_recipe(tmp_path, tiny_llama, "continued")
    (tmp_path / "task.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(InputError, match=r"task\.jsonl"):
        peftkit.finetune(recipe, out=tmp_path / "run")
    assert not (tmp_path / "run" / "stages").exists()


def test_the_report_has_a_column_a_stage(tmp_path: Path, tiny_llama: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_llama, "folded")
    run = peftkit.finetune(recipe, out=tmp_path / "run")
    page, text = run.report.read_text(), (run.path / "report.md").read_text()
    assert "## Stages" in text
    for loss in run.metrics["losses"]["domain"].values():
        assert f"{loss:.3f}" in text
        assert f"{loss:.3f}" in page
    assert {finding.get("stage") for finding in run.findings} == {None, "domain", "task"}
    assert "stage-forgetting" in [finding["id"] for finding in run.findings]
