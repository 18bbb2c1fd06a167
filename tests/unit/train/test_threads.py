"""Threads are chosen from measurements: more of them only when that clearly pays."""

import pytest
import torch

from peftkit.train.threads import (
    candidate_threads,
    choose_threads,
    explain_threads,
    measure_threads,
)


@pytest.mark.parametrize(
    ("measured", "chosen"),
    [
        ({1: 1.0, 2: 0.5}, 2),
        ({1: 1.0, 2: 0.9}, 1),  # not worth the other core
        ({1: 1.0, 2: 4.0}, 1),
        ({4: 0.2}, 4),
    ],
)
def test_more_threads_must_pay(measured: dict[int, float], chosen: int) -> None:
    assert choose_threads(measured) == chosen


def test_the_process_limit_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert candidate_threads() == [1]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert candidate_threads() == [1, 3]


def test_a_short_step_is_not_tried_with_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fast now, two threads are a hundred times slower as soon as a neighbor is busy."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    tried: list[int] = []
    measured = measure_threads(lambda: tried.append(torch.get_num_threads()))
    assert list(measured) == [1]
    assert set(tried) == {1}
    assert "so short" in explain_threads(measured)


def test_a_long_step_is_measured_with_every_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr("peftkit.train.threads.SHORT_STEP", 0.0)
    tried: list[int] = []
    measured = measure_threads(lambda: tried.append(torch.get_num_threads()))
    assert sorted(measured) == [1, 2]
    assert tried.count(1) == tried.count(2) == 4
