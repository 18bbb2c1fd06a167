"""`peftkit generate TARGET`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from peftkit.cli import output
from peftkit.cli.options import adapter_option, json_option
from peftkit.errors import RecipeError

max_tokens_option = click.option(
    "--max-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="At most."
)
temperature_option = click.option(
    "--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0: greedy."
)
seed_option = click.option("--seed", type=int, default=0, show_default=True, help="For sampling.")
raw_option = click.option(
    "--raw/--templated",
    "raw",
    default=None,
    help="Leave out, or use, the chat template [as the target was trained].",
)


@click.command("generate", epilog='Example: peftkit generate builtin:tiny --prompt "Once upon a"')
@click.argument("target")
@click.option("--prompt", help="Text to go on from; standard input if left out.")
@click.option(
    "--batch",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Lines of prompt and adapter, answered together with greedy choices.",
)
@adapter_option
@max_tokens_option
@temperature_option
@seed_option
@raw_option
@json_option
def command(  # noqa: PLR0913 - one option each
    target: str,
    prompt: str | None,
    batch: Path | None,
    adapters: tuple[str, ...],
    max_tokens: int,
    temperature: float,
    seed: int,
    *,
    raw: bool | None,
    as_json: bool,
) -> None:
    """Write text with TARGET: a run folder, an adapter folder, or a base."""
    if batch is not None:
        _refuse_with_batch(prompt, temperature)
        _answer_batch(target, batch, adapters, max_tokens, raw=raw, as_json=as_json)
        return
    asked = sys.stdin.read() if prompt is None else prompt
    import torch

    from peftkit.pipeline.generate import encode_prompt, generate
    from peftkit.pipeline.target import open_target

    opened = open_target(target, adapters)
    torch.manual_seed(seed)
    templated = opened.templated if raw is None else not raw
    ids = encode_prompt(opened, asked, templated=templated)
    write = (lambda _: None) if as_json else output.stream
    text = generate(opened, ids, max_tokens=max_tokens, temperature=temperature, write=write)
    if as_json:
        output.show_json({"prompt": asked, "text": text, "templated": templated})
    else:
        output.show("")


def _refuse_with_batch(prompt: str | None, temperature: float) -> None:
    if prompt is not None:
        raise RecipeError("--prompt and --batch are both given", hint="leave one of them out")
    if temperature:
        raise RecipeError(
            "--temperature: what --batch answers is chosen greedily",
            hint="`--prompt` samples, one at a time",
        )


def _answer_batch(
    target: str,
    batch: Path,
    adapters: tuple[str, ...],
    max_tokens: int,
    *,
    raw: bool | None,
    as_json: bool,
) -> None:
    """Show one line of JSON a prompt, or all in one list."""
    from peftkit.pipeline.batch import answer_requests, read_requests
    from peftkit.pipeline.target import open_target

    requests = read_requests(batch)
    opened = open_target(target, adapters, apart=True)
    templated = opened.templated if raw is None else not raw
    found = answer_requests(
        opened, requests, max_tokens=max_tokens, templated=templated, say=output.say
    )
    if as_json:
        output.show_json(found)
        return
    for answer in found:
        output.show(json.dumps(answer, ensure_ascii=False))
