"""Features are the mean of the base's last states, whatever stands around a row or beside it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

from peftkit.adapters.attach import attach, base_only
from peftkit.base.load import load_base
from peftkit.data.example import Example
from peftkit.data.task import Task
from peftkit.evaluate.features import body_of, features_of
from peftkit.recipe.sections.adapter import LoraSection
from peftkit.recipe.sections.base import BaseSection

CPU = torch.device("cpu")
TEXTS = ["a long row of words that goes on", "short", "two words", "short"]


def rows(tokenizer: Any, *texts: str) -> list[Example]:
    found = []
    for text in texts:
        ids = np.array(tokenizer(text)["input_ids"], np.int32)
        trained = np.arange(len(ids)) == len(ids) - 1
        found.append(Example(ids, trained, "a:1", "1", text, labels=("a",), parts=(len(ids),)))
    return found


@pytest.fixture(scope="module")
def classifier(tiny_llama: Path) -> Any:
    section = BaseSection(model=str(tiny_llama), task="classification", labels=("a", "b"))
    return load_base(section, device=CPU).model


CLASSES = Task("classification", ("a", "b"))


def test_each_row_is_the_mean_of_its_own_states(classifier: Any, tokenizer: Any) -> None:
    examples = rows(tokenizer, *TEXTS)
    found = features_of(classifier, examples, CLASSES, 0)
    assert found.shape == (4, 32)
    assert np.array_equal(found[1], found[3])
    for example, features in zip(examples, found, strict=True):
        ids = torch.from_numpy(example.tokens.astype(np.int64))[None]
        with torch.inference_mode():
            states = classifier.model(ids).last_hidden_state[0].mean(0)
        assert np.allclose(features, states, atol=1e-5)


def test_order_and_company_do_not_matter(classifier: Any, tokenizer: Any) -> None:
    examples = rows(tokenizer, *TEXTS)
    found = features_of(classifier, examples, CLASSES, 0)
    turned = features_of(classifier, examples[::-1], CLASSES, 0)[::-1]
    alone = features_of(classifier, examples[2:3], CLASSES, 0)
    assert np.allclose(found, turned, atol=1e-5)
    assert np.allclose(found[2], alone[0], atol=1e-5)


def test_causal_rows_have_features_as_well(tiny_llama: Path, tokenizer: Any) -> None:
    model = load_base(BaseSection(model=str(tiny_llama)), device=CPU).model
    found = features_of(model, rows(tokenizer, *TEXTS), Task(), 0)
    assert found.shape == (4, 32)
    assert found.dtype == np.float32


def test_they_are_the_base_s_inside_base_only(tiny_llama: Path, tokenizer: Any) -> None:
    section = BaseSection(model=str(tiny_llama), task="classification", labels=("a", "b"))
    model = load_base(section, device=CPU).model
    examples = rows(tokenizer, *TEXTS)
    plain = features_of(model, examples, CLASSES, 0)
    adapted = attach(model, LoraSection(method="lora", rank=4), seed=0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.5)
    moved = features_of(adapted, examples, CLASSES, 0)
    with base_only(adapted):
        frozen = features_of(adapted, examples, CLASSES, 0)
    assert np.array_equal(plain, frozen)
    assert not np.allclose(plain, moved, atol=1e-2)


def test_of_two_stacks_the_reading_one_is_asked() -> None:
    config = T5Config(d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=32)
    model = T5ForConditionalGeneration(config).eval()
    assert body_of(model) is model.get_encoder()


def test_a_real_encoder_gives_its_published_vectors(minilm: Path) -> None:
    """Mean pooling is what this encoder was trained with; like texts come out alike."""
    base = load_base(BaseSection(model=str(minilm), task="embedding"), device=CPU)
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    texts = ["How do I get my money back?", "I want a refund.", "The cat sleeps in the sun."]
    task = Task("classification", ("a", "b"))
    found = features_of(base.model, rows(tokenizer, *texts), task, tokenizer.pad_token_id)
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    cosines = unit @ unit.T
    assert cosines[0, 1] > 0.5 > cosines[0, 2]
