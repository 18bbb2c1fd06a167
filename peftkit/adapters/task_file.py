"""`task.json` beside an adapter: the task, the labels and the head that it was trained with."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any, get_args

from peftkit.adapters.verify import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    links_out,
)
from peftkit.disk.weights_header import DamagedFileError, read_header
from peftkit.errors import InputError
from peftkit.recipe.sections.base import LABELLED, Task

if TYPE_CHECKING:
    from pathlib import Path

TASK_FILE = "task.json"
PLAIN: dict[str, Any] = {"task": "causal-lm", "labels": [], "head": None}
"""What an adapter does whose folder does not say."""
HEAD_WEIGHT = re.compile(r"\.(classifier|score|out_proj)\.weight$")
"""How families call the last layer of a head."""
TASKS = {
    "SEQ_CLS": "classification",
    "TOKEN_CLS": "token-classification",
    "SEQ_2_SEQ_LM": "seq2seq",
}
"""peft's names of tasks that are ours too; vectors of a text are taken in many ways."""
MOST_LABELS, WIDEST, LONGEST_NAME = 20_000, 16_384, 1_000
LONGEST = 2**20
"""Bytes that a file from a stranger may take."""


def read_task(folder: Path) -> dict[str, Any]:
    """The task, the labels and the head of an adapter; those of a language model without a file.

    Raises:
        InputError: the file is not what `write_task` writes.
    """
    path = folder / TASK_FILE
    if not path.is_symlink() and not path.exists():
        return PLAIN | _as_peft_says(path.parent)
    try:
        values = json.loads(path.read_text(encoding="utf-8")) if _may_be_read(path) else None
    except (OSError, ValueError, RecursionError):
        values = None
    if not isinstance(values, dict) or (problem := _problem(values)):
        wrong = problem if isinstance(values, dict) else "it is no object of keys"
        raise InputError(
            f"`{path}` does not say what the adapter does: {wrong}",
            hint="get the adapter from its author again",
        )
    return {"labels": [], "head": None} | values


def _as_peft_says(folder: Path) -> dict[str, Any]:
    """What the configuration of somebody else's adapter says of its task, and how many labels."""
    config, weights = config_of(folder), folder / WEIGHTS_FILE
    task = TASKS.get(str(config.get("task_type")))
    if task is None:
        return {}
    if task not in LABELLED:
        return {"task": task}
    outputs = 0
    with suppress(OSError, DamagedFileError):
        found = {name: entry.shape for name, entry in read_header(weights).items()}
        rows = [shape[0] for name, shape in found.items() if HEAD_WEIGHT.search(name)]
        outputs = rows[-1] if rows else 0
    if not 1 < outputs <= MOST_LABELS:
        return {"task": "regression"} if task == "classification" and outputs == 1 else {}
    return {"task": task, "labels": [str(number) for number in range(outputs)]}


def config_of(folder: Path) -> dict[str, Any]:
    """What the adapter's configuration says, as far as it can be read; others say what is wrong."""
    try:
        values = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _may_be_read(path: Path) -> bool:
    """Whether it is a short file of the folder's own."""
    own = path.name not in links_out(path.parent)
    return own and path.is_file() and path.stat().st_size <= LONGEST


def _problem(values: dict[str, Any]) -> str | None:
    labels, head = values.get("labels", []), values.get("head")
    if strange := sorted(values.keys() - {"task", "labels", "head"}):
        return f"`{strange[0]}` is not a key of it"
    if not isinstance(values.get("task"), str) or values["task"] not in get_args(Task):
        return f"`{str(values.get('task'))[:40]}` is not a task"
    named = isinstance(labels, list) and all(_is_name(label) for label in labels)
    if not named or len(labels) > MOST_LABELS or len(set(labels)) < len(labels):
        return "expected names that differ as labels"
    if (len(labels) < 2) == (values["task"] in LABELLED):
        return f"{len(labels)} labels do not go with {values['task']}"
    return None if head is None or _is_head(head) else "expected `hidden` and `dropout` as head"


def _is_head(head: Any) -> bool:
    if not isinstance(head, dict) or head.keys() != {"hidden", "dropout"}:
        return False
    hidden, dropout = head["hidden"], head["dropout"]
    fits = type(hidden) is int and 0 < hidden <= WIDEST
    return fits and type(dropout) is float and 0 <= dropout < 1


def _is_name(label: Any) -> bool:
    return isinstance(label, str) and 0 < len(label) <= LONGEST_NAME and label.isprintable()
