"""Data sets from a hub: one split at one commit, from the copy on this machine."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from peftkit.data.hub import download, resolve
from peftkit.data.rows import Intake
from peftkit.data.sources import find_files, read_rows
from peftkit.errors import RecipeError
from peftkit.recipe.sections.data import SourceSection

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cache(name: str, *files: str, commit: str = COMMIT) -> Path:
    """A data set as an earlier download would have left it, its branch at this commit."""
    folder = Path(constants.HF_HUB_CACHE) / f"datasets--org--{name}"
    snapshot = folder / "snapshots" / commit
    for file in files:
        path = snapshot / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'{{"text": "{file}"}}\n')
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    return snapshot


def test_only_the_split_that_was_asked_for_is_read() -> None:
    """Another split, downloaded earlier, lies beside it: training on it would be a leak."""
    files = ("data/train-1.jsonl", "data/train-0.jsonl", "data/test-0.jsonl", "README.md")
    snapshot = cache("splits", *files)
    train = [snapshot / "data/train-0.jsonl", snapshot / "data/train-1.jsonl"]
    assert download("hub:org/splits") == train
    assert download("hub:org/splits:train") == train
    assert download(f"hub:org/splits@{COMMIT}:test") == [snapshot / "data/test-0.jsonl"]
    with pytest.raises(RecipeError, match="no files of split `validation`"):
        download("hub:org/splits:validation")


def test_rows_of_a_hub_are_rows_like_any_other() -> None:
    cache("rows", "train.jsonl")
    rows = list(read_rows(SourceSection(source="hub:org/rows"), Intake("error")))
    assert [(row.values, row.where) for row in rows] == [({"text": "train.jsonl"}, "train.jsonl:1")]


LATER = "f" * 40


def test_a_branch_is_resolved_to_its_commit_and_stays_there() -> None:
    first = cache("moving", "train.jsonl")
    names = ["hub:org/moving", "hub:org/moving@main:train", f"hub:org/moving@{COMMIT}"]
    known = resolve(names, {})
    assert known == dict.fromkeys(names, COMMIT)
    later = cache("moving", "train.jsonl", commit=LATER)
    assert resolve(names, {})["hub:org/moving"] == LATER
    assert resolve(names, known) == known
    assert download("hub:org/moving") == [later / "train.jsonl"]
    assert download("hub:org/moving", known["hub:org/moving"]) == [first / "train.jsonl"]
    found = find_files(SourceSection(source="hub:org/moving@main:train"), known)
    assert found == [first / "train.jsonl"]


def test_a_commit_is_not_asked_about() -> None:
    assert resolve(["hub:org/never-seen@" + LATER], {}) == {"hub:org/never-seen@" + LATER: LATER}
    with pytest.raises(RecipeError, match="the hub cannot be reached"):
        resolve(["hub:org/never-seen@main"], {})


def test_a_split_is_a_word_of_the_name_and_may_be_packed() -> None:
    snapshot = cache("words", "latest.jsonl", "test_0.jsonl.gz", "data/test-00000.csv.zst")
    assert download("hub:org/words:test") == [
        snapshot / "data/test-00000.csv.zst",
        snapshot / "test_0.jsonl.gz",
    ]
    with pytest.raises(RecipeError, match="no files of split `dev`") as refusal:
        download("hub:org/words:dev")
    assert "latest.jsonl" in str(refusal.value.hint)


def test_what_is_not_here_cannot_be_looked_for_offline() -> None:
    with pytest.raises(RecipeError, match="`hub:org/none`: the hub cannot be reached") as refusal:
        download("hub:org/none")
    assert refusal.value.exit_code == 2
    assert "HF_HUB_OFFLINE" in str(refusal.value.hint)


@pytest.mark.parametrize("name", ["hub:", "hub:org", "hub:org/set@", "hub:org/a b", "hub:a/b/c"])
def test_a_name_that_names_no_data_set_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="expected `hub:org/set@commit:split`"):
        download(name)
