"""The keys an adapter_config.json may hold, one table a PEFT type, and what each may say.

An allow-list: a key that is not here is refused, because peft ignores unknown keys with a warning
and has acted on known ones (imports, downloads, regular expressions, whole layers) that an
adapter from a stranger must not decide. A key that peft writes but that must stay at its
harmless value has the rule `unset`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


Rule = Callable[[Any], str | None]
"""Says what was expected instead, or `None` when the value is fine."""
NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
PATTERN = re.compile(r"\^?[A-Za-z0-9_-]+(\\?\.[A-Za-z0-9_-]+)*")
MOST_NAMES = 10_000
LONGEST_NAME = 300
ALL_LINEAR = "all-linear"
TASKS = ("CAUSAL_LM", "SEQ_CLS", "SEQ_2_SEQ_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
HARMLESS_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights` that leave the base alone while peft loads the adapter."""


def config_problems(config: Mapping[str, Any]) -> list[str]:
    """Everything in `config` that its PEFT type does not allow, one sentence a problem."""
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in FIELDS:
        known = ", ".join(sorted(FIELDS))
        return [f"adapter_config.json: peft_type: expected one of {known}, found {_shown(kind)}"]
    rules = COMMON | FIELDS[kind]
    problems = []
    for key, value in config.items():
        if key not in rules:
            problems.append(f"adapter_config.json: {key[:80]}: not a key of {kind} adapters")
        elif (expected := rules[key](value)) is not None:
            problems.append(
                f"adapter_config.json: {key}: expected {expected}, found {_shown(value)}"
            )
    missing = [key for key in REQUIRED.get(kind, ()) if config.get(key) is None]
    problems += [f"adapter_config.json: {key}: required for {kind}" for key in missing]
    return problems + [
        f"adapter_config.json: {where}: only the person who loads a model may trust its code"
        for where in _trusting_keys(config)
    ]


def _trusting_keys(value: Any, where: str = "") -> Iterator[str]:
    """Where `trust_remote_code` stands, at any depth."""
    if isinstance(value, dict):
        for key, child in value.items():
            here = f"{where}.{key}" if where else str(key)
            if key == "trust_remote_code":
                yield here
            yield from _trusting_keys(child, here)
    elif isinstance(value, list):
        for child in value:
            yield from _trusting_keys(child, where)


def _shown(value: Any) -> str:
    text = repr(value)
    return f"`{text if len(text) <= 80 else text[:77] + '...'}`"


def _flag(value: Any) -> str | None:
    return None if value is None or isinstance(value, bool) else "true or false"


def _text(value: Any) -> str | None:
    short = isinstance(value, str) and len(value) <= 1000 and "\x00" not in value
    return None if value is None or short else "a short text or null"


def _whole(low: int, high: int) -> Rule:
    def rule(value: Any) -> str | None:
        fits = value is None or (type(value) is int and low <= value <= high)
        return None if fits else f"a whole number from {low} to {high}"

    return rule


def _number(low: float, high: float) -> Rule:
    def rule(value: Any) -> str | None:
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        fits = value is None or (plain and math.isfinite(value) and low <= value <= high)
        return None if fits else f"a finite number from {low:g} to {high:g}"

    return rule


def _one_of(*values: object) -> Rule:
    def rule(value: Any) -> str | None:
        fits = any(
            value is known or (type(value) is type(known) and value == known) for known in values
        )
        return None if fits else "one of " + ", ".join(repr(known) for known in values)

    return rule


def _unset(why: str, *also: object) -> Rule:
    """The key may stand there as peft writes it, and may not do anything."""

    def rule(value: Any) -> str | None:
        empty = value is None or value is False or value in ({}, []) or value in also
        return None if empty else f"null, because {why}"

    return rule


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST_NAME and bool(NAME.fullmatch(value))


def _names(value: Any) -> str | None:
    listed = isinstance(value, list) and len(value) <= MOST_NAMES and all(map(_is_name, value))
    return None if value is None or _is_name(value) or listed else "a list of plain module names"


