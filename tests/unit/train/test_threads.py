"""Threads are chosen from measurements: more of them only when that clearly pays."""

import pytest

from peftkit.train.threads import candidate_threads, choose_threads, measure_threads


@pytest.mark.parametrize(
    ("measured", "chosen"),
    [
        ({1: 0.10, 2: 0.05}, 2),
        ({1: 0.10, 2: 0.095}, 1),  # not worth the other core
        ({1: 0.10, 2: 0.40}, 1),
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


def test_every_candidate_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    calls: list[None] = []
    measured = measure_threads(lambda: calls.append(None))
    assert sorted(measured) == [1, 2]
    assert len(calls) == 2 * (1 + 3)
    assert all(seconds >= 0 for seconds in measured.values())
