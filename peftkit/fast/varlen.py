"""Flat rows: documents end to end without padding or mask, each attending only to itself.

The boundaries travel where transformers puts the mask. A model asks the mask interface for the mask
of each kind of layer; during the forward pass of a flat row it is given `Documents` instead, which
every layer hands to the attention interface untouched, window and all. So it works for every family
that goes through both, says nothing to the families' own code, and holds when a checkpointed layer
runs again. What cannot be said as "this document, so far back" is refused, never approximated.

The switch may stay on: rows that are not flat, and generation, get the mask and the attention that
they had before.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import torch

from peftkit.errors import RunError
from peftkit.fast.documents import Rule, attend
from peftkit.fast.flash import attend_at_once, attend_in_turn, suits_kernel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

NAMES = {"sdpa": "peftkit_flat", "eager": "peftkit_flat_eager"}
"""The attention that a model had, and the name of ours that falls back to it."""
LOOKS_BACK = {"full_attention", "sliding_attention"}
"""Kinds of layers in which a token sees itself and tokens before it, and nothing else."""
DROPOUTS = (
    *("attention_dropout", "attn_pdrop", "attn_dropout", "attention_dropout_prob"),
    "attention_probs_dropout_prob",
)
EXTRAS = ("s_aux", "position_bias", "head_mask")
"""What some families add to the scores."""


class FlatRowError(RunError):
    """This base cannot run flat rows."""


@dataclass(frozen=True, slots=True)
class Documents:
    """Lengths of the documents in a flat row, and how far back a token sees in this layer."""

    lengths: tuple[int, ...]
    window: int | None = None


@dataclass(slots=True)
class _Pass:
    """The forward pass of a flat row, while it runs."""

    lengths: tuple[int, ...]
    attended: int = 0
    """Layers that have attended."""


_PASS: ContextVar[_Pass | None] = ContextVar("flat row", default=None)


def enable(model: Any) -> str | None:
    """Let `model` take flat rows; None when it does, else why it cannot."""
    if is_on(model):
        return None
    if reason := next(_refuse(model), None):
        return reason
    _register()  # once, so that what `outside_graphs` did stays done
    model.set_attn_implementation(NAMES[model.config._attn_implementation])
    return None


def disable(model: Any) -> None:
    """Give `model` back the attention it had."""
    for before, ours in NAMES.items():
        if model.config._attn_implementation == ours:
            model.set_attn_implementation(before)


def is_on(model: Any) -> bool:
    """Whether `model` takes flat rows."""
    return getattr(model.config, "_attn_implementation", None) in NAMES.values()


@contextmanager
def attending(model: Any, lengths: tuple[int, ...] | None) -> Iterator[None]:
    """Inside, a forward pass attends within documents of these lengths; None changes nothing.

    Neither does a model that is not switched on: it tells documents apart by their positions, or
    does not.
    """
    if lengths is None or not is_on(model):
        yield
        return
    current = _Pass(lengths)
    token = _PASS.set(current)
    try:
        yield
    finally:
        _PASS.reset(token)
    if not current.attended:
        raise FlatRowError("the attention of this base never asked where documents end")


def _refuse(model: Any) -> Iterator[str]:
    """Why flat rows are not for this model, the plainest reason first; mostly nothing."""
    config, before = model.config.get_text_config(), model.config._attn_implementation
    if any(adapter.is_prompt_learning for adapter in getattr(model, "peft_config", {}).values()):
        yield "its adapter puts virtual tokens before the text"
    if config.is_encoder_decoder:
        yield "it has an encoder and a decoder"
    if not model._can_set_attn_implementation():
        yield "its family does not go through the attention interface of transformers"
    if before not in NAMES:
        yield f"its attention is `{before}`, which keeps a mask of its own"
    yield from _refuse_layers(model, config)


def _refuse_layers(model: Any, config: Any) -> Iterator[str]:
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or ()
    if others := sorted(set(kinds) - LOOKS_BACK):
        yield f"it has other layers than plain attention (`{'`, `'.join(others)}`)"
    if any(isinstance(module, torch.nn.Conv1d) for module in model.modules()):
        yield "its layers mix neighboring tokens outside attention"
    if any(name.endswith(".sinks") for name, _ in model.named_parameters()):
        yield "its attention has sinks"
    for name in DROPOUTS:
        if getattr(config, name, 0):
            yield f"it drops attention weights at random (`{name}: {getattr(config, name)}`)"


@lru_cache(maxsize=1)
def _register() -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    for before, ours in NAMES.items():
        AttentionMaskInterface.register(ours, partial(_make_mask, before))
        AttentionInterface.register(ours, partial(_attend, before))


def outside_graphs() -> None:
    """Keep our attention out of what `torch.compile` makes: its steps depend on the documents."""
    from transformers import AttentionInterface

    for before, ours in NAMES.items():
        AttentionInterface.register(ours, torch.compiler.disable(partial(_attend, before)))


def _make_mask(before: str, **asked: Any) -> Any:
    """The documents of the flat row, or the mask there was before."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    current = _PASS.get()
    if current is None:
        return ALL_MASK_ATTENTION_FUNCTIONS[before](**asked)
    documents = Documents(current.lengths, asked.get("local_size"))
    if asked.get("use_vmap") or not _means(asked["mask_function"], documents, asked["device"]):
        raise FlatRowError("this base masks attention otherwise than by causality and a window")
    return documents


