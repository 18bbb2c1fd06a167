"""Paths of a machine leave their file names behind; everything else is left as it was."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftkit.report.scrub import file_name, paths_in, scrub, scrub_text


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("see /home/jane/x/y.txt, ok", "see y.txt, ok"),
        ("(`/home/jane/x`)", "(`x`)"),
        ("out=/home/jane/x", "out=x"),
        ("base:/home/jane/x", "base:x"),
        ('{"/home/jane/x": 1}', '{"x": 1}'),
        ("~/rows/x.jsonl", "x.jsonl"),
        ("file:///home/jane/x.txt", "x.txt"),
        ("at C:\\Users\\jane\\x.txt", "at x.txt"),
        ("at \\\\server\\share\\x.txt", "at x.txt"),
        ("/home/jane/rows/", "rows"),
        ("https://huggingface.co/a/b/c", "https://huggingface.co/a/b/c"),
        ("hub:org/set@abc:train", "hub:org/set@abc:train"),
        ("loss/byte, and/or, 3/4/5", "loss/byte, and/or, 3/4/5"),
        ("</details>", "</details>"),
        ("../rows/x.jsonl", "../rows/x.jsonl"),
        ("/api", "/api"),
    ],
)
def test_text(text: str, clean: str) -> None:
    assert scrub_text(text) == clean
    assert bool(paths_in(text)) == (text != clean)


def test_data() -> None:
    data = {
        "hostname": "jane-laptop",
        "data": {"/home/jane/a b/rows of mine.jsonl": "digest"},
        "sources": ["/home/jane/a b/rows of mine.jsonl", "hub:org/set@abc:train"],
        "sentence": "read /home/jane/x twice",
        "figure": 1.5,
        "nothing": None,
    }
    assert scrub(data) == {
        "data": {"rows of mine.jsonl": "digest"},
        "sources": ["rows of mine.jsonl", "hub:org/set@abc:train"],
        "sentence": "read x twice",
        "figure": 1.5,
        "nothing": None,
    }


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/home/jane/x.jsonl", "x.jsonl"),
        ("rows/x.jsonl", "x.jsonl"),
        ("rows/", "rows"),
        ("C:\\rows\\x.csv", "x.csv"),
        ("hub:org/set@abc:train", "hub:org/set@abc:train"),
        ("https://example.com/x.csv", "https://example.com/x.csv"),
        ("/", "a folder"),
    ],
)
def test_file_names(source: str, name: str) -> None:
    assert file_name(source) == name


@given(st.recursive(st.text(max_size=30) | st.integers() | st.none(), st.lists, max_leaves=8))
def test_scrubbing_twice_changes_nothing(value: object) -> None:
    assert scrub(scrub(value)) == scrub(value)


@given(
    st.lists(
        st.from_regex(r"[a-z][a-z0-9_.-]{0,8}[a-z0-9]", fullmatch=True), min_size=2, max_size=5
    ),
    st.sampled_from(["{}", "see {}", "`{}`", "({}), {}", "a\n{}\nb"]),
)
def test_no_folder_survives(parts: list[str], around: str) -> None:
    path = "/" + "/".join(parts)
    assert paths_in(around.replace("{}", path)) == [path]
    assert f"/{parts[-1]}" not in scrub_text(around.replace("{}", path))
