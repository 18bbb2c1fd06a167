"""Rows for tasks other than writing on: texts with labels, tagged words, pairs alike, sources."""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from peftkit.data.draft import Draft, Encoder, UnusableError, words
from peftkit.data.example import LONE_SURROGATE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peftkit.data.rows import Row


def read_classified(row: Row, encoder: Encoder) -> Draft:
    """A text, or two, and its label; a list of labels for multi-label, a number for regression."""
    texts = [words(row, "text")]
    if second := words(row, "text_pair", may_be_empty=True).strip():
        texts.append(second)
    if len(texts) == 2 and encoder.tokenizer.sep_token is None:
        texts = ["\n".join(texts)]  # nothing else would stand between them
    labels = _labels_of(row.values.get("label"), encoder)
    ids, parts, cut, over = _fit(texts, encoder)
    shown = "\n".join(texts)
    return Draft(
        ids,
        _decided_at_the_end(ids),
        shown,
        prompt=shown,
        answer=", ".join(labels),
        parts=parts,
        labels=labels,
        typed=encoder.typed(texts),
        cut=cut,
        over=over,
    )


def read_tagged(row: Row, encoder: Encoder) -> Draft:
    """Words and a tag for each; the first token of a word carries its tag."""
    parts = _list_of(row, "tokens")
    tags = _list_of(row, "tags")
    if len(parts) != len(tags):
        raise UnusableError(f"{len(parts)} words in `tokens`, but {len(tags)} in `tags`")
    _refuse_unknown("tags", tags, encoder)
    shown = " ".join(parts)
    as_text = encoder.as_text(shown)
    found = encoder.tokenizer(shown, return_offsets_mapping=True, verbose=False, **as_text)
    over = max(0, len(found["input_ids"]) - encoder.max_length)
    cut = over if encoder.too_long == "truncate" else 0
    first = _first_tokens(parts, found["offset_mapping"])
    if len(first) < len(parts):
        lost = next(number for number in range(len(parts)) if number not in first.values())
        raise UnusableError(f"word {lost + 1} in `tokens`, `{parts[lost][:20]}`, has no token")
    if cut:
        found = encoder.tokenizer(
            shown,
            return_offsets_mapping=True,
            truncation=True,
            max_length=encoder.max_length,
            **as_text,
        )
        first = _first_tokens(parts, found["offset_mapping"])
    ids: list[int] = found["input_ids"]
    kept = tuple(tags[word] for word in first.values())
    answer = " ".join(kept)
    return Draft(
        ids,
        [place in first for place in range(len(ids))],
        shown,
        prompt=shown,
        answer=answer,
        labels=kept,
        typed=encoder.typed(shown),
        cut=cut,
        over=over - cut,
    )


def _first_tokens(parts: Sequence[str], spans: Sequence[tuple[int, int]]) -> dict[int, int]:
    """The place of each word's first token, and the word; words are read as in running text."""
    ends = list(accumulate(len(part) + 1 for part in parts))
    found: dict[int, int] = {}
    last = -1
    for place, (start, end) in enumerate(spans):
        word = bisect_right(ends, end - 1)
        if end > start and word > last:  # an empty span is the tokenizer's own
            found[place] = last = word
    return found


def read_alike(row: Row, encoder: Encoder) -> Draft:
    """An anchor, a text that means the same, and perhaps one that does not."""
    texts = [words(row, "anchor"), words(row, "positive")]
    if other := words(row, "negative", may_be_empty=True).strip():
        texts.append(other)
    fitted = [_fit([text], encoder) for text in texts]
    ids = [token for each, *_ in fitted for token in each]
    return Draft(
        ids,
        _decided_at_the_end(ids),
        "\n".join(texts),
        prompt=texts[0],
        answer=texts[1],
        parts=tuple(len(each) for each, *_ in fitted),
        typed=encoder.typed(texts),
        cut=sum(cut for _, _, cut, _ in fitted),
        over=max(over for *_, over in fitted),
    )


def read_source_and_target(row: Row, encoder: Encoder) -> Draft:
    """What an encoder reads and what a decoder must write, both closed by the tokenizer."""
    return _written(words(row, "prompt"), words(row, "completion"), encoder)


