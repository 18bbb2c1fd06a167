"""Methods that train what stands before the text: keys and values of every layer, or embeddings.

None of them can start as the base alone does, because whatever stands before a text takes part of
its attention. A prefix starts next to 0 and so says nothing yet, or as the keys and values of a
text; a prompt starts as embeddings of tokens. peft saves what was computed from the small networks
that a prefix or a prompt may train through, and not these: they are in checkpoints alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig
from peft.tuners import PrefixEncoder, PromptEncoder

from peftkit.adapters.peft_methods import put_on
from peftkit.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from peftkit.recipe.sections.adapter import PrefixSection, PromptSection, PTuningSection

NAME = "default"
NEXT_TO_NOTHING = 0.02
"""Spread of a fresh prefix: enough that its tokens learn different things."""


class ComputedOnce(PrefixEncoder):
    """A prefix that is computed once for all rows: less work, and the bits that are saved."""

    def forward(self, prefix: Tensor) -> Tensor:
        """The prefix of each row, which are all the same."""
        found: Tensor = super().forward(prefix[:1])
        return found.expand(len(prefix), -1, -1)


class ComputedAlike(PromptEncoder):
    """Embeddings with the same bits whether gradients are kept or not, so those that are saved."""

    def forward(self, indices: Tensor) -> Tensor:
        """The embedding of each virtual token."""
        keeps = torch.is_grad_enabled()
        with torch.inference_mode(mode=False), torch.enable_grad():  # else another LSTM is taken
            found: Tensor = super().forward(indices.clone())  # type: ignore[no-untyped-call]
        return found if keeps else found.detach()


def attach_prefix(model: Any, section: PrefixSection) -> Any:
    """The model with trained keys and values before those of the text, in every layer."""
    heads, size = _keys_and_values(model)
    width = int(model.config.get_text_config().hidden_size)
    config = PrefixTuningConfig(
        num_virtual_tokens=section.tokens,
        token_dim=heads * size,
        num_attention_heads=heads,
        num_layers=int(model.config.get_text_config().num_hidden_layers),
        prefix_projection=section.projection,
        encoder_hidden_size=width if section.projection_size == "auto" else section.projection_size,
    )
    adapted = _put_on(model, config)
    encoder = adapted.prompt_encoder[NAME]
    encoder.__class__ = ComputedOnce
    if section.projection:
        torch.nn.init.zeros_(encoder.transform[-1].weight)
        torch.nn.init.zeros_(encoder.transform[-1].bias)
    else:
        torch.nn.init.normal_(encoder.embedding.weight, std=NEXT_TO_NOTHING)
    return adapted


def attach_prompt(model: Any, section: PromptSection) -> Any:
    """The model with trained embeddings before those of the text, drawn from the vocabulary."""
    adapted = _put_on(model, PromptTuningConfig(num_virtual_tokens=section.tokens))
    drawn = torch.randint(model.get_input_embeddings().num_embeddings, (section.tokens,))
    _start_as_tokens(adapted, drawn)
    return adapted


def attach_p_tuning(model: Any, section: PTuningSection) -> Any:
    """The model with embeddings before those of the text that a small network computes."""
    width = int(model.config.get_text_config().hidden_size)
    config = PromptEncoderConfig(
        num_virtual_tokens=section.tokens,
        encoder_reparameterization_type=section.encoder.upper(),
        encoder_hidden_size=width if section.encoder_size == "auto" else section.encoder_size,
    )
    adapted = _put_on(model, config)
    adapted.prompt_encoder[NAME].__class__ = ComputedAlike
    return adapted


@torch.no_grad()
def start_from_text(adapted: Any, tokenizer: Any, text: str) -> None:
    """Let a fresh prefix or prompt begin as the base reads `text`, repeated or cut to its length.

    Raises:
        RecipeError: the text has no tokens.
    """
    encoder, config = adapted.prompt_encoder[NAME], adapted.active_peft_config
    if encoder.embedding.weight.is_meta:
        return
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if not ids:
        raise RecipeError(
            "adapter.init_text: the text has no tokens",
            hint="`--set 'adapter.init_text=Answer in one word.'`",
        )
    count = config.num_virtual_tokens
    tokens = torch.tensor((ids * -(-count // len(ids)))[:count], device=adapted.device)
    if config.peft_type.value == "PROMPT_TUNING":
        _start_as_tokens(adapted, tokens)
        return
    pairs = _remembered(adapted.get_base_model(), tokens)
    layers = torch.stack([part[0] for pair in pairs for part in pair])  # (2 × layers, heads, …)
    encoder.embedding.weight.copy_(layers.permute(2, 0, 1, 3).flatten(1))


def virtual_tokens(model: Any) -> int:
    """How many places an adapter takes before the text; 0 for most."""
    configs = getattr(model, "peft_config", {}).values()
    return max((c.num_virtual_tokens for c in configs if c.is_prompt_learning), default=0)


@torch.no_grad()
def _start_as_tokens(adapted: Any, tokens: Tensor) -> None:
    read = adapted.get_base_model().get_input_embeddings()(tokens)  # some families scale them
    adapted.prompt_encoder[NAME].embedding.weight.copy_(read)


def _put_on(model: Any, config: Any) -> Any:
    adapted = put_on(model, config)
    adapted.word_embeddings = model.get_input_embeddings()  # peft guesses them by their size
    return adapted


def _keys_and_values(model: Any) -> tuple[int, int]:
    """Heads whose keys and values a layer remembers, and the size of each: of all layers alike.

    Raises:
        RecipeError: layers remember different things, or something else.
    """
    config = model.config.get_text_config()
    if next(model.parameters()).is_meta:
        return _planned(config)
    pairs = _remembered(model, torch.zeros(1, dtype=torch.long, device=model.device))
    shapes = {tuple(part.shape) for pair in pairs for part in pair}
    if len(pairs) != config.num_hidden_layers or len(shapes) != 1:
        raise _without_prefix(model, "its layers do not all remember keys and values of one size")
    ((_, heads, _, size),) = shapes
    return heads, size


def _planned(config: Any) -> tuple[int, int]:
    """What a configuration says of the same, for a model without memory."""
    named = (getattr(config, name, None) for name in ("num_key_value_heads", "num_kv_heads"))
    heads = next((number for number in named if number), config.num_attention_heads)
    if getattr(config, "multi_query", False):  # Falcon, before its new blocks
        heads = heads if getattr(config, "new_decoder_architecture", False) else 1
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(heads), int(size)


@torch.no_grad()
def _remembered(model: Any, tokens: Tensor) -> Sequence[tuple[Tensor, Tensor]]:
    """Keys and values of each layer after these tokens."""
    cache = getattr(model(input_ids=tokens[None], use_cache=True), "past_key_values", None)
    layers = getattr(cache, "layers", None)
    if not layers or not all(
        isinstance(getattr(one, "keys", None), torch.Tensor) for one in layers
    ):
        raise _without_prefix(model, "it does not remember keys and values")
    return [(layer.keys, layer.values) for layer in layers]


def _without_prefix(model: Any, why: str) -> RecipeError:
    return RecipeError(
        f"adapter.method: a prefix does not fit this base ({model.config.model_type}): {why}",
        hint="`--set adapter.method=prompt` stands before the text of any base",
    )
