"""An adapter folder, of anyone, as a `Delta`: checked first, then read by what each kind means.

Whoever wants the numbers of an adapter has to know its kind: IA3's identity is 1, DoRA's change
depends on the base, a prefix has no opposite, and what peft saves of a head is not a change at all.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from peftkit.adapters.expected import OWN_TYPES, PROMPT_TYPES, TOKEN_ROWS
from peftkit.adapters.folders import digest_of, find_adapter, read_note
from peftkit.adapters.module_tensors import PREFIX, alpha_of, ends_in, rank_of
from peftkit.adapters.task_file import read_task
from peftkit.adapters.verify import CONFIG_FILE, DELTA_FILE, WEIGHTS_FILE, verify_adapter
from peftkit.base.locate import digest
from peftkit.errors import InputError, RecipeError
from peftkit.merge.base_weights import nearest, open_base
from peftkit.merge.delta import Delta
from peftkit.merge.joining import Term
from peftkit.merge.layer_kinds import layer_kinds, name_as_loaded
from peftkit.merge.low_rank import LowRank
from peftkit.merge.other_changes import Network, Scaling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

    from peftkit.merge.base_weights import BaseWeights

    Config = Mapping[str, Any]
    Reader = Callable[["Source"], dict[str, Any]]

WHY_NOT = {
    "OFT": "it turns the base's weights, and turns do not add up",
    **dict.fromkeys(
        PROMPT_TYPES,
        "it puts virtual tokens before the text, which work through attention's softmax: they have "
        "no opposite, and two of them side by side are not their sum",
    ),
}
"""Kinds that are no vector, and the reason."""
NETWORK_SETTINGS = ("non_linearity", "variant", "scaling")


OF_KEPT = ("modules_to_save", "trainable_token_indices")
"""Keys of a configuration without which heads and rows of new tokens mean nothing."""


class Source:
    """An adapter's configuration and tensors, and its base where one is asked for."""

    def __init__(self, folder: Path, config: Config, base: str | None) -> None:
        self.folder = folder
        self.config = config
        own = config["peft_type"] in OWN_TYPES
        self.tensors = load_file(folder / (DELTA_FILE if own else WEIGHTS_FILE))
        self._named = base or config.get("base_model_name_or_path")
        self._opened: BaseWeights | None = None

    def of_base(self, parameter: str, why: str) -> Tensor:
        """A weight of the base, in float64.

        Raises:
            RecipeError: the base is not known, or not there.
        """
        if self._opened is None:
            if not self._named:
                raise RecipeError(f"{why} needs the base", hint="say where it is: `--base DIR`")
            try:
                self._opened = open_base(self._named)
            except RecipeError as problem:
                raise RecipeError(
                    f"{why} needs the base: {problem.message}",
                    hint="say where it is: `--base DIR`",
                ) from None
        return self._opened.read(parameter).double()

    @cached_property
    def layers(self) -> dict[str, str]:
        """How the weights of the base lie, once one of them was read."""
        return {} if self._opened is None else layer_kinds(self._opened.origin)

    def modules(self, ending: str) -> Iterator[str]:
        """Modules that have a tensor with this end of its name."""
        for name in self.tensors:
            if name.endswith(ending):
                yield name.removeprefix(PREFIX).removesuffix(ending)

    def tensor(self, module: str, ending: str) -> Tensor:
        """One tensor of a module, in float64."""
        return self.tensors[f"{PREFIX}{module}{ending}"].double()


