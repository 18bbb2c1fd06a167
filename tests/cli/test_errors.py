"""What a person sees when something is wrong: exit code, stdout and stderr, word for word."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import click
import pytest
from syrupy.assertion import SnapshotAssertion

from peftkit.cli.main import main
from peftkit.errors import InputError, Stopped
from peftkit.recipe.catalog import shipped

RECIPES = {
    "missing": None,
    "empty": "",
    "comments": "# nothing yet\n",
    "list": "- base\n- data\n",
    "text": "just some words\n",
    "scalar-section": "base: builtin:tiny\nadapter: lora\ndata: {train: a.txt}\ntrain: 3\n",
    "empty-section": "base: {model: builtin:tiny}\ndata: {train: a.txt}\ntrain:\n  # steps: 3\n",
    "no-sections": "seed: 1\n",
    "typos": "base: {modle: builtin:tiny}\n"
    "adapter: {method: lora, rnak: 8}\n"
    "train: {steps: many, learning_rate: -1}\n",
    "wrong-types": """\
base: {model: 3, revision: 1234567, dtype: float}
adapter: {rank: 8.5, alpha: "32", dropout: 1.10, targets: [], layers: [8, x]}
data:
  train: []
  packing: "true"
  max_length: 1_024
  validation: {fraction: 2}
  test: {format: txt}
train: {steps: 0, epochs: yes, batch: {rows: null}, schedule: cosin}
evaluate: {metrics: accuracy, remember: {source: a.txt, colums: {}}}
""",
    "wrong-method": "base: {model: m}\ndata: {train: a.txt}\nadapter: {method: loar}\n",
    "no-method": "base: {model: m}\ndata: {train: a.txt}\nadapter: {method: [lora]}\n",
    "other-method": "base: {model: m}\ndata: {train: a.txt}\nadapter: {method: full, rank: 8}\n",
    "contradictions": """\
base: {model: m}
data: {train: a.txt, validation: {source: b.txt, fraction: 0.1}}
train: {steps: 3, epochs: 2}
""",
    "misplaced": """\
base: {model: m, rank: 8}
data: {train: a.txt, rows: 3}
train: {seed: 1, model: m}
learning_rate: 1
""",
    "other-tools": """\
model_name_or_path: m
dataset: a.txt
output_dir: out
adapter: {r: 8, lora_alpha: 16, target_modules: [q_proj]}
train:
  lr: 2e-4
  num_train_epochs: 3
  per_device_train_batch_size: 2
  gradient_accumulation_steps: 8
  lr_scheduler_type: cosine
""",
    "two-values": "base: {model: m}\ndata: {train: a.txt}\nadapter:\n  rank: 8\n  rank: 16\n",
    "not-finite": "base: {model: m}\ndata: {train: a.txt}\ntrain: {learning_rate: .nan}\n",
    "anchors": "base: &base {model: m}\ndata: {train: a.txt}\n",
    "tab": "base:\n\tmodel: m\n",
    "indent": "base:\n    model: m\n  revision: main\n",
    "colon": "base: {model: m}\ndata: {train: a.txt}\nname: my: run\n",
    "parent": "extends: lib/parent.yaml\nadapter: {rank: 0}\n",
}
COMMAND_LINES = [
    "finetun",
    "--verson",
    "recipes lst",
    "recipes show",
    "recipes show nothing-like-it",
    "recipes validate a.yaml b.yaml",
    "recipes validate --sett seed=1 a.yaml",
    "recipes validate --set",
    "recipes validate good.yaml --set seed",
    "recipes validate good.yaml --set adapter.rnak=3 --set train.steps=0.5",
    "recipes validate lib",
    "recipes copy nothing-like-it",
    "schema data.trian",
]

Tell = Callable[..., str]


@pytest.fixture
def tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Tell:
    """Runs one command line in a folder of its own and says how it ended."""
    monkeypatch.chdir(tmp_path)
    Path("lib").mkdir()
    Path("lib/parent.yaml").write_text("base: {model: m}\ndata:\n  train: a.txt\n  pack: true\n")
    Path("good.yaml").write_text("base: {model: m}\ndata: {train: a.txt}\n")

    def run(*arguments: str) -> str:
        code = main(arguments)
        streams = capsys.readouterr()
        return f"{streams.out}--- stderr\n{streams.err}--- exit code {code}\n"

    return run


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_that_is_wrong(name: str, tell: Tell, snapshot: SnapshotAssertion) -> None:
    text = RECIPES[name]
    if text is not None:
        Path(f"{name}.yaml").write_text(text)
    told = tell("recipes", "validate", f"{name}.yaml")
    assert told == snapshot
    assert told.startswith("--- stderr\nerror: ")
    assert told.endswith("--- exit code 2\n")


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_a_command_line_that_is_wrong(line: str, tell: Tell, snapshot: SnapshotAssertion) -> None:
    told = tell(*line.split())
    assert told == snapshot
    assert told.startswith("--- stderr\nerror: ")
    assert told.endswith("--- exit code 2\n")


def stop() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` ignores it
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def fill_the_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/a/steps.jsonl")


def refuse_rows() -> None:
    raise InputError("rows.jsonl has bad rows", problems=["rows.jsonl:3: no `text`"], hint="mend")


def save_and_stop() -> None:
    raise Stopped("stopped after step 3", signal_number=15, hint="the same command goes on")


def end_oddly() -> None:
    click.get_current_context().exit(3)


@pytest.mark.parametrize("deed", [stop, fill_the_disk, refuse_rows, save_and_stop, end_oddly])
def test_how_a_command_ends(
    deed: Callable[[], None],
    tell: Tell,
    snapshot: SnapshotAssertion,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = ModuleType("peftkit.cli.doctor")
    module.command = click.Command("doctor", callback=deed)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert tell("doctor") == snapshot


def test_a_bug_keeps_its_traceback(tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise PermissionError(errno.EACCES, "no", "x")

    module = ModuleType("peftkit.cli.doctor")
    module.command = click.Command("doctor", callback=fail)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(PermissionError):
        tell("doctor")


def test_a_reader_that_leaves_early_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    for arguments in (["--version"], ["schema"]):  # less, and more, than stdout holds back
        done = subprocess.run(
            [sys.executable, "-m", "peftkit", *arguments],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        assert (done.stderr, done.returncode) == ("", 0)
    os.close(writer)


def test_a_name_that_stdout_cannot_spell_is_no_error(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "peftkit", "recipes", "copy", shipped()[0].name, tmp_path / "déjà"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert "d\\xe9j\\xe0" in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full to write to")
def test_a_full_disk_under_stdout_is_told() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "peftkit", "schema"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 74
    assert done.stderr.startswith("error: could not write: no space left on device\n\nhint: ")
