"""Adapters above each other and beside each other, from recipes and from the command line."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import peftkit
from peftkit.cli.main import main
from peftkit.errors import RecipeError
from peftkit.pipeline.target import open_target

pytestmark = pytest.mark.slow
LABELS = ("red", "green", "blue")
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def domain(recipe: Path, tmp_path: Path) -> Path:
    """The run of an adapter that others are to stand on."""
    out = tmp_path / "runs" / "domain"
    peftkit.finetune(recipe, out=out, set={"train.steps": 6, "adapter.dropout": 0.0})
    return out


@pytest.fixture
def task(recipe: Path, domain: Path) -> Path:
    """A recipe beside the run, whose adapter stands on it."""
    path = recipe.with_name("task.yaml")
    text = recipe.read_text().replace("rank: 4,", f"rank: 2, under: runs/{domain.name},")
    path.write_text(text)
    return path


@dataclass(frozen=True)
class Said:
    """What a command returned and printed."""

    exit_code: int
    stdout: str
    stderr: str


Ask = Callable[..., Said]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    """Runs a command in this process."""

    def run(*arguments: object) -> Said:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Said(code, *capsys.readouterr())

    return run


def test_a_stack_is_compared_with_what_was_there_before(
    task: Path, domain: Path, tmp_path: Path, ask: Ask
) -> None:
    lower = json.loads((domain / "metrics.json").read_text())
    run = peftkit.finetune(task, out=tmp_path / "runs" / "task")
    base = run.metrics["baselines"]["base"]
    assert base["loss"] == pytest.approx(lower["validation"]["loss"], abs=1e-6)
    assert base["loss"] != pytest.approx(lower["baselines"]["base"]["loss"], abs=1e-3)
    assert run.metrics["validation"]["loss"] < base["loss"]
    note = json.loads((run.adapter / "under.json").read_text())
    assert note["name"] == "domain"
    lock = json.loads((run.path / "lock.json").read_text())
    assert lock["base"]["under"] == note["sha256"]
    target = open_target(str(run.path))
    assert target.model.active_adapters == ["under_0", "default"]
    measured = ask("evaluate", run.path, "--data", tmp_path / "test.jsonl", "--json")
    assert measured.exit_code == 0, measured.stderr
    found = json.loads(measured.stdout)[str(tmp_path / "test.jsonl")]
    assert found["loss"] == pytest.approx(run.metrics["test"]["loss"], abs=1e-5)


def test_the_card_of_a_stack_loads_both(
    task: Path, domain: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, ask: Ask
) -> None:
    run = peftkit.finetune(task, out=domain.with_name("task"), set={"train.steps": 4})
    card = (run.adapter / "README.md").read_text()
    assert "It was trained above another adapter" in card
    assert "Base and what was trained before" in run.report.read_text()
    shutil.copytree(tiny_llama, run.adapter / "path" / "to" / tiny_llama.name)
    shutil.copytree(domain / "adapter", run.adapter / "path" / "to" / "domain")
    (lines,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(run.adapter)
    made: dict[str, Any] = {}
    exec(lines, made)
    ids = torch.arange(6, 30)[None]
    with torch.inference_mode():
        theirs, ours = (
            model(ids).logits for model in (made["model"].eval(), open_target(str(run.path)).model)
        )
    assert torch.equal(theirs, ours)
    shutil.rmtree(run.adapter / "path")
    shown = ask("publish", run.path, "me/task", "--dry-run")
    assert shown.exit_code == 0, shown.stderr
    note = run.path / "publish-dry-run" / "under.json"
    assert json.loads(note.read_text())["name"] == "domain"


def test_another_adapter_under_it_is_refused_on_the_way(
    task: Path, domain: Path, recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "runs" / "task"
    run = peftkit.finetune(task, out=out, set={"train.steps": 4})
    again = peftkit.finetune(task, out=out, set={"train.steps": 4})
    assert again.metrics == run.metrics
    shutil.rmtree(domain)
    peftkit.finetune(recipe, out=domain, set={"train.steps": 3})
    with pytest.raises(RecipeError, match="what it began with has changed") as refusal:
        peftkit.finetune(task, out=out, set={"train.steps": 4})
    assert refusal.value.problems[0].startswith("base.under: sha256 ")
    assert "--allow-change base" in str(refusal.value.hint)


def test_a_stack_goes_on_where_it_stopped(task: Path, tmp_path: Path) -> None:
    whole = peftkit.finetune(task, out=tmp_path / "runs" / "whole")
    out = tmp_path / "runs" / "parts"
    peftkit.finetune(task, out=out)
    for name in ("metrics.json", "report.html", "findings.json", "samples.json"):
        (out / name).unlink()
    shutil.rmtree(out / "adapter")
    newest = max((out / "checkpoints").iterdir())
    shutil.rmtree(newest)
    resumed = peftkit.finetune(task, out=out)
    assert (resumed.adapter / WEIGHTS).read_bytes() == (whole.adapter / WEIGHTS).read_bytes()
    assert resumed.metrics["baselines"] == whole.metrics["baselines"]


def test_a_batch_is_answered_by_the_adapter_of_each_line(
    task: Path, domain: Path, tmp_path: Path, ask: Ask
) -> None:
    run = peftkit.finetune(task, out=tmp_path / "runs" / "task", set={"train.steps": 30})
    prompt = "Say number 7 in red."
    lines = [
        {"prompt": prompt},
        {"prompt": prompt, "adapter": "first"},
        {"prompt": prompt, "adapter": "base"},
        {"prompt": prompt, "adapter": None},
    ]
    batch = tmp_path / "batch.jsonl"
    batch.write_text("".join(json.dumps(line) + "\n" for line in lines))
    shared = ("--max-tokens", 8, "--templated")
    found = ask("generate", run.path, "--batch", batch, "--adapter", f"first={domain}", *shared)
    assert found.exit_code == 0, found.stderr
    answers = [json.loads(line) for line in found.stdout.splitlines()]
    assert [answer["adapter"] for answer in answers] == [None, "first", "base", None]
    assert "answering adapter by adapter: a row has several adapters" in found.stderr
    base = json.loads((run.path / "recipe.resolved.json").read_text())["base"]["model"]
    for target, answer in ((run.path, 0), (domain, 1), (base, 2)):
        alone = ask("generate", target, "--prompt", prompt, "--json", *shared)
        assert json.loads(alone.stdout)["text"].strip() == answers[answer]["text"].strip()
    assert answers[3] == answers[0]
    assert len({answer["text"] for answer in answers}) == 3


def test_a_bad_batch_is_told_line_by_line(tiny_llama: Path, tmp_path: Path, ask: Ask) -> None:
    batch = tmp_path / "batch.jsonl"
    batch.write_text('{"prompt": "a"}\n[]\n{"prompt": ""}\n{"promt": "a"}\n{\n')
    found = ask("generate", tiny_llama, "--batch", batch)
    assert found.exit_code == 65
    assert f"{batch}:2: expected an object, got list" in found.stderr
    assert f"{batch}:3: prompt: expected text" in found.stderr
    assert f"{batch}:4: `promt`: unknown key; expected `prompt` or `adapter`" in found.stderr
    assert f"{batch}:5: not JSON" in found.stderr
    batch.write_text('{"prompt": "a", "adapter": "bsae"}\n')
    found = ask("generate", tiny_llama, "--batch", batch)
    assert found.exit_code == 65
    assert "`bsae`; did you mean `base`?" in found.stderr
    both = ask("generate", tiny_llama, "--batch", batch, "--prompt", "a")
    assert both.exit_code == 2
    warm = ask("generate", tiny_llama, "--batch", batch, "--temperature", 0.5)
    assert warm.exit_code == 2
    assert "chosen greedily" in warm.stderr


def test_names_of_adapters_are_checked(tiny_llama: Path, domain: Path, ask: Ask) -> None:
    for name, message in (
        ("../up", "`../up` cannot name an adapter"),
        ("Chat", "`Chat` cannot name an adapter"),
        ("base", "the name `base` is taken"),
        ("under_0", "the name `under_0` is taken"),
    ):
        found = ask("generate", tiny_llama, "--prompt", "a", "--adapter", f"{name}={domain}")
        assert found.exit_code == 2
        assert message in found.stderr
    target = open_target(str(tiny_llama), [f"chat={domain}", str(domain)])
    assert target.model.active_adapters == ["chat", "adapter2"]
    with pytest.raises(RecipeError, match="the name `chat` is taken"):
        open_target(str(tiny_llama), [f"chat={domain}", f"chat={domain}"])


def test_one_made_for_another_base_is_refused(domain: Path, ask: Ask) -> None:
    """The base in a folder has no name to compare, and the embedded one has."""
    path = domain / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "a/b"}))
    found = ask("generate", "builtin:tiny", "--prompt", "a", "--adapter", domain)
    assert found.exit_code == 65
    assert "base_model_name_or_path: made for `a/b`, not for `builtin:tiny`" in found.stderr
    assert f"`peftkit generate a/b --adapter {domain / 'adapter'}`" in found.stderr


def test_a_classifier_stands_on_what_was_trained_on_text(
    recipe: Path, domain: Path, tmp_path: Path, ask: Ask
) -> None:
    """The head is the upper one's; two adapters with a head each cannot act at once."""
    rows = [
        {"text": f"{color} {number}", "label": color} for number in range(40) for color in LABELS
    ]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    over = {
        "base.task": "classification",
        "data.train": str(tmp_path / "labels.jsonl"),
        "data.test": str(tmp_path / "labels.jsonl"),
        "evaluate.remember": [],
        "adapter.under": str(domain),
        "train.steps": 20,
    }
    run = peftkit.finetune(recipe, out=tmp_path / "runs" / "labels", set=over)
    assert (run.adapter / "under.json").exists()
    target = open_target(str(run.path))
    assert target.section.task == "classification"
    assert target.model.active_adapters == ["under_0", "default"]
    measured = ask("evaluate", run.path, "--data", tmp_path / "labels.jsonl", "--json")
    assert measured.exit_code == 0, measured.stderr
    (found,) = json.loads(measured.stdout).values()
    assert found["loss"] == pytest.approx(run.metrics["test"]["loss"], abs=1e-5)
    named = ("--adapter", domain, "--adapter", run.path)
    rows_of = ("--data", tmp_path / "labels.jsonl", "--json")
    both = ask("evaluate", target.base.origin.name, *rows_of, *named)
    assert json.loads(both.stdout) == json.loads(measured.stdout)
    with pytest.raises(RecipeError, match="it brings `score` along, and so would the new adapter"):
        peftkit.finetune(
            recipe, out=tmp_path / "runs" / "again", set=over | {"adapter.under": str(run.path)}
        )


