"""Everything that the examples of a source follow from, as one digest.

Two sources with the same key have the same examples, so what is not sure to repeat has no key: a
tokenizer with parts in Python, a template that asks for the hour or for chance.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from dataclasses import fields
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.disk.digest import sha256_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peftkit.data.draft import Encoder
    from peftkit.recipe.sections.data import SourceSection

TOLD_OTHERWISE = ("tokenizer", "reading")
"""Fields of an encoder that are told by what they hold, or decide nothing; any new one counts."""
NOT_READ = {"source", "origin", "weight", "fraction"}
"""What a recipe says of a source beside how its rows become tokens; any new key counts."""
LIBRARIES = ("jinja2", "pyarrow", "tokenizers", "transformers")
"""What reads rows and turns them into tokens; another version may do it otherwise."""
ELSEWHERE = {
    *("_tokenizer", "_vocab", "_merges"),  # in what the backend writes
    *("init_inputs", "init_kwargs", "name_or_path", "vocab_file", "files_loaded"),  # whence it came
    *("deprecation_warnings", "verbose", "_in_target_context_manager"),
}
"""State of a tokenizer that says nothing of its own about the tokens it makes."""
DAY_ASKED = re.compile(
    r"strftime_now\s*\(\s*(['\"])([^%'\"]|%-?[aAbBdejmyY])*\1\s*\)|strftime_now\s+is\s+(not\s+)?defined"
)
"""What a template may say of the time if today's date is to tell all about it."""
UNREPEATABLE = re.compile(r"strftime_now|\blipsum\b|\|\s*random\b")
"""What a template cannot say twice alike."""


def make_key(
    source: SourceSection, name: str, files: Sequence[Path], bad_rows: str, encoder: Encoder
) -> str | None:
    """Sha256 over the files' content, how they are read and the tokenizer; None if not repeatable.

    A file counts by name and content, not by folder: messages show its name.

    Raises:
        OSError: a file cannot be read.
        PackageNotFoundError: a library does not say which version it is.
    """
    tokenizer = describe_tokenizer(encoder.tokenizer)
    if tokenizer is None or not CODE:
        return None
    told = (each.name for each in fields(encoder) if each.init and each.name not in TOLD_OTHERWISE)
    facts = {
        "name": name,
        "files": [(path.name, sha256_of(path)) for path in files],
        "source": source.model_dump(mode="json", exclude=NOT_READ),
        "bad_rows": bad_rows,
        "encoder": {name: getattr(encoder, name) for name in told},
        "tokenizer": tokenizer,
        "code": CODE,
        "versions": [platform.python_version(), *map(version, LIBRARIES)],
    }
    return hashlib.sha256(json.dumps(facts, default=_in_order).encode()).hexdigest()


def _in_order(value: Any) -> Any:
    return sorted(value) if isinstance(value, frozenset | set) else repr(value)


def describe_tokenizer(tokenizer: Any) -> str | None:
    """All that decides which tokens come of a text, as text; None where that cannot be told."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    kind = type(tokenizer)
    # The class counts by name, which says everything only of one that comes with a version.
    if backend is None or not kind.__module__.startswith("transformers."):
        return None
    parts = (backend.normalizer, backend.pre_tokenizer, backend.decoder)
    day = _day_of(tokenizer.chat_template)
    if day is None or any(_is_python(part) for part in parts):
        return None
    state = {name: value for name, value in vars(tokenizer).items() if name not in ELSEWHERE}
    # Both are set anew whenever something is encoded; the key must not tell whether it was.
    backend.no_truncation()
    backend.no_padding()
    content = hashlib.sha256(backend.to_str().encode()).hexdigest()
    facts = [kind.__module__, kind.__qualname__, day, state, content]
    try:
        return json.dumps(facts, sort_keys=True, default=_describe)
    except (TypeError, ValueError):  # state that is more than data
        return None


def _describe(value: Any) -> str:
    from transformers import AddedToken

    if isinstance(value, AddedToken):
        return repr(value)
    raise TypeError(f"{type(value).__name__} is not plain data")


def _is_python(part: Any) -> bool:
    """Whether a part of the backend is written in Python, which `to_str` refuses."""
    if part is None:
        return False
    if type(part).__name__ == "Sequence" and hasattr(part, "__getitem__"):
        return any(_is_python(each) for each in part)
    return type(part).__name__ in ("Normalizer", "PreTokenizer", "Decoder")


def _day_of(template: Any) -> str | None:
    """Today if the chat template writes the date, empty if it does not; None if it says more.

    Llama 3.1 and its kin put the date before every chat.
    """
    texts = template.values() if isinstance(template, dict) else [template or ""]
    rest = [DAY_ASKED.sub("", text) for text in texts]
    if any(UNREPEATABLE.search(text) for text in rest):
        return None
    asked = any("strftime_now" in text for text in texts)
    return datetime.now().astimezone().date().isoformat() if asked else ""


def digest_code(folder: Path) -> str:
    """Sha256 over the modules of a folder; empty where they cannot be read."""
    total = hashlib.sha256()
    modules = sorted(folder.glob("*.py"))
    try:
        for path in modules:
            total.update(f"{path.name} {sha256_of(path)}\n".encode())
    except OSError:
        return ""
    return total.hexdigest() if modules else ""


CODE = digest_code(Path(__file__).parent)
"""Of these modules as they were imported: no entry outlives a change of code."""
