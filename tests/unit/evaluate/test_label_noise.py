"""Planted wrong labels are found, and their number is estimated."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given as over
from hypothesis import strategies as some
from numpy.typing import NDArray
from transformers import AutoTokenizer

from peftkit.base.load import load_base
from peftkit.data.example import Example
from peftkit.data.task import Task
from peftkit.diagnose.data_checks import NOISE
from peftkit.evaluate.features import features_of
from peftkit.evaluate.label_noise import SURE, find_label_noise, suspect
from peftkit.evaluate.probe import fold_rows, predict_unseen
from peftkit.recipe.sections.base import BaseSection

ROWS = 800


def plant(
    given: NDArray[np.int64], classes: int, share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The labels with some of them flipped, and which."""
    random = np.random.default_rng(seed)
    flipped = np.sort(random.permutation(len(given))[: round(share * len(given))])
    noisy = given.copy()
    noisy[flipped] = (given[flipped] + random.integers(1, classes, len(flipped))) % classes
    return noisy, flipped


def unseen(features: NDArray[np.float32], given: NDArray[np.int64], classes: int) -> Any:
    keys = [f"{number:05}" for number in np.random.default_rng(9).permutation(len(given))]
    return predict_unseen(features, given, classes, fold_rows(given, keys, 5))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("share", "classes"), [(0.05, 2), (0.1, 3), (0.1, 6)])
