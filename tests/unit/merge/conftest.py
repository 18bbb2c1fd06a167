"""What tests of merges share: the modules of this folder, and saved bases."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.append(str(Path(__file__).parent))

from merge_bases import SIZES


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A saved Llama and a saved GPT-2 with random weights."""
    found = {}
    for family in ("llama", "gpt2"):
        torch.manual_seed(0)
        found[family] = tmp_path_factory.mktemp(family)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES))
        model.save_pretrained(found[family])
    return found
