"""Writes `cli.md` from the `--help` of every command, `recipe.md` and `merge.md` from schemas.

python docs/reference/generate.py
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from peftkit import errors
from peftkit.cli.main import group
from peftkit.pipeline.signals import HEARD
from peftkit.recipe.kinds import MERGE, RECIPE
from peftkit.recipe.lock import FREE
from peftkit.recipe.reference import keys

if TYPE_CHECKING:
    from collections.abc import Iterator

    from peftkit.recipe.kinds import Kind
    from peftkit.recipe.reference import Key

HERE = Path(__file__).parent
WIDTH = 78
"""Of the help, as a terminal of 80 columns shows it."""
MADE_BY = "<!-- Written by generate.py beside this file; a test compares. -->"

CLI = """\
# Commands

`peftkit` is also `python -m peftkit`. Data goes to standard output, everything else to standard
error; `NO_COLOR` is respected, and color never carries meaning. Progress is a bar on a terminal
and a plain line every 30 seconds elsewhere. Commands that report take `--json`.
"""
ENDINGS = """\
## Exit codes

`peftkit.errors` has a class for each; 0 means done, and any other ending than these is a bug.
"""
RECIPE_PAGE = """\
# Recipe keys

A recipe is one YAML file. The smallest names a base and some rows:

```yaml
base: {model: builtin:tiny}
data: {train: rows.jsonl}
```

Every other key has a default. `recipe.resolved.json` in the run folder shows them filled in, and
`peftkit recipes validate --json` does so without a run. `peftkit schema` prints the JSON schema,
`peftkit schema KEY` one part of this page.

* **Values mean what they say.** Numbers and booleans follow YAML 1.2: `2e-4` is a number, `no` is
  text. `auto` is written `auto`. Unknown and duplicate keys, anchors, tags, numbers that are not
  finite, nesting deeper than 32 and files over 1 MiB are refused. All problems are told at once.
* **Paths** start at the folder of the file they stand in. After `--set` they start where you are.
* **A source** is a path, or a section of `source`, `format`, `columns`, `learn`,
  `control_tokens` and `origin`, wherever rows are named: in `data.train`, `data.replay`,
  `data.validation`, `data.test`, `data.benchmarks` and `evaluate.remember`.
* **`extends: other.yaml`** at the top starts from another recipe. Sections merge key by key; lists
  and single values are replaced; another `adapter.method` starts the section afresh; `name` is
  never inherited.
* **`--set section.key=value`** on the command line is laid over both; the value is YAML. An entry
  of a list is named by its number, counted from 0.
"""
MERGING = """\
# Merge recipe keys

`peftkit merge MERGE.yaml` takes one YAML file. The smallest names adapters and a formula of them:

```yaml
adapters: {chat: runs/chat, code: runs/code}
expression: chat + 0.7*code
```

It is read as strictly as a [recipe](recipe.md), with the same `extends`, `--set` and paths.
`peftkit schema --merge` prints its JSON schema, `peftkit schema --merge KEY` one part of this page.
What a merge is, and what it can be made of, is told in
[Add and subtract adapters](../guides/arithmetic.md).
"""
FREEDOM = """\
## What may change while a run is interrupted

{free} may differ between a run and its resumption. Every other key makes another run, unless
`peftkit finetune --allow-change KEY` names it; so does `train.save_every`
where `train.average` has `last`.
"""


def pages() -> dict[str, str]:
    """The text of each generated page, by file name."""
    merging = _page(MERGING, *_tables(MERGE))
    return {"cli.md": _cli(), "recipe.md": _recipe(), "merge.md": merging}


def main() -> None:
    """Write the pages."""
    for name, text in pages().items():
        (HERE / name).write_text(text, encoding="utf-8")


def _cli() -> str:
    top = click.Context(group, info_name="peftkit", terminal_width=WIDTH, **group.context_settings)
    return _page(CLI, *_helps(top, 2), ENDINGS, _table(("code", "when"), _endings()))


def _helps(context: click.Context, level: int) -> Iterator[str]:
    """A section for a command, then one for each below it."""
    command = context.command
    yield f"{'#' * level} `{context.command_path}`\n\n```text\n{command.get_help(context)}\n```\n"
    if not isinstance(command, click.Group):
        return
    for name in command.list_commands(context):
        inner = command.get_command(context, name)
        if inner is not None:
            below = click.Context(inner, parent=context, info_name=name)
            yield from _helps(below, min(level + 1, 3))


def _endings() -> Iterator[tuple[str, str]]:
    kinds = [errors.RunError, errors.RecipeError, errors.InputError]
    for kind in [*kinds, errors.WriteError, errors.BusyError]:
        yield str(kind.exit_code), f"`{kind.__name__}`: {_first_line(kind.__doc__)}"
    stops = {128 + number: number.name for number in sorted(HEARD)}
    codes = ", ".join(map(str, stops))
    names = ", ".join(stops.values())
    yield codes, f"`{errors.Stopped.__name__}`: {_first_line(errors.Stopped.__doc__)} ({names})"


def _first_line(text: str | None) -> str:
    return (text or "").strip().splitlines()[0]


def _recipe() -> str:
    free = ", ".join(f"`{key}`" for key in sorted(FREE))
    return _page(RECIPE_PAGE, *_tables(RECIPE), FREEDOM.format(free=free))


def _tables(kind: Kind) -> list[str]:
    sections: dict[str, list[Key]] = {}
    for key in keys("", kind):
        sections.setdefault(key.name.partition(".")[0], []).append(key)
    return [_section(name, inside, kind) for name, inside in sections.items()]


def _section(name: str, inside: list[Key], kind: Kind) -> str:
    meaning = kind.schema.model_fields[name].description
    said = f"{meaning}\n\n" if inside[0].name != name else ""
    columns = ("key", "what it may be", "default", "meaning")
    return f"## `{name}`\n\n{said}{_table(columns, map(_row, inside))}"


def _row(key: Key) -> tuple[str, str, str, str]:
    default = key.default or "required"
    spelled = default if default in ("required", "the stem of the file") else f"`{default}`"
    only = f" Only with `{key.belongs}`." if key.belongs else ""
    return f"`{key.name}`", key.expected, spelled, f"{key.meaning}{only}"


def _table(columns: tuple[str, ...], rows: Iterator[tuple[str, ...]] | map[tuple[str, ...]]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def _page(opening: str, *parts: str) -> str:
    title, _, rest = opening.partition("\n")
    return "\n".join([f"{title}\n\n{MADE_BY}\n{rest}", *parts])


if __name__ == "__main__":
    main()
