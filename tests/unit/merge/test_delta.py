"""Deltas of real adapters: sums against vanilla peft, and every kind against itself."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from merge_bases import IDS, SIZES
from peft import IA3Config, LoraConfig, PeftModel, VeraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from peftkit import Delta
from peftkit.adapters.bottleneck import BottleneckConfig
from peftkit.base.upstream import quiet
from peftkit.errors import InputError, RecipeError
from peftkit.merge.low_rank import LowRank

LINEAR = ["q_proj", "up_proj"]
KINDS: dict[str, tuple[str, Any]] = {
    "plain": ("llama", LoraConfig(r=4, lora_alpha=8, target_modules=LINEAR)),
    "one target": ("llama", LoraConfig(r=6, lora_alpha=3, target_modules=["q_proj"])),
    "rslora": ("llama", LoraConfig(r=8, lora_alpha=3, target_modules=LINEAR, use_rslora=True)),
    "patterns": (
        "llama",
        LoraConfig(
            r=4,
            lora_alpha=8,
            target_modules=LINEAR,
            rank_pattern={"layers.0.mlp.up_proj": 7},
            alpha_pattern={"q_proj": 5},
        ),
    ),
    "conv1d": ("gpt2", LoraConfig(r=4, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)),
    "embedding": ("llama", LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"])),
    "bias": (
        "gpt2",
        LoraConfig(r=4, target_modules=["c_attn"], lora_bias=True, fan_in_fan_out=True),
    ),
    "ia3": (
        "llama",
        IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    ),
    "bottleneck": ("llama", BottleneckConfig(bottleneck_size=4, target_modules=["down_proj"])),
    "dora": ("llama", LoraConfig(r=4, target_modules=LINEAR, use_dora=True)),
    "vera": ("llama", VeraConfig(r=8, target_modules=["q_proj", "o_proj"])),
}
NEEDS_BASE = ("dora", "vera")
AS_IT_IS = [kind for kind in KINDS if kind not in NEEDS_BASE]


@pytest.fixture(scope="module")
def adapters(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One adapter of each kind, with random numbers in it."""
    found = {}
    for seed, (kind, (family, config)) in enumerate(KINDS.items()):
        found[kind] = tmp_path_factory.mktemp("adapter") / kind.replace(" ", "-")
        make(bases[family], config, found[kind], seed)
    return found


def fresh(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base).eval()


def make(base: Path, config: Any, folder: Path, seed: int) -> None:
    config.task_type = "CAUSAL_LM"
    model: Any = get_peft_model(fresh(base), config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.data = parameter.data + noise if "magnitude" in name else noise
            if "ia3" in name:
                parameter.data = 1 + noise
    with quiet():  # peft takes biases for pieces of a matrix
        model.save_pretrained(folder, save_embedding_layers=False)


@torch.inference_mode()
def logits(base: Path, adapter: Path | None = None) -> torch.Tensor:
    model = fresh(base)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter)).eval()
    return model(IDS).logits.clone()  # type: ignore[no-any-return]


