"""Laws of the loop: micro-batches, packing and padding change nothing, and divergence stops it."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from peftkit.adapters.attach import attach, trainable
from peftkit.data.batch import Layout, make_update, stream_updates
from peftkit.data.example import Example
from peftkit.errors import RunError
from peftkit.fast.loss import summed_loss
from peftkit.recipe.sections.adapter import LoraSection
from peftkit.train.loop import Step, accumulate, mix, train
from peftkit.train.optimizer import make_optimizer

CPU = torch.device("cpu")


def make_examples(count: int, *, seed: int = 0) -> list[Example]:
    draw = np.random.default_rng(seed)
    examples = []
    for number in range(count):
        length = int(draw.integers(4, 40))
        trained = draw.random(length) < 0.5
        trained[0], trained[-1] = False, True
        tokens = draw.integers(6, 200, length).astype(np.int32)
        text = f"row {number}"
        examples.append(Example(tokens, trained, f"made:{number}", text, text))
    return examples


def adapted(folder: Path, *, dropout: float = 0.0) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.requires_grad_(requires_grad=False)
    return attach(model, LoraSection(rank=4, dropout=dropout), seed=1)


def run(
    folder: Path,
    examples: Sequence[Example],
    layout: Layout,
    *,
    steps: range = range(1, 7),
    dropout: float = 0.0,
) -> tuple[list[Step], dict[str, torch.Tensor]]:
    model = adapted(folder, dropout=dropout)
    parameters = trainable(model)
    optimizer = make_optimizer(parameters, weight_decay=0.01)
    updates = stream_updates(examples, layout, rows=16, seed=5)
    taken = list(
        train(model, updates, optimizer, lambda _: 1e-2, steps=steps, max_grad_norm=1.0, seed=9)
    )
    return taken, {name: p.detach().clone() for name, p in parameters.items()}


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("micro_rows", [1, 4])
def test_micro_batches_and_packing_change_neither_loss_nor_weights(
    tiny_llama: Path, micro_rows: int, *, packing: bool
) -> None:
    """16 rows at once, 4 x 4 and 1 x 16 are the same training, packed or not."""
    examples = make_examples(30)
    whole, weights = run(tiny_llama, examples, Layout(False, 16, 0))
    parts, other = run(tiny_llama, examples, Layout(packing, micro_rows, 0))
    for ours, theirs in zip(parts, whole, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, abs=2e-5)
        assert ours.trained_tokens == theirs.trained_tokens
    for name, weight in weights.items():
        assert torch.allclose(other[name], weight, atol=2e-4), name
    moved = [not torch.equal(weight, torch.zeros_like(weight)) for weight in weights.values()]
    assert all(moved), "some adapter never trained, so equality would mean little"


def test_the_loss_is_the_mean_over_tokens_not_over_rows(tiny_llama: Path) -> None:
    """A long row weighs as much as its tokens, which a mean of row means would not give."""
    model = adapted(tiny_llama).eval()
    examples = make_examples(5, seed=3)
    sums, counts = [], []
    for example in examples:
        ids = torch.tensor(example.tokens[None].astype(np.int64))
        losses = -model(ids).logits[0, :-1].detach().log_softmax(-1)
        picked = losses[torch.arange(example.length - 1), ids[0, 1:]]
        sums.append(float(picked[torch.tensor(example.trained[1:])].sum()))
        counts.append(example.trained_tokens)
    update = make_update(examples, Layout(True, 2, 0))
    mean = float(accumulate(model, update, CPU, seed=0))
    assert mean == pytest.approx(sum(sums) / sum(counts), abs=1e-5)
    row_means = [total / count for total, count in zip(sums, counts, strict=True)]
    assert abs(sum(row_means) / 5 - sum(sums) / sum(counts)) > 1e-3


def test_padding_changes_no_gradient(tiny_llama: Path) -> None:
    """A padded batch gives the gradient of its rows taken one at a time."""
    examples = make_examples(6, seed=2)
    gradients = []
    for micro_rows in (1, 6):
        model = adapted(tiny_llama)
        accumulate(model, make_update(examples, Layout(False, micro_rows, 0)), CPU, seed=0)
        gradients.append(torch.cat([p.grad.flatten() for p in trainable(model).values()]))
    assert torch.allclose(*gradients, atol=1e-6)
    assert gradients[0].abs().max() > 1e-3


def test_dropout_depends_on_the_step_alone(tiny_llama: Path) -> None:
    """Drawing random numbers between steps, as an evaluation may, changes nothing after it."""
    examples = make_examples(20)
    layout = Layout(True, 2, 0)
    plain, weights = run(tiny_llama, examples, layout, dropout=0.3)
    model = adapted(tiny_llama, dropout=0.3)
    optimizer = make_optimizer(trainable(model), weight_decay=0.01)
    updates = stream_updates(examples, layout, rows=16, seed=5)
    steps = train(
        model, updates, optimizer, lambda _: 1e-2, steps=range(1, 7), max_grad_norm=1.0, seed=9
    )
    for ours, theirs in zip(steps, plain, strict=True):
        assert ours.loss == theirs.loss
        torch.rand(7)
        model.eval()
    for name, parameter in trainable(model).items():
        assert torch.equal(parameter, weights[name]), name


def test_dropout_is_on(tiny_llama: Path) -> None:
    """The law above would hold for dropout that never drops anything."""
    examples = make_examples(20)
    with_dropout, _ = run(tiny_llama, examples, Layout(True, 2, 0), dropout=0.3)
    without, _ = run(tiny_llama, examples, Layout(True, 2, 0))
    assert with_dropout[-1].loss != without[-1].loss


def test_a_parameter_whose_rate_has_the_factor_0_stays(tiny_llama: Path) -> None:
    model = adapted(tiny_llama)
    parameters = trainable(model)
    start = {name: p.detach().clone() for name, p in parameters.items()}
    factors = {name: 0.0 for name in parameters if ".lora_A." in name}
    optimizer = make_optimizer(parameters, weight_decay=0.1, factors=factors)
    updates = stream_updates(make_examples(16), Layout(False, 16, 0), rows=16, seed=5)
    steps = train(
        model, updates, optimizer, lambda _: 1e-2, steps=range(1, 4), max_grad_norm=1.0, seed=9
    )
    assert [step.learning_rate for step in steps] == [1e-2] * 3
    for name, parameter in parameters.items():
        assert torch.equal(parameter, start[name]) == (name in factors), name


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_it_stops_before_an_update_that_is_not_finite(tiny_llama: Path, poison: float) -> None:
    model = adapted(tiny_llama)
    parameters = trainable(model)
    optimizer = make_optimizer(parameters, weight_decay=0.0)
    updates = stream_updates(make_examples(16), Layout(False, 16, 0), rows=16, seed=5)
    steps = train(
        model, updates, optimizer, lambda _: 1e-2, steps=range(1, 9), max_grad_norm=1.0, seed=9
    )
    next(steps)
    before = {name: p.detach().clone() for name, p in parameters.items()}
    norm = model.get_base_model().model.norm.weight
    with torch.no_grad():
        norm.fill_(poison)
    with pytest.raises(RunError, match=r"diverged at step 2.*") as caught:
        next(steps)
    assert "learning_rate" in str(caught.value.hint)
    for name, parameter in parameters.items():
        assert torch.equal(parameter, before[name]), name


def test_a_resumed_stream_goes_on_where_it_was() -> None:
    examples = make_examples(23)
    layout = Layout(True, 2, 0)
    whole = list(itertools.islice(stream_updates(examples, layout, rows=5, seed=4), 12))
    tail = list(itertools.islice(stream_updates(examples, layout, rows=5, seed=4, start=7), 5))
    for ours, theirs in zip(tail, whole[7:], strict=True):
        for left, right in zip(ours.micro_batches, theirs.micro_batches, strict=True):
            assert torch.equal(left.inputs, right.inputs)
            assert torch.equal(left.targets, right.targets)


def test_seeds_do_not_collide() -> None:
    seeds = {mix(seed, number) for seed in range(60) for number in range(60)}
    assert len(seeds) == 3600
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_an_update_without_trained_tokens_has_no_loss(tiny_llama: Path) -> None:
    model = adapted(tiny_llama)
    tokens = np.arange(6, 12, dtype=np.int32)
    silent = Example(tokens, np.zeros(6, np.bool_), "made:0", "x", "x")
    update = make_update([silent], Layout(False, 1, 0))
    assert summed_loss(model, update.micro_batches[0]).item() == 0.0
