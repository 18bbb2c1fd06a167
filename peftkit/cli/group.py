"""A group of commands that says which command was probably meant."""

from __future__ import annotations

import click
from typing_extensions import override

from peftkit.errors import RecipeError
from peftkit.recipe.spelling import did_you_mean


class Group(click.Group):
    """Lists commands in their own order, and refuses an unknown one in the words of every error."""

    @override
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    @override
    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if not args[0].startswith("-") and args[0] not in known:
            raise RecipeError(
                f"no such command `{args[0]}`{did_you_mean(args[0], known)}",
                hint=f"`{ctx.command_path} --help` lists the commands",
            )
        return super().resolve_command(ctx, args)
