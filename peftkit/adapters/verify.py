"""Decides whether an adapter folder from anyone may reach peft, before peft sees any of it.

peft 0.21 loads what it finds: tensors named like base weights silently overwrite the base,
missing ones leave random layers, `NaN` is a number, and `target_modules` may be a regular
expression that never ends. So the configuration is read first, then the header of the weights,
then both are compared with the base, and only an adapter in which all of that fits has its
numbers read. What no check on loading can find is a backdoor trained into good-looking weights:
know where an adapter comes from.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open

from peftkit.adapters.config_fields import config_problems
from peftkit.adapters.expected import OWN_TYPES, expected_tensors
from peftkit.adapters.module_tensors import Alone, Shape, Turned, Upright
from peftkit.disk.digest import sha256_of
from peftkit.disk.weights_header import (
    FLOAT_BYTES,
    DamagedFileError,
    TensorEntry,
    parse_json,
    read_header,
)
from peftkit.errors import InputError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
DELTA_FILE = "delta.safetensors"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MADE_FOR = f"{CONFIG_FILE}: base_model_name_or_path: made for"
LONGEST_CONFIG = 1024 * 1024
MOST_EXAMPLES = 5
OWN_PARTS = (
    "lora_",
    "ia3_",
    "vera_",
    "oft_",
    "ln_tuning_",
    "bottleneck_",
    "token_adapter",
    "modules_to_save",
)
"""How the parts that an adapter adds to a model begin."""
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
TIED_COPY = (
    "a copy that `ensure_weight_tying` made of another tensor, and that would overwrite the weight "
    "of a base that ties nothing; ask for one saved without it"
)
ADAPTER_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """What a verified adapter is, in plain values."""

    peft_type: str
    rank: int | None
    targets: tuple[str, ...]
    base: str | None
    """The base that the adapter names: a hub id, `builtin:tiny` or a folder."""
    revision: str | None
    tensors: int
    bytes: int
    sha256: str
    """Digest of the weights file."""


def verify_adapter(
    folder: Path,
    model_shapes: Mapping[str, tuple[int, ...]] | None = None,
    *,
    base: str | None = None,
    unused: Collection[str] = (),
) -> AdapterFacts:
    """Check everything in `folder` that a loader would act on.

    Args:
        folder: holds adapter_config.json and adapter_model.safetensors.
        model_shapes: weight shape of each module of the base, as `module_shapes` reads them off
            a model; without it the adapter is only checked in itself.
        base: name of the base it is about to be put on, when that is to be compared too.
        unused: tensors that nobody will read, because they are of the head of another task.

    Raises:
        InputError: the adapter must not be loaded; all reasons at once.
    """
    found = _read(folder)
    problems = list(found.problems)
    if found.config is not None:
        problems += config_problems(found.config)
        named = found.config.get("base_model_name_or_path")
        problems += other_base(named, base) if base is not None else []
    if found.config is not None and not problems:
        entries = {name: each for name, each in found.entries.items() if name not in unused}
        problems += _tensor_problems(found.config, entries, _by_module(model_shapes))
    if not problems:
        problems += _several("holds numbers that are not finite", _not_finite(found.weights))
    if found.config is None or problems:
        raise _refused(folder, problems, found.config)
    return _facts(found.config, found)


def module_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Weight shape of every module of a base, whatever is wrapped around its layers.

    The sizes of a linear layer are read off the layer, because a 4-bit weight is stored packed.
    """
    from transformers.pytorch_utils import Conv1D  # there is a model, so it is imported already

    shapes: dict[str, tuple[int, ...]] = {}
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    for name, module in plain.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, torch.Tensor) or _part_of_adapter(name):
            continue
        clean = name.replace(".base_layer", "").replace(".original_module", "")
        if isinstance(module, torch.nn.Linear):
            shapes[clean] = Upright((module.out_features, module.in_features))
        elif isinstance(module, Conv1D):
            shapes[clean] = Turned(weight.shape)
        else:
            shapes[clean] = tuple(weight.shape)
    for name, parameter in plain.named_parameters():
        clean = name.replace(".base_layer", "").replace(".original_module", "")
        owner, _, kind = clean.rpartition(".")
        if not _part_of_adapter(name) and (kind not in ("weight", "bias") or owner not in shapes):
            shapes[clean] = Alone(parameter.shape)
    return shapes


