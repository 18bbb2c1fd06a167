"""`merge`, `fold` and `extract` as they are typed: what they print, write and refuse."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from peftkit import Delta
from peftkit.adapters.folders import digest_of
from peftkit.cli.main import main
from peftkit.pipeline.merge import merge
from peftkit.pipeline.watch import Silent
from peftkit.recipe.load import make_merge

SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base and two adapters of it."""
    folder = tmp_path_factory.mktemp("merge")
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SMALL, num_attention_heads=4)).save_pretrained(folder / "base")
    for name, rank in (("chat", 4), ("code", 6)):
        base = LlamaForCausalLM.from_pretrained(folder / "base")
        config = LoraConfig(r=rank, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
        model: Any = get_peft_model(base, config)
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(folder / name)
    return folder


def run(place: Path, *words: str) -> int:
    return main([word.replace("@", f"{place}/") for word in words])


BOTH = ("--adapter", "chat=@chat", "--adapter", "code=@code")


def test_a_formula_becomes_an_adapter(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "merged"
    assert run(place, "merge", "chat - 0.5*code", *BOTH, "--out", str(out)) == 0
    printed = capsys.readouterr().out
    assert "merged = 1*chat - 0.5*code" in printed
    assert "exact" in printed
    wanted = Delta.load(place / "chat") - 0.5 * Delta.load(place / "code")
    assert (Delta.load(out) - wanted).norm < 1e-6 * wanted.norm
    terms = json.loads((out / "merge.json").read_text())["terms"]
    assert [(each["name"], each["weight"]) for each in terms] == [("chat", 1.0), ("code", -0.5)]


def test_a_dry_run_tells_what_a_cut_would_cost(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("merge", "chat + code", *BOTH, "--rank", "4", "--json")
    assert run(place, *words, "--dry-run") == 0
    facts = json.loads(capsys.readouterr().out)
    one, other = Delta.load(place / "chat"), Delta.load(place / "code")
    assert facts["out"] is None
    assert facts["error"] == pytest.approx((one + other).compress(rank=4).error.relative)
    assert facts["merged"]["ranks"] == [4, 4]
    (pair,) = facts["pairs"]
    assert pair["cosine"] == pytest.approx(one.cosine(other))
    assert pair["shared_modules"] == 4
    assert 0 < facts["canceled"] < 1
    out = tmp_path / "merged"
    assert run(place, *words, "--fail-above", "0.1", "--out", str(out)) == 1
    assert "nothing was saved" in capsys.readouterr().err
    assert not out.exists()


class Looker(Silent):
    """Notes what is told, and whether the result stood there by then."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.told: list[tuple[str, bool]] = []

    def say(self, line: str) -> None:
        self.told.append((line, self.out.exists()))


def test_what_a_cut_loses_is_told_before_anything_is_written(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    looker = Looker(out)
    values = {
        "name": "both",
        "adapters": {name: str(place / name) for name in ("chat", "code")},
        "expression": "chat + code",
        "output": {"rank": 4},
    }
    found = merge(make_merge(values, {}), out, watch=looker)
    ((line, there),) = looker.told
    assert line.startswith(f"the cut loses {found.facts['error']:.3g} of the change, most in ")
    assert not there
    assert out.exists()
    exact = Looker(tmp_path / "exact")
    merge(make_merge(values | {"output": {}}, {}), exact.out, watch=exact)
    assert exact.told == []


def test_another_method_says_what_its_cut_costs(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("merge", "chat + code", *BOTH, "--method", "ties", "--setting", "keep=0.3")
    assert run(place, *words, "--dry-run") == 2
    assert "`--rank 16`, or `--energy 0.99`" in capsys.readouterr().err
    out = tmp_path / "merged"
    assert run(place, *words, "--rank", "8", "--out", str(out), "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["method"], facts["settings"]["keep"]) == ("ties", 0.3)
    assert 0 < facts["error"] < 1
    assert {change.rank for change in Delta.load(out).low.values()} == {8}


def test_a_fold_and_what_it_gives_back(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folded, back = str(tmp_path / "folded"), str(tmp_path / "back")
    assert run(place, "fold", "@chat", "--out", folded, "--json") == 0
    assert json.loads(capsys.readouterr().out)["relative"] < 1e-6
    assert run(place, "extract", folded, "@base", "--out", back, "--rank", "4", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["error"] < 1e-5
    assert [each["rank"] for each in facts["error_by_rank"]] == [1, 2]
    errors = [each["error"] for each in facts["error_by_rank"]]
    assert errors == sorted(errors, reverse=True)
    delta = Delta.load(place / "chat")
    assert (Delta.load(back) - delta).norm < 1e-5 * delta.norm


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("merge", "chat + cod", *BOTH, "--dry-run"), 2, "did you mean `code`?"),
        (("merge", "chat", *BOTH, "--dry-run"), 2, "`code` is not in the formula `chat`"),
        (("merge", "chat + code", *BOTH), 2, "`--out DIR` is missing"),
        (("merge", "a", "--adapter", "chat", "--dry-run"), 2, "expected a name of letters"),
        (("merge", "a", "--adapter", "a=x", "--adapter", "a=y", "--dry-run"), 2, "stands twice"),
        (("merge", "a", "--adapter", "a=@base", "--dry-run"), 2, "is a whole model"),
        (("merge", "a", "--adapter", "a=@none", "--dry-run"), 2, "is not an adapter"),
        (("merge", "chat - chat", *BOTH[:2], "--out", "@zero"), 65, "cancel in every layer"),
        (
            ("merge", "chat", *BOTH[:2], "--dry-run", "--rank", "2", "--energy", "0.5"),
            2,
            "keep one",
        ),
        (("merge", "chat", *BOTH[:2], "--dry-run", "--method", "tise"), 2, "did you mean `ties`"),
        (
            ("merge", "chat", *BOTH[:2], "--dry-run", "--setting", "keep"),
            2,
            "expected a key and a value",
        ),
        (("extract", "@base", "@base", "--out", "@none"), 65, "nothing is left"),
    ],
)
def test_mistakes_are_told(
    words: tuple[str, ...],
    code: int,
    said: str,
    place: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(place, *words) == code
    assert said in capsys.readouterr().err
    assert not (place / "zero").exists()
    assert not (place / "none").exists()


def test_nothing_else_is_ever_replaced(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(place.rglob("*"))
    merge = ("merge", "chat + code", *BOTH, "--out")
    config = "@chat/adapter_config.json"
    fold = ("fold", "@chat", "--out", "@base")
    for words in ((*merge, "@chat"), (*merge, str(place)), (*merge, config), fold):
        assert run(place, *words) == 2
        assert "holds something else" in capsys.readouterr().err
    assert sorted(place.rglob("*")) == before
    for _ in range(2):  # but an earlier result is
        assert run(place, *merge, str(tmp_path / "merged")) == 0


def test_an_adapter_above_another_is_said_to_be_one(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    above = tmp_path / "above"
    shutil.copytree(place / "code", above)
    note = {"name": "chat", "sha256": digest_of(place / "chat")}
    (above / "under.json").write_text(json.dumps(note))
    adapter = ("--adapter", f"above={above}")
    assert run(place, "merge", "2*above", *adapter, "--out", str(tmp_path / "twice")) == 0
    assert "a term was trained above `chat`" in capsys.readouterr().out
    noted = json.loads((tmp_path / "twice" / "merge.json").read_text())
    assert noted["trained_above"] == [note | {"folded": False}]
    assert run(place, "fold", str(above), "--out", str(tmp_path / "folded")) == 65
    assert "trained above another, `chat`" in capsys.readouterr().err
    both = ("merge", "chat + above", *BOTH[:2], *adapter, "--out", str(tmp_path / "both"))
    assert run(place, *both) == 0
    assert "trained above" not in capsys.readouterr().out
    folded = str(tmp_path / "folded")
    assert run(place, "fold", "@chat", "--out", folded) == 0
    words = ("fold", str(above), "--base", folded, "--out", str(tmp_path / "whole"))
    assert run(place, *words) == 0


def test_new_tokens_keep_their_tokenizer(place: Path, tmp_path: Path) -> None:
    base = LlamaForCausalLM.from_pretrained(place / "base")
    config = LoraConfig(
        r=2,
        target_modules=["q_proj"],
        trainable_token_indices={"embed_tokens": [62, 63]},
        task_type="CAUSAL_LM",
    )
    model: Any = get_peft_model(base, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "tokens")
    (tmp_path / "tokens" / "tokenizer.json").write_text('{"added_tokens": []}')
    tokens, chat = Delta.load(tmp_path / "tokens"), Delta.load(place / "chat")
    for number, total in enumerate((tokens + chat, chat + tokens)):
        total.save(tmp_path / str(number))
        copied = tmp_path / str(number) / "tokenizer.json"
        assert copied.read_text() == '{"added_tokens": []}'
