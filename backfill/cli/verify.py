"""`backfill verify`: does everything on disk agree?"""

import os
from pathlib import Path

import click

from backfill.cli import options, output, render
from backfill.core.errors import ExitCode


@click.command("verify", short_help="Recompute a job's account from its files.")
@options.config
@options.state
@options.sandbox_state
@options.json
def command(config_file: Path | None, state: Path | None, sandbox: bool, as_json: bool) -> int:
    """Recomputes equation, outcomes and checksums of a job from its files alone.

    Answers 0, or 74 where something does not agree. Changes nothing. While an execution runs it answers 11, and an
    execution that starts meanwhile does so as well.

    \b
    Example
        backfill verify --state .backfill/june
    """
    from backfill.cli import settings

    place = settings.locate_state(config_file=config_file, state=state, sandbox=sandbox, environment=os.environ)
    # Held, since the journal can be read by one process alone: a run would otherwise wait for it, and fail (74).
    with settings.existing_state(place).lock("verify"):
        from backfill import verify

        verdict = verify.verify(place, settings.read_ledger_key(os.environ))
    checks = [(check.name, check.ok, check.detail) for check in verdict.checks]
    if as_json:
        output.result_object(render.verdict_json(checks, verdict.exports))
    else:
        output.account(render.verdict_text(checks, verdict.exports, verify.CHECKS))
    return ExitCode.COMPLETE if verdict.ok else ExitCode.STORAGE_FAILED
