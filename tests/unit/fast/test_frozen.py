"""Feeding kept states changes nothing but the time: loss, gradients, and what a lost file holds."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from tiny_models import FAMILIES, VOCABULARY, adapt, assert_same_gradients, gradients
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from peftkit.adapters.attach import attach, trainable
from peftkit.data.batch import Batch, collate, flatten
from peftkit.data.example import Example
from peftkit.disk.cache import cache_root
from peftkit.fast import varlen
from peftkit.fast.frozen import (
    MANIFEST,
    STATES,
    Cut,
    check_feeding,
    compute_states,
    feeding,
    find_cut,
    keep_states,
    key_of,
)
from peftkit.fast.loss import summed_loss
from peftkit.fast.paths import Paths
from peftkit.fast.recompute import recompute
from peftkit.recipe.sections.adapter import LoraSection

LAYERS = 4


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path))


SOUND = ("llama", "llama, tied", "qwen3", "mistral", "gemma2", "gemma3", "granite", "cohere", "phi")


def build(family: str = "llama", *, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    kind, shape = FAMILIES[family]
    layers = {"n_layer" if kind == "gpt2" else "num_hidden_layers": LAYERS}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(shape | layers | changes))
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.requires_grad_(requires_grad=False).eval()


def adapt_upper(family: str = "llama", *, layers: Any = "upper-half", **settings: Any) -> Any:
    section = LoraSection(rank=2, layers=layers, targets=("all-linear",))
    model = attach(build(family, **settings), section, seed=1)
    for parameter in trainable(model).values():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def write(*lengths: int) -> list[Example]:
    rng = np.random.default_rng(0)
    documents = []
    for number, length in enumerate(lengths):
        trained = np.arange(length) > 0
        tokens = rng.integers(3, VOCABULARY, length, dtype=np.int32)
        documents.append(Example(tokens, trained, f"{number}", f"{number}", ""))
    return documents


DOCUMENTS = write(9, 2, 31, 17, 20)
DOCUMENTS.append(replace(DOCUMENTS[2], where="the same again"))


def found_cut(model: Any) -> Cut:
    cut = find_cut(model)
    assert isinstance(cut, Cut), cut
    return cut


def lay_out(kind: str) -> Batch:
    if kind == "flat":
        return flatten(DOCUMENTS)
    rows = [DOCUMENTS[:3], DOCUMENTS[3:]] if kind == "packed" else [[each] for each in DOCUMENTS]
    return collate(rows, pad_id=0)


@pytest.mark.parametrize("kind", ["flat", "packed", "padded"])
@pytest.mark.parametrize("family", SOUND)
def test_fed_and_whole_passes_train_alike(family: str, kind: str) -> None:
    model = adapt_upper(family).train()
    if kind == "flat":
        assert varlen.enable(model) is None
    cut, batch = found_cut(model), lay_out(kind)
    assert cut.first == LAYERS // 2
    assert check_feeding(model, batch, cut) < 1e-6
    wanted = gradients(model, summed_loss(model, batch))
    kept = keep_states(model, DOCUMENTS, cut, base="base", flat=kind == "flat")
    loss = Paths(kept=kept).summed(model, batch)
    assert float(loss.detach()) == pytest.approx(float(summed_loss(model, batch).detach()), 1e-6)
    assert_same_gradients(gradients(model, loss), wanted, 1e-4)


def count_lower(model: Any) -> tuple[list[str], list[Any]]:
    """Which layers below the adapters multiply anything from now on."""
    ran: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *_: ran.append(name)

    handles = [
        module.register_forward_hook(note(name))
        for name, module in model.named_modules()
        if ".layers.0." in name or ".layers.1." in name
    ]
    return ran, handles


def test_nothing_below_the_adapter_is_computed_again() -> None:
    model = adapt_upper().train()
    kept = keep_states(model, DOCUMENTS, found_cut(model), base="base", flat=False)
    ran, _ = count_lower(model)
    Paths(kept=kept).summed(model, lay_out("packed")).backward()
    assert ran == []
    summed_loss(model, lay_out("packed"))
    assert len(ran) > 10


def test_no_gradient_is_computed_below_the_adapter() -> None:
    """The backward pass ends by itself where nothing trains: nobody asks inputs for gradients."""
    model = adapt_upper().train()
    needs: dict[str, bool] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda _module, _inputs, output: needs.update({name: output.requires_grad})

    plain = model.get_base_model().model
    for name, module in (("embedding", plain.embed_tokens), *enumerate(plain.layers)):
        module.register_forward_hook(note(str(name)))
    summed_loss(model, lay_out("padded"))
    assert needs == {"embedding": False, "0": False, "1": False, "2": True, "3": True}


def test_a_second_run_reads_what_the_first_one_wrote() -> None:
    model = adapt_upper()
    cut = found_cut(model)
    first = keep_states(model, DOCUMENTS, cut, base="base", flat=False)
    ran, _ = count_lower(model)
    again = keep_states(model, DOCUMENTS, cut, base="base", flat=False)
    assert ran == []
    assert torch.equal(first.states, again.states)
    assert len(first.states) == sum(len(d.tokens) for d in DOCUMENTS[:-1])  # one stands twice
    places = [np.flatnonzero(first.keys == key_of(DOCUMENTS[at])) for at in (-1, 2)]
    assert places[0] == places[1]
    assert len(first.starts) == len(np.unique(first.keys)) < len(DOCUMENTS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_is_what_the_blocks_compute(dtype: torch.dtype) -> None:
    model = adapt_upper(dtype=dtype)
    cut = found_cut(model)
    kept = keep_states(model, DOCUMENTS, cut, base="base", flat=False)
    assert kept.states.dtype == dtype
    batch = lay_out("padded")
    gathered, computed = kept.gather(batch), compute_states(model, batch, cut)
    for row, document in enumerate(DOCUMENTS):
        own = slice(0, document.length)
        assert torch.allclose(gathered[row, own], computed[row, own], rtol=2e-2, atol=1e-5)
        assert not gathered[row, document.length :].any()


def entries() -> list[Path]:
    return sorted((cache_root() / "states").iterdir())


def test_a_lost_file_comes_back_bit_for_bit() -> None:
    model = adapt_upper()
    keep = (DOCUMENTS, found_cut(model))
    keep_states(model, *keep, base="base", flat=False)
    (entry,) = entries()
    before = (entry / STATES).read_bytes()
    for name in (STATES, MANIFEST):
        (entry / name).unlink()
    keep_states(model, *keep, base="base", flat=False)
    assert (entry / STATES).read_bytes() == before


@pytest.mark.parametrize("name", [STATES, MANIFEST])
def test_a_damaged_file_is_made_again(name: str) -> None:
    model = adapt_upper()
    keep = (DOCUMENTS, found_cut(model))
    whole = keep_states(model, *keep, base="base", flat=False).states.clone()
    (entry,) = entries()
    data = bytearray((entry / name).read_bytes())
    data[len(data) // 2] ^= 1
    (entry / name).write_bytes(bytes(data))
    assert torch.equal(keep_states(model, *keep, base="base", flat=False).states, whole)


def other_documents(model: Any) -> tuple[Sequence[Example], Cut, str]:
    return DOCUMENTS[:3], found_cut(model), "key"


def other_base(model: Any) -> tuple[Sequence[Example], Cut, str]:
    return DOCUMENTS, found_cut(model), "another key"


def other_cut(model: Any) -> tuple[Sequence[Example], Cut, str]:
    return DOCUMENTS, replace(found_cut(model), first=1), "key"


@pytest.mark.parametrize("change", [other_documents, other_base, other_cut])
def test_what_follows_from_something_else_is_another_file(
    change: Callable[[Any], tuple[Sequence[Example], Cut, str]],
) -> None:
    model = adapt_upper()
    keep_states(model, DOCUMENTS, found_cut(model), base="key", flat=False)
    documents, cut, base = change(model)
    keep_states(model, documents, cut, base=base, flat=False)
    assert len(entries()) == 2
    short = adapt_upper(dtype=torch.bfloat16)
    keep_states(short, documents, replace(found_cut(short), first=cut.first), base=base, flat=False)
    assert len(entries()) == 3


def test_a_block_that_runs_again_finds_its_states() -> None:
    model = adapt_upper().train()
    batch = lay_out("padded")
    kept = keep_states(model, DOCUMENTS, found_cut(model), base="base", flat=False)
    wanted = gradients(model, summed_loss(model, batch))
    recompute(model, LAYERS)
    assert_same_gradients(gradients(model, Paths(kept=kept).summed(model, batch)), wanted, 1e-5)


def test_blocks_are_themselves_again_after_an_error() -> None:
    model = adapt_upper()
    cut, batch = found_cut(model), lay_out("padded")
    before = summed_loss(model, batch)
    with pytest.raises(ZeroDivisionError), feeding(cut, torch.zeros(6, 31, 32)):
        raise ZeroDivisionError
    assert torch.equal(summed_loss(model, batch), before)


def add_prompt() -> Any:
    return get_peft_model(build(), PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))


def train_embedding() -> Any:
    model = adapt_upper()
    model.get_base_model().model.embed_tokens.weight.requires_grad_()
    return model


def train_tied_head() -> Any:
    model = adapt_upper("llama, tied")
    model.get_base_model().lm_head.weight.requires_grad_()
    return model


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "an adapter on the lowest block": (lambda: adapt_upper(layers="all"), "no block stands below"),
    "virtual tokens": (add_prompt, "virtual tokens"),
    "an embedding that trains": (train_embedding, "no block stands below"),
    "a head that is the embedding": (train_tied_head, "no block stands below"),
    "dropout of activations": (lambda: adapt_upper("gpt2", attn_pdrop=0), "drops 10%"),
    "dropout of attention": (lambda: adapt_upper(attention_dropout=0.1), "attention_dropout: 0.1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_random_or_trains_below_is_refused(case: str) -> None:
    make, reason = REFUSED[case]
    found = find_cut(make())
    assert isinstance(found, str)
    assert reason in found


def test_a_head_of_its_own_may_train() -> None:
    model = adapt_upper()
    model.get_base_model().lm_head.weight.requires_grad_()
    assert found_cut(model).first == LAYERS // 2


def test_without_dropout_gpt2_is_sound() -> None:
    model = adapt_upper("gpt2", resid_pdrop=0, embd_pdrop=0, attn_pdrop=0).train()
    assert check_feeding(model, lay_out("packed"), found_cut(model)) < 1e-6


def test_a_trial_shows_what_passes_beside_the_states() -> None:
    """A family in which an upper block also looks at what a lower one left for it."""
    model = adapt_upper()
    blocks = model.get_base_model().model.layers
    left: list[Tensor] = []
    batch, cut = lay_out("padded"), found_cut(model)
    assert check_feeding(model, batch, cut) < 1e-6
    blocks[0].mlp.register_forward_hook(lambda _block, _inputs, output: left.append(output))
    blocks[3].mlp.register_forward_hook(lambda _block, _inputs, output: output + left[-1])
    assert check_feeding(model, batch, cut) > 1e-2


def test_an_adapter_everywhere_needs_the_whole_pass() -> None:
    assert isinstance(find_cut(adapt()), str)
