"""Documents that share a row are learnt as if alone, or the gate of packing sees that they are not.

Every family is built with random weights, wide enough for attention to matter: at the usual size
of random weights a token hardly looks at the others, and a leak would not show.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    Qwen3Config,
)

from peftkit.data.batch import Layout, collate, make_update
from peftkit.data.example import Example
from peftkit.fast.loss import summed_loss, token_losses
from peftkit.pipeline.choices import TOLERANCE, packing_error

VOCABULARY = 61
BASIC: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
USUAL = BASIC | {"intermediate_size": 32, "max_position_embeddings": 64}
GROUPED = USUAL | {"num_key_value_heads": 2}
WIDE = GROUPED | {"head_dim": 8}
WINDOW = {"sliding_window": 4}
TOGETHER_OR_ALONE = {
    "llama": LlamaConfig(**GROUPED),
    "qwen3": Qwen3Config(**WIDE),
    "mistral": MistralConfig(**GROUPED, **WINDOW),
    "gemma": GemmaConfig(**WIDE),
    "gemma2": Gemma2Config(**WIDE, **WINDOW),
    "gemma3": Gemma3TextConfig(**WIDE, **WINDOW),
    "phi": PhiConfig(**USUAL),
    "gpt-neox": GPTNeoXConfig(**USUAL),
    "gpt2": GPT2Config(**BASIC, n_positions=64),
}
"""Families of which packing must not change a thing."""
NOT_TOGETHER = {
    "opt": OPTConfig(**BASIC, ffn_dim=32, max_position_embeddings=64, word_embed_proj_dim=16),
    "bloom": BloomConfig(**BASIC),
    "falcon": FalconConfig(**BASIC),
    "mamba": MambaConfig(**BASIC),
}
"""Families that take no notice of the positions: the gate must see it."""
EVERY = TOGETHER_OR_ALONE | NOT_TOGETHER


def build(name: str) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(EVERY[name]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(10)
    return model


def documents(*lengths: int) -> list[Example]:
    draw = np.random.default_rng(0)
    made = []
    for number, length in enumerate(lengths):
        trained = draw.random(length) < 0.7
        trained[0], trained[-1] = False, True
        tokens = draw.integers(3, VOCABULARY, length).astype(np.int32)
        made.append(Example(tokens, trained, f"f:{number}", str(number), "text"))
    return made


DOCUMENTS = documents(9, 5, 12, 2, 7, 3)


def alone(model: Any) -> Iterator[torch.Tensor]:
    """Losses of the documents one by one, each token's that has a next one."""
    for document in DOCUMENTS:
        yield token_losses(model, collate([[document]], 0))[0, :-1]


def gradients(model: Any, *, packing: bool, micro_rows: int) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    update = make_update(DOCUMENTS, Layout(packing, micro_rows, 0))
    total = sum(summed_loss(model, batch) for batch in update.micro_batches)
    total.backward()
    found = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    assert len(found) >= 10
    return total.item(), torch.cat(found)


@pytest.mark.parametrize("name", EVERY)
@torch.inference_mode()
def test_padding_changes_nothing(name: str) -> None:
    model = build(name)
    padded = token_losses(model, collate([[document] for document in DOCUMENTS], 0))
    for row, expected in zip(padded, alone(model), strict=True):
        torch.testing.assert_close(row[: len(expected)], expected, rtol=1e-4, atol=1e-4)
        assert not row[len(expected) :].any()


@pytest.mark.parametrize("name", TOGETHER_OR_ALONE)
@torch.inference_mode()
def test_a_packed_document_has_the_loss_it_has_alone(name: str) -> None:
    model = build(name)
    rows = [DOCUMENTS[:3], DOCUMENTS[3:5], DOCUMENTS[5:]]
    packed = token_losses(model, collate(rows, 0))
    expected = alone(model)
    for number, row in enumerate(rows):
        at = 0
        for document in row:
            own = packed[number, at : at + document.length]
            torch.testing.assert_close(own[:-1], next(expected), rtol=1e-4, atol=1e-4)
            assert own[-1] == 0
            at += document.length


@pytest.mark.parametrize("name", TOGETHER_OR_ALONE)
def test_packed_documents_have_the_gradient_they_have_alone(name: str) -> None:
    model = build(name)
    loss, gradient = gradients(model, packing=False, micro_rows=1)
    packed_loss, packed_gradient = gradients(model, packing=True, micro_rows=2)
    assert packed_loss == pytest.approx(loss, rel=1e-5)
    difference = (packed_gradient - gradient).norm() / gradient.norm()
    assert float(difference) < 1e-4
    assert gradient.norm() > 0


@pytest.mark.parametrize("name", TOGETHER_OR_ALONE)
def test_the_gate_lets_packing_through_where_it_is_exact(name: str) -> None:
    assert packing_error(build(name), DOCUMENTS[:2], 0) < TOLERANCE["float32"] / 10


@pytest.mark.parametrize("name", NOT_TOGETHER)
def test_the_gate_sees_documents_that_look_at_each_other(name: str) -> None:
    assert packing_error(build(name), DOCUMENTS[:2], 0) > 10 * TOLERANCE["float32"]
