"""`backfill resolve`: decide rows in doubt, or rows that shall never be sent. Never sends anything."""

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from backfill.cli import options, output, resolved
from backfill.core.resolution import CAUSES, Choice, Decision

if TYPE_CHECKING:
    import polars as pl

    from backfill.resolve import Matter


class _RequestName(click.ParamType[tuple[int, int]]):
    """LOAD/REQUEST, as the ledger has them."""

    name = "LOAD/REQUEST"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        load, slash, request = str(value).partition("/")
        if not (slash and load.isdecimal() and request.isdecimal()):
            self.fail(f"{value!r} is not LOAD/REQUEST, such as 1/4711: the ledger's columns load and request.")
        return int(load), int(request)


class _Instant(click.ParamType[int]):
    """ISO 8601 with an offset, as epoch milliseconds."""

    name = "TIME"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            moment = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f'{value!r} is not ISO 8601. Write it as "2024-01-31T22:00:00Z".')
        if moment.tzinfo is None:
            self.fail(f'{value!r} has no offset. Add "Z" or one such as "+01:00".')
        return round(moment.timestamp() * 1000)


@click.command("resolve", short_help="Decide rows in doubt, or rows that shall never be sent.")
@options.config
@options.state
@options.sandbox_state
@click.option("--load", "loads", type=click.IntRange(1), multiple=True, metavar="N", help="Only this load.")
@click.option("--export", "exports", multiple=True, metavar="NAME", help="Only rows of this export; may be repeated.")
@click.option(
    "--request", "requests", type=_RequestName(), multiple=True, help="Only this request, as the ledger numbers it."
)
@click.option(
    "--cause", "causes", type=click.Choice(CAUSES), multiple=True, help="Only what is in doubt for this cause."
)
@click.option("--since", type=_Instant(), help="Only what was sent then or later (the ledger's sent_at).")
@click.option("--until", type=_Instant(), help="Only what was sent then or earlier.")
@click.option(
    "--delivered", "decision", flag_value="delivered", type=click.UNPROCESSED, help="In doubt: take it as delivered."
)
@click.option(
    "--not-delivered",
    "decision",
    flag_value="not_delivered",
    type=click.UNPROCESSED,
    help="In doubt: the vendor confirmed that it never arrived; the next run sends it again.",
)
@click.option(
    "--resend",
    "decision",
    flag_value="resend",
    type=click.UNPROCESSED,
    help="In doubt: the next run sends it again though it may have arrived; its rows are marked maybe_duplicate.",
)
@click.option(
    "--abandon", "decision", flag_value="abandon", type=click.UNPROCESSED, help="Unsent: it shall never be sent."
)
@click.option("--note", metavar="TEXT", help="Why, kept in the journal.")
@click.option(
    "--rows",
    "rows_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the rows concerned there, as CSV, for the vendor to look up. Holds customers' values.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@options.json
def command(
    config_file: Path | None,
    state: Path | None,
    sandbox: bool,
    loads: tuple[int, ...],
    exports: tuple[str, ...],
    requests: tuple[tuple[int, int], ...],
    causes: tuple[str, ...],
    since: int | None,
    until: int | None,
    decision: str | None,
    note: str | None,
    rows_file: Path | None,
    yes: bool,
    as_json: bool,
) -> int:
    """Decides what nobody can know from here: rows in doubt (delivered or not?), and rows that shall never be sent.

    Without a decision it shows what the filters choose and changes nothing. Rows in doubt are decided by whole
    requests, since a request has one fate; --abandon takes single rows. Never sends anything: that is for the
    next `backfill run`.

    \b
    Examples
        backfill resolve --state .backfill/june --cause crash --rows ask-the-vendor.csv
        backfill resolve --state .backfill/june --cause crash --not-delivered --note "vendor's ticket 4711"
        backfill resolve --state .backfill/june --export wrong.csv --abandon
    """
    from backfill.cli import settings
    from backfill.cli.ledger import csv_header, csv_lines, replaced
    from backfill.resolve import Order, resolve

    place = settings.locate_state(config_file=config_file, state=state, sandbox=sandbox, environment=os.environ)
    settings.existing_state(place)
    order = Order(
        state=place,
        choice=Choice(
            loads=frozenset(loads),
            requests=frozenset(requests),
            causes=frozenset(causes),
            since_ms=since,
            until_ms=until,
        ),
        exports=exports,
        decision=None if decision is None else Decision(decision),
        note=note,
        ledger_key=settings.read_ledger_key(os.environ),
    )

    def confirm(matter: "Matter") -> bool:
        if yes or as_json or not (sys.stdin.isatty() and sys.stderr.isatty()):
            return True
        assert order.decision is not None
        output.log(resolved.matter_text(matter))
        return click.confirm(resolved.QUESTIONS[order.decision], err=True)

    with ExitStack() as resources:
        write: Callable[[pl.DataFrame], object] | None = None
        if rows_file is not None:
            file = resources.enter_context(replaced(rows_file, "--rows"))
            file.write(csv_header())

            def write(lines: "pl.DataFrame") -> object:
                return file.write(csv_lines(lines))

        outcome = resolve(order, confirm=confirm, rows=write, report=lambda _: None)
    written = None if rows_file is None else str(rows_file)
    if as_json:
        output.result_object(resolved.as_json(outcome, str(place), written))
    else:
        output.account(resolved.as_text(outcome, str(place), written))
    return 0
