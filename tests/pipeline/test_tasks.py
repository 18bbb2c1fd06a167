"""Whole runs of every task on tiny random bases: figures, report, and the adapter used again."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForMaskedLM,
    T5ForConditionalGeneration,
)

import peftkit
from peftkit.errors import RecipeError
from peftkit.pipeline.evaluate import evaluate
from peftkit.pipeline.target import open_target
from peftkit.publish.tree import lay_out
from peftkit.recipe.load import load_recipe

sys.path.append(str(Path(__file__).parent))

from bases import COLORS, WORDS, write_base

SIZES = {
    "classification": {"accuracy", "macro_f1", "balanced_accuracy", "majority", "loss", "rows"},
    "multi-label": {"exact_set", "micro_f1", "macro_f1", "loss", "rows"},
    "regression": {"mean_absolute_error", "spearman", "loss", "rows"},
    "token-classification": {"all_tags_right", "tag_accuracy", "span_f1", "loss", "rows"},
    "embedding": {"recall_at_1", "recall_at_10", "mrr", "loss", "rows"},
    "masked-lm": {"rows", "tokens", "loss", "perplexity"},
    "seq2seq": {"rows", "tokens", "loss", "exact_match"},
}
"""What must be measured of each task."""


def goals(task: str, number: int) -> dict[str, Any]:
    """One row: the color of the text is what every task asks for."""
    color, other = COLORS[number % 4], COLORS[(number // 4) % 4]
    text = f"the {WORDS[number % 8]} {WORDS[number // 8 % 8]} {color} paint {other}"
    rows: dict[str, dict[str, Any]] = {
        "classification": {"text": f"{text} {color} {color} {color}", "label": color},
        "multi-label": {"text": text, "label": [color, other]},
        "regression": {"text": text, "label": number % 4},
        "token-classification": {
            "tokens": text.split(),
            "tags": ["B-color" if word in COLORS else "O" for word in text.split()],
        },
        "embedding": {"anchor": text, "positive": f"{color} wall {other}"},
        "masked-lm": {"text": text},
        "seq2seq": {"prompt": text, "completion": color},
    }
    return rows[task]


def write_recipe(folder: Path, task: str, **adapter: Any) -> Path:
    kind = "t5" if task == "seq2seq" else "bert"
    for name, numbers in (("train", range(96)), ("test", range(96, 128))):
        lines = [json.dumps(goals(task, number)) + "\n" for number in numbers]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    recipe = {
        "name": "tiny",
        "base": {"model": str(write_base(folder / "base", kind)), "task": task},
        "adapter": {"method": "lora", "rank": 4} | adapter,
        "data": {"train": "train.jsonl", "test": "test.jsonl", "leakage": "off"},
        "train": {"steps": 30, "learning_rate": 0.02, "batch": {"rows": 8}},
        "evaluate": {"every": 6},
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    return path


@pytest.mark.parametrize("task", SIZES)
def test_a_task_is_learnt_measured_and_used_again(task: str, tmp_path: Path) -> None:
    run = peftkit.finetune(str(write_recipe(tmp_path, task)), out=str(tmp_path / "run"))
    assert SIZES[task] <= run.metrics["test"].keys()
    assert run.metrics["task"] == task
    first, last = (run.metrics["difference"]["test"]["loss"][side] for side in ("base", "adapted"))
    assert last < first
    page = (tmp_path / "run" / "report.html").read_text()
    assert "NaN" not in page
    again = evaluate(str(tmp_path / "run"), data=[str(tmp_path / "test.jsonl")])
    (figures,) = again.values()
    assert figures["loss"] == pytest.approx(run.metrics["test"]["loss"], rel=1e-4)
    alone = evaluate(str(tmp_path / "run" / "adapter"), data=[str(tmp_path / "test.jsonl")])
    assert next(iter(alone.values())) == figures


def test_only_what_writes_is_asked_for_text(tmp_path: Path, cli: Callable[..., Any]) -> None:
    for task, code, said in (("seq2seq", 0, ""), ("classification", 2, "and writes no text")):
        folder = tmp_path / task
        folder.mkdir()
        peftkit.finetune(str(write_recipe(folder, task)), out=str(folder / "run"))
        done = cli("generate", folder / "run", "--prompt", "the wall is blue", "--max-tokens", 4)
        assert done.returncode == code, done.stderr
        assert said in done.stderr


def test_what_is_published_says_what_it_does(tmp_path: Path) -> None:
    run = write_recipe(tmp_path, "classification")
    peftkit.finetune(str(run), out=str(tmp_path / "run"))
    tree = lay_out(tmp_path / "run", tmp_path / "tree", repo="me/colors", base="org/bert")
    assert "task.json" in tree.files
    task = json.loads((tmp_path / "tree" / "task.json").read_text())
    assert task == {"task": "classification", "labels": sorted(COLORS)}
    card = (tmp_path / "tree" / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card
    names = '"blue", "green", "red", "white"'
    assert f'from_pretrained("org/bert", id2label=dict(enumerate([{names}])))' in card
    assert "nats a row" in card


def test_hidden_words_follow_from_the_recipe_alone(tmp_path: Path) -> None:
    recipe = str(write_recipe(tmp_path, "masked-lm"))
    found = []
    for name in ("one", "two"):
        run = peftkit.finetune(recipe, out=str(tmp_path / name))
        found.append((run.adapter / "adapter_model.safetensors").read_bytes())
    assert found[0] == found[1]


def test_a_base_is_evaluated_in_the_task_of_a_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, "masked-lm")).recipe
    figures = evaluate(str(tmp_path / "base"), recipe=recipe)
    assert figures["test"]["perplexity"] > 1
    other = load_recipe(write_recipe(tmp_path, "classification")).recipe
    with pytest.raises(RecipeError, match="has no head for classification"):
        evaluate(str(tmp_path / "base"), recipe=other)


def test_a_row_above_the_learned_places_is_told_before_training(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "classification")
    rows = (tmp_path / "train.jsonl").read_text()
    (tmp_path / "train.jsonl").write_text(rows + json.dumps({"text": "the " * 600, "label": "red"}))
    with pytest.raises(RecipeError, match="602 tokens, and the base has learned 512 places"):
        peftkit.finetune(str(recipe), out=str(tmp_path / "run"))


def test_a_random_base_begins_without_knowledge(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "classification", method="full", rank=None)
    text = json.loads(recipe.read_text())
    text["base"]["weights"] = "random"
    text["seed"] = 1
    del text["adapter"]["rank"]
    text["adapter"]["method"] = "layernorm"  # whose file does not hold what was drawn
    recipe.write_text(json.dumps(text))
    run = peftkit.finetune(str(recipe), out=str(tmp_path / "run"))
    assert run.metrics["test"]["rows"] == 32
    again = evaluate(str(tmp_path / "run"), data=[str(tmp_path / "test.jsonl")])
    loss = next(iter(again.values()))["loss"]
    assert loss == pytest.approx(run.metrics["test"]["loss"], rel=1e-4)


def test_vanilla_transformers_reads_the_head_after_its_labels(tmp_path: Path) -> None:
    from peft import PeftModel

    peftkit.finetune(str(write_recipe(tmp_path, "classification")), out=str(tmp_path / "run"))
    folder = tmp_path / "run" / "adapter"
    labels = json.loads((folder / "task.json").read_text())["labels"]
    base = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "base", num_labels=len(labels)
    )
    model = PeftModel.from_pretrained(base, str(folder)).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    inputs = tokenizer("the wall is blue", return_tensors="pt")
    assert model(**inputs).logits.shape == (1, 4)


SMILE, FROWN = "\U0001f600", "\U0001f621"
"""Emoji that the tokenizer of these bases does not know: both are `[UNK]` to it."""


def write_emoji_recipe(folder: Path, task: str, tokens: list[str]) -> Path:
    """Rows in which all depends on which emoji it is."""
    path = write_recipe(folder, task)
    for name, colors in (("train", COLORS), ("test", WORDS[:4])):
        faces = [(f"the {word} {face} wall", face) for word in colors for face in (SMILE, FROWN)]
        rows: dict[str, list[dict[str, str]]] = {
            "classification": [{"text": text, "label": face} for text, face in faces],
            "masked-lm": [{"text": text} for text, _ in faces],
            "seq2seq": [{"prompt": text, "completion": face} for text, face in faces],
        }
        lines = [json.dumps(row) + "\n" for row in rows[task] * (8 if name == "train" else 1)]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    recipe = json.loads(path.read_text())
    recipe["base"]["add_tokens"] = tokens
    recipe["data"]["validation"] = "test.jsonl"
    path.write_text(json.dumps(recipe))
    return path


def test_an_emoji_that_the_base_cannot_read_is_learnt_as_a_token(tmp_path: Path) -> None:
    right = []
    for number, tokens in enumerate(([], [SMILE, FROWN])):
        path = write_emoji_recipe(tmp_path, "classification", tokens)
        run = peftkit.finetune(path, out=tmp_path / str(number))
        right.append(run.metrics["test"]["accuracy"])
    assert right == [0.5, 1.0]


@pytest.mark.parametrize(
    ("task", "kind"), [("masked-lm", BertForMaskedLM), ("seq2seq", T5ForConditionalGeneration)]
)
def test_vanilla_peft_reads_the_new_rows_of_an_encoder(
    task: str, kind: Any, tmp_path: Path
) -> None:
    from peft import PeftModel

    path = write_emoji_recipe(tmp_path, task, [SMILE, FROWN])
    run = peftkit.finetune(path, out=tmp_path / "run")
    rows = json.loads((run.adapter / "adapter_config.json").read_text())["trainable_token_indices"]
    assert list(rows.values()) == [[17, 18]]
    tokenizer = AutoTokenizer.from_pretrained(run.adapter)
    base = kind.from_pretrained(tmp_path / "base")
    base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    ids = torch.tensor([tokenizer.encode(f"the red {SMILE} wall")])
    assert 17 in ids
    given = {"input_ids": ids} | ({"decoder_input_ids": ids} if task == "seq2seq" else {})
    with torch.inference_mode():
        theirs = PeftModel.from_pretrained(base, str(run.adapter)).eval()(**given).logits
        ours = open_target(str(run.path)).model.eval()(**given).logits
    assert torch.equal(ours, theirs)
    assert (task, ours.shape[-1]) == (task, 19)
