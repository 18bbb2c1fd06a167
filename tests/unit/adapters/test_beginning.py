"""An adapter that goes on from an earlier one: its numbers mean what they meant, or it does not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from peftkit.adapters.attach import attach, trainable
from peftkit.adapters.beginning import go_on_as
from peftkit.adapters.store import save_adapter
from peftkit.base.locate import Origin
from peftkit.errors import InputError
from peftkit.recipe.sections.adapter import BottleneckSection, LoraSection


def adapted(base: Path, section: Any, seed: int = 0) -> Any:
    model = attach(AutoModelForCausalLM.from_pretrained(base), section, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in trainable(model).values():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def saved(base: Path, folder: Path, section: Any) -> dict[str, torch.Tensor]:
    model = adapted(base, section)
    save_adapter(model, folder, Origin("org/tiny", base, None), method=section.method)
    return {name: parameter.detach().clone() for name, parameter in trainable(model).items()}


def test_the_numbers_go_on_where_they_mean_the_same(tiny_llama: Path, tmp_path: Path) -> None:
    section = LoraSection(rank=4, alpha=8)
    numbers = saved(tiny_llama, tmp_path, section)
    model = adapted(tiny_llama, section.model_copy(update={"dropout": 0.1}), seed=1)
    go_on_as(model, tmp_path)
    found = trainable(model)
    assert found.keys() == numbers.keys()
    assert all(torch.equal(found[name], number) for name, number in numbers.items())


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (LoraSection(rank=4, alpha=8), LoraSection(rank=4, alpha=4), "lora_alpha 8"),
        (
            LoraSection(rank=4, alpha=8),
            LoraSection(rank=4, alpha=8, variant="rslora"),
            "use_rslora False, and here it is True",
        ),
        (
            LoraSection(rank=4, alpha=8),
            LoraSection(rank=4, alpha=8, alpha_pattern={"q_proj": 2}),
            "alpha_pattern",
        ),
        (
            BottleneckSection(method="bottleneck", size=4),
            BottleneckSection(method="bottleneck", size=4, activation="relu"),
            "non_linearity",
        ),
    ],
)
def test_numbers_that_would_do_something_else_are_refused(
    tiny_llama: Path, tmp_path: Path, before: Any, after: Any, said: str
) -> None:
    saved(tiny_llama, tmp_path, before)
    with pytest.raises(InputError, match=f"cannot go on training here: it has {said}"):
        go_on_as(adapted(tiny_llama, after, seed=1), tmp_path)
