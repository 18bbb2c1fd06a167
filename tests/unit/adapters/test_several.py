"""Several adapters on one base: switched bit for bit, and each row of a batch by its own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

from peftkit.adapters.attach import attach, trainable
from peftkit.adapters.several import acting, load_beside, refuse_mixing, use, using
from peftkit.adapters.store import add_adapter, load_adapter, save_adapter
from peftkit.base.locate import Origin
from peftkit.errors import InputError
from peftkit.evaluate.generation import Answer, answer_all
from peftkit.evaluate.mixed import answer_mixed
from peftkit.recipe.sections.adapter import (
    AdapterSection,
    FullSection,
    Ia3Section,
    LoraSection,
    OftSection,
    VeraSection,
)

IDS = torch.arange(6, 30).reshape(3, 8)
PROMPTS = [[1, 70, 80], [1, 50, 60, 70, 90, 100, 110], [1], [1, 200, 30, 40], [1, 70, 81]]
SECTIONS: dict[str, AdapterSection] = {
    "lora": LoraSection(rank=4, dropout=0.1),
    "dora": LoraSection(rank=2, variant="dora"),
    "ia3": Ia3Section(method="ia3"),
    "oft": OftSection(method="oft", block_size=8),
    "vera": VeraSection(method="vera", rank=8),
    "full": FullSection(method="full"),
}
TOGETHER = ["lora", "dora", "ia3", "oft"]


def build(folder: Path, family: str = "llama") -> Any:
    """A frozen base, as `load_base` gives it."""
    if family == "llama":
        model = AutoModelForCausalLM.from_pretrained(folder)
    else:
        config = GPT2Config(
            vocab_size=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config)
    return model.requires_grad_(requires_grad=False).eval()


def make(base: Any, kind: str, folder: Path, *, seed: int = 0, init: int = 0) -> Path:
    """A saved adapter whose every number has moved."""
    model = attach(base, SECTIONS[kind], seed=init)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    origin = Origin("org/tiny", folder.parent, "0123abc")
    save_adapter(model, folder, origin, method=SECTIONS[kind].method)
    return folder


def two(kind: str, tiny_llama: Path, root: Path) -> Any:
    """A base with two adapters of a kind, of which `one` acts."""
    folders = {
        name: make(build(tiny_llama), kind, root / name, seed=seed)
        for seed, name in enumerate(("one", "two"))
    }
    model = load_adapter(build(tiny_llama), folders["one"], name="one")
    load_beside(model, folders["two"], "two")
    return model


@torch.inference_mode()
def logits(model: Any, **settings: Any) -> torch.Tensor:
    return model.eval()(IDS, **settings).logits.clone()  # type: ignore[no-any-return]


def alone(name: str, tiny_llama: Path, root: Path) -> torch.Tensor:
    return logits(load_adapter(build(tiny_llama), root / name))


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3", "oft", "vera"])
def test_each_acts_as_it_does_alone_and_the_base_is_the_base(
    kind: str, tiny_llama: Path, tmp_path: Path
) -> None:
    model = two(kind, tiny_llama, tmp_path)
    base = logits(build(tiny_llama))
    wanted = {name: alone(name, tiny_llama, tmp_path) for name in ("one", "two")}
    assert not torch.equal(wanted["one"], wanted["two"])
    assert torch.equal(logits(model), wanted["one"])
    for name in ("two", "one", "two"):
        use(model, [name])
        assert acting(model) == (name,)
        assert torch.equal(logits(model), wanted[name])
    with using(model, ["one"]):
        assert torch.equal(logits(model), wanted["one"])
        with using(model, ()):
            assert acting(model) == ()
            assert torch.equal(logits(model), base)
            with using(model, ["two"]):
                assert torch.equal(logits(model), wanted["two"])
            assert torch.equal(logits(model), base)
        assert torch.equal(logits(model), wanted["one"])
    assert torch.equal(logits(model), wanted["two"])
    assert not trainable(model)


def test_a_switch_changes_nothing_of_what_trains(tiny_llama: Path, tmp_path: Path) -> None:
    folder = make(build(tiny_llama), "lora", tmp_path / "other", seed=5)
    model = attach(build(tiny_llama), SECTIONS["lora"], seed=0)
    before = trainable(model)
    load_beside(model, folder, "other")
    assert trainable(model).keys() == before.keys()
    for names in (["other"], (), ["other", "default"]):
        with using(model, names):
            assert trainable(model).keys() == before.keys()
        assert acting(model) == ("default",)
        assert trainable(model).keys() == before.keys()


def test_all_is_as_before_when_the_inside_fails(tiny_llama: Path, tmp_path: Path) -> None:
    model = two("lora", tiny_llama, tmp_path)
    before = logits(model)
    with pytest.raises(ZeroDivisionError), using(model, ["two"]):
        _ = 1 / 0
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("kind", TOGETHER)
def test_together_is_neither_alone(kind: str, tiny_llama: Path, tmp_path: Path) -> None:
    model = two(kind, tiny_llama, tmp_path)
    use(model, ["one", "two"])
    both = logits(model)
    assert not any(torch.equal(both, alone(n, tiny_llama, tmp_path)) for n in ("one", "two"))
    added = add_adapter(load_adapter(build(tiny_llama), tmp_path / "one"), tmp_path / "two", 1)
    assert torch.equal(both, logits(added))


def test_names_that_are_not_there_are_told(tiny_llama: Path, tmp_path: Path) -> None:
    model = two("vera", tiny_llama, tmp_path)
    with pytest.raises(InputError, match="no adapter `tow`; there are: `one`, `two`"):
        use(model, ["tow"])
    with pytest.raises(InputError, match="VERA cannot act at once: one, two"):
        use(model, ["one", "two"])
    with pytest.raises(InputError, match="no adapter is named"):
        use(model, [])
    assert acting(model) == ("one",)


def test_random_matrices_that_differ_are_told(tiny_llama: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        make(build(tiny_llama), "vera", tmp_path / str(seed), init=seed)
    model = load_adapter(build(tiny_llama), tmp_path / "0")
    with pytest.raises(InputError, match="cannot be put beside the first"):
        load_beside(model, tmp_path / "1", "other")


def rows_alone(
    rows: list[tuple[str, ...]], tokenizer: Any, tiny_llama: Path, root: Path
) -> list[Answer]:
    """What each prompt is answered where nothing but its own adapter was ever loaded."""
    answers = []
    for prompt, names in zip(PROMPTS, rows, strict=True):
        model = build(tiny_llama)
        if names:
            model = load_adapter(model, root / names[0])
        answers += answer_all(model, [prompt], tokenizer, stops=frozenset({2}), room=12)
    return answers


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3"])
def test_each_row_is_answered_as_by_its_adapter_alone(
    kind: str, tiny_llama: Path, tmp_path: Path
) -> None:
    model = two(kind, tiny_llama, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    rows: list[tuple[str, ...]] = [("one",), ("two",), (), ("two",), ("one",)]
    reason = refuse_mixing(model, rows)
    assert (reason is None) == (kind == "lora")
    found = answer_mixed(model, PROMPTS, rows, tokenizer, stops=frozenset({2}), room=12)
    assert found == rows_alone(rows, tokenizer, tiny_llama, tmp_path)
    assert len({answer.text for answer in found}) > 1
    assert acting(model) == ("one",)


def test_mixed_logits_are_those_of_each_alone(tiny_llama: Path, tmp_path: Path) -> None:
    model = two("lora", tiny_llama, tmp_path)
    found = logits(model, adapter_names=["two", "__base__", "one"])
    wanted = [
        alone("two", tiny_llama, tmp_path),
        logits(build(tiny_llama)),
        alone("one", tiny_llama, tmp_path),
    ]
    for row, each in enumerate(wanted):
        torch.testing.assert_close(found[row], each[row], rtol=0, atol=1e-5)
    assert not torch.allclose(wanted[0], wanted[2], atol=1e-2)


def test_several_adapters_in_a_row_are_answered_together(tiny_llama: Path, tmp_path: Path) -> None:
    model = two("lora", tiny_llama, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    rows = [("one", "two"), ("one",)]
    assert refuse_mixing(model, rows) == "a row has several adapters"
    found = answer_mixed(model, PROMPTS[:2], rows, tokenizer, stops=frozenset({2}), room=8)
    use(model, ["one", "two"])
    wanted = answer_all(model, PROMPTS[:1], tokenizer, stops=frozenset({2}), room=8)
    assert found[0] == wanted[0]
    with pytest.raises(InputError, match="no adapter `three`"):
        answer_mixed(model, PROMPTS[:1], [("three",)], tokenizer, stops=frozenset(), room=8)


def test_a_changed_base_is_the_base_inside(tiny_llama: Path, tmp_path: Path) -> None:
    model = load_adapter(build(tiny_llama), make(build(tiny_llama), "full", tmp_path / "full"))
    after = logits(model)
    with using(model, ()):
        assert torch.equal(logits(model), logits(build(tiny_llama)))
    assert torch.equal(logits(model), after)
    assert refuse_mixing(model, [()]) == "the base itself trained"
