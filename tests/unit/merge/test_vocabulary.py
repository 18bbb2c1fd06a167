"""Rows of vocabularies follow their tokens, wherever a model keeps them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from merge_bases import SIZES
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from peftkit.errors import InputError
from peftkit.merge.checkpoints import merge_checkpoints
from peftkit.merge.terms import Part
from peftkit.merge.vocabulary import Rule, digest_tokens

WORDS = [f"word{number}" for number in range(59)]
ROWS = ("model.embed_tokens.weight", "lm_head.weight")


def write_tokenizer(folder: Path, order: list[str], added: list[str]) -> None:
    words = {"<unk>": 0} | {word: place + 1 for place, word in enumerate(order)}
    plain = Tokenizer(WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = WhitespaceSplit()  # type: ignore[assignment]
    whole: Any = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>")
    whole.add_tokens([AddedToken(token, normalized=False) for token in added])
    whole.save_pretrained(str(folder))


def build(folder: Path) -> Path:
    """A base of 60 tokens with 64 rows."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES))
    model.to(torch.bfloat16).save_pretrained(folder)
    write_tokenizer(folder, WORDS, [])
    return folder


def tune(base: Path, folder: Path, order: list[str], added: tuple[str, ...] = ()) -> Path:
    """A fine-tune whose tokens have other numbers, and whose rows lie as they say."""
    shutil.copytree(base, folder)
    draw = torch.Generator().manual_seed(1)
    tensors = load_file(folder / "model.safetensors")
    for name, weight in tensors.items():
        change = torch.randn(weight.shape, generator=draw) * 0.05 * weight.float().std()
        tensors[name] = (weight.float() + change).bfloat16()
    for name in ROWS:
        old = tensors[name]
        rows = [old[0], *(old[1 + WORDS.index(word)] for word in order)]
        new = torch.randn(len(added), old.shape[1], generator=draw).bfloat16()
        tensors[name] = torch.cat([torch.stack(rows), new])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["vocab_size"] = len(tensors[ROWS[0]])
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder, order, list(added))
    return folder


def merge(base: Path, out: Path, rule: Rule, **models: Path) -> dict[str, torch.Tensor]:
    parts = [Part(name, str(path), 0.5) for name, path in models.items()]
    merge_checkpoints(parts, str(base), out, vocabulary=rule)
    return load_file(out / "model.safetensors")


def test_rows_follow_their_tokens_and_padding_stays(tmp_path: Path) -> None:
    base = build(tmp_path / "base")
    plain = tune(base, tmp_path / "plain", WORDS)
    turned = tune(base, tmp_path / "turned", WORDS[::-1])
    wanted = merge(base, tmp_path / "one", "base", model=plain)
    found = merge(base, tmp_path / "two", "base", model=turned)
    before = load_file(base / "model.safetensors")
    assert sorted(found) == sorted(before)
    for name, weight in found.items():
        assert torch.equal(weight, wanted[name]), name
    for name in ROWS:
        assert torch.equal(found[name][60:], before[name][60:])
        assert (found[name][:60] != before[name][:60]).any(1).all()


@pytest.mark.parametrize("order", [WORDS, WORDS[::-1]])
def test_other_rows_are_refused_unless_a_rule_says_what_becomes_of_them(
    order: list[str], tmp_path: Path
) -> None:
    base = build(tmp_path / "base")
    tuned = tune(base, tmp_path / "tuned", order)
    with pytest.raises(InputError, match="rows of one number are not of one token"):
        merge(base, tmp_path / "out", "same", model=tuned)
    assert not (tmp_path / "out").exists()


def test_without_a_tokenizer_nobody_knows_which_row_is_which(tmp_path: Path) -> None:
    base = build(tmp_path / "base")
    tuned = tune(base, tmp_path / "tuned", WORDS)
    for path in tuned.glob("*token*"):
        path.unlink()
    with pytest.raises(InputError, match=r"no tokenizer\.json that says which is which"):
        merge(base, tmp_path / "out", "base", model=tuned)


