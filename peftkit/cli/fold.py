"""`peftkit fold ADAPTER`."""

from __future__ import annotations

from pathlib import Path

import click

from peftkit.cli import output
from peftkit.cli.options import json_option, without_option

WORST = 5
"""Tensors that are listed."""


@click.command("fold", epilog="Example: peftkit fold runs/chat --out folded")
@click.argument("adapter")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Of the new model.")
@click.option("--base", metavar="MODEL", help="The base [as the adapter names it].")
@without_option
@json_option
def command(
    adapter: str, out: Path, base: str | None, left_out: tuple[str, ...], *, as_json: bool
) -> None:
    """Write the base of ADAPTER with the adapter in its weights, and say what rounding lost."""
    from peftkit.pipeline.fold import fold

    found = fold(adapter, out, base=base, left_out=left_out)
    facts = {"folder": str(found.folder), "relative": found.relative, "lost": found.lost}
    if as_json:
        output.show_json(facts)
        return
    worst = sorted(found.lost.items(), key=lambda item: -item[1])[:WORST]
    output.table(("tensor", "lost of its change"), worst)
    output.show(f"\nlost     {found.relative:.3g} of the change, by rounding")
    output.show(f"model    {found.folder}")
