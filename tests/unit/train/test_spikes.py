"""A spike is told from the steps before it, by the log alone, and rarely where there is none."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from peftkit.train.spikes import (
    FEWEST,
    WINDOW,
    Lookout,
    SpikeError,
    find_spikes,
    recent_of,
)


def lines(losses: Any, norms: Any = None) -> list[dict[str, float]]:
    norms = np.ones(len(losses)) if norms is None else norms
    pairs = zip(losses, norms, strict=True)
    return [
        {"step": at, "loss": float(loss), "grad_norm": float(norm)}
        for at, (loss, norm) in enumerate(pairs, 1)
    ]


def noisy(count: int, seed: int, *, spread: float = 0.3) -> Any:
    """Losses that fall and stray as those of small batches do."""
    draw = np.random.default_rng(seed)
    return (1 + 4 * np.exp(-np.arange(count) / 40)) * np.exp(draw.normal(0, spread, count))


@pytest.mark.parametrize("seed", range(10))
def test_what_strays_and_falls_has_no_spikes(seed: int) -> None:
    draw = np.random.default_rng(100 + seed)
    norms = np.exp(draw.normal(0, 0.4, 400)) * np.linspace(3, 0.5, 400)
    assert find_spikes(lines(noisy(400, seed), norms)) == []


@pytest.mark.parametrize("seed", range(10))
def test_a_planted_spike_is_found_and_nothing_else(seed: int) -> None:
    losses, norms = noisy(300, seed), np.exp(np.random.default_rng(seed).normal(0, 0.2, 300))
    losses[199] *= 12
    norms[249] = 20
    assert [(spike.step, spike.kind) for spike in find_spikes(lines(losses, norms))] == [
        (200, "loss"),
        (250, "gradient"),
    ]


def test_a_level_that_shifts_is_usual_after_half_a_window() -> None:
    spikes = find_spikes(lines([1.0] * 100 + [5.0] * 100))
    assert [spike.step for spike in spikes] == list(range(101, 101 + WINDOW // 2))


def test_nothing_is_usual_at_first() -> None:
    assert find_spikes(lines([1.0] * (FEWEST - 1) + [99.0])) == []
    assert len(find_spikes(lines([1.0] * FEWEST + [99.0]))) == 1


@given(some.lists(some.floats(0.01, 50), min_size=21, max_size=140), some.integers(1, 139))
def test_a_lookout_that_starts_in_the_middle_sees_what_one_from_the_start_does(
    losses: list[float], cut: int
) -> None:
    log = lines(losses)
    cut = min(cut, len(log) - 1)
    lookout = Lookout()
    lookout.recent.extend(recent_of(log[:cut]))
    found = [lookout.judge(line["step"], line["loss"], line["grad_norm"]) for line in log[cut:]]
    assert [spike for spike in found if spike] == [
        spike for spike in find_spikes(log) if spike.step > cut
    ]


def test_to_stop_at_a_spike_says_how_to_go_on() -> None:
    lookout = Lookout("stop")
    for step in range(1, 31):
        lookout.judge(step, 1.0, 1.0)
    with pytest.raises(SpikeError, match="training loss 9 at step 31, usually 1") as raised:
        lookout.judge(31, 9.0, 1.0)
    assert raised.value.step == 31
    assert "step 30 is saved" in str(raised.value.hint)
