"""Everything the package prints: data on stdout, the rest on stderr, rich only on a terminal."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any, Protocol

from peftkit.errors import PeftkitError, Stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TextIO


SECONDS_BETWEEN_LINES = 30.0


class Update(Protocol):
    """Tells a progress display that a step is done, and its figures."""

    def __call__(self, step: int, **figures: float) -> None:
        """`step` counts from 1; `tokens_per_second` is shown as `tokens/s`."""


def accept_any_text() -> None:
    """Let stdout print what its encoding cannot, such as some file names, as stderr always does."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def show(text: str) -> None:
    """Data, on stdout."""
    sys.stdout.write(f"{text}\n")


def show_json(value: Any) -> None:
    """Data for programs, on stdout: one JSON value, indented, keys in the order given."""
    show(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def say(line: str, *, quiet: bool = False) -> None:
    """A line for people, on stderr; a closed terminal does not stop a run."""
    if quiet:
        return
    with suppress(BrokenPipeError):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def fail(error: PeftkitError) -> int:
    """Say what went wrong and what to do, and return the exit code."""
    say(error.message if isinstance(error, Stopped) else f"error: {error.message}")
    for problem in error.problems:
        say(problem)
    if error.hint:
        say(f"\nhint: {error.hint}")
    return error.exit_code


def figure(value: float | str | None) -> str:
    """A number as people read it: counts in full, measurements to 4 significant digits."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return value if isinstance(value, str) else _measurement(value)


def _measurement(value: float) -> str:
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    if not 1e-4 <= abs(value) < 1e9:
        mantissa, _, exponent = f"{value:.3e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    decimals = max(0, 3 - math.floor(math.log10(abs(value))))
    rounded = f"{float(f'{value:.4g}'):,.{decimals}f}"
    return rounded.rstrip("0").rstrip(".") if "." in rounded else rounded


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[float | str | None]],
    title: str | None = None,
    *,
    styles: Sequence[str] = (),
) -> None:
    """Rows under headings, on stdout: words to the left, numbers to the right.

    `styles` say how each row looks on a terminal, and nothing that the row itself does not say.
    """
    cells = [[figure(cell) for cell in row] for row in rows]
    to_the_right = [
        bool(rows) and all(not isinstance(row[i], str) for row in rows) for i in range(len(columns))
    ]
    if title:
        show(title)
    if _is_terminal(sys.stdout):
        _rich_table(columns, cells, to_the_right, styles)
        return
    widths = [max(len(line[i]) for line in [columns, *cells]) for i in range(len(columns))]
    for line in [columns, *cells]:
        padded = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, to_the_right, strict=True)
        ]
        show("  ".join(padded).rstrip())


@contextmanager
def progress(
    total: int,
    description: str,
    *,
    quiet: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Update]:
    """An updater for `total` steps: a bar on a terminal, elsewhere a plain line every 30 s."""
    if quiet:
        yield lambda step, **figures: None  # noqa: ARG005 - takes what every updater takes
    elif _is_terminal(sys.stderr):
        with _bar(total, description) as update:
            yield update
    else:
        yield _plain_lines(total, description, clock)


def _plain_lines(total: int, description: str, clock: Callable[[], float]) -> Update:
    began = clock()
    last: float | None = None

    def update(step: int, **figures: float) -> None:
        nonlocal last
        now = clock()
        if last is not None and now - last < SECONDS_BETWEEN_LINES and step < total:
            return
        last = now
        left = (now - began) / step * (total - step) if step else 0.0
        parts = [f"{description} {step:,}/{total:,}", *_named(figures)]
        say("  ".join([*parts, f"{duration(left)} left"] if step < total else parts))

    return update


def duration(seconds: float) -> str:
    """`8 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _named(figures: dict[str, float]) -> list[str]:
    return [
        f"{figure(value)} {name.replace('_per_second', '/s')}"
        if name.endswith("_per_second")
        else f"{name.replace('_', ' ')} {figure(value)}"
        for name, value in figures.items()
    ]


def _is_terminal(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM") != "dumb"


@contextmanager
def _bar(total: int, description: str) -> Iterator[Update]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, figures="")

        def update(step: int, **figures: float) -> None:
            bar.update(task, completed=step, figures="  ".join(_named(figures)))

        yield update


def _rich_table(
    columns: Sequence[str],
    cells: Sequence[Sequence[str]],
    to_the_right: Sequence[bool],
    styles: Sequence[str],
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, right in zip(columns, to_the_right, strict=True):
        drawn.add_column(name, justify="right" if right else "left")
    for line, style in zip(cells, styles or [""] * len(cells), strict=True):
        drawn.add_row(*(Text(cell) for cell in line), style=style)
    Console().print(drawn)


def stream(text: str) -> None:
    """A piece of text on stdout as soon as it is there, with no line end of its own."""
    sys.stdout.write(text)
    sys.stdout.flush()


def prompt(mark: str) -> None:
    """The sign that a person may type."""
    sys.stderr.write(mark)
    sys.stderr.flush()


def size(count: float) -> str:
    """Bytes as people read them: `1.4 GiB`."""
    left = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if left < 1024:
            return f"{left:.3g} {unit}"
        left /= 1024
    return f"{left:.3g} TiB"
