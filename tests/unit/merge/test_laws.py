"""Laws of merges on adapters as files: any rank, alpha and target, any method, any kind."""

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_bases import IDS, SIZES
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from peftkit import Delta
from peftkit.cli.main import main
from peftkit.errors import InputError
from peftkit.merge.combine import combine
from peftkit.merge.low_rank import LowRank
from peftkit.merge.methods.catalog import METHODS, find_method
from peftkit.merge.methods.inputs import Inputs

SHAPES = {"model.q": (12, 10), "model.k": (8, 10), "model.v": (10, 6)}
LINEAR = ["q_proj", "up_proj"]
OF_ADAPTERS = [name for name, method in METHODS.items() if method.kind != "data"]
CHANCE = ("dare", "dare-ties", "della", "della-linear")

Recipes = st.lists(
    st.fixed_dictionaries(
        {
            "rank": st.integers(1, 5),
            "alpha": st.integers(1, 16),
            "rslora": st.booleans(),
            "targets": st.sets(st.sampled_from(sorted(SHAPES)), min_size=1).map(sorted),
            "pattern": st.none() | st.integers(1, 4),
            "weight": st.sampled_from([-2.0, -1.0, 0.5, 1.0, 3.0]),
        }
    ),
    min_size=1,
    max_size=3,
)


def write(folder: Path, told: dict[str, Any], seed: int) -> dict[str, torch.Tensor]:
    """An adapter folder, and what it changes by peft's definition, in float64."""
    generator = torch.Generator().manual_seed(seed)
    ranks = dict.fromkeys(told["targets"], told["rank"])
    if told["pattern"]:
        ranks[told["targets"][0]] = told["pattern"]
    tensors, wanted = {}, {}
    for name, rank in ranks.items():
        out, into = SHAPES[name]
        down = torch.randn(rank, into, generator=generator)
        up = torch.randn(out, rank, generator=generator)
        tensors[f"base_model.model.{name}.lora_A.weight"] = down
        tensors[f"base_model.model.{name}.lora_B.weight"] = up
        divisor = math.sqrt(rank) if told["rslora"] else rank
        wanted[name] = told["alpha"] / divisor * (up.double() @ down.double())
    config = LoraConfig(
        r=told["rank"],
        lora_alpha=told["alpha"],
        use_rslora=told["rslora"],
        target_modules=told["targets"],
        rank_pattern={told["targets"][0]: told["pattern"]} if told["pattern"] else {},
    )
    config.save_pretrained(str(folder))
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    return wanted


@given(Recipes)
@settings(max_examples=25)
def test_a_saved_merge_is_the_weighted_sum(
    tmp_path_factory: pytest.TempPathFactory, recipes: list[dict[str, Any]]
) -> None:
    place = tmp_path_factory.mktemp("merge")
    wanted: dict[str, torch.Tensor] = {}
    total = Delta()
    for seed, told in enumerate(recipes):
        for name, change in write(place / str(seed), told, seed).items():
            wanted[name] = wanted.get(name, torch.zeros(SHAPES[name])) + told["weight"] * change
        total += told["weight"] * Delta.load(place / str(seed))
    total.save(place / "merged")
    found = Delta.load(place / "merged")
    assert found.low.keys() == wanted.keys()
    for name, change in found.low.items():
        missing = float((change.dense() - wanted[name]).norm())
        assert missing <= 1e-6 * float(wanted[name].norm()), name