def read_asked_and_answered(row: Row, encoder: Encoder) -> Draft:
    """The same of an instruction and what it works on."""
    source = words(row, "instruction")
    if given := words(row, "input", may_be_empty=True).strip():
        source = f"{source}\n\n{given}"
    return _written(source, words(row, "output"), encoder)


def _written(source: str, target: str, encoder: Encoder) -> Draft:
    before, _, cut, over = _fit([source], encoder)
    after = encoder.encode(target)
    end = encoder.tokenizer.eos_token_id
    goal = after if end is None else [*after, end]
    answer = (len(before), len(before) + len(goal))
    too_much = max(0, len(goal) - encoder.max_length)
    if encoder.too_long == "truncate":
        goal, cut, too_much = goal[: encoder.max_length], cut + too_much, 0
    return Draft(
        before + goal,
        [False] * len(before) + [True] * len(goal),
        f"{source}\n{target}",
        prompt_tokens=len(before),
        prompt=source,
        answer=target.strip(),
        parts=(len(before), len(goal)),
        answers=(answer,),
        typed=encoder.typed((source, target)),
        cut=cut,
        over=max(over, too_much),
    )


def _fit(texts: Sequence[str], encoder: Encoder) -> tuple[list[int], tuple[int, ...], int, int]:
    """Ids of one text or two with the tokenizer's own additions, tokens of each, cut and over."""
    as_text = encoder.as_text(*texts)
    found = encoder.tokenizer(*texts, verbose=False, return_token_type_ids=True, **as_text)
    over = max(0, len(found["input_ids"]) - encoder.max_length)
    cut = over if encoder.too_long == "truncate" else 0
    if cut:
        found = encoder.tokenizer(
            *texts,
            truncation=True,
            max_length=encoder.max_length,
            return_token_type_ids=True,
            verbose=False,
            **as_text,
        )
    ids: list[int] = found["input_ids"]
    second = sum(found["token_type_ids"])
    parts = (len(ids) - second, second) if second else (len(ids),)
    return ids, parts, cut, over - cut


def _decided_at_the_end(ids: Sequence[int]) -> list[bool]:
    """One decision a row, counted at its last token."""
    return [False] * (len(ids) - 1) + [True]


def _labels_of(value: Any, encoder: Encoder) -> tuple[str, ...]:
    if encoder.task == "regression":
        return (_number(value),)
    if encoder.task == "multi-label":
        if not isinstance(value, list | tuple):
            raise UnusableError(f"column `label`: expected a list, got `{str(value)[:40]}`")
        labels = tuple(dict.fromkeys(_name(each) for each in value))
    else:
        labels = (_name(value),)
    _refuse_unknown("label", labels, encoder)
    return labels


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise UnusableError(f"column `label`: expected a number, got `{str(value)[:40]}`")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise UnusableError(f"column `label`: expected a number, got `{str(value)[:40]}`") from None
    if not math.isfinite(number):
        raise UnusableError("column `label`: expected a finite number")
    return repr(number)


def _name(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, int | str) or not str(value).strip():
        raise UnusableError(f"column `label`: expected a name, got `{str(value)[:40]}`")
    return _whole("label", str(value).strip())


def _list_of(row: Row, column: str) -> list[str]:
    value = row.values[column]
    fits = isinstance(value, list | tuple) and all(isinstance(each, int | str) for each in value)
    if not fits or not value:
        raise UnusableError(f"column `{column}`: expected a list of words, got `{str(value)[:40]}`")
    return [_whole(column, str(each)) for each in value]


def _whole(column: str, value: str) -> str:
    """The text, if all of it can be written down again."""
    if LONE_SURROGATE.search(value):
        raise UnusableError(f"column `{column}` holds half a character")
    return value


def _refuse_unknown(column: str, labels: Sequence[str], encoder: Encoder) -> None:
    strange = next((name for name in labels if encoder.labels and name not in encoder.labels), None)
    if strange is not None:
        known = ", ".join(encoder.labels)
        raise UnusableError(f"column `{column}`: `{strange}` is none of `base.labels`: {known}")
