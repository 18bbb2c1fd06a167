"""Each filter finds the rows it is for, counts them, and touches nothing while it is off."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from peftkit.data.draft import Encoder
from peftkit.data.example import Example
from peftkit.data.filters import (
    LIMITS,
    count_bad,
    judge,
    keep_good,
    limits_of,
    share_of_repeated_lines,
    share_of_repeated_words,
)
from peftkit.data.prepare import prepare_data
from peftkit.errors import InputError
from peftkit.recipe.load import load_recipe
from peftkit.recipe.sections.data import DataSection
from peftkit.recipe.sections.filters import FiltersSection, as_filters

GOOD = "Put the lid on the pot, and let the rice stand for ten minutes before you serve it."
BAD = {
    "shortest": "k",
    "longest": "a word " * 4000,
    "repeated_words": "so very good " * 20,
    "repeated_lines": "one line\n" * 3 + "another line\n" * 3,
    "refusals": "I\u2019m sorry, but I can\u2019t help with that.",
    "links": "see https://example.org/a/very/long/address?with=things",
    "markup": "<p>It is <b>here</b>&nbsp;<br/></p>",
}


def row(answer: str | None, prompt: str = "How is it done?", number: int = 1) -> Example:
    text = answer if answer is not None else prompt
    tokens = np.arange(3, dtype=np.int32)
    trained = np.array([False, True, True])
    return Example(
        tokens, trained, f"rows.jsonl:{number}", str(number), text, prompt=prompt, answer=answer
    )


def section(**limits: Any) -> FiltersSection:
    return FiltersSection.model_validate(limits)


@pytest.mark.parametrize(("name", "text"), BAD.items())
def test_each_filter_finds_its_own(name: str, text: str) -> None:
    found = judge(row(text), {name: LIMITS[name]}, "causal-lm")
    assert found is not None
    assert (found.filter, found.where) == (name, "rows.jsonl:1")
    assert judge(row(GOOD), LIMITS, "causal-lm") is None
    verdict = count_bad([row(GOOD), row(text)], "causal-lm", 100, {})
    assert verdict["found"] == {name: 1}
    assert verdict["rows"] == 2


@pytest.mark.parametrize(
    "text",
    [
        "As a language model, BERT reads both ways.",
        "I am sorry that the lamp broke.",
        "I cannot answer the phone at night, so leave a message.",
        "if a < b and c > d: return x[a:b]",
        "Tom & Jerry; AT&T",
        "The colon: a sign / a mark.",
    ],
)
def test_what_only_looks_like_it_is_kept(text: str) -> None:
    limits = {name: value for name, value in LIMITS.items() if name != "refusals"}
    assert judge(row(text), limits, "causal-lm") is None


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("As an AI language model, I do not have opinions.", True),
        ("I'm sorry, but as a large language model I cannot do it.", True),
        ("I am unable to assist with this.", True),
        ("Sorry for the delay! The order was sent.", False),
        ("As an AI researcher I read many papers.", False),
        (GOOD * 5 + " As an AI model, I said so.", False),
    ],
)
def test_refusals_stand_at_the_start(text: str, *, refuses: bool) -> None:
    assert (judge(row(text), {"refusals": 0}, "causal-lm") is not None) == refuses


def test_of_a_task_with_labels_the_text_is_judged() -> None:
    spam = row("spam", prompt="https://example.org/win https://example.org/now")
    assert judge(spam, {"links": 0.5}, "causal-lm") is None
    labeled = Example(spam.tokens, spam.trained, "rows.jsonl:1", "1", spam.prompt, answer="spam")
    found = judge(labeled, {"links": 0.5}, "classification")
    assert found is not None
    assert found.filter == "links"


def test_a_filter_that_is_on_leaves_rows_out_and_lists_them() -> None:
    rows = [row(GOOD, number=1), row("k", number=2), row(BAD["links"], number=3)]
    kept, facts = keep_good(section(shortest="auto", links=0.3), rows, "causal-lm")
    assert [each.where for each in kept] == ["rows.jsonl:1"]
    assert facts["found"] == {"shortest": 1, "links": 1}
    assert facts["listed"][0] == {"where": "rows.jsonl:2", "filter": "shortest", "figure": 1}
    assert facts["limits"] == {"shortest": 3, "links": 0.3}
    assert facts["rows"] == 3


def test_languages_keep_what_is_not_clear() -> None:
    rows = [row(GOOD, "", 1), row("Ich weiß es nicht, aber es ist so.", "", 2), row("x9", "", 3)]
    kept, facts = keep_good(section(languages=["de"]), rows, "causal-lm")
    assert [each.where for each in kept] == ["rows.jsonl:2", "rows.jsonl:3"]
    assert facts["listed"] == [{"where": "rows.jsonl:1", "filter": "languages", "figure": "en"}]


def test_off_is_the_same_rows_and_says_nothing() -> None:
    rows = [row("k"), row(BAD["links"])]
    kept, facts = keep_good(section(), rows, "causal-lm")
    assert kept is rows
    assert facts == {}


def test_none_left_is_an_error_that_names_rows() -> None:
    with pytest.raises(InputError, match="leave none of 2 training rows") as caught:
        keep_good(section(shortest=100_000), [row("a"), row("b", number=2)], "causal-lm")
    assert caught.value.problems[1] == "rows.jsonl:2: shortest (1)"


def test_limits_are_written_in_one_word_or_one_by_one(tmp_path: Path) -> None:
    assert limits_of(section()) == {}
    assert limits_of(section(**as_filters("auto"))) == LIMITS
    assert limits_of(section(refusals="on", markup=0.5)) == {"refusals": 0, "markup": 0.5}
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "base: {model: builtin:tiny}\n"
        "data: {train: a.jsonl, filters: {languages: [en], links: off}}"
    )
    filters = load_recipe(recipe).recipe.data.filters
    assert (filters.languages, filters.links) == (("en",), "off")
    recipe.write_text("base: {model: builtin:tiny}\ndata: {train: a.jsonl, filters: auto}")
    assert limits_of(load_recipe(recipe).recipe.data.filters) == LIMITS


def test_rows_are_left_out_before_any_are_held_out(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"say {n}", "completion": f"number {n} it is"} for n in range(60)]
    rows[7]["completion"] = rows[33]["completion"] = "k"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    test = tmp_path / "test.jsonl"
    test.write_text(json.dumps({"prompt": "say", "completion": "k"}) + "\n")
    settled = DataSection.model_validate(
        {
            "train": str(path),
            "validation": {"fraction": 0.3},
            "test": str(test),
            "filters": {"shortest": "auto"},
        }
    )
    encoder = Encoder(tokenizer, frozenset({tokenizer.eos_token_id}), 1024, "error")
    data = prepare_data(settled, encoder)
    left = [*data.train.examples, *data.validation.examples]
    assert len(left) == 58
    assert not {"rows.jsonl:8", "rows.jsonl:34"} & {each.where for each in left}
    assert data.filtered["found"] == {"shortest": 2}
    assert data.test is not None  # rows to judge by are left alone
    assert len(data.test.examples) == 1


words = some.lists(some.sampled_from(["a", "bb", "ccc"]), min_size=0, max_size=120)


@given(words)
def test_the_share_of_repeated_words_is_a_share(said: list[str]) -> None:
    figure = share_of_repeated_words(" ".join(said))
    assert 0 <= figure <= 1
    if len(said) < 50:
        assert figure == 0


def test_repetition_is_counted_as_gopher_does() -> None:
    words = [f"w{n:02}" for n in range(42)] + ["abc", "def"] * 4
    # 50 words of 3 letters; `abc def` comes 4 times: 24 letters of 150
    assert share_of_repeated_words(" ".join(words)) == pytest.approx(24 / 150, abs=1e-4)
    assert share_of_repeated_words(" ".join(words[1:])) == 0
    lines = "one\ntwo\n\none\none\nthree"
    assert share_of_repeated_lines(lines) == pytest.approx(2 / 5)
