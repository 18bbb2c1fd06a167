"""Embeddings and a head beside LoRA: fresh they change nothing, and vanilla peft loads them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

from peftkit.adapters.attach import attach, base_only, trainable
from peftkit.adapters.store import load_adapter, save_adapter
from peftkit.adapters.verify import WEIGHTS_FILE
from peftkit.base.locate import Origin
from peftkit.errors import RecipeError
from peftkit.fast.head import find_head
from peftkit.recipe.sections.adapter import LoraSection

IDS = torch.arange(20)[None]
ORIGIN = Origin("a-base", Path("a-base"), None)
BOTH = ("embeddings", "head")


def llama(*, tied: bool, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).to(dtype).requires_grad_(requires_grad=False).eval()


def bert() -> Any:
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    return BertForMaskedLM(config)


def train_a_little(model: Any) -> None:
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=1e-2)
    for _ in range(4):
        model(IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def whole(model: Any) -> set[str]:
    """The parts that train whole."""
    names = (name for name in trainable(model) if ".lora_" not in name)
    return {name.removeprefix("base_model.model.").partition(".modules")[0] for name in names}


@pytest.mark.parametrize(
    ("tied", "also", "parts"),
    [
        (True, ("embeddings",), {"model.embed_tokens"}),
        (True, ("head",), {"model.embed_tokens"}),
        (True, BOTH, {"model.embed_tokens"}),
        (False, ("embeddings",), {"model.embed_tokens"}),
        (False, ("head",), {"lm_head"}),
        (False, BOTH, {"model.embed_tokens", "lm_head"}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.random.fork_rng()
def test_they_train_and_load_as_they_were(
    tied: bool,  # noqa: FBT001 - a parameter of the test
    also: Any,
    parts: set[str],
    dtype: torch.dtype,
    tmp_path: Path,
) -> None:
    plain = llama(tied=tied, dtype=dtype)
    with torch.no_grad():
        before = plain(IDS).logits
    model = attach(plain, LoraSection(rank=2, also=also), seed=0)
    assert whole(model) == parts
    assert torch.equal(model.eval()(IDS).logits, before)
    start = {name: p.detach().clone() for name, p in trainable(model).items()}
    train_a_little(model)
    assert all(not torch.equal(p, start[name]) for name, p in trainable(model).items())
    assert {p.dtype for p in trainable(model).values()} == {torch.float32}
    with torch.no_grad():
        wanted = model(IDS).logits
        with base_only(model):
            assert torch.equal(model(IDS).logits, before)
    save_adapter(model, tmp_path / "adapter", ORIGIN, method="lora")
    saved = load_file(tmp_path / "adapter" / WEIGHTS_FILE)
    heads = {name.removesuffix(".weight")[17:] for name in saved if ".lora_" not in name}
    assert heads == ({"model.embed_tokens", "lm_head"} if tied else parts)
    with torch.no_grad():
        ours = load_adapter(llama(tied=tied, dtype=dtype), tmp_path / "adapter")
        assert torch.equal(ours(IDS).logits, wanted)
        theirs = load_vanilla(llama(tied=tied, dtype=dtype), tmp_path / "adapter")
        exact = 0 if dtype == torch.float32 else 2e-2  # peft rounds what it loads
        assert float((theirs(IDS).logits - wanted).abs().max()) <= exact


def load_vanilla(model: Any, folder: Path) -> Any:
    with pytest.warns(UserWarning, match="tie") if model.config.tie_word_embeddings else _quiet():
        return PeftModel.from_pretrained(model, str(folder)).eval()


def _quiet() -> Any:
    from contextlib import nullcontext

    return nullcontext()


def test_a_tied_matrix_stays_one_while_it_trains() -> None:
    model = attach(llama(tied=True), LoraSection(rank=2, also=("embeddings",)), seed=0)
    train_a_little(model)
    inside = model.get_base_model()
    assert inside.lm_head.weight is inside.model.embed_tokens.weight
    assert inside.lm_head.weight.requires_grad


def test_without_it_nothing_else_trains() -> None:
    assert whole(attach(llama(tied=True), LoraSection(rank=2), seed=0)) == set()


def test_the_loss_through_a_frozen_head_is_off_by_itself() -> None:
    model = attach(llama(tied=False), LoraSection(rank=2, also=("head",)), seed=0)
    assert find_head(model) == "an adapter sits on its head"
    tied = attach(llama(tied=True), LoraSection(rank=2, also=("embeddings",)), seed=0)
    assert find_head(tied) == "an adapter sits on its head"


def test_a_head_with_a_bias_of_its_own_is_refused() -> None:
    with pytest.raises(RecipeError, match="its embeddings and a bias"):
        attach(bert(), LoraSection(rank=2, also=("embeddings",)), seed=0)


def test_new_tokens_go_without() -> None:
    from peftkit.base.tokens import grow

    model = llama(tied=False)
    grow(model, {50: [1, 2]})
    with pytest.raises(RecipeError, match="new rows alone train"):
        attach(model, LoraSection(rank=2, also=("embeddings",)), seed=0)
