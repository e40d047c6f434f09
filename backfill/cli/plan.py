"""`backfill plan`: what a run of these exports would do, before anything is sent. Touches no network and no state."""

import contextlib
import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import click

from backfill.cli import options, output
from backfill.core.address import Address


@click.command("plan", short_help="What a run would do: rows, cost, duration, and what is wrong with which rows.")
@click.argument("exports", nargs=-1, required=True, type=options.EXPORT, metavar="EXPORT...")
@options.config
@options.state
@options.sets
@click.option("--sandbox", is_flag=True, help="Plan what `run --sandbox` would do: its state, no tenant needed.")
@click.option(
    "--latency",
    "latency_s",
    type=click.FloatRange(min=0),
    default=0.2,
    show_default=True,
    metavar="SECONDS",
    help="How long the API takes for a call; estimates rest on it.",
)
@click.option(
    "--show",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    metavar="N",
    help="Show the JSON of the first N interactions, as it would be sent.",
)
@options.json
def command(
    exports: tuple[Path | Address, ...],
    config_file: Path | None,
    state: Path | None,
    sets: tuple[str, ...],
    sandbox: bool,
    latency_s: float,
    show: int,
    as_json: bool,
) -> int:
    """Tells what `run` would do with these exports: rows, invalid ones by reason with examples, duplicates, calls
    (which cost licence), how long it takes, the busiest customers, and the JSON of the first interactions.

    Needs no network and no credentials, and changes nothing; while it reads, an outline of the rows lies in a temporary
    directory (TMPDIR). Shows customers' values. Answers 78 where `run` would refuse the exports, else 0.

    \b
    Example
        backfill plan --config june.toml exports/june-*.csv
    """
    if Path("-") in exports:
        raise click.UsageError("Standard input cannot be an export: `run` could not read it again. Write it to a file.")
    from backfill.cli import planned, progress, settings
    from backfill.plan import Order, plan

    chosen = settings.choose(
        config_file=config_file, state=state, sets=sets, sandbox=sandbox, exports=exports, environment=os.environ
    )
    with _signals_clean_up(), progress.shown() as report:
        found = plan(
            Order(config=chosen.config, exports=exports, state=chosen.state, latency_s=latency_s, show=show),
            now=datetime.now(UTC),
            report=report,
        )
    for warning in found.warnings:
        output.log(f"Warning: {warning}")
    if as_json:
        output.result_object(planned.as_json(found, chosen.config, latency_s))
    else:
        output.result(planned.as_text(found, chosen.config, latency_s))
    return int(planned.exit_code(found))


@contextlib.contextmanager
def _signals_clean_up() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP remove the temporary directory, too, before they end us. Ctrl-C does by itself."""

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {
        number: signal.signal(number, end)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is signal.SIG_DFL
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
