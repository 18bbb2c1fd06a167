"""The first thing a newcomer runs: it works, and others can load what it leaves."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from peftkit.base.locate import BUILTIN
from peftkit.pipeline.target import open_target

pytestmark = pytest.mark.slow
QUICKSTART = Path(__file__).resolve().parents[2] / "recipes" / "quickstart.yaml"


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("quickstart") / "run"
    command = [sys.executable, "-m", "peftkit", "finetune", str(QUICKSTART), "--out", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "the adapter helped" in done.stdout
    assert str(run / "report.html") in done.stdout
    assert "tokens/s" in done.stderr
    return run


def test_the_base_cannot_and_the_adapted_model_can(quickstart: Path) -> None:
    metrics = json.loads((quickstart / "metrics.json").read_text())
    assert metrics["baselines"]["base"]["test"]["exact_match"] <= 0.10
    assert metrics["test"]["exact_match"] >= 0.80
    assert metrics["difference"]["test"]["exact_match"]["low"] > 0.5
    assert metrics["test"]["stopped"] >= 0.95


def test_vanilla_peft_and_transformers_give_the_same_logits(quickstart: Path) -> None:
    folder = BUILTIN["builtin:tiny"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([tokenizer("The cat must not go into the hall.")["input_ids"]])
    ours = open_target(str(quickstart)).model
    with torch.inference_mode():
        plain = base(ids).logits
        theirs = PeftModel.from_pretrained(base, str(quickstart / "adapter")).eval()(ids).logits
        assert torch.equal(ours(ids).logits, theirs)
    assert (theirs - plain).abs().max() > 0.1


def test_the_embedded_base_is_small_and_whole() -> None:
    folder = BUILTIN["builtin:tiny"]
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 3_500_000
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert sum(p.numel() for p in model.parameters()) <= 1_500_000
    tokenizer = AutoTokenizer.from_pretrained(folder)
    every_byte = bytes(range(256)).decode("latin-1") + "ünï 🎉"
    assert tokenizer.decode(tokenizer(every_byte)["input_ids"]) == every_byte