def _targets(value: Any) -> str | None:
    if value is None or value == ALL_LINEAR:
        return None
    plain = value and _names(value) is None
    return None if plain else "a list of plain module names, no regular expression"


def _layers(value: Any) -> str | None:
    numbers = value if isinstance(value, list) else [value]
    fits = len(numbers) <= MOST_NAMES and all(
        type(n) is int and 0 <= n < MOST_NAMES for n in numbers
    )
    return None if value is None or fits else "a list of block numbers"


def _by_pattern(rule: Rule) -> Rule:
    """A mapping from plain names, which peft uses as regular expressions, to values."""

    def check(value: Any) -> str | None:
        if value is None or value == {}:
            return None
        if not isinstance(value, dict) or len(value) > MOST_NAMES:
            return "a mapping from module names to numbers"
        for key, child in value.items():
            if len(key) > LONGEST_NAME or not PATTERN.fullmatch(key):
                return "plain module names as keys, no regular expression"
            if child is None or rule(child) is not None:
                return f"{rule(math.nan)} for every name"
        return None

    return check


def _token_rows(value: Any) -> str | None:
    groups = list(value.values()) if isinstance(value, dict) else [value]
    named = not isinstance(value, dict) or all(map(_is_name, value))
    fits = named and all(
        isinstance(rows, list) and all(type(n) is int and 0 <= n < 10_000_000 for n in rows)
        for rows in groups
    )
    return None if value is None or fits else "a list of token ids"


def _plain_mapping(value: Any) -> str | None:
    plain = (str, int, float, bool, type(None))
    fits = isinstance(value, dict) and all(isinstance(child, plain) for child in value.values())
    return None if value is None or fits else "a flat mapping or null"


def _library(value: Any) -> str | None:
    """Where peft would import the class of the base from, which it notes without a task."""
    fits = value is None or (
        isinstance(value, dict)
        and value.keys() <= {"base_model_class", "parent_library"}
        and all(map(_is_name, value.values()))
        and re.match(r"transformers\.models\.", value.get("parent_library") or "") is not None
    )
    return None if fits else f"a class of transformers or null, because {_no_code}"


_rank = _whole(1, 65_536)
_alpha = _number(-1e6, 1e6)
_share = _number(0, 1)
_no_code = "it makes peft import code"
_not_checked = "peftkit cannot check adapters that use it"
_base_biases = _one_of("none", None)
"""Other values train biases of the base, which loading the adapter would overwrite."""

COMMON: dict[str, Rule] = {
    "peft_type": _text,
    "task_type": _one_of(None, *TASKS),
    "auto_mapping": _library,
    "peft_version": _text,
    "base_model_name_or_path": _text,
    "revision": _text,
    "inference_mode": _flag,
}

_MATCHING: dict[str, Rule] = {
    "target_modules": _targets,
    "exclude_modules": _names,
    "modules_to_save": _names,
}
_BLOCKS: dict[str, Rule] = {"layers_to_transform": _layers, "layers_pattern": _names}
_PROMPT: dict[str, Rule] = {
    "num_virtual_tokens": _whole(1, 100_000),
    "token_dim": _whole(1, 1_000_000),
    "num_transformer_submodules": _whole(1, 2),
    "num_attention_heads": _whole(1, 65_536),
    "num_layers": _whole(1, 10_000),
    "modules_to_save": _names,
}

_OWN: dict[str, Rule] = {"modules_to_save": _names}

