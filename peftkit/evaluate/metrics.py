"""Figures of decisions: accuracy and F1 of classes, labels and spans, ranks and recall."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from peftkit.data.example import Example
    from peftkit.data.task import Task
    from peftkit.evaluate.predictions import Predictions

METRIC = {
    "classification": "accuracy",
    "multi-label": "exact_set",
    "token-classification": "all_tags_right",
    "embedding": "recall_at_1",
}
"""Of each task the figure that is 1 for a row that went right and 0 for another."""


def decide(predictions: Predictions, examples: Sequence[Example], task: Task) -> list[str]:
    """What the model says of each row, as text that a person compares with the expected answer."""
    return [_said(scores, examples, task) for scores in predictions.scores]


def hits_of(
    predictions: Predictions, examples: Sequence[Example], task: Task
) -> NDArray[np.float64] | None:
    """1 where a row went right, 0 elsewhere; None where the task knows no right and wrong."""
    if task.name not in METRIC:
        return None
    if task.name == "embedding":
        found = [int(place) == 0 for place in _places(predictions.scores)]
    else:
        said = decide(predictions, examples, task)
        found = [text == _expected(e, task) for text, e in zip(said, examples, strict=True)]
    return np.array(found, np.float64)


def figures_of(
    predictions: Predictions, examples: Sequence[Example], task: Task
) -> dict[str, float]:
    """What `metrics.json` says of decisions beside their loss."""
    return FIGURES[task.name](predictions.scores, examples, task)


def f1_by_class(truth: Sequence[int], guess: Sequence[int], count: int) -> NDArray[np.float64]:
    """F1 of each class; NaN for one that neither stands in the rows nor was guessed."""
    table = np.zeros((count, count))
    np.add.at(table, (np.asarray(truth, np.int64), np.asarray(guess, np.int64)), 1)
    right, total = np.diag(table), table.sum(0) + table.sum(1)
    with np.errstate(invalid="ignore"):
        found: NDArray[np.float64] = np.where(total > 0, 2 * right / total, np.nan)
    return found


def spans_of(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Entities of a row of tags `B-x`, `I-x`, `O`: kind, first token and the one after the last.

    An `I-x` that continues nothing of its kind begins one, as in conlleval.
    """
    found, start, kind = set(), 0, ""
    for place, tag in enumerate([*tags, "O"]):
        head, _, own = tag.partition("-")
        begins = tag != "O" and (head != "I" or own != kind)
        if kind and (begins or tag == "O"):
            found.add((kind, start, place))
            kind = ""
        if begins:
            start, kind = place, own or tag
    return found


def rank_correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Spearman's: the correlation of ranks, ties sharing theirs; 0 where nothing varies."""
    ranks = [_ranks(values) for values in (first, second)]
    if any(float(values.std()) == 0 for values in ranks):
        return 0.0
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    found: NDArray[np.float64] = (ends - (counts - 1) / 2)[places]
    return found


def _said(scores: NDArray[np.float64], examples: Sequence[Example], task: Task) -> str:
    match task.name:
        case "classification":
            return task.labels[int(scores.argmax())]
        case "multi-label":
            return ", ".join(sorted(task.labels[n] for n in np.flatnonzero(scores > 0)))
        case "token-classification":
            return " ".join(task.labels[number] for number in scores.argmax(-1).tolist())
        case "regression":
            return f"{float(scores[0]):.4g}"
        case _:
            return examples[int(scores.argmax())].answer or ""


def _expected(example: Example, task: Task) -> str:
    if task.name == "multi-label":
        return ", ".join(sorted(example.labels))
    if task.name == "token-classification":
        return " ".join(example.labels)
    return example.labels[0]


def _of_classes(scores: Any, examples: Sequence[Example], task: Task) -> dict[str, float]:
    truth = [task.number(example.labels[0]) for example in examples]
    guess = [int(row.argmax()) for row in scores]
    counts = np.bincount(truth, minlength=len(task.labels))
    recalls = [
        np.mean([g == label for t, g in zip(truth, guess, strict=True) if t == label])
        for label in np.flatnonzero(counts)
    ]
    return {
        "macro_f1": float(np.nanmean(f1_by_class(truth, guess, len(task.labels)))),
        "balanced_accuracy": float(np.mean(recalls)),
        "majority": float(counts.max() / counts.sum()),
    }


def _of_labels(scores: Any, examples: Sequence[Example], task: Task) -> dict[str, float]:
    truth = np.array([[name in e.labels for name in task.labels] for e in examples])
    guess = np.array([row > 0 for row in scores])
    right, total = (truth & guess).sum(0), truth.sum(0) + guess.sum(0)
    by_label = [2 * r / t for r, t in zip(right, total, strict=True) if t]
    return {
        "micro_f1": float(2 * right.sum() / max(total.sum(), 1)),
        "macro_f1": float(np.mean(by_label)) if by_label else 0.0,
    }


def _of_tags(scores: Any, examples: Sequence[Example], task: Task) -> dict[str, float]:
    pairs = [
        (list(example.labels), [task.labels[number] for number in row.argmax(-1).tolist()])
        for example, row in zip(examples, scores, strict=True)
    ]
    agreed = [t == g for truth, guess in pairs for t, g in zip(truth, guess, strict=True)]
    wanted, found = (
        {(row, *span) for row, tags in enumerate(side) for span in spans_of(tags)}
        for side in zip(*pairs, strict=True)
    )
    both = len(wanted & found)
    return {
        "tag_accuracy": float(np.mean(agreed)),
        "span_f1": 2 * both / max(len(wanted) + len(found), 1),
    }


def _of_values(scores: Any, examples: Sequence[Example], _: Task) -> dict[str, float]:
    truth = np.array([float(example.labels[0]) for example in examples])
    guess = np.array([float(row[0]) for row in scores])
    return {
        "mean_absolute_error": float(np.abs(truth - guess).mean()),
        "spearman": rank_correlation(truth, guess),
    }


def _places(scores: Any) -> NDArray[np.int64]:
    """How many other texts stand before each row's own; of equals, all do."""
    found = [int((row >= row[number]).sum()) - 1 for number, row in enumerate(scores)]
    return np.array(found, np.int64)


def _of_neighbors(scores: Any, *_: Any) -> dict[str, float]:
    places = _places(scores)
    return {"recall_at_10": float((places < 10).mean()), "mrr": float((1 / (places + 1)).mean())}


FIGURES: dict[str, Callable[[Any, Sequence[Example], Task], dict[str, float]]] = {
    "classification": _of_classes,
    "multi-label": _of_labels,
    "token-classification": _of_tags,
    "regression": _of_values,
    "embedding": _of_neighbors,
}
"""The figures of each task that decides."""
