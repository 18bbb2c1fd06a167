"""Are leaks and duplicates found, all and alone, and what does it cost?

python benchmarks/data/leakage.py [--material FOLDER]
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import statistics
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import write_result

from peftkit.data.duplicates import settle_duplicates
from peftkit.data.example import Example, words_of
from peftkit.data.hashed import Hashed, hash_rows
from peftkit.data.leakage import find_leaks
from peftkit.data.near import BANDS, NEAR, ROWS, Index, shingles_of, similarity, sketch
from peftkit.data.views import View

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TRAIN, HELD = 100_000, 10_000
SMALLER = (20_000, 2_000)
"""For the ratios, of which there are several rounds."""
ROUNDS = 5
PLANTED = 100
"""Pairs of each kind."""
SHORT, LONG = (6, 30), (60, 200)
"""Words of a row."""
VOCABULARY = 20_000
PAIR = (np.zeros(2, np.int32), np.array([False, True]))


class Texts(View):
    """Texts as examples that are made when they are asked for."""

    def __init__(self, name: str, texts: list[str]) -> None:
        self.name, self.texts = name, texts

    def __len__(self) -> int:
        return len(self.texts)

    def at(self, index: int) -> Example:
        """The text at a place, as an example."""
        text = self.texts[index]
        return Example(*PAIR, f"{self.name}:{index}", f"{self.name}{index}", text)


def make_texts(count: int, words: tuple[int, int], draw: np.random.Generator) -> list[str]:
    """Rows of words that are as frequent as words are: the n-th one about 1/n of the first."""
    odds = 1 / np.arange(2, VOCABULARY + 2)
    lengths = draw.integers(*words, count)
    drawn = draw.choice(VOCABULARY, lengths.sum(), p=odds / odds.sum())
    starts = np.cumsum(lengths) - lengths
    return [
        " ".join(f"w{at}" for at in drawn[start : start + length].tolist())
        for start, length in zip(starts, lengths, strict=True)
    ]


def edit(words: list[str], places: np.ndarray) -> str:
    chosen = set(places.tolist())
    return " ".join("edited" if at in chosen else word for at, word in enumerate(words))


def swap(words: list[str], draw: np.random.Generator) -> str:
    at = int(draw.integers(len(words) // 4, 3 * len(words) // 4))
    return " ".join(words[at:] + words[:at])


def edit_apart(words: list[str], draw: np.random.Generator) -> str:
    return edit(words, draw.choice(len(words), max(len(words) // 20, 1), replace=False))


def edit_at_once(words: list[str], draw: np.random.Generator) -> str:
    size = max(len(words) // 20, 1)
    return edit(words, int(draw.integers(0, len(words) - size)) + np.arange(size))


KINDS: dict[str, Callable[[list[str], np.random.Generator], str]] = {
    "copy": lambda words, _: " ".join(words),
    "case and punctuation": lambda words, _: ", ".join(words).upper() + "!",
    "5 % edits in one place": edit_at_once,
    "5 % edits all over": edit_apart,
    "two parts swapped": swap,
}


def measure_finding() -> dict[str, Any]:
    """Of pairs planted among other rows, those that are found, and what else is."""
    draw = np.random.default_rng(0)
    train = make_texts(5_000, LONG, draw)
    held = make_texts(1_000, LONG, draw)
    planted = {}
    for number, (kind, change) in enumerate(KINDS.items()):
        for at in range(number * PLANTED, (number + 1) * PLANTED):
            held[at] = change(train[at].split(), draw)
            planted[at] = kind
    found = find_leaks(hash_rows(Texts("t", train)), hash_rows(Texts("h", held)))
    pairs = {(pair.row, int(pair.left.split(":")[1])) for pair in found.pairs}
    true = {at: overlap(train[at], held[at]) for at in planted}
    kinds = {}
    for kind in KINDS:
        rows = [at for at in planted if planted[at] == kind]
        near = [at for at in rows if true[at] >= NEAR]
        got = sum((at, at) in pairs for at in near)
        kinds[kind] = {"planted": len(rows), "at_least_0.8": len(near), "found": got}
    wrong = [(row, at) for row, at in pairs if overlap(train[at], held[row]) < NEAR]
    above = sum(each["at_least_0.8"] for each in kinds.values())
    return {
        "kinds": kinds,
        "recall": sum(each["found"] for each in kinds.values()) / above,
        "false_pairs": len(wrong) / (len(train) * len(held)),
    }


def overlap(one: str, other: str) -> float:
    """Jaccard similarity of runs of five words, reckoned apart from what is measured."""
    first, second = (
        {tuple(words[at : at + 5]) for at in range(max(len(words) - 4, 1))}
        for words in map(words_of, (one, other))
    )
    return len(first & second) / len(first | second)


class Peak(threading.Thread):
    """The most anonymous memory of the process while it runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0
        self.done = threading.Event()

    def run(self) -> None:
        """Look fifty times a second."""
        while not self.done.wait(0.02):
            self.most = max(self.most, anonymous())


