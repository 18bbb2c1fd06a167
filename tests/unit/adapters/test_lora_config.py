"""The configuration of LoRA without peft: the one that peft itself writes, byte for byte."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
from peft import LoraConfig

from peftkit.adapters.lora_config import DEFAULTS, lora_config

FEW: dict[str, Any] = {
    "task_type": "CAUSAL_LM",
    "r": 7,
    "lora_alpha": 7,
    "rank_pattern": {"b.q_proj": 3},
    "alpha_pattern": {"b.q_proj": 3},
    "target_modules": ["q_proj"],
    "fan_in_fan_out": True,
    "lora_bias": True,
    "trainable_token_indices": {"embed_tokens": [3, 5]},
    "inference_mode": True,
}


@pytest.mark.parametrize("said", [{}, FEW], ids=["nothing said", "much said"])
def test_it_is_what_peft_writes(said: dict[str, Any], tmp_path: Path) -> None:
    LoraConfig(**said).save_pretrained(str(tmp_path))
    written = (tmp_path / "adapter_config.json").read_text()
    assert json.dumps(lora_config(**said), indent=2, sort_keys=True) == written


def test_the_version_is_of_the_peft_that_is_installed() -> None:
    assert lora_config()["peft_version"] == peft.__version__


def test_no_two_configurations_share_what_was_said_of_one() -> None:
    lora_config(r=4)
    assert DEFAULTS["r"] == lora_config()["r"] == 8
