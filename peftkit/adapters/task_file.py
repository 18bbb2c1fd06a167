"""`task.json` beside an adapter: the task, the labels and the head that it was trained with."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from peft import PeftModel

from peftkit.adapters.head import head_of, put_on_head
from peftkit.adapters.module_tensors import PREFIX
from peftkit.adapters.verify import (
    CONFIG_FILE,
    DELTA_FILE,
    WEIGHTS_FILE,
    links_out,
    module_shapes,
)
from peftkit.base.tasks import AUTO, NEW_HEAD, new_parts, task_of
from peftkit.disk.weights_header import DamagedFileError, read_header
from peftkit.errors import InputError
from peftkit.recipe.sections.base import LABELLED

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


def write_task(model: Any, folder: Path) -> None:
    """Say beside the adapter what it was trained to do, unless that is to write on."""
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    values = task_of(plain)
    if values["task"] == "causal-lm" and head_of(plain) is None:
        return
    if (head := head_of(plain)) is not None:
        values = values | {"head": head}
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    (folder / TASK_FILE).write_text(text, encoding="utf-8")


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
    config, weights = _config_of(folder), folder / WEIGHTS_FILE
    task = TASKS.get(str(config.get("task_type")))
    if task is None:
        return {}
    if task not in NEW_HEAD:
        return {"task": task}
    outputs = 0
    with suppress(OSError, DamagedFileError):
        found = {name: entry.shape for name, entry in read_header(weights).items()}
        rows = [shape[0] for name, shape in found.items() if HEAD_WEIGHT.search(name)]
        outputs = rows[-1] if rows else 0
    if not 1 < outputs <= MOST_LABELS:
        return {"task": "regression"} if task == "classification" and outputs == 1 else {}
    return {"task": task, "labels": [str(number) for number in range(outputs)]}


def restore_head(model: Any, folder: Path) -> None:
    """Give the model the head that the adapter brings, before its weights are read.

    One that only stood on such a head names it too, and finds it there.
    """
    head, kind = read_task(folder)["head"], _config_of(folder).get("peft_type")
    if head is not None and kind == "HEAD":
        put_on_head(model, head["hidden"], head["dropout"])


def shared_shapes(model: Any, folder: Path) -> dict[str, tuple[int, ...]]:
    """Sizes of the modules that an adapter may be about: of one for another task, not its head."""
    shapes = module_shapes(model)
    if not (heads := heads_to_pass(model, folder)):
        return shapes
    return {name: size for name, size in shapes.items() if not re.fullmatch(heads, name)}


def heads_to_pass(model: Any, folder: Path) -> str | None:
    """A pattern of the modules that an adapter for another task never knew; None where it did.

    Those that its own configuration leaves out are among them, for the pattern takes their place.
    """
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    knew = read_task(folder)["task"] == task_of(plain)["task"]
    heads = [re.escape(name) for name in new_parts(plain)]
    config = _config_of(folder)
    if knew or not heads or config.get("modules_to_save"):
        return None
    pattern = rf"(?:.*\.)?(?:{'|'.join(heads)})(?:\..*)?"
    out = config.get("exclude_modules") or []
    if isinstance(out, str):
        return rf"{pattern}|{re.escape(out)}"
    return rf"{pattern}|(?:.*\.)?(?:{'|'.join(map(re.escape, out))})" if out else pattern


def left_behind(model: Any, folder: Path) -> frozenset[str]:
    """Tensors of an adapter that a model of another task has no place for: those of its own head.

    Where nothing would be left, none is left behind, and whoever checks the adapter will say so.
    """
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    if read_task(folder)["task"] == task_of(plain)["task"]:
        return frozenset()
    there = {"base_model", *(name.partition(".")[0] for name, _ in plain.named_modules())}
    names: list[str] = []
    for path in (folder / name for name in (WEIGHTS_FILE, DELTA_FILE)):
        with suppress(OSError, DamagedFileError):
            names += read_header(path)
    left = [n for n in names if n.removeprefix(PREFIX).partition(".")[0] not in there]
    return frozenset(left if len(left) < len(names) else ())


def _config_of(folder: Path) -> dict[str, Any]:
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
    if not isinstance(values.get("task"), str) or values["task"] not in AUTO:
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