def changes(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """What peft makes of the base's weights, in float64."""
    ground = {name: value.double() for name, value in fresh(base).state_dict().items()}
    model: Any = PeftModel.from_pretrained(fresh(base).double(), str(adapter))
    merged = model.merge_and_unload().state_dict()
    return {name: merged[name].double() - value for name, value in ground.items()}


def family(kind: str) -> str:
    return KINDS[kind][0]


@pytest.mark.parametrize("kind", [*AS_IT_IS, "vera"])
def test_an_adapter_alone_is_itself(
    kind: str, bases: dict[str, Path], adapters: dict[str, Path], tmp_path: Path
) -> None:
    base = bases[family(kind)]
    delta = Delta.load(adapters[kind], str(base))
    delta.save(tmp_path / "same")
    negated = -delta
    (-negated).save(tmp_path / "twice negated")
    one, other = (
        (tmp_path / name / "adapter_model.safetensors").read_bytes()
        for name in ("same", "twice negated")
    )
    assert one == other
    wanted = logits(base, adapters[kind])
    assert not torch.allclose(wanted, logits(base), atol=1e-3)
    torch.testing.assert_close(logits(base, tmp_path / "same"), wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["plain", "rslora", "patterns", "conv1d", "embedding", "vera"])
def test_the_change_is_the_one_that_peft_folds(
    kind: str, bases: dict[str, Path], adapters: dict[str, Path]
) -> None:
    base = bases[family(kind)]
    delta = Delta.load(adapters[kind], str(base))
    wanted = changes(base, adapters[kind])
    found = {f"{name}.weight": change.dense() for name, change in delta.low.items()}
    for name, change in wanted.items():
        given = found.pop(name, torch.zeros_like(change))
        assert float((given - change).norm()) <= 1e-6 * (1 + float(change.norm())), name
    assert not found


def test_dora_is_a_change_of_whole_weights(
    bases: dict[str, Path], adapters: dict[str, Path], tmp_path: Path
) -> None:
    base = bases["llama"]
    delta = Delta.load(adapters["dora"], str(base))
    wanted = changes(base, adapters["dora"])
    assert sorted(delta.dense) == sorted(name for name, each in wanted.items() if each.norm() > 0)
    for name, change in delta.dense.items():
        assert float((change - wanted[name]).norm() / wanted[name].norm()) < 1e-5
    exact = delta.compress(rank=32)
    assert exact.error.relative < 1e-9
    exact.save(tmp_path / "low")
    torch.testing.assert_close(
        logits(base, tmp_path / "low"), logits(base, adapters["dora"]), atol=1e-4, rtol=1e-3
    )
    with pytest.raises(InputError, match="changes as a whole"):
        (delta + Delta.load(adapters["plain"])).save(tmp_path / "both")


def test_the_base_is_asked_for_where_it_is_needed(adapters: dict[str, Path]) -> None:
    config = adapters["dora"] / "adapter_config.json"
    values = json.loads(config.read_text())
    moved = values | {"base_model_name_or_path": "/nowhere/at/all"}
    config.write_text(json.dumps(moved))
    with pytest.raises(RecipeError, match="an adapter with DoRA needs the base") as refusal:
        Delta.load(adapters["dora"])
    assert "--base" in str(refusal.value.hint)
    config.write_text(json.dumps(values))


@pytest.mark.parametrize("names", [("plain", "rslora"), ("one target", "patterns", "plain")])
@pytest.mark.parametrize("weight", [-2.0, -1.0, 0.5])
def test_a_weighted_sum_is_the_sum_of_what_peft_folds(
    names: tuple[str, ...],
    weight: float,
    bases: dict[str, Path],
    adapters: dict[str, Path],
    tmp_path: Path,
) -> None:
    base, (first, *others) = bases["llama"], [Delta.load(adapters[name]) for name in names]
    total = first + sum(weight * other for other in others)
    total.save(tmp_path / "merged")
    found = changes(base, tmp_path / "merged")
    parts = [changes(base, adapters[name]) for name in names]
    for name in found:
        wanted = parts[0][name] + weight * sum(part[name] for part in parts[1:])
        assert float((found[name] - wanted).norm()) <= 1e-6 * (1 + float(wanted.norm())), name


def test_the_order_of_terms_changes_nothing(adapters: dict[str, Path]) -> None:
    one, other = Delta.load(adapters["plain"]), Delta.load(adapters["patterns"])
    for first, second in ((one + 2 * other, 2 * other + one), (one - other, -(other - one))):
        for name, change in first.low.items():
            assert torch.allclose(change.dense(), second.low[name].dense(), atol=1e-12)


@pytest.mark.parametrize("kind", AS_IT_IS)
def test_an_adapter_less_itself_is_nothing(
    kind: str, adapters: dict[str, Path], tmp_path: Path
) -> None:
    delta = Delta.load(adapters[kind])
    nothing = delta - delta
    assert all(rank == 0 for rank in nothing.ranks.values())
    if not delta.networks:
        assert nothing.norm == 0
        assert delta.norm > 0.1
        assert (-delta).norm == pytest.approx(delta.norm)
        assert delta.cosine(-delta) == pytest.approx(-1)
    if delta.low and not delta.dense:
        with pytest.raises(InputError, match="cancel in every layer"):
            nothing.save(tmp_path / "nothing")
        assert not (tmp_path / "nothing").exists()


def test_half_of_ia3_scales_half_as_much(
    bases: dict[str, Path], adapters: dict[str, Path], tmp_path: Path
) -> None:
    delta = Delta.load(adapters["ia3"])
    (delta * 0.5).save(tmp_path / "half")
    (delta - delta).save(tmp_path / "none")
    base = bases["llama"]
    torch.testing.assert_close(logits(base, tmp_path / "none"), logits(base))
    found, wanted = changes(base, tmp_path / "half"), changes(base, adapters["ia3"])
    for name in found:
        assert torch.allclose(found[name], 0.5 * wanted[name], atol=1e-6), name


def test_bottlenecks_add_up_and_take_each_other_back(
    bases: dict[str, Path], adapters: dict[str, Path], tmp_path: Path
) -> None:
    base = bases["llama"]
    config = BottleneckConfig(bottleneck_size=6, target_modules=["down_proj", "o_proj"])
    make(base, config, tmp_path / "other", seed=9)
    one, other = Delta.load(adapters["bottleneck"]), Delta.load(tmp_path / "other")
    (one + other - one).save(tmp_path / "back")
    wanted = logits(base, tmp_path / "other")
    torch.testing.assert_close(logits(base, tmp_path / "back"), wanted, atol=1e-5, rtol=1e-4)
    both = one + 0.5 * other
    assert {name: each.size for name, each in both.networks.items()} == {
        name: 10 if "down" in name else 6 for name in other.networks
    }
    with pytest.raises(InputError, match="networks beside the base"):
        one.cosine(other)


def test_an_adapter_squeezed_says_what_it_cost(adapters: dict[str, Path], tmp_path: Path) -> None:
    one, other = Delta.load(adapters["plain"]), Delta.load(adapters["patterns"])
    total = one + other
    small = total.compress(rank=4)
    assert {change.rank for change in small.low.values()} == {4}
    missing = total - small
    assert small.error.relative == pytest.approx(missing.norm / total.norm, rel=1e-6)
    for name, loss in small.error.layers.items():
        part = missing.low[name].dense().norm() / total.low[name].dense().norm()
        assert loss == pytest.approx(float(part), rel=1e-6)
    assert small.error.relative > 0.3  # unlike directions do not fit into the rank of one
    small.save(tmp_path / "small")
    noted = json.loads((tmp_path / "small" / "merge.json").read_text())
    assert noted["error"]["relative"] == pytest.approx(small.error.relative)
    assert [(term["name"], term["weight"]) for term in noted["terms"]] == [
        ("plain", 1.0),
        ("patterns", 1.0),
    ]
    kept = total.compress(energy=0.9)
    assert all(loss <= 0.1**0.5 for loss in kept.error.layers.values())
    for wrong in ({"rank": 0}, {"energy": 0.0}, {"energy": 1.5}, {"rank": 2, "energy": 0.5}):
        with pytest.raises(RecipeError):
            total.compress(**wrong)  # type: ignore[arg-type]


def test_layers_may_count_differently(adapters: dict[str, Path]) -> None:
    delta = Delta.load(adapters["plain"])
    found = delta.weigh({"*.mlp.*": 0.5, "*layers.1*": -1.0})
    for name, change in delta.low.items():
        factor = 0.5 if ".mlp." in name else -1.0 if "layers.1" in name else 1.0
        assert torch.allclose(found.low[name].dense(), factor * change.dense())
    assert set(delta.without("*.mlp.*").low) == {n for n in delta.low if ".mlp." not in n}
    for wrong in (lambda: delta.weigh({"*.mpl.*": 1.0}), lambda: delta.without("*.mpl.*")):
        with pytest.raises(RecipeError, match="fits no"):
            wrong()


def test_lengths_and_angles_are_those_of_the_whole_weights(adapters: dict[str, Path]) -> None:
    one, other = Delta.load(adapters["plain"]), Delta.load(adapters["patterns"])
    flat = [
        torch.cat([each.low[name].dense().flatten() for name in sorted(one.low)])
        for each in (one, other)
    ]
    assert one.norm == pytest.approx(float(flat[0].norm()))
    cosine = torch.nn.functional.cosine_similarity(flat[0], flat[1], dim=0)
    assert one.cosine(other) == pytest.approx(float(cosine), abs=1e-9)
    against = float(((flat[0] * flat[1]) < 0).double().mean())
    assert one.sign_conflict(other) == pytest.approx(against)
    assert all(0 <= share <= 1 for share in one.overlap(other).values())
    assert all(share == pytest.approx(1) for share in one.overlap(-3 * one).values())
    assert all(rank == pytest.approx(4) or rank < 4 for rank in one.effective_ranks.values())


def test_prefixes_are_no_vectors(bases: dict[str, Path], tmp_path: Path) -> None:
    from peft import PrefixTuningConfig

    config = PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    get_peft_model(fresh(bases["llama"]), config).save_pretrained(tmp_path / "prefix")
    with pytest.raises(InputError, match="no opposite"):
        Delta.load(tmp_path / "prefix")


def test_a_fine_tune_is_what_it_changed(bases: dict[str, Path], tmp_path: Path) -> None:
    model = fresh(bases["llama"])
    update = torch.outer(torch.arange(32.0), torch.ones(32)) / 50
    model.model.layers[1].self_attn.q_proj.weight.data += update
    model.save_pretrained(tmp_path / "tuned")
    with pytest.raises(RecipeError, match="is a whole model"):
        Delta.load(tmp_path / "tuned")
    delta = Delta.load(tmp_path / "tuned", str(bases["llama"]))
    assert list(delta.dense) == ["model.layers.1.self_attn.q_proj.weight"]
    low = delta.compress(rank=1)
    assert low.error.relative < 1e-5
    low.save(tmp_path / "extracted")
    torch.testing.assert_close(
        logits(bases["llama"], tmp_path / "extracted"),
        logits(tmp_path / "tuned"),
        atol=1e-5,
        rtol=1e-4,
    )


def test_two_heads_have_no_sum(bases: dict[str, Path], tmp_path: Path) -> None:
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(bases["llama"], num_labels=3)
        config = LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS")
        tuned: Any = get_peft_model(model, config)
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.data = torch.randn(parameter.shape) * 0.1
        tuned.save_pretrained(tmp_path / str(seed))
    one, other = (Delta.load(tmp_path / str(seed)) for seed in (0, 1))
    assert list(one.kept) == ["base_model.model.score.weight"]
    with pytest.raises(InputError, match=r"bring `base_model.*` of their own"):
        one + other
    total = one + 0.5 * other.without("*score*")
    assert torch.equal(total.kept["base_model.model.score.weight"], next(iter(one.kept.values())))
    assert torch.equal(
        (0.3 * one).kept["base_model.model.score.weight"], next(iter(one.kept.values()))
    )
    total.save(tmp_path / "total")
    base = AutoModelForSequenceClassification.from_pretrained(bases["llama"], num_labels=3)
    again: Any = PeftModel.from_pretrained(base, str(tmp_path / "total"))
    head = again.base_model.model.score.modules_to_save["default"].weight
    assert torch.equal(head, one.kept["base_model.model.score.weight"])


def test_other_bases_and_other_values_are_refused(
    bases: dict[str, Path], adapters: dict[str, Path], tmp_path: Path
) -> None:
    make(bases["llama"], LoraConfig(r=2, target_modules=["q_proj"]), tmp_path / "other", 3)
    config = tmp_path / "other" / "adapter_config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "org/other"})
    )
    one, other = Delta.load(adapters["plain"]), Delta.load(tmp_path / "other")
    named = Delta(low=one.low, facts={**one.facts, "base": "org/base"})
    with pytest.raises(InputError, match="different bases: `org/base` and `org/other`"):
        named + other
    turned = Delta.load(adapters["conv1d"]).low["transformer.h.0.attn.c_attn"]
    strange = Delta(low={"model.layers.0.self_attn.q_proj": turned})
    with pytest.raises(InputError, match=r"is 32 x 32 \(linear\) in one adapter and 96 x 32"):
        one + strange
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(RecipeError, match="cannot be multiplied"):
            one * wrong
    with pytest.raises(RecipeError, match="divided by 0"):
        one / 0
    with pytest.raises(TypeError):
        one + 1
    with pytest.raises(TypeError):
        one * one  # type: ignore[operator]


