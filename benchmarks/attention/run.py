"""What does it cost to keep documents apart? Four layouts of the same documents, on one CPU thread.

python benchmarks/attention/run.py             # writes results/
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import statistics
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from peftkit.adapters.attach import attach, trainable
from peftkit.data.batch import Layout, Update, flatten, make_update
from peftkit.data.example import Example
from peftkit.fast import varlen
from peftkit.fast.documents import Rule, attend
from peftkit.fast.paths import restore_paths
from peftkit.recipe.sections.adapter import LoraSection

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import write_result

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TOKENS = 2048
LONGEST = 1024
PADDED_ROWS = 4
"""Rows of a padded micro-batch: about as many tokens, padding counted, as the flat row has."""
HEADS, KEY_HEADS, WIDTH = 9, 3, 64
LAYERS, VOCABULARY = 4, 49_152
ROUNDS = 5
SEEDS = (0, 1)
LIMITS = {torch.float32: 1e-4, torch.bfloat16: 2e-3}
"""Relative difference of losses up to which a figure counts."""
COSINE = 0.999

Arms = dict[str, "Callable[[], tuple[Tensor, Tensor]]"]


def draw_lengths(seed: int) -> list[int]:
    """Lengths of documents that have `TOKENS` in all, the last one cut."""
    draw = np.random.default_rng(seed)
    lengths: list[int] = []
    while sum(lengths) < TOKENS:
        length = int(np.clip(draw.lognormal(5.0, 0.8), 2, LONGEST))
        lengths.append(min(length, TOKENS - sum(lengths)))
    return lengths


def attention_arms(lengths: Sequence[int], dtype: torch.dtype) -> Arms:
    """Attention alone, forward and backward; every arm gives output and gradients end to end."""
    draw = torch.Generator().manual_seed(0)
    shapes = [(1, TOKENS, heads, WIDTH) for heads in (HEADS, KEY_HEADS, KEY_HEADS, HEADS)]
    *tensors, upstream = (torch.randn(shape, generator=draw).to(dtype) for shape in shapes)
    leaves = [tensor.transpose(1, 2).requires_grad_() for tensor in tensors]

    def differentiate(forward: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        made = forward(*leaves)
        gradients = torch.autograd.grad(made, leaves, upstream)
        return made.detach().float().norm(), torch.cat([g.float().flatten() for g in gradients])

    rule = Rule(WIDTH**-0.5)
    by_length = sorted(range(len(lengths)), key=lambda i: lengths[i])
    arms = {
        "dense mask": partial(masked, mask=dense_mask(lengths)),
        "padded, random": partial(padded, lengths=lengths, order=range(len(lengths))),
        "padded, sorted": partial(padded, lengths=lengths, order=by_length),
        "flat": partial(attend, lengths=tuple(lengths), rule=rule),
    }
    return {name: partial(differentiate, forward) for name, forward in arms.items()}


LAYER = SimpleNamespace(num_key_value_groups=HEADS // KEY_HEADS, is_causal=True)


def masked(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """What transformers does with a row, with the mask that it has made for all layers."""
    made: Tensor = sdpa_attention_forward(LAYER, query, key, value, mask, scaling=WIDTH**-0.5)[0]
    return made


def dense_mask(lengths: Sequence[int]) -> Tensor:
    """True where a token sees another."""
    document = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    return ((document[:, None] == document) & torch.ones(TOKENS, TOKENS).tril().bool())[None, None]


def padded(
    query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], order: Sequence[int]
) -> Tensor:
    """Rows of one document each, `PADDED_ROWS` at a time, and the real tokens of what comes out."""
    parts = [each[0].split(list(lengths), 1) for each in (query, key, value)]
    made: dict[int, Tensor] = {}
    for first in range(0, len(order), PADDED_ROWS):
        rows = order[first : first + PADDED_ROWS]
        width = max(lengths[i] for i in rows)
        filled = [
            torch.stack([nn.functional.pad(part[i], (0, 0, 0, width - lengths[i])) for i in rows])
            for part in parts
        ]
        out = masked(*filled, mask=None)
        made |= {i: row[: lengths[i]] for i, row in zip(rows, out, strict=True)}
    return torch.cat([made[i] for i in range(len(lengths))])[None]


def model_arms(lengths: Sequence[int], model: Any, flat_model: Any, *, frozen_head: bool) -> Arms:
    """A whole model, forward and backward of what is trained, the loss on the plain or fast path.

    Both are needed: with every logit made, the head of so small a model takes most of the time.
    """
    documents = [write(length, seed) for seed, length in enumerate(lengths)]
    rows = Layout(packing=False, micro_rows=PADDED_ROWS, pad_id=0)
    flat = Layout(packing=True, micro_rows=1, pad_id=0, flat=True, micro_tokens=TOKENS)
    by_length = sorted(documents, key=lambda document: document.length)
    together = Update((flatten(documents),), sum(d.trained_tokens for d in documents), TOKENS)

    def differentiate(model: Any, update: Update) -> tuple[Tensor, Tensor]:
        summed = restore_paths(model, head=frozen_head).summed
        parameters, loss = list(trainable(model).values()), torch.zeros(())
        for batch in update.micro_batches:
            share = summed(model, batch) / update.trained_tokens
            share.backward()
            loss += share.detach()
        gradients = [parameter.grad.float().flatten() for parameter in parameters]
        model.zero_grad(set_to_none=True)
        return loss, torch.cat(gradients)

    return {
        "dense mask": partial(differentiate, model, together),
        "padded, random": partial(differentiate, model, make_update(documents, rows)),
        "padded, sorted": partial(differentiate, model, make_update(by_length, rows)),
        "flat": partial(differentiate, flat_model, make_update(documents, flat)),
    }


def write(length: int, seed: int) -> Example:
    """A document of random tokens, all but the first of which are learnt."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(0, VOCABULARY, length).astype(np.int32)
    return Example(tokens, np.arange(length) > 0, str(seed), str(seed), "")


