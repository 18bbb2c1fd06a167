"""`peftkit fold ADAPTER`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from peftkit.cli import output
from peftkit.cli.options import json_option, without_option
from peftkit.errors import RecipeError

WORST = 5
"""Tensors that are listed."""


@click.command("fold", epilog="Example: peftkit fold runs/chat --out folded")
@click.argument("adapter", default="")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Of the new model.")
@click.option(
    "--undo",
    type=click.Path(path_type=Path),
    metavar="FOLDED",
    help="Write the base of a folded model as it was, bit for bit.",
)
@click.option("--base", metavar="MODEL", help="The base [as the adapter names it].")
@without_option
@json_option
def command(
    adapter: str,
    out: Path,
    undo: Path | None,
    base: str | None,
    left_out: tuple[str, ...],
    *,
    as_json: bool,
) -> None:
    """Write the base of ADAPTER with the adapter in its weights, and say what rounding lost.

    With `--undo` write the base again that a folded model was made of; no ADAPTER is needed.
    """
    if bool(adapter) == (undo is not None):
        raise RecipeError(
            "what shall be done? expected an ADAPTER to fold, or `--undo FOLDED`",
            hint="`peftkit fold ADAPTER --out DIR`, or `peftkit fold --undo FOLDED --out DIR`",
        )
    if undo is not None:
        _undo(undo, out, as_json=as_json)
        return
    from peftkit.pipeline.fold import fold

    found = fold(adapter, out, base=base, left_out=left_out)
    facts: dict[str, Any] = {"folder": str(found.folder), "relative": found.relative}
    facts |= {"lost": found.lost, "undo_bytes": found.undo_bytes}
    if as_json:
        output.show_json(facts)
        return
    worst = sorted(found.lost.items(), key=lambda item: -item[1])[:WORST]
    output.table(("tensor", "lost of its change"), worst)
    output.show(f"\nlost     {found.relative:.3g} of the change, by rounding")
    output.show(
        f"undo     {output.size(found.undo_bytes)} beside it gives the base back, bit for bit"
    )
    output.show(f"model    {found.folder}")


def _undo(folded: Path, out: Path, *, as_json: bool) -> None:
    from peftkit.merge.undo import undo_fold

    digests = undo_fold(folded, out)
    if as_json:
        output.show_json({"folder": str(out), "files": digests})
        return
    output.table(("file", "sha256"), list(digests.items()))
    output.show(f"\nbase     {out}, bit for bit as it was")
