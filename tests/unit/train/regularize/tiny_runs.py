"""A tiny base with an adapter that has moved, and rows to go through it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from peftkit.adapters.attach import attach, trainable
from peftkit.data.example import Example
from peftkit.recipe.sections.adapter import FullSection, LoraSection

LORA = LoraSection(rank=4)


def make_examples(count: int, *, seed: int = 0, longest: int = 24) -> list[Example]:
    draw = np.random.default_rng(seed)
    examples = []
    for number in range(count):
        tokens = draw.integers(6, 200, int(draw.integers(4, longest))).astype(np.int32)
        trained = np.ones(len(tokens), np.bool_)
        trained[0] = False
        examples.append(Example(tokens, trained, f"made:{number}", str(number), f"row {number}"))
    return examples


def load(folder: Path, section: Any = LORA) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.requires_grad_(requires_grad=False)
    return attach(model, section, seed=1)


def move(model: Any, *, seed: int = 0, by: float = 0.05) -> Any:
    """The model after something like training."""
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(by * torch.randn(parameter.shape, generator=drawn))
    return model


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = trainable(model).items()
    return {name: p.grad.clone() for name, p in found if p.grad is not None}


def full(folder: Path) -> Any:
    return load(folder, FullSection(method="full"))
