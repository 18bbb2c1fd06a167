"""Put the newest result into the README and the documentation: each arm, and what is concluded.

python benchmarks/forgetting/table.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "concepts" / "forgetting.md"
MARK = "<!-- results: written by table.py -->"
END = "<!-- end of results -->"


def read_result() -> tuple[str, dict[str, Any]]:
    """Name and contents of the newest result."""
    path = max((HERE / "results").glob("*.json"))
    return path.name, json.loads(path.read_text(encoding="utf-8"))["measured"]


def rows_of(summary: dict[str, Any]) -> list[list[str]]:
    """One row an arm: what it learned and what it forgot; means, and ranges of several seeds."""
    found = []
    for name, arm in summary["arms"].items():
        if "forgotten" not in arm or name.startswith(("recipe", "lora")):
            continue
        found.append(
            [
                f"`{name}`",
                _spread(arm["target"]),
                _spread(arm["general"]),
                f"{arm['forgotten']['mean']:+.3f}",
                str(arm["seeds"]),
            ]
        )
    return found


def _spread(figures: dict[str, float]) -> str:
    low, high = figures["low"], figures["high"]
    if low == high:
        return f"{low:.3f}"
    return f"{figures['mean']:.3f} ({low:.3f}\N{EN DASH}{high:.3f})"


def _each(values: list[float], digits: int = 3) -> str:
    return ", ".join(f"{value:+.{digits}f}" for value in values)


def conclusions(summary: dict[str, Any]) -> list[str]:
    """A line a question, with the figure of each seed."""
    replay, targets, domain = summary["replay"], summary["targets"], summary["domain"]
    curves = summary["ewc against l2sp"]
    removed = ", ".join(f"{share:.0%}" for share in replay["removed"])
    attention = f"`{targets['best']['attention']}`, {targets['attention_has_more']:.1%} more"
    general = _each([each["general_at_one_target"] for each in curves])
    target = _each([each["target_at_one_general"] for each in curves])
    lines = [
        (
            f"Replay of 5 % removes {removed} of the forgetting, for "
            f"{_each(replay['target_cost'])} nats of the target."
        ),
        (
            "EWC less L2-SP, along both curves: general loss at one target loss "
            f"{general}, target loss at one general loss {target}."
        ),
        (
            f"LoRA on all linear layers (`{targets['best']['all-linear']}`) is better than on "
            f"attention alone ({attention} "
            f"parameters) by {_each(targets['better_by'])} nats."
        ),
    ]
    lines += [
        f"`{name}` against the task alone: accuracy {_each(each['accuracy'])}, loss "
        f"{_each(each['target'])}."
        for name, each in domain.items()
    ]
    return lines


def render() -> str:
    """What stands between the marks."""
    name, measured = read_result()
    summary = measured["summary"]
    head = ["arm", "target loss", "general loss", "forgotten", "seeds"]
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows_of(summary)]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    told = "\n".join(f"* {line}" for line in conclusions(summary))
    said = (
        f"From `{name}`: nats a token after training, means and ranges of the seeds; *forgotten* "
        "is how much worse general text is predicted than by the base. Below, a figure a seed."
    )
    return f"{MARK}\n\n{said}\n\n{table}\n\n{told}\n\n{END}"


def main() -> None:
    """Rewrite what stands between the marks, on both pages."""
    made = render()
    for page in (HERE / "README.md", PAGE):
        above, _, rest = page.read_text(encoding="utf-8").partition(MARK)
        below = rest.partition(END)[2]
        page.write_text(f"{above}{made}{below}", encoding="utf-8")


if __name__ == "__main__":
    main()
