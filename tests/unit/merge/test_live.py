"""Live numbers: what they compute is what the saved merge computes, and nothing of them stays."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_bases import IDS
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from peftkit import Delta
from peftkit.adapters.bottleneck import BottleneckConfig
from peftkit.base.upstream import quiet
from peftkit.errors import InputError
from peftkit.merge.live import acting

LINEAR = ["q_proj", "up_proj"]
PAIRS: dict[str, tuple[str, list[Any]]] = {
    "ranks, alphas and targets": (
        "llama",
        [
            LoraConfig(r=4, lora_alpha=8, target_modules=LINEAR),
            LoraConfig(r=7, lora_alpha=3, target_modules=["q_proj", "o_proj"]),
        ],
    ),
    "rslora and patterns": (
        "llama",
        [
            LoraConfig(r=8, lora_alpha=3, target_modules=LINEAR, use_rslora=True),
            LoraConfig(
                r=4,
                target_modules=LINEAR,
                rank_pattern={"layers.0.mlp.up_proj": 7},
                alpha_pattern={"q_proj": 5},
            ),
        ],
    ),
    "biases, turned": (
        "gpt2",
        [
            LoraConfig(r=4, target_modules=["c_attn"], lora_bias=True, fan_in_fan_out=True),
            LoraConfig(r=2, target_modules=["c_fc", "c_attn"], fan_in_fan_out=True),
        ],
    ),
    "embeddings": (
        "llama",
        [
            LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"]),
            LoraConfig(r=3, target_modules=["embed_tokens"]),
        ],
    ),
    "scales": (
        "llama",
        [
            IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
            IA3Config(target_modules=["v_proj", "down_proj"], feedforward_modules=["down_proj"]),
        ],
    ),
    "networks": (
        "llama",
        [
            BottleneckConfig(bottleneck_size=4, target_modules=["mlp"]),
            BottleneckConfig(bottleneck_size=6, target_modules=["mlp"]),
        ],
    ),
    "networks beside": (
        "llama",
        [
            BottleneckConfig(bottleneck_size=4, target_modules=["mlp"], variant="parallel"),
            BottleneckConfig(bottleneck_size=6, target_modules=["mlp"], variant="parallel"),
        ],
    ),
}


def fresh(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base).eval()


def make(model: Any, config: Any, folder: Path, seed: int) -> Path:
    """An adapter with random numbers in it, saved by peft."""
    adapted: Any = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.data = 1 + noise if "ia3" in name else noise
    with quiet():  # peft takes biases for pieces of a matrix
        adapted.save_pretrained(folder, save_embedding_layers=False)
    return folder


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    return model(IDS).logits.clone()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def pairs(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two deltas of each kind, and the base that they are of."""
    found = {}
    for kind, (family, configs) in PAIRS.items():
        folder = tmp_path_factory.mktemp("pair")
        for config in configs:
            config.task_type = "CAUSAL_LM"
        names = [
            make(fresh(bases[family]), config, folder / f"term{seed}", seed)
            for seed, config in enumerate(configs)
        ]
        found[kind] = (bases[family], [Delta.load(name) for name in names])
    return found


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("numbers", [(1.0, 0.7), (-0.5, 1.3), (0.0, 1.0)])
def test_live_numbers_compute_what_the_saved_merge_computes(
    kind: str, numbers: tuple[float, float], pairs: dict[str, Any], tmp_path: Path
) -> None:
    base, (one, other) = pairs[kind]
    (numbers[0] * one + numbers[1] * other).save(tmp_path / "merged")
    wanted = logits(PeftModel.from_pretrained(fresh(base), str(tmp_path / "merged")).eval())
    model = fresh(base)
    with acting(model, {"one": one, "other": other}) as dials:
        dials.turn({"one": 1.0, "other": -1.0})
        dials.turn(dict(zip(("one", "other"), numbers, strict=True)))
        found = logits(model)
    assert not torch.allclose(wanted, logits(model), atol=1e-2)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", PAIRS)
