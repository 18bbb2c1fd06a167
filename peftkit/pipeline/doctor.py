"""What this machine can do, looked at rather than assumed."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from peftkit.adapters.attach import attach
from peftkit.base.dtype import choose_dtype
from peftkit.base.load import load_base
from peftkit.base.machine import choose_device, describe_machine, describe_versions
from peftkit.data.batch import Batch, Layout, make_update
from peftkit.data.draft import Encoder
from peftkit.data.formats import build_examples
from peftkit.data.rows import Intake, Row
from peftkit.disk.cache import cache_bytes, cache_limit, cache_root, make_room
from peftkit.disk.size import show_bytes
from peftkit.fast.compiled import BREAK_EVEN_SECONDS, refuse_compile
from peftkit.fast.flash import find_kernel
from peftkit.fast.paths import choose_frozen, choose_head, choose_lora, choose_norm
from peftkit.fast.varlen import enable
from peftkit.pipeline.choices import FLAT_WIDTH
from peftkit.recipe.sections.adapter import LoraSection
from peftkit.recipe.sections.base import BaseSection
from peftkit.recipe.sections.train import FastSection
from peftkit.train.loop import accumulate
from peftkit.train.threads import choose_threads, explain_threads, measure_threads

if TYPE_CHECKING:
    from collections.abc import Iterator

PROBED_WIDTH = 1024
"""Hidden size at which products are timed."""
TRIAL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "attn_implementation": "sdpa",
}
"""The shape of the model that the fast paths are tried on."""
PASSAGE = "Once upon a time there was a little model that wanted to know how fast it was. " * 4


@dataclass(frozen=True, slots=True)
class Ability:
    """One thing this machine can or cannot do."""

    name: str
    state: str
    why: str = ""


def examine() -> Iterator[Ability]:
    """Everything a run on this machine depends on, one thing at a time."""
    for name, version in describe_versions().items():
        yield Ability(name, version)
    machine = describe_machine()
    yield Ability("cpu", f"{machine['cores']} cores", machine["cpu"])
    yield Ability("memory", f"{machine['memory_gib']} GiB")
    yield _gpu(machine["gpu"])
    yield _bfloat16()
    yield _threads()
    yield from _fast_paths()
    yield _cache()
    yield _processes()
    yield _quantization()
    yield _hub()


def _gpu(name: str | None) -> Ability:
    if name is None:
        return Ability("gpu", "off", "torch sees none, so runs go on the CPU")
    return Ability("gpu", "on", name)


def _bfloat16() -> Ability:
    config = LlamaConfig(hidden_size=PROBED_WIDTH, dtype="bfloat16")
    name, why = choose_dtype(BaseSection(model="builtin:tiny"), choose_device(), config)
    return Ability("bfloat16", "on" if name == "bfloat16" else "off", why)


def _fast_paths() -> Iterator[Ability]:
    """Each fast path, tried on a small model of a common family with adapters in its upper half."""
    model, batch = _make_trial()
    flat = enable(model)
    yield Ability(
        "fast path `flat`",
        "off" if flat else "on",
        flat or f"{_describe_attention()}; for bases of a width of {FLAT_WIDTH} or more",
    )
    section = FastSection()
    on, why = choose_lora(model, section)
    yield Ability("fast path `lora`", _on(on), why)
    on, why = choose_norm(model, section)
    yield Ability("fast path `norm`", _on(on), why)
    head, why = choose_head(model, section, batch)
    yield Ability("fast path `head`", _on(head is not None), why)
    cut, why = choose_frozen(model, section, batch)
    ending = "; for adapters on upper blocks and more than one epoch"
    yield Ability("fast path `frozen`", _on(cut is not None), why + (ending if cut else ""))
    yield Ability("fast path `optimizer`", "on", "AdamW has one kernel for a whole buffer")
    reason = refuse_compile(BREAK_EVEN_SECONDS, recomputed=0)
    long_enough = f"for runs of more than {BREAK_EVEN_SECONDS / 60:.0f} minutes"
    yield Ability("fast path `compile`", _on(reason is None), reason or long_enough)


def _make_trial() -> tuple[Any, Batch]:
    """The model as a run would have it, and a row of two documents."""
    device = choose_device()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = LlamaForCausalLM(LlamaConfig(**TRIAL))
    model.requires_grad_(requires_grad=False).to(device)
    adapted = attach(model, LoraSection(layers="upper-half"), seed=0)
    tokens = torch.arange(1, 25, device=device)[None]
    targets = tokens.roll(-1, dims=1)
    places = torch.cat([torch.arange(12), torch.arange(12)])[None].to(device)
    return adapted, Batch(tokens, targets, places, 24)


def _describe_attention() -> str:
    if not torch.cuda.is_available():
        return "attention within documents by batched products"
    kernel = find_kernel()
    return (
        "attention by one kernel" if kernel else "attention by a call a document: no kernel found"
    )


def _cache() -> Ability:
    limit = cache_limit()
    if not limit:
        return Ability("cache", "off", "`PEFTKIT_CACHE_GIB` is 0")
    taken = f"{show_bytes(cache_bytes())} of at most {show_bytes(limit)}"
    if make_room(0):
        return Ability("cache", "on", f"{taken} in {cache_root()}")
    return Ability("cache", "off", f"{cache_root()} cannot be written")


def _processes() -> Ability:
    from torch import distributed

    if not distributed.is_available():
        return Ability("several processes", "off", "this torch is built without")
    names = {"gloo": distributed.is_gloo_available(), "nccl": distributed.is_nccl_available()}
    found = ", ".join(name for name, there in names.items() if there)
    return Ability("several processes", "on", f"`torchrun -m peftkit finetune …` by {found}")


def _on(value: bool) -> str:  # noqa: FBT001 - a word for a truth value
    return "on" if value else "off"


def _threads() -> Ability:
    """A real training step of the embedded base, with one thread and with all."""
    before = torch.get_num_threads()
    base = load_base(BaseSection(model="builtin:tiny"), device=choose_device())
    model = attach(base.model, LoraSection(), seed=0)
    encoder = Encoder(base.tokenizer, frozenset(), 128, "truncate")
    rows = [Row({"text": PASSAGE}, f"doctor:{number}") for number in range(8)]
    examples = list(build_examples(rows, "text", "doctor", encoder, Intake("error")))
    update = make_update(examples, Layout(packing=False, micro_rows=8, pad_id=0))
    device = next(base.model.parameters()).device

    def step() -> None:
        accumulate(model, update, device, seed=0)
        model.zero_grad(set_to_none=True)

    measured = measure_threads(step)
    torch.set_num_threads(before)
    return Ability("threads", str(choose_threads(measured)), explain_threads(measured))


def _quantization() -> Ability:
    if importlib.util.find_spec("bitsandbytes") is None:
        return Ability("bitsandbytes", "missing", "`pip install peftkit[quantize]`")
    return Ability("bitsandbytes", "installed")


def _hub() -> Ability:
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        return Ability("hub", "off", "HF_HUB_OFFLINE is set")
    token = "logged in" if get_token() else "not logged in: `hf auth login`"
    where = "a custom endpoint" if "HF_ENDPOINT" in os.environ else "the default endpoint"
    return Ability("hub", "on", f"{token}; {where}")
