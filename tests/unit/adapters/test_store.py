"""A saved adapter is whole, and the one that was trained: for us and for peft, bit for bit."""

import copy
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config

from peftkit.adapters.attach import attach, base_only, trainable
from peftkit.adapters.store import add_adapter, load_adapter, save_adapter
from peftkit.base.locate import Origin
from peftkit.errors import InputError, RunError, WriteError
from peftkit.recipe.sections.adapter import FullSection, LoraSection

IDS = torch.arange(24).reshape(2, 12)
FAMILIES = ("llama", "gpt2")
SECTIONS = {
    "all": LoraSection(rank=4),
    "upper half": LoraSection(rank=3, alpha=7.0, layers="upper-half", dropout=0.1),
    "full": FullSection(method="full"),
}
WEIGHTS = {"all": "adapter_model.safetensors", "full": "delta.safetensors"}


def build(family: str, folder: Path) -> Any:
    """A frozen base, as `load_base` gives it."""
    if family == "llama":
        model = AutoModelForCausalLM.from_pretrained(folder)
    else:
        config = GPT2Config(
            vocab_size=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config)
    return model.requires_grad_(requires_grad=False).eval()


def trained(base: Any, name: str, *, seed: int = 0) -> Any:
    """The base with an adapter whose every number has moved."""
    model = attach(base, SECTIONS[name], seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def save(model: Any, name: str, folder: Path) -> None:
    origin = Origin("org/tiny", folder.parent, "0123abc")
    save_adapter(model, folder, origin, method=SECTIONS[name].method)


def config_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "adapter_config.json").read_text()))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(IDS).logits.clone()  # type: ignore[no-any-return]


@pytest.fixture
def umask() -> Iterator[None]:
    mask = os.umask(0o027)
    yield
    os.umask(mask)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SECTIONS)
