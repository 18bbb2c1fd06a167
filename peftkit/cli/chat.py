"""`peftkit chat TARGET`."""

from __future__ import annotations

import sys

import click

from peftkit.cli import output
from peftkit.cli.generate import max_tokens_option, seed_option, temperature_option
from peftkit.cli.options import adapter_option

COMMANDS = "/reset starts over, /quit ends"


@click.command("chat", epilog="Example: peftkit chat runs/quickstart")
@click.argument("target")
@adapter_option
@click.option("--system", help="A system turn before the first one.")
@max_tokens_option
@temperature_option
@seed_option
def command(
    target: str,
    adapters: tuple[str, ...],
    system: str | None,
    max_tokens: int,
    temperature: float,
    seed: int,
) -> None:
    """Talk to TARGET, a line at a time: a run folder, an adapter folder, or a base."""
    import torch

    from peftkit.pipeline.generate import encode_turns, generate
    from peftkit.pipeline.target import open_target

    opened = open_target(target, adapters)
    torch.manual_seed(seed)
    opening = [{"role": "system", "content": system}] if system else []
    turns = list(opening)
    output.say(f"{opened.base.origin.name}; {COMMANDS}")
    while (line := _read_line()) not in (None, "/quit"):
        if line == "/reset":
            turns = list(opening)
            continue
        turns.append({"role": "user", "content": str(line)})
        ids = encode_turns(opened, turns)
        text = generate(
            opened, ids, max_tokens=max_tokens, temperature=temperature, write=output.stream
        )
        output.show("")
        turns.append({"role": "assistant", "content": text})


def _read_line() -> str | None:
    """The next line a person typed, or None at the end."""
    if sys.stdin.isatty():
        output.prompt("> ")
    line = sys.stdin.readline()
    return line.strip() if line else None