def build_model() -> Any:
    """Four layers of the shape of SmolLM2-135M in bfloat16, with LoRA all over."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HEADS * WIDTH,
        intermediate_size=1536,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model = attach(model, LoraSection(rank=16), seed=0).train()
    for parameter in trainable(model).values():
        parameter.data = nn.init.normal_(parameter.data, std=0.02)
    return model


def check(arms: Arms, dtype: torch.dtype) -> dict[str, dict[str, float]]:
    """How far each arm is from the first; stops where it is further than rounding."""
    wanted, gradient = arms["dense mask"]()
    found = {}
    for name, arm in arms.items():
        value, other = arm()
        difference = abs(float(value / wanted) - 1)
        cosine = float(nn.functional.cosine_similarity(gradient, other, dim=0))
        if difference > LIMITS[dtype] or cosine < COSINE:
            raise SystemExit(f"{name}: off by {difference:.1e}, cosine {cosine:.5f}; void")
        found[name] = {"relative_difference": difference, "gradient_cosine": cosine}
    return found


def race(arms: Arms) -> dict[str, Any]:
    """Process CPU seconds of each arm, interleaved, and how many times as fast as the first."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(ROUNDS + 1):
        for name, arm in arms.items():
            started = time.process_time()
            arm()
            if number:  # the first round warms up
                seconds[name].append(time.process_time() - started)
    return {
        name: {
            "seconds": summarize(taken),
            "real_tokens_per_second": TOKENS / statistics.median(taken),
            "times_as_fast_as_dense": summarize(
                [a / b for a, b in zip(seconds["dense mask"], taken, strict=True)]
            ),
        }
        for name, taken in seconds.items()
    }


def summarize(values: Sequence[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def measure(arms: Arms, dtype: torch.dtype) -> dict[str, Any]:
    """Equality first, then time."""
    return {"equality": check(arms, dtype), "speed": race(arms)}


def main() -> None:
    """Measure all shapes and write the result."""
    torch.set_num_threads(1)
    plain, ours = build_model(), build_model()
    if reason := varlen.enable(ours):
        raise SystemExit(reason)
    measured: dict[str, Any] = {"rounds": ROUNDS, "tokens": TOKENS}
    for seed in SEEDS:
        lengths = draw_lengths(seed)
        cases = {
            f"attention {str(dtype).removeprefix('torch.')}": (
                attention_arms(lengths, dtype),
                dtype,
            )
            for dtype in (torch.float32, torch.bfloat16)
        }
        for head in ("plain", "frozen"):
            arms = model_arms(lengths, plain, ours, frozen_head=head == "frozen")
            cases[f"model, {head} head"] = (arms, torch.bfloat16)
        for case, (arms, dtype) in cases.items():
            name = f"{case}, documents {seed}"
            measured[name] = {"lengths": lengths} | measure(arms, dtype)
            for arm, speed in measured[name]["speed"].items():
                show(f"{name}: {arm}", speed)
    print(write_result(Path(__file__).parent, measured))


def show(name: str, speed: dict[str, Any]) -> None:
    """One line for the person who waits."""
    ratio = speed["times_as_fast_as_dense"]
    print(
        f"{name:52s} {1000 * speed['seconds']['median']:8.1f} ms"
        f" {speed['real_tokens_per_second']:8.0f} tok/s"
        f" {ratio['median']:6.2f}× [{ratio['low']:.2f} … {ratio['high']:.2f}]",
        flush=True,
    )


if __name__ == "__main__":
    main()
