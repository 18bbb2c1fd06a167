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
    # With embeddings before the text the base counts positions by itself, which is what is wanted.
    "Position ids are not supported for parameter efficient tuning.*",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Known meaningless warnings and bars of transformers and peft are not shown inside."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            for message in MEANINGLESS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        if shown:
            logging.enable_progress_bar()
