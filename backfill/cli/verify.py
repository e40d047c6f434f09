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

    Answers 0, or 74 where something does not agree. Changes nothing. No execution may run meanwhile.

    \b
    Example
        backfill verify --state .backfill/june
    """
    from backfill import verify
    from backfill.cli import settings

    place = settings.locate_state(config_file=config_file, state=state, sandbox=sandbox, environment=os.environ)
    settings.existing_state(place)
    verdict = verify.verify(place)
    checks = [(check.name, check.ok, check.detail) for check in verdict.checks]
    if as_json:
        output.result_object(render.verdict_json(checks, verdict.exports))
    else:
        output.result(render.verdict_text(checks, verdict.exports, verify.CHECKS))
    return ExitCode.COMPLETE if verdict.ok else ExitCode.STORAGE_FAILED