def check_adapter_name(name: str) -> str:
    """The name, when it can name a folder: peft would follow `/` out of the run's own.

    Raises:
        RecipeError: it holds anything but lower case letters, digits, `-` and `_`.
    """
    if ADAPTER_NAME.fullmatch(name):
        return name
    raise RecipeError(
        f"`{name}` cannot name an adapter: expected at most 64 of a-z, 0-9, - and _",
        hint="name it like `--adapter chat=PATH`",
    )


def _by_module(
    shapes: Mapping[str, tuple[int, ...]] | None,
) -> dict[str, tuple[int, ...]] | None:
    """The shapes by module, also where they came by parameter, as `q_proj.weight`."""
    if shapes is None:
        return None
    return {
        name.removesuffix(".weight"): shape
        for name, shape in shapes.items()
        if (isinstance(shape, Alone) or not name.endswith(".bias")) and not _part_of_adapter(name)
    }


@dataclass(slots=True)
class _Found:
    """What could be read of an adapter folder, and what was wrong with it."""

    weights: Path
    config: dict[str, Any] | None = None
    entries: dict[str, TensorEntry] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def _read(folder: Path) -> _Found:
    if not folder.is_dir():
        raise InputError(
            f"no adapter at `{folder}`", hint="name a folder that holds adapter_config.json"
        )
    found = _Found(folder / WEIGHTS_FILE)
    found.problems += [f"{name}: a link that leaves the folder" for name in links_out(folder)]
    if found.problems:
        return found
    try:
        found.config = _read_config(folder / CONFIG_FILE)
        own = found.config.get("peft_type") in OWN_TYPES
        found.weights = folder / (DELTA_FILE if own else WEIGHTS_FILE)
    except DamagedFileError as error:
        found.problems.append(str(error))
    try:
        found.entries = _read_weights(folder, found.weights)
    except DamagedFileError as error:
        found.problems.append(str(error))
    return found


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DamagedFileError(f"{CONFIG_FILE}: missing")
    if path.stat().st_size > LONGEST_CONFIG:
        raise DamagedFileError(f"{CONFIG_FILE}: longer than {LONGEST_CONFIG:,} bytes")
    return parse_json(path.read_bytes(), CONFIG_FILE)


def _read_weights(folder: Path, weights: Path) -> dict[str, TensorEntry]:
    if weights.is_file():
        return read_header(weights)
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
    if not pickled:
        raise DamagedFileError(f"{weights.name}: missing")
    raise InputError(
        f"`{folder}` holds pickled weights, which can run code when they are read",
        problems=[f"{name}: expected {weights.name}" for name in pickled],
        hint=(
            "ask for a safetensors copy, or, if you trust the file, convert it in a sandbox: "
            "`PeftModel.from_pretrained(base, folder).save_pretrained(new_folder)`"
        ),
    )


def links_out(folder: Path) -> list[str]:
    """Links that end outside; those of the hub's own cache, into its blobs, do not count."""
    inside = folder.resolve()
    blobs = inside.parent.parent / "blobs" if inside.parent.name == "snapshots" else inside
    return [
        path.name
        for path in sorted(folder.iterdir())
        if path.is_symlink()
        and not (path.resolve().is_relative_to(inside) or path.resolve().parent == blobs)
    ]


def other_base(named: Any, base: str) -> list[str]:
    """Why the adapter is not for `base`, where both are names that can be compared.

    One model lies on a hub under several owners, so the owner's part of a name does not count.
    """
    if not all(_is_public_name(name) for name in (named, base)):
        return []
    if named.rpartition("/")[2].lower() == base.rpartition("/")[2].lower():
        return []
    return [f"{MADE_FOR} `{named}`, not for `{base}`"]


def _is_public_name(name: Any) -> bool:
    pattern = r"builtin:\w+|[\w-][\w.-]{0,95}(/[\w-][\w.-]{0,95})?"
    return bool(isinstance(name, str) and re.fullmatch(pattern, name) and not Path(name).exists())


