"""`backfill check`: the configuration explained, columns matched, a token asked for; with --probe the form on the wire.

Decides nothing: what is found becomes words here, and whoever is there is asked before a probe costs licence.
"""

import contextlib
import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from backfill.cli import options, output
from backfill.cli.signals import Watch
from backfill.core.address import Address
from backfill.core.errors import BackfillError, ExitCode
from backfill.core.stop import Stop

if TYPE_CHECKING:
    from backfill.cli.settings import Settings

T = TypeVar("T")


@click.command("check", short_help="Explain configuration, columns and credentials; --probe finds the tenant's form.")
@click.argument("exports", nargs=-1, type=options.EXPORT, metavar="[EXPORT]...")
@options.config
@options.state
@options.sets
@click.option(
    "--probe",
    is_flag=True,
    help="Deliver one row of EXPORT in one form after the other until one is taken: at most 8 real calls. Asks first.",
)
@click.option("--yes", is_flag=True, help="Do not ask before a probe.")
@options.json
def command(
    exports: tuple[Path | Address, ...],
    config_file: Path | None,
    state: Path | None,
    sets: tuple[str, ...],
    probe: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """Shows each value of the configuration and where it came from, how the columns of EXPORT are matched, and whether
    the credentials are granted a token (asked for once, if there are any; nothing is sent).

    Answers 0 if all of this is sound (also without credentials, which is told), 78 where something must be changed, 77
    where the credentials are refused, 75 where no token is to be had now.

    With --probe it delivers one row of EXPORT for real, in one form of [wire] after the other, and prints the
    lines to keep. A refused call applies nothing; the one that is taken is journaled, stands in the ledger, and is
    never sent again by `backfill run`. It stops at any reply that leaves doubt (4). The exports are staged as by
    `backfill run`, anew for each form, so name a small one.

    \b
    Examples
        backfill check --config june.toml exports/june-*.csv
        backfill check --config june.toml --probe exports/june-01.csv
    """
    if yes and not probe:
        raise click.UsageError("--yes answers the question of --probe, so it needs that option.")
    if probe and not exports:
        raise click.UsageError(
            "--probe delivers a row of an export: name one. Every row of it becomes part of the job."
        )
    _may_ask(probe=probe, yes=yes, as_json=as_json)
    from backfill import check
    from backfill.adapters.state import StateDirectory
    from backfill.cli import checked, settings
    from backfill.core.proxy import Proxies

    chosen = settings.choose(
        config_file=config_file, state=state, sets=sets, sandbox=False, exports=exports, environment=os.environ
    )
    credentials = settings.read_credentials(os.environ)
    ledger_key = settings.read_ledger_key(os.environ)
    secrets = settings.where_secrets_are(os.environ)
    proxies = Proxies.named_in(os.environ)
    wanted = probe or any(secrets[name] for name in settings.SECRETS[:3])
    directory = StateDirectory(chosen.state)
    # All of what is wrong is told at once: each of these is looked at, whatever came of the others.
    problems: list[BackfillError] = []
    gather = functools.partial(_gathered, problems)
    job = gather(directory.read_job)
    gather(lambda: check.require_ledger_key(ledger_key, job, chosen.config))
    found = checked.Checked(
        settings=chosen,
        has_job=directory.exists(),
        secrets=secrets,
        ways=gather(lambda: check.ways(chosen.config, proxies)) or (),
        exports=gather(lambda: check.match(exports, chosen.config)) if exports else None,
        token=gather(lambda: check.ask_for_token(chosen.config, credentials, proxies)) if wanted else None,
        has_credentials=wanted,
        problems=tuple(problems),
    )
    if probe and found.exit_code is ExitCode.COMPLETE:
        if not yes and not _agreed(chosen, exports):
            output.log("Nothing was sent.")
            return 0
        # Only from here on is there anything to end in good order; until now Ctrl-C simply ends it.
        stop = Stop()
        resources = click.get_current_context().ensure_object(contextlib.ExitStack)
        watch = resources.enter_context(Watch(stop, as_json=as_json))
        with directory.lock("check"):
            from backfill.cli import progress

            order = check.Order(
                config=chosen.config,
                exports=exports,
                state=chosen.state,
                credentials=credentials,
                proxies=proxies,
                ledger_key=ledger_key,
            )
            with progress.shown() as report:
                found = dataclasses.replace(found, probed=check.probe(order, stop=stop, report=report))
        watch.answered = True
    if as_json:
        output.result_object(checked.as_json(found))
    else:
        output.result(checked.as_text(found))
    return int(found.exit_code)


def _gathered(problems: "list[BackfillError]", look: Callable[[], T]) -> T | None:
    try:
        return look()
    except BackfillError as error:
        problems.append(error)
        return None


def _may_ask(*, probe: bool, yes: bool, as_json: bool) -> None:
    if probe and not yes and (as_json or not (sys.stdin.isatty() and sys.stderr.isatty())):
        raise click.UsageError(
            "--probe makes real calls, and there is no terminal to ask on. Add --yes if that is what you want."
        )


def _agreed(chosen: "Settings", exports: Sequence[Path | Address]) -> bool:
    named = str(exports[0]) if len(exports) == 1 else f"{exports[0]} and {len(exports) - 1} more"
    output.log(
        f"A probe delivers one row of {named} for real, to {chosen.config.api.base_url}: at most 8 calls, of "
        "which the API takes at most one. Each costs licence. The row is recorded in the customer's history, and the "
        f"exports become part of the job in {chosen.state}."
    )
    return click.confirm("Deliver it?", err=True)
