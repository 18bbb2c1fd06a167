"""Which tensors an adapter's configuration implies, and of which shapes on a given base.

peft loads whatever the file holds: a tensor too many overwrites the base, one too few leaves a
layer at its random start. So the set is worked out here, from the configuration and, where it is
known, the base's own layers. A size that only the base knows is `None` without one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from peftkit.adapters.config_fields import ALL_LINEAR
from peftkit.adapters.module_tensors import PREFIX, Alone, Shape, ends_in, tensors_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    Config = Mapping[str, Any]

BLOCK = re.compile(r"\.(\d+)\.")


OWN_TYPES = ("FULL", "HEAD", "BITFIT", "LAYERNORM", "TOP")
"""Not peft's: `delta.safetensors` holds the parameters that changed, under the base's own names."""
PROMPT_TYPES = ("PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING")
BEFORE_THE_TEXT = "base_model."
"""What names begin with where nothing is wrapped around the model's own layers."""
TOKEN_ROWS = ".token_adapter.trainable_tokens_delta"
SUFFIXES = {
    "LORA": (
        ".lora_A.weight",
        ".lora_B.weight",
        ".lora_B.bias",
        ".lora_magnitude_vector",
        ".lora_embedding_A",
        ".lora_embedding_B",
    ),
    "IA3": (".ia3_l",),
    "VERA": (".vera_lambda_b", ".vera_lambda_d"),
    "OFT": (".oft_R.weight",),
    "LN_TUNING": (".ln_tuning_layers.weight", ".ln_tuning_layers.bias"),
    "BOTTLENECK": (
        ".bottleneck_down.weight",
        ".bottleneck_down.bias",
        ".bottleneck_up.weight",
        ".bottleneck_up.bias",
    ),
}
"""How the tensors of each type are named behind the module that they adapt."""


@dataclass(slots=True)
class Expected:
    """What the file must hold, what it may hold, and what already cannot be right."""

    required: dict[str, Shape] = field(default_factory=dict)
    optional: dict[str, Shape] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def expected_tensors(
    config: Config,
    present: Mapping[str, tuple[int, ...]],
    base: Mapping[str, tuple[int, ...]] | None,
) -> Expected:
    """The tensors that `config` implies.

    Args:
        config: an adapter_config.json whose fields have been checked.
        present: shapes of the tensors that the file holds.
        base: weight shape of each of the base's modules, or `None` while there is no base.
    """
    expected = Expected()
    kind = config["peft_type"]
    if base is not None and kind not in OWN_TYPES:  # peft's adapters go on layers
        base = {name: shape for name, shape in base.items() if not isinstance(shape, Alone)}
    if kind in OWN_TYPES:
        _whole_parameters(expected, config, present, base)
        return expected
    if kind in PROMPT_TYPES:
        _prompt(expected, config, base)
    else:
        _per_module(expected, config, present, base)
    _saved_modules(expected, config, present, base)
    _token_rows(expected, config, present, base)
    return expected


def matches(config: Config, module: str) -> bool:
    """Whether peft would adapt `module`: the same rules as its own, for plain names."""
    if ends_in(module, config.get("exclude_modules")) or _is_saved(config, module):
        return False
    targets = config["target_modules"]
    if targets == ALL_LINEAR:
        return True
    if isinstance(targets, str):
        return module == targets
    return ends_in(module, targets) and _in_layers(config, module)


def _listed(names: Collection[str] | str | None) -> list[str]:
    return [names] if isinstance(names, str) else list(names or ())


def _is_saved(config: Config, module: str) -> bool:
    around = f".{module}."
    return any(f".{name}." in around for name in _listed(config.get("modules_to_save")))


def _in_layers(config: Config, module: str) -> bool:
    wanted = config.get("layers_to_transform")
    if wanted is None or wanted == []:
        return True
    patterns = _listed(config.get("layers_pattern")) or [r"[^.]*"]
    for pattern in patterns:
        found = re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module)
        if found:
            return int(found[1]) in (wanted if isinstance(wanted, list) else [wanted])
    return False


def _adapted(
    config: Config, present: Iterable[str], base: Mapping[str, tuple[int, ...]] | None
) -> list[str]:
    """Modules that carry the adapter: by the base's layers, or by the tensors' own names."""
    kind = config["peft_type"]
    if base is not None and config["target_modules"] != ALL_LINEAR:
        names = _with_parents(base) if kind == "BOTTLENECK" else base
        return [module for module in names if matches(config, module)]
    endings = SUFFIXES[kind]
    named = {
        name[len(PREFIX) : -len(ending)]: None
        for name in present
        for ending in endings
        if name.startswith(PREFIX) and name.endswith(ending)
    }
    return [
        module for module in named if matches(config, module) and (base is None or module in base)
    ]


def _with_parents(base: Iterable[str]) -> list[str]:
    """Every module, and every module around it: a bottleneck may sit on a whole block."""
    found: dict[str, None] = {}
    for module in base:
        parts = module.split(".")
        found |= {".".join(parts[:depth]): None for depth in range(1, len(parts) + 1)}
    return list(found)


def _per_module(
    expected: Expected,
    config: Config,
    present: Mapping[str, tuple[int, ...]],
    base: Mapping[str, tuple[int, ...]] | None,
) -> None:
    kind = config["peft_type"]
    modules = _adapted(config, present, base)
    if not modules:
        where = "the base" if base is not None else "the file"
        expected.problems.append(f"target_modules: nothing in {where} has one of these names")
    for module in modules:
        shape = base.get(module) if base is not None else None
        if shape is not None and len(shape) != (1 if kind == "LN_TUNING" else 2):
            expected.problems.append(f"target_modules: `{module}` cannot be adapted: {shape}")
            continue
        for ending, size in tensors_of(config, module, shape, present).items():
            expected.required[f"{PREFIX}{module}{ending}"] = size
    if kind == "VERA":
        expected.required["base_model.vera_A"] = (config["r"], None)
        expected.required["base_model.vera_B"] = (None, config["r"])


