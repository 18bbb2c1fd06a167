"""Compiled blocks train alike, evaluation stays plain, and a short run is not compiled."""

import shutil
from typing import Any

import pytest
import torch
from tiny_models import adapt, assert_same_gradients, batch_of, gradients
from torch import Tensor

from peftkit.data.batch import Batch
from peftkit.fast import compiled, lora, norm, varlen
from peftkit.fast.compiled import BREAK_EVEN_SECONDS, compile_blocks, refuse_compile, release_blocks
from peftkit.fast.loss import summed_loss
from peftkit.fast.paths import choose_compile
from peftkit.recipe.sections.train import FastSection

LONG = 10 * BREAK_EVEN_SECONDS


def flat_batch(*lengths: int) -> Batch:
    row = batch_of(rows=1, time=sum(lengths), density=0.8)
    places = torch.cat([torch.arange(length) for length in lengths])[None]
    return Batch(row.inputs, row.targets, places, sum(lengths), lengths)


@pytest.fixture(autouse=True)
def _no_rest() -> Any:
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore"
)  # torch's compiler looks at tensors in ways that torch warns of
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on a CPU")
def test_compiled_blocks_train_alike_whatever_the_lengths() -> None:
    plain, fast = adapt().train(), adapt().train()
    for model in (plain, fast):
        assert varlen.enable(model) is None
        assert lora.enable(model) is None
        assert norm.enable(model)[0]
    assert compile_blocks(fast) is None
    assert compiled.is_on(fast)
    assert torch._dynamo.config.suppress_errors, "on resume too, a shape that fails runs as it is"
    for lengths in ((9, 5, 3), (20, 2), (31,)):
        batch = flat_batch(*lengths)
        wanted = gradients(plain, summed_loss(plain, batch))
        assert_same_gradients(gradients(fast, summed_loss(fast, batch)), wanted, 1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with torch.no_grad():
        assert torch.equal(summed_loss(fast.eval(), batch), summed_loss(plain.eval(), batch))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before
    release_blocks(fast)
    assert not compiled.is_on(fast)


def test_a_short_run_is_not_compiled() -> None:
    assert "too short to earn back" in str(refuse_compile(BREAK_EVEN_SECONDS - 1, recomputed=0))
    assert "run again" in str(refuse_compile(LONG, recomputed=2))


def test_what_cannot_be_compiled_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = adapt().train(), batch_of()
    monkeypatch.setattr(shutil, "which", lambda _name: "somewhere")

    def step() -> Tensor:
        if compiled.is_on(model):
            raise NotImplementedError("no such instruction\nand much more")
        return summed_loss(model, batch).detach()

    on, why = choose_compile(model, FastSection(), step, seconds=LONG, recomputed=0)
    assert (on, why) == (False, "they cannot be compiled: no such instruction")
    assert not compiled.is_on(model)


def test_what_would_give_another_loss_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapt().train()
    monkeypatch.setattr(shutil, "which", lambda _name: "somewhere")

    def step() -> Tensor:
        return torch.tensor(2.1 if compiled.is_on(model) else 2.0)

    on, why = choose_compile(model, FastSection(), step, seconds=LONG, recomputed=0)
    assert not on
    assert "the loss differs by 0.05" in why
    assert not compiled.is_on(model)


def test_blocks_that_something_else_has_replaced_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapt().train()
    monkeypatch.setattr(shutil, "which", lambda _name: "somewhere")
    block = model.get_base_model().model.layers[0]
    block.forward = block.forward
    found = choose_compile(model, FastSection(), lambda: torch.ones(()), seconds=LONG, recomputed=0)
    assert found == (
        False,
        "they cannot be compiled: something has replaced the forward pass of its blocks",
    )


def test_it_can_be_switched_off() -> None:
    off = FastSection(compile="off")
    on, why = choose_compile(adapt(), off, lambda: torch.ones(()), seconds=LONG, recomputed=0)
    assert (on, why) == (False, "`train.fast.compile: off`")
