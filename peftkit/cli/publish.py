"""`peftkit publish RUN REPO`: check an adapter, write its card and upload it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from peftkit.cli import output
from peftkit.cli.options import json_option


@click.command("publish", epilog="Example: peftkit publish runs/chat me/chat-lora --dry-run")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("repo")
@click.option("--public", is_flag=True, help="Let everyone see it; without this it is private.")
@click.option("--dry-run", is_flag=True, help="Write the exact files to a folder, upload nothing.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where a dry run goes; RUN/publish-dry-run unless given.",
)
@click.option(
    "--base", metavar="ID", help="Hub id of the base, where the run used a copy in a folder."
)
@json_option
def command(
    run: Path,
    repo: str,
    *,
    public: bool,
    dry_run: bool,
    out: Path | None,
    base: str | None,
    as_json: bool,
) -> None:
    """Check the adapter of RUN, write its card, and upload both to REPO on the hub.

    RUN is a run folder or an adapter folder. REPO is `owner/name`; it is made private unless
    `--public` is given. The token is the one of `hf auth login`, or HF_TOKEN.
    """
    from peftkit.publish.publish import publish  # heavy: torch

    done = publish(run, repo, public=public, dry_run=dry_run, out=out, base=base)
    for warning in done.warnings:
        output.say(f"warning: {warning}")
    if as_json:
        output.show_json(asdict(done))
        return
    output.table(("file",), [(name,) for name in done.files])
    if dry_run:
        output.say(
            f"\nnothing was uploaded; read {done.folder}/README.md, then run it again "
            "without `--dry-run`"
        )
    else:
        seen = "public" if public else "private"
        output.say(f"\npublished, {seen}: {done.url} at {(done.commit or '')[:8]}")