def _prompt(expected: Expected, config: Config, base: Mapping[str, tuple[int, ...]] | None) -> None:
    rows, width = config["num_virtual_tokens"], config["token_dim"]
    parts = config["peft_type"] == "PREFIX_TUNING"  # heads may share keys, and layers be fused
    sizes = {size for shape in (base or {}).values() for size in shape}
    if base is not None and not any(
        size % width == 0 if parts else size == width for size in sizes
    ):
        expected.problems.append(f"token_dim: no layer of the base is {width} wide")
    if parts:
        numbers = [int(found[1]) for name in base or () if (found := BLOCK.search(f"{name}."))]
        if numbers and config["num_layers"] != max(numbers) + 1:
            expected.problems.append(f"num_layers: the base has {max(numbers) + 1} blocks")
        width *= 2 * config["num_layers"]
    else:
        rows *= config.get("num_transformer_submodules") or 1
    expected.required["prompt_embeddings"] = (rows, width)


def _whole_parameters(
    expected: Expected,
    config: Config,
    present: Mapping[str, tuple[int, ...]],
    base: Mapping[str, tuple[int, ...]] | None,
) -> None:
    """Our own `delta.safetensors`: tensors are named like the base's, and must be the base's."""
    method = config["peft_type"]
    if not present:
        expected.problems.append("delta.safetensors: holds no tensors")
    for name, size in present.items():
        module, _, kind = name.removeprefix(PREFIX).rpartition(".")
        saved = _is_saved(config, module)
        if not saved and not _may_train(method, module, kind, size):
            continue
        if base is None:
            expected.optional[name] = size
        elif name in base:
            expected.optional[name] = base[name]
        elif module in base and kind in ("weight", "bias"):
            shape = base[module]
            either = shape[-1] if size == shape[-1:] else shape[0]  # GPT-2's layers lie transposed
            expected.optional[name] = shape if kind == "weight" else (either,)
    layers = {name: size for name, size in (base or {}).items() if not isinstance(size, Alone)}
    if method in ("LAYERNORM", "TOP"):
        expected.required |= _left_out(method, present, layers)
    expected.required |= {
        f"{module}.weight": size for module, size in layers.items() if _is_saved(config, module)
    }


def _may_train(method: str, module: str, kind: str, size: tuple[int, ...]) -> bool:
    """Whether a method trains parameters of this kind: only those of a few may be matrices."""
    match method:
        case "BITFIT":
            return kind == "bias" and len(size) == 1
        case "LAYERNORM":
            return len(size) == 1
        case "TOP":
            return len(size) == 1 or BLOCK.search(f"{module}.") is not None
        case _:
            return True


def _left_out(
    method: str, present: Mapping[str, tuple[int, ...]], base: Mapping[str, tuple[int, ...]]
) -> dict[str, Shape]:
    """Weights that such a file cannot lack: of each norm, or from its lowest block upwards."""
    if method == "LAYERNORM":
        return {f"{module}.weight": size for module, size in base.items() if len(size) == 1}
    numbers = {module: BLOCK.search(f"{module}.") for module in base}
    places = {m: (m[: match.start()], int(match[1])) for m, match in numbers.items() if match}
    named = {name.rpartition(".")[0] for name in present}
    lowest: dict[
        str, int
    ] = {}  # of each list of blocks: an encoder may have one, a decoder another
    for stack, number in (place for module, place in places.items() if module in named):
        lowest[stack] = min(number, lowest.get(stack, number))
    return {
        f"{module}.weight": base[module]
        for module, (stack, number) in places.items()
        if stack in lowest and number >= lowest[stack]
    }


def _saved_modules(
    expected: Expected,
    config: Config,
    present: Mapping[str, tuple[int, ...]],
    base: Mapping[str, tuple[int, ...]] | None,
) -> None:
    """Whole modules that the adapter brings along, such as a classification head."""
    around = BEFORE_THE_TEXT if config["peft_type"] in PROMPT_TYPES else PREFIX
    for name in present:
        module, _, kind = name.removeprefix(around).rpartition(".")
        if name.startswith(around) and kind in ("weight", "bias") and _is_saved(config, module):
            expected.optional[name] = (None,) * len(present[name])
    for module, shape in (base or {}).items():
        if _is_saved(config, module):
            expected.required[f"{around}{module}.weight"] = shape
            expected.optional[f"{around}{module}.bias"] = (shape[0],)


def _token_rows(
    expected: Expected,
    config: Config,
    present: Mapping[str, tuple[int, ...]],
    base: Mapping[str, tuple[int, ...]] | None,
) -> None:
    """Single rows of the embedding that were trained, such as those of new tokens."""
    wanted = config.get("trainable_token_indices")
    if not wanted:
        return
    named = [name for name in present if name.endswith(TOKEN_ROWS) and name.startswith(PREFIX)]
    if not named:
        expected.problems.append("trainable_token_indices: the file holds no trained token rows")
    for name in named:
        module = name[len(PREFIX) : -len(TOKEN_ROWS)]
        if isinstance(wanted, dict) and not ends_in(module, list(wanted)):
            continue
        rows = next(iter(wanted.values())) if isinstance(wanted, dict) else wanted
        vocabulary, width = (base or {}).get(module, (None, None))
        expected.optional[name] = (len(rows), width)
        if vocabulary is not None and max(rows) >= vocabulary:
            expected.problems.append(f"trainable_token_indices: the base has {vocabulary} tokens")
