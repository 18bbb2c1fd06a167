"""What the fault tests share: one process that forks their runs, a recipe, and its whole run."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from fault_runs import Forks, outcome, write_recipe


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    server = Forks(tmp_path_factory.mktemp("logs"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"), tiny_llama)


@pytest.fixture(scope="session")
def whole(forks: Forks, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupted."""
    run = tmp_path_factory.mktemp("whole") / "run"
    done = forks.finish(recipe, run)
    assert done.code == 0, done.told
    assert len(outcome(run)[1]) == 12
    return run
