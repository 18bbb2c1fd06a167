"""Merges that are judged and searched, as they are typed: files, figures, findings, the page."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from peftkit import Delta
from peftkit.cli.main import main

pytestmark = pytest.mark.slow

SAID = {
    "chat": "the sun is up and the day is long, {}",
    "code": "def f(x): return x + {}",
    "general": "0123456789 {} 9876543210",
}


def rows(name: str, first: int, last: int) -> list[str]:
    return [SAID[name].format(number * 7919 % 1000) for number in range(first, last)]


def train(base: Path, texts: list[str], folder: Path) -> None:
    """A LoRA that knows these texts, by plain peft."""
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
        for step in range(40):
            own = texts[step % 8 :: 8]
            ids = tokenizer(own, return_tensors="pt", padding=True)["input_ids"]
            model(ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.save_pretrained(folder)


@pytest.fixture(scope="module")
def place(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters that know a task each, and rows of three kinds."""
    folder = tmp_path_factory.mktemp("judged")
    for name in SAID:
        lines = (json.dumps({"text": text}) + "\n" for text in rows(name, 64, 128))
        (folder / f"{name}.jsonl").write_text("".join(lines))
    for name in ("chat", "code"):
        train(tiny_llama, rows(name, 0, 64), folder / name)
    return folder


RECIPE = """
adapters: {chat: chat, code: code}
expression: chat + code
evaluate:
  tasks: {chat: {source: chat.jsonl, format: text}, code: {source: code.jsonl, format: text}}
  control: {source: general.jsonl, format: text}
"""


def recipe(place: Path, more: str = "", text: str = RECIPE) -> str:
    path = place / "merge.yaml"
    path.write_text(text + more)
    return str(path)


def read(out: Path, name: str) -> Any:
    return json.loads((out / name).read_text())


