"""What peft writes as the configuration of a LoRA adapter, said without importing peft.

Its import takes several times as long as adding two adapters. A test holds this table to what the
installed peft writes; a later peft reads what is missing as its default.
"""

from __future__ import annotations

from importlib.metadata import version
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "peft_type": "LORA",
        "task_type": None,
        "auto_mapping": None,
        "base_model_name_or_path": None,
        "revision": None,
        "inference_mode": False,
        "r": 8,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "target_modules": None,
        "exclude_modules": None,
        "modules_to_save": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "fan_in_fan_out": False,
        "bias": "none",
        "lora_bias": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "use_bdlora": None,
        "use_qalora": False,
        "qalora_group_size": 16,
        "trainable_token_indices": None,
        "target_parameters": None,
        "ensure_weight_tying": False,
        "layer_replication": None,
        "alora_invocation_tokens": None,
        "loftq_config": {},
        "eva_config": None,
        "corda_config": None,
        "lora_ga_config": None,
        "arrow_config": None,
        "velora_config": None,
        "kasa_config": None,
        "monteclora_config": None,
        "megatron_config": None,
        "megatron_core": "megatron.core",
    }
)
"""All keys, and what each says where nobody says otherwise."""


def lora_config(**said: Any) -> dict[str, Any]:
    """The configuration of an adapter by key, as plain values.

    Args:
        said: what differs from peft's defaults, with names as sorted lists.
    """
    return {**DEFAULTS, "peft_version": version("peft"), **said}
