"""`backfill run`: stage, deliver, settle.

Turns options into an order, signals into a stop, and the summary into words. Whatever is decided about rows is
decided below.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from backfill.cli import options, output, render

if TYPE_CHECKING:
    from backfill.run import Stop


@click.command("run", short_help="Stage, deliver and settle exports; or go on with what is unfinished.")
@click.argument("exports", nargs=-1, type=click.Path(path_type=Path), metavar="[EXPORT]...")
@options.config
@options.state
@options.sets
@click.option("--sandbox", is_flag=True, help="Deliver to a sandbox started for this execution; state <name>.sandbox.")
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", help="A trial: at most N interactions, then stop (75)."
)
@click.option("--require-state", is_flag=True, help="Refuse (78) to begin a job that has no state yet.")
@options.json
def command(
    exports: tuple[Path, ...],
    config_file: Path | None,
    state: Path | None,
    sets: tuple[str, ...],
    sandbox: bool,
    limit: int | None,
    require_state: bool,
    as_json: bool,
) -> int:
    """Stages, delivers and settles exports: CSV or Parquet files, directories of them, or globs.

    Without EXPORT it goes on with what is unfinished. Running the same command again is always safe: what was
    delivered is not sent again. Credentials are read from BACKFILL_CLIENT_ID and BACKFILL_CLIENT_SECRET, or
    BACKFILL_TOKEN.

    \b
    Example
        backfill run --config june.toml exports/june-*.csv
    """
    if Path("-") in exports:
        raise click.UsageError(
            "Standard input cannot be an export: after a crash it could not be read again. Write it to a file first."
        )
    from backfill.adapters.state import StateDirectory
    from backfill.cli import embedded, progress, settings
    from backfill.run import Order, Stop, execute

    stop = Stop()
    with _signals(stop), contextlib.ExitStack() as resources:
        chosen = settings.choose(
            config_file=config_file,
            state=state,
            sets=sets,
            sandbox=sandbox,
            exports=exports,
            environment=os.environ,
        )
        connect_to = None
        credentials = settings.SANDBOX_CREDENTIALS if sandbox else settings.read_credentials(os.environ)
        if sandbox:
            directory = StateDirectory(chosen.state)
            directory.prepare()
            connect_to = resources.enter_context(embedded.sandbox(directory.path / "sandbox"))
        with progress.shown() as report:
            summary = execute(
                Order(
                    config=chosen.config,
                    exports=exports,
                    state=chosen.state,
                    credentials=credentials,
                    limit=limit,
                    require_state=require_state,
                    connect_to=connect_to,
                ),
                report=report,
                stop=stop,
            )
    for warning in summary.warnings:
        output.log(f"Warning: {warning}")
    if as_json:
        output.result_object(render.summary_json(summary))
    else:
        output.result(render.summary_text(summary))
    return int(summary.exit_code)


@contextlib.contextmanager
def _signals(stop: "Stop") -> Iterator[None]:
    """SIGTERM, SIGINT and SIGHUP ask for a stop while this lasts; afterwards they mean again what they meant before."""
    asked = 0

    def handle(*_: object) -> None:
        nonlocal asked
        asked += 1
        stop.request()
        if asked == 1:
            # Straight to the descriptor: the handler may have interrupted a buffered write.
            with contextlib.suppress(OSError):
                os.write(
                    2, b"\nStopping: nothing new is sent, what is in flight is waited for. Once more stops at once.\n"
                )

    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
        # A dropped connection to the terminal would otherwise kill the run, and leave what is in flight in doubt.
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
