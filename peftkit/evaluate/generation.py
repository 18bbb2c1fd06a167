"""Greedy answers to held-out prompts, batched, with whether each one stopped by itself."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch

from peftkit.adapters.prompts import virtual_tokens
from peftkit.base.upstream import quiet
from peftkit.evaluate.losses import batches_by_length

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from peftkit.data.example import Example

BATCH_TOKENS = 16_384
SPARE_TOKENS = 16
"""Room beyond the longest expected answer, so that going on too long shows."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said to one prompt."""

    text: str
    tokens: int
    stopped: bool


@torch.inference_mode()
def answer_all(
    model: Any,
    prompts: Sequence[Sequence[int]],
    tokenizer: Any,
    *,
    stops: frozenset[int],
    room: int,
    adapters: Sequence[str] = (),
) -> list[Answer]:
    """One greedy answer a prompt, in the prompts' order; the same with any batching.

    With `adapters`, a name for each prompt, peft gives each row of a batch its own.
    """
    from transformers import GenerationConfig

    model.eval()
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=_within_window(model, prompts, room),
        eos_token_id=sorted(stops) or None,
        pad_token_id=next(iter(sorted(stops)), 0),
        decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
    )
    reads_apart = model.config.is_encoder_decoder  # then what it writes stands alone
    answers: dict[int, Answer] = {}
    for indices in _batches(model, prompts, room):
        inputs, mask = _pad_left([prompts[index] for index in indices])
        device = next(model.parameters()).device
        mixed = {"adapter_names": [adapters[index] for index in indices]} if adapters else {}
        with _own_habits_off(model), quiet():
            produced = model.generate(
                input_ids=inputs.to(device),
                attention_mask=mask.to(device),
                generation_config=config,
                **mixed,
            )
        start = 1 if reads_apart else inputs.shape[1]
        for index, row in zip(indices, produced[:, start:].tolist(), strict=True):
            answers[index] = _read(row, tokenizer, stops)
    return [answers[index] for index in range(len(prompts))]


def _batches(model: Any, prompts: Sequence[Sequence[int]], room: int) -> Iterator[list[int]]:
    """Indices of prompts that are answered together.

    Padding would stand between a prompt and what an adapter puts before it, where positions and
    windows count it, so with such an adapter they are of one length.
    """
    padded = not virtual_tokens(model)
    for batch in batches_by_length([len(prompt) + room for prompt in prompts], BATCH_TOKENS):
        alike = groupby(batch, key=lambda index: 0 if padded else len(prompts[index]))
        yield from (list(group) for _, group in alike)


@contextmanager
def _own_habits_off(model: Any) -> Iterator[None]:
    """Inside, the base's own `generation_config.json`, e.g. a repetition penalty, has no say."""
    from transformers import GenerationConfig

    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    own, plain.generation_config = plain.generation_config, GenerationConfig()
    try:
        yield
    finally:
        plain.generation_config = own


def _within_window(model: Any, prompts: Sequence[Sequence[int]], room: int) -> int:
    """The room for answers that learned positions, as GPT-2's, leave after the longest prompt."""
    window = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(map(len, prompts), default=0)
    longest += virtual_tokens(model)
    return max(1, min(room, window - longest)) if isinstance(window, int) else room


def room_for(examples: Sequence[Example]) -> int:
    """Tokens an answer may take: the longest expected one and some to spare."""
    longest = max(example.length - example.prompt_tokens for example in examples)
    return longest + SPARE_TOKENS


def prompt_of(example: Example) -> list[int]:
    """The token ids before the answer."""
    ids: list[int] = example.tokens[: example.prompt_tokens].tolist()
    return ids


def is_repetitive(text: str) -> bool:
    """Whether an answer ends by saying the same few words over and over."""
    words = text.split()
    for period in (1, 2, 3, 4):
        tail = words[-4 * period :]
        if len(tail) == 4 * period and tail == tail[:period] * 4:
            return True
    return False


def _pad_left(prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(prompt) for prompt in prompts)
    inputs = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for number, prompt in enumerate(prompts):
        inputs[number, width - len(prompt) :] = torch.tensor(prompt)
        mask[number, width - len(prompt) :] = 1
    return inputs, mask


def _read(row: list[int], tokenizer: Any, stops: frozenset[int]) -> Answer:
    end = next((place for place, token in enumerate(row) if token in stops), len(row))
    text = tokenizer.decode(row[:end], skip_special_tokens=True)
    return Answer(text, end, end < len(row))
