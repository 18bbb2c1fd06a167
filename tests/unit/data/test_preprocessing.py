"""What a tokenizer does not know, cuts small or loses is measured on planted rows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from peftkit.data.example import Example
from peftkit.data.preprocessing import CHARACTERS, ENGLISH, ROWS, describe_fit, measure
from peftkit.diagnose.data_checks import COARSE, check_preprocessing
from peftkit.diagnose.finding import Finding


def rows(*texts: str) -> list[Example]:
    trained = np.array([False, True])
    return [Example(np.arange(2, dtype=np.int32), trained, "a:1", text, text) for text in texts]


def told(facts: dict[str, Any], task: str = "causal-lm") -> dict[str, Finding]:
    found = list(check_preprocessing({"preprocessing": facts}, task))
    assert {finding.id for finding in found} == {"preprocessing-mismatch"}
    return {finding.sentence: finding for finding in found}


@pytest.fixture(scope="module")
def uncased(minilm: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(minilm)


def test_one_token_a_byte_is_measured_exactly(tokenizer: Any) -> None:
    fit = measure(tokenizer, ["ab cd", "é"])
    assert (fit.tokens, fit.bytes, fit.words, fit.unknown, fit.fallback) == (7, 7, 3, 0, 0)
    assert fit.facts["bytes_per_token"] == 1
    assert fit.facts["tokens_per_word"] == pytest.approx(7 / 3)


def test_the_reference_is_english_or_what_is_to_be_remembered(tokenizer: Any) -> None:
    facts = describe_fit(tokenizer, rows("some words"))
    assert facts["reference"]["of"] == "english"
    assert (
        facts["reference"]["tokens_per_word"]
        == measure(tokenizer, ENGLISH).facts["tokens_per_word"]
    )
    facts = describe_fit(tokenizer, rows("some words"), ["a b c d"])
    assert facts["reference"] == measure(tokenizer, ["a b c d"]).facts | {"of": "remember"}


def test_long_and_many_rows_are_looked_at_in_part(tokenizer: Any) -> None:
    many = rows(*["x" * (3 * CHARACTERS)] * (3 * ROWS))
    facts = describe_fit(tokenizer, many)
    assert facts["rows"] == ROWS


def test_plain_english_fits(uncased: PreTrainedTokenizerBase) -> None:
    facts = describe_fit(uncased, rows(*ENGLISH))
    (finding,) = told(facts, "classification").values()
    assert finding.severity == "ok"
    assert facts["bytes_per_token"] == facts["reference"]["bytes_per_token"]


def test_emoji_unknown_to_an_encoder_are_named(uncased: PreTrainedTokenizerBase) -> None:
    planted = ["great movie 😂😂 loved it", "so sad 😭", "no sign of it here"] * 20
    facts = describe_fit(uncased, rows(*planted))
    assert facts["emoji_lost"] == 1
    assert facts["emoji_lost_rows"] == pytest.approx(2 / 3)
    assert facts["emoji_named"] == ["😂", "😭"]
    found = told(facts, "classification")
    assert {finding.severity for finding in found.values()} == {"warning"}
    (advice,) = (f.advice for said, f in found.items() if "emoji" in said)
    assert "`base.add_tokens: [😂, 😭]`" in advice
    (unknown,) = (f for said, f in found.items() if "does not know" in said and "emoji" not in said)
    assert unknown.figure == pytest.approx(facts["unknown"])


def test_capitals_and_accents_matter_where_they_are_written(
    uncased: PreTrainedTokenizerBase,
) -> None:
    german = rows(*["Ich möchte Äpfel und Birnen aus Köln"] * 4, *["nothing to lose"] * 4)
    facts = describe_fit(uncased, german)
    assert facts["lost"] == {"capitals": 0.5, "accents": 0.5}
    said = " ".join(told(facts, "token-classification"))
    assert "takes the capitals off 50 %" in said
    assert "takes the accents off 50 %" in said
    said = " ".join(told(facts, "classification"))
    assert "capitals" not in said
    assert "accents" in said


def test_a_tokenizer_that_keeps_all_loses_nothing(tokenizer: Any) -> None:
    facts = describe_fit(tokenizer, rows("ÄÖÜ Großes 😂", "CAFÉ"))
    assert facts["lost"] == {"capitals": 0.0, "accents": 0.0}
    assert (facts["emoji_lost"], facts["unknown"]) == (0, 0)


def test_code_is_foreign_to_a_base_of_stories(material: Path) -> None:
    stories = AutoTokenizer.from_pretrained(material / "stories260k-hf")
    lines = (material / "code-python" / "thealgorithms_python.jsonl").read_text().splitlines()
    code = [next(v for v in json.loads(line).values() if "def " in str(v)) for line in lines[:50]]
    facts = describe_fit(stories, rows(*code))
    assert facts["bytes_per_token"] / facts["reference"]["bytes_per_token"] < COARSE
    found = told(facts)
    assert any("cuts the rows small" in said for said in found)
    assert any("single bytes" in said for said in found)
    tales = (material / "tinystories-sample" / "tinystories_sample.txt").read_text()
    facts = describe_fit(stories, rows(*tales.split("<|endoftext|>")[:50]))
    assert [finding.severity for finding in told(facts).values()] == ["ok"]


def test_gpt2_calls_nothing_unknown(material: Path) -> None:
    gpt2 = AutoTokenizer.from_pretrained(material / "gpt2-tokenizer")
    fit = measure(gpt2, ["一 😂 ሰላም<|endoftext|>"])
    assert fit.unknown == 0
