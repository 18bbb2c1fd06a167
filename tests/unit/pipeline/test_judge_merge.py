"""Judging merges of decisions, heads that differ, and names that are taken."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from peftkit.base.upstream import quiet
from peftkit.cli.main import main

TEXTS = [f"row {number} is {'good' if number % 2 else 'bad'}" for number in range(40)]


def classifier(base: Path, labels: int) -> Any:
    with quiet():
        return AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels).eval()


@pytest.fixture(scope="module")
def place(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classifiers, one of them with other labels, and rows for the other two."""
    folder = tmp_path_factory.mktemp("decisions")
    for seed, (name, labels) in enumerate((("good", 2), ("kind", 2), ("many", 5))):
        torch.manual_seed(seed)
        config = LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS")
        adapted: Any = get_peft_model(classifier(tiny_llama, labels), config)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3)
        adapted.save_pretrained(folder / name)
    lines = (
        json.dumps({"text": text, "label": str(number % 2)}) + "\n"
        for number, text in enumerate(TEXTS)
    )
    (folder / "rows.jsonl").write_text("".join(lines))
    return folder


def merge(place: Path, out: Path, terms: tuple[str, ...], more: str = "") -> int:
    adapters = ", ".join(f"{name}: {name}" for name in terms)
    (place / "merge.yaml").write_text(
        f"adapters: {{{adapters}}}\nexpression: {' + '.join(terms)}\n"
        "evaluate: {tasks: {mood: {source: rows.jsonl, format: classification}}}\n" + more
    )
    return main(["merge", str(place / "merge.yaml"), "--out", str(out)])


def accuracy(base: Path, adapter: Path) -> float:
    """What vanilla peft and transformers say of the rows."""
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    model = PeftModel.from_pretrained(classifier(base, 2), str(adapter)).eval()
    right = []
    with torch.inference_mode():
        for number, text in enumerate(TEXTS):
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            right.append(int(model(ids).logits.argmax()) == number % 2)
    return sum(right) / len(right)


def test_decisions_are_judged_with_each_ones_own_head(
    place: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    out = tmp_path / "merged"
    assert merge(place, out, ("good", "kind"), "heads: average\n") == 0
    (found,) = json.loads((out / "metrics.json").read_text())["sets"]
    assert found["metric"] == "accuracy"
    assert found["rows"] == 40
    for name, folder in (("good", place / "good"), ("kind", place / "kind"), ("merged", out)):
        assert found["models"][name]["accuracy"] == pytest.approx(accuracy(tiny_llama, folder))
    samples = json.loads((out / "samples.json").read_text())
    assert {said for sample in samples for said in sample["said"].values()} <= {"0", "1"}
    assert all(isinstance(sample["right"], bool) for sample in samples)


def test_a_parent_with_other_labels_is_told_and_left_out(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    assert merge(place, out, ("good", "many"), "heads: {keep: good}\n") == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["left_out"] == {"many": "its head has other labels than that of the merge"}
    assert list(metrics["sets"][0]["models"]) == ["base", "good", "merged"]
    assert "many was not judged" in (out / "report.html").read_text()


def test_a_parent_cannot_be_called_like_the_base(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (
        "adapters: {base: good, kind: kind}\nexpression: base + kind\nheads: average\n"
        "evaluate: {tasks: {mood: {source: rows.jsonl, format: classification}}}\n"
    )
    (place / "taken.yaml").write_text(text)
    assert main(["merge", str(place / "taken.yaml"), "--out", str(tmp_path / "m")]) == 2
    assert "adapters.base" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()