def test_kept_states_are_those_of_the_base_with_what_stands_under(
    task: Path, recipe: Path, tmp_path: Path
) -> None:
    """The same documents and the same cut: only what computes the states differs."""
    upper = {"adapter.layers": [1], "adapter.dropout": 0.0, "train.fast.norm": "off"}
    plain = peftkit.finetune(recipe, out=tmp_path / "runs" / "plain", set=upper)
    runs = {
        fast: peftkit.finetune(
            task, out=tmp_path / "runs" / fast, set=upper | {"train.fast.frozen": fast}
        )
        for fast in ("auto", "off")
    }
    for run, on in ((plain, True), (runs["auto"], True), (runs["off"], False)):
        assert json.loads((run.path / "lock.json").read_text())["choices"]["frozen"] is on
    kept, computed = (load_file(runs[fast].adapter / WEIGHTS) for fast in ("auto", "off"))
    assert kept.keys() == computed.keys()
    for name, tensor in kept.items():
        torch.testing.assert_close(tensor, computed[name], rtol=1e-3, atol=1e-4)


def test_new_tokens_are_not_trained_above_an_adapter(task: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="new tokens cannot be trained above an earlier adapter"):
        peftkit.finetune(task, out=tmp_path / "new", set={"base.add_tokens": ["<number>"]})
