"""Text from a base and its adapters, streamed as it is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from peftkit.base.upstream import quiet
from peftkit.data.task import WRITES
from peftkit.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from peftkit.pipeline.target import Target


@torch.inference_mode()
def generate(
    target: Target,
    ids: Sequence[int],
    *,
    max_tokens: int,
    temperature: float,
    write: Callable[[str], None],
) -> str:
    """What the model writes after `ids`; each piece goes to `write` as soon as it is whole."""
    from transformers import GenerationConfig, TextStreamer

    class Streamer(TextStreamer):
        """Hands text on instead of printing it."""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:  # noqa: FBT001, FBT002 - transformers' signature
            del stream_end
            pieces.append(text)
            write(text)

    pieces: list[str] = []
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature}
    config = GenerationConfig(
        max_new_tokens=max_tokens,
        eos_token_id=sorted(target.stops) or None,
        pad_token_id=target.base.pad_id,
        decoder_start_token_id=getattr(target.model.config, "decoder_start_token_id", None),
        **sampling,
    )
    target.model.eval()
    device = next(target.model.parameters()).device
    inputs = torch.tensor([list(ids)], device=device)
    streamer = Streamer(target.base.tokenizer, skip_prompt=True, skip_special_tokens=True)
    with quiet():
        target.model.generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            generation_config=config,
            streamer=streamer,
        )
    return "".join(pieces)


def encode_prompt(target: Target, prompt: str, *, templated: bool) -> list[int]:
    """Token ids of a prompt, through the chat template or as it stands."""
    _refuse_what_writes_nothing(target)
    if templated:
        return encode_turns(target, [{"role": "user", "content": prompt}])
    encoded = target.base.tokenizer(prompt)["input_ids"]
    ids = list(encoded)
    end = target.base.tokenizer.eos_token_id
    goes_on = target.section.task != "seq2seq"
    if goes_on and len(ids) > 1 and ids[-1] == end:  # the tokenizer closed a text that goes on
        ids = ids[:-1]
    if not ids:
        raise RecipeError("the prompt is empty", hint='`--prompt "Once upon a time"`')
    return ids


def encode_turns(target: Target, turns: Sequence[dict[str, str]]) -> list[int]:
    """Token ids of a conversation up to where the assistant speaks."""
    _refuse_what_writes_nothing(target)
    tokenizer = target.base.tokenizer
    if tokenizer.chat_template is None:
        raise RecipeError(
            f"`{target.base.origin.name}` has no chat template",
            hint="`peftkit generate TARGET --raw` goes without one",
        )
    encoded = tokenizer.apply_chat_template(
        list(turns), add_generation_prompt=True, return_dict=True
    )
    ids: list[int] = encoded["input_ids"]
    return ids


def _refuse_what_writes_nothing(target: Target) -> None:
    if target.section.task not in WRITES:
        raise RecipeError(
            f"`{target.base.origin.name}` does {target.section.task} here, and writes no text",
            hint="`peftkit evaluate TARGET --data FILE` says what it makes of rows",
        )
