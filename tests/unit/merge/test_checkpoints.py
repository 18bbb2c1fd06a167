"""Merges of whole models against torch's own sums and the same methods in memory."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from merge_bases import SIZES
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from peftkit import Delta
from peftkit.errors import InputError, RecipeError, RunError
from peftkit.merge.checkpoints import How, merge_checkpoints
from peftkit.merge.methods.catalog import METHODS
from peftkit.merge.methods.entry_wise import merge_blocks
from peftkit.merge.methods.gram import gram_of_layer
from peftkit.merge.methods.inputs import Inputs
from peftkit.merge.methods.stream import Layer, Stream
from peftkit.merge.model_files import BLOCK
from peftkit.merge.terms import Layers, Part

Tensors = dict[str, torch.Tensor]
WEIGHTS = {"one": 0.5, "two": 0.7}


def build(folder: Path, family: str = "llama", *, dtype: torch.dtype = torch.bfloat16) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES))
    model.to(dtype).save_pretrained(folder, max_shard_size="20kB")
    return folder


def read(folder: Path) -> Tensors:
    return {
        k: v for path in sorted(folder.glob("*.safetensors")) for k, v in load_file(path).items()
    }


def tune(base: Path, folder: Path, seed: int, shard: str = "80kB") -> Path:
    """A model a few percent away, in other shards than the base's."""
    draw = torch.Generator().manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    for weight in model.parameters():
        change = (
            torch.randn(weight.shape, generator=draw) * 0.05 * weight.float().std().nan_to_num()
        )
        weight.data = (weight.float() + change).to(weight.dtype)
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


def edit(folder: Path, change: Callable[[Tensors], object]) -> Path:
    for path in sorted(folder.glob("*.safetensors")):
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, {"format": "pt"})
    return folder


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    base = build(tmp_path / "base")
    return {"base": base} | {
        name: tune(base, tmp_path / name, seed) for seed, name in enumerate(WEIGHTS)
    }


def parts(models: Mapping[str, Path], weights: Mapping[str, float] = WEIGHTS) -> list[Part]:
    return [Part(name, str(models[name]), weight) for name, weight in weights.items()]


def merge(models: Mapping[str, Path], **how: Any) -> Tensors:
    out = models["base"].parent / "merged"
    merge_checkpoints(how.pop("parts", None) or parts(models), str(models["base"]), out, **how)
    return read(out)


def test_a_sum_is_the_sum_rounded_once(models: dict[str, Path]) -> None:
    base, one, two = (read(models[name]) for name in ("base", "one", "two"))
    merged = merge(models)
    assert sorted(merged) == sorted(base)
    for name, weight in base.items():
        before = weight.double()
        wanted = before + 0.5 * (one[name].double() - before) + 0.7 * (two[name].double() - before)
        assert merged[name].dtype == torch.bfloat16
        # bfloat16 has eight bits, float32 rounds far below them: only even chances differ
        assert float((merged[name] != wanted.bfloat16()).float().mean()) < 0.01, name
        torch.testing.assert_close(merged[name].double(), wanted, rtol=2**-8, atol=0)


def test_the_result_is_laid_out_as_the_base_and_loads(models: dict[str, Path]) -> None:
    merge(models)
    base, merged = models["base"], models["base"].parent / "merged"
    files = sorted(path.name for path in base.iterdir())
    assert sorted(path.name for path in merged.iterdir()) == sorted([*files, "merge.json"])
    assert len([name for name in files if name.endswith(".safetensors")]) > 1
    assert AutoModelForCausalLM.from_pretrained(merged).dtype == torch.bfloat16
    said = json.loads((merged / "merge.json").read_text())
    assert [term["name"] for term in said["terms"]] == ["one", "two"]
    assert set(said["files"]) == {name for name in files if name.endswith(".safetensors")}
    assert 0 < said["lost"]["relative"] < 1


def entry_wise() -> list[str]:
    return [name for name, each in METHODS.items() if each.kind == "entry-wise"]


@pytest.mark.parametrize("name", [*entry_wise(), "slerp", "karcher", "model-stock"])
def test_each_method_gives_what_it_gives_in_memory(name: str, models: dict[str, Path]) -> None:
    method = METHODS[name]
    weights = dict.fromkeys(WEIGHTS, 1.0) if method.weights == "none" else WEIGHTS
    base, *tuned = (read(models[each]) for each in ("base", *weights))
    said = [str(Delta.load(models[each], str(models["base"])).terms[0].digest) for each in weights]
    inputs = Inputs(tuple(weights.values()), tuple(weights), tuple(said))
    layers = [
        Layer.of(n, [each[n].float() - base[n].float() for each in tuned])
        for path in sorted(models["base"].glob("*.safetensors"))
        for n in load_file(path)
    ]
    stream = Stream.of(layers, inputs, entries=BLOCK)
    wanted = {n: weight.float().reshape(-1, weight.shape[-1]) for n, weight in base.items()}
    told = method.read({})
    if method.kind == "gram":
        gram = torch.stack([gram_of_layer(stream, layer) for layer in stream.layers]).sum(0)
        multiples = method.function(gram, inputs.sorted().weights, told)
        method, told = METHODS["sum"], METHODS["sum"].read({})
        said = [str(n) for n in range(len(said))]
        stream = Stream.of(
            [Layer(e.name, e.rows, e.columns, e.read) for e in stream.layers],
            Inputs(tuple(multiples), inputs.names, tuple(said)),
            entries=BLOCK,
        )
    for layer, start, rows in merge_blocks(method.function(told), stream):
        wanted[layer.name][start : start + len(rows)] += rows
    merged = merge(models, how=How(name), parts=parts(models, weights))
    for n, weight in merged.items():
        assert torch.equal(weight.reshape(-1, weight.shape[-1]), wanted[n].bfloat16()), n


