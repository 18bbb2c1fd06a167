"""`peftkit extract TUNED BASE`."""

from __future__ import annotations

from pathlib import Path

import click

from peftkit.cli import output
from peftkit.cli.options import energy_option, json_option, refuse_two_cuts, without_option


@click.command("extract", epilog="Example: peftkit extract tuned base --out adapter --rank 16")
@click.argument("tuned")
@click.argument("base")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Of the adapter.")
@click.option("--rank", type=click.IntRange(min=1), help="The most that a layer may keep [16].")
@energy_option
@without_option
@json_option
def command(
    tuned: str,
    base: str,
    out: Path,
    rank: int | None,
    energy: float | None,
    left_out: tuple[str, ...],
    *,
    as_json: bool,
) -> None:
    """Make a low-rank adapter of what a full fine-tune TUNED changed of BASE, and say its error."""
    refuse_two_cuts(rank, energy)
    from peftkit.pipeline.fold import extract

    usual = 16 if rank is None and energy is None else rank
    facts = extract(tuned, base, out, rank=usual, energy=energy, left_out=left_out)
    if as_json:
        output.show_json(facts)
        return
    output.table(
        ("rank", "error"), [(each["rank"], each["error"]) for each in facts["error_by_rank"]]
    )
    output.show(f"\nerror    {facts['error']:.3g} of the change")
    output.show(f"adapter  {facts['out']}")
