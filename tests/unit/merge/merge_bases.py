"""Sizes of the tiny bases that adapters are merged on, and a text for them."""

import torch

IDS = torch.arange(24).reshape(2, 12)
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
}
