"""`backfill status`: how a job stands, also while another process runs it.

Reads job.toml, status.json and the ledger's manifest, each replaced as a whole by whoever writes it; never touches
the lock or the journal.
"""

import os
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from backfill.cli import options, output, render


@click.command("status", short_help="Show how a job stands, also while it runs.")
@options.config
@options.state
@options.sandbox_state
@options.json
def command(config_file: Path | None, state: Path | None, sandbox: bool, as_json: bool) -> int:
    """Shows how a job stands, also while another process runs it.

    \b
    Example
        backfill status --state .backfill/june
    """
    from backfill.cli import settings

    place = settings.locate_state(config_file=config_file, state=state, sandbox=sandbox, environment=os.environ)
    view = look(place)
    if as_json:
        output.result_object(render.status_json(view))
    else:
        output.account(render.status_text(view, datetime.now(UTC)))
    return 0


def look(place: Path) -> render.JobView:
    """How the job in a state directory stands. Raises: Unusable where there is none, StorageError."""
    from backfill.adapters.ledger import Ledger, Manifest, Unreadable
    from backfill.cli.settings import existing_state
    from backfill.core.summary import ExportCounts

    directory = existing_state(place)
    job = directory.read_job()
    status = directory.read_status()
    try:
        manifest = Ledger(place).read_manifest() or Manifest()
    except Unreadable as error:
        output.log(f"Warning: {error}. The next `backfill run` writes it anew.")
        manifest = Manifest()
    unknown = {load.load for load in manifest.loads} - {load.load for load in (job.loads if job is not None else ())}
    if unknown:
        output.log(
            f"Warning: {place / 'job.toml'} is missing or older than the ledger: it does not know load {min(unknown)}. "
            "Restore it from a backup; do not begin anew, or rows would be sent again."
        )
    complete = {load.load for load in manifest.loads if load.complete}
    return render.JobView(
        state=str(place),
        tenant=None if job is None else f"{job.tenant.base_url}, site key {job.tenant.site_key}, {job.tenant.call}",
        status=status,
        alive=None if status is None else alive(status),
        accounted=[
            ExportCounts(export=export.export, load=load.load, read=export.read, outcomes=export.outcomes)
            for load in manifest.loads
            if load.complete
            for export in load.exports
        ],
        unaccounted=[
            (load.load, [(export.path, export.rows) for export in load.exports])
            for load in (job.loads if job is not None else ())
            if load.load not in complete
        ],
        ledger_as_of=manifest.written_at or None,
    )


def alive(status: Mapping[str, Any]) -> bool | None:
    """Whether the process that wrote the status still runs; None where that cannot be known from here."""
    pid = status.get("pid")
    if status.get("host") != socket.gethostname() or not isinstance(pid, int) or pid <= 0:
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