def _means(sees: Callable[..., Tensor], documents: Documents, device: torch.device) -> bool:
    """Whether the mask that transformers would make is the one of the documents.

    Asked for where causal, sliding, chunked and two-way masks differ: the first token and the last
    two of the longest document.
    """
    longest = max(documents.lengths)
    start = sum(documents.lengths[: documents.lengths.index(longest)])
    last, window = longest - 1, documents.window or longest
    places = [(0, 0), (0, last), (last, 0), (last, last - window + 1), (last, last - window)]
    places += [(last - 1, last - window)]
    places = [(query, key) for query, key in places if query >= 0 and key >= 0]
    queries, keys = (
        start + torch.tensor(each, device=device) for each in zip(*places, strict=True)
    )
    zero = torch.zeros((), dtype=torch.long, device=device)
    wanted = [key <= query < key + window for query, key in places]
    return bool(sees(zero, zero, queries, keys).expand(len(places)).tolist() == wanted)


def _attend(
    before: str, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **settings: Any
) -> tuple[Tensor, Tensor | None]:
    """Attention within documents, or the one there was before where the row is not flat."""
    current = _PASS.get()
    if not isinstance(mask, Documents):
        if current is not None:
            raise FlatRowError("a layer of this base lost where documents end")
        plain = _find_plain(before, module)
        return plain(module, query, key, value, mask, **settings)  # type: ignore[no-any-return]
    if current is not None:
        current.attended += 1
    _refuse_settings(module, query, key, mask, settings)
    scale = settings.get("scaling")
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    rule = Rule(scale, mask.window, settings.get("softcap"))
    return _choose(query, value, mask, rule)(query, key, value, mask.lengths, rule), None


def _choose(
    query: Tensor, value: Tensor, documents: Documents, rule: Rule
) -> Callable[..., Tensor]:
    """The fastest way that can: a CPU has one, which works anywhere."""
    if suits_kernel(query, value, rule):
        return attend_at_once
    hides = rule.window is not None and rule.window < max(documents.lengths)
    return attend_in_turn if query.is_cuda and not hides and rule.softcap is None else attend


def _refuse_settings(
    module: Any, query: Tensor, key: Tensor, documents: Documents, settings: dict[str, Any]
) -> None:
    tokens = sum(documents.lengths)
    causal = settings.get("is_causal")
    if settings.get("dropout"):
        raise FlatRowError("attention weights are dropped at random, which flat rows cannot do")
    if extras := [name for name in EXTRAS if settings.get(name) is not None]:
        raise FlatRowError(f"attention takes `{extras[0]}`, which flat rows know nothing of")
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        raise FlatRowError("a layer of this base looks both ways")
    if query.shape[0] != 1 or query.shape[2] != tokens or key.shape[2] != tokens:
        raise FlatRowError(
            f"{tokens} tokens in the documents, but queries and keys are "
            f"{query.shape[2]} and {key.shape[2]} of {query.shape[0]} row(s)"
        )


def _find_plain(before: str, module: Any) -> Callable[..., Any]:
    if before == "eager":
        plain: Callable[..., Any] = sys.modules[type(module).__module__].eager_attention_forward
        return plain
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    sdpa: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS[before]
    return sdpa