def test_flips_among_clear_clouds_are_found(share: float, classes: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    given = np.arange(600) % classes
    centers = 2.5 * random.standard_normal((classes, 10))
    features = (centers[given] + random.standard_normal((600, 10))).astype(np.float32)
    noisy, flipped = plant(given, classes, share, seed)
    found = suspect(unseen(features, noisy, classes), noisy)
    right = np.isin(found.suspected, flipped)
    assert right.mean() >= 0.98
    assert right.sum() / len(flipped) >= 0.7  # half of a class is less sure than its mean
    assert found.noise == pytest.approx(share, abs=0.015)
    own = found.suspected[right]
    assert (found.classes[right] == given[own]).mean() >= 0.98


def test_clean_clouds_are_hardly_suspected() -> None:
    random = np.random.default_rng(0)
    given = np.arange(600) % 3
    centers = 2.5 * random.standard_normal((3, 10))
    features = (centers[given] + random.standard_normal((600, 10))).astype(np.float32)
    found = suspect(unseen(features, given, 3), given)
    assert len(found.suspected) <= 6
    assert found.noise <= 0.01


def test_the_paper_s_thresholds_are_means_of_each_class() -> None:
    """By hand: thresholds are 0.7 and 0.5; the last row is confidently of class 0."""
    probabilities = np.array(
        [[0.9, 0.1], [0.5, 0.5], [0.3, 0.7], [0.3, 0.7], [0.6, 0.4], [0.8, 0.2]]
    )
    given = np.array([0, 0, 1, 1, 1, 1])
    thresholds = [probabilities[:2, 0].mean(), probabilities[2:, 1].mean()]
    assert thresholds == pytest.approx([0.7, 0.5])
    found = suspect(probabilities, given)
    # row 0: class 0; row 1: 0.5 >= 0.5, so class 1; rows 2 and 3: class 1; row 4: none; row 5: 0
    assert found.suspected.tolist() == [5, 1]
    assert found.classes.tolist() == [0, 1]
    assert found.margins.tolist() == pytest.approx([0.6, 0.0])
    # each given class keeps its size: 2 rows of class 0, 4 of class 1
    assert found.joint == pytest.approx(np.array([[1, 1], [4 / 3, 8 / 3]]) / 6)
    assert found.noise == pytest.approx((1 + 4 / 3) / 6)


@over(some.integers(1, 60), some.integers(2, 5), some.integers(0, 99))
def test_the_joint_is_a_distribution_with_the_given_margins(
    rows: int, classes: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet(np.ones(classes), rows)
    given = random.integers(0, classes, rows)
    found = suspect(probabilities, given)
    assert found.joint.sum() == pytest.approx(1)
    assert found.joint.sum(axis=1) == pytest.approx(np.bincount(given, minlength=classes) / rows)
    assert -1e-9 <= found.noise <= 1
    assert (found.classes != given[found.suspected]).all()
    assert (np.diff(found.margins) <= 0).all()


@pytest.fixture(scope="module")
def encoder(minilm: Path) -> tuple[Any, Any]:
    """The real encoder and its tokenizer."""
    section = BaseSection(model=str(minilm), task="classification", labels=("a", "b"))
    model = load_base(section, device=torch.device("cpu")).model
    return model, AutoTokenizer.from_pretrained(minilm)


def read(path: Path) -> tuple[list[str], list[str]]:
    """Texts and their coarse labels, evenly over the file."""
    lines = path.read_text(encoding="latin1").splitlines()
    split = [line.split(" ", 1) for line in lines if " " in line]
    rows = [split[at] for at in np.arange(ROWS) * len(split) // ROWS]
    return [text for _, text in rows], [label.split(":")[0] for label, _ in rows]


def examples_of(tokenizer: Any, texts: list[str], labels: list[str]) -> list[Example]:
    found = []
    for number, (text, label) in enumerate(zip(texts, labels, strict=True)):
        ids = np.array(tokenizer(text, truncation=True, max_length=64)["input_ids"], np.int32)
        trained = np.arange(len(ids)) == len(ids) - 1
        where = f"rows.txt:{number + 1}"
        found.append(Example(ids, trained, where, str(number), text, labels=(label,)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision", "recall"), [("TREC.raw.train", 0.5, 0.5), ("stsa.binary.train", 0.6, 0.1)]
)
def test_planted_flips_in_real_rows_stand_out(
    material: Path, encoder: tuple[Any, Any], name: str, precision: float, recall: float
) -> None:
    """Of rows surely suspected, far more were flipped than one in ten, which chance would hit."""
    model, tokenizer = encoder
    texts, labels = read(material / "sentconv" / name)
    names = sorted(set(labels))
    given = np.array([names.index(label) for label in labels])
    task = Task("classification", tuple(names))
    examples = examples_of(tokenizer, texts, labels)
    features = features_of(model, examples, task, tokenizer.pad_token_id)
    noisy, flipped = plant(given, len(names), 0.1, seed=0)
    found = suspect(unseen(features, noisy, len(names)), noisy)
    sure = found.suspected[found.margins > SURE]
    right = np.isin(sure, flipped)
    assert right.mean() >= precision
    assert right.sum() / len(flipped) >= recall
    among = np.isin(found.suspected, flipped)
    assert among.mean() >= 0.3
    assert among.sum() / len(flipped) >= 0.5
    clean = suspect(unseen(features, given, len(names)), given)
    assert (clean.margins > SURE).sum() <= 2 * NOISE * ROWS  # as published, no warning


def test_what_is_found_is_named_by_row(encoder: tuple[Any, Any]) -> None:
    model, tokenizer = encoder
    texts = [f"I want my money back for order {n}" for n in range(40)]
    texts += [f"the sun is warm on day {n} of the holiday" for n in range(40)]
    labels = ["refund"] * 40 + ["weather"] * 40
    labels[7] = "weather"
    texts += ["what is this?"] * 3
    labels += ["rare"] * 3
    task = Task("classification", ("rare", "refund", "weather"))
    examples = examples_of(tokenizer, texts, labels)
    facts = find_label_noise(model, examples, task, tokenizer.pad_token_id, 1000)
    assert (facts["rows"], facts["of"]) == (80, 83)  # three rows teach nothing about a class
    assert (facts["suspected"], facts["sure"]) == (1, 1)
    (row,) = facts["listed"]
    assert (row["where"], row["given"], row["suspected"]) == ("rows.txt:8", "weather", "refund")
    assert SURE < row["confidence"] <= 1
    assert facts["agreement"] == pytest.approx(79 / 80)
    again = find_label_noise(model, examples, task, tokenizer.pad_token_id, 1000)
    assert again == facts


def test_too_few_rows_are_not_judged(encoder: tuple[Any, Any]) -> None:
    model, tokenizer = encoder
    examples = examples_of(tokenizer, ["one", "two"], ["a", "b"])
    facts = find_label_noise(model, examples, Task("classification", ("a", "b")), 0, 1000)
    assert facts["rows"] == 0
    assert "fewer than two classes" in facts["why"]
