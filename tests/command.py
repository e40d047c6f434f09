"""The whole command in a subprocess, a sandbox in another, and the ledger held against the sandbox's log row by row.

Every customer's key and every secret made here is recognisable, so that what a command says can be searched for them.
"""

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import tomli_w

from backfill.verify import verify
from tests.account import AGENT, Row, Truth, check, ledger, server_log

ROOT = Path(__file__).parent.parent
SITE_KEY = "ONE-WHOLE00000-0001"
CLIENT_ID = "whole-client"
SECRET = "whole-SECRET-4711"
PRIVATE = "PRIVATE"
"""Stands in every customer key: nothing but the ledger may show it."""

GIVE_UP_S = 60.0
BEGIN = datetime(2024, 2, 1, tzinfo=UTC)


# ---------------------------------------------------------------------------------------------------------- the rows


class Visit(NamedTuple):
    """One interaction as the generator knows it. `n` is its event id: equal `n` means the same interaction."""

    n: int
    customer: str
    at: datetime
    mark: str = "plain"
    tid: str = ""

    @property
    def valid(self) -> bool:
        return bool(self.customer)

    def interaction(self) -> dict[str, Any]:
        """What the API must get for it, written a second time and not by the product."""
        return {
            "timestamp": round(self.at.timestamp() * 1000),
            "url": "api://shop/visit",
            "customerKey": self.customer,
            "customerKeyName": "customerkey",
            "properties": [{"name": "mark", "value": self.mark}, {"name": "n", "value": str(self.n)}],
        }


def visits(
    count: int,
    *,
    first: int = 1,
    customers: int = 40,
    mark: Callable[[int], str] = lambda _: "plain",
) -> list[Visit]:
    """Valid interactions, one a minute; `mark` is asked with the place, from 0."""
    return [
        Visit(first + place, f"{PRIVATE}-{place % customers:05}", BEGIN + timedelta(minutes=first + place), mark(place))
        for place in range(count)
    ]


def write_csv(path: Path, rows: Iterable[Visit], *, header: Sequence[str] = ()) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header or ["n", "timestamp", "customer_key", "url", "mark", "tid"])
        for row in rows:
            timestamp = row.at.isoformat(timespec="milliseconds")
            writer.writerow([row.n, timestamp, row.customer, "api://shop/visit", row.mark, row.tid])


# -------------------------------------------------------------------------------------------------------- the server


@dataclass(frozen=True)
class Server:
    """A sandbox that listens, and its log."""

    process: "subprocess.Popen[bytes]"
    base_url: str
    log: Path

    def calls(self) -> list[dict[str, Any]]:
        """Received calls of the API, in the order of their heads."""
        found = [line for line in server_log(self.log, "requests") if line["call"] != "token"]
        return sorted(found, key=lambda line: float(line["at"]))

    def count(self) -> int:
        """How many requests were received; cheap enough to be asked again and again."""
        log = self.log / "requests.jsonl"
        return log.read_bytes().count(b"\n") if log.exists() else 0

    def tokens(self) -> int:
        """How often a token was asked for."""
        return sum(line["call"] == "token" for line in server_log(self.log, "requests"))

    def applied(self) -> list[dict[str, Any]]:
        return server_log(self.log, "applied")