def test_what_was_saved_is_what_is_loaded(
    family: str, name: str, tiny_llama: Path, tmp_path: Path
) -> None:
    model = trained(build(family, tiny_llama), name)
    save(model, name, tmp_path / "adapter")
    fresh = build(family, tiny_llama)
    assert not torch.equal(logits(fresh), logits(model))
    loaded = load_adapter(fresh, tmp_path / "adapter")
    assert not loaded.training
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["all", "upper half"])
def test_what_was_saved_is_what_peft_loads(
    family: str, name: str, tiny_llama: Path, tmp_path: Path
) -> None:
    model = trained(build(family, tiny_llama), name)
    save(model, name, tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(build(family, tiny_llama), str(tmp_path / "adapter"))
    assert torch.equal(logits(theirs), logits(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_folder_has_the_layout_of_peft(
    family: str, tiny_llama: Path, tmp_path: Path
) -> None:
    model = trained(build(family, tiny_llama), "all")
    folder = tmp_path / "adapter"
    save(model, "all", folder)
    assert contents(folder).keys() == {"adapter_config.json", "adapter_model.safetensors"}
    config = config_of(folder)
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 8.0)
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/tiny", "0123abc")
    assert config["inference_mode"] is True
    assert config["task_type"] == "CAUSAL_LM"
    assert config["fan_in_fan_out"] is (family == "gpt2")
    tensors = load_file(folder / "adapter_model.safetensors")
    own = {name.replace(".default", ""): p for name, p in trainable(model).items()}
    assert tensors.keys() == own.keys()
    assert all(torch.equal(tensors[name], own[name]) for name in own)


def test_a_full_one_holds_every_parameter_under_its_own_name(
    tiny_llama: Path, tmp_path: Path
) -> None:
    model = trained(build("llama", tiny_llama), "full")
    folder = tmp_path / "adapter"
    save(model, "full", folder)
    assert contents(folder).keys() == {"adapter_config.json", "delta.safetensors"}
    config = config_of(folder)
    assert config["peft_type"] == "FULL"
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/tiny", "0123abc")
    tensors = load_file(folder / "delta.safetensors")
    own = dict(model.named_parameters())
    assert tensors.keys() == own.keys()
    assert all(torch.equal(tensors[name], own[name]) for name in own)


def test_tied_weights_are_saved_once_and_loaded_tied(tiny_llama: Path, tmp_path: Path) -> None:
    """GPT-2's head is its embedding."""
    model = trained(build("gpt2", tiny_llama), "full")
    save(model, "full", tmp_path / "adapter")
    assert "lm_head.weight" not in load_file(tmp_path / "adapter" / "delta.safetensors")
    loaded = load_adapter(build("gpt2", tiny_llama), tmp_path / "adapter")
    embedding = loaded.get_input_embeddings().weight
    assert loaded.get_output_embeddings().weight is embedding
    assert torch.equal(embedding, model.get_input_embeddings().weight)


def test_saving_again_replaces_the_whole_folder(tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    save(trained(build("llama", tiny_llama), "full"), "full", folder)
    (folder / "README.md").write_text("of the old one")
    second = trained(build("llama", tiny_llama), "all", seed=1)
    save(second, "all", folder)
    assert contents(folder).keys() == {"adapter_config.json", "adapter_model.safetensors"}
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert torch.equal(logits(load_adapter(build("llama", tiny_llama), folder)), logits(second))


@pytest.mark.parametrize("name", WEIGHTS)
def test_what_is_not_finite_is_not_saved(name: str, tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    model = trained(build("llama", tiny_llama), name)
    save(model, name, folder)
    before = contents(folder)
    parameter = list(trainable(model).values())[-1]
    parameter.data.flatten()[0] = float("nan")
    with pytest.raises(RunError, match="holds numbers that are not finite"):
        save(model, name, folder)
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_where_nothing_can_be_written_the_reason_is_told(tiny_llama: Path, tmp_path: Path) -> None:
    """A file stands in the way, for root too."""
    (tmp_path / "file").write_text("")
    model = trained(build("llama", tiny_llama), "all")
    with pytest.raises(WriteError) as refusal:
        save(model, "all", tmp_path / "file" / "adapter")
    assert refusal.value.exit_code == 74
    assert contents(tmp_path) == {"file": b""}


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("name", WEIGHTS)
def test_modes_follow_the_umask(name: str, tiny_llama: Path, tmp_path: Path) -> None:
    """safetensors makes files for their owner only."""
    save(trained(build("llama", tiny_llama), name), name, tmp_path / "adapter")
    files = list((tmp_path / "adapter").iterdir())
    assert len(files) == 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o640}


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_on_top_of_each_other_add_up(
    family: str, tiny_llama: Path, tmp_path: Path
) -> None:
    expected = build(family, tiny_llama)
    plain = {key: p.clone() for key, p in expected.named_parameters()}
    for seed, name in enumerate(("all", "upper half")):
        model = trained(build(family, tiny_llama), name, seed=seed)
        save(model, name, tmp_path / name)
        merged = dict(model.merge_and_unload().named_parameters())
        with torch.no_grad():
            for key, parameter in expected.named_parameters():
                parameter.add_(merged[key] - plain[key])
    base = build(family, tiny_llama)
    alone = logits(base)
    both = add_adapter(load_adapter(base, tmp_path / "all"), tmp_path / "upper half", 1)
    torch.testing.assert_close(logits(both), logits(expected), rtol=1e-4, atol=1e-4)
    with base_only(both):
        assert torch.equal(logits(both), alone)


def test_nothing_can_be_added_to_a_changed_base(tiny_llama: Path, tmp_path: Path) -> None:
    for name in WEIGHTS:
        save(trained(build("llama", tiny_llama), name), name, tmp_path / name)
    changed = load_adapter(build("llama", tiny_llama), tmp_path / "full")
    with pytest.raises(InputError, match="cannot be added"):
        add_adapter(changed, tmp_path / "all", 1)


@pytest.mark.parametrize("name", WEIGHTS)
def test_an_adapter_for_another_base_is_refused(
    name: str, tiny_llama: Path, tmp_path: Path
) -> None:
    save(trained(build("llama", tiny_llama), name), name, tmp_path / "adapter")
    other = build("gpt2", tiny_llama)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(InputError) as refusal:
        load_adapter(other, tmp_path / "adapter")
    assert refusal.value.exit_code == 65
    assert other.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in other.state_dict().items())


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("damage", ["cut", "not finite", "gone"])
def test_damaged_weights_do_not_reach_the_base(
    name: str, damage: str, tiny_llama: Path, tmp_path: Path
) -> None:
    save(trained(build("llama", tiny_llama), name), name, tmp_path / "adapter")
    path = tmp_path / "adapter" / WEIGHTS[name]
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-4])
    elif damage == "gone":
        path.unlink()
    else:
        tensors = load_file(path)
        next(iter(tensors.values())).view(-1)[0] = float("nan")
        save_file(tensors, path)
    base = build("llama", tiny_llama)
    before = logits(base)
    with pytest.raises(InputError) as refusal:
        load_adapter(base, tmp_path / "adapter")
    assert refusal.value.exit_code == 65
    assert torch.equal(logits(base), before)
