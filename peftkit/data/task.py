"""What a row asks of the model: the task, its labels, and how tokens are hidden from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from peftkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from peftkit.data.example import Example

HIDDEN_SHARE = 0.15
"""Share of a text's tokens that masked language models predict (Devlin et al., 2019)."""
KEPT, SWAPPED = 0.1, 0.1
"""Of the tokens to predict, those shown as they are and those shown as a random other one."""
WRITES = ("causal-lm", "seq2seq")
"""Tasks whose answer is a text, which must end."""


@dataclass(frozen=True, slots=True)
class Task:
    """A task with everything about it that the data and the tokenizer decide."""

    name: str = "causal-lm"
    labels: tuple[str, ...] = ()
    """Names of the classes or tags, in the order of the head's outputs."""
    mask_id: int = 0
    """The token that stands for a hidden one."""
    vocabulary: int = 0
    """Token ids that a hidden one may be swapped for."""
    typed: bool = False
    """Whether the model is told which of two texts a token is of."""

    @property
    def packs(self) -> bool:
        """Whether several documents may share a row."""
        return self.name == "causal-lm"

    def count(self, example: Example) -> int:
        """How many decisions of a row carry loss."""
        found = example.trained_tokens
        return count_hidden(found) if self.name == "masked-lm" else found

    def number(self, label: str) -> int:
        """The output of the head that stands for a label."""
        return self.labels.index(label)


CAUSAL = Task()


def describe_task(
    name: str, tokenizer: Any, *, labels: Sequence[str] = (), typed: bool = False
) -> Task:
    """The task of a base, as its tokenizer does it.

    Raises:
        InputError: the tokenizer has no token for hidden ones.
    """
    mask_id = 0
    if name == "masked-lm":
        if tokenizer.mask_token_id is None:
            raise InputError(
                "base.task: the tokenizer of this base has no mask token, so nothing can be hidden",
                hint="masked-lm is for encoders such as BERT; a decoder does causal-lm",
            )
        mask_id = int(tokenizer.mask_token_id)
    return Task(name, tuple(labels), mask_id, len(tokenizer), typed)


def count_hidden(tokens: int) -> int:
    """How many of a text's tokens are hidden; always one, or the row would teach nothing."""
    return max(1, round(HIDDEN_SHARE * tokens)) if tokens else 0


def hide(example: Example, task: Task, draw: Sequence[int]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The tokens as the model is shown them, and which it must predict: a pure function of `draw`.

    Args:
        example: of which no special token is ever hidden.
        task: that knows the mask token.
        draw: numbers that decide what is hidden.
    """
    random = np.random.default_rng(list(draw))
    candidates = np.flatnonzero(example.trained)
    chosen = np.sort(random.permutation(candidates)[: count_hidden(len(candidates))])
    shown = example.tokens.astype(np.int64)
    fates = random.random(len(chosen))
    others = random.integers(0, task.vocabulary, len(chosen))
    shown[chosen[fates >= KEPT]] = task.mask_id
    swapped = (fates >= KEPT) & (fates < KEPT + SWAPPED)
    shown[chosen[swapped]] = others[swapped]
    goal = np.zeros(example.length, np.bool_)
    goal[chosen] = True
    return shown, goal


def settle_labels(
    named: Sequence[str] | str, train: Iterable[Example], others: Iterable[Example]
) -> tuple[str, ...]:
    """The labels of a task: those that the recipe names, or those of the training rows, sorted.

    Raises:
        InputError: a held-out row has a label that no training row has.
    """
    seen = {label for example in train for label in example.labels}
    found = tuple(named) if not isinstance(named, str) else tuple(sorted(seen, key=_in_order))
    strange = {
        label: example.where for example in others for label in example.labels if label not in found
    }
    if strange:
        label, where = next(iter(strange.items()))
        raise InputError(
            f"{where}: no training row has the label `{label}`",
            hint=f"correct the row, or name all labels: `base.labels: [{', '.join(found)}, "
            f"{label}]`",
        )
    if len(found) < 2:
        raise InputError(
            f"the training rows have {len(found)} label(s), `{''.join(found)}`: nothing to tell "
            "apart",
            hint="add rows of another class, or name all under `base.labels`",
        )
    return found


def _in_order(label: str) -> tuple[int, int, str]:
    """Numbers by size, before all else by letters."""
    return (0, int(label), label) if label.isdecimal() else (1, 0, label)
