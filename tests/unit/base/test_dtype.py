"""The base is held in its own number format where the machine is fast in it, else in float32."""

import pytest
import torch
from transformers import LlamaConfig

from peftkit.base import dtype
from peftkit.base.dtype import WIDTH, choose_dtype, measure_gain
from peftkit.recipe.sections.base import BaseSection

CPU = torch.device("cpu")
AUTO = BaseSection(model="a")


def config(own: str | None, width: int = WIDTH) -> LlamaConfig:
    return LlamaConfig(hidden_size=width, dtype=own)


def test_what_the_recipe_names_is_taken() -> None:
    for name in ("float32", "bfloat16", "float16"):
        section = BaseSection(model="a", dtype=name)
        assert choose_dtype(section, CPU, config("float32"))[0] == name


@pytest.mark.parametrize(
    ("own", "gain", "chosen"),
    [
        ("bfloat16", 4.0, "bfloat16"),
        ("bfloat16", 1.2, "float32"),
        ("float32", 4.0, "float32"),
        ("float16", 4.0, "float32"),
        (None, 4.0, "float32"),
    ],
)
def test_on_a_cpu_it_is_measured(
    own: str | None, gain: float, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dtype, "measure_gain", lambda _width: gain)
    name, why = choose_dtype(AUTO, CPU, config(own))
    assert name == chosen
    assert own != "bfloat16" or f"{gain:.1f} ×" in why


def test_a_narrow_base_stays_in_float32() -> None:
    name, why = choose_dtype(AUTO, CPU, config("bfloat16", WIDTH - 64))
    assert (name, "at a width of 192" in why) == ("float32", True)


def test_weights_that_train_are_never_rounded() -> None:
    assert choose_dtype(AUTO, CPU, config("bfloat16"), frozen=False)[0] == "float32"


def test_the_probe_measures_this_machine_and_leaves_its_threads_alone() -> None:
    before = torch.get_num_threads()
    gain = measure_gain(64)
    assert 0.001 < gain < 1000
    assert measure_gain(64) == gain  # once a process
    assert torch.get_num_threads() == before