FIELDS: dict[str, dict[str, Rule]] = {
    "LORA": {
        **_MATCHING,
        **_BLOCKS,
        "r": _rank,
        "lora_alpha": _alpha,
        "lora_dropout": _share,
        "fan_in_fan_out": _flag,
        "bias": _base_biases,
        "use_rslora": _flag,
        "use_dora": _flag,
        "lora_bias": _flag,
        "init_lora_weights": _one_of(*HARMLESS_STARTS),
        "rank_pattern": _by_pattern(_rank),
        "alpha_pattern": _by_pattern(_alpha),
        "trainable_token_indices": _token_rows,
        "ensure_weight_tying": _flag,
        "eva_config": _plain_mapping,
        "qalora_group_size": _whole(1, 65_536),
        "megatron_core": _one_of(None, "megatron.core"),
        "megatron_config": _unset(_no_code),
        "loftq_config": _unset("it rewrites the base while loading"),
        "corda_config": _unset("it rewrites the base while loading"),
        "lora_ga_config": _unset("it rewrites the base while loading"),
        "layer_replication": _unset("it rebuilds the base with other layers"),
        "alora_invocation_tokens": _unset(_not_checked),
        "target_parameters": _unset(_not_checked),
        "use_qalora": _unset(_not_checked),
        "use_bdlora": _unset(_not_checked),
        "arrow_config": _unset(_not_checked),
        "velora_config": _unset(_not_checked),
        "kasa_config": _unset(_not_checked),
        "monteclora_config": _unset(_not_checked),
    },
    "IA3": {
        **_MATCHING,
        "feedforward_modules": _names,
        "fan_in_fan_out": _flag,
        "init_ia3_weights": _flag,
    },
    "PREFIX_TUNING": {
        **_PROMPT,
        "encoder_hidden_size": _whole(1, 65_536),
        "prefix_projection": _flag,
        "init_weights": _one_of(None, "zero"),
    },
    "PROMPT_TUNING": {
        **_PROMPT,
        "prompt_tuning_init": _one_of(None, "RANDOM", "TEXT", "SAMPLE_VOCAB"),
        "prompt_tuning_init_text": _text,
        "tokenizer_name_or_path": _text,
        "tokenizer_kwargs": _unset("it decides how a tokenizer is downloaded"),
    },
    "P_TUNING": {
        **_PROMPT,
        "encoder_reparameterization_type": _one_of(None, "MLP", "LSTM"),
        "encoder_hidden_size": _whole(1, 65_536),
        "encoder_num_layers": _whole(1, 100),
        "encoder_dropout": _share,
    },
    "VERA": {
        "target_modules": _targets,
        "modules_to_save": _names,
        **_BLOCKS,
        "r": _rank,
        "projection_prng_key": _whole(0, 2**63),
        "save_projection": _one_of(True),
        "vera_dropout": _share,
        "d_initial": _number(-1e6, 1e6),
        "fan_in_fan_out": _flag,
        "bias": _base_biases,
        "init_weights": _flag,
    },
    "OFT": {
        **_MATCHING,
        **_BLOCKS,
        "r": _whole(0, 65_536),
        "oft_block_size": _whole(0, 65_536),
        "module_dropout": _share,
        "fan_in_fan_out": _flag,
        "bias": _base_biases,
        "init_weights": _flag,
        "coft": _flag,
        "eps": _number(0, 1),
        "block_share": _flag,
        "use_cayley_neumann": _flag,
        "num_cayley_neumann_terms": _whole(1, 100),
    },
    "LN_TUNING": {**_MATCHING},
    "BOTTLENECK": {
        **_MATCHING,
        **_BLOCKS,
        "bottleneck_size": _rank,
        "reduction_factor": _whole(1, 65_536),
        "non_linearity": _one_of("relu", "gelu", "silu", "swish", "tanh", "gelu_new"),
        "variant": _one_of("houlsby", "pfeiffer", "parallel"),
        "scaling": _number(-1e6, 1e6),
        "dropout": _share,
        "fan_in_fan_out": _flag,
        "init_weights": _flag,
    },
    "FULL": _OWN,
    "HEAD": _OWN,
    "BITFIT": _OWN,
    "LAYERNORM": _OWN,
    "TOP": _OWN,
}

REQUIRED: dict[str, tuple[str, ...]] = {
    "LORA": ("r", "lora_alpha", "target_modules"),
    "IA3": ("target_modules",),
    "VERA": ("r", "target_modules"),
    "OFT": ("target_modules",),
    "LN_TUNING": ("target_modules",),
    "BOTTLENECK": ("target_modules",),
    "PREFIX_TUNING": ("num_virtual_tokens", "token_dim", "num_layers"),
    "PROMPT_TUNING": ("num_virtual_tokens", "token_dim"),
    "P_TUNING": ("num_virtual_tokens", "token_dim"),
}
