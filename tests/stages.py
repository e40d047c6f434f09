"""A job brought to a stage once and copied back again and again, for tests in which the world then changes.

The copies begin with the same files, to their times, and share one server: each sees only its own part of the log.
"""

import functools
import json
import os
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.command import Job, Server, agree, expect, serving, until, visits

JUNE, JULY = visits(200), visits(60, first=1_000)
SENT_FIRST = 150
"""Of 40 customers there is one lane, so a trial of 150 sends the first rows of june and none of july."""

OTHER_SITE = "ONE-OTHER00000-0001"


# ------------------------------------------------------------------------------------------------------- the stages


@dataclass(frozen=True)
class Prepared:
    """A job as an execution left it: kept aside, and put back by `again`."""

    job: Job
    server: Server
    kept: Path
    log: dict[str, str]

    def again(self) -> "World":
        shutil.rmtree(self.job.folder)
        shutil.copytree(self.kept, self.job.folder, symlinks=True)
        job = replace(self.job, truth=dict(self.job.truth))
        return World(job, self.server, self.log, {name: len(text) for name, text in _log(self.server).items()})


@dataclass
class World:
    """The job that a cell of the tables changes, and what the server saw of it alone."""

    job: Job
    server: Server
    before: dict[str, str]
    skip: dict[str, int]

    @property
    def june(self) -> Path:
        return self.job.folder / "exports" / "june.csv"

    @property
    def july(self) -> Path:
        return self.june.with_name("july.csv")

    def requests(self) -> int:
        """Calls and tokens asked for since the cell began."""
        return _log(self.server)["requests"][self.skip["requests"] :].count("\n")

    def agrees(self) -> dict[str, int]:
        """As `agree`, with the log as it would be if this cell were the job's only history."""
        folder = self.job.folder.parent / "log of one cell"
        folder.mkdir(exist_ok=True)
        for name, text in _log(self.server).items():
            (folder / f"{name}.jsonl").write_text(self.before[name] + text[self.skip[name] :])
        return agree(self.job, replace(self.server, log=folder))

    def frozen(self) -> dict[str, bytes]:
        """All of the state that says what was sent and what will be."""
        files = (path for path in self.job.state.rglob("*") if path.is_file())
        told = {str(path.relative_to(self.job.state)): path for path in files}
        kept = {name: path.read_bytes() for name, path in told.items() if name.startswith(("job", "staged", "ledger"))}
        return kept | {"moves": json.dumps(journal(self.job, "SELECT * FROM move ORDER BY id")).encode()}


def _log(server: Server) -> dict[str, str]:
    files = {name: server.log / f"{name}.jsonl" for name in ("requests", "applied")}
    return {name: file.read_text() if file.exists() else "" for name, file in files.items()}


def journal(job: Job, query: str) -> list[tuple[Any, ...]]:
    """What the journal answers to a query of SQL."""
    with closing(sqlite3.connect(job.state / "journal.db")) as connection:
        return connection.execute(query).fetchall()


def complete(job: Job) -> None:
    expect(job.run("exports"), 0, "delivered 260")


def stopped(job: Job) -> None:
    """In the middle: some rows of june are sent, others not."""
    expect(job.run("exports", "--limit", str(SENT_FIRST)), 75, f"delivered {SENT_FIRST}")


def unsent(job: Job) -> None:
    """Frozen, and nothing sent: the credentials are refused."""
    expect(job.run("exports", environment={"BACKFILL_CLIENT_SECRET": "wrong-SECRET-0815"}), 77, "unsent 260")


def spooling(job: Job) -> None:
    """Killed when all is spooled and nothing frozen: the freeze waits for somebody to read a pipe of its own name."""
    job.state.mkdir(mode=0o700)
    freeze = job.state / "job.toml.tmp"
    os.mkfifo(freeze, 0o600)
    process = job.start("exports", "--set", f"api.site_key={OTHER_SITE}")
    until((job.state / "staged" / "1" / "manifest.json").exists, "the end of spooling")
    process.send_signal(signal.SIGKILL)
    process.wait()
    freeze.unlink()
    freeze.write_text("half a line of a job")
    assert not (job.state / "job.toml").exists()


STAGES: dict[str, Callable[[Job], None]] = {stage.__name__: stage for stage in (complete, stopped, unsent, spooling)}
LEFT = {"complete": 0, "stopped": 260 - SENT_FIRST, "unsent": 260}

At = Callable[[str], Prepared]
"""Gives the job at a stage, which it brings it to when it is first asked."""


@contextmanager
def prepared_in(folder: Path) -> Iterator[At]:
    """Jobs at their stages, and the server that they share."""
    with serving(folder / "log") as server:

        @functools.cache
        def at(stage: str) -> Prepared:
            before = _log(server)
            job = Job(folder / stage / "job", server.base_url, budget=1_000)
            job.export("exports/june.csv", JUNE)
            job.export("exports/july.csv", JULY)
            STAGES[stage](job)
            kept = folder / stage / "kept"
            shutil.copytree(job.folder, kept, symlinks=True)
            return Prepared(job, server, kept, {name: text[len(before[name]) :] for name, text in _log(server).items()})

        yield at
