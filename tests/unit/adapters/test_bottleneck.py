"""Bottleneck adapters: against a plain implementation, a published size, and every family."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from families import GROUPED, SIZES
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from peftkit.adapters.attach import attach, base_only, trainable
from peftkit.adapters.bottleneck import BottleneckConfig
from peftkit.adapters.store import add_adapter, load_adapter, save_adapter
from peftkit.adapters.verify import module_shapes, verify_adapter
from peftkit.base.locate import Origin
from peftkit.base.parts import after_attention, after_mlp, block_list, whole_mlp
from peftkit.errors import InputError, RecipeError
from peftkit.fast.recompute import recompute, refuse_recompute
from peftkit.recipe.sections.adapter import BottleneckSection

IDS = torch.arange(24).reshape(2, 12)
EXPERTS = GROUPED | {"moe_intermediate_size": 16, "num_experts": 2, "num_experts_per_tok": 1}
SHARED = EXPERTS | {"shared_expert_intermediate_size": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": GROUPED,
    "mistral": GROUPED,
    "gemma": GROUPED,
    "phi": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"n_layer": 2, "n_head": 4},
    "falcon": {"ffn_hidden_size": 48},
    "gpt_neox": {},
    "mixtral": GROUPED | {"num_local_experts": 2, "num_experts_per_tok": 1},
    "qwen2_moe": {**SHARED, "decoder_sparse_step": 1},
    "qwen3_moe": EXPERTS | {"mlp_only_layers": [0]},
}
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {},
    "deberta-v2": {},
    "modernbert": {"cls_token_id": 1, "sep_token_id": 2, "global_attn_every_n_layers": 2},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
}
VARIANTS = ("houlsby", "pfeiffer", "parallel")
CASES = [(f, v) for f in FAMILIES for v in VARIANTS if (f, v) != ("opt", "parallel")]
ACTIVATIONS = {
    "relu": nn.functional.relu,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
    "tanh": torch.tanh,
}


def build(family: str = "llama", *, dtype: torch.dtype = torch.float32) -> Any:
    config = AutoConfig.for_model(family, **SIZES | FAMILIES[family])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.requires_grad_(requires_grad=False).eval()


def section_of(variant: str, **changes: Any) -> BottleneckSection:
    return BottleneckSection.model_validate(
        {"method": "bottleneck", "variant": variant, "size": 4} | changes
    )


def scramble(model: Any) -> dict[str, torch.Tensor]:
    """Give what trains random numbers, and return them."""
    generator = torch.Generator().manual_seed(1)
    for parameter in trainable(model).values():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return {name: parameter.detach().clone() for name, parameter in trainable(model).items()}


def save(model: Any, folder: Path) -> Path:
    origin = Origin("org/tiny", folder.parent, "0123abc")
    save_adapter(model, folder, origin, method="bottleneck")
    return folder


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(IDS).logits.clone()  # type: ignore[no-any-return]


def hook_in(model: Any, weights: dict[str, torch.Tensor], section: BottleneckSection) -> None:
    """The method once more, without peft: hooks on the modules that carry weights."""
    bend = ACTIVATIONS[section.activation]
    modules = {name.split(".bottleneck_")[0] for name in weights}

    def adapted(key: str) -> Any:
        def take(part: str) -> torch.Tensor:
            return weights[f"{key}.bottleneck_{part.replace('.', '.default.')}"]

        def hook(_: Any, given: Any, output: torch.Tensor) -> torch.Tensor:
            source = given[0] if section.variant == "parallel" else output
            inner = bend(source @ take("down.weight").T + take("down.bias"))
            update = inner @ take("up.weight").T + take("up.bias")
            return output + section.scale * update

        return hook

    for key in modules:
        model.get_submodule(key.removeprefix("base_model.model.")).register_forward_hook(
            adapted(key)
        )


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_computes_what_a_plain_implementation_does(
    family: str, variant: str, activation: str
) -> None:
    section = section_of(variant, activation=activation, scale=0.7, dropout=0.5)
    model = attach(build(family), section, seed=0)
    plain = build(family)
    hook_in(plain, scramble(model), section)
    assert not torch.allclose(logits(model), logits(build(family)), atol=1e-2)
    torch.testing.assert_close(logits(model), logits(plain), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("family", "variant"), CASES)
def test_every_family_starts_as_it_was_and_keeps_what_it_learned(
    family: str, variant: str, tmp_path: Path
) -> None:
    before = logits(build(family))
    model = attach(build(family), section_of(variant), seed=0)
    assert torch.equal(logits(model), before)
    places = 2 if variant == "houlsby" else 1
    assert sum(p.numel() for p in trainable(model).values()) == places * 2 * (2 * 32 * 4 + 32 + 4)
    scramble(model)
    after = logits(model)
    assert not torch.allclose(after, before, atol=1e-3)
    with base_only(model):
        assert torch.equal(logits(model), before)
    folder = save(model, tmp_path / "adapter")
    assert torch.equal(logits(load_adapter(build(family), folder)), after)
    assert torch.equal(logits(PeftModel.from_pretrained(build(family), str(folder))), after)


@pytest.mark.parametrize("family", list(ENCODERS))
def test_encoders_have_places_in_every_block(family: str) -> None:
    config = AutoConfig.for_model(family, **SIZES | ENCODERS[family])
    model = AutoModel.from_config(config).eval()
    attention, mlp = after_attention(model), after_mlp(model)
    for names, without, count in (
        (attention.names, attention.without, 6 if family == "t5" else 2),
        (mlp.names, mlp.without, 4 if family == "t5" else 2),
    ):
        inner = BottleneckConfig(
            target_modules=list(names),
            exclude_modules=list(without),
            bottleneck_size=4,
            layers_to_transform=[0, 1],
            layers_pattern=[block_list(model)],
        )
        adapted: Any = get_peft_model(AutoModel.from_config(config), inner)
        assert len(adapted.base_model.targeted_module_names) == count


@pytest.mark.parametrize("family", ["modernbert", "distilbert", "t5"])
def test_an_mlp_that_is_one_module_is_found_in_encoders(family: str) -> None:
    model = AutoModel.from_config(AutoConfig.for_model(family, **SIZES | ENCODERS[family]))
    assert len(whole_mlp(model).names) == 1


@pytest.mark.parametrize("family", ["bert", "roberta", "deberta-v2"])
def test_beside_an_mlp_in_pieces_it_computes_what_a_plain_implementation_does(family: str) -> None:
    config = AutoConfig.for_model(family, **SIZES)

    def encoder() -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return AutoModel.from_config(config).requires_grad_(requires_grad=False).eval()

    @torch.inference_mode()
    def states(model: Any) -> torch.Tensor:
        return model.eval()(IDS).last_hidden_state.clone()  # type: ignore[no-any-return]

    section = section_of("parallel", scale=0.7)
    model, plain, before = attach(encoder(), section, seed=0), encoder(), states(encoder())
    assert torch.equal(states(model), before)
    weights, bend = scramble(model), ACTIVATIONS[section.activation]
    blocks = sorted({name.split(".output.bottleneck_")[0] for name in weights})
    assert len(blocks) == 2
    for key in blocks:
        block = plain.get_submodule(key.removeprefix("base_model.model."))
        seen: list[torch.Tensor] = []

        def keep(_: Any, given: Any, seen: Any = seen) -> None:
            seen[:] = given

        def add(_: Any, __: Any, output: Any, seen: Any = seen, key: str = key) -> Any:
            down, down_bias, up, up_bias = (
                weights[f"{key}.output.bottleneck_{part}"]
                for part in (
                    *("down.default.weight", "down.default.bias"),
                    *("up.default.weight", "up.default.bias"),
                )
            )
            return output + section.scale * (bend(seen[0] @ down.T + down_bias) @ up.T + up_bias)

        block.intermediate.register_forward_pre_hook(keep)
        block.output.dense.register_forward_hook(add)
    assert not torch.allclose(states(model), before, atol=1e-2)
    torch.testing.assert_close(states(model), states(plain), atol=1e-5, rtol=1e-5)


def test_what_a_family_does_not_have_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"this base \(opt\) none is known"):
        attach(build("opt"), section_of("parallel"), seed=0)
    config = AutoConfig.for_model("mamba", **SIZES | {"state_size": 4})
    with pytest.raises(RecipeError, match=r"where its MLP ends in this base \(mamba\)"):
        attach(AutoModelForCausalLM.from_config(config), section_of("pfeiffer"), seed=0)
    with pytest.raises(RecipeError, match="33 is wider than the base, which has a width of 32"):
        attach(build(), section_of("pfeiffer", size=33), seed=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_the_named_blocks_carry_it(variant: str, tmp_path: Path) -> None:
    model = attach(build(), section_of(variant, layers=(1,)), seed=0)
    assert trainable(model)
    assert all(".layers.1." in name for name in trainable(model))
    scramble(model)
    folder = save(model, tmp_path / "adapter")
    assert torch.equal(logits(load_adapter(build(), folder)), logits(model))


@pytest.mark.parametrize(("size", "share"), [(8, 0.0031), (64, 0.0213), (256, 0.0838)])
def test_as_many_parameters_train_as_in_the_paper(size: int, share: float) -> None:
    """Houlsby et al. (2019), BERT-large: 2md + d + m an adapter, two of them a block.

    The paper trains the norms besides, and its share of 3.6 % is the mean over tasks of which each
    chose a size from 8 to 256; 2.1 % is its figure for 64. Both are of what stands above the
    embeddings: of all 334 million parameters, 64 trains 1.9 %.
    """
    sizes = {
        "vocab_size": 30522,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "is_decoder": True,
    }
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(AutoConfig.for_model("bert", **sizes))
        blocks = sum(p.numel() for p in base.bert.encoder.parameters())
        norms = sum(p.numel() for n, p in base.bert.encoder.named_parameters() if "LayerNorm" in n)
        base.requires_grad_(requires_grad=False)
        model = attach(base, section_of("houlsby", size=size), seed=0)
    found = sum(parameter.numel() for parameter in trainable(model).values())
    assert found == 2 * 24 * (2 * size * 1024 + 1024 + size)
    assert (found + norms) / blocks == pytest.approx(share, abs=5e-5)


def test_it_is_never_merged() -> None:
    model = attach(build(), section_of("pfeiffer"), seed=0)
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(ValueError, match="not linear"):
            merge()
    with pytest.raises(ValueError, match="not linear"):
        next(m for m in model.modules() if hasattr(m, "bottleneck_down")).merge()
    assert torch.equal(logits(model.unload()), logits(build()))


def test_two_of_them_add_up(tmp_path: Path) -> None:
    """Each is given what the base computes, so their order does not matter."""
    folders = []
    for number in (1, 2):
        model = attach(build(), section_of("pfeiffer", layers=(1,)), seed=0)
        scramble(model)
        for parameter in trainable(model).values():
            parameter.data *= number
        folders.append(save(model, tmp_path / f"adapter{number}"))
    one_way, other_way = (
        add_adapter(load_adapter(build(), first), second, 1)
        for first, second in (folders, folders[::-1])
    )
    torch.testing.assert_close(logits(one_way), logits(other_way))
    alone = logits(load_adapter(build(), folders[0]))
    assert not torch.allclose(logits(one_way), alone, atol=1e-3)
    one_way.delete_adapter("adapter1")
    one_way.set_adapter("default")
    assert torch.equal(logits(one_way), alone)


@pytest.mark.parametrize("order", [("parallel", "houlsby"), ("houlsby", "parallel")])
def test_one_that_peft_would_leave_out_is_not_added(order: tuple[str, str], tmp_path: Path) -> None:
    for variant in order:
        save(attach(build(), section_of(variant), seed=0), tmp_path / variant)
    model = load_adapter(build(), tmp_path / order[0])
    with pytest.raises(InputError, match="one of the two adapters stands beside the MLP"):
        add_adapter(model, tmp_path / order[1], 1)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_blocks_that_run_again_give_the_same_gradients(family: str, variant: str) -> None:
    found = []
    for count in (0, 2):
        model = attach(build(family), section_of(variant), seed=0)
        scramble(model)
        assert refuse_recompute(model) is None
        recompute(model, count)
        torch.manual_seed(0)  # GPT-2 drops
        model.train()(IDS, labels=IDS).loss.backward()
        found.append([parameter.grad for parameter in trainable(model).values()])
    for plain, again in zip(*found, strict=True):
        assert torch.equal(plain, again)


@pytest.mark.parametrize("variant", VARIANTS)
def test_sizes_that_do_not_fit_the_base_are_refused(variant: str, tmp_path: Path) -> None:
    folder = save(attach(build("gpt2"), section_of(variant), seed=0), tmp_path / "adapter")
    verify_adapter(folder, module_shapes(build("gpt2")))
    config = json.loads((folder / "adapter_config.json").read_text())
    config["bottleneck_size"] = 5
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError) as refusal:
        verify_adapter(folder, module_shapes(build("gpt2")))
    assert any("bottleneck_down.weight" in problem for problem in refusal.value.problems)


@pytest.mark.parametrize(("lines", "loads"), [("", False), ("import peftkit.adapters", True)])
def test_peft_loads_it_once_peftkit_has_been_imported(
    lines: str, tmp_path: Path, *, loads: bool
) -> None:
    base = build()
    base.save_pretrained(tmp_path / "base")
    folder = save(attach(base, section_of("pfeiffer"), seed=0), tmp_path / "adapter")
    code = f"""
import sys
from peft import PeftModel
from transformers import AutoModelForCausalLM
{lines}
base = AutoModelForCausalLM.from_pretrained(sys.argv[1])
PeftModel.from_pretrained(base, sys.argv[2])
"""
    paths = [str(tmp_path / "base"), str(folder)]
    done = subprocess.run(
        [sys.executable, "-c", code, *paths], capture_output=True, text=True, check=False
    )
    assert (done.returncode == 0) is loads
    assert ("KeyError: 'BOTTLENECK'" in done.stderr) is not loads
