"""New tokens: the tokenizer learns them, and the base grows a row for each.

A row starts at the mean of the rows of the pieces that its token was split into before, in the
embedding and in a head of its own. That follows from the base alone, so every load grows the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from peftkit.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ADDED = "_peftkit_added_rows"
"""The attribute of a model under which the ids of its added rows lie."""


def teach_tokens(tokenizer: Any, tokens: Sequence[str]) -> dict[int, list[int]]:
    """Make each of `tokens` one piece of the tokenizer; its id, and the ids it was split into.

    Raises:
        RecipeError: a token is one already, or nothing that the tokenizer can read.
    """
    pieces = [_split(tokenizer, token) for token in tokens]
    tokenizer.add_tokens(list(tokens))
    return dict(zip(tokenizer.convert_tokens_to_ids(list(tokens)), pieces, strict=True))


def grow(model: Any, rows: Mapping[int, Sequence[int]]) -> None:
    """Give the base a row for each new token; rows that a padded vocabulary leaves are used."""
    if not rows:
        return
    wanted = max(rows) + 1
    if wanted > model.get_input_embeddings().weight.shape[0]:
        with torch.random.fork_rng():  # what it draws is written over
            model.resize_token_embeddings(wanted, mean_resizing=False)
    with torch.no_grad():
        for matrix in token_matrices(model).values():
            for row, pieces in rows.items():
                mean = matrix.weight[list(pieces)].float().mean(0)
                matrix.weight[row] = mean.to(matrix.weight.dtype)
    setattr(model, ADDED, sorted(rows))


def added_rows(model: Any) -> list[int]:
    """Ids of the rows that were added to a base; mostly none."""
    return list(getattr(model, ADDED, ()))


def token_matrices(model: Any) -> dict[str, Any]:
    """The embedding, and the head where it has rows of its own, by name."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    own = head is not None and head.weight is not embedding.weight
    wanted = [embedding, head] if own else [embedding]
    return {name: module for name, module in model.named_modules() if module in wanted}


def _split(tokenizer: Any, token: str) -> list[int]:
    """The ids that a token is split into so far."""
    ids: list[int] = tokenizer.encode(token, add_special_tokens=False)
    alone = len(ids) == 1 and tokenizer.decode(ids) == token
    known = alone or token in tokenizer.get_vocab()
    if known or not ids:
        what = "is one token of this base already" if known else "is nothing to its tokenizer"
        raise RecipeError(
            f"base.add_tokens: `{token}` {what}", hint="take it out of `base.add_tokens`"
        )
    return ids
