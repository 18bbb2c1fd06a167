"""The one module that prints: figures, tables and progress, on a terminal and elsewhere."""

import io
import re
import sys
from collections.abc import Iterator

import pytest

from peftkit.cli import output


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Gone(io.StringIO):
    """A stream whose reader has left."""

    def write(self, _text: str) -> int:
        raise BrokenPipeError


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        ("text", "text"),
        (True, "yes"),
        (0, "0"),
        (1234567, "1,234,567"),
        (0.0, "0"),
        (2.5, "2.5"),
        (2.0, "2"),
        (1.23456, "1.235"),
        (0.000123456, "0.0001235"),
        (0.00001, "1e-5"),
        (2e-4, "0.0002"),
        (12345.6, "12,350"),
        (9999.9, "10,000"),
        (0.99999, "1"),
        (123456789012.0, "1.235e11"),
        (-0.5, "-0.5"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
    ],
)
def test_a_figure(value: float | str | None, text: str) -> None:
    assert output.figure(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7530, "2 h 5 min")],
)
def test_a_duration(seconds: float, text: str) -> None:
    assert output.duration(seconds) == text


def test_a_table_is_aligned_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("name", "loss", "rows"), [("a", 1.5, 12000), ("long name", None, 3)], "Runs")
    assert capsys.readouterr().out == (
        "Runs\nname       loss    rows\na           1.5  12,000\nlong name     -       3\n"
    )


def test_a_table_without_rows_is_its_headings(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("name", "loss"), [])
    assert capsys.readouterr().out == "name  loss\n"


def test_a_table_on_a_terminal_has_the_same_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    output.table(("name", "loss"), [("[red]", 1.5)], "Runs")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
    assert [line.split() for line in plain.splitlines()] == [
        ["Runs"],
        ["name", "loss"],
        ["[red]", "1.5"],
    ]


def ticking(*seconds: float) -> Iterator[float]:
    yield from seconds


def test_progress_elsewhere_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    clock = ticking(0, 10, 25, 41, 42, 50)
    with output.progress(5, "train", clock=lambda: next(clock)) as update:
        for step in range(1, 6):
            update(step, loss=3 / step, tokens_per_second=12000.0)
    assert capsys.readouterr().err == (
        "train 1/5  loss 3  12,000 tokens/s  40 s left\n"
        "train 3/5  loss 1  12,000 tokens/s  27 s left\n"
        "train 5/5  loss 0.6  12,000 tokens/s\n"
    )


def test_progress_may_be_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with output.progress(2, "train", quiet=True) as update:
        update(1, loss=1.0)
        update(2)
    output.say("a line", quiet=True)
    assert capsys.readouterr() == ("", "")


def test_progress_on_a_terminal_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with output.progress(2000, "train") as update:
        update(1500, loss=1.23456)
    assert "train" in terminal.getvalue()
    assert "1,500/2,000" in terminal.getvalue()
    assert "loss 1.235" in terminal.getvalue()
    assert "\x1b[3" not in terminal.getvalue()  # NO_COLOR is set for every test


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setenv("TERM", "dumb")
    with output.progress(1, "train") as update:
        update(1)
    assert terminal.getvalue() == "train 1/1\n"


def test_a_closed_terminal_does_not_stop_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Gone())
    output.say("still training")
    with output.progress(1, "train") as update:
        update(1)


def test_json_holds_its_order_and_refuses_what_json_cannot_say(
    capsys: pytest.CaptureFixture[str],
) -> None:
    output.show_json({"b": "ä", "a": 1})
    assert capsys.readouterr().out == '{\n  "b": "ä",\n  "a": 1\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        output.show_json({"loss": float("nan")})
