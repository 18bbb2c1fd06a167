"""Control tokens: which texts a tokenizer reads as one, so that the text of a row never is.

The special tokens of a tokenizer are, and so are tokens of its vocabulary that its chat template
writes around a turn: some tokenizers do not call those special.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2.exceptions import TemplateError

if TYPE_CHECKING:
    from collections.abc import Iterable

OPEN, CLOSE = "\ufdd0", "\ufdd1"
"""Characters that no text may hold; in a copy of a chat they stand around what only looks like a
control token, so that it can be told from the template's own."""
MARKED = re.compile(f"{OPEN}([^{OPEN}{CLOSE}]*){CLOSE}")
MARKS = re.compile(f"[{OPEN}{CLOSE}]")
PROBE = (("user", "q"), ("assistant", "q"), ("user", "q"))
"""A conversation that any template takes; what it writes besides is its own."""


@dataclass(frozen=True, slots=True)
class Control:
    """What a tokenizer and its chat template write of their own."""

    pattern: re.Pattern[str]
    ids: frozenset[int]
    header: str = ""
    """What the template puts after a chat to ask for an answer."""

    def count(self, values: Any) -> int:
        """How many control tokens the texts of a row spell out."""
        if isinstance(values, str):
            return len(self.pattern.findall(values))
        return sum(len(self.pattern.findall(text)) for text in texts_of(values))

    def mark(self, value: Any) -> Any:
        """The same data, with every control token that a text spells out between two marks."""
        if isinstance(value, str):
            return self.pattern.sub(f"{OPEN}\\g<0>{CLOSE}", value)
        if isinstance(value, dict):
            return {name: self.mark(each) for name, each in value.items()}
        return [self.mark(each) for each in value] if isinstance(value, list | tuple) else value


def find_control(tokenizer: Any) -> Control:
    """What this tokenizer reads as control tokens."""
    added = tokenizer.added_tokens_decoder
    header, written = _probe(tokenizer)
    # Ordinary text may come out as the unknown token, but where that is also the one that ends a
    # text, as GPT-2's is, it does not.
    ends = {tokenizer.eos_token_id, getattr(tokenizer, "bos_token_id", None)}
    unknown = None if tokenizer.unk_token_id in ends else tokenizer.unk_token_id
    ids = {
        number
        for number, token in added.items()
        if (token.special or number in written) and token.content.strip() and number != unknown
    }
    texts = sorted({added[number].content for number in ids}, key=lambda text: (-len(text), text))
    pattern = "|".join(map(re.escape, texts)) or r"(?!)"
    return Control(re.compile(pattern), frozenset(ids), header)


def texts_of(value: Any) -> Iterable[str]:
    """Every text in some data, names of columns aside."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from texts_of(each)


def _probe(tokenizer: Any) -> tuple[str, frozenset[int]]:
    """The template's request for an answer, and every token that it writes around turns."""
    if tokenizer.chat_template is None:
        return "", frozenset()
    turns = [{"role": role, "content": content} for role, content in PROBE]
    try:
        plain = tokenizer.apply_chat_template(turns, tokenize=False)
        asking = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except (TemplateError, TypeError, ValueError):  # what it takes instead, the rows will show
        return "", frozenset()
    ids = tokenizer(asking, add_special_tokens=False)["input_ids"]
    header = asking[len(plain) :] if asking.startswith(plain) else ""
    return header, frozenset(ids)
