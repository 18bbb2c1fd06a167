"""Merges that a file asks for: by layer, without parts, with heads, as weights, made again."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from peftkit import Delta
from peftkit.cli.main import main
from peftkit.pipeline.provenance import add_to_record

SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
IDS = torch.arange(24).reshape(2, 12)


def adapt(model: Any, config: LoraConfig, folder: Path, seed: int = 1) -> Path:
    adapted: Any = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, two adapters of it, a fine-tune, and two classifiers."""
    folder = tmp_path_factory.mktemp("merges")
    torch.manual_seed(0)
    llama = LlamaConfig(**SMALL, num_attention_heads=4)
    LlamaForCausalLM(llama).save_pretrained(folder / "base")
    targets = ["q_proj", "up_proj"]
    for seed, (name, rank) in enumerate((("chat", 4), ("code", 6))):
        base = LlamaForCausalLM.from_pretrained(folder / "base")
        config = LoraConfig(r=rank, target_modules=targets, task_type="CAUSAL_LM")
        adapt(base, config, folder / name, seed)
    for seed, (name, labels) in enumerate((("good", 2), ("kind", 2), ("many", 5))):
        model = LlamaForSequenceClassification.from_pretrained(folder / "base", num_labels=labels)
        config = LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS")
        adapt(model, config, folder / name, seed)
    tuned = LlamaForCausalLM.from_pretrained(folder / "base")
    for parameter in tuned.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape)
    tuned.save_pretrained(folder / "tuned")
    return folder


