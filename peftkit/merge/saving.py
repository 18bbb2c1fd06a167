"""A `Delta` as an adapter folder that vanilla peft loads, with what it was made of beside it."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from peftkit.adapters.expected import TOKEN_ROWS
from peftkit.adapters.lora_config import lora_config
from peftkit.adapters.module_tensors import PREFIX
from peftkit.adapters.task_file import PLAIN, TASK_FILE
from peftkit.adapters.verify import CONFIG_FILE, WEIGHTS_FILE, verify_adapter
from peftkit.adapters.weights_file import write_weights
from peftkit.disk.durable import whole_folder
from peftkit.disk.replacing import refuse_to_replace
from peftkit.errors import InputError
from peftkit.merge.joining import tokenizer_files
from peftkit.merge.model_files import MERGE_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from peftkit.merge.delta import Delta
    from peftkit.merge.other_changes import Network

    Written = tuple[dict[str, Tensor], dict[str, Any]]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ROUNDED = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 1e-2}
"""Share of a tensor that may be rounded away; of what it can hold float32 rounds 6e-8."""
ROOM = 1_048_576
"""Bytes for names, configuration and `merge.json`."""


def save_delta(
    delta: Delta,
    folder: str,
    *,
    dtype: torch.dtype = torch.float32,
    note: Mapping[str, Any] | None = None,
) -> None:
    """Write the adapter; see `Delta.save`.

    Args:
        delta: what it is to do.
        folder: where to.
        dtype: of its numbers.
        note: what `merge.json` says besides.
    """
    exact = delta if delta.error.layers else delta.compress()
    kept, config = prepare(exact, dtype)
    refuse_to_replace(Path(folder), MERGE_FILE)
    needed = sum(w.numel() * w.itemsize for w in kept.values()) + ROOM
    with whole_folder(Path(folder), needed) as building:
        write_weights(kept, building / WEIGHTS_FILE, {"format": "pt"})
        said = json.dumps(config, indent=2, sort_keys=True)  # as peft writes it
        (building / CONFIG_FILE).write_text(said, encoding="utf-8")
        if (task := exact.facts.get("task")) and task != PLAIN:
            (building / TASK_FILE).write_text(json.dumps(task, indent=2) + "\n", encoding="utf-8")
        text = json.dumps({**describe(exact), **(note or {})}, indent=2) + "\n"
        (building / MERGE_FILE).write_text(text, encoding="utf-8")
        for path in _tokenizer_of(exact):
            shutil.copyfile(path, building / path.name)
        verify_adapter(building)


def prepare(delta: Delta, dtype: torch.dtype) -> Written:
    """The tensors as they will be saved, and peft's configuration of them.

    Raises:
        InputError: what is left is nothing, or no adapter of one kind, or would be rounded away.
    """
    weights, config = _contents_of(delta)
    weights |= delta.kept
    config["base_model_name_or_path"] = delta.facts.get("base")
    config["revision"] = delta.facts.get("revision")
    config["inference_mode"] = True
    _name_kept(delta, config)
    _sort_names(config)
    return {name: _stored(name, tensor, dtype) for name, tensor in weights.items()}, config


def _stored(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in the numbers of a file.

    Raises:
        InputError: they have no digits for what is so small, and it would be saved as nothing.
    """
    found = tensor.to(dtype)
    if float((found - tensor).norm()) > ROUNDED[dtype] * float(tensor.norm()):
        module = name.removeprefix(PREFIX).partition(".lora_")[0]
        raise InputError(
            f"`{name}` is too small for the numbers of a file: it would be saved as nothing",
            hint=f"multiply the change by more, or leave it out: `--without '{module}'`",
        )
    return found


def _tokenizer_of(delta: Delta) -> list[Path]:
    """The files that say which tokens the rows of new tokens are for."""
    if not any(name.endswith(TOKEN_ROWS) for name in delta.kept):
        return []
    return tokenizer_files(delta.facts["folder"])


