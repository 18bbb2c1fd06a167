"""Stopping is a function of the log: each rule fires at its line, and keeps to it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from peftkit.recipe.sections.stopping import StoppingSection
from peftkit.train.stopping import best_step, find_stop, is_overfitting

Line = dict[str, Any]
LOSSES = some.lists(some.floats(0.1, 9), min_size=1, max_size=12)


def evaluations(losses: list[float], general: list[float] | None = None) -> list[Line]:
    lines: list[Line] = [{"step": 10 * at, "loss": loss} for at, loss in enumerate(losses)]
    for line, loss in zip(lines, general or (), strict=False):
        line["remember"] = {"a.txt": loss, "b.txt": 1.0}
    return lines


def steps(*means: float) -> list[Line]:
    """Ten steps of each training loss."""
    return [{"step": at + 1, "loss": means[at // 10]} for at in range(10 * len(means))]


@pytest.mark.parametrize(
    ("losses", "patience", "stops_at"),
    [
        ([3, 2, 1, 1.5, 1.4, 1.3], 3, 50),
        ([3, 2, 1, 1.5, 1.4], 3, None),
        ([3, 2, 1, 1.0, 1.0], 2, 40),  # as good is not better
        ([3, 2, 1, 1.5, 0.9, 1.5], 2, None),
        ([1, 2, 3], 2, 20),  # never better than the base
        ([1, 2], 1, 10),
        ([1], 1, None),
    ],
)
def test_patience(losses: list[float], patience: int, stops_at: int | None) -> None:
    stop = find_stop(evaluations(losses), [], StoppingSection(patience=patience))
    assert (stop.step if stop else None) == stops_at
    if stop:
        assert (stop.reason, stop.limit) == ("patience", patience)


def test_forgetting_is_that_of_the_source_that_rose_most() -> None:
    lines = evaluations([3, 2, 1, 0.5], [1.0, 1.1, 1.4, 1.2])
    stop = find_stop(lines, [], StoppingSection(forgetting=0.3))
    assert stop is not None
    assert (stop.reason, stop.step, stop.figure) == ("forgetting", 20, pytest.approx(0.4))
    assert "`a.txt` rose by 0.400 nats" in stop.sentence
    assert find_stop(lines, [], StoppingSection(forgetting=0.5)) is None


def test_overfitting_needs_training_loss_to_fall() -> None:
    lines = evaluations([3, 2, 2.5])
    section = StoppingSection(overfitting=0.1)
    stop = find_stop(lines, steps(2.0, 1.5), section)
    assert stop is not None
    assert (stop.reason, stop.step, stop.figure) == ("overfitting", 20, pytest.approx(0.25))
    assert find_stop(lines, steps(2.0, 2.2), section) is None  # both went up
    assert find_stop(lines, steps(2.0, 1.5), StoppingSection(overfitting=0.3)) is None
    assert not is_overfitting(evaluations([1, 2, 3]), steps(2.0, 1.5), 0.1)  # below no best of its


@given(LOSSES, some.integers(1, 4))
def test_more_lines_never_change_an_earlier_stop(losses: list[float], patience: int) -> None:
    section = StoppingSection(patience=patience)
    lines = evaluations(losses)
    found = [find_stop(lines[:count], [], section) for count in range(1, len(lines) + 1)]
    first = next((stop for stop in found if stop), None)
    assert first == found[-1]
    if first:
        at = first.step // 10
        assert all(loss >= min(losses[: at + 1]) for loss in losses[at - patience + 1 : at + 1])


@given(LOSSES)
def test_the_best_is_the_lowest_after_the_base(losses: list[float]) -> None:
    found = best_step(evaluations(losses))
    if len(losses) == 1:
        assert found is None
    else:
        assert found is not None
        assert losses[found // 10] == min(losses[1:])
        assert found // 10 == 1 + losses[1:].index(min(losses[1:]))


@given(some.lists(some.tuples(some.floats(0.1, 9), some.floats(0.1, 9)), min_size=2, max_size=9))
def test_the_best_keeps_to_the_limit_and_is_always_the_newest_or_was_best(
    figures: list[tuple[float, float]],
) -> None:
    """So a save of each new best is enough: no evaluation becomes the best later on."""
    lines = evaluations([loss for loss, _ in figures], [general for _, general in figures])
    before = None
    for count in range(2, len(lines) + 1):
        best = best_step(lines[:count], 0.5)
        assert best in (before, lines[count - 1]["step"])
        before = best
    rises = {line["step"]: max(line["remember"]["a.txt"] - figures[0][1], 0) for line in lines[1:]}
    if min(rises.values()) <= 0.5:
        assert before is not None
        assert rises[before] <= 0.5


def test_a_section_that_says_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="says what to stop at"):
        StoppingSection()
