"""The task that an adapter was trained for, beside the one that a model does."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from peft import PeftModel

from peftkit.adapters.head import head_of, put_on_head
from peftkit.adapters.module_tensors import PREFIX
from peftkit.adapters.task_file import TASK_FILE, config_of, read_task
from peftkit.adapters.verify import DELTA_FILE, WEIGHTS_FILE, module_shapes
from peftkit.base.tasks import new_parts, task_of
from peftkit.disk.weights_header import DamagedFileError, read_header

if TYPE_CHECKING:
    from pathlib import Path


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


def restore_head(model: Any, folder: Path) -> None:
    """Give the model the head that the adapter brings, before its weights are read.

    One that only stood on such a head names it too, and finds it there.
    """
    head, kind = read_task(folder)["head"], config_of(folder).get("peft_type")
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
    config = config_of(folder)
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