def test_afterwards_the_model_is_as_before_bit_for_bit(kind: str, pairs: dict[str, Any]) -> None:
    base, (one, other) = pairs[kind]
    model = fresh(base)
    before, state = logits(model), {n: p.clone() for n, p in model.state_dict().items()}
    places = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    modules = [type(module) for module in model.modules()]
    with acting(model, {"one": one, "other": other}) as dials:
        assert torch.equal(logits(model), before)  # nothing acts before a number is set
        dials.turn({"one": 2.0, "other": -1.0})
        assert not torch.equal(logits(model), before)
        dials.turn({})
        assert torch.equal(logits(model), before)
        dials.turn({"other": 1.0})
    assert torch.equal(logits(model), before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == places
    assert [type(module) for module in model.modules()] == modules
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_term_may_stand_for_some_layers(pairs: dict[str, Any]) -> None:
    """A number for each group of layers is a term for each group."""
    base, (one, other) = pairs["ranks, alphas and targets"]
    groups = {"attention": one.without("*.mlp.*"), "mlp": one.without("*.self_attn.*")}
    model = fresh(base)
    with acting(model, {**groups, "other": other}) as dials:
        dials.turn({"attention": 0.5, "mlp": 2.0, "other": 1.0})
        found = logits(model)
    whole = one.weigh({"*.mlp.*": 2.0, "*.self_attn.*": 0.5}) + other
    with acting(model, {"whole": whole}) as dials:
        dials.turn({"whole": 1.0})
        torch.testing.assert_close(found, logits(model), atol=1e-5, rtol=1e-4)


@given(
    numbers=st.lists(st.floats(-2, 2), min_size=2, max_size=2),
    ranks=st.tuples(st.integers(1, 6), st.integers(1, 6)),
)
@settings(max_examples=15)
def test_numbers_add_up_in_the_weights(
    numbers: list[float], ranks: tuple[int, int], bases: dict[str, Path]
) -> None:
    """Against an oracle in float64: the base with the sum in its weights."""
    from peftkit.merge.low_rank import LowRank

    generator = torch.Generator().manual_seed(sum(ranks))

    def thin(rank: int, out: int, into: int) -> LowRank:
        up = torch.randn(out, rank, generator=generator, dtype=torch.float64) * 0.3
        return LowRank(up, torch.randn(rank, into, generator=generator, dtype=torch.float64) * 0.3)

    q, up = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"
    norm = {"model.norm.weight": torch.randn(32, generator=generator, dtype=torch.float64)}
    one = Delta(low={q: thin(ranks[0], 32, 32), up: thin(ranks[0], 48, 32)})
    other = Delta(low={q: thin(ranks[1], 32, 32)}, dense=norm)
    model, oracle = fresh(bases["llama"]).double(), fresh(bases["llama"]).double()
    with torch.no_grad():
        for delta, number in ((one, numbers[0]), (other, numbers[1])):
            for name, change in delta.low.items():
                oracle.get_submodule(name).weight += number * change.dense()
            for name, change in delta.dense.items():
                oracle.get_parameter(name).add_(number * change)
    with acting(model, {"one": one, "other": other}) as dials:
        dials.turn({"one": numbers[0], "other": numbers[1]})
        torch.testing.assert_close(logits(model), logits(oracle), atol=1e-9, rtol=1e-9)


def test_whole_parameters_are_given_back(bases: dict[str, Path]) -> None:
    """Also where two modules share a weight: it changes once."""
    model = fresh(bases["gpt2"])
    assert model.lm_head.weight is model.transformer.wte.weight
    change = torch.randn(64, 32, dtype=torch.float64)
    names = ("transformer.wte.weight", "lm_head.weight")
    own = model.lm_head.weight.detach().clone()
    with acting(model, {"tuned": Delta(dense=dict.fromkeys(names, change))}) as dials:
        dials.turn({"tuned": 0.5})
        torch.testing.assert_close(model.lm_head.weight, own + 0.5 * change.float())
        assert model.lm_head.weight is model.transformer.wte.weight
    assert torch.equal(model.lm_head.weight, own)


def test_a_head_comes_along_and_goes_again(bases: dict[str, Path], tmp_path: Path) -> None:
    base = tmp_path / "base"
    with quiet():
        model = AutoModelForSequenceClassification.from_pretrained(
            bases["llama"], num_labels=3, pad_token_id=0
        ).eval()
        model.save_pretrained(base)
    config = LoraConfig(r=4, target_modules=LINEAR, task_type="SEQ_CLS")
    config.modules_to_save = ["score"]
    make(model, config, tmp_path / "adapter", 1)
    delta = Delta.load(tmp_path / "adapter")
    plain = AutoModelForSequenceClassification.from_pretrained(base).eval()
    before = logits(plain)
    wanted = logits(
        PeftModel.from_pretrained(
            AutoModelForSequenceClassification.from_pretrained(base), str(tmp_path / "adapter")
        ).eval()
    )
    with acting(plain, {"a": delta}) as dials:
        dials.turn({"a": 1.0}, delta)
        torch.testing.assert_close(logits(plain), wanted, atol=1e-5, rtol=1e-4)
        dials.turn({})
        assert torch.equal(logits(plain), before)
        dials.turn({"a": 1.0}, delta)
    assert torch.equal(logits(plain), before)


def test_rows_of_new_tokens_come_along(bases: dict[str, Path], tmp_path: Path) -> None:
    config = LoraConfig(
        r=4,
        target_modules=LINEAR,
        task_type="CAUSAL_LM",
        trainable_token_indices={"embed_tokens": [3, 9]},
    )
    make(fresh(bases["llama"]), config, tmp_path / "adapter", 1)
    delta = Delta.load(tmp_path / "adapter")
    wanted = logits(
        PeftModel.from_pretrained(fresh(bases["llama"]), str(tmp_path / "adapter")).eval()
    )
    model = fresh(bases["llama"])
    before = logits(model)
    with acting(model, {"a": delta}) as dials:
        dials.turn({"a": 1.0}, delta)
        torch.testing.assert_close(logits(model), wanted, atol=1e-5, rtol=1e-4)
    assert torch.equal(logits(model), before)


def test_what_has_no_place_is_refused(bases: dict[str, Path], pairs: dict[str, Any]) -> None:
    base, (one, _) = pairs["biases, turned"]
    with (
        pytest.raises(InputError, match=r"the base has no `transformer\.h\.0\.attn\.c_attn`"),
        acting(fresh(bases["llama"]), {"one": one}),
    ):
        pass
    with (
        acting(fresh(base), {"one": one}) as dials,
        pytest.raises(InputError, match="no term `two`"),
    ):
        dials.turn({"two": 1.0})
