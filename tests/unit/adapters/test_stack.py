"""A new adapter above a frozen earlier one: what acts, what trains, what the base is."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from peftkit.adapters.attach import attach, base_only, trainable
from peftkit.adapters.folders import digest_of, expand
from peftkit.adapters.several import acting, use
from peftkit.adapters.stack import (
    attach_over,
    describe,
    find_below,
    line_up,
    load_placed,
    read_note,
)
from peftkit.adapters.store import load_adapter, save_adapter
from peftkit.adapters.verify import module_shapes, verify_adapter
from peftkit.base.locate import Origin
from peftkit.errors import InputError, RecipeError
from peftkit.recipe.sections.adapter import (
    AdapterSection,
    BitfitSection,
    FullSection,
    Ia3Section,
    LayernormSection,
    LoraSection,
    OftSection,
    TopSection,
    VeraSection,
)

IDS = torch.arange(6, 30).reshape(3, 8)
BASE = "org/tiny"
SECTIONS: dict[str, AdapterSection] = {
    "lora": LoraSection(rank=4, dropout=0.5),
    "upper": LoraSection(rank=3, layers="upper-half"),
    "dora": LoraSection(rank=2, variant="dora"),
    "pissa": LoraSection(rank=2, variant="pissa"),
    "ia3": Ia3Section(method="ia3"),
    "oft": OftSection(method="oft", block_size=8),
    "vera": VeraSection(method="vera", rank=8),
    "layernorm": LayernormSection(method="layernorm"),
    "bitfit": BitfitSection(method="bitfit"),
    "top": TopSection(method="top", blocks=1),
    "full": FullSection(method="full"),
}
WORKING = [
    *[("lora", "lora"), ("lora", "upper"), ("lora", "dora"), ("dora", "lora"), ("lora", "pissa")],
    *[("ia3", "ia3"), ("oft", "oft"), ("full", "lora"), ("layernorm", "vera")],
    *[("full", "top"), ("top", "layernorm"), ("layernorm", "full")],
]
REFUSED = [("lora", "ia3"), ("lora", "top"), ("vera", "vera"), ("ia3", "lora"), ("vera", "full")]


def build(folder: Path) -> Any:
    """A frozen base, as `load_base` gives it."""
    return AutoModelForCausalLM.from_pretrained(folder).requires_grad_(requires_grad=False).eval()


def move(model: Any, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def save(model: Any, name: str, folder: Path, under: Any = None) -> Path:
    method = SECTIONS[name].method
    save_adapter(model, folder, Origin(BASE, folder.parent, "0123"), method=method, under=under)
    return folder


def make(tiny_llama: Path, name: str, folder: Path, seed: int = 1) -> Path:
    return save(move(attach(build(tiny_llama), SECTIONS[name], seed=0), seed), name, folder)


def above(tiny_llama: Path, name: str, under: Path) -> tuple[Any, Any]:
    """The base with a fresh adapter over that of `under`, and what stands under it."""
    section = SECTIONS[name].model_copy(update={"under": str(under)})
    model = build(tiny_llama)
    below = find_below(section, model, base=BASE)
    return attach_over(model, section, below, seed=2, base=BASE), below


def keep_run(run: Path, model: Any, name: str, below: Any) -> Path:
    """A run folder, as far as loading looks at it."""
    run.mkdir()
    recipe = {"adapter": {"under": str(below[-1].folder)}}
    (run / "recipe.resolved.json").write_text(json.dumps(recipe))
    return save(model, name, run / "adapter", describe(below))


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(IDS).logits.clone()  # type: ignore[no-any-return]


@pytest.mark.parametrize(("lower", "upper"), WORKING)
def test_the_new_one_trains_alone_and_the_base_is_what_was_before_it(
    lower: str, upper: str, tiny_llama: Path, tmp_path: Path
) -> None:
    under = make(tiny_llama, lower, tmp_path / "under")
    before = logits(load_adapter(build(tiny_llama), under))
    assert not torch.equal(before, logits(build(tiny_llama)))
    model, _ = above(tiny_llama, upper, under)
    assert torch.equal(logits(model), before)
    own = trainable(model)
    plain = trainable(attach(build(tiny_llama), SECTIONS[upper], seed=2))
    assert {name: p.shape for name, p in own.items()} == {n: p.shape for n, p in plain.items()}
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.SGD(list(own.values()), lr=0.5)
    for _ in range(2):
        model.train()(IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with base_only(model):
            assert torch.equal(logits(model), before)
        assert trainable(model).keys() == own.keys()
    after = logits(model)
    assert not torch.equal(after, before)
    now = dict(model.named_parameters())
    assert all(torch.equal(now[name], tensor) for name, tensor in frozen.items())


@pytest.mark.parametrize(("lower", "upper"), WORKING)
def test_what_is_saved_is_the_new_one_and_a_run_loads_both(
    lower: str, upper: str, tiny_llama: Path, tmp_path: Path
) -> None:
    under = make(tiny_llama, lower, tmp_path / "under")
    model, below = above(tiny_llama, upper, under)
    move(model, 3)
    folder = keep_run(tmp_path / "run", model, upper, below)
    alone = verify_adapter(folder, module_shapes(build(tiny_llama)), base=BASE)
    assert alone.tensors == len(trainable(model)) + (2 if upper == "vera" else 0)
    assert read_note(folder) == {"name": "under", "sha256": digest_of(under), "folded": False}
    placed = line_up([("default", folder)])
    assert [each.folder for each in placed] == [under, folder]
    assert placed[1].below == (placed[0].name,)
    loaded = load_placed(build(tiny_llama), placed, base=BASE)
    if isinstance(loaded, PeftModel) and len(loaded.peft_config) > 1:
        use(loaded, [each.name for each in placed])
    if upper == "pissa":  # saved with its start beside it, of twice the rank
        torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("upper", ["lora", "upper"])
def test_a_new_one_alone_is_what_peft_loads(upper: str, tiny_llama: Path, tmp_path: Path) -> None:
    model, below = above(tiny_llama, upper, make(tiny_llama, "lora", tmp_path / "under"))
    folder = keep_run(tmp_path / "run", move(model, 3), upper, below)
    model.base_model.set_adapter("default")
    theirs = PeftModel.from_pretrained(build(tiny_llama), str(folder))
    assert torch.equal(logits(theirs), logits(model))


def test_what_stands_under_is_not_dropped(tiny_llama: Path, tmp_path: Path) -> None:
    """The lower one was trained with dropout, and has none any more; the upper one has none."""
    model, _ = above(tiny_llama, "upper", make(tiny_llama, "lora", tmp_path / "under"))
    move(model, 3)
    with torch.inference_mode():
        model.train()
        assert torch.equal(model(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize(("lower", "upper"), REFUSED)
def test_what_cannot_stand_on_what_is_told(
    lower: str, upper: str, tiny_llama: Path, tmp_path: Path
) -> None:
    under = make(tiny_llama, lower, tmp_path / "under")
    with pytest.raises(RecipeError, match=f"cannot stand on an adapter of kind {lower.upper()}"):
        above(tiny_llama, upper, under)


def test_the_hint_names_a_method_that_works(tiny_llama: Path, tmp_path: Path) -> None:
    under = make(tiny_llama, "lora", tmp_path / "under")
    for name in ("ia3", "top"):
        with pytest.raises(RecipeError) as refusal:
            above(tiny_llama, name, under)
        assert refusal.value.hint == "`--set adapter.method=lora` stacks on it"
    above(tiny_llama, "lora", under)


def test_nothing_at_the_path_is_told(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"adapter.under: `.*/nowhere` is not an adapter"):
        above(tiny_llama, "lora", tmp_path / "nowhere")


def test_one_of_another_base_cannot_be_under(tiny_llama: Path, tmp_path: Path) -> None:
    under = make(tiny_llama, "lora", tmp_path / "under")
    section = LoraSection(under=str(under))
    with pytest.raises(InputError) as refusal:
        find_below(section, build(tiny_llama), base="org/other")
    assert "made for `org/tiny`, not for `org/other`" in refusal.value.problems[0]


def three(tiny_llama: Path, root: Path) -> Path:
    """The topmost of three runs, each above the one before."""
    (root / "one").mkdir(parents=True)
    make(tiny_llama, "lora", root / "one" / "adapter")
    for number, (name, under) in enumerate((("two", "one"), ("three", "two"))):
        model, below = above(tiny_llama, "lora", root / under)
        assert len(below) == number + 1
        keep_run(root / name, move(model, number + 5), "lora", below)
    return root / "three" / "adapter"


def test_several_stand_above_each_other(tiny_llama: Path, tmp_path: Path) -> None:
    top = three(tiny_llama, tmp_path)
    names = ["one", "two", "three"]
    assert expand(top) == [tmp_path / name / "adapter" for name in names]
    placed = line_up([("first", tmp_path / "one" / "adapter"), ("last", top)])
    assert [each.folder.parent.name for each in placed] == names
    assert placed[-1].below == ("first", placed[1].name)
    loaded = load_placed(build(tiny_llama), placed, base=BASE)
    assert acting(loaded) == ("first",)


def test_what_is_no_longer_there_is_told(tiny_llama: Path, tmp_path: Path) -> None:
    top = three(tiny_llama, tmp_path)
    shutil.copytree(top, tmp_path / "copied")
    with pytest.raises(InputError, match="another adapter, `two`, and there is no run beside it"):
        line_up([("default", tmp_path / "copied")])
    named = [("task", tmp_path / "copied")]
    assert len(line_up([("domain", tmp_path / "two" / "adapter"), *named])) == 3
    make(tiny_llama, "lora", tmp_path / "two" / "adapter", seed=77)
    with pytest.raises(InputError, match="now holds another one"):
        expand(top)
    shutil.rmtree(tmp_path / "two")
    with pytest.raises(InputError, match="which is no longer at") as refusal:
        expand(top)
    assert "--adapter PATH --adapter" in str(refusal.value.hint)


def test_a_circle_of_adapters_is_told(tiny_llama: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    folder = make(tiny_llama, "lora", run / "adapter")
    digest = digest_of(folder)
    (folder / "under.json").write_text(json.dumps({"name": "run", "sha256": digest}))
    (run / "recipe.resolved.json").write_text(json.dumps({"adapter": {"under": str(run)}}))
    with pytest.raises(InputError, match="more than 16 adapters stand above each other"):
        expand(folder)
    for text in ("{", "[]", '{"name": 3}'):
        (folder / "under.json").write_text(text)
        with pytest.raises(InputError, match="is not what was written"):
            read_note(folder)


def test_what_decides_counts_and_where_it_came_from_does_not(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    config = tmp_path / "adapter_config.json"
    found = []
    for values in (
        {"lora_alpha": 8, "base_model_name_or_path": "a"},
        {"lora_alpha": 8, "base_model_name_or_path": "b", "peft_version": "1"},
        {"lora_alpha": 16, "base_model_name_or_path": "a"},
    ):
        config.write_text(json.dumps(values))
        found.append(digest_of(tmp_path))
    assert found[0] == found[1] != found[2]
