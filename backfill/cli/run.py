"""`backfill run`: stage, deliver, settle.

Turns options into an order, signals into a stop, and the summary into words. Whatever is decided about rows is
decided below.
"""

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from backfill.cli import options, output, render
from backfill.cli.signals import Watch
from backfill.core.address import Address
from backfill.core.errors import StoppedEarly, Unusable
from backfill.core.stop import Stop
from backfill.core.wording import nothing_to_go_on_with

if TYPE_CHECKING:
    from backfill.adapters.state import StateDirectory


@click.command("run", short_help="Stage, deliver and settle exports; or go on with what is unfinished.")
@click.argument("exports", nargs=-1, type=options.EXPORT, metavar="[EXPORT]...")
@options.config
@options.state
@options.sets
@click.option("--sandbox", is_flag=True, help="Deliver to a sandbox started for this execution; state <name>.sandbox.")
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", help="A trial: at most N interactions, then stop (75)."
)
@click.option(
    "--changed", is_flag=True, help="Take known exports whose content has changed as new; only new rows are sent."
)
@click.option("--require-state", is_flag=True, help="Refuse (78) to begin a job that has no state yet.")
@options.json
def command(
    exports: tuple[Path | Address, ...],
    config_file: Path | None,
    state: Path | None,
    sets: tuple[str, ...],
    sandbox: bool,
    limit: int | None,
    changed: bool,
    require_state: bool,
    as_json: bool,
) -> int:
    """Stages, delivers and settles exports: CSV or Parquet files, directories of them, or globs; also
    s3://, gs:// and az://, with the credentials that the environment names as usual for them.

    Without EXPORT it goes on with what is unfinished. Running the same command again is always safe: what was
    delivered is not sent again. Credentials are read from BACKFILL_CLIENT_ID and BACKFILL_CLIENT_SECRET, or
    BACKFILL_TOKEN. HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY are honoured.

    \b
    Example
        backfill run --config june.toml exports/june-*.csv
    """
    if Path("-") in exports:
        raise click.UsageError(
            "Standard input cannot be an export: after a crash it could not be read again. Write it to a file first."
        )
    stop = Stop()
    watch = click.get_current_context().ensure_object(contextlib.ExitStack).enter_context(Watch(stop, as_json=as_json))
    from backfill.adapters.state import StateDirectory
    from backfill.cli import settings

    chosen = settings.choose(
        config_file=config_file,
        state=state,
        sets=sets,
        sandbox=sandbox,
        exports=exports,
        environment=os.environ,
    )
    credentials = settings.SANDBOX_CREDENTIALS if sandbox else settings.read_credentials(os.environ)
    ledger_key = settings.read_ledger_key(os.environ)
    if stop.requested:
        raise StoppedEarly("Stopped by a signal before anything was begun. Run the same command again.")
    directory = StateDirectory(chosen.state)
    _may_begin(directory, exports, require_state)
    with contextlib.ExitStack() as resources:
        # Before polars is imported and a sandbox started: who finds the job held shall know soon, and touch nothing.
        resources.enter_context(directory.lock("run"))
        with watch.importing():
            from backfill.cli import embedded, progress
            from backfill.core.proxy import Proxies
            from backfill.run import Order, execute
        connect_to = None
        if sandbox:
            connect_to = resources.enter_context(
                embedded.sandbox(directory.path / "sandbox", stopped=lambda: stop.requested)
            )
        with progress.shown() as report:
            summary = execute(
                Order(
                    config=chosen.config,
                    exports=exports,
                    state=chosen.state,
                    credentials=credentials,
                    changed=changed,
                    limit=limit,
                    ledger_key=ledger_key,
                    connect_to=connect_to,
                    # The embedded sandbox is on this machine, where no proxy leads.
                    proxies=Proxies() if sandbox else Proxies.named_in(os.environ),
                ),
                report=report,
                stop=stop,
            )
    for warning in summary.warnings:
        output.log(f"Warning: {warning}")
    watch.answered = True
    if as_json:
        output.result_object(render.summary_json(summary))
    else:
        output.account(render.summary_text(summary))
    return int(summary.exit_code)


def _may_begin(directory: "StateDirectory", exports: tuple[Path | Address, ...], require_state: bool) -> None:
    """Raises: Unusable where there is no state and none may be made. Asked before the lock, which would make one."""
    if directory.exists():
        return
    if not exports:
        raise Unusable(nothing_to_go_on_with(directory.path))
    if require_state:
        raise Unusable(
            f"{directory.path} holds no job, and --require-state forbids to begin one: rows that were sent from "
            "elsewhere would be sent again. Bring the state directory here, or name the right --state."
        )
