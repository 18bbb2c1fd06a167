"""Noise of other libraries that tells a user nothing: each piece with its reason."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

from transformers.utils import logging

if TYPE_CHECKING:
    from collections.abc import Iterator

MEANINGLESS = (
    # peft 0.21 reads a name that transformers 5.23 has renamed; nobody here can change either.
    ".*is_gradient_checkpointing.* is deprecated.*",
    # Tied embeddings matter to a merge only where they are adapted, and ours are layers of blocks.
    ".*tie_word_embeddings.*",
    # What `adapter.bias` costs is said where the key is; nothing is merged while this is shown.
    ".*lora_bias=True. was passed but the targeted layer.*",
    # peft 0.21 takes every vector of an adapter for what is left of a matrix that was divided.
    r".*LoRA tensor\(s\) have invalid shape: \S+\.lora_B\.bias:.*",
    # peft puts it right layer by layer, and the word it writes down is that of the last layer.
    "fan_in_fan_out is set to .*",
    # Only where an adapter is saved under another name than peft's own, which ours never are.
    "Adapter name .* should not be contained in the prefix.*",
    # With embeddings before the text the base counts positions by itself, which is what is wanted.
    "Position ids are not supported for parameter efficient tuning.*",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Known meaningless warnings and bars of transformers and peft are not shown inside."""
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # it reports a new head as a table of missing weights
    try:
        with warnings.catch_warnings():
            for message in MEANINGLESS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