def anonymous() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in status if line.startswith("RssAnon:")]
    return int(line.split()[1]) * 1024


def measure_size() -> dict[str, Any]:
    """CPU seconds and memory of the check at full size; for a process of its own."""
    train, held = make_sides(TRAIN, HELD)
    before = anonymous()
    peak = Peak()
    peak.start()
    seconds = {}
    started = time.process_time()
    hashed = [hash_rows(side) for side in (train, held)]
    found = find_leaks(*hashed)
    seconds["leakage"] = time.process_time() - started
    leaks_peak = max(peak.most, anonymous())
    started = time.process_time()
    _, facts = settle_duplicates("warn", hashed[0])
    seconds["duplicates"] = time.process_time() - started
    peak.done.set()
    return {
        "rows": [len(train), len(held)],
        "cpu_seconds": seconds,
        "anonymous_bytes": {
            "before": before,
            "leakage": leaks_peak,
            "duplicates": max(peak.most, anonymous()),
        },
        "leaks": found.facts,
        "duplicates": {name: facts[name] for name in ("exact", "near", "distinct")},
    }


def make_sides(rows: int, others: int) -> tuple[Texts, Texts]:
    """A training side, and a held-out side of which two in a hundred rows leak."""
    draw = np.random.default_rng(1)
    train, held = make_texts(rows, SHORT, draw), make_texts(others, SHORT, draw)
    for at in range(0, others, 100):
        held[at] = train[at].upper()
        held[at + 1] = f"{train[at + 1]} end"
    return Texts("t", train), Texts("h", held)


def find_with_datasketch(train: Hashed, held: Hashed) -> int:
    """Near leaks by datasketch's own index, verified in the same way."""
    from datasketch import MinHashLSH

    index = MinHashLSH(num_perm=BANDS * ROWS, params=(BANDS, ROWS))
    texts = [example.text for example in held.examples]
    for row, each in enumerate(sketches_of(iter(texts))):
        index.insert(row, each)
    found = set()
    others = [example.text for example in train.examples]
    for text, each in zip(others, sketches_of(iter(others)), strict=True):
        for row in index.query(each):
            if similarity(shingles_of(text), shingles_of(texts[row])) >= NEAR:
                found.add(row)
    return len(found)


def sketches_of(texts: Iterator[str]) -> Iterator[Any]:
    """Sketches as datasketch makes them, which share what they can."""
    from datasketch import MinHash

    encoded = ([each.encode() for each in shingles_of(text)] for text in texts)
    return MinHash.generator(encoded, num_perm=BANDS * ROWS, seed=1, scheme="affine32")


def index_with_datasketch(rows: Hashed) -> int:
    """All rows in datasketch's own index, as looking for duplicates would need it."""
    from datasketch import MinHashLSH

    index = MinHashLSH(num_perm=BANDS * ROWS, params=(BANDS, ROWS))
    for row, each in enumerate(sketches_of(example.text for example in rows.examples)):
        index.insert(row, each)
    return len(rows)


