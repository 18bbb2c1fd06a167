"""What the tests of data share: the tokenizer of the tiny base, one token a byte.

And lets them import `rows_alike`, which they share as well.
"""

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="session")
def tokenizer(tiny_llama: Path) -> Any:
    """Not to be changed; `copy.deepcopy` makes one that may be."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_llama)
