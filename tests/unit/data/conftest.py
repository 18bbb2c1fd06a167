"""What the tests of data share: the tokenizer of the tiny base, one token a byte."""

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def tokenizer(tiny_llama: Path) -> Any:
    """Not to be changed; `copy.deepcopy` makes one that may be."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_llama)