def test_models_and_adapters_add_up(models: dict[str, Path], tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(models["base"]), config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    model.save_pretrained(tmp_path / "adapter")
    delta = Delta.load(tmp_path / "adapter")
    base, one = read(models["base"]), read(models["one"])
    merged = merge(
        models, parts=[*parts(models, {"one": 0.5}), Part("lora", str(tmp_path / "adapter"), -2.0)]
    )
    assert len(delta.low) == 4
    for name, weight in base.items():
        wanted = weight.double() + 0.5 * (one[name].double() - weight.double())
        if (low := delta.low.get(name.removesuffix(".weight"))) is not None:
            wanted -= 2 * low.dense()
        torch.testing.assert_close(merged[name].double(), wanted, rtol=2**-8, atol=1e-7)


def test_layers_are_weighed_and_left_out(models: dict[str, Path]) -> None:
    base, one, two = (read(models[name]) for name in ("base", "one", "two"))
    told = Layers(scale=(("*.mlp.*", {"one": 0.0}),), without=("*norm*", "lm_head"))
    merged = merge(models, layers=told)
    for name, weight in base.items():
        if "norm" in name or "lm_head" in name:
            assert torch.equal(merged[name], weight), name
            continue
        times = 0.0 if ".mlp." in name else 0.5
        wanted = weight.double() + 0.7 * (two[name].double() - weight.double())
        wanted += times * (one[name].double() - weight.double())
        torch.testing.assert_close(merged[name].double(), wanted, rtol=2**-8, atol=0)
    with pytest.raises(RecipeError, match="fits no module"):
        merge(models, layers=Layers(scale=(("*.moe.*", {"one": 0.0}),)))


def test_weights_of_32_bits_are_added_in_64(tmp_path: Path) -> None:
    base = build(tmp_path / "base", dtype=torch.float32)
    models = {"base": base, "one": tune(base, tmp_path / "one", 1)}
    merged = merge(models, parts=parts(models, {"one": 1 / 3}))
    one = read(models["one"])
    for name, weight in read(base).items():
        wanted = weight.double() + (one[name].double() - weight.double()) * (1 / 3)
        assert torch.equal(merged[name], wanted.float()), name


def drop_norm(tensors: Tensors) -> None:
    tensors.pop("model.norm.weight", None)


def add_bias(tensors: Tensors) -> None:
    if "model.norm.weight" in tensors:
        tensors["model.norm.bias"] = torch.zeros(32)


def widen_norm(tensors: Tensors) -> None:
    if "model.norm.weight" in tensors:
        tensors["model.norm.weight"] = torch.zeros(33)


def poison(tensors: Tensors) -> None:
    if "model.norm.weight" in tensors:
        tensors["model.norm.weight"][3] = torch.nan


def draw_anew(tensors: Tensors) -> None:
    draw = torch.Generator().manual_seed(9)
    for name, weight in tensors.items():
        tensors[name] = (torch.randn(weight.shape, generator=draw) * 0.02).to(weight.dtype)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (drop_norm, "missing, and the base has it"),
        (add_bias, "the base has no such tensor"),
        (widen_norm, r"\(33,\), in the base \(32,\)"),
        (draw_anew, "nothing in common"),
    ],
)
def test_what_is_no_fine_tune_of_the_base_is_refused(
    damage: Callable[[Tensors], None], said: str, models: dict[str, Path]
) -> None:
    edit(models["two"], damage)
    with pytest.raises(InputError, match=said):
        merge(models)
    assert not (models["base"].parent / "merged").exists()


@pytest.mark.parametrize("method", ["sum", "ties"])
def test_nan_is_no_weight(method: str, models: dict[str, Path]) -> None:
    edit(models["two"], poison)
    with pytest.raises((InputError, RunError), match=r"norm\.weight"):
        merge(models, how=How(method))
    assert not (models["base"].parent / "merged").exists()


def test_another_kind_of_model_is_refused(models: dict[str, Path]) -> None:
    config = json.loads((models["two"] / "config.json").read_text())
    (models["two"] / "config.json").write_text(json.dumps(config | {"model_type": "mistral"}))
    with pytest.raises(InputError, match="another kind of model"):
        merge(models)


def test_a_sum_that_is_the_base_is_no_model(models: dict[str, Path]) -> None:
    shutil.copytree(models["one"], models["base"].parent / "twin")
    models["twin"] = models["base"].parent / "twin"
    with pytest.raises(RunError, match="would be the base itself"):
        merge(models, parts=parts(models, {"one": 1.0, "twin": -1.0}))


def test_methods_of_directions_read_no_whole_weights(models: dict[str, Path]) -> None:
    with pytest.raises(RecipeError, match="looks at directions"):
        merge(models, how=How("tsv"))


def test_a_head_that_was_untied_is_not_merged_with_one_that_is_not(tmp_path: Path) -> None:
    base = build(tmp_path / "base", "gpt2")
    models = {"base": base, "one": tune(base, tmp_path / "one", 1, "5GB")}
    tensors = read(models["one"])
    assert "lm_head.weight" not in tensors
    twice = tensors | {"lm_head.weight": tensors["transformer.wte.weight"].clone()}
    save_file(twice, models["one"] / "model.safetensors", {"format": "pt"})
    merged = merge(models, parts=parts(models, {"one": 0.5}))  # written twice, but one tensor
    assert sorted(merged) == sorted(read(base))
    twice["lm_head.weight"][5] += 1
    save_file(twice, models["one"] / "model.safetensors", {"format": "pt"})
    config = json.loads((models["one"] / "config.json").read_text())
    config["tie_word_embeddings"] = False
    (models["one"] / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="one tensor for its embedding and its head"):
        merge(models, parts=parts(models, {"one": 0.5}))
