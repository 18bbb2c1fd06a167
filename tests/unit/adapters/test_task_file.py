"""An adapter on a model for another task: what both share is loaded, and nothing that is not so."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from peftkit.adapters.store import load_adapter
from peftkit.base.tasks import DOES
from peftkit.errors import InputError

WEIGHTS = "adapter_model.safetensors"
ON_TEXT: dict[str, peft.PeftConfig] = {
    "lora": peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "vera": peft.VeraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "left out": peft.LoraConfig(
        r=4,
        target_modules=["q_proj", "v_proj"],
        exclude_modules=["layers.0.self_attn.q_proj", "v_proj"],
        task_type="CAUSAL_LM",
    ),
}


def on_text(tiny_llama: Path, folder: Path, name: str = "lora") -> Path:
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    torch.manual_seed(0)
    model = peft.get_peft_model(base, ON_TEXT[name])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def classifier(tiny_llama: Path) -> Any:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(
        tiny_llama, num_labels=3, pad_token_id=0
    )
    setattr(model, DOES, {"task": "classification", "labels": ["a", "b", "c"]})
    return model


def add(folder: Path, more: Mapping[str, torch.Tensor]) -> None:
    save_file(load_file(folder / WEIGHTS) | dict(more), folder / WEIGHTS)


@pytest.mark.parametrize("name", ON_TEXT)
def test_what_was_trained_on_text_acts_under_a_head(
    tiny_llama: Path, tmp_path: Path, name: str
) -> None:
    folder = on_text(tiny_llama, tmp_path, name)
    loaded = load_adapter(classifier(tiny_llama), folder)
    found = loaded.get_base_model().model
    theirs = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_llama), str(folder)
    ).eval()
    ids = torch.arange(6, 30)[None]
    with torch.inference_mode():
        ours, wanted = found(ids)[0], theirs.get_base_model().model(ids)[0]
    torch.testing.assert_close(ours, wanted)
    if name == "left out":
        assert sum(isinstance(module, LoraLayer) for module in loaded.modules()) == 1


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.score.weight",
        "base_model.model.score.default.weight",
        "base_model.model.model.norm.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight",
        "base_model.score.weight",
        "base_model.vera_A",
        "model.norm.weight",
    ],
)
def test_what_would_overwrite_is_refused_under_another_task_too(
    tiny_llama: Path, tmp_path: Path, name: str
) -> None:
    folder = on_text(tiny_llama, tmp_path)
    add(folder, {name: torch.zeros(3, 32)})
    with pytest.raises(InputError) as refusal:
        load_adapter(classifier(tiny_llama), folder)
    assert [problem for problem in refusal.value.problems if f"`{name}`" in problem]


@pytest.mark.parametrize("name", ["lm_head.weight", "surprise.weight"])
def test_what_no_part_of_the_model_is_called_changes_nothing(
    tiny_llama: Path, tmp_path: Path, name: str
) -> None:
    folder = on_text(tiny_llama, tmp_path)
    honest = load_adapter(classifier(tiny_llama), folder).state_dict()
    add(folder, {f"base_model.model.{name}": torch.zeros(3, 32)})
    found = load_adapter(classifier(tiny_llama), folder).state_dict()
    assert found.keys() == honest.keys()
    assert all(torch.equal(found[key], honest[key]) for key in honest)
