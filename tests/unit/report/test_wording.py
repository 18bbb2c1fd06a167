"""Figures read as people write them."""

import pytest

from peftkit.report import wording


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "–"),
        (0, "0"),
        (1, "1"),
        (3.14159, "3.142"),
        (9999.9, "10000"),
        (12345.6, "12,346"),
        (0.001234, "0.001234"),
        (0.0002, "2e\u22124"),
        (-1.5, "\u22121.5"),
        (-2e-5, "\u22122e\u22125"),
        (2e20, "2.000e+20"),
    ],
)
def test_figures(value: float | None, said: str) -> None:
    assert wording.figure(value) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [(4.1, "4.100"), (0.3456, "0.346"), (0.00345, "0.00345"), (-0.5, "\u22120.500")],
)
def test_losses(value: float, said: str) -> None:
    assert wording.loss(value) == said


@pytest.mark.parametrize(
    ("key", "value", "change", "said"),
    [
        ("exact_match", 0.93, 0.93, ("93.0 %", "+93.0 points")),
        ("exact_match", 0.1, -0.05, ("10.0 %", "\u22125.0 points")),
        ("loss", 0.31, -3.79, ("0.310", "\u22123.790")),
        ("loss", 0.31, 0.2, ("0.310", "+0.200")),
        ("never_heard_of", 12.5, 0.0, ("12.5", "0")),
    ],
)
def test_metrics(key: str, value: float, change: float, said: tuple[str, str]) -> None:
    metric = wording.metric(key)
    assert (metric.show(value), metric.show_change(change)) == said


def test_the_metrics_of_the_task_come_first() -> None:
    keys = {"zeta", "loss", "rows", "exact_match", "perplexity", "tokens"}
    assert wording.in_order(keys) == ["exact_match", "loss", "perplexity", "zeta"]


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0 B"), (1023, "1,023 B"), (1536, "1.5 KiB"), (612e6, "584 MiB"), (2**41, "2 TiB")],
)
def test_sizes(value: float, said: str) -> None:
    assert wording.size(value) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.25, "0.25 s"), (64.2, "1 min 4 s"), (3725, "1 h 2 min"), (59.99, "60 s")],
)
def test_durations(seconds: float, said: str) -> None:
    assert wording.duration(seconds) == said


def test_long_words_say_how_much_was_left_out() -> None:
    assert wording.clipped("abcdef", 6) == "abcdef"
    assert wording.clipped("abcdef", 4) == "abcd … (2 more characters)"


def test_a_stop_is_given_once() -> None:
    assert [wording.stopped(words) for words in ("it helped", "did it?", "")] == [
        "it helped.",
        "did it?",
        "",
    ]
