"""What a folder holds is loaded whole and frozen, or refused with the reason."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from peftkit.base.load import Base, load_base, load_tokenizer, shape_of, stop_ids
from peftkit.base.locate import Origin
from peftkit.errors import InputError
from peftkit.recipe.sections.base import BaseSection

CPU = torch.device("cpu")


@pytest.fixture
def base(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "base"))


def load(folder: Path, *, seed: int = 0, **section: str) -> Base:
    return load_base(BaseSection(model=str(folder), **section), device=CPU, seed=seed)  # type: ignore[arg-type]


def refused(folder: Path, **section: str) -> str:
    with pytest.raises(InputError) as refusal:
        load(folder, **section)
    assert refusal.value.exit_code == 65
    assert str(folder) in refusal.value.message
    assert "\n" not in refusal.value.message
    return refusal.value.message


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_base_is_what_transformers_loads_and_frozen(tiny_llama: Path) -> None:
    base = load(tiny_llama)
    assert equal(weights(base.model), weights(AutoModelForCausalLM.from_pretrained(tiny_llama)))
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert not base.model.training
    assert base.model.dtype == torch.float32
    assert base.pad_id == 0
    assert base.window == 512
    assert (
        base.tokenizer("ab")["input_ids"]
        == AutoTokenizer.from_pretrained(tiny_llama)("ab")["input_ids"]
    )


def test_the_embedded_base_loads() -> None:
    base = load_base(BaseSection(model="builtin:tiny"), device=CPU)
    assert base.window == 1024
    assert stop_ids(base.origin, base.tokenizer) == {base.tokenizer.eos_token_id}
    turns = [{"role": "user", "content": "hi"}]
    prompt = base.tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"]
    assert torch.isfinite(base.model(torch.tensor([prompt])).logits).all()


def test_random_weights_keep_the_shape_and_follow_the_seed(tiny_llama: Path) -> None:
    state = torch.random.get_rng_state()
    pretrained, first = (
        weights(load(tiny_llama).model),
        weights(load(tiny_llama, weights="random", seed=7).model),
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert {n: t.shape for n, t in first.items()} == {n: t.shape for n, t in pretrained.items()}
    assert not equal(first, pretrained)
    assert equal(first, weights(load(tiny_llama, weights="random", seed=7).model))
    assert not equal(first, weights(load(tiny_llama, weights="random", seed=8).model))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["pretrained", "random"])
def test_weights_have_the_number_format_asked_for(tiny_llama: Path, dtype: str, kind: str) -> None:
    base = load(tiny_llama, dtype=dtype, weights=kind)
    assert {str(p.dtype) for p in base.model.parameters()} == {f"torch.{dtype}"}


def test_a_missing_tensor_is_refused(base: Path) -> None:
    """transformers would fill the gap with random numbers."""
    path = base / "model.safetensors"
    tensors = load_file(path)
    for name in ("model.norm.weight", "lm_head.weight"):
        del tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})
    message = refused(base)
    assert "lacks 2 tensors of its own model, e.g. `lm_head.weight`" in message


def test_a_tensor_of_another_size_is_refused(base: Path) -> None:
    path = base / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] = torch.ones(16)
    save_file(tensors, path, metadata={"format": "pt"})
    assert "cannot be loaded" in refused(base)


@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(base: Path, number: float) -> None:
    path = base / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = number
    save_file(tensors, path, metadata={"format": "pt"})
    assert "not finite, e.g. in `model.layers.1.mlp.up_proj.weight`" in refused(base)


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_damaged_weights_are_refused(base: Path, damage: str) -> None:
    path = base / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes({"cut": content[:-100], "garbage": b"garbage" * 99, "empty": b""}[damage])
    assert "cannot be loaded" in refused(base)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"model_type": "none-such"}, "names no model this version of transformers knows"),
        ({"model_type": None}, "names no model this version of transformers knows"),
        ({"hidden_size": "wide"}, "makes no model"),
        ({"hidden_size": 33}, "makes no model"),
    ],
)
@pytest.mark.parametrize("kind", ["pretrained", "random"])
def test_a_config_that_makes_no_model_is_refused(
    base: Path, values: dict[str, Any], reason: str, kind: str
) -> None:
    change(base / "config.json", **values)
    assert reason in refused(base, weights=kind)


def test_a_base_without_a_tokenizer_is_refused(base: Path) -> None:
    (base / "tokenizer.json").unlink()
    assert "has no tokenizer that can be read" in refused(base)


@pytest.mark.parametrize("content", ["{", "{}", "[]", ""])
def test_a_damaged_tokenizer_is_refused(base: Path, content: str) -> None:
    (base / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match="has no tokenizer that can be read"):
        load_tokenizer(Origin("base", base, None))


def test_planning_takes_no_memory_for_weights(tiny_llama: Path) -> None:
    section = BaseSection(model=str(tiny_llama))
    model = shape_of(section, Origin("base", tiny_llama, None))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    real = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny_llama))
    assert [p.shape for p in model.parameters()] == [p.shape for p in real.parameters()]


@pytest.mark.parametrize(
    ("listed", "stops"), [(None, {2}), (5, {2, 5}), ([5, 6], {2, 5, 6}), ([2], {2}), ([], {2})]
)
def test_answers_end_where_tokenizer_or_folder_say(
    base: Path, listed: Any, stops: set[int]
) -> None:
    origin = Origin("base", base, None)
    tokenizer = load_tokenizer(origin)
    change(base / "generation_config.json", eos_token_id=listed)
    assert stop_ids(origin, tokenizer) == stops
    tokenizer.eos_token = None
    assert stop_ids(origin, tokenizer) == stops - (
        {2} if listed in (None, 5, [5, 6], []) else set()
    )


def test_without_a_word_from_the_folder_the_tokenizer_decides(base: Path) -> None:
    origin = Origin("base", base, None)
    (base / "generation_config.json").unlink()
    assert stop_ids(origin, load_tokenizer(origin)) == {2}


@pytest.mark.parametrize("content", ["{", "[2]"])
def test_damaged_words_about_generation_are_refused(base: Path, content: str) -> None:
    origin = Origin("base", base, None)
    (base / "generation_config.json").write_text(content)
    with pytest.raises(InputError, match=r"generation_config\.json"):
        stop_ids(origin, load_tokenizer(origin))


def test_a_pad_id_is_found_wherever_there_is_one(tiny_llama: Path) -> None:
    base = load(tiny_llama)
    assert base.pad_id == base.tokenizer.pad_token_id
    base.tokenizer.pad_token = None
    assert base.pad_id == base.tokenizer.eos_token_id == 2
    base.tokenizer.eos_token = None
    assert base.pad_id == 0
