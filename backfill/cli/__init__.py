"""The command line: one file per command, and the one door through which every error leaves.

A user's mistake ends in a sentence and an exit code, never in a traceback. What a command does is decided
elsewhere; here words become values, and values words.
"""

import contextlib
import difflib
import importlib
import os
import re
import sys
from collections.abc import Iterable, Sequence

import click
from click.shell_completion import shell_complete

from backfill import __version__
from backfill.cli import output, signals
from backfill.core.errors import BackfillError, ExitCode

COMMANDS = ("run", "plan", "check", "status", "ledger", "verify", "resolve", "send", "sandbox")

_COMPLETE = "_BACKFILL_COMPLETE"
"""With this in its environment the program answers a shell that completes a command line, as click defines it."""

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
            nearest = _nearest(args[0], COMMANDS)
            hint = f"Did you mean '{nearest}'?" if nearest else f"There are: {', '.join(COMMANDS)}."
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
    signals.as_an_exception()


_kept: list[contextlib.ExitStack] = []
"""What this process never undoes. Held here, or it would be undone as garbage."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and answers its exit code. Without `arguments` it takes those of the process, which then ends."""
    if arguments is None:
        output.make_discreet()
    with contextlib.ExitStack() as afterwards:
        try:
            return _answer(list(sys.argv[1:] if arguments is None else arguments), afterwards)
        finally:
            if arguments is None:
                # What a signal meant before must not come back: a late one would turn our answer into a death.
                _kept.append(afterwards.pop_all())
                signals.as_the_end()


def _answer(words: list[str], afterwards: contextlib.ExitStack) -> int:
    # Before parsing, since an unknown option must be told as JSON too.
    as_json = "--json" in (words[: words.index("--")] if "--" in words else words)
    output.make_forgiving()
    try:
        try:
            return _run(words, as_json, afterwards)
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


def _run(words: list[str], as_json: bool, afterwards: contextlib.ExitStack) -> int:
    if instruction := os.environ.get(_COMPLETE):
        return shell_complete(commands, {}, "backfill", _COMPLETE, instruction)
    try:
        # Not `commands.main`, which answers a reader that went away with exit code 1.
        with commands.make_context("backfill", words, obj=afterwards) as context:
            code = commands.invoke(context)
            return int(code or ExitCode.COMPLETE)
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.ClickException as error:
        usage = error.ctx.get_usage() if isinstance(error, click.UsageError) and error.ctx else ""
        if isinstance(error, click.exceptions.NoArgsIsHelpError):
            output.log(error.ctx.get_help() if error.ctx else usage)
            return ExitCode.USAGE
        output.tell_error(_told(error), ExitCode.USAGE, as_json=as_json, before=usage)
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


def _told(error: click.ClickException) -> str:
    """What click says, with the nearest word that would have been right, and in the words of a person."""
    said = error.format_message()
    if isinstance(error, click.NoSuchOption):
        nearest = _nearest(error.option_name, error.possibilities or ())
        hint = f"Did you mean '{nearest}'?" if nearest else "See --help."
        return f"No such option '{error.option_name}'. {hint}"
    if isinstance(error, click.BadParameter) and error.param is not None:
        kind = error.param.type
        if isinstance(kind, click.Choice) and (wrong := re.search(r"'([^']*)' is not one of", said)):
            nearest = _nearest(wrong[1], [str(choice) for choice in kind.choices])
            return f"{said} Did you mean '{nearest}'?" if nearest else said
        if isinstance(kind, click.IntRange | click.FloatRange):
            number = "whole number" if isinstance(kind, click.IntRange) else "number"
            return re.sub(r" is not a valid (integer|float) range\.", f" is no {number}.", said)
    return said


def _nearest(word: str, known: Iterable[str]) -> str | None:
    """Without the dashes, which are alike in all options and would make any two of them look related."""
    spelled = {each.lstrip("-"): each for each in known}
    return next((spelled[each] for each in difflib.get_close_matches(word.lstrip("-"), spelled, 1, 0.6)), None)
