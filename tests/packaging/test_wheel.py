"""What travels: the wheel holds the recipes and the embedded base, and works without a checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built without a network and unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(build, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("peftkit-*-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def files_below(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_package_is_whole(unpacked: Path) -> None:
    """Modules and data: weights, tokenizer and card of the embedded base among them."""
    source = files_below(REPOSITORY / "peftkit")
    assert {Path(name).suffix for name in source} >= {".py", ".safetensors", ".json", ".md"}
    assert {name for name in source if name.startswith("base/tiny/")}
    assert source == {
        name for name in files_below(unpacked / "peftkit") if not name.startswith("_recipes/")
    }


def test_every_recipe_travels(unpacked: Path) -> None:
    recipes = files_below(REPOSITORY / "recipes")
    assert {"quickstart.yaml", "recipe.schema.json"} <= recipes
    assert recipes == files_below(unpacked / "peftkit" / "_recipes")


def test_nothing_else_does(unpacked: Path) -> None:
    package, metadata = sorted(path.name for path in unpacked.iterdir())
    assert package == "peftkit"
    assert metadata.endswith(".dist-info")


def run_installed(unpacked: Path, folder: Path, *arguments: str) -> str:
    """What a Python whose peftkit is the unpacked one prints."""
    done = subprocess.run(
        [sys.executable, "-P", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_runs_where_there_is_no_checkout(unpacked: Path, tmp_path: Path) -> None:
    where = run_installed(unpacked, tmp_path, "-c", "import peftkit; print(peftkit.__file__)")
    assert where.startswith(str(unpacked))  # else the checkout would answer below
    assert "finetune" in run_installed(unpacked, tmp_path, "-m", "peftkit", "--help")
    assert "quickstart" in run_installed(unpacked, tmp_path, "-m", "peftkit", "recipes", "list")