def test_a_merge_is_judged_beside_its_base_and_its_parents(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "merged"
    assert main(["merge", recipe(place), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "gain kept" in printed
    assert f"report   {out / 'report.html'}" in printed
    metrics = read(out, "metrics.json")
    sets = {found["name"]: found for found in metrics["sets"]}
    assert list(sets) == ["chat", "code", "control"]
    assert sets["control"]["role"] == "control"
    for name, other in (("chat", "code"), ("code", "chat")):
        found = sets[name]
        assert list(found["models"]) == ["base", "chat", "code", "merged"]
        assert found["best_parent"] == name
        assert found["models"][name]["loss"] < found["models"][other]["loss"]
        assert found["models"][name]["loss"] < found["models"]["base"]["loss"] - 0.2
        kept = found["retained"]
        gains = [
            found["models"]["base"]["loss"] - found["models"][m]["loss"] for m in ("merged", name)
        ]
        assert kept["share"] == pytest.approx(gains[0] / gains[1])
        assert kept["low"] <= kept["share"] <= kept["high"]
        assert found["against_base"]["merged"]["loss"]["change"] == pytest.approx(-gains[0])


def test_the_folder_of_a_merge_holds_all_that_the_page_says(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    assert main(["merge", recipe(place), "--out", str(out)]) == 0
    metrics = read(out, "metrics.json")
    ids = {finding["id"] for finding in read(out, "findings.json")}
    assert ids == {"lossy-cut", "no-effect", "task-interference", "forgetting"}
    samples = read(out, "samples.json")
    assert [list(sample["said"]) for sample in samples] == [["base", "chat", "code", "merged"]] * 12
    record = read(out, "merge.json")
    assert record["evaluation"]["verdict"] == metrics["verdict"]
    page = (out / "report.html").read_text()
    assert "Retention" in page
    assert "chat.jsonl" in page
    (out / "report.html").unlink()
    assert main(["report", str(out)]) == 0
    assert (out / "report.html").read_text() == page
    assert main(["merge", "--reproduce", str(out)]) == 0


def test_a_merge_that_is_judged_again_gives_the_same_bytes(place: Path, tmp_path: Path) -> None:
    more = "search: {over: {chat: [0, 1.5], code: [0, 1.5]}, objective: chat, budget: 8}\nname: m\n"
    outs = [tmp_path / name for name in ("a/m", "b/m")]
    for out in outs:
        assert main(["merge", recipe(place, more), "--out", str(out)]) == 0
    names = sorted(path.name for path in outs[0].iterdir())
    assert {"metrics.json", "search.json", "findings.json", "samples.json"} <= set(names)
    for name in names:
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes(), name


def test_numbers_are_searched_under_a_constraint(place: Path, tmp_path: Path) -> None:
    more = (
        "search:\n  over: {code: [0, 1.5]}\n  objective: code\n"
        "  subject_to: {chat: 1.3}\n  budget: 12\n"
    )
    out = tmp_path / "merged"
    assert main(["merge", recipe(place, more), "--out", str(out)]) == 0
    search, metrics = read(out, "search.json"), read(out, "metrics.json")
    assert search["way"] == "narrowing"
    assert len(search["trials"]) <= 12
    kept = [each for each in search["trials"] if each["kept"]]
    best = min(kept, key=lambda each: each["figures"]["code"])
    assert best["numbers"] == search["best"]
    record = read(out, "merge.json")
    assert record["weights"] == {"chat": 1.0, "code": search["best"]["code"]}
    assert record["search"]["evaluations"] == len(search["trials"])
    wanted = Delta.load(place / "chat") + search["best"]["code"] * Delta.load(place / "code")
    assert (Delta.load(out) - wanted).norm < 1e-5 * wanted.norm
    sets = {found["name"]: found for found in metrics["sets"]}
    assert sets["code"]["rows"] == sets["code"]["holdout"]["searched_rows"] == 32
    assert sets["control"]["rows"] == 64  # nothing was searched on these
    assert "holdout" not in sets["control"]
    ids = [finding["id"] for finding in read(out, "findings.json")]
    assert {"constraint", "overfitting", "search-range"} <= set(ids)
    assert main(["merge", "--reproduce", str(out)]) == 0


def test_a_task_is_taken_away_as_far_as_the_rest_allows(place: Path, tmp_path: Path) -> None:
    text = RECIPE.replace("{chat: chat, code: code}", "{chat: chat}").replace(
        "chat + code", "-chat"
    )
    more = (
        "search:\n  over: {chat: [-2, 0]}\n  objective: chat\n  direction: worsen\n"
        "  subject_to: {control: 0.9}\n  budget: 16\n"
    )
    out = tmp_path / "merged"
    assert main(["merge", recipe(place, more, text), "--out", str(out)]) == 0
    search = read(out, "search.json")
    assert search["way"] == "bisection"
    share = "control, share of the base"
    for trial in search["trials"]:
        assert trial["kept"] == (trial["figures"][share] >= 0.9)
    assert -2 <= search["best"]["chat"] < 0
    sets = {found["name"]: found for found in read(out, "metrics.json")["sets"]}
    assert sets["chat"]["best_parent"] is None
    assert sets["chat"]["models"]["merged"]["loss"] > sets["chat"]["models"]["base"]["loss"]
    assert sets["control"]["performance"]["merged"]["share"] > 0.85


def test_another_method_is_merged_anew_for_each_number(place: Path, tmp_path: Path) -> None:
    more = "method: {name: slerp}\nsearch: {over: {code: [0.1, 1]}, objective: code, budget: 4}\n"
    out = tmp_path / "merged"
    assert main(["merge", recipe(place, more), "--out", str(out)]) == 0
    search = read(out, "search.json")
    assert len({trial["figures"]["code"] for trial in search["trials"]}) > 1


def test_what_cannot_be_kept_is_refused_before_anything_is_written(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = (
        "search: {over: {code: [0.5, 1]}, objective: code, budget: 6, subject_to: {chat: 1.0e+9}}\n"
    )
    out = tmp_path / "merged"
    assert main(["merge", recipe(place, more), "--out", str(out)]) == 1
    assert "no numbers keep `chat: 1e+09`" in capsys.readouterr().err
    assert not out.exists()


def test_weights_are_judged_as_they_were_written(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    assert main(["merge", recipe(place, "output: {as: weights}\n"), "--out", str(out)]) == 0
    metrics = read(out, "metrics.json")
    other = tmp_path / "adapter"
    assert main(["merge", recipe(place), "--out", str(other)]) == 0
    for whole, beside in zip(metrics["sets"], read(other, "metrics.json")["sets"], strict=True):
        both = [found["models"]["merged"]["loss"] for found in (whole, beside)]
        assert both[0] == pytest.approx(both[1], rel=1e-4)
