"""What this machine can do, looked at rather than assumed."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from peftkit.adapters.attach import attach
from peftkit.base.load import load_base
from peftkit.base.machine import choose_device, describe_machine, describe_versions
from peftkit.data.batch import Layout, make_update
from peftkit.data.formats import Encoder, build_examples
from peftkit.data.rows import Intake, Row
from peftkit.recipe.sections.adapter import LoraSection
from peftkit.recipe.sections.base import BaseSection
from peftkit.train.loop import accumulate
from peftkit.train.threads import choose_threads, explain_threads, measure_threads

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    yield Ability("packing", "on", "checked against documents alone at the start of every run")
    yield _quantization()
    yield _hub()


def _gpu(name: str | None) -> Ability:
    if name is None:
        return Ability("gpu", "off", "torch sees none, so runs go on the CPU")
    return Ability("gpu", "on", name)


def _bfloat16() -> Ability:
    if torch.cuda.is_available():
        known = torch.cuda.is_bf16_supported()
        return Ability("bfloat16", "on" if known else "off", "the GPU's own")
    flags = Path("/proc/cpuinfo").read_text("utf-8") if Path("/proc/cpuinfo").exists() else ""
    fast = any(flag in flags for flag in ("avx512_bf16", "amx_bf16"))
    why = "the CPU has the instructions" if fast else "the CPU lacks the instructions"
    return Ability("bfloat16", "possible" if fast else "slow", f"{why}; runs use float32 on a CPU")


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