def _tensor_problems(
    config: dict[str, Any],
    entries: dict[str, TensorEntry],
    base: Mapping[str, tuple[int, ...]] | None,
) -> Iterator[str]:
    present = {name: entry.shape for name, entry in entries.items()}
    expected = expected_tensors(config, present, base)
    yield from expected.problems
    known = expected.optional | expected.required
    extra = [name for name in present if name not in known]
    like_base = [name for name in extra if _named_like_base(name)]
    if config.get("ensure_weight_tying"):
        copies = [name for name in like_base if name.endswith(("lm_head.weight", *EMBEDDINGS))]
        yield from _several(TIED_COPY, copies)
        like_base = [name for name in like_base if name not in copies]
        extra = [name for name in extra if name not in copies]
    yield from _several("is named like a base weight and would overwrite it", like_base)
    yield from _several(
        "does not belong to the adapter", (name for name in extra if name not in like_base)
    )
    yield from _several("missing", (name for name in expected.required if name not in present))
    yield from _several(
        "expected floating point numbers",
        (name for name, entry in entries.items() if entry.dtype not in FLOAT_BYTES),
    )
    wrong = {
        name: f"expected {_sized(size)}, found {_sized(present[name])}"
        for name, size in known.items()
        if name in present and not _fits(present[name], size)
    }
    yield from _shortened([f"tensor `{name[:200]}`: {why}" for name, why in wrong.items()])
    if config["peft_type"] == "LORA" and not wrong:
        yield from _shortened(_absurd_ranks(present))


def _named_like_base(name: str) -> bool:
    return name.endswith((".weight", ".bias")) and not _part_of_adapter(name)


def _part_of_adapter(name: str) -> bool:
    return any(part.startswith(OWN_PARTS) for part in name.split("."))


def _fits(shape: tuple[int | None, ...], wanted: Shape) -> bool:
    return len(shape) == len(wanted) and all(
        size is None or size == number for number, size in zip(shape, wanted, strict=True)
    )


def _sized(shape: Iterable[int | None]) -> str:
    return "(" + ", ".join("?" if size is None else str(size) for size in shape) + ")"


def _absurd_ranks(present: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Ranks above both sides of their matrix, which no update of that matrix can need."""
    large = []
    for name, shape in present.items():
        other = present.get(name.replace(".lora_A.", ".lora_B."))
        if ".lora_A." in name and other is not None and shape[0] > max(shape[1], other[0]):
            large.append(f"{name}: rank {shape[0]} for a matrix of {other[0]} x {shape[1]}")
    return large


def _not_finite(weights: Path) -> Iterator[str]:
    with safe_open(weights, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - a safe_open is not a mapping
            tensor = file.get_tensor(name)
            wide = tensor if tensor.dtype.itemsize > 1 else tensor.float()
            if not bool(torch.isfinite(wide).all()):
                yield name


def _several(what: str, names: Iterable[str]) -> list[str]:
    return _shortened([f"tensor `{name[:200]}`: {what}" for name in names])


def _shortened(lines: list[str]) -> list[str]:
    """The first few of many problems of a kind, and how many more there are."""
    more = len(lines) - MOST_EXAMPLES
    return [*lines[:MOST_EXAMPLES], *([f"and {more} more of this kind"] if more > 0 else [])]


def _refused(folder: Path, problems: list[str], config: dict[str, Any] | None) -> InputError:
    hint = "get the adapter from its author again, or train it anew with `peftkit finetune`"
    if config is not None and all(MADE_FOR in problem for problem in problems):
        base = config["base_model_name_or_path"]
        hint = (
            f"`peftkit generate {base} --adapter {folder}` puts it on its own base; "
            "a base given as a folder is compared by its layers alone"
        )
    return InputError(
        f"`{folder}` is not an adapter that peftkit will load", problems=problems, hint=hint
    )


def _facts(config: dict[str, Any], found: _Found) -> AdapterFacts:
    targets = config.get("target_modules") or ()
    digest = sha256_of(found.weights)
    return AdapterFacts(
        peft_type=config["peft_type"],
        rank=config.get("r"),
        targets=(targets,) if isinstance(targets, str) else tuple(sorted(targets)),
        base=config.get("base_model_name_or_path") or None,
        revision=config.get("revision"),
        tensors=len(found.entries),
        bytes=found.weights.stat().st_size,
        sha256=digest,
    )
