"""YAML read strictly: a table of every trap, and a fuzz that looks for one nobody thought of."""

import json
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from peftkit.recipe.strict_yaml import MAX_BYTES, MAX_DEPTH, MAX_VALUES, InvalidYaml, parse

READ_AS_WRITTEN = [
    ("2e-4", 2e-4),  # YAML 1.1, and PyYAML with it, reads text here
    ("1e5", 1e5),
    ("-1.5E+3", -1500.0),
    (".5", 0.5),
    ("5.", 5.0),
    ("0.0", 0.0),
    ("-0", 0),
    ("+12", 12),
    ("0x1F", 31),
    ("0o17", 15),
    ("9223372036854775807", 2**63 - 1),
    ("-9223372036854775808", -(2**63)),
    ("true", True),
    ("False", False),
    ("null", None),
    ("~", None),
    ("", None),
    ("no", "no"),  # false in YAML 1.1
    ("yes", "yes"),
    ("on", "on"),
    ("off", "off"),
    ("y", "y"),
    ("tRUE", "tRUE"),
    ("0123", "0123"),  # 83 in YAML 1.1
    ("0042", "0042"),
    ("-017", "-017"),
    ("0b11", "0b11"),
    ("1_000", "1_000"),
    ("1:30:00", "1:30:00"),  # 5400 in YAML 1.1
    ("190:20:30.15", "190:20:30.15"),
    ("2026-11-21", "2026-11-21"),  # a date in YAML 1.1
    ("2026-11-21 10:00:00", "2026-11-21 10:00:00"),
    ("1e", "1e"),
    ("e5", "e5"),
    ("1.2.3", "1.2.3"),
    ("٣", "٣"),
    ("=", "="),
    ("inf", "inf"),
    ("nan", "nan"),
    ('"2e-4"', "2e-4"),
    ("'true'", "true"),
    ('"\\ud83d\\ude00"', "😀"),  # as JSON writes it
    ("[1, [a], {}]", (1, ("a",), {})),
    ("|\n  one\n  two\n", "one\ntwo\n"),
    ("hub:org/set@main:train", "hub:org/set@main:train"),
]

REFUSED = [
    ("a: 1\na: 2", "line 2: key `a` is written twice, first on line 1"),
    ("s:\n  a: 1\n  b: 2\n  a: 3", "line 4: s: key `a` is written twice, first on line 2"),
    ("a: 1\n'a': 2", "line 2: key `a` is written twice, first on line 1"),
    ("a: .nan", "line 1: a: `.nan` is not a finite number"),
    ("a:\n  - 1\n  - -.INF", "line 3: a.1: `-.INF` is not a finite number"),
    ("a: 1e999", "line 1: a: `1e999` is too large a number"),
    ("a: 9223372036854775808", "line 1: a: `9223372036854775808` is too large a number"),
    (f"a: {'9' * 5000}", "line 1: a: `999999999999… (5000 digits)` is too large a number"),
    (f"a: 0x{'f' * 5000}", "line 1: a: `0xffffffffff… (5002 digits)` is too large a number"),
    ("a: &x 1", "line 1: the anchor `&x`; write the value out where it is used"),
    ("a: 1\nb: *x", "line 2: the alias `*x`; write the value out"),
    ("a: &x [*x]", "line 1: the anchor `&x`; write the value out where it is used"),
    ("<<: {a: 1}", "line 1: the merge key `<<`; write the keys out, or use `extends`"),
    ("a: !!python/name:os.system x", "line 1: the tag `tag:yaml.org,2002:python/name:os.system`"),
    ("a: !!str 1", "line 1: the tag `tag:yaml.org,2002:str`; write the plain value"),
    ("a: ! x", "line 1: the tag `!`; write the plain value"),
    ("a: 1\n---\nb: 2", "line 2: a second document after `---`; keep one"),
    ("a:\n\t- 1", "line 2: a tab cannot indent; use spaces"),
    ("a: b: c", "line 1: a second `: ` on one line, or a wrong indent; put text that holds"),
    ("a: 1\n b: 2", "line 2: a second `: ` on one line, or a wrong indent; put text that holds"),
    ("a:\n    b: 1\n  c: 2", "line 3: the indent fits no line above"),
    ("a: 1\nb", "line 2: expected `key: value`"),
    ("a: 'x", "line 1: a quote that is never closed"),
    ("a: [1, 2", "line 1: expected ',' or ']'"),
    ("[a]: 1", "line 1: a key must be a word, not a list or a section"),
    ("? {a: 1}\n: 2", "line 1: a key must be a word, not a list or a section"),
    ("a: x\x00y", "line 1: the character U+0000"),
    ("a: 1\nb: \x1b", "line 2: the character U+001B"),
    ('a: "\\ud800"', "line 1: a: text that holds a NUL character or half of a surrogate pair"),
    ('a: "\\0"', "line 1: a: text that holds a NUL character or half of a surrogate pair"),
    ('a: 1\nb: "\\UFFFFFFFF"', "line 2: an escape or a version out of range"),
    ('a: "\\U00110000"', "line 1: an escape or a version out of range"),
    (f"%YAML 1.{'9' * 5000}\n---\na: 1", "line 1: an escape or a version out of range"),
    ("--- !<%FF> a", "line 1: 'utf-8' codec can't decode byte 0xff"),
    ("%YAML 2.0\n---\na: 1", "line 1: found incompatible YAML document"),
]


