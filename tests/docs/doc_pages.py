"""Markdown pages as data: their blocks, links, headings, tables, inline code and commands."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import click

from peftkit.cli.main import group

REPOSITORY = Path(__file__).parents[2]
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
ENDS_COMMAND = {"|", ">", ">>", "<", "&&", "||", ";", "&"}


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    place: str
    """Page and line, for messages."""
    language: str
    text: str


@dataclass(frozen=True)
class Page:
    """One Markdown file, read once."""

    name: str
    """Its path in the repository."""
    text: str

    @property
    def path(self) -> Path:
        return REPOSITORY / self.name

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        return tuple(
            Block(f"{self.name}:{self.text.count(chr(10), 0, at.start()) + 1}", at[2], at[3])
            for at in BLOCK.finditer(self.text)
        )

    @cached_property
    def prose(self) -> str:
        """The text without its blocks."""
        return BLOCK.sub("", self.text)

    @cached_property
    def spans(self) -> tuple[str, ...]:
        """What stands between backticks in the prose."""
        return tuple(span.replace("\\|", "|") for span in SPAN.findall(self.prose))

    @cached_property
    def links(self) -> tuple[str, ...]:
        """Targets of links and pictures that lead nowhere outside."""
        found = LINK.findall(SPAN.sub("", self.prose))
        return tuple(target for target in found if not re.match(r"[a-z]+:", target))

    @cached_property
    def headings(self) -> tuple[str, ...]:
        return tuple(HEADING.findall(self.prose))

    @cached_property
    def anchors(self) -> set[str]:
        """Of the headings, as GitHub makes them."""
        titles = [heading.lower() for heading in self.headings]
        return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}

    def section(self, title: str) -> "Page":
        """The part under a heading, up to the next one of any level."""
        start = re.search(rf"^#+ {re.escape(title)}$", self.text, re.MULTILINE)
        assert start is not None, f"{self.name} has no section {title}"
        end = re.compile(r"^#+ ", re.MULTILINE).search(self.text, start.end())
        return Page(self.name, self.text[start.end() : end.start() if end else None])

    def rows(self) -> list[list[str]]:
        """The cells of all tables, their headings left out."""
        lines = re.findall(r"^\|(.*)\|$", self.prose, re.MULTILINE)
        cells = [[c.strip() for c in re.split(r"(?<!\\)\|", line)] for line in lines]
        rules = [at for at, row in enumerate(cells) if set("".join(row)) <= set("-: ")]
        drop = {place for at in rules for place in (at - 1, at)}
        return [row for at, row in enumerate(cells) if at not in drop]

    def commands(self) -> list[tuple[str, list[str]]]:
        """Place and words of each shell command: `$` lines of console blocks, all of sh blocks."""
        return [
            (block.place, words)
            for block in self.blocks
            for line in _shell_lines(block)
            for words in _simple_commands(line)
        ]


def _shell_lines(block: Block) -> list[str]:
    joined = block.text.replace("\\\n", " ").splitlines()
    if block.language == "console":
        return [line.removeprefix("$ ") for line in joined if line.startswith("$ ")]
    return [line for line in joined if line.strip()] if block.language == "sh" else []


def _simple_commands(line: str) -> Iterator[list[str]]:
    words = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    words.whitespace_split = True
    command: list[str] = []
    redirected = False
    for word in words:
        if word not in ENDS_COMMAND:
            command += [] if redirected else [word]
            continue
        redirected = word in {">", ">>", "<"}
        if not redirected:
            yield command
            command = []
    yield command


def pages() -> dict[str, Page]:
    """Every page that people read, by name."""
    patterns = ("*.md", "docs/**/*.md", "benchmarks/**/*.md", ".github/**/*.md")
    found = sorted({path for pattern in patterns for path in REPOSITORY.glob(pattern)})
    names = [path.relative_to(REPOSITORY).as_posix() for path in found]
    return {name: Page(name, (REPOSITORY / name).read_text()) for name in names}


def resolve(words: list[str]) -> tuple[click.Context, click.Command, list[str]]:
    """The command that the words after `peftkit` name, where it stands, and the words left."""
    context = click.Context(group, info_name="peftkit", **group.context_settings)
    command: click.Command = group
    rest = list(words)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        inner = command.get_command(context, rest[0])
        assert inner is not None, f"no command `{rest[0]}` in `{context.command_path}`"
        context, command = click.Context(inner, parent=context, info_name=rest.pop(0)), inner
    return context, command, rest


def options(context: click.Context) -> set[str]:
    """Every option of a command."""
    known = context.command.get_params(context)
    return {name for option in known for name in (*option.opts, *option.secondary_opts)}