def _sort_names(config: dict[str, Any]) -> None:
    """Put in one order what peft keeps in sets, or the same merge gives other bytes each time."""
    for key in ("target_modules", "feedforward_modules"):
        if isinstance(names := config.get(key), set):
            config[key] = sorted(names)


def _name_kept(delta: Delta, config: dict[str, Any]) -> None:
    """Say in the configuration which heads and which tokens the file brings, or peft ignores them.

    Raises:
        InputError: an adapter of this kind has no place for rows of tokens.
    """
    around = [f".{name.removeprefix(PREFIX)}" for name in delta.kept]
    saved = delta.facts.get("modules_to_save") or ()
    brought = [n for n in saved if any(f".{n}." in each for each in around)]
    config["modules_to_save"] = brought or None
    if any(name.endswith(TOKEN_ROWS) for name in delta.kept):
        if "trainable_token_indices" not in config:
            raise InputError("only a low-rank adapter can bring rows of new tokens")
        config["trainable_token_indices"] = delta.facts["trainable_token_indices"]


def missing_under(delta: Delta) -> list[dict[str, str]]:
    """The adapters that terms were trained above and that are no terms themselves."""
    digests = {term.digest for term in delta.terms}
    return [note for note in delta.facts.get("under", ()) if note["sha256"] not in digests]


def describe(delta: Delta) -> dict[str, Any]:
    """What `merge.json` says."""
    return {
        "base": delta.facts.get("base"),
        "revision": delta.facts.get("revision"),
        "terms": [
            {"name": each.name, "digest": each.digest, "weight": each.weight}
            for each in delta.terms
        ],
        "trained_above": missing_under(delta),
        "ranks": {name: change.rank for name, change in delta.low.items()},
        "error": {"relative": delta.error.relative, "layers": dict(delta.error.layers)},
    }


def _contents_of(delta: Delta) -> Written:
    """The tensors and peft's configuration of them.

    Raises:
        InputError: what is left is nothing, or no adapter of one kind.
    """
    kinds = [name for name in KINDS if getattr(delta, name)]
    if kinds != ["low"]:
        _refuse_whole([name for name, change in delta.dense.items() if bool(change.any())])
    if not kinds and delta.kept:
        raise InputError(
            f"only `{next(iter(delta.kept))}` is left, which is no change of the base",
            hint="that part is in the adapter that brought it",
        )
    if not kinds:
        raise InputError(
            "nothing is left to save: the terms cancel in every layer (rank 0)",
            hint="look at the formula: it adds up to the base itself",
        )
    if len(kinds) > 1:
        raise InputError(
            f"it changes the base in {len(kinds)} ways ({', '.join(map(KINDS.get, kinds))}), "  # type: ignore[arg-type]
            "and an adapter file holds one",
            hint="leave out what is not needed, e.g. `--without '*norm*'`",
        )
    return WRITERS[kinds[0]](delta)


def _lora(delta: Delta) -> Written:
    weights: dict[str, Tensor] = {}
    biases = _biases(delta)
    for name, change in delta.low.items():
        here = f"{PREFIX}{name}"
        embedding = change.layer == "embedding"
        ends = ("embedding_A", "embedding_B") if embedding else ("A.weight", "B.weight")
        weights[f"{here}.lora_{ends[0]}"] = change.down
        weights[f"{here}.lora_{ends[1]}"] = change.up
        if biases and not embedding:
            nothing = torch.zeros(change.shape[0])
            weights[f"{here}.lora_B.bias"] = biases.get(name, nothing)
    ranks = {name: change.rank for name, change in delta.low.items()}
    usual = Counter(ranks.values()).most_common(1)[0][0]
    others = _unusual(ranks, usual)
    config = lora_config(
        task_type=delta.facts.get("task_type"),
        r=usual,
        lora_alpha=usual,  # so that the product of the factors is the change
        rank_pattern=dict(others),
        alpha_pattern=dict(others),
        target_modules=sorted(ranks),
        fan_in_fan_out=any(change.layer == "conv1d" for change in delta.low.values()),
        lora_bias=bool(biases),
    )
    return weights, config


