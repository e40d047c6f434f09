"""The command line: one file per command, and the one door through which every error leaves.

A user's mistake ends in a sentence and an exit code, never in a traceback. What a command does is decided
elsewhere; here words become values, and values words.
"""

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

import click

from backfill import __version__
from backfill.cli import output
from backfill.core.errors import BackfillError, ExitCode

COMMANDS = ("run", "status", "ledger", "verify", "sandbox")

INTERRUPTED = 128 + 2
READER_GONE = 128 + 13
"""What a shell reports for SIGINT and SIGPIPE; we answer the same though we end by ourselves."""


class _Commands(click.Group):
    """Imports a command when it is asked for, so that `--version` does not wait for polars."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"backfill.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if not args[0].startswith("-") and args[0] not in COMMANDS:
            nearest = difflib.get_close_matches(args[0], COMMANDS, 1, 0.5)
            hint = f"Did you mean '{nearest[0]}'?" if nearest else f"There are: {', '.join(COMMANDS)}."
            raise click.UsageError(f"No such command '{args[0]}'. {hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="backfill", message="%(prog)s %(version)s")
def commands() -> None:
    """Moves exports of historic customer interactions into MXO and accounts for every row.

    \b
    Example: try it on sample data against the built-in sandbox
        backfill run --sandbox sample_data
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and answers the exit code of the process."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Before parsing, since an unknown option must be told as JSON too.
    as_json = "--json" in (words[: words.index("--")] if "--" in words else words)
    output.make_forgiving()
    try:
        try:
            return _run(words, as_json)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes once more on its way out; there is nobody left to hear of that either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    except OSError as error:
        output.tell_error(
            f"Standard output cannot be written ({error.strerror}).", ExitCode.STORAGE_FAILED, as_json=False
        )
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.STORAGE_FAILED


def _run(words: list[str], as_json: bool) -> int:
    try:
        # Not `commands.main`, which answers a reader that went away with exit code 1.
        with commands.make_context("backfill", words) as context:
            code = commands.invoke(context)
            return int(code or ExitCode.COMPLETE)
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.ClickException as error:
        usage = error.ctx.get_usage() if isinstance(error, click.UsageError) and error.ctx else ""
        if isinstance(error, click.exceptions.NoArgsIsHelpError):
            output.log(error.ctx.get_help() if error.ctx else usage)
            return ExitCode.USAGE
        output.tell_error(error.format_message(), ExitCode.USAGE, as_json=as_json, before=usage)
        return ExitCode.USAGE
    except BackfillError as error:
        output.tell_error(error.message, error.exit_code, as_json=as_json)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        output.tell_error("Interrupted.", INTERRUPTED, as_json=as_json)
        return INTERRUPTED
    except (BrokenPipeError, output.CannotWrite, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001  # a panic of polars is no Exception, and is a bug like any other
        output.tell_bug(error, as_json=as_json)
        return ExitCode.BUG
