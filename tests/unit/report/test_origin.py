"""What a base may be called in front of others."""

from pathlib import Path
from typing import Any

import pytest

from peftkit.report.origin import base_name

COMMIT = "b" * 40


def lock(model: str, commit: str | None = None) -> dict[str, Any]:
    return {"base": {"model": model, "commit": commit, "digest": "d" * 64, "parameters": 5}}


@pytest.mark.parametrize(
    ("model", "commit", "kind", "name", "loadable"),
    [
        ("org/tiny", COMMIT, "hub", "org/tiny", "org/tiny"),
        ("gpt2", COMMIT, "hub", "gpt2", "gpt2"),
        ("builtin:tiny", None, "builtin", "builtin:tiny", "builtin:tiny"),
        ("/home/jane/models/tiny", None, "folder", "tiny", None),
        ("models/tiny", None, "folder", "tiny", None),  # a run locks a hub model to a commit
        ("../a/b", None, "folder", "b", None),
    ],
)
def test_from_a_run(
    model: str, commit: str | None, kind: str, name: str, loadable: str | None
) -> None:
    found = base_name(lock(model, commit), {})
    assert (found.kind, found.name, found.loadable) == (kind, name, loadable)
    assert (found.commit, found.digest, found.parameters) == (commit, "d" * 64, 5)


def test_from_a_bare_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"base_model_name_or_path": "org/tiny", "revision": COMMIT}
    assert base_name({}, config).loadable == "org/tiny"
    assert base_name({}, config).commit == COMMIT
    (tmp_path / "org/tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert base_name({}, {"base_model_name_or_path": "org/tiny"}).kind == "folder"


@pytest.mark.parametrize("config", [{}, {"base_model_name_or_path": None}])
def test_nothing_is_known(config: dict[str, Any]) -> None:
    found = base_name({}, config)
    assert (found.kind, found.loadable) == ("unknown", None)


def test_the_owner_knows_better() -> None:
    found = base_name(lock("/home/jane/tiny"), {}, f"org/tiny@{COMMIT}")
    assert (found.kind, found.name, found.commit, found.digest) == (
        "hub",
        "org/tiny",
        COMMIT,
        "d" * 64,
    )
    assert base_name(lock("org/tiny", COMMIT), {}, "org/tiny").commit == COMMIT
    assert base_name(lock("org/other", COMMIT), {}, "org/tiny").commit is None
