"""Greedy answers where each prompt has adapters of its own: in one batch, or adapter by adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peftkit.adapters.several import BASE, check_names, refuse_mixing, using
from peftkit.evaluate.generation import answer_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peftkit.evaluate.generation import Answer


def answer_mixed(
    model: Any,
    prompts: Sequence[Sequence[int]],
    adapters: Sequence[Sequence[str]],
    tokenizer: Any,
    *,
    stops: frozenset[int],
    room: int,
) -> list[Answer]:
    """One greedy answer a prompt, each as the base gives it with the adapters of its row alone.

    Args:
        model: the base with every adapter that is named, whichever act now.
        prompts: token ids.
        adapters: names that act together on each prompt; none for the base as it is.
        tokenizer: turns the answers into text.
        stops: ids at which an answer ends.
        room: most tokens of an answer.

    Raises:
        InputError: an adapter is not there, or several of its kind cannot act at once.
    """
    wanted = [tuple(names) for names in adapters]
    for names in set(wanted):
        check_names(model, names)
    if refuse_mixing(model, wanted) is None:
        rows = [names[0] if names else BASE for names in wanted]
        return answer_all(model, prompts, tokenizer, stops=stops, room=room, adapters=rows)
    answers: dict[int, Answer] = {}
    for names in dict.fromkeys(wanted):
        own = [row for row, each in enumerate(wanted) if each == names]
        asked = [prompts[row] for row in own]
        with using(model, names):
            found = answer_all(model, asked, tokenizer, stops=stops, room=room)
        answers |= dict(zip(own, found, strict=True))
    return [answers[row] for row in range(len(prompts))]
