"""The models that merges are measured on: random weights of a Llama's shape, and small changes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WIDTH, INNER, LAYERS, HEADS, VOCABULARY = 1024, 2816, 24, 16, 32_000
"""374 million parameters."""
SPREAD = 0.02
"""Of the base's weights."""
CHANGE = 0.01
"""Norm of what a fine-tune or an adapter changes, by that of the weights."""
RANK = 16
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of the model by name."""
    yield "model.embed_tokens.weight", (VOCABULARY, WIDTH)
    yield "lm_head.weight", (VOCABULARY, WIDTH)
    yield "model.norm.weight", (WIDTH,)
    for place in range(LAYERS):
        here = f"model.layers.{place}"
        for name in "qkvo":
            yield f"{here}.self_attn.{name}_proj.weight", (WIDTH, WIDTH)
        yield f"{here}.mlp.gate_proj.weight", (INNER, WIDTH)
        yield f"{here}.mlp.up_proj.weight", (INNER, WIDTH)
        yield f"{here}.mlp.down_proj.weight", (WIDTH, INNER)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{here}.{name}.weight", (WIDTH,)


def write_models(folder: Path, tuned: int) -> list[Path]:
    """The base and some fine-tunes of it, in bfloat16."""
    draws = [torch.Generator().manual_seed(seed) for seed in range(tuned + 1)]
    contents: list[dict[str, torch.Tensor]] = [{} for _ in draws]
    for name, shape in shapes():
        base = torch.randn(shape, generator=draws[0]) * SPREAD
        contents[0][name] = base.bfloat16()
        for draw, content in zip(draws[1:], contents[1:], strict=True):
            change = torch.randn(shape, generator=draw) * SPREAD * CHANGE
            content[name] = (contents[0][name].float() + change).bfloat16()
    folders = [folder / name for name in ("base", "one", "two", "three")[: tuned + 1]]
    for place, content in zip(folders, contents, strict=True):
        place.mkdir(parents=True)
        save_file(content, place / "model.safetensors", {"format": "pt"})
        (place / "config.json").write_text(json.dumps(CONFIG, indent=2))
    return folders


def write_adapters(folder: Path, base: Path, count: int) -> list[Path]:
    """LoRA adapters of every linear layer of the base, as peft writes them."""
    folders = [folder / f"adapter-{place}" for place in range(count)]
    for seed, place in enumerate(folders):
        draw = torch.Generator().manual_seed(100 + seed)
        tensors = {}
        for name, shape in shapes():
            if "_proj" not in name:
                continue
            up = torch.randn(shape[0], RANK, generator=draw)
            down = torch.randn(RANK, shape[1], generator=draw)
            size = SPREAD * CHANGE * RANK**-0.5  # so that the product has the size of a change
            here = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{here}.lora_A.weight"] = down * size**0.5
            tensors[f"{here}.lora_B.weight"] = up * size**0.5
        place.mkdir(parents=True)
        save_file(tensors, place / "adapter_model.safetensors", {"format": "pt"})
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": str(base),
            "r": RANK,
            "lora_alpha": RANK,
            "lora_dropout": 0.0,
            "target_modules": sorted({n.split(".")[-2] for n, _ in shapes() if "_proj" in n}),
            "fan_in_fan_out": False,
            "bias": "none",
            "inference_mode": True,
        }
        (place / "adapter_config.json").write_text(json.dumps(config, indent=2))
    return folders