@pytest.fixture
def place(shelf: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    shutil.copytree(shelf, tmp_path / "place")
    return tmp_path / "place"


def recipe(place: Path, text: str, name: str = "merge.yaml") -> str:
    (place / "merges").mkdir(exist_ok=True)
    path = place / "merges" / name
    path.write_text(text)
    return str(path)


BOTH = "adapters: {chat: ../chat, code: ../code}\nexpression: chat + 0.7*code\n"


def test_a_recipe_and_options_give_the_same_bytes(place: Path) -> None:
    text = BOTH + "output: {rank: 8}\nwithout: ['*.1.*']\nname: merged\nbase: ../base\n"
    first, second = place / "one", place / "two"
    assert main(["merge", recipe(place, text), "--out", str(first)]) == 0
    words = ["--adapter", f"chat={place}/chat", "--adapter", f"code={place}/code", "--rank", "8"]
    words += ["--without", "*.1.*", "--base", f"{place}/base", "--out", str(second)]
    assert main(["merge", "chat + 0.7*code", *words]) == 0
    names = sorted(path.name for path in first.iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors", "merge.json"]
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert {name for name in Delta.load(first).low if ".1." in name} == set()


def test_layers_count_differently_and_say_so(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scale = 'scale: [{match: "*.mlp.*", times: {code: 0.5}}, {match: "*.0.*", times: {chat: 2}}]\n'
    path, out = recipe(place, BOTH + scale), place / "out"
    assert main(["merge", path, "--explain"]) == 0
    printed = capsys.readouterr().out
    assert "1*chat + 0.35*code" in printed
    assert "2*chat + 0.7*code" in printed
    assert main(["merge", path, "--explain", "--json"]) == 0
    groups = json.loads(capsys.readouterr().out)["by_layer"]
    assert sorted((each["formula"], each["layers"]) for each in groups) == [
        ("1*chat + 0.35*code", 1),
        ("1*chat + 0.7*code", 1),
        ("2*chat + 0.35*code", 1),
        ("2*chat + 0.7*code", 1),
    ]
    assert main(["merge", path, "--out", str(out)]) == 0
    chat, code = Delta.load(place / "chat"), Delta.load(place / "code")
    wanted = chat.weigh({"*.0.*": 2.0}) + 0.7 * code.weigh({"*.mlp.*": 0.5})
    assert (Delta.load(out) - wanted).norm < 1e-6 * wanted.norm


@pytest.mark.parametrize(
    ("heads", "wanted"),
    [
        ("drop", {}),
        ("{keep: kind}", {"good": 0.0, "kind": 1.0}),
        ("average", {"good": 0.5, "kind": 0.5}),
    ],
)
def test_heads_go_where_the_recipe_says(
    place: Path, heads: str, wanted: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    text = "adapters: {good: ../good, kind: ../kind}\nexpression: good + 0.5*kind\n"
    path, out = recipe(place, text), place / "out"
    assert main(["merge", path, "--out", str(out)]) == 65
    assert "heads have no sum" in (said := capsys.readouterr().err)
    assert "`heads: {keep: NAME}`" in said
    assert not out.exists()
    assert main(["merge", path, "--out", str(out), "--set", f"heads={heads}"]) == 0
    found = load_file(out / "adapter_model.safetensors")
    head = [name for name in found if "score" in name]
    assert bool(head) is bool(wanted)
    for name in head:
        parents = {n: load_file(place / n / "adapter_model.safetensors")[name] for n in wanted}
        total = sum(wanted[n] * parents[n].double() for n in wanted)
        torch.testing.assert_close(found[name].double(), total, atol=1e-6, rtol=0)


def test_heads_of_different_shapes_have_no_mean(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "adapters: {good: ../good, many: ../many}\nexpression: good + many\nheads: average\n"
    assert main(["merge", recipe(place, text), "--out", str(place / "out")]) == 65
    assert "(2, 32) in `good`, (5, 32) in `many`" in capsys.readouterr().err
    assert not (place / "out").exists()


@torch.inference_mode()
def logits(base: Path, adapter: Path | None = None) -> torch.Tensor:
    model = LlamaForCausalLM.from_pretrained(base).eval()
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter)).eval()
    return model(IDS).logits.clone()  # type: ignore[no-any-return]


def test_as_weights_is_the_base_with_the_adapter(place: Path) -> None:
    text = BOTH + "base: ../base\n"
    path = recipe(place, text)
    for form in ("adapter", "weights"):
        assert main(["merge", path, "--out", str(place / form), "--set", f"output.as={form}"]) == 0
    wanted = logits(place / "base", place / "adapter")
    torch.testing.assert_close(logits(place / "weights"), wanted, atol=1e-4, rtol=1e-4)
    said = json.loads((place / "weights" / "merge.json").read_text())
    assert said["recipe"]["output"]["as"] == "weights"
    assert main(["merge", "--reproduce", str(place / "weights")]) == 0
    assert main(["fold", "--undo", str(place / "weights"), "--out", str(place / "again")]) == 0
    assert torch.equal(logits(place / "again"), logits(place / "base"))
    words = ["--set", "output={as: weights, fail_above: 0}", "--out", str(place / "none")]
    assert main(["merge", path, *words]) == 1
    assert not (place / "none").exists()


def test_whole_models_become_a_whole_model(place: Path) -> None:
    text = "adapters: {tuned: ../tuned, chat: ../chat}\nexpression: 0.5*tuned - chat\n"
    path, out = recipe(place, text + "base: ../base\noutput: {as: weights}\n"), place / "out"
    assert main(["merge", path, "--out", str(out)]) == 0
    before, tuned = (load_file(place / n / "model.safetensors") for n in ("base", "tuned"))
    name = "model.layers.0.self_attn.q_proj.weight"
    chat = Delta.load(place / "chat").low[name.removesuffix(".weight")].dense()
    wanted = before[name] + 0.5 * (tuned[name] - before[name]) - chat.float()
    torch.testing.assert_close(load_file(out / "model.safetensors")[name], wanted)
    assert main(["merge", "--reproduce", str(out)]) == 0


def test_a_model_with_more_rows_of_tokens_needs_a_rule(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Padded, as vocabularies are, to another number of rows: no row is cut off by its number."""
    for name in ("base", "tuned"):
        words = {f"word{number}": number for number in range(60)}
        said = {"model": {"type": "WordLevel", "vocab": words}, "added_tokens": []}
        (place / name / "tokenizer.json").write_text(json.dumps(said))
    tensors = load_file(place / "tuned" / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name], torch.ones(8, tensors[name].shape[1])])
    save_file(tensors, place / "tuned" / "model.safetensors", metadata={"format": "pt"})
    text = "adapters: {tuned: ../tuned}\nexpression: tuned\nbase: ../base\n"
    path, out = recipe(place, text + "output: {as: weights}\n"), place / "out"
    assert main(["merge", path, "--out", str(out)]) == 65
    assert "`output.vocabulary: base` matches rows" in capsys.readouterr().err
    assert not out.exists()
    assert main(["merge", path, "--set", "output.vocabulary=base", "--out", str(out)]) == 0
    before = load_file(place / "base" / "model.safetensors")
    merged = load_file(out / "model.safetensors")
    assert {n: t.shape for n, t in merged.items()} == {n: t.shape for n, t in before.items()}
    assert main(["merge", "--reproduce", str(out)]) == 0
    words = ["--set", "output={as: adapter, vocabulary: base}", "--out", str(place / "none")]
    assert main(["merge", path, *words]) == 2


def test_fewer_bits_are_said_and_load_in_peft(place: Path) -> None:
    out = place / "out"
    words = ["--set", "output.dtype=bfloat16", "--out", str(out)]
    assert main(["merge", recipe(place, BOTH), *words]) == 0
    found = load_file(out / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert logits(place / "base", out).isfinite().all()


def test_a_dry_run_says_what_a_run_would_refuse(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "adapters: {tuned: ../tuned, chat: ../chat}\nexpression: tuned - chat\nbase: ../base\n"
    path = recipe(place, text)
    assert main(["merge", path, "--dry-run", "--json"]) == 65
    printed = capsys.readouterr()
    facts = json.loads(printed.out)
    assert "changes as a whole" in facts["refused"]
    assert facts["refused"] in printed.err
    assert "`--without" in printed.err
    assert "delta." not in printed.err
    words = ["--dry-run", "--json", "--rank", "8", "--without", "*norm*", "--without", "*embed*"]
    assert main(["merge", path, *words]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["refused"] is None
    assert facts["disk"] > 0
    assert facts["memory"] > 0
    assert {each["term"] for each in facts["left_out"]} == {"tuned"}
    (place / "taken").mkdir()
    (place / "taken" / "mine.txt").write_text("mine")
    assert main(["merge", path, *words, "--out", str(place / "taken")]) == 2
    assert "holds something else" in capsys.readouterr().err


def test_errors_by_rank_are_those_of_the_cuts(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["merge", recipe(place, BOTH), "--dry-run", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    total = Delta.load(place / "chat") + 0.7 * Delta.load(place / "code")
    assert [each["rank"] for each in facts["error_by_rank"]] == [1, 2, 4, 8]
    for each in facts["error_by_rank"]:
        cut = total.compress(rank=int(each["rank"])).error.relative
        assert each["error"] == pytest.approx(cut)
    apart = Delta.load(place / "chat").norm ** 2 + (0.7 * Delta.load(place / "code")).norm ** 2
    assert facts["norm_ratio"] == pytest.approx(total.norm / apart**0.5)


def test_a_merge_can_be_made_again(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = BOTH + "method: {name: dare, keep: 0.5}\nseed: 3\noutput: {rank: 4}\nbase: ../base\n"
    out = place / "out"
    assert main(["merge", recipe(place, text), "--out", str(out)]) == 0
    for key in ("search", "evaluation"):
        add_to_record(out, key, {"chat": 1.0})
    said = (out / "merge.json").read_text()
    assert str(place) not in said
    assert json.loads(said)["parents"][0]["at"] == "../chat"
    capsys.readouterr()
    done = subprocess.run(
        [sys.executable, "-m", "peftkit", "merge", "--reproduce", "out"],
        cwd=place,
        env={**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("identical") == 3
    (place / "chat").rename(place / "moved")
    assert main(["merge", "--reproduce", str(out)]) == 2
    assert "`--adapter chat=PATH`" in capsys.readouterr().err
    words = ["merge", "--reproduce", str(out), "--adapter", f"chat={place}/moved"]
    assert main([*words, "--out", str(place / "again"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["identical"] is True
    for name in facts["files"]:
        assert (place / "again" / name).read_bytes() == (out / name).read_bytes()


def test_a_parent_that_was_judged_is_the_same_made_again(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parent, out = place / "parent", place / "out"
    assert main(["merge", recipe(place, BOTH), "--out", str(parent)]) == 0
    shutil.copytree(parent, place / "unjudged")
    for name in ("metrics", "samples", "findings", "search"):
        (parent / f"{name}.json").write_text("{}")
    words = ["merge", "2*both", "--adapter", f"both={parent}", "--out", str(out)]
    assert main(words) == 0
    assert main(["merge", "--reproduce", str(out)]) == 0
    moved = f"both={place / 'unjudged'}"
    assert main(["merge", "--reproduce", str(out), "--adapter", moved]) == 0
    assert "differs" not in capsys.readouterr().out


def test_what_is_not_what_it_was_is_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = place / "out"
    assert main(["merge", recipe(place, BOTH), "--out", str(out)]) == 0
    weights = out / "adapter_model.safetensors"
    tensors = load_file(weights)
    first = next(iter(tensors))
    tensors[first] = tensors[first] + 1e-3
    save_file(tensors, weights, metadata={"format": "pt"})
    assert main(["merge", "--reproduce", str(out)]) == 1
    said = capsys.readouterr().err
    assert "adapter_model.safetensors: other bytes" in said
    shutil.rmtree(place / "code")
    shutil.copytree(place / "chat", place / "code")
    assert main(["merge", "--reproduce", str(out)]) == 65
    said = capsys.readouterr().err
    assert "`code`: sha256" in said
    assert "adapter_model.safetensors" in said
    assert "`chat`" not in said
    assert main(["merge", "--reproduce", str(place / "base")]) == 65
    assert main(["merge", "chat", "--reproduce", str(out)]) == 2


def spoil(place: Path, name: str, number: float) -> None:
    weights = place / name / "adapter_model.safetensors"
    tensors = load_file(weights)
    next(iter(tensors.values()))[0, 0] = number
    save_file(tensors, weights, metadata={"format": "pt"})


def configure(place: Path, name: str, **keys: Any) -> None:
    path = place / name / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def note_base(place: Path, name: str, digest: str) -> None:
    """Make a run of an adapter whose lock says which base it was trained on."""
    adapter = place / name / "adapter"
    shutil.copytree(place / name, adapter)
    for path in (place / name).glob("adapter_*"):
        path.unlink()
    lock = {"base": {"model": "base", "commit": None, "digest": digest}}
    (place / name / "lock.json").write_text(json.dumps(lock))


def say_words(place: Path, name: str, words: list[str]) -> None:
    vocabulary = {word: number for number, word in enumerate(words)}
    said = {"model": {"vocab": vocabulary}, "added_tokens": []}
    (place / name / "tokenizer.json").write_text(json.dumps(said))


MEAN = "method: {normalize: true}\n"
SPOILED = {
    "NaN": (lambda p: spoil(p, "code", float("nan")), "", 65, "not finite"),
    "revision": (
        lambda p: [configure(p, n, revision=n * 10) for n in ("chat", "code")],
        "",
        65,
        "different revisions of the base",
    ),
    "digest": (
        lambda p: [note_base(p, n, n * 10) for n in ("chat", "code")],
        "",
        65,
        "bases of different content",
    ),
    "base": (
        lambda p: [configure(p, n, base_model_name_or_path=n) for n in ("chat", "code")],
        "",
        65,
        "different bases",
    ),
    "tokenizer": (
        lambda p: [say_words(p, n, ["a", n]) for n in ("chat", "code")],
        "",
        65,
        "different lists of tokens",
    ),
    "zero sum": (lambda _: None, f"{MEAN}expression: 0*chat + 0*code", 2, "add up to 0"),
    "negative": (lambda _: None, f"{MEAN}expression: chat - code", 2, "no negative numbers"),
    "pattern": (lambda _: None, "without: ['*nothing*']", 2, "fits nothing of any term"),
    "scale": (lambda _: None, "scale: [{match: '*no*', times: {chat: 1}}]", 2, "fits no module"),
    "no name": (lambda _: None, "expression: '0'", 2, "names no adapter"),
    "weights": (lambda _: None, "method: sce\noutput: {rank: 2}", 2, "expected 1"),
    "too many": (
        lambda _: None,
        "method: slerp\nexpression: chat + code + more\nadapters: {more: ../chat}",
        2,
        "expected exactly 2 adapters, got 3",
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_bad_input_is_told_and_makes_no_file(
    place: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change, text, code, said = SPOILED[case]
    change(place)
    child = recipe(place, "extends: parent.yaml\n" + text, "child.yaml")
    recipe(place, BOTH, "parent.yaml")
    assert main(["merge", child, "--out", str(place / "out")]) == code
    assert said in capsys.readouterr().err
    assert not (place / "out").exists()


def test_other_chat_templates_are_no_other_tokens(place: Path) -> None:
    for name in ("chat", "code"):
        say_words(place, name, ["a", "b"])
        (place / name / "chat_template.jinja").write_text(name)
    assert main(["merge", recipe(place, BOTH), "--out", str(place / "out")]) == 0


def test_a_name_that_is_written_twice_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(place, "adapters:\n  chat: ../chat\n  chat: ../code\nexpression: chat\n")
    assert main(["merge", path, "--out", str(place / "out")]) == 2
    assert "line 3: adapters: key `chat` is written twice" in capsys.readouterr().err
