"""The model card: true, complete, loadable as it says, and silent about the machine."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from peftkit.report.card import MADE_BY, build_card

RECORDS = Path(__file__).parents[1] / "publish/run"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(RECORDS, tmp_path / "shakespeare"))
    config = {"peft_type": "LORA", "r": 4, "task_type": "CAUSAL_LM", "target_modules": ["q_proj"]}
    (folder / "adapter").mkdir()
    (folder / "adapter/adapter_config.json").write_text(json.dumps(config))
    return folder


def edit(run: Path, name: str, change: Callable[[Any], Any]) -> None:
    value = json.loads((run / name).read_text())
    change(value)
    (run / name).write_text(json.dumps(value))


def front(card: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(card.split("---")[1])
    return found


def code(card: str) -> str:
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 1
    return str(blocks[0])


def test_the_metadata_is_what_a_hub_reads(run: Path) -> None:
    card = build_card(run)
    found = front(card)
    assert found["base_model"] == "org/tiny"
    assert found["base_model_relation"] == "adapter"
    assert found["library_name"] == "peft"
    assert found["pipeline_tag"] == "text-generation"
    assert found["license"] == "apache-2.0"
    assert found["language"] == ["en"]
    assert found["datasets"] == ["org/extra"]
    assert found["tags"] == ["peftkit", "lora", "shakespeare"]
    results = ModelCard(card).data.eval_results
    assert {(item.metric_type, item.metric_value) for item in results} == {
        ("loss", 2.661),
        ("loss_per_byte", 0.665),
        ("perplexity", 14.31),
    }


@pytest.mark.parametrize(
    "fact",
    [
        "# shakespeare-lora",
        "LoRA adapter of rank 4",
        "1,408 parameters, 4.02 %",
        "| Loss (validation) | 5.021 | 2.661 | \u22122.360 | \u22122.440 to \u22122.280 | better |",
        "Measured on 50 validation rows",
        "| general stories.txt | 1.880 | 3.070 |",
        "**warning** (forgetting): Loss on `general stories.txt` rose",
        "| train | chat.jsonl | 900 | 55,000 |",
        "nearly",
        f"commit `{'b' * 40}`",
        f"`{'d' * 64}`",
        "torch 2.13.0",
        "learning_rate: 0.003",
        "under `apache-2.0`",
        "no test set",
        "backdoor",
        MADE_BY,
    ],
)
def test_the_facts_of_the_run_are_told(run: Path, fact: str) -> None:
    assert fact in build_card(run)


def test_what_is_fine_and_what_is_private_is_not_told(run: Path) -> None:
    card = build_card(run)
    assert "no validation row is a training row" not in card
    for private in ("jane", "acme", "/home", "a private row", "More Information Needed"):
        assert private not in card


def test_folders_with_spaces_in_their_names_are_not_told_either(run: Path) -> None:
    source = "/home/jane doe/acme secret/rows of mine.jsonl"
    edit(run, "recipe.resolved.json", lambda r: r["data"]["train"][0].update(source=source))
    edit(run, "data.json", lambda data: data["train"]["sources"][0].update(source=source))
    card = build_card(run)
    assert card.count("rows of mine.jsonl") == 2
    assert "doe" not in card
    assert "acme" not in card


@pytest.mark.parametrize(
    ("helped", "words"),
    [
        ("yes", "**It helped.**"),
        ("no", "**It did not help:** prefer the base as it is."),
        ("unclear", "**Whether it helps is not clear.**"),
        ("perhaps", "**Whether it helps is not clear.**"),
    ],
)
def test_the_verdict_is_said_plainly_and_first(run: Path, helped: str, words: str) -> None:
    edit(run, "metrics.json", lambda metrics: metrics["verdict"].update(helped=helped))
    card = build_card(run)
    assert card.index(words) < card.index("## ")


def test_a_run_that_was_not_evaluated_says_so(run: Path) -> None:
    (run / "metrics.json").unlink()
    card = build_card(run)
    assert "It was not evaluated" in card
    assert "the run holds no figures" in card
    assert "model-index" not in front(card)


def test_the_bare_minimum_still_makes_a_card(tmp_path: Path) -> None:
    config = {"peft_type": "LORA", "r": 4, "base_model_name_or_path": "/home/jane/tiny"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    card = build_card(tmp_path)
    assert "LoRA adapter of rank 4 for `tiny`" in card
    assert "jane" not in card
    assert "None" not in card
    assert front(card)["license"] == "other"


@pytest.mark.parametrize("name", ["lock.json", "plan.json", "data.json", "recipe.resolved.json"])
@pytest.mark.parametrize("damage", [None, "", "{", "[]", '"text"', "null"])
def test_no_damage_to_a_record_keeps_the_card_from_being_written(
    run: Path, name: str, damage: str | None
) -> None:
    (run / name).unlink()
    if damage is not None:
        (run / name).write_text(damage)
    card = build_card(run)
    assert card.count("## Limits") == 1
    assert "None" not in card
    assert front(card)["library_name"] == "peft"


def test_names_cannot_become_markup(run: Path) -> None:
    evil = "x | y](http://evil) <script>alert(1)</script>"
    edit(run, "data.json", lambda data: data["train"]["sources"][0].update(source=evil))
    edit(run, "metrics.json", lambda metrics: metrics["verdict"].update(sentence=evil + "\n# Top"))
    outside_code = re.sub(r"```.*?```", "", build_card(run), flags=re.DOTALL)
    assert "<script>" not in outside_code
    assert "\n# Top" not in outside_code
    assert "](http://evil)" not in outside_code.replace("\\]", "")


def test_a_base_in_a_folder_is_named_by_folder_and_digest(run: Path) -> None:
    edit(
        run,
        "lock.json",
        lambda lock: lock["base"].update(model="/home/jane/acme-secret/tiny", commit=None),
    )
    card = build_card(run)
    assert "base_model" not in front(card)
    assert "a folder called `tiny`" in card
    assert "d" * 64 in card
    assert "path/to/tiny" in code(card)
    assert "jane" not in card


def test_the_owner_may_name_the_base_and_the_repository(run: Path) -> None:
    edit(run, "lock.json", lambda lock: lock["base"].update(model="/x/y/tiny", commit=None))
    card = build_card(run, base="org/tiny", repo="me/chat")
    assert front(card)["base_model"] == "org/tiny"
    assert 'from_pretrained("org/tiny")' in code(card)
    assert 'PeftModel.from_pretrained(base, "me/chat")' in code(card)


def test_a_base_in_fewer_bits_than_the_lines_load_is_told(run: Path) -> None:
    assert "packed in" not in build_card(run)
    edit(run, "recipe.resolved.json", lambda recipe: recipe["base"].update(quantize="nf4"))
    assert "measured on the base packed in nf4" in build_card(run)


def test_a_tokenizer_of_its_own_is_the_one_that_is_loaded(run: Path) -> None:
    (run / "adapter/tokenizer_config.json").write_text("{}")
    assert 'AutoTokenizer.from_pretrained("me/chat")' in code(build_card(run, repo="me/chat"))


def test_a_classifier_of_batches_knows_what_fills_them_up(run: Path) -> None:
    assert "pad_token" not in code(build_card(run))
    edit(run, "adapter/adapter_config.json", lambda config: config.update(task_type="SEQ_CLS"))
    lines = code(build_card(run))
    attach, fill = lines.index("PeftModel.from_"), lines.index("base.config.pad_token_id =")
    assert lines.index("tokenizer = ") < fill < attach


def test_new_tokens_need_a_base_that_has_been_resized(run: Path) -> None:
    assert "resize_token_embeddings" not in code(build_card(run))
    (run / "adapter/tokenizer_config.json").write_text("{}")
    rows = {"model.embed_tokens": [64, 65]}
    edit(run, "adapter/adapter_config.json", lambda it: it.update(trainable_token_indices=rows))
    grow, attach = "base.resize_token_embeddings(max(rows, len(tokenizer)))", "PeftModel.from_"
    lines = code(build_card(run))
    assert lines.index("rows = ") < lines.index(grow) < lines.index(attach)


@pytest.mark.parametrize(
    "kind", ["LORA", "IA3", "PREFIX_TUNING", "BOTTLENECK", "FULL", "HEAD", "LN_TUNING"]
)
@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_CLS", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION"])
@pytest.mark.parametrize("model", ["org/tiny", "builtin:tiny", "/x/y/tiny"])
@pytest.mark.parametrize("repo", ["me/chat", None])
def test_the_lines_are_python_that_imports_what_it_uses(
    run: Path, kind: str, task: str, model: str, repo: str | None
) -> None:
    commit = "b" * 40 if model == "org/tiny" else None
    edit(run, "lock.json", lambda lock: lock["base"].update(model=model, commit=commit))
    edit(
        run,
        "adapter/adapter_config.json",
        lambda config: config.update(peft_type=kind, task_type=task),
    )
    lines = code(build_card(run, repo=repo))
    compile(lines, "card", "exec")
    for name in ("PeftModel", "load_file", "hf_hub_download", "BUILTIN", "AutoTokenizer"):
        assert (f"import {name}" in lines or f", {name}" in lines) == (
            re.search(rf"{name}[.(\[]", lines) is not None
        )
    assert ("generate" in lines) == (task in ("CAUSAL_LM", "SEQ_2_SEQ_LM"))


@pytest.mark.parametrize(("kind", "said"), [("BOTTLENECK", True), ("LORA", False)])
def test_what_peft_alone_stops_at_is_told(run: Path, kind: str, *, said: bool) -> None:
    edit(run, "adapter/adapter_config.json", lambda config: config.update(peft_type=kind))
    assert ("KeyError: 'BOTTLENECK'" in build_card(run, repo="me/chat")) is said


@pytest.mark.parametrize("kind", ["LORA", "FULL"])
def test_the_lines_run(
    kind: str,
    run: Path,
    tiny_llama: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import peft
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    edit(run, "lock.json", lambda lock: lock["base"].update(model="/x/y/tiny", commit=None))
    adapter = run / "adapter"
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    if kind == "LORA":
        config = peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
        peft.get_peft_model(model, config).save_pretrained(
            str(adapter), save_embedding_layers=False
        )
    else:
        edit(run, "adapter/adapter_config.json", lambda config: config.update(peft_type="FULL"))
        save_file(
            {name: value.detach() for name, value in model.named_parameters()},
            adapter / "delta.safetensors",
        )
    shutil.copytree(tiny_llama, adapter / "path/to/tiny")
    monkeypatch.chdir(adapter)
    exec(code(build_card(run)), {})
    assert capsys.readouterr().out.startswith("Once upon a time")
