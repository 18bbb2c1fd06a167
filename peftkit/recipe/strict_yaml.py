"""Read YAML strictly: what is written is what is meant, and every refusal names its line.

PyYAML follows YAML 1.1: `2e-4` is text, `no` is false, `0123` is 83, the second of two equal keys
wins in silence and deep nesting ends in a RecursionError. Here numbers and booleans follow YAML
1.2, keys are text, and whatever a settings file has no honest use for is refused.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import yaml
from typing_extensions import override

from peftkit.errors import RecipeError
from peftkit.recipe.spelling import dotted, shown

Location = tuple[int | str, ...]

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_VALUES = 20_000

_WHOLE = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_OCTAL_OR_HEX = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_DECIMAL = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_UNUSABLE = "that holds a NUL character or half of a surrogate pair"

# PyYAML has no error codes; these are the mistakes people make, in words about the file.
_PLAINER = {
    "mapping values are not allowed here": "a second `: ` on one line, or a wrong indent; put "
    "text that holds `: ` in quotes",
    "could not find expected ':'": "expected `key: value`",
    "expected <block end>, but found '<block mapping start>'": "the indent fits no line above",
    "expected <block end>, but found '<block sequence start>'": "the indent fits no line above",
    "expected <block end>, but found '-'": "the indent fits no line above",
    "found character '\\t' that cannot start any token": "a tab cannot indent; use spaces",
    "but found another document": "a second document after `---`; keep one",
    "found unexpected end of stream": "a quote that is never closed",
}


@dataclass(frozen=True)
class Document:
    """What one YAML file says, and where it says it."""

    value: Any
    """Plain values; sequences are tuples."""
    text: str
    """The file as written."""
    lines: dict[Location, int]
    """The line of every key and every list entry; `()` is where the content begins."""
    spelled: dict[Location, str]
    """How each number was written, because `1e5` and `1.10` do not survive being read."""


class InvalidYaml(RecipeError):  # noqa: N818 - it says what was found, as its siblings do
    """Text that is not YAML, or YAML that cannot be taken at its word."""

    def __init__(self, found: list[tuple[int, str]]) -> None:
        super().__init__("not valid YAML", problems=[f"line {n}: {what}" for n, what in found])


def parse(data: bytes) -> Document:
    """Read one document from the bytes of a file.

    Raises:
        InvalidYaml: with every problem found, in the order of their lines.
    """
    text = _decode(data)
    root = _compose(text)
    reading = _Reading()
    value = None if root is None else reading.value(root, ())
    if reading.problems:
        raise InvalidYaml(sorted(reading.problems))
    return Document(value, text, reading.lines, reading.spelled)


def scalar(text: str) -> Any:
    """What an unquoted word means: a number, a boolean, nothing, or the text itself.

    Raises:
        ValueError: a number that is not finite, or that 64 bits cannot hold.
    """
    if text in _WORDS:
        return _WORDS[text]
    if _WHOLE.fullmatch(text):
        return _within_64_bits(text, 10)
    if _OCTAL_OR_HEX.fullmatch(text):
        return _within_64_bits(text, 0)
    if _NOT_FINITE.fullmatch(text):
        msg = f"`{text}` is not a finite number"
        raise ValueError(msg)
    if not _DECIMAL.fullmatch(text):
        return text
    if not math.isfinite(number := float(text)):
        msg = f"`{_short(text)}` is too large a number"
        raise ValueError(msg)
    return number


def _within_64_bits(text: str, base: int) -> int:
    # The length comes first: Python takes quadratic time for thousands of digits, then refuses.
    if len(text) > 24 or not -(2**63) <= (number := int(text, base)) < 2**63:
        msg = f"`{_short(text)}` is too large a number"
        raise ValueError(msg)
    return number


def _short(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:12]}… ({len(text)} digits)"


def _decode(data: bytes) -> str:
    if len(data) > MAX_BYTES:
        raise InvalidYaml([(1, "larger than 1 MiB")])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found = f"not UTF-8 text (byte 0x{data[error.start]:02x})"
        raise InvalidYaml([(line, found)]) from None


def _compose(text: str) -> yaml.Node | None:
    try:
        loader = _Composer(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise InvalidYaml([(line, f"the character U+{error.character:04X}")]) from None
    try:
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        problem = error.problem or "not valid YAML"
        raise InvalidYaml([(line, _PLAINER.get(problem, problem))]) from None
    except (ValueError, OverflowError):  # PyYAML hands `\UFFFFFFFF` to chr, `%YAML 1.9…` to int
        raise InvalidYaml([(loader.line + 1, "an escape or a version out of range")]) from None
    finally:
        loader.dispose()


class _Composer(yaml.SafeLoader):
    """Builds nodes only, and stops at the first thing that could make them many or deep.

    Refusing on the event, before the node exists, is what keeps a 450-byte alias bomb and a
    thousand nested brackets cheap.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._values = 0

    @override
    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        self._refuse(event)
        self._depth += 1
        self._values += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def _refuse(self, event: Any) -> None:
        found = None
        if isinstance(event, yaml.AliasEvent):
            found = f"the alias {shown(f'*{event.anchor}')}; write the value out"
        elif event.anchor is not None:
            found = f"the anchor {shown(f'&{event.anchor}')}; write the value out where it is used"
        elif event.tag is not None:
            found = f"the tag {shown(event.tag)}; write the plain value"
        elif isinstance(event, yaml.CollectionStartEvent) and self._depth >= MAX_DEPTH:
            found = f"nested more than {MAX_DEPTH} deep"
        elif self._values >= MAX_VALUES:
            found = f"more than {MAX_VALUES:,} values"
        if found:
            raise yaml.composer.ComposerError(None, None, found, event.start_mark)


