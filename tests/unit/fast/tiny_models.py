"""Tiny frozen models of every kind of head, LoRA on them, and batches to train them on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from peftkit.adapters.attach import attach, trainable
from peftkit.data.batch import Batch
from peftkit.data.example import IGNORED
from peftkit.fast import chunked
from peftkit.fast.chunked import Head
from peftkit.fast.head import find_head
from peftkit.recipe.sections.adapter import LoraSection

VOCABULARY = 101
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "initializer_range": 0.3,  # logits of a trained model's size: a forgotten cap must show
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY, "n_positions": 64}
MAMBA = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", SHAPE),
    "llama, tied": ("llama", SHAPE | {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", SHAPE | {"head_dim": 8}),
    "mistral": ("mistral", SHAPE),
    "gemma2": ("gemma2", SHAPE | {"head_dim": 8, "final_logit_softcapping": 2.0}),
    "gemma3": ("gemma3_text", SHAPE | {"head_dim": 8, "final_logit_softcapping": None}),
    "recurrent gemma": ("recurrent_gemma", SHAPE | {"logits_soft_cap": 2.0}),
    "gpt2": ("gpt2", GPT2 | {"initializer_range": 0.3}),
    "granite": ("granite", SHAPE | {"logits_scaling": 3.0}),
    "hyperclovax": ("hyperclovax", SHAPE | {"logits_scaling": 0.3}),
    "cohere": ("cohere", SHAPE | {"logit_scale": 0.37}),
    "falcon h1": ("falcon_h1", SHAPE | MAMBA | {"lm_head_multiplier": 0.6}),
    "phi": ("phi", SHAPE),
}
TARGETS = {"falcon h1": ("q_proj", "in_proj")}  # peft refuses LoRA on some layers of a Mamba


def build(family: str = "llama", *, dtype: torch.dtype = torch.float32) -> Any:
    """A frozen model of random weights; a head's bias, which starts as 0, is random too."""
    kind, shape = FAMILIES[family]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape), dtype=dtype)
    if (bias := model.get_output_embeddings().bias) is not None:
        torch.nn.init.normal_(bias)
    return model.requires_grad_(requires_grad=False).eval()


def adapt(family: str = "llama", *, dtype: torch.dtype = torch.float32, dropout: float = 0) -> Any:
    """The same with LoRA all over, trained a little, as it were: no factor is zero."""
    targets = TARGETS.get(family, ("all-linear",))
    section = LoraSection(rank=2, dropout=dropout, targets=targets)
    model = attach(build(family, dtype=dtype), section, seed=1)
    for parameter in trainable(model).values():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def batch_of(*, rows: int = 2, time: int = 17, density: float = 0.5, seed: int = 0) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randint(3, VOCABULARY, (rows, time), generator=draw)
    targets = torch.randint(3, VOCABULARY, (rows, time), generator=draw)
    targets[torch.rand(rows, time, generator=draw) >= density] = IGNORED
    return Batch(inputs, targets, None, rows * time)


def found_head(model: Any) -> Head:
    head = find_head(model)
    assert isinstance(head, Head), head
    return head


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*trainable(model).items(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def assert_same_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor], limit: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert gradient.norm() > 0, f"{name} has no gradient, so equality would mean little"
        assert (ours[name] - gradient).norm() <= limit * gradient.norm(), name


@contextmanager
def small_chunks(rows: int = 5, logits: int = 3 * VOCABULARY) -> Iterator[None]:
    """Inside, a few rows are several chunks of several blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked, "CPU_ROWS", rows)
        patch.setattr(chunked, "CPU_BLOCK", logits)
        yield