def measure_index(rows: int = 2_000) -> dict[str, float]:
    """Bytes a row that each index holds on to, the sketches left out."""
    from datasketch import MinHash, MinHashLSH

    train, _ = make_sides(rows, 0)
    sketches = sketch(train.texts)
    held = {}
    tracemalloc.start()
    for name in ("datasketch", "ours"):
        before = tracemalloc.get_traced_memory()[0]
        if name == "ours":
            index: Any = Index(sketches)
        else:
            index = MinHashLSH(num_perm=BANDS * ROWS, params=(BANDS, ROWS))
            for row, values in enumerate(sketches):
                given = {"seed": 1, "scheme": "affine32", "hashvalues": values}
                index.insert(row, MinHash(num_perm=BANDS * ROWS, **given))
        held[name] = (tracemalloc.get_traced_memory()[0] - before) / rows
        del index
    tracemalloc.stop()
    return held


def measure_ratios() -> dict[str, Any]:
    """The same by datasketch's own index, in turns."""
    train, held = (hash_rows(side) for side in make_sides(*SMALLER))
    arms: dict[str, Callable[[], Any]] = {
        "leakage": lambda: len(find_leaks(train, held).pairs),
        "leakage, datasketch": lambda: find_with_datasketch(train, held),
        "duplicates": lambda: settle_duplicates("warn", train)[1]["near"],
        "duplicates, datasketch's index alone": lambda: index_with_datasketch(train),
    }
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    said = {}
    for number in range(ROUNDS + 1):
        for name, arm in arms.items():
            started = time.process_time()
            said[name] = arm()
            if number:
                seconds[name].append(time.process_time() - started)
    ratios = {}
    for name in ("leakage", "duplicates"):
        (other,) = [arm for arm in arms if arm.startswith(f"{name},")]
        found = [b / a for a, b in zip(seconds[name], seconds[other], strict=True)]
        ratios[name] = {"median": statistics.median(found), "range": [min(found), max(found)]}
    return {"rows": SMALLER, "cpu_seconds": seconds, "found": said, "datasketch_over_ours": ratios}


def measure_known(material: Path) -> dict[str, Any]:
    """Leaked test rows and distinct rows of sets whose answers are known."""

    def leaked(train: list[str], test: list[str]) -> dict[str, Any]:
        found = find_leaks(hash_rows(Texts("t", train)), hash_rows(Texts("h", test)))
        return found.facts | {"rows": len(test)}

    def trec(name: str) -> list[str]:
        text = (material / f"sentconv/TREC.raw.{name}").read_text("latin-1")
        return [line.split(" ", 1)[1] for line in text.splitlines()]

    def banking(name: str) -> list[str]:
        text = (material / f"banking77/{name}.csv").read_text()
        return [row["text"] for row in csv.DictReader(io.StringIO(text))]

    def gsm(name: str) -> list[str]:
        lines = (material / f"gsm8k/{name}.jsonl").read_text().splitlines()
        return [json.loads(line)["question"] for line in lines]

    messages = (material / "sms-spam/sms.tsv").read_text("utf-8").splitlines()
    sms = [line.split("\t", 1)[1] for line in messages]
    _, facts = settle_duplicates("warn", hash_rows(Texts("sms", sms)))
    return {
        "trec": leaked(trec("train"), trec("test")),
        "banking77": leaked(banking("train"), banking("test")),
        "gsm8k": leaked(gsm("train"), gsm("test")),
        "sms-spam": {"rows": len(sms)} | {name: facts[name] for name in ("distinct", "near")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    root = Path(__file__).parents[3] / "shared" / "material"
    parser.add_argument("--material", type=Path, default=root)
    parser.add_argument("--size", action="store_true", help="the full size alone, as JSON")
    options = parser.parse_args()
    if options.size:
        print(json.dumps(measure_size()))
        return
    alone = [sys.executable, __file__, "--size"]
    done = subprocess.run(alone, check=True, capture_output=True, text=True)
    measured = {
        "size": json.loads(done.stdout),
        "finding": measure_finding(),
        "ratios": measure_ratios(),
        "index_bytes_a_row": measure_index(),
        "known": measure_known(options.material),
    }
    print(json.dumps(measured, indent=2))
    print(write_result(Path(__file__).parent, measured))


if __name__ == "__main__":
    main()
