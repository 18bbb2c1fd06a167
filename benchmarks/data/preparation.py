"""How fast do rows become packed tokens with masks, against TRL? Arms in turns, equality first.

python benchmarks/data/preparation.py --trl FOLDER [--material FOLDER] [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
sys.path.insert(0, str(Path(__file__).parents[1]))
from record import write_result

from peftkit.data.draft import Encoder
from peftkit.data.formats import build_examples
from peftkit.data.packing import fill, pack
from peftkit.data.rows import Intake, Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from peftkit.data.example import Example

MATERIAL = Path(__file__).parents[3] / "shared" / "material"
LENGTH = 1024
SET_ROWS = 1500
"""Rows of a set at most: TRL takes some milliseconds for each."""
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}"
    "{% endgeneration %}{{ '\n' }}{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML, with the mark that TRL finds an answer by."""
FORMATS = ("chat", "completion", "text")


@dataclass(frozen=True, slots=True)
class Prepared:
    """What both arms end with."""

    rows: list[tuple[list[int], list[bool]]]
    """Tokens, and which carry loss; the first never does, as nothing comes before it."""
    packed: int
    """Rows of `LENGTH` that they are packed into."""


def make_tokenizer(folder: Path) -> Any:
    """GPT-2's, with the two tokens of ChatML."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def read_sets(material: Path) -> dict[str, list[dict[str, Any]]]:
    """Real rows of each format: written instructions, school mathematics, short stories."""
    chats = [
        _chat(f"{task['instruction']}\n\n{case['input']}".strip(), case["output"])
        for name in ("seed_tasks", "user_oriented_instructions")
        for task in _lines(material / "self-instruct-human" / f"{name}.jsonl")
        for case in task["instances"]
        if case["output"].strip()
    ]
    problems = [
        {"prompt": f"Question: {row['question']}\nAnswer:", "completion": f" {row['answer']}"}
        for row in _lines(material / "gsm8k" / "train.jsonl")
    ]
    path = material / "tinystories-sample" / "tinystories_sample.txt"
    stories = path.read_text(encoding="utf-8").split("<|endoftext|>")
    texts = [{"text": story.strip()} for story in stories if story.strip()]
    sets = {"chat": chats, "completion": problems, "text": texts}
    return {name: rows[:SET_ROWS] for name, rows in sets.items()}


def _chat(asked: str, answer: str) -> dict[str, Any]:
    pairs = (("user", asked), ("assistant", answer))
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    return map(json.loads, path.read_text(encoding="utf-8").splitlines())


def make_ours(tokenizer: Any, kind: str, rows: Sequence[Mapping[str, Any]]) -> Callable[[], Any]:
    """What a run does with rows that are read: examples, and packed rows of them.

    A row of which the cut leaves nothing to learn is skipped, as TRL does.
    """
    encoder = Encoder(tokenizer, frozenset({tokenizer.eos_token_id}), LENGTH, "truncate")
    listed = [Row(dict(values), f"{kind}:{number}") for number, values in enumerate(rows, 1)]

    def prepare() -> tuple[list[Example], list[list[int]]]:
        examples = list(build_examples(listed, kind, kind, encoder, Intake("skip")))
        return examples, pack([example.length for example in examples], LENGTH)

    return prepare


def make_trl(
    tokenizer: Any, kind: str, rows: Sequence[dict[str, Any]], *, packing: bool
) -> Callable[[], Any]:
    """What `SFTTrainer` does with a data set before training, as it is called there."""
    import datasets
    from trl import SFTConfig, SFTTrainer

    datasets.disable_progress_bars()
    datasets.disable_caching()
    settings = SFTConfig(
        tempfile.gettempdir(),
        use_cpu=True,
        bf16=False,
        report_to=[],
        max_length=LENGTH,
        packing=packing,
        shuffle_dataset=False,
        assistant_only_loss=kind == "chat",
        completion_only_loss=kind == "completion",
    )
    trainer = SimpleNamespace(
        _tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
        completion_only_loss=kind == "completion",
    )
    found = datasets.Dataset.from_list(list(rows))
    call = SFTTrainer._prepare_dataset
    return lambda: call(trainer, found, tokenizer, settings, packing, None, "train")


def read_ours(made: tuple[list[Example], list[list[int]]]) -> Prepared:
    """Of our arm, what is compared."""
    examples, packed = made
    rows = [(example.tokens.tolist(), example.trained.tolist()) for example in examples]
    return Prepared(rows, len(packed))


def read_trl(whole: Any, packed: Any) -> Prepared:
    """Of TRL's, the same: its rows before they are packed, and how many they are packed into."""
    rows = [
        (row["input_ids"], [False, *(label != -100 for label in row["labels"][1:])])
        for row in whole
    ]
    return Prepared(rows, len(packed))


