"""Commands that only read and print: help, the shipped recipes and the schema."""

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from syrupy.assertion import SnapshotAssertion

from peftkit import __version__
from peftkit.cli.main import COMMANDS, group, main
from peftkit.recipe.catalog import shipped
from peftkit.recipe.export import json_schema

HELP = ["", "recipes", "recipes list", "recipes show", "recipes copy", "recipes validate", "schema"]
HEAVY = {"torch", "transformers", "datasets", "peft", "accelerate", "safetensors", "numpy", "rich"}


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    assert main(arguments) == 0
    streams = capsys.readouterr()
    return streams.out, streams.err


@pytest.mark.parametrize("name", HELP)
def test_help(name: str, capsys: pytest.CaptureFixture[str], snapshot: SnapshotAssertion) -> None:
    out, err = printed(capsys, *name.split(), "--help")
    assert out == snapshot
    assert err == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str) -> None:
    command = group.get_command(click.Context(group), name)
    assert command is not None
    assert command.name == name
    assert command.help
    assert f"peftkit {name}" in (command.epilog or "")


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "--version") == (f"peftkit {__version__}\n", "")


def test_no_command_shows_the_help_and_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.startswith("Usage: peftkit ")


def test_recipes_are_listed_for_people_and_for_programs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = [one.name for one in shipped()]
    assert names
    out, _ = printed(capsys, "recipes", "list")
    assert [line.split()[0] for line in out.splitlines()] == ["recipe", *names]
    out, err = printed(capsys, "recipes", "list", "--json")
    assert [one["name"] for one in json.loads(out)] == names
    assert err == ""


def test_a_recipe_is_shown_copied_and_validated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    one = next(one for one in shipped() if "peftkit finetune" in one.run)
    out, _ = printed(capsys, "recipes", "show", one.name)
    assert out == one.path.read_text()
    out, err = printed(capsys, "recipes", "copy", one.name, "mine")
    copied = out.strip()
    assert Path(copied).read_text() == one.path.read_text()
    assert err == f"run it with `peftkit finetune {copied}`\n"
    out, err = printed(capsys, "recipes", "validate", copied)
    assert (out, err) == ("", f"{copied} is a valid recipe\n")
    out, err = printed(capsys, "recipes", "validate", copied, "--set", "seed=5", "--json")
    assert json.loads(out)["seed"] == 5
    assert err == ""


def test_the_schema_is_printed_as_it_is_committed(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = printed(capsys, "schema")
    assert json.loads(out) == json_schema()


def test_a_key_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = printed(capsys, "schema", "train.steps")
    assert out == (
        "train.steps: a whole number of at least 1 or `auto` (default `auto`)\n"
        "    Optimizer updates; `auto` follows from `epochs`.\n"
    )
    out, _ = printed(capsys, "schema", "--keys")
    assert len(out.splitlines()) >= 80


@pytest.mark.parametrize(
    ("script", "allowed"),
    [
        ("import peftkit.cli.main", {"click"}),
        ("from peftkit.cli.main import main; main(['--help'])", {"click"}),
        ("import peftkit.recipe.load", {"pydantic", "yaml"}),
    ],
)
def test_what_starting_costs(script: str, allowed: set[str]) -> None:
    """Counted in what is imported, because seconds depend on the machine."""
    code = f"import sys; {script}; print('loaded', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.rpartition("loaded")[2].split()}
    assert allowed <= loaded
    assert not loaded & (HEAVY | {"click", "pydantic", "yaml"} - allowed)
