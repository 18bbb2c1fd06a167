"""Write the quickstart's instruction set: plain-English wishes and the command each one means.

python benchmarks/quickstart/make_data.py    # recipes/data/home/{train,validation,test}.jsonl

Validation and test rows use pairs of room and wish that no training row uses, so a right answer has
to be put together, not remembered.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

HERE = Path(__file__).parents[2] / "recipes" / "data" / "home"
ROOMS = ("kitchen", "bedroom", "bathroom", "hall", "office", "garage", "garden", "nursery")
WISHES = {
    "light on {room}": (
        "turn on the light in the {room}",
        "switch the {room} light on",
        "it is too dark in the {room}",
        "I can not see a thing in the {room}",
        "make the {room} bright",
    ),
    "light off {room}": (
        "turn off the light in the {room}",
        "switch the {room} light off",
        "nobody needs light in the {room} now",
        "it is too bright in the {room}",
        "make the {room} dark",
    ),
    "heat up {room}": (
        "turn up the heat in the {room}",
        "make the {room} warmer",
        "I am cold in the {room}",
        "it is freezing in the {room}",
        "warm up the {room}",
    ),
    "heat down {room}": (
        "turn down the heat in the {room}",
        "make the {room} cooler",
        "I am too hot in the {room}",
        "it is like an oven in the {room}",
        "cool down the {room}",
    ),
    "door open {room}": (
        "open the {room} door",
        "open the door to the {room}",
        "let me into the {room}",
        "unlock the {room}",
        "I want to walk into the {room}",
    ),
    "door close {room}": (
        "close the {room} door",
        "shut the door to the {room}",
        "keep everyone out of the {room}",
        "lock the {room}",
        "the cat must not go into the {room}",
    ),
    "music play {room}": (
        "play music in the {room}",
        "play a song in the {room}",
        "I want to dance in the {room}",
        "it is too quiet in the {room}",
        "start the radio in the {room}",
    ),
    "music stop {room}": (
        "stop the music in the {room}",
        "no more songs in the {room}",
        "it is too loud in the {room}",
        "silence in the {room}",
        "stop the radio in the {room}",
    ),
}
BEFORE = ("", "please ", "hey, ", "could you help? ", "quick, ", "hello, ", "oh no, ", "now ")
AFTER = ("", ", please", " now", ", thank you", " at once", " for me", " tonight", ", quickly")
HELD_OUT_ROOMS = 2
"""Rooms a wish that validation and test rows ask for and training rows never do."""
ROWS = {"train": 1600, "validation": 100, "test": 200}


def main() -> None:
    """Write the three files, the same ones every time."""
    draw = random.Random(20)
    pools: dict[str, list[dict[str, str]]] = {"train": [], "held": []}
    for number, (command, wishes) in enumerate(WISHES.items()):
        held = {ROOMS[(number * 3 + step) % len(ROOMS)] for step in range(HELD_OUT_ROOMS)}
        for room in ROOMS:
            rows = [
                {
                    "instruction": sentence(before, wish.format(room=room), after),
                    "output": command.format(room=room),
                }
                for wish in wishes
                for before in BEFORE
                for after in AFTER
            ]
            pools["held" if room in held else "train"] += rows
    draw.shuffle(pools["train"])
    draw.shuffle(pools["held"])
    cut = ROWS["validation"]
    sets = {
        "train": pools["train"][: ROWS["train"]],
        "validation": pools["held"][:cut],
        "test": pools["held"][cut : cut + ROWS["test"]],
    }
    for name, rows in sets.items():
        write(HERE / f"{name}.jsonl", rows)
        write(HERE / "wishes" / f"{name}.jsonl", [classified(row) for row in rows])


def classified(row: dict[str, str]) -> dict[str, str]:
    """What is wished for, wherever that is: a row for classification."""
    return {"text": row["instruction"], "label": row["output"].rpartition(" ")[0]}


def write(path: Path, rows: list[dict[str, str]]) -> None:
    """One JSON object a line."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def sentence(before: str, wish: str, after: str) -> str:
    """A wish with its politeness, beginning with a capital."""
    text = f"{before}{wish}{after}."
    return text[0].upper() + text[1:]


if __name__ == "__main__":
    main()
