"""The preview shows every token as the model will see it, and what it will not see."""

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from peftkit.cli.main import main
from peftkit.cli.preview import make_visible
from peftkit.errors import RecipeError
from peftkit.pipeline.preview import preview
from peftkit.pipeline.setup import set_up
from peftkit.recipe.load import load_recipe

ROWS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "user", "content": "say <|end|>"},
            {"role": "assistant", "content": "a b\n"},
            {"role": "user", "content": "more"},
            {"role": "assistant", "content": "c" * 30},
        ]
    },
    {"prompt": "ask ", "completion": "tell"},
    {"text": "only text"},
]


@pytest.fixture
def recipe(tmp_path: Path, tiny_llama: Path) -> Path:
    for name, offset in (("train", ""), ("valid", "v")):
        lines = [json.dumps(row) for row in ROWS]
        text = (
            "\n".join(lines).replace("only", f"only {offset}").replace("c" * 30, offset + "c" * 30)
        )
        (tmp_path / f"{name}.jsonl").write_text(f"{text.replace('tell', f'{offset}tell')}\n")
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"base: {{model: {tiny_llama}}}\n"
        "data: {train: train.jsonl, validation: valid.jsonl, max_length: 40, too_long: truncate}\n"
    )
    return path


def test_each_token_has_its_role_and_cut_ones_are_there(recipe: Path) -> None:
    shown = preview(load_recipe(recipe).recipe, 3)
    chat, completion, text = shown["rows"]
    assert (chat["cut"], chat["cut_answers"], chat["control_as_text"]) == (18, 1, 1)
    assert [token["cut"] for token in chat["tokens"]] == [False] * 40 + [True] * 18
    assert not any(token["trained"] for token in chat["tokens"][40:])
    said = dict.fromkeys(("user", "assistant"), "")
    for token in chat["tokens"]:
        said[token["role"]] += token["text"]
    assert said["user"] == "<|bos|><|user|>say <|end|><|end|><|user|>more<|end|>"
    assert said["assistant"] == f"<|assistant|>a b\n<|end|><|assistant|>{'c' * 30}<|end|>"
    assert {token["role"] for token in completion["tokens"]} == {"prompt", "answer"}
    assert {token["role"] for token in text["tokens"]} == {"text"}
    assert (chat["stop_trained"], completion["stop_trained"]) == (False, True)


def test_the_totals_are_those_of_the_facts(recipe: Path) -> None:
    loaded = load_recipe(recipe).recipe
    totals = preview(loaded, 1)["totals"]
    assert totals["train"] == set_up(loaded).data.facts["train"]
    assert totals["train"]["cut_answers"] == 1
    assert totals["train"]["stops_trained"] == 2
    assert totals["train"]["trained_by_role"] == {"answer": 5, "assistant": 18, "text": 11}
    assert totals["test"] is None


def test_it_reads_the_same_without_color(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["preview", str(recipe), "--rows", "2"]) == 0
    plain = capsys.readouterr().out
    assert re.search(r"(?m)^· +\d+ +prompt$", plain)
    assert re.search(r"(?m)^↵ +\d+ +assistant +yes$", plain)
    assert re.search(r"(?m)^c +\d+ +assistant +cut$", plain)
    assert "answers cut: 1, control tokens read as text: 1" in plain
    assert re.search(r"(?m)^trained tokens: assistant +18 +1\d$", plain)

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    assert main(["preview", str(recipe), "--rows", "2"]) == 0
    colored = terminal.getvalue()
    assert "\x1b[32m" in colored
    assert "\x1b[2m" in colored
    bare = re.sub(r"\x1b\[[0-9;]*m", "", colored)
    assert [line.split() for line in bare.splitlines()] == [
        line.split() for line in plain.splitlines()
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" a", "·a"),
        ("\n\n", "↵↵"),
        ("\t", "→"),
        ("\u200b", "\\u200b"),
        ("'\"", "'\""),
        ("\\", "\\"),
    ],
)
def test_what_has_no_ink_is_shown(text: str, shown: str) -> None:
    assert make_visible(text) == shown


def test_a_template_that_stops_otherwise_is_mended_by_its_setting(
    recipe: Path, capsys: pytest.CaptureFixture[str], tiny_llama: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for path in tiny_llama.iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        path = base / name
        path.write_text(path.read_text().replace("'<|end|>'", "'<|pad|>'"))
    template = (base / "chat_template.jinja").read_text()
    (base / "chat_template.jinja").write_text(template.replace("<|end|>", "<|pad|>"))
    command = ["preview", str(recipe), "--set", f"base.model={base}"]
    assert main(command) == 65
    told = capsys.readouterr().err
    assert "without a stop token" in told
    setting = re.search(r"`--set '([^']+)'`", told)
    assert setting
    assert main([*command, "--set", setting[1]]) == 0
    with pytest.raises(RecipeError, match="`<stop>` is no token of this base"):
        set_up(load_recipe(recipe, ['base.stop_tokens=["<stop>"]']).recipe)