@contextlib.contextmanager
def serving(log: Path, *misbehave: str, **options: object) -> Iterator[Server]:
    """A sandbox on a port of its own that takes one client and one site key; `options` are those of its command."""
    settings: dict[str, object] = {"site_key": SITE_KEY, "client_id": CLIENT_ID, "client_secret": SECRET} | options
    command = [sys.executable, "-m", "backfill", "sandbox", "--json", "--port", "0", "--log", str(log)]
    for rule in misbehave:
        command += ["--misbehave", rule]
    for name, value in settings.items():
        if value is not None:  # None: as the command has it by itself, so any site key
            for each in value if isinstance(value, tuple) else (value,):
                command += [f"--{name.replace('_', '-')}", str(each)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=_environment({}), start_new_session=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield Server(process, json.loads(line)["base_url"], log)
    finally:
        process.terminate()
        process.wait(10)
        if process.stdout is not None:
            process.stdout.close()


# ----------------------------------------------------------------------------------------------------------- the job


class Ended(NamedTuple):
    """How a command ended and what it said."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def said(self) -> str:
        return self.out + self.err

    def object(self) -> dict[str, Any]:
        """The one object that --json puts on standard output."""
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


@dataclass
class Job:
    """One job in its own folder. `config` overrides sections of a configuration that suits tests."""

    folder: Path
    base_url: str
    config: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    truth: dict[str, list[Visit]] = field(default_factory=dict)
    budget: float = 200.0

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.state = self.folder / "state"
        self.configure(**self.config)

    def configure(self, **sections: Mapping[str, object]) -> None:
        """Writes the configuration anew."""
        known: dict[str, dict[str, object]] = {
            "api": {"base_url": self.base_url, "site_key": SITE_KEY},
            "columns": {"tid": "tid"},
            "budget": {"requests_per_second": self.budget, "concurrency": 8},
            "delivery": {"backoff_base_s": 0.02},
        }
        for section, keys in sections.items():
            known.setdefault(section, {}).update(keys)
        (self.folder / "backfill.toml").write_text(tomli_w.dumps(known))

    def export(self, name: str, rows: Sequence[Visit]) -> Path:
        """Writes an export and remembers what is in it."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        write_csv(path, rows)
        self.truth[str(path)] = list(rows)
        return path

    def start(
        self,
        *arguments: str | Path,
        environment: Mapping[str, str | None] | None = None,
        before: Callable[[], None] | None = None,
        command: str = "run",
        module: Sequence[str] = ("backfill",),
    ) -> "subprocess.Popen[str]":
        """Starts the command in the job's folder; an environment variable given as None is taken away.

        `module`: what is run, a broken variant for a check's own test.
        What it says goes into files, so that nobody has to read for it to go on.
        """
        words = [sys.executable, "-m", *module, command]
        if command != "send":  # which belongs to no job, and so has no state
            words += ["--state", str(self.state)]
        if command in ("run", "send"):
            words += ["--config", str(self.folder / "backfill.toml")]
        with (self.folder / "stdout.log").open("w") as out, (self.folder / "stderr.log").open("w") as err:
            return subprocess.Popen(
                [*words, *map(str, arguments)],
                cwd=self.folder,
                env=_environment(
                    {"BACKFILL_CLIENT_ID": CLIENT_ID, "BACKFILL_CLIENT_SECRET": SECRET} | dict(environment or {})
                ),
                stdout=out,
                stderr=err,
                text=True,
                preexec_fn=before,
            )

    def run(self, *arguments: str | Path, **options: Any) -> Ended:
        """Runs the command to its end."""
        began_s = time.monotonic()
        return self.wait(self.start(*arguments, **options), began_s)

    def wait(self, process: "subprocess.Popen[str]", began_s: float | None = None) -> Ended:
        """Waits for a started command; `seconds` count from `began_s`, else from now."""
        began_s = time.monotonic() if began_s is None else began_s
        try:
            code = process.wait(GIVE_UP_S)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            raise
        out, err = ((self.folder / f"{name}.log").read_text() for name in ("stdout", "stderr"))
        return Ended(code, out, err, time.monotonic() - began_s)

    def ledger(self) -> pl.DataFrame:
        return ledger(self.state)

    def outcomes(self) -> dict[str, int]:
        """Rows by outcome, those of no row left out."""
        return dict(self.ledger()["outcome"].value_counts().iter_rows())

    def reasons(self, outcome: str) -> set[str]:
        """All reasons of the rows with this outcome."""
        return set(self.ledger().filter(outcome=outcome)["reasons"].explode().drop_nulls())

    def kept(self) -> set[str]:
        """Every file of the state directory but the lock, which an ended execution leaves empty."""
        files = (path for path in self.state.rglob("*") if path.is_file())
        return {str(path.relative_to(self.state)) for path in files} - {"lock"}


def _environment(changes: Mapping[str, str | None]) -> dict[str, str]:
    """That of the tests without settings of its own, so that a developer's shell changes nothing."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("BACKFILL_") and not name.lower().endswith("_proxy")
    }
    kept = {name: value for name, value in changes.items() if value is not None}
    return inherited | {"PYTHONPATH": str(ROOT)} | kept


def until(reached: Callable[[], bool], what: str, *, timeout_s: float = 30.0) -> None:
    """Waits until something has happened."""
    deadline_s = time.monotonic() + timeout_s
    while not reached():
        assert time.monotonic() < deadline_s, f"it never came to this: {what}"
        time.sleep(0.01)


# -------------------------------------------------------------------------------------------------------- what must be


def expect(ended: Ended, code: int, *words: str) -> None:
    """Asserts the exit code, and words that tell a person what happened; never a traceback, a value or a secret."""
    assert ended.code == code, f"exit code {ended.code}, expected {code}:\n{ended.said}"
    for word in words:
        assert word in ended.said, f"{word!r} is missing in:\n{ended.said}"
    assert "Traceback" not in ended.said
    discreet(ended.said)


def discreet(text: str) -> None:
    """Asserts that no customer and no secret is named."""
    for secret in (PRIVATE, SECRET):
        assert secret not in text, text


class Place(NamedTuple):
    load: int
    request: int
    position: int


def agree(
    job: Job, server: Server, *, attempts_seen: bool = True, kills: int = 0, concurrency: int = 8
) -> dict[str, int]:
    """Asserts that the ledger and the server's log tell the same of every row; returns the rows by outcome.

    `attempts_seen`: every attempt of the ledger reached the server, so the figures are equal (else: not fewer).
    """
    at = _applied_at(server)
    seen = _seen_at(server)
    lines = job.ledger()
    told = Counter(zip(lines["export"].to_list(), lines["row"].to_list(), strict=True))
    assert told == Counter((path, row) for path, rows in job.truth.items() for row in range(1, len(rows) + 1))
    for line in lines.iter_rows(named=True):
        _line_agrees(job, line, at, seen, attempts_seen=attempts_seen)
    known = {row.n for rows in job.truth.values() for row in rows}
    assert at.keys() <= known, "the server applied what stands in no export"
    truth = Truth(
        {
            path: [Row(row.n, row.customer, row.at.isoformat(), row.valid) for row in rows]
            for path, rows in job.truth.items()
        }
    )
    findings = check(job.state, server.log, truth, budget=max(1.0, job.budget), concurrency=concurrency, kills=kills)
    assert findings.violations == []
    verdict = verify(job.state)
    assert verdict.ok, verdict.checks
    _private(job.state)
    return job.outcomes()


def _applied_at(server: Server) -> dict[int, list[tuple[Place, str | None, dict[str, Any]]]]:
    """By event id: where each application of it came from, the tid it came under, and the interaction."""
    found: dict[int, list[tuple[Place, str | None, dict[str, Any]]]] = {}
    for request in server.applied():
        agent = AGENT.search(request["user_agent"])
        assert agent is not None
        load, number, first, last, _ = map(int, agent.groups())
        positions = request.get("positions", range(last - first + 1))  # those of a reply row by row may have gaps
        assert set(positions) <= set(range(last - first + 1))
        for at, interaction in zip(positions, request["interactions"], strict=True):
            position = first + at
            n = next(int(one["value"]) for one in interaction["properties"] if one["name"] == "n")
            found.setdefault(n, []).append((Place(load, number, position), request["tid"], interaction))
    return found


def _seen_at(server: Server) -> Counter[Place]:
    """How many attempts with each place the server received."""
    seen: Counter[Place] = Counter()
    for call in server.calls():
        agent = AGENT.search(call["user_agent"])
        assert agent is not None
        load, number, first, last, _ = map(int, agent.groups())
        seen.update(Place(load, number, position) for position in range(first, last + 1))
    return seen


def _line_agrees(
    job: Job,
    line: Mapping[str, Any],
    at: Mapping[int, list[tuple[Place, str | None, dict[str, Any]]]],
    seen: Mapping[Place, int],
    *,
    attempts_seen: bool,
) -> None:
    row = job.truth[line["export"]][line["row"] - 1]
    outcome, applied = line["outcome"], at.get(row.n, [])
    if outcome == "duplicate":
        path, _, number = line["duplicate_of"].rpartition(":")
        assert job.truth[path][int(number) - 1].n == row.n
        assert (line["request"], line["attempts"]) == (None, 0)
        return
    assert line["duplicate_of"] is None
    if outcome == "invalid":
        assert (applied, line["request"], line["attempts"]) == ([], None, 0)
        assert line["reasons"]
        return
    assert (line["customer_key"], line["timestamp"]) == (row.customer, row.at)
    place = Place(line["load"], line["request"], line["position"])
    for source, tid, interaction in applied:
        assert source == place, f"row {line['row']} was applied from {source}, and its ledger line says {place}"
        assert tid == (row.tid or None)
        assert interaction == row.interaction()
    most = {"delivered": 1, "in_doubt": 1}.get(outcome, 0)
    if most and line["maybe_duplicate"]:
        most = line["attempts"]
    assert len(applied) <= most, f"{outcome} row {line['row']} was applied {len(applied)} times"
    calls = seen.get(place, 0)
    assert line["attempts"] == calls if attempts_seen else line["attempts"] >= calls
    if outcome == "delivered" and "assumed" not in line["reasons"]:  # what a person said, the server need not know
        assert applied, f"delivered row {line['row']} was never applied"
        assert (line["http_status"], line["reasons"]) == (200, [])
        assert line["sent_at"] <= line["settled_at"]
        assert line["tid"] == row.tid if row.tid else line["tid"]
    if outcome == "rejected":
        assert line["reasons"]


def _private(state: Path) -> None:
    """Nothing but what is staged, the ledger and the job's own sandbox may hold a customer or a secret."""
    for path in state.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, f"others may read {path}"
        if path.is_file():
            content = path.read_bytes()
            assert SECRET.encode() not in content, path
            if path.relative_to(state).parts[0] not in ("staged", "ledger", "sandbox"):
                assert PRIVATE.encode() not in content, path
