"""An adapter folder is whole or as it was: finite numbers, modes by the umask, no leftovers."""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from peftkit.adapters.attach import attach, trainable
from peftkit.adapters.store import load_adapter, save_adapter
from peftkit.base.locate import Origin
from peftkit.errors import RunError
from peftkit.recipe.sections.adapter import FullSection, LoraSection

METHODS = {"lora": LoraSection(rank=2), "full": FullSection(method="full")}
WEIGHTS = {"lora": "adapter_model.safetensors", "full": "delta.safetensors"}


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(tiny_llama: Path, method: str) -> Any:
    base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    base.requires_grad_(requires_grad=False)
    return attach(base, METHODS[method], seed=0)


@pytest.fixture
def origin(tiny_llama: Path) -> Origin:
    return Origin("base", tiny_llama, None)


@pytest.fixture
def umask() -> Iterator[None]:
    mask = os.umask(0o027)
    yield
    os.umask(mask)


@pytest.mark.usefixtures("umask")
def test_modes_follow_the_umask(model: Any, origin: Origin, method: str, tmp_path: Path) -> None:
    save_adapter(model, tmp_path / "adapter", origin, method=method)
    files = sorted((tmp_path / "adapter").iterdir())
    assert WEIGHTS[method] in [path.name for path in files]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o640}


def test_what_is_not_finite_is_not_saved(
    model: Any, origin: Origin, method: str, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    save_adapter(model, folder, origin, method=method)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    parameter = list(trainable(model).values())[-1]
    parameter.data.flatten()[0] = float("nan")
    with pytest.raises(RunError, match="holds numbers that are not finite"):
        save_adapter(model, folder, origin, method=method)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_it_replaces_another_whole(model: Any, origin: Origin, method: str, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    save_adapter(model, folder, origin, method=method)
    (folder / "README.md").write_text("of the old one")
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(1)
    save_adapter(model, folder, origin, method=method)
    assert not (folder / "README.md").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    saved = load_file(folder / WEIGHTS[method])
    assert len(saved) == len(trainable(model))
    assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == method.upper()


def test_saved_and_loaded_it_answers_the_same(
    model: Any, origin: Origin, method: str, tiny_llama: Path, tmp_path: Path
) -> None:
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(0.01)
    save_adapter(model, tmp_path / "adapter", origin, method=method)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    ids = torch.arange(6, 40)[None]
    with torch.inference_mode():
        expected = model.eval()(ids).logits
        assert not torch.equal(base(ids).logits, expected)
        assert torch.equal(load_adapter(base, tmp_path / "adapter")(ids).logits, expected)
