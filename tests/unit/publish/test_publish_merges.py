"""A merge that is published takes along what it was made of, and its card says so."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from peftkit.cli.main import main
from peftkit.pipeline.provenance import add_to_record
from peftkit.publish.publish import publish

SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    for name in ("chat", "code"):
        base = LlamaForCausalLM(LlamaConfig(**SMALL, num_attention_heads=4))
        model: Any = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"]))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        model.peft_config["default"].base_model_name_or_path = "org/base"
        model.peft_config["default"].task_type = "CAUSAL_LM"
        model.save_pretrained(tmp_path / name, save_embedding_layers=False)
    words = ["--adapter", f"chat={tmp_path}/chat", "--adapter", f"code={tmp_path}/code"]
    out = tmp_path / "merged"
    assert main(["merge", "chat - 0.5*code", *words, "--rank", "4", "--out", str(out)]) == 0
    return out


def test_a_merge_takes_along_what_it_was_made_of(merged: Path, tmp_path: Path) -> None:
    said = json.loads((merged / "merge.json").read_text())
    done = publish(merged, "me/merged", dry_run=True, out=tmp_path / "tree")
    assert [warning for warning in done.warnings if "its run" in warning] == []
    assert "merge.json" in done.files
    text = (tmp_path / "tree" / "merge.json").read_text()
    told = json.loads(text)
    assert [each["at"] for each in told["parents"]] == ["chat", "code"]
    assert told["recipe"]["adapters"] == {"chat": "chat", "code": "code"}
    assert (told["base"]["name"], told["weights"]) == ("org/base", {"chat": 1.0, "code": -0.5})
    assert "../" not in text
    assert str(tmp_path) not in text
    card = (tmp_path / "tree" / "README.md").read_text()
    assert "`chat - 0.5*code`, by the exact sum." in card
    for parent in said["parents"]:
        assert parent["digest"] in card
    assert f"lost {said['error']['relative']:.2g} of the change" in card
    assert "**It was not evaluated:**" in card


def test_the_card_of_a_judged_merge_shows_the_figures(merged: Path, tmp_path: Path) -> None:
    sets = [
        {"name": "chat", "metric": "loss", "rows": 32, "models": {"base": 2.0, "merged": 1.25}},
        {"name": "control", "metric": "loss", "rows": 8, "models": {"base": 3.0, "merged": 3.5}},
    ]
    verdict = {"helped": "yes", "sentence": "the merge does what its parents do"}
    add_to_record(merged, "evaluation", {"verdict": verdict, "sets": sets})
    publish(merged, "me/merged", dry_run=True, out=tmp_path / "tree")
    card = (tmp_path / "tree" / "README.md").read_text()
    assert "**It does what it was made for.** The merge does what its parents do." in card
    assert "| rows of | figure | base | merged | rows |" in card
    assert "| chat | loss | 2 | 1.25 | 32 |" in card
    assert "Nothing: the run holds no figures." not in card
