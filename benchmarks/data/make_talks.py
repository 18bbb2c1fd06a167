"""Write the talks of the recipe for chats with tools, out of the quickstart's wishes and commands.

python benchmarks/data/make_talks.py    # recipes/data/home/talks/{train,validation,test}.jsonl

The assistant calls a device, the device says how it went, and the assistant says so.
"""

from __future__ import annotations

import json
from pathlib import Path

HOME = Path(__file__).parents[2] / "recipes" / "data" / "home"
SYSTEM = "Devices: light, heat, door, music."
ROWS = {"train": 400, "validation": 60, "test": 60}
STUCK_EVERY = 3
"""One device in so many does not do what it is told."""


def make_talk(wish: str, command: str, *, stuck: bool) -> dict[str, list[dict[str, str]]]:
    """A wish, the call, how it went, and what the assistant says to that."""
    turns = (
        ("system", SYSTEM),
        ("user", wish),
        ("assistant", command),
        ("tool", "stuck" if stuck else "ok"),
        ("assistant", f"{'Failed' if stuck else 'Done'}: {command}."),
    )
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def main() -> None:
    """Write the three sets."""
    (HOME / "talks").mkdir(exist_ok=True)
    for name, count in ROWS.items():
        lines = (HOME / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:count]
        rows = [json.loads(line) for line in lines]
        talks = [
            make_talk(row["instruction"], row["output"], stuck=number % STUCK_EVERY == 0)
            for number, row in enumerate(rows)
        ]
        text = "".join(f"{json.dumps(talk)}\n" for talk in talks)
        (HOME / "talks" / f"{name}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