def test_a_fine_tune_of_turned_weights_becomes_factors_that_lie_alike(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    model = fresh(bases["gpt2"])
    weights = {"transformer.h.1.attn.c_proj.weight": torch.randn(32, 32) / 9}
    weights["transformer.h.1.attn.c_proj.weight"] += model.get_parameter(next(iter(weights)))
    config = {"peft_type": "TOP", "base_model_name_or_path": str(bases["gpt2"])}
    for name, value in model.transformer.h[1].named_parameters(prefix="transformer.h.1"):
        weights.setdefault(name, value)
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "adapter_config.json").write_text(json.dumps(config))
    kept = {name: value.detach().contiguous() for name, value in weights.items()}
    save_file(kept, tmp_path / "top" / "delta.safetensors")
    model.load_state_dict(weights, strict=False)
    with torch.inference_mode():
        wanted = model(IDS).logits
    found = Delta.load(tmp_path / "top").compress(rank=32)
    found = found.without(*found.dense)
    found.save(tmp_path / "low")
    got = logits(bases["gpt2"], tmp_path / "low")
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-3)


def test_a_weight_of_two_modules_never_becomes_factors_of_one(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    model = fresh(bases["gpt2"])
    model.transformer.wte.weight.data += 0.1
    model.save_pretrained(tmp_path / "tuned")
    delta = Delta.load(tmp_path / "tuned", str(bases["gpt2"]))
    with pytest.raises(InputError, match=r"`transformer.wte.weight` changes as a whole"):
        delta.compress(rank=1).save(tmp_path / "low")
    delta.fold(bases["gpt2"], tmp_path / "folded")
    torch.testing.assert_close(logits(tmp_path / "folded"), logits(tmp_path / "tuned"))


def test_a_fine_tune_that_lost_a_weight_is_none(bases: dict[str, Path], tmp_path: Path) -> None:
    model = fresh(bases["llama"])
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.model.embed_tokens.weight
    model.save_pretrained(tmp_path / "tied")
    with pytest.raises(InputError, match=r"`lm_head.weight`: missing, and the base has it"):
        Delta.load(tmp_path / "tied", str(bases["llama"]))


@pytest.mark.parametrize("family", ["t5", "bert"])
def test_fine_tunes_of_every_family_can_be_read(family: str, tmp_path: Path) -> None:
    sizes = {**SIZES, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    kind = AutoModelForSeq2SeqLM if family == "t5" else AutoModelForMaskedLM
    model: Any = kind.from_config(AutoConfig.for_model(family, **sizes))
    model.save_pretrained(tmp_path / "base")
    name = next(n for n, _ in model.named_parameters() if n.endswith(("q.weight", "query.weight")))
    model.get_parameter(name).data += 0.1
    model.save_pretrained(tmp_path / "tuned")
    delta = Delta.load(tmp_path / "tuned", str(tmp_path / "base"))
    assert list(delta.dense) == [name]
    assert delta.compress(rank=1).error.relative < 1e-5


def classifier(base: Path, config: Any, folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    with quiet():
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
        tuned: Any = get_peft_model(model, config)
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.data = torch.randn(parameter.shape) * 0.1
        tuned.save_pretrained(folder)
    labels = [f"{folder.name}{number}" for number in range(3)]
    (folder / "task.json").write_text(json.dumps({"task": "classification", "labels": labels}))


@pytest.mark.parametrize("first", ["whole", "headless"])
def test_the_labels_are_those_of_the_head(
    first: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    for seed, name in enumerate(("one", "other")):
        config = LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS")
        classifier(bases["llama"], config, tmp_path / name, seed)
    whole = Delta.load(tmp_path / "one")
    headless = Delta.load(tmp_path / "other").without("*score*")
    (whole + headless if first == "whole" else headless + whole).save(tmp_path / "sum")
    noted = json.loads((tmp_path / "sum" / "task.json").read_text())
    assert noted["labels"] == ["one0", "one1", "one2"]


def test_ia3_keeps_its_head(bases: dict[str, Path], tmp_path: Path) -> None:
    config = IA3Config(task_type="SEQ_CLS", target_modules=["k_proj"], feedforward_modules=[])
    classifier(bases["llama"], config, tmp_path / "one", 0)
    Delta.load(tmp_path / "one").save(tmp_path / "same")
    found = []
    for name in ("one", "same"):
        with quiet(), torch.inference_mode():
            model = AutoModelForSequenceClassification.from_pretrained(
                bases["llama"], num_labels=3, pad_token_id=0
            )
            loaded: Any = PeftModel.from_pretrained(model, str(tmp_path / name)).eval()
            found.append(loaded(IDS).logits.clone())
    torch.testing.assert_close(*found)


def test_a_task_without_a_head_is_kept(adapters: dict[str, Path], tmp_path: Path) -> None:
    delta = Delta.load(adapters["plain"])
    told = Delta.load(adapters["one target"])
    told.facts["task"] = {"task": "embedding", "labels": [], "head": None}  # type: ignore[index]
    for number, total in enumerate((delta + told, told + delta)):
        total.save(tmp_path / str(number))
        assert json.loads((tmp_path / str(number) / "task.json").read_text())["task"] == "embedding"


def test_what_has_no_place_in_a_file_is_never_left_out_silently(
    adapters: dict[str, Path], tmp_path: Path
) -> None:
    norm = Delta(dense={"model.norm.weight": torch.ones(32)})
    for delta in (norm, norm + Delta.load(adapters["ia3"]), norm + Delta.load(adapters["plain"])):
        with pytest.raises(InputError, match=r"`model.norm.weight` changes as a whole"):
            delta.save(tmp_path / "out")
    with pytest.raises(InputError, match=r"only `score.weight` is left"):
        Delta(kept={"score.weight": torch.ones(3, 32)}).save(tmp_path / "out")
    name = "model.layers.0.self_attn.q_proj"
    bias = Delta.load(adapters["plain"]) + Delta(dense={f"{name}.bias": torch.ones(32)})
    both = Delta.load(adapters["embedding"]) + bias
    with pytest.raises(InputError, match="is an embedding, and others have biases"):
        both.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_that_end_in_other_names_keep_their_ranks(tmp_path: Path) -> None:
    ranks = {"layers.1.mlp": 3, "encoder.layers.1.mlp": 2, "encoder.layers.2.mlp": 2, "h.11": 2}
    low = {
        n: LowRank(torch.randn(4, r).double(), torch.randn(r, 4).double()) for n, r in ranks.items()
    }
    delta = Delta(low=low)
    delta.save(tmp_path / "out")
    again = Delta.load(tmp_path / "out")
    assert again.ranks == ranks
    assert (again - delta).norm < 1e-5


def test_a_sum_may_start_from_nothing(adapters: dict[str, Path]) -> None:
    delta = replace(Delta.load(adapters["plain"]), facts={"base": "org/base"})
    for total in (sum([delta, delta], start=Delta()), delta + Delta(), sum([delta])):
        assert isinstance(total, Delta)
        assert total.facts["base"] == "org/base"


def test_a_bias_counts_like_the_factors_beside_it(adapters: dict[str, Path]) -> None:
    delta = Delta.load(adapters["bias"])
    half = delta.weigh({"*.c_attn": 0.5})
    assert half.norm == pytest.approx(0.5 * delta.norm)
    (name, *_) = delta.dense
    assert torch.equal(delta.weigh({f"{name}": 3.0}).dense[name], 3 * delta.dense[name])


def test_quantized_weights_are_never_taken_for_weights(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    fresh(bases["llama"]).save_pretrained(tmp_path / "tuned")
    config = tmp_path / "tuned" / "config.json"
    values = json.loads(config.read_text()) | {"quantization_config": {"quant_method": "fp8"}}
    config.write_text(json.dumps(values))
    with pytest.raises(InputError, match="is quantized"):
        Delta.load(tmp_path / "tuned", str(bases["llama"]))


@pytest.mark.parametrize("kind", ["patterns", "ia3"])
def test_names_stand_in_one_order(kind: str, adapters: dict[str, Path], tmp_path: Path) -> None:
    Delta.load(adapters[kind]).save(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(config["target_modules"])
    inner = config.get("feedforward_modules", [])
    assert inner == sorted(inner)