def load_delta(path: str, base: str | None = None) -> Delta:
    """What the adapter, or the fine-tuned model, at `path` changes; see `Delta.load`."""
    folder = Path(path).expanduser()
    whole = (folder / "config.json").exists() and not (folder / CONFIG_FILE).exists()
    if whole and not (folder / "adapter").exists():
        return _load_tuned(folder, base)
    folder = find_adapter(path)
    verify_adapter(folder, base=base)
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    kind = config["peft_type"]
    if kind in WHY_NOT:
        raise InputError(
            f"`{path}` is an adapter of kind {kind}, which cannot be a term of a sum: "
            f"{WHY_NOT[kind]}",
            hint="use it beside the base: `peftkit generate ADAPTER` does",
        )
    source = Source(folder, config, base)
    parts = READERS[kind](source)
    name = folder.parent.name if folder.name == "adapter" else folder.name
    facts = {
        "base": config.get("base_model_name_or_path"),
        "revision": config.get("revision"),
        "task_type": config.get("task_type"),
        **{key: config.get(key) for key in OF_KEPT},
        "task": read_task(folder),
        "under": [note] if (note := read_note(folder)) else [],
        "folder": folder if config.get("trainable_token_indices") else None,
    }
    return Delta(**parts, kept=_kept(source), facts=facts, terms=(Term(name, digest_of(folder)),))


def _read_lora(source: Source) -> dict[str, Any]:
    low, dense, layers = {}, {}, {}
    for module in source.modules(".lora_A.weight"):
        change = _factors(source, module, (".lora_A.weight", ".lora_B.weight"), "linear")
        if source.config.get("use_dora"):
            dense[f"{module}.weight"] = _dora(source, module, change)
            layers[module] = source.layers.get(module, change.layer)
        else:
            low[module] = change
    for module in source.modules(".lora_embedding_A"):
        endings = (".lora_embedding_A", ".lora_embedding_B")
        low[module] = _factors(source, module, endings, "embedding")
    for module in source.modules(".lora_B.bias"):
        dense[f"{module}.bias"] = source.tensor(module, ".lora_B.bias") * _scale(source, module)
    return {"low": low, "dense": dense, "layers": layers}


def _factors(source: Source, module: str, endings: tuple[str, str], layer: str) -> LowRank:
    if layer == "linear" and source.config.get("fan_in_fan_out"):
        layer = "conv1d"
    down, up = (source.tensor(module, ending) for ending in endings)
    return LowRank(up * _scale(source, module), down, layer)


def _scale(source: Source, module: str) -> float:
    """What peft multiplies the product of the factors by."""
    config = source.config
    rank, alpha = rank_of(config, module), alpha_of(config, module)
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _dora(source: Source, module: str, change: LowRank) -> Tensor:
    """Each output's weights get the length that was learned for them, whatever the factors say."""
    weight = source.of_base(f"{module}.weight", "an adapter with DoRA")
    turned = source.layers.get(module, change.layer) == "conv1d"
    upright = weight.T if turned else weight
    moved = upright + change.up @ change.down
    lengths = source.tensor(module, ".lora_magnitude_vector")
    found: Tensor = moved * (lengths / moved.norm(dim=1))[:, None] - upright
    return found.T if turned else found


def _read_ia3(source: Source) -> dict[str, Any]:
    inner, turned = (source.config.get(key) for key in ("feedforward_modules", "fan_in_fan_out"))
    scalings = {}
    for module in source.modules(".ia3_l"):
        values = source.tensor(module, ".ia3_l").flatten() - 1
        scalings[module] = Scaling(values, ends_in(module, inner), bool(turned))
    return {"scalings": scalings}


def _read_vera(source: Source) -> dict[str, Any]:
    shared = {end: source.tensors[f"base_model.vera_{end}"].double() for end in "AB"}
    low = {}
    for module in source.modules(".vera_lambda_b"):
        outputs = source.tensor(module, ".vera_lambda_b")
        ranks = source.tensor(module, ".vera_lambda_d")
        weight = source.of_base(f"{module}.weight", "an adapter of kind VERA")
        given = "conv1d" if source.config.get("fan_in_fan_out") else "linear"
        turned = source.layers.get(module, given) == "conv1d"
        inputs = weight.shape[0] if turned else weight.shape[1]
        low[module] = LowRank(
            outputs[:, None] * shared["B"][: len(outputs), : len(ranks)],
            ranks[:, None] * shared["A"][: len(ranks), :inputs],
            "conv1d" if turned else "linear",
        )
    return {"low": low}


