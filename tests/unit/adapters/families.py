"""Tiny random models of many families, for every task that each can do."""

from typing import Any

import numpy as np
import torch
from transformers import AutoConfig

from peftkit.base.tasks import NEW_HEAD, model_class, note_task, settle_config
from peftkit.data.example import Example
from peftkit.data.task import Task

WIDTH, VOCABULARY = 32, 64
LABELS = ("cold", "hot", "mild")
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
DECODER = SIZES | GROUPED
ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": DECODER,
    "qwen2": DECODER,
    "qwen3": DECODER,
    "mistral": DECODER | {"sliding_window": 8},
    "gemma": DECODER,
    "phi": {k: v for k, v in DECODER.items() if k != "head_dim"} | {"num_key_value_heads": 4},
    "gpt2": {
        "n_embd": WIDTH,
        "n_layer": 2,
        "n_head": 4,
        "vocab_size": VOCABULARY,
        "n_positions": 64,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "opt": {
        **{k: v for k, v in DECODER.items() if k not in ("intermediate_size", "head_dim")},
        "ffn_dim": 48,
        "word_embed_proj_dim": WIDTH,
        "dropout": 0.0,
    },
    "bloom": {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "n_layer": 2,
        "n_head": 4,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    },
    "falcon": {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    },
    "mixtral": DECODER | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": DECODER | EXPERTS | {"shared_expert_intermediate_size": 24},
    "bert": ENCODER,
    "roberta": ENCODER | {"max_position_embeddings": 66},
    "modernbert": {
        **{k: v for k, v in ENCODER.items() if "dropout" not in k},
        "bos_token_id": 1,
        "eos_token_id": 2,
        "cls_token_id": 1,
        "sep_token_id": 2,
    },
    "deberta-v2": ENCODER | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "t5": {
        "vocab_size": VOCABULARY,
        "d_model": WIDTH,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": 4,
        "dropout_rate": 0.0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    },
}
DECODERS = tuple(list(FAMILIES)[:12])
ENCODERS = ("bert", "roberta", "modernbert", "deberta-v2")
TASKS_OF = {
    **dict.fromkeys(DECODERS, ("causal-lm", "classification", "regression", "embedding")),
    **dict.fromkeys(
        ENCODERS,
        (
            *("masked-lm", "classification", "multi-label", "token-classification"),
            *("regression", "embedding"),
        ),
    ),
    "t5": ("seq2seq", "classification", "token-classification"),
}


def build(family: str, task: str = "causal-lm", **changes: Any) -> Any:
    """A frozen base of random weights for a task, as `load_base` gives it."""
    config = AutoConfig.for_model(family, **FAMILIES[family] | changes)
    labels = LABELS if task in NEW_HEAD and task != "regression" else ()
    settle_config(config, task, labels, 0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(task).from_config(config)
    note_task(model, task, labels)
    return model.requires_grad_(requires_grad=False).eval()


def task_called(name: str, *, typed: bool = False) -> Task:
    """The task with the labels that `build` gave its head."""
    labels = LABELS if name in NEW_HEAD and name != "regression" else ()
    return Task(name, labels, mask_id=3, vocabulary=VOCABULARY, typed=typed)


def write_rows(task: str, count: int = 4, seed: int = 0) -> list[Example]:
    """Rows of random tokens with goals of the task."""
    random = np.random.default_rng(seed)
    return [_write_row(task, number, random) for number in range(count)]


def _write_row(task: str, number: int, random: np.random.Generator) -> Example:
    size = int(random.integers(6, 12))
    tokens = random.integers(4, VOCABULARY, size).astype(np.int32)
    trained = np.zeros(size, np.bool_)
    if task in ("causal-lm", "masked-lm"):
        trained[1:] = True
    elif task == "seq2seq":
        trained[4:] = True
    elif task == "token-classification":
        trained[[1, 3]] = True
    more = _goal(task, number, size)
    if not trained.any():  # a decision a row; T5 looks for the token that closes it
        trained[-1], tokens[-1] = True, 1
    return Example(tokens, trained, f"made:{number}", f"{number:064x}", str(number), **more)


def _goal(task: str, number: int, size: int) -> dict[str, Any]:
    """What a row of a task has beside its tokens."""
    goals: dict[str, dict[str, Any]] = {
        "seq2seq": {"prompt_tokens": 4, "parts": (4, size - 4), "answer": "x"},
        "classification": {"labels": (LABELS[number % 3],)},
        "multi-label": {"labels": LABELS[: number % 3]},
        "regression": {"labels": (str(number / 2),)},
        "token-classification": {"labels": (LABELS[number % 3], LABELS[(number + 1) % 3])},
        "embedding": {"parts": (3, size - 3), "answer": str(number)},
    }
    return goals.get(task, {})