def test_the_bases_tokens_are_kept_and_others_left_out(tmp_path: Path) -> None:
    base = build(tmp_path / "base")
    tuned = tune(base, tmp_path / "tuned", WORDS[:50], ("<new>",))
    found = merge(base, tmp_path / "out", "base", model=tuned)
    before = load_file(base / "model.safetensors")
    for name in ROWS:
        assert torch.equal(found[name][51:], before[name][51:])
    said = json.loads((tmp_path / "out" / "merge.json").read_text())["vocabulary"]
    told = {key: said["models"]["model"][key] for key in ("shared", "left_out", "unknown")}
    assert told == {"shared": 51, "left_out": 1, "unknown": 9}


def test_added_tokens_are_united_and_get_the_mean_of_their_rows(tmp_path: Path) -> None:
    base = build(tmp_path / "base")
    one = tune(base, tmp_path / "one", WORDS[::-1], ("<new>", "<a>", "<b>", "<c>", "<d>"))
    two = tune(base, tmp_path / "two", WORDS, ("<e>", "<new>"))
    found = merge(base, tmp_path / "out", "union", one=one, two=two)
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "out")
    tokens = ["<new>", "<a>", "<b>", "<c>", "<d>", "<e>"]
    ids = tokenizer.convert_tokens_to_ids(tokens)
    assert ids == [60, 61, 62, 63, 64, 65]
    assert tokenizer("word3 <new>")["input_ids"] == [4, 60]
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.get_input_embeddings().weight.shape[0] == model.config.vocab_size == 66
    for name in ROWS:
        rows = [load_file(each / "model.safetensors")[name] for each in (one, two)]
        shared = (rows[0][60].float() + rows[1][61].float()) / 2
        assert torch.equal(found[name][60], shared.bfloat16())
        assert torch.equal(found[name][61:65], rows[0][61:65])
        assert torch.equal(found[name][65], rows[1][60])


def test_an_index_says_what_grown_files_take(tmp_path: Path) -> None:
    base = build(tmp_path / "base")
    tuned = tune(base, tmp_path / "tuned", WORDS, ("<a>", "<b>", "<c>", "<d>", "<e>", "<f>"))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES))
    (base / "model.safetensors").unlink()
    model.to(torch.bfloat16).save_pretrained(base, max_shard_size="20KB")
    out = tmp_path / "out"
    merge_checkpoints([Part("tuned", str(tuned))], str(base), out, vocabulary="union")
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = [load_file(path).values() for path in out.glob("model-*.safetensors")]
    assert index["metadata"]["total_size"] == sum(each.nbytes for file in files for each in file)


def test_pieces_of_another_vocabulary_are_no_added_tokens(tmp_path: Path) -> None:
    base = build(tmp_path / "base")
    tuned = tune(base, tmp_path / "tuned", WORDS)
    write_tokenizer(tuned, [*WORDS[:-1], "other"], [])
    with pytest.raises(InputError, match="pieces of another vocabulary"):
        merge(base, tmp_path / "out", "union", model=tuned)


def test_one_tokenizer_written_in_two_ways_has_one_digest(tmp_path: Path) -> None:
    tiny = Path(__file__).parents[3] / "peftkit" / "base" / "tiny"
    shutil.copyfile(tiny / "tokenizer.json", tmp_path / "tokenizer.json")
    assert digest_tokens(tmp_path) == digest_tokens(tiny)
    whole = json.loads((tiny / "tokenizer.json").read_text())
    merges = whole["model"]["merges"]
    split = isinstance(merges[0], list)
    whole["model"]["merges"] = [" ".join(m) if split else m.split(" ") for m in merges]
    whole["model"]["vocab"] = dict(sorted(whole["model"]["vocab"].items()))
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    assert digest_tokens(tmp_path) == digest_tokens(tiny)
    whole["model"]["merges"].pop()
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    assert digest_tokens(tmp_path) != digest_tokens(tiny)
