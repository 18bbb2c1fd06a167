"""Drift of weights and predictions is what multiplying out and plain softmax say."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from peftkit.adapters.attach import attach, base_only
from peftkit.adapters.beginning import go_on_as
from peftkit.adapters.store import save_adapter
from peftkit.base.locate import Origin
from peftkit.data.example import Example
from peftkit.evaluate.drift import measure_divergence, measure_update
from peftkit.recipe.sections.adapter import FullSection, HeadSection, LoraSection, TopSection


def load(folder: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.requires_grad_(requires_grad=False)


def shake(model: Any, size: float) -> Any:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return model


def examples() -> list[Example]:
    draw = np.random.default_rng(0)
    made = []
    for number in range(9):
        tokens = draw.integers(6, 200, int(draw.integers(5, 30))).astype(np.int32)
        trained = np.ones(len(tokens), bool)
        trained[0] = False
        made.append(Example(tokens, trained, f"row:{number}", f"{number}", "general.txt"))
    return made


SECTIONS = [
    LoraSection(rank=4),
    LoraSection(rank=4, variant="rslora"),
    FullSection(method="full"),
    TopSection(method="top", blocks=1),
]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.method)
def test_an_untrained_adapter_has_not_moved(tiny_llama: Path, section: Any) -> None:
    model = attach(load(tiny_llama), section, seed=1)
    found = measure_update(model)
    assert found
    assert set(found.values()) == {0.0}
    assert measure_divergence(model, examples(), 0) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("variant", ["plain", "rslora"])
def test_the_update_of_lora_is_that_of_the_folded_weights(tiny_llama: Path, variant: str) -> None:
    model = shake(attach(load(tiny_llama), LoraSection(rank=4, variant=variant), seed=1), 0.1)
    found = measure_update(model)
    base = dict(load(tiny_llama).named_parameters())
    folded = dict(model.merge_and_unload().named_parameters())
    assert sorted(found) == ["layers.0", "layers.1"]
    for block, ratio in found.items():
        own = [name for name in base if f"{block}." in name and base[name].ndim == 2]
        changed = torch.cat([(folded[name] - base[name]).flatten() for name in own]).norm()
        whole = torch.cat([base[name].flatten() for name in own]).norm()
        assert ratio == pytest.approx(float(changed / whole), rel=1e-4)


def test_what_goes_on_moved_as_far_as_it_did_since(tiny_llama: Path, tmp_path: Path) -> None:
    def fresh() -> Any:
        return attach(load(tiny_llama), LoraSection(rank=4), seed=1)

    earlier = shake(fresh(), 0.1)
    save_adapter(earlier, tmp_path, Origin("org/tiny", tiny_llama, None), method="lora")
    model = fresh()
    go_on_as(model, tmp_path)
    assert max(measure_update(model).values()) == pytest.approx(0, abs=1e-6)
    found = measure_update(shake(model, 0.05))
    assert sorted(found) == ["layers.0", "layers.1"]
    old = dict(earlier.merge_and_unload().named_parameters())
    now = dict(model.merge_and_unload().named_parameters())
    base = dict(load(tiny_llama).named_parameters())
    for block, ratio in found.items():
        own = [name for name in base if f"{block}." in name and base[name].ndim == 2]
        changed = torch.cat([(now[name] - old[name]).flatten() for name in own]).norm()
        whole = torch.cat([base[name].flatten() for name in own]).norm()
        assert ratio == pytest.approx(float(changed / whole), rel=1e-3)


def test_a_new_head_is_no_weight_of_the_base(tiny_llama: Path) -> None:
    base = AutoModelForSequenceClassification.from_pretrained(tiny_llama, num_labels=3)
    head = shake(attach(base, HeadSection(method="head"), seed=1), 1.0)
    assert measure_update(head) == {}
    base = AutoModelForSequenceClassification.from_pretrained(tiny_llama, num_labels=3)
    top = shake(attach(base, TopSection(method="top", blocks=1), seed=1), 0.1)
    assert sorted(measure_update(top)) == ["layers.1", "outside"]
    assert measure_update(top)["outside"] < 0.5  # of the last norm alone


def test_the_update_of_trained_blocks_is_measured_in_place(tiny_llama: Path) -> None:
    model = shake(attach(load(tiny_llama), TopSection(method="top", blocks=1), seed=1), 0.1)
    found = measure_update(model)
    assert sorted(found) == ["layers.1", "outside"]  # the last norm is in no block
    base = dict(load(tiny_llama).named_parameters())
    now = {name: parameter.detach() for name, parameter in model.named_parameters()}
    own = [name for name in base if "layers.1." in name]
    changed = torch.cat([(now[name] - base[name]).flatten() for name in own]).norm()
    whole = torch.cat([base[name].flatten() for name in own]).norm()
    assert found["layers.1"] == pytest.approx(float(changed / whole), rel=1e-5)


@pytest.mark.parametrize("section", [SECTIONS[0], SECTIONS[2]], ids=["lora", "full"])
def test_the_divergence_is_that_of_row_by_row_softmax(tiny_llama: Path, section: Any) -> None:
    model = shake(attach(load(tiny_llama), section, seed=1), 0.05)
    total, count = 0.0, 0
    for example in examples():
        ids = torch.tensor(example.tokens[None].astype(np.int64))
        with torch.no_grad():
            after = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
            with base_only(model):
                before = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
        total += float((before.exp() * (before - after)).sum())
        count += len(before)
    found = measure_divergence(model, examples(), 0)
    assert found > 0
    assert found == pytest.approx(total / count, rel=1e-4)
