"""What the pages say exists: links, commands, options, recipes, keys and Python names."""

import ast
import inspect
import re
from importlib import import_module
from pathlib import Path

import click
import pytest
from doc_pages import REPOSITORY, options, pages, resolve

from peftkit.cli.main import COMMANDS, main
from peftkit.pipeline.api import finetune
from peftkit.publish.publish import publish
from peftkit.recipe.load import load_recipe
from peftkit.recipe.reference import keys as every_key
from peftkit.recipe.schema import Recipe

PAGES = pages()
SMALLEST = "base: {model: builtin:tiny}\ndata: {train: {source: rows.jsonl}}\n"
LINES = [
    pytest.param(words, id=f"{place} {' '.join(words)}")
    for page in PAGES.values()
    for place, words in page.commands()
    if Path(words[0]).name in ("peftkit", "make")
]
RECIPES = [
    pytest.param(block.text, id=block.place)
    for page in PAGES.values()
    for block in page.blocks
    if block.language == "yaml"
]
BLOCKS_OF_PYTHON = [
    pytest.param(block.text, id=block.place)
    for page in PAGES.values()
    for block in page.blocks
    if block.language == "python"
]
SPANS = [(page.name, span) for page in PAGES.values() for span in page.spans]
KEY = re.compile(rf"((?:{'|'.join(Recipe.model_fields)})(?:\.[a-z_]+)+)(?:: (.+))?")
FILE = re.compile(r"\w+(\.\w+)*\.(jsonl?|md|html|py|yaml)(/.*)?")


def test_enough_was_found_to_look_at() -> None:
    """A test over an empty list would only be skipped."""
    assert len(PAGES) >= 18
    assert len(LINES) >= 35
    assert len(RECIPES) >= 4
    assert len(BLOCKS_OF_PYTHON) >= 5
    assert sum(len(page.links) for page in PAGES.values()) >= 40


def test_every_relative_link_leads_somewhere() -> None:
    dead = []
    for page in PAGES.values():
        for link in page.links:
            target, _, anchor = link.partition("#")
            path = (page.path.parent / target).resolve() if target else page.path
            name = path.relative_to(REPOSITORY).as_posix()
            if not path.exists():
                dead.append(f"{page.name} links to {link}, which is not there")
            elif anchor and anchor not in PAGES[name].anchors:
                dead.append(f"{page.name} links to {link}, and {name} has no such heading")
    assert "\n".join(dead) == ""


@pytest.mark.parametrize("words", LINES)
def test_a_command_line_can_be_typed(words: list[str]) -> None:
    if words[0] == "make":
        targets = re.findall(
            r"^([a-z-]+):.*##", (REPOSITORY / "Makefile").read_text(), re.MULTILINE
        )
        named = [word for word in words[1:] if "=" not in word]
        assert set(named) <= set(targets)
        return
    context, command, rest = resolve(words[1:])
    assert isinstance(command, click.Group) is False
    assert context.parent is not None
    command.make_context(context.info_name, rest, parent=context.parent)


def test_commands_and_options_in_the_text_exist() -> None:
    wrong, seen = [], 0
    inner = [["recipes", name] for name in ("list", "show", "copy", "validate")]
    named = [[], *([name] for name in COMMANDS), *inner]
    every = {option for words in named for option in options(resolve(words)[0])}
    for page, span in SPANS:
        words = span.split()
        if words[0] == "peftkit" and len(words) > 1:
            context, _, rest = resolve(words[1:])
            known = options(context)
        elif words[0].startswith("--"):
            rest, known = words[:1], every
        else:
            continue
        seen += 1
        unknown = [word for word in rest if word.startswith("-") and word not in known]
        wrong += [f"{page}: `{span}`: no option {word}" for word in unknown]
    assert "\n".join(wrong) == ""
    assert seen >= 40


@pytest.mark.parametrize("text", RECIPES)
def test_a_whole_recipe_is_valid(text: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    load_recipe(path)


def test_recipe_keys_and_values_in_the_text_are_valid(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(SMALLEST)
    named = load_recipe(path, ["data.validation=valid.jsonl"]).recipe.model_dump()
    known = set(_dotted(named)) | set(_dotted(load_recipe(path).recipe.model_dump()))
    known |= {key.name for key in every_key("adapter")}  # each method has its own
    known |= {key.name for key in every_key("data")}  # and so have the entries of lists
    known |= {key.name for key in every_key("train")}  # and sections that may be `none`
    wrong, keys, values = [], 0, 0
    for page, span in SPANS:
        setting = span.removeprefix("--set ").replace("=", ": ", 1)
        if (match := KEY.fullmatch(setting)) is None or FILE.fullmatch(span):
            continue
        keys += 1
        if match[1] not in known:
            wrong.append(f"{page}: `{span}`: no such key")
        elif match[2]:
            values += 1
            load_recipe(path, [f"{match[1]}={match[2]}"])
    assert "\n".join(wrong) == ""
    assert keys >= 60
    assert values >= 8


def _dotted(values: dict[str, object], above: str = "") -> list[str]:
    found = []
    for key, value in values.items():
        name = f"{above}.{key}".lstrip(".")
        found += [name, *(_dotted(value, name) if isinstance(value, dict) else [])]
    return found


@pytest.mark.parametrize("text", BLOCKS_OF_PYTHON)
def test_python_names_what_exists(text: str) -> None:
    functions = {"peftkit.finetune": finetune, "peftkit.publish": publish}
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            module = import_module(node.module)
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
        if isinstance(node, ast.Call) and (called := functions.get(ast.unparse(node.func))):
            named = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
            assert inspect.signature(called).bind(*node.args, **named)


def test_the_arguments_of_finetune_are_documented() -> None:
    spans = PAGES["docs/guides/python.md"].spans
    named = [span.partition("=")[0] for span in spans if re.match(r"\w+=", span)]
    assert ["recipe", *named] == list(inspect.signature(finetune).parameters)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_documented(name: str) -> None:
    reference = "docs/reference/cli.md"
    assert f"\n### `peftkit {name}`\n" in PAGES[reference].text
    elsewhere = [page.name for page in PAGES.values() if f"peftkit {name}" in page.text]
    assert set(elsewhere) - {reference}


def test_the_readme_names_the_packages() -> None:
    named = re.findall(r"^\| `(\w+)/` \|", PAGES["README.md"].text, re.MULTILINE)
    packages = {path.parent.name for path in (REPOSITORY / "peftkit").glob("*/__init__.py")}
    assert len(packages) >= 10
    assert sorted(named) == sorted(packages)


def test_the_error_in_the_readme_is_what_comes_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = [b.text for b in PAGES["README.md"].blocks if b.text.startswith("error: home.yaml")]
    assert len(shown) == 1
    monkeypatch.chdir(tmp_path)
    Path("home.yaml").write_text(
        "base: {model: builtin:tiny}\n"
        "adapter: {rnak: 8}\n"
        "train: {learning_rate: -1}\n"
        "data: {train: rows.jsonl}\n"
    )
    assert main(["recipes", "validate", "home.yaml"]) == 2
    assert capsys.readouterr().err == shown[0]
