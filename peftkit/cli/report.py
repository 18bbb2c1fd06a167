"""`peftkit report RUN…`."""

from __future__ import annotations

from pathlib import Path

import click

from peftkit.cli import output
from peftkit.errors import RecipeError, WriteError


@click.command("report", epilog="Example: peftkit report runs/a runs/b --out compare.html")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("comparison.html"),
    show_default=True,
    help="Where the page of several runs goes.",
)
def command(runs: tuple[Path, ...], out: Path) -> None:
    """Rebuild the page of one run or merge, or put several runs on one page."""
    from peftkit.report.merge_page import is_merge, write_merge_report

    if len(runs) == 1 and is_merge(runs[0]):
        output.show(str(write_merge_report(runs[0])))
        return
    for run in runs:
        if not (run / "recipe.resolved.json").exists():
            raise RecipeError(
                f"`{run}` is not a run folder: it has no recipe.resolved.json",
                hint="`peftkit runs` lists them",
            )
    from peftkit.report.page import build_comparison, write_report

    if len(runs) == 1:
        output.show(str(write_report(runs[0])))
        return
    try:
        out.write_text(build_comparison(runs), encoding="utf-8")
    except OSError as problem:
        raise WriteError(f"cannot write `{out}`: {problem.strerror or problem}") from None
    output.show(str(out))
