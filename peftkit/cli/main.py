"""The `peftkit` command: finds the subcommand, runs it, and turns every error into an exit code."""

from __future__ import annotations

import errno
import os
import re
import sys
from importlib import import_module
from typing import TYPE_CHECKING

import click
from typing_extensions import override

from peftkit import __version__
from peftkit.cli import output
from peftkit.cli.group import Group
from peftkit.errors import PeftkitError, RecipeError, WriteError
from peftkit.recipe.spelling import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = {
    "finetune": "Train an adapter as a recipe says, and say whether it worked",
    "plan": "Say what a recipe will cost before it runs",
    "preview": "Show rows as the model will see them",
    "evaluate": "Measure a run, an adapter or a base",
    "generate": "Write text with a base and its adapters",
    "chat": "Talk to a base and its adapters",
    "merge": "Add and subtract adapters, exactly, and say what it cost",
    "fold": "Put an adapter into the weights of its base",
    "extract": "Make an adapter of what a full fine-tune changed",
    "publish": "Check an adapter, write its card and upload it",
    "recipes": "List, show, copy and validate the recipes that ship",
    "schema": "Print the JSON schema of a recipe",
    "doctor": "Say what this machine can do, and why not the rest",
    "runs": "List what ran, when, and how it went",
    "report": "Rebuild the page of a run, or compare several",
}

_START = """\b
Start with:
  peftkit recipes copy quickstart .
  peftkit finetune quickstart.yaml
"""

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


class LazyGroup(Group):
    """A group whose subcommands are imported when they are called, not when they are listed."""

    @override
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    @override
    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"peftkit.cli.{cmd_name}").command
        return command

    @override
    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _show_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:  # noqa: FBT001 - click's call
    if not wanted:
        return
    output.show(f"peftkit {__version__}")
    ctx.exit()


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_START,
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_show_version,
    help="Show the version and exit.",
)
@click.pass_context
def group(ctx: click.Context) -> None:
    """Adapt large language models with few trainable parameters, and know whether it worked."""
    if ctx.invoked_subcommand is None:
        output.say(ctx.get_help())
        ctx.exit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; the only place where errors become codes."""
    output.accept_any_text()
    try:
        return _run(list(sys.argv[1:] if arguments is None else arguments))
    except PeftkitError as error:
        return output.fail(error)
    except click.ClickException as error:
        return output.fail(_usage_error(error))
    except (KeyboardInterrupt, click.Abort):
        output.say("\nstopped")
        return 130
    except BrokenPipeError:
        _let_go_of_stdout()  # the reader has what it wanted, as in `peftkit runs | head`
        return 0
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        _let_go_of_stdout()
        return output.fail(_write_error(error))


def _run(arguments: list[str]) -> int:
    # Not `group.main`: it ends the process itself when a pipe breaks.
    code = 0
    try:
        with group.make_context("peftkit", arguments) as context:
            group.invoke(context)
    except click.exceptions.Exit as end:
        code = end.exit_code
    sys.stdout.flush()
    return code


def _usage_error(error: click.ClickException) -> RecipeError:
    context: click.Context | None = getattr(error, "ctx", None)
    command = f"{context.command_path} " if context else ""
    hint = f"`{command}--help` shows what it takes"
    if isinstance(error, click.MissingParameter) and error.param is not None:
        kind = "argument" if isinstance(error.param, click.Argument) else "option"
        name = error.param.human_readable_name if kind == "argument" else error.param.opts[-1]
        return RecipeError(f"missing {kind} `{name}`", hint=hint)
    if isinstance(error, click.NoSuchOption):
        name = error.option_name
        known = _options(context) if context else []
        return RecipeError(f"no such option `{name}`{did_you_mean(name, known)}", hint=hint)
    message = re.sub(r"'([^']*)'|\(([^)]*)\)", r"`\1\2`", error.format_message()).rstrip(".")
    return RecipeError(message[:1].lower() + message[1:], hint=hint)


def _options(context: click.Context) -> list[str]:
    return [name for option in context.command.get_params(context) for name in option.opts]


def _write_error(error: OSError) -> WriteError:
    reason = (error.strerror or "disk full").lower()
    where = f" `{error.filename}`" if error.filename else ""
    return WriteError(
        f"could not write{where}: {reason}",
        hint="make room, then run the same command again: it goes on where it stopped",
    )


def _let_go_of_stdout() -> None:
    """Keep the interpreter from failing once more, on its way out, at what stdout still holds."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