@pytest.mark.parametrize(("text", "value"), READ_AS_WRITTEN)
def test_a_value_is_what_is_written(text: str, value: Any) -> None:
    read = parse(f"key: {text}".encode()).value["key"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(("text", "problem"), REFUSED)
def test_a_trap_is_refused_with_its_line(text: str, problem: str) -> None:
    with pytest.raises(InvalidYaml) as caught:
        parse(text.encode())
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(problem)


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(InvalidYaml) as caught:
        parse(b"a: .nan\nb: {c: 1, c: 2}\n<<: {}\n")
    assert [problem[:7] for problem in caught.value.problems] == ["line 1:", "line 2:", "line 3:"]


def test_bytes_that_are_not_utf8_name_their_line() -> None:
    with pytest.raises(InvalidYaml, match="line 2: not UTF-8 text \\(byte 0xff\\)"):
        parse(b"a: 1\nb: \xff\n")


def test_a_byte_order_mark_is_no_part_of_the_first_key() -> None:
    assert parse(b"\xef\xbb\xbfa: 1").value == {"a": 1}


def test_a_mebibyte_is_the_limit() -> None:
    assert parse(b"a: 1 #".ljust(MAX_BYTES, b"x")).value == {"a": 1}
    with pytest.raises(InvalidYaml, match="larger than 1 MiB"):
        parse(b"a: 1 #".ljust(MAX_BYTES + 1, b"x"))


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ("{a: ", "}")])
def test_depth_has_a_limit(opening: str, closing: str) -> None:
    value = parse(f"{opening * MAX_DEPTH}1{closing * MAX_DEPTH}".encode()).value
    for _ in range(MAX_DEPTH):
        (value,) = value.values() if isinstance(value, dict) else value
    assert value == 1
    with pytest.raises(InvalidYaml, match="nested more than 32 deep"):
        parse(f"{opening * (MAX_DEPTH + 1)}1{closing * (MAX_DEPTH + 1)}".encode())


@pytest.mark.parametrize("bomb", ["[", "{", "- ", "? ", "[? ", "{a: ", "[{a: "])
def test_no_depth_ends_in_a_recursion_error(bomb: str) -> None:
    with pytest.raises(InvalidYaml, match="nested more than 32 deep"):
        parse((bomb * 20_000).encode())


def test_the_number_of_values_has_a_limit() -> None:
    assert len(parse(("- 1\n" * (MAX_VALUES - 1)).encode()).value) == MAX_VALUES - 1
    with pytest.raises(InvalidYaml, match="line 20000: more than 20,000 values"):
        parse(("- 1\n" * MAX_VALUES).encode())


def test_a_billion_laughs_fall_flat() -> None:
    laughs = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    laughs += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in pairwise("abcdefghi")]
    with pytest.raises(InvalidYaml, match="the anchor `&a`"):
        parse("\n".join(laughs).encode())


def test_lines_and_spellings_are_known() -> None:
    document = parse(b"# comment\na:\n  b: 1.10\n  c:\n    - x\n    - {d: 1e5}\n")
    assert document.lines == {
        (): 2,
        ("a",): 2,
        ("a", "b"): 3,
        ("a", "c"): 4,
        ("a", "c", 0): 5,
        ("a", "c", 1): 6,
        ("a", "c", 1, "d"): 6,
    }
    assert document.spelled == {("a", "b"): "1.10", ("a", "c", 1, "d"): "1e5"}


printable = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), max_size=9)
plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | printable,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(printable, inner, max_size=4),
    max_leaves=12,
)


def as_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: as_tuples(child) for key, child in value.items()}
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value


@given(plain_values)
def test_json_reads_as_itself(value: Any) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        assert parse(text.encode()).value == as_tuples(value)


pieces = [*"ab01.:-?#&*!|>'\"%@`[]{},~<= \n\t\\e+_u😀\x85\ufeff\x00", "---", "...", "<<", "%YAML "]
pieces += ['"\\u', '"\\U00', "%TAG ! ", "!<", "FFFF", "9" * 30, "  - ", ": ", "\n  "]


@given(st.lists(st.sampled_from(pieces), max_size=40).map("".join))
@example("? |\n- :")
@example("\ufeff\ufeff")
def test_no_text_escapes(text: str) -> None:
    """What is not read is refused as an `InvalidYaml`; anything else fails the test."""
    with suppress(InvalidYaml):
        parse(text.encode())


@given(st.binary())
def test_no_bytes_escape(data: bytes) -> None:
    with suppress(InvalidYaml):
        parse(data)