def _read_bottleneck(source: Source) -> dict[str, Any]:
    settings = tuple((name, source.config.get(name)) for name in NETWORK_SETTINGS)
    factor = float(source.config.get("scaling", 1.0))
    kinds = tuple((name, value) for name, value in settings if name != "scaling")
    networks = {
        module: Network(
            source.tensor(module, ".bottleneck_down.weight"),
            source.tensor(module, ".bottleneck_down.bias"),
            source.tensor(module, ".bottleneck_up.weight") * factor,
            source.tensor(module, ".bottleneck_up.bias") * factor,
            kinds,
        )
        for module in source.modules(".bottleneck_down.weight")
    }
    return {"networks": networks}


def _read_norms(source: Source) -> dict[str, Any]:
    dense = {}
    for kind in ("weight", "bias"):
        ending = f".ln_tuning_layers.{kind}"
        for module in source.modules(ending):
            parameter = f"{module}.{kind}"
            before = source.of_base(parameter, "an adapter of kind LN_TUNING")
            dense[parameter] = source.tensor(module, ending) - before
    return {"dense": dense}


def _read_changed(source: Source) -> dict[str, Any]:
    """Methods that train parameters of the base: what they are now, less what they were."""
    kind = source.config["peft_type"]
    heads = source.config.get("modules_to_save") or ()
    dense = {
        name: value.double() - source.of_base(name, f"an adapter of kind {kind}")
        for name, value in source.tensors.items()
        if not _of_head(name, heads)
    }
    return {"dense": dense, "layers": source.layers}


READERS: dict[str, Reader] = {
    "LORA": _read_lora,
    "IA3": _read_ia3,
    "VERA": _read_vera,
    "BOTTLENECK": _read_bottleneck,
    "LN_TUNING": _read_norms,
    **dict.fromkeys(OWN_TYPES, _read_changed),
}
"""What reads each kind of adapter."""


def _kept(source: Source) -> dict[str, Tensor]:
    """Heads and rows of new tokens: they are what they are, and no change of anything."""
    heads = source.config.get("modules_to_save") or ()
    return {
        name: tensor
        for name, tensor in source.tensors.items()
        if name.endswith(TOKEN_ROWS) or _of_head(name, heads)
    }


def _of_head(name: str, heads: list[str] | tuple[str, ...]) -> bool:
    module = name.removeprefix(PREFIX).rpartition(".")[0]
    return any(f".{head}." in f".{module}." for head in heads)


def _kind_of(tensor: str, layers: Mapping[str, str]) -> str:
    near = nearest(tensor.removesuffix(".weight"), layers)
    return "tied" if near is None else layers[near]


def _load_tuned(folder: Path, base: str | None) -> Delta:
    """A fine-tuned model less its base."""
    if base is None:
        raise RecipeError(
            f"`{folder}` is a whole model: what it changes is only known beside its base",
            hint="say where that is: `--base DIR`",
        )
    tuned, plain = open_base(str(folder)), open_base(base)
    layers = layer_kinds(plain.origin)
    found = {plain.find(name) for name in tuned.names}
    called = name_as_loaded(tuned.names, layers)
    dense, strange = (
        {},
        [
            f"`{name}`: missing, and the base has it"
            for name in plain.names
            if name not in found and _kind_of(name, layers) != "tied"
        ],
    )
    for name in tuned.names:
        after, before = tuned.read(name), plain.read(name)
        if after.shape != before.shape:
            strange.append(f"`{name}`: {tuple(after.shape)}, in the base {tuple(before.shape)}")
            continue
        if after.is_floating_point() and not torch.equal(after, before):
            dense[called[name]] = after.double() - before.double()
    if strange:
        raise InputError(f"`{folder}` is no fine-tune of `{base}`", problems=strange[:9])
    term = Term(folder.name, digest(tuned.origin))
    facts = {"base": plain.origin.name, "revision": plain.origin.commit, "task_type": None}
    return Delta(dense=dense, layers=layers, facts=facts, terms=(term,))
