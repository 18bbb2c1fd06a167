"""A range test sees where the loss falls, and leaves nothing of itself behind."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from transformers import LlamaConfig, LlamaForCausalLM

from peftkit.adapters.attach import attach, trainable
from peftkit.data.batch import Layout, Update, stream_updates
from peftkit.data.example import Example
from peftkit.errors import RecipeError
from peftkit.fast.loss import summed_loss
from peftkit.recipe.sections.adapter import FullSection, LoraSection
from peftkit.train.finder import (
    FEWEST_STEPS,
    HIGHEST,
    LOWEST,
    SMOOTHING,
    TRIALS,
    WORSE,
    Trial,
    rate_of,
    refuse_too_few,
    suggest,
    try_rates,
    untouched,
)
from peftkit.train.loop import train
from peftkit.train.optimizer import make_optimizer


def a_model(section: Any) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config)
    model.requires_grad_(requires_grad=False)
    return attach(model, section, seed=0)


def updates() -> Iterator[Update]:
    """Rows that count up from somewhere, which is soon learned."""
    tokens = [(np.arange(12) + start) % 16 for start in range(16)]
    every = np.ones(12, bool)
    rows = [Example(each, every, "", str(number), "") for number, each in enumerate(tokens)]
    return stream_updates(rows, Layout(packing=False, micro_rows=8, pad_id=0), rows=8, seed=0)


def search(model: Any, *, flat: bool = True) -> list[Trial]:
    parameters = trainable(model)
    with untouched(model, parameters):
        optimizer = make_optimizer(parameters, weight_decay=0.1, flat=flat)
        return try_rates(model, updates(), optimizer, max_grad_norm=1.0, seed=0, loss=summed_loss)


def digest(model: Any) -> str:
    total = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        total.update(name.encode() + tensor.detach().numpy().tobytes())
    return total.hexdigest()


@pytest.mark.parametrize("section", [LoraSection(rank=2, dropout=0.1), FullSection(method="full")])
@pytest.mark.parametrize("flat", [True, False])
def test_a_search_leaves_no_bit_changed(section: Any, *, flat: bool) -> None:
    model = a_model(section)
    before, drawn = digest(model), torch.get_rng_state()
    held = {name: p.data_ptr() for name, p in trainable(model).items()}
    assert len(search(model, flat=flat)) > TRIALS // 2
    assert digest(model) == before
    assert torch.equal(torch.get_rng_state(), drawn)
    assert {name: p.data_ptr() for name, p in trainable(model).items()} == held
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_search_that_is_left_changed_would_show() -> None:
    """A negative control for the test above."""
    model = a_model(FullSection(method="full"))
    before = digest(model)
    optimizer = make_optimizer(trainable(model), weight_decay=0.0)
    try_rates(model, updates(), optimizer, max_grad_norm=1.0, seed=0, loss=summed_loss)
    assert digest(model) != before


def test_a_run_after_a_search_is_the_run_without_one() -> None:
    ends = []
    for searched in (False, True):
        model = a_model(LoraSection(rank=2, dropout=0.1))
        if searched:
            search(model)
        optimizer = make_optimizer(trainable(model), weight_decay=0.1)
        steps = train(
            model,
            updates(),
            optimizer,
            lambda _: 0.01,
            steps=range(1, 6),
            max_grad_norm=1.0,
            seed=0,
        )
        ends.append(([step.loss for step in steps], digest(model)))
    assert ends[0] == ends[1]


def test_rates_rise_by_a_constant_factor() -> None:
    rates = [rate_of(trial) for trial in range(1, TRIALS + 1)]
    assert rates[0] == LOWEST
    assert rates[-1] == pytest.approx(HIGHEST)
    ratios = np.array(rates[1:]) / np.array(rates[:-1])
    assert np.allclose(ratios, ratios[0])


def test_the_search_ends_where_the_loss_has_left_its_best() -> None:
    found = search(a_model(FullSection(method="full")))
    best = np.minimum.accumulate([trial.smoothed for trial in found])
    far = [trial.smoothed > WORSE * low for trial, low in zip(found, best, strict=True)]
    assert not any(far[:-1])
    assert far[-1] or len(found) == TRIALS
    rates = [trial.learning_rate for trial in found]
    assert rates == [rate_of(number) for number in range(1, len(found) + 1)]


def test_the_suggestion_learns_much_better_than_a_hundredth_of_it() -> None:
    rate = suggest(search(a_model(FullSection(method="full"))))
    ends = []
    for each in (rate / 100, rate):
        model = a_model(FullSection(method="full"))
        optimizer = make_optimizer(trainable(model), weight_decay=0.0)
        steps = train(
            model,
            updates(),
            optimizer,
            lambda _, rate=each: rate,
            steps=range(1, 41),
            max_grad_norm=1.0,
            seed=0,
        )
        ends.append([step.loss for step in steps][-1])
    assert ends[1] < 0.7 * ends[0]


def a_curve(start: float, fall: float, middle: int, noise: float = 0.0) -> list[Trial]:
    """A loss that falls around one trial, as a bent step."""
    drawn = np.random.default_rng(0).normal(0, 1, TRIALS)
    found, total = [], 0.0
    for number in range(1, TRIALS + 1):
        loss = start - fall / (1 + np.exp(-(number - middle) / 4)) + noise * drawn[number - 1]
        total = SMOOTHING * total + (1 - SMOOTHING) * loss
        found.append(Trial(rate_of(number), loss, total / (1 - SMOOTHING**number)))
    return found


@given(middle=some.integers(30, 70), start=some.floats(1, 10), share=some.floats(0.2, 0.9))
def test_the_suggestion_follows_the_fall(middle: int, start: float, share: float) -> None:
    rate = suggest(a_curve(start, share * start, middle))
    assert rate_of(middle) < rate < rate_of(min(middle + 20, TRIALS))


def test_where_nothing_falls_there_is_no_suggestion() -> None:
    with pytest.raises(RecipeError, match="no learning rate at which the loss falls"):
        suggest(a_curve(3.0, 0.05, 50, noise=0.5))


@pytest.mark.parametrize(
    ("steps", "rows", "words"),
    [
        (FEWEST_STEPS - 1, 1000, f"the run has {FEWEST_STEPS - 1} steps"),
        (FEWEST_STEPS, 63, "needs rows for 4 updates of 16, and there are 63"),
    ],
)
def test_too_few_are_refused(steps: int, rows: int, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        refuse_too_few(steps, rows, 16)
    assert words in str(caught.value)
    refuse_too_few(FEWEST_STEPS, 64, 16)