def compare(ours: Prepared, trl: Prepared) -> dict[str, Any]:
    """Whether both prepared the same; a figure counts only then."""
    pairs = list(zip(ours.rows, trl.rows, strict=True))
    lengths = [len(tokens) for tokens, _ in ours.rows]
    return {
        "rows": len(pairs),
        "tokens": sum(lengths),
        "trained_tokens": sum(sum(trained) for _, trained in ours.rows),
        "rows_with_other_tokens": sum(one[0] != other[0] for one, other in pairs),
        "rows_with_another_mask": sum(one[1] != other[1] for one, other in pairs),
        "packed_rows": {"peftkit": ours.packed, "trl": trl.packed},
        "fill": fill(lengths, [[]] * ours.packed, LENGTH),
    }


def measure(arms: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each arm, in turns; who begins changes from round to round."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds):
        order = list(arms) if number % 2 else list(reversed(arms))
        for name in order:
            began = time.process_time()
            arms[name]()
            seconds[name].append(time.process_time() - began)
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range."""
    middle = statistics.median(values)
    return {"median": middle, "low": min(values), "high": max(values)}


def main() -> None:
    """Compare, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trl", type=Path, required=True, help="where trl is installed")
    parser.add_argument("--material", type=Path, default=MATERIAL)
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    sys.path.append(str(asked.trl))
    tokenizer = make_tokenizer(asked.material / "gpt2-tokenizer")
    sets = read_sets(asked.material)
    measured: dict[str, Any] = {"trl": _version(), "rounds": asked.rounds, "sets": {}}
    total: dict[str, list[float]] = {"peftkit": [0.0] * asked.rounds, "trl": [0.0] * asked.rounds}
    for kind in FORMATS:
        ours = make_ours(tokenizer, kind, sets[kind])
        trl = make_trl(tokenizer, kind, sets[kind], packing=True)
        whole = make_trl(tokenizer, kind, sets[kind], packing=False)
        facts = compare(read_ours(ours()), read_trl(whole(), trl()))
        print(kind, facts)
        if facts["rows_with_other_tokens"] or facts["rows_with_another_mask"]:
            raise SystemExit(f"{kind}: the two do not prepare the same, so no speed is measured")
        seconds = measure({"peftkit": ours, "trl": trl}, asked.rounds)
        for name, found in seconds.items():
            total[name] = [one + other for one, other in zip(total[name], found, strict=True)]
        measured["sets"][kind] = facts | _summary(seconds, facts["rows"])
        print(kind, measured["sets"][kind]["times_as_fast"])
    measured["all"] = _summary(total, sum(facts["rows"] for facts in measured["sets"].values()))
    print("all", measured["all"]["times_as_fast"])
    print(write_result(Path(__file__).parent, {"preparation": measured}))


def _summary(seconds: Mapping[str, Sequence[float]], rows: int) -> dict[str, Any]:
    ratios = [trl / own for own, trl in zip(seconds["peftkit"], seconds["trl"], strict=True)]
    return {
        "microseconds_a_row": {
            name: spread([1e6 * each / rows for each in found]) for name, found in seconds.items()
        },
        "times_as_fast": spread(ratios),
    }


def _version() -> str:
    from importlib.metadata import version

    return version("trl")


if __name__ == "__main__":
    main()
