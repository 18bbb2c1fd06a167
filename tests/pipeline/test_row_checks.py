"""What is wrong with the rows is said before training, written down, and found again after it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import peftkit
from peftkit.errors import RunError
from peftkit.pipeline.watch import Silent
from peftkit.recipe.load import load_recipe
from peftkit.report.holding import hold

TEXTS = {
    "animals": "the little dog and the cat ran to the big tree number {}",
    "orders": "please turn on the light in the kitchen of house {}",
    "weather": "it was a sunny day and the sky was blue in year {}",
}
FLIPPED = (5, 17, 41, 63, 98, 113)


class Listening(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def planted(folder: Path, **data: Any) -> Path:
    """A recipe whose rows have wrong labels, lack a class in test and end in German."""
    labels = list(TEXTS)
    rows = []
    for number in range(150):
        label = labels[number % 3]
        wrong = labels[(number + 1) % 3]
        text = TEXTS[label].format(number)
        rows.append({"text": text, "label": wrong if number in FLIPPED else label})
    judged = [{"text": TEXTS[each].format("nine"), "label": each} for each in labels]
    german = "Das ist nicht der Hund, und es ist auch keine Katze auf dem Baum {}"
    tests = [{"text": german.format(n), "label": labels[n % 2]} for n in range(30)]
    recipe = {
        "name": "planted",
        "base": {"model": "builtin:tiny", "task": "classification"},
        "adapter": {"method": "lora", "rank": 2},
        "data": {
            "train": write(folder, "train.jsonl", rows),
            "validation": write(folder, "validation.jsonl", judged),
            "test": write(folder, "test.jsonl", tests),
            "leakage": "warn",
            **data,
        },
        "train": {"steps": 4, "batch": {"rows": 8}},
        "evaluate": {"every": 4},
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Listening]:
    from peftkit.pipeline.finetune import finetune

    folder = tmp_path_factory.mktemp("planted")
    heard = Listening()
    with hold(folder / "run") as held:
        return finetune(load_recipe(planted(folder)), held, watch=heard), heard


def test_wrong_labels_are_named_by_row(run: tuple[Any, Listening]) -> None:
    done, _ = run
    noise = json.loads((done.path / "data.json").read_text())["label_noise"]
    flipped = {f"train.jsonl:{number + 1}" for number in FLIPPED}
    listed = {row["where"]: row for row in noise["listed"]}
    found = flipped & listed.keys()
    assert len(found) >= 3  # others are less sure than the mean of their class
    assert len(found) >= 0.8 * len(listed)
    assert (noise["rows"], noise["of"]) == (150, 150)
    page = (done.path / "report.html").read_text()
    assert "Labels that are probably wrong" in page
    assert next(iter(listed)) in page


def test_what_is_wrong_is_said_before_and_found_after(run: tuple[Any, Listening]) -> None:
    done, heard = run
    found = {finding["id"]: finding for finding in done.findings}
    assert found["missing-classes"]["severity"] == "note"
    assert found["language-shift"]["severity"] == "note"
    assert found["class-imbalance"]["severity"] == "ok"
    first = " ".join(heard.lines[:6])
    assert "the test rows have none of `weather`" in first
    assert "languages hardly trained on: de" in first


def test_a_finished_run_keeps_what_it_says_of_labels(run: tuple[Any, Listening]) -> None:
    done, _ = run
    before = (done.path / "data.json").read_bytes()
    again = peftkit.finetune(str(done.path.parent / "recipe.yaml"), out=str(done.path))
    assert again.findings == done.findings
    assert (done.path / "data.json").read_bytes() == before


class Leaving(Silent):
    """Stops the run when the labels have been looked at, or would have been."""

    def say(self, line: str) -> None:
        if line.startswith("evaluating"):
            raise RunError(line)


def test_a_run_that_goes_on_may_look_at_labels_after_all(tmp_path: Path) -> None:
    from peftkit.pipeline.finetune import finetune

    noise = {}
    for asked in ("off", "on", "off"):
        recipe = load_recipe(planted(tmp_path, check_labels=asked))
        with hold(tmp_path / "run") as held, pytest.raises(RunError):
            finetune(recipe, held, watch=Leaving())
        noise[asked] = json.loads((tmp_path / "run/data.json").read_text())["label_noise"]
        assert noise[asked]["rows"] == (150 if "on" in noise else 0)


def test_labels_can_be_left_alone_and_rows_left_out(tmp_path: Path) -> None:
    recipe = planted(tmp_path, check_labels="off", filters={"languages": ["en"]})
    lines = (tmp_path / "train.jsonl").read_text()
    german = {"text": "Der Hund ist nicht im Haus, und die Katze auch nicht", "label": "animals"}
    (tmp_path / "train.jsonl").write_text(lines + json.dumps(german) + "\n")
    done = peftkit.finetune(str(recipe), out=str(tmp_path / "run"))
    data = json.loads((done.path / "data.json").read_text())
    assert data["label_noise"] == {"rows": 0, "why": "`data.check_labels: off`"}
    assert data["filters"]["left_out"]["listed"] == [
        {"where": "train.jsonl:151", "filter": "languages", "figure": "de"}
    ]
    assert "label-noise" not in {finding["id"] for finding in done.findings}
    assert "left out" in (done.path / "report.md").read_text()


def test_a_dry_run_says_it_as_well(tmp_path: Path, cli: Callable[..., Any]) -> None:
    recipe = planted(tmp_path)
    shown = cli("finetune", str(recipe), "--dry-run", "--out", str(tmp_path / "run"))
    assert shown.returncode == 0
    assert "none of `weather`" in shown.stderr


def test_replay_and_copies_do_not_hide_what_the_rows_are_like(
    tmp_path: Path, cli: Callable[..., Any]
) -> None:
    recipe = planted(tmp_path, replay={"source": "general.jsonl", "fraction": 0.1})
    written = json.loads(recipe.read_text())
    written["data"]["augment"] = {"copies": 1}
    recipe.write_text(json.dumps(written))
    german = "Das ist nicht der Hund, und es ist auch keine Katze auf dem Baum"
    general = [{"text": f"{german} {n}", "label": "animals"} for n in range(900)]
    write(tmp_path, "general.jsonl", general)
    shown = cli("finetune", str(recipe), "--dry-run", "--out", str(tmp_path / "run"))
    assert "languages hardly trained on: de" in shown.stderr
    data = json.loads((tmp_path / "run/data.json").read_text())
    looked_at = (data["languages"]["train"], data["filters"]["counted"], data["preprocessing"])
    assert [found["rows"] for found in looked_at] == [150, 150, 150]
    assert data["balance"]["train"]["counts"]["animals"] > 900  # these are trained on


def test_general_text_is_the_reference(tmp_path: Path) -> None:
    """The base knows it, so its bytes a token are what the rows are held against."""
    recipe = json.loads(planted(tmp_path).read_text())
    general = "Once upon a time there was a little girl who lived in a house. " * 3
    recipe["base"]["task"] = "causal-lm"
    code = [{"text": f"x_{number}={number}"} for number in range(40)]
    recipe["data"] = {"train": write(tmp_path, "code.jsonl", code)}
    write(tmp_path, "general.jsonl", [{"text": f"{general}{n}"} for n in range(8)])
    recipe["evaluate"]["remember"] = [{"source": "general.jsonl", "format": "text"}]
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    done = peftkit.finetune(str(tmp_path / "recipe.yaml"), out=str(tmp_path / "run"))
    fit = json.loads((done.path / "data.json").read_text())["preprocessing"]
    assert fit["reference"]["of"] == "remember"
    assert fit["bytes_per_token"] < 0.7 * fit["reference"]["bytes_per_token"]
    severities = {f["id"]: f["severity"] for f in done.findings}
    assert severities["preprocessing-mismatch"] == "warning"
    assert np.isfinite(fit["reference"]["tokens_per_word"])
