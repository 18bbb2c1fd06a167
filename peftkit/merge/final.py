"""The last adapter of several that were trained one above the other, as one that stands alone.

Above one another means that each was trained on a base with the others in it, or beside it. Where
all are low-rank updates, their sum is one too, and exactly the same function; where the last one
holds every number that those below it changed, it is enough by itself. Of anything else the folder
is a copy, which needs those below it.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING, Any

from peftkit.adapters.folders import NOTE, expand
from peftkit.adapters.module_tensors import PREFIX
from peftkit.adapters.task_file import PLAIN
from peftkit.adapters.verify import CONFIG_FILE, DELTA_FILE, WEIGHTS_FILE
from peftkit.disk.durable import whole_folder
from peftkit.disk.weights_header import read_header
from peftkit.merge.delta import Delta

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def save_final(last: Path, out: Path) -> dict[str, Any]:
    """Write the adapter that a chain ends in to `out`, and say what it is and what it needs.

    Args:
        last: the folder of the topmost adapter.
        out: a folder that is not there yet.

    Raises:
        InputError: what it was trained above is not there, or no longer what it was.
        WriteError: it could not be written.
    """
    chain = expand(last)
    names = [each.parent.name for each in chain]
    if len(chain) > 1 and not _covers(chain) and _are_sums(chain):
        _add_up(chain).save(out)
        return {"form": "sum", "of": names, "needs": []}
    alone = len(chain) == 1 or _covers(chain)
    _copy(last, out, leave=(NOTE,) if alone else ())
    return {"form": "copy", "of": names[-1:], "needs": [] if alone else names[:-1]}


def _copy(folder: Path, out: Path, leave: Sequence[str]) -> None:
    paths = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name not in leave]
    with whole_folder(out, sum(path.stat().st_size for path in paths)) as building:
        for path in paths:
            shutil.copyfile(path, building / path.name)


def _covers(chain: Sequence[Path]) -> bool:
    """Whether the last one brings every tensor whole that those below it changed."""
    *below, last = (_names(folder) for folder in chain)
    own = [(folder / DELTA_FILE).exists() for folder in chain[:-1]]
    return all(own) and all(names <= last for names in below)


def _names(folder: Path) -> set[str]:
    """The parameters that an adapter brings, by the names that they have in the base."""
    path = folder / DELTA_FILE
    found = read_header(path if path.exists() else folder / WEIGHTS_FILE)
    return {name.removeprefix(PREFIX) for name in found}


def _are_sums(chain: Sequence[Path]) -> bool:
    """Whether all are plain low-rank updates, and no head is left that the last one lacks."""
    configs = [json.loads((each / CONFIG_FILE).read_text(encoding="utf-8")) for each in chain]
    plain = all(c["peft_type"] == "LORA" and not c.get("use_dora") for c in configs)
    heads = [set(config.get("modules_to_save") or ()) for config in configs]
    return plain and all(head <= heads[-1] for head in heads)


def _add_up(chain: Sequence[Path]) -> Delta:
    """The sum of all, for the task of the last and with its head."""
    *below, last = (Delta.load(folder) for folder in chain)
    alone: dict[str, Any] = {"under": []}
    parts = [_of_shared(each, last) for each in below]
    return reduce(Delta.__add__, [replace(last, facts={**last.facts, **alone}), *parts])


def _of_shared(delta: Delta, last: Delta) -> Delta:
    """What a change is to a model of the last one's task, which may have another head."""
    facts: dict[str, Any] = {"task_type": None, "task": PLAIN, "modules_to_save": None, "under": []}
    there = {name.partition(".")[0] for name in last.low}
    return replace(
        delta,
        low={n: each for n, each in delta.low.items() if n.partition(".")[0] in there},
        dense={n: each for n, each in delta.dense.items() if n.partition(".")[0] in there},
        kept={},
        facts={**delta.facts, **facts},
    )
