"""Answers to a file of prompts, each by the adapter that its line names."""

from __future__ import annotations

import json
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from peftkit.adapters.several import acting, refuse_mixing
from peftkit.errors import InputError
from peftkit.evaluate.generation import answer_all
from peftkit.evaluate.mixed import answer_mixed
from peftkit.pipeline.generate import encode_prompt

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from peftkit.pipeline.target import Target

KEYS = ("prompt", "adapter")
SHOWN = 20
"""Bad lines named in one message; the rest are counted."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt, and who shall answer it."""

    prompt: str
    adapter: str | None
    """A name given with `--adapter`, `base`, or `None` for the target itself."""


def read_requests(path: Path) -> list[Request]:
    """The lines of a jsonl file of `prompt` and, where it is not the target itself, `adapter`.

    Raises:
        InputError: a line is not one, all of them at once.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise InputError(f"`{path}` cannot be read: {problem}") from None
    read = [(number, _read(line)) for number, line in enumerate(lines, 1) if line.strip()]
    wrong = [f"{path}:{number}: {found}" for number, found in read if isinstance(found, str)]
    if wrong or not read:
        more = [f"and {len(wrong) - SHOWN} more"] if len(wrong) > SHOWN else []
        raise InputError(
            f"`{path}` is not a file of prompts" if read else f"`{path}` holds no prompts",
            problems=[*wrong[:SHOWN], *more],
            hint='a line is `{"prompt": "Once upon a", "adapter": "chat"}`',
        )
    return [found for _, found in read if isinstance(found, Request)]


def answer_requests(
    target: Target,
    requests: Sequence[Request],
    *,
    max_tokens: int,
    templated: bool,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Prompt, adapter and greedy answer of each, in the order asked.

    Raises:
        InputError: an adapter that is asked for is not there.
    """
    _refuse_unknown(target, requests)
    wanted = [target.choices[request.adapter] for request in requests]
    prompts = [encode_prompt(target, each.prompt, templated=templated) for each in requests]
    tokenizer, stops = target.base.tokenizer, target.stops
    if not any(wanted) and not acting(target.model):
        answers = answer_all(target.model, prompts, tokenizer, stops=stops, room=max_tokens)
    else:
        if len(set(wanted)) > 1 and (reason := refuse_mixing(target.model, wanted)):
            say(f"answering adapter by adapter: {reason}")
        answers = answer_mixed(
            target.model, prompts, wanted, tokenizer, stops=stops, room=max_tokens
        )
    return [
        {"prompt": request.prompt, "adapter": request.adapter, "text": answer.text}
        for request, answer in zip(requests, answers, strict=True)
    ]


def _read(line: str) -> Request | str:
    """The request of a line, or what is wrong with it."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as problem:
        return f"not JSON: {problem}"
    if not isinstance(values, dict):
        return f"expected an object, got {type(values).__name__}"
    if strange := sorted(set(values) - set(KEYS)):
        return f"`{strange[0]}`: unknown key; expected `prompt` or `adapter`"
    prompt, adapter = values.get("prompt"), values.get("adapter")
    if not isinstance(prompt, str) or not prompt:
        return "prompt: expected text"
    if adapter is not None and not isinstance(adapter, str):
        return "adapter: expected a name, or null for the target itself"
    return Request(prompt, adapter)


def _refuse_unknown(target: Target, requests: Sequence[Request]) -> None:
    known = [name for name in target.choices if name is not None]
    strange = {each.adapter for each in requests if each.adapter not in target.choices}
    problems = []
    for name in sorted(filter(None, strange)):
        close = get_close_matches(name, known, n=1)
        problems.append(f"`{name}`" + (f"; did you mean `{close[0]}`?" if close else ""))
    if problems:
        raise InputError(
            "the prompts name adapters that are not there",
            problems=problems,
            hint=f"there are: {', '.join(known) or 'none'}; `--adapter NAME=DIR` adds one",
        )