def draw(rank: int, seed: int) -> Delta:
    generator = torch.Generator().manual_seed(seed)

    def numbers(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    return Delta(
        low={
            n: LowRank(numbers(out, rank), numbers(rank, into)) for n, (out, into) in SHAPES.items()
        }
    )


def turn(delta: Delta, seed: int) -> Delta:
    """The same change, from other factors."""
    generator = torch.Generator().manual_seed(seed)
    low = {}
    for name, change in delta.low.items():
        size = (change.rank, change.rank)
        mixed = torch.randn(size, generator=generator, dtype=torch.float64)
        gauge = torch.linalg.qr(mixed)[0] * torch.linspace(0.5, 4, change.rank).double()
        low[name] = LowRank(change.up @ torch.linalg.inv(gauge), gauge @ change.down)
    return Delta(low=low)


def merge(name: str, deltas: dict[str, Delta], weights: dict[str, float]) -> dict[str, Any]:
    order = tuple(deltas)
    told = {"seed": 3} if name in CHANCE else {}
    inputs = Inputs(tuple(weights[each] for each in order), order, order)
    found = combine(find_method(name), told, [deltas[each] for each in order], inputs)
    whole = {module: change.dense() for module, change in found.low.items()}
    return whole | {n.removesuffix(".weight"): each for n, each in found.dense.items()}


def weights_for(name: str) -> dict[str, float]:
    return {"a": 1.0, "b": 1.0 if METHODS[name].weights == "none" else 0.5}


@pytest.mark.parametrize("name", OF_ADAPTERS)
def test_how_the_factors_are_written_changes_no_merge(name: str) -> None:
    deltas = {"a": draw(2, 0), "b": draw(3, 1)}
    turned = {each: turn(delta, 7) for each, delta in deltas.items()}
    one, other = (merge(name, each, weights_for(name)) for each in (deltas, turned))
    for module, change in one.items():
        torch.testing.assert_close(other[module], change, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", OF_ADAPTERS)
def test_the_order_of_adapters_changes_no_merge(name: str) -> None:
    deltas = {"a": draw(2, 0), "b": draw(3, 1)}
    backwards = dict(reversed(deltas.items()))
    one, other = (merge(name, each, weights_for(name)) for each in (deltas, backwards))
    for module, change in one.items():
        torch.testing.assert_close(other[module], change, rtol=1e-9, atol=1e-9)


def test_two_adapters_at_right_angles_do_not_fit_into_the_rank_of_one() -> None:
    generator = torch.Generator().manual_seed(0)
    terms = [
        Delta(
            low={"q": LowRank(*(torch.randn(size, generator=generator).double() for size in pair))}
        )
        for pair in [((4096, 16), (16, 4096))] * 2
    ]
    total = sum(terms, start=Delta())
    assert abs(terms[0].cosine(terms[1])) < 0.01
    assert 0.65 <= total.compress(rank=16).error.relative <= 0.75
    assert total.compress(rank=32).error.relative < 1e-9


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **SIZES)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def fresh(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base).eval()


def make(base: Path, folder: Path, seed: int, **told: Any) -> None:
    config = LoraConfig(r=4, target_modules=LINEAR, task_type="CAUSAL_LM", **told)
    model: Any = get_peft_model(fresh(base), config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    model.save_pretrained(folder)


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    return model(IDS).logits.clone()  # type: ignore[no-any-return]


def on(base: Path, adapter: Path) -> torch.Tensor:
    return logits(PeftModel.from_pretrained(fresh(base), str(adapter)).eval())


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_that_rewrote_the_base_is_converted_or_refused(
    start: str, base: Path, tmp_path: Path
) -> None:
    config = LoraConfig(r=4, target_modules=LINEAR, init_lora_weights=start, task_type="CAUSAL_LM")
    model: Any = get_peft_model(fresh(base), config)
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = start
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += torch.randn(parameter.shape) * 0.05
    wanted = logits(model.eval())
    model.save_pretrained(tmp_path / "raw")
    with pytest.raises(InputError, match="init_lora_weights"):
        Delta.load(tmp_path / "raw")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # peft loads the start beside it to subtract
        model.save_pretrained(
            tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "start")
        )
    (2 * Delta.load(tmp_path / "converted") / 2).save(tmp_path / "same")
    torch.testing.assert_close(on(base, tmp_path / "same"), wanted, atol=2e-5, rtol=1e-4)


def test_rows_of_new_tokens_travel_along(base: Path, tmp_path: Path) -> None:
    make(base, tmp_path / "tokens", 0, trainable_token_indices={"embed_tokens": [62, 63]})
    make(base, tmp_path / "other", 1)
    one, other = Delta.load(tmp_path / "tokens"), Delta.load(tmp_path / "other")
    (one + other - other).save(tmp_path / "same")
    wanted = on(base, tmp_path / "tokens")
    torch.testing.assert_close(on(base, tmp_path / "same"), wanted, atol=2e-5, rtol=1e-4)


def test_new_tokens_of_two_tokenizers_have_no_sum(base: Path, tmp_path: Path) -> None:
    for name, rows in (("one", [62, 63]), ("other", [60, 61])):
        make(base, tmp_path / name, 0, trainable_token_indices={"embed_tokens": rows})
    one, other = Delta.load(tmp_path / "one"), Delta.load(tmp_path / "other")
    assert all(torch.equal(one.kept[name], rows) for name, rows in other.kept.items())
    with pytest.raises(InputError, match="rows of different tokens"):
        one + other
    again = tmp_path / "again"
    make(base, again, 0, trainable_token_indices={"embed_tokens": [62, 63]})
    for name, tokens in (("one", ["<a>", "<b>"]), ("again", ["<b>", "<a>"])):
        (tmp_path / name / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    with pytest.raises(InputError, match="different tokenizers"):
        Delta.load(tmp_path / "one") + Delta.load(again)
    (again / "tokenizer.json").write_text((tmp_path / "one" / "tokenizer.json").read_text())
    assert (Delta.load(tmp_path / "one") + Delta.load(again)).kept


@pytest.mark.parametrize("factor", [1e-42, 1e-80])
def test_what_a_file_cannot_hold_is_not_saved_as_nothing(
    factor: float, base: Path, tmp_path: Path
) -> None:
    make(base, tmp_path / "one", 0)
    whole = Delta.load(tmp_path / "one")
    (whole * 1e-30).save(tmp_path / "small")  # each factor has a root of it
    again = Delta.load(tmp_path / "small") * 1e30
    assert (again - whole).norm < 1e-6 * whole.norm
    part = whole.weigh({"*layers.1.mlp.up_proj": factor**2})
    for tiny in (whole * factor**2, part):
        with pytest.raises(InputError, match="too small for the numbers of a file") as refused:
            tiny.save(tmp_path / "tiny")
        assert "--without" in str(refused.value.hint)
    assert not (tmp_path / "tiny").exists()


def test_half_precision_adapters_of_tiny_numbers_stay_what_they_are(
    base: Path, tmp_path: Path
) -> None:
    make(base, tmp_path / "half", 0)
    path = tmp_path / "half" / "adapter_model.safetensors"
    tiny = {name: (each * 1e-6).half() for name, each in load_file(path).items()}
    assert any(bool((each != 0).any()) for each in tiny.values())
    save_file(tiny, path, {"format": "pt"})
    delta = Delta.load(tmp_path / "half")
    assert delta.norm > 0
    delta.save(tmp_path / "same")
    assert (Delta.load(tmp_path / "same") - delta).norm < 1e-6 * delta.norm


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_none_are_refused(bad: float, base: Path, tmp_path: Path) -> None:
    make(base, tmp_path / "one", 0)
    path = tmp_path / "one" / "adapter_model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values()))[0, 0] = bad
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(InputError):
        Delta.load(tmp_path / "one")


def test_a_bad_merge_leaves_no_file(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, name in enumerate(("one", "other")):
        make(base, tmp_path / name, seed)
    config = tmp_path / "other" / "adapter_config.json"
    values = json.loads(config.read_text()) | {"base_model_name_or_path": "org/other"}
    config.write_text(json.dumps(values))
    config = tmp_path / "one" / "adapter_config.json"
    config.write_text(json.dumps(values | {"base_model_name_or_path": "org/base"}))
    one = f"one={tmp_path / 'one'}"
    same, other = f"same={tmp_path / 'one'}", f"other={tmp_path / 'other'}"
    zero_sum = ("--method", "sum", "--setting", "normalize=true")
    cases: list[tuple[tuple[str, ...], str]] = [
        (("one + other", "--adapter", one, "--adapter", other), "different bases"),
        (("one + other", "--adapter", one, "--adapter", one, "--adapter", same), "one"),
        (("one - same", "--adapter", one, "--adapter", same, *zero_sum, "--rank", "4"), "negative"),
        (("0*one + 0*same", "--adapter", one, "--adapter", same, *zero_sum, "--rank", "4"), "to 0"),
        (("one - same", "--adapter", one, "--adapter", same), "rank 0"),
    ]
    for words, said in cases:
        assert main(["merge", *words, "--out", str(tmp_path / "out")]) != 0
        assert said in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
