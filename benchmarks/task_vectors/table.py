"""Put the newest result on the pages: what negation, addition, analogies and soups reach.

python benchmarks/task_vectors/table.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

HERE = Path(__file__).parent
PAGES = (HERE / "README.md", HERE.parents[1] / "docs" / "concepts" / "task-vectors.md")
MARK = "<!-- results: written by table.py -->"
END = "<!-- end of results -->"


def read_result() -> tuple[str, dict[str, Any]]:
    """The name of the newest result, and its summary."""
    path = max((HERE / "results").glob("*.json"))
    return path.name, json.loads(path.read_text(encoding="utf-8"))["measured"]["summary"]


def lines_of(summary: dict[str, Any]) -> list[str]:
    """What the pages show, line by line."""
    return [
        "Taken away, with 0.95 of the control to be kept:",
        "",
        *_negation(summary["negation"]),
        "",
        *_ascent(summary["ascent"]),
        "",
        "Added, both times one number; the share of what each task gained alone:",
        "",
        *_addition(summary["addition"]),
        "",
        *_analogy(summary["analogy"]),
        "",
        "Averaged, loss on plays:",
        "",
        *_soups(summary),
    ]


def _negation(negation: dict[str, Any]) -> list[str]:
    head = ("taken away", "times", "target's loss", "control's loss", "control kept",
            "target by control", "least of the seeds", "random change")  # fmt: skip
    rows = [
        (
            name,
            f"{each['number']:.2f}",
            f"+{each['target_rise']:.2f}",
            f"+{each['control_rise']:.3f}",
            f"{each['control_kept']:.3f}",
            f"{each['ratio']:.0f}x",
            f"{each['least_ratio']:.0f}x",
            f"{100 * each['random_share']:.1f} % of it",
        )
        for name, each in negation.items()
    ]
    return _table(head, rows)


def _ascent(ascent: list[dict[str, Any]]) -> list[str]:
    rows = [
        (
            f"{each['rate']:g}",
            _spread(each["matched_control_kept"], 3),
            _spread(each["end_control_kept"], 3),
        )
        for each in ascent
    ]
    head = (
        "gradient ascent at",
        "control kept where the target fell as far",
        "control kept after as many steps as a run",
    )
    return _table(head, rows)


def _addition(addition: dict[str, Any]) -> list[str]:
    first = next(iter(addition.values()))
    head = ("added", "cosine", "best number", "of the gain in loss", "in perplexity",
            "in loss at 1", *(f"`{name}`, in loss" for name in first["methods"]))  # fmt: skip
    rows = [
        (
            name,
            f"{each['cosine']:.2f}",
            f"{each['number']:.2f}",
            *(_percent(each[key]) for key in ("loss", "perplexity", "at_1")),
            *(_percent(share) for share in each["methods"].values()),
        )
        for name, each in addition.items()
    ]
    return _table(head, rows)


def _analogy(found: dict[str, float]) -> list[str]:
    parts = ("base", "stories", "plays", "capital stories", "analogy", "trained")
    said = ", ".join(f"{name} {found[name]:.2f}" for name in parts)
    share = f"{_percent(found['share'])} of what training on them gains"
    about = "The analogy `plays + (capital stories - stories)`, loss on plays in capitals"
    return [f"{about}: {said}; {share}."]


def _soups(summary: dict[str, Any]) -> list[str]:
    keys = ("mean", "best", "uniform", "greedy")
    rows = [
        (name, *(f"{summary[part][key]:.3f}" for key in keys))
        for name, part in (
            ("three learning rates", "soup_of_rates"),
            ("three seeds", "soup_of_seeds"),
        )
    ]
    return _table(("of", "mean of the runs", "best run", "soup of all", "greedy soup"), rows)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return "never"
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def main() -> None:
    """Rewrite what is between the marks on each page."""
    name, summary = read_result()
    text = "\n".join((f"From `{name}`, means of three seeds.", "", *lines_of(summary)))
    for page in PAGES:
        above, _, rest = page.read_text(encoding="utf-8").partition(MARK)
        below = rest.partition(END)[2]
        page.write_text(f"{above}{MARK}\n\n{text}\n\n{END}{below}", encoding="utf-8")


if __name__ == "__main__":
    main()
