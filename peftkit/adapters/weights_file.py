"""Write tensors to a safetensors file: finite ones only, and failures as the system names them.

safetensors reports a full disk as an error of its own, which says the number of the system's error
only in its text.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import save_file

from peftkit.base.finite import first_not_finite
from peftkit.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor


def write_weights(
    tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write `tensors` to `path`, from wherever they are.

    Raises:
        RunError: a tensor holds a NaN or an infinity; nothing is written.
        OSError: the file could not be written.
    """
    if name := first_not_finite(tensors.items()):
        raise RunError(
            f"`{name}` holds numbers that are not finite, so it was not saved",
            hint="lower `train.learning_rate` or raise `train.warmup`, and give the same command "
            "with `--fresh`; what was saved before is finite",
        )
    # safetensors refuses tensors that share memory, as those of one flat buffer do.
    kept = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        save_file(kept, path, metadata=metadata)
    except SafetensorError as problem:
        found = re.search(r"os error (\d+)", str(problem))
        if found is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from problem