def _unusual(ranks: Mapping[str, int], usual: int) -> dict[str, int]:
    """Ranks by module as peft looks them up: the first name that a module ends in counts."""
    odd = [name for name, rank in ranks.items() if rank != usual]
    hit = [n for n in ranks if any(n == name or n.endswith(f".{name}") for name in odd)]
    return {name: ranks[name] for name in sorted(hit, key=len, reverse=True)}


def _biases(delta: Delta) -> dict[str, Tensor]:
    """Biases of the updates, by module.

    Raises:
        InputError: other whole parameters change as well.
    """
    found = {name.removesuffix(".bias"): value for name, value in delta.dense.items()}
    _refuse_whole([name for name in delta.dense if name.removesuffix(".bias") not in delta.low])
    if found and (embedding := [n for n, c in delta.low.items() if c.layer == "embedding"]):
        raise InputError(
            f"`{embedding[0]}` is an embedding, and others have biases: peft takes no two of these",
            hint="`--without '*.bias'` leaves the biases out",
        )
    return found


def _refuse_whole(strange: list[str]) -> None:
    if strange:
        raise InputError(
            f"`{strange[0]}` changes as a whole, and {len(strange) - 1} more: LoRA has no place "
            "for it",
            hint="`--rank 16` makes factors of matrices; `--without PATTERN` leaves out the rest",
        )


def _ia3(delta: Delta) -> Written:
    from peft import IA3Config  # takes seconds, which only merges of this kind shall wait for

    weights, inner = {}, []
    for name, change in delta.scalings.items():
        numbers = change.values + 1
        shape = (1, -1) if change.inputs else (-1, 1)
        weights[f"{PREFIX}{name}.ia3_l"] = numbers.reshape(shape)
        if change.inputs:
            inner.append(name)
    config = IA3Config(
        task_type=delta.facts.get("task_type"),
        target_modules=list(delta.scalings),
        feedforward_modules=inner,
        fan_in_fan_out=any(change.turned for change in delta.scalings.values()),
    )
    return weights, config.to_dict()


def _bottleneck(delta: Delta) -> Written:
    """One size for all, as the configuration has one: units that do nothing fill up the rest."""
    from peftkit.adapters.bottleneck import BottleneckConfig  # imports peft

    size = max(network.size for network in delta.networks.values())
    weights: dict[str, Tensor] = {}
    for name, network in delta.networks.items():
        here = f"{PREFIX}{name}.bottleneck"
        weights |= {f"{here}_{end}": tensor for end, tensor in _filled(network, size).items()}
    (settings,) = {network.settings for network in delta.networks.values()}
    config = BottleneckConfig(
        task_type=delta.facts.get("task_type"),
        bottleneck_size=size,
        target_modules=list(delta.networks),
        **dict(settings),  # type: ignore[arg-type]  # as they were read
    )
    return weights, config.to_dict()


def _filled(network: Network, size: int) -> dict[str, Tensor]:
    more = size - network.size
    return {
        "down.weight": torch.nn.functional.pad(network.down, (0, 0, 0, more)),
        "down.bias": torch.nn.functional.pad(network.down_bias, (0, more)),
        "up.weight": torch.nn.functional.pad(network.up, (0, more)),
        "up.bias": network.up_bias,
    }


KINDS: Mapping[str, str] = {
    "low": "low-rank updates",
    "scalings": "scaled inputs and outputs",
    "networks": "networks",
}
WRITERS: Mapping[str, Callable[[Delta], Written]] = {
    "low": _lora,
    "scalings": _ia3,
    "networks": _bottleneck,
}
"""What writes each kind of change."""