class _Reading:
    """Turns nodes into plain values, noting lines and collecting problems on the way."""

    def __init__(self) -> None:
        self.lines: dict[Location, int] = {}
        self.spelled: dict[Location, str] = {}
        self.problems: list[tuple[int, str]] = []

    def value(self, node: yaml.Node, here: Location) -> Any:
        self.lines.setdefault(here, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, here)
        if isinstance(node, yaml.SequenceNode):
            return tuple(self.value(child, (*here, i)) for i, child in enumerate(node.value))
        return self._scalar(node, here)

    def _mapping(self, node: yaml.MappingNode, here: Location) -> dict[str, Any]:
        values: dict[str, Any] = {}
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = self._key(key_node)
            if key is None:
                continue
            if key in first:
                twice = f"key {shown(key)} is written twice, first on line {first[key]}"
                self._refuse(line, here, twice)
                continue
            first[key] = self.lines[(*here, key)] = line
            values[key] = self.value(value_node, (*here, key))
        return values

    def _key(self, node: Any) -> str | None:
        line = node.start_mark.line + 1
        if not isinstance(node, yaml.ScalarNode):
            self.problems.append((line, "a key must be a word, not a list or a section"))
        elif node.value == "<<" and node.style is None:
            self.problems.append((line, "the merge key `<<`; write the keys out, or use `extends`"))
        elif (key := _characters(node.value)) is None:
            self.problems.append((line, f"a key {_UNUSABLE}"))
        else:
            return key
        return None

    def _scalar(self, node: Any, here: Location) -> Any:
        line, text = node.start_mark.line + 1, _characters(node.value)
        if text is None:
            self._refuse(line, here, f"text {_UNUSABLE}")
            return None
        if node.style is not None:
            return text
        try:
            value = scalar(text)
        except ValueError as error:
            self._refuse(line, here, str(error))
            return None
        if isinstance(value, int | float) and not isinstance(value, bool):
            self.spelled[here] = text
        return value

    def _refuse(self, line: int, here: Location, found: str) -> None:
        self.problems.append((line, f"{dotted(here)}: {found}" if here else found))


def _characters(text: str) -> str | None:
    """Text with the surrogate pairs joined that JSON writes for emoji; None if it is unusable."""
    try:
        joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        return None
    return None if "\0" in joined else joined
