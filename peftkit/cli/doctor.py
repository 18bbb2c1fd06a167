"""`peftkit doctor`."""

from __future__ import annotations

import click

from peftkit.cli import output
from peftkit.cli.options import json_option


@click.command("doctor", epilog="Example: peftkit doctor --json")
@json_option
def command(*, as_json: bool) -> None:
    """Say what this machine can do, which fast paths are on, and why not the rest."""
    from dataclasses import asdict

    from peftkit.pipeline.doctor import examine

    found = list(examine())
    if as_json:
        output.show_json([asdict(ability) for ability in found])
    else:
        output.table(("what", "state", "why"), [(a.name, a.state, a.why) for a in found])
