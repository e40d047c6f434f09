"""Checks the account of a job against the server's own log: invariants I1 to I10 of the design, section 4.

Trusts nothing of the client: what was applied, when, and in which order comes from the sandbox's log; what was in the
exports from the generator. Only the ledger and the journal, which are under test, are the client's. An applied
interaction belongs to the row whose ledger line names its load, request and position, and must be that row's.

Every interaction carries its own number as property `n`; two rows with the same number are the same interaction.
I9 needs another execution, so whoever runs the job checks it.
"""

import bisect
import json
import re
import sqlite3
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

AGENT = re.compile(r"load (\d+); request (\d+); positions (\d+)-(\d+); attempt (\d+)")

TOKEN_PATH = "/one/oauth2token"

CLOCK_S = 0.002
"""The journal keeps whole milliseconds."""


class Row(NamedTuple):
    """What the generator knows of a row: its number, its customer and its time."""

    n: int
    customer: str
    timestamp: str
    valid: bool


@dataclass(frozen=True)
class Truth:
    """The rows of each export, in order, by the export's absolute path."""

    exports: Mapping[str, Sequence[Row]]


class Place(NamedTuple):
    """Where an interaction stands in what was sent."""

    load: int
    request: int
    position: int


class Attempt(NamedTuple):
    """One try, as a call names it in its User-Agent."""

    load: int
    request: int
    first: int
    interactions: int
    attempt: int

    def places(self) -> Iterator[Place]:
        return (Place(self.load, self.request, self.first + at) for at in range(self.interactions))


@dataclass
class Findings:
    """Violations by invariant, and the figures of a storm."""

    violations: list[str] = field(default_factory=list)
    rows: int = 0
    applied: int = 0
    doubted_rows: int = 0
    most_in_a_second: int = 0
    most_lost_at_once: int = 0
    """Requests that one crash put in doubt, at the most."""
    proven_durable: int = 0
    """Calls of which is known when their intent was durable, not only when that was asked for."""
    needless_doubts: int = 0
    """Requests that the server answered wholly and soundly, and that are in doubt though nobody was killed."""

    def check(self, invariant: str, bad: Iterable[object], what: str) -> None:
        found = list(bad)
        if found:
            self.violations.append(f"{invariant}: {len(found)} {what}, e.g. {found[:3]}")


def server_log(log: Path, name: str) -> list[dict[str, Any]]:
    """The lines of applied.jsonl or requests.jsonl."""
    path = log / f"{name}.jsonl"
    # At LF alone: a customer's key may hold what `splitlines` takes for the end of a line.
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.split("\n") if line]


def ledger(state: Path) -> pl.DataFrame:
    """All parts that the manifest names."""
    manifest = json.loads((state / "ledger" / "manifest.json").read_text())
    return pl.concat(pl.read_parquet(state / "ledger" / part["path"]) for part in manifest["parts"])


class Told(NamedTuple):
    """A line of the ledger."""

    export: str
    row: int
    outcome: str
    maybe_duplicate: bool
    reasons: Sequence[str]
    place: Place | None

    @property
    def doubted(self) -> bool:
        return self.outcome == "in_doubt" or self.maybe_duplicate


class Call(NamedTuple):
    """A call that the server received. `attempt`: None where it does not name one."""

    at_s: float
    attempt: Attempt | None
    sha256: str | None
    status: int | None
    rule: str | None
    agent: str


class Applied(NamedTuple):
    """An interaction that the server applied. `place`: None where the call does not name one."""

    place: Place | None
    n: int


@dataclass(frozen=True)
class Job:
    """All that is known of a job, read once: what it says of itself, and what its server says."""

    state: Path
    log: Path
    truth: Truth
    notes: Path | None

    @cached_property
    def lines(self) -> list[Told]:
        columns = ("export", "row", "outcome", "maybe_duplicate", "reasons", "load", "request", "position")
        return [
            Told(export, row, outcome, marked, reasons or (), None if request is None else Place(load, request, at))
            for export, row, outcome, marked, reasons, load, request, at in (
                ledger(self.state).select(columns).iter_rows()
            )
        ]

    @cached_property
    def manifest(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.state / "ledger" / "manifest.json").read_text())
        return document

    def row_of(self, line: Told) -> Row | None:
        rows = self.truth.exports.get(line.export, ())
        return rows[line.row - 1] if 0 < line.row <= len(rows) else None

    @cached_property
    def applied(self) -> list[Applied]:
        """In the order in which the server applied them."""
        found = []
        for call in server_log(self.log, "applied"):
            attempt = _attempt(call["user_agent"])
            positions = call.get("positions", range(len(call["interactions"])))
            for at, interaction in zip(positions, call["interactions"], strict=True):
                place = None if attempt is None else Place(attempt.load, attempt.request, attempt.first + at)
                found.append(Applied(place, _number(interaction)))
        return found

    @cached_property
    def calls(self) -> list[Call]:
        """Whatever the server received but requests for a token, in the order of their heads."""
        found = [
            Call(
                float(line["at"]),
                _attempt(line["user_agent"]),
                line["sha256"],
                line["status"],
                line["rule"],
                line["user_agent"],
            )
            for line in server_log(self.log, "requests")
            if line["path"].removesuffix("/") != TOKEN_PATH
        ]
        return sorted(found, key=lambda call: call.at_s)

    def journal(self, query: str) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(f"file:{self.state / 'journal.db'}?mode=ro", uri=True)
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()

    @cached_property
    def intents(self) -> dict[Attempt, tuple[int, int, float]]:
        """Of each attempt: number of the move, execution, and when its commit was asked for."""
        return {
            Attempt(*key): (move, execution, at / 1000)
            for move, execution, at, *key in self.journal(
                "SELECT id, execution, at, load, request, first, count, attempt FROM move WHERE move = 'intent'"
            )
        }

    @cached_property
    def durable(self) -> dict[Attempt, float]:
        """When the intent of each attempt was durable; infinite for one whose execution took notes, but not of it.

        Attempts of executions that took no notes are missing (tests/slowed.py).
        """
        if self.notes is None or not self.notes.exists():
            return {}
        notes = sorted(
            (json.loads(line) for line in self.notes.read_text().splitlines()), key=lambda note: note["first"]
        )
        noted = {note["execution"] for note in notes}
        firsts = [note["first"] for note in notes]
        known = {}
        for attempt, (move, execution, _) in self.intents.items():
            if execution in noted:
                note = notes[bisect.bisect(firsts, move) - 1]
                covers = note["execution"] == execution and note["first"] <= move <= note["last"]
                known[attempt] = note["at"] if covers else float("inf")
        return known


def check(
    state: Path,
    log: Path,
    truth: Truth,
    *,
    budget: float,
    concurrency: int,
    kills: int,
    notes: Path | None = None,
) -> Findings:
    """Hold the ledger against the server's log.

    `kills`: crashes so far, for the bound on new doubt. `notes`: when commits were durable, as tests/slowed.py wrote
    it down.
    """
    job = Job(state, log, truth, notes)
    findings = Findings()
    findings.rows = sum(len(rows) for rows in truth.exports.values())
    findings.applied = len(job.applied)
    findings.doubted_rows = sum(line.outcome == "in_doubt" for line in job.lines)
    _rows_once(findings, job)
    _equation(findings, job)
    _applied_as_told(findings, job)
    _crashes(findings, job, kills=kills, concurrency=concurrency)
    _intents(findings, job)
    _pace(findings, job, budget=budget, concurrency=concurrency)
    _order(findings, job)
    _needless_doubts(findings, job)
    return findings


def _attempt(agent: str | None) -> Attempt | None:
    found = AGENT.search(agent or "")
    if found is None:
        return None
    load, request, first, last, attempt = map(int, found.groups())
    return Attempt(load, request, first, last - first + 1, attempt)


def _number(interaction: Mapping[str, Any]) -> int:
    return next(int(each["value"]) for each in interaction["properties"] if each["name"] == "n")


def _rows_once(findings: Findings, job: Job) -> None:
    told = Counter((line.export, line.row) for line in job.lines)
    expected = {(export, row) for export, rows in job.truth.exports.items() for row in range(1, len(rows) + 1)}
    findings.check("I1", expected - told.keys(), "rows without a ledger line")
    findings.check("I1", told.keys() - expected, "ledger lines of rows that do not exist")
    findings.check("I1", [key for key, count in told.items() if count > 1], "rows with several ledger lines")
    misjudged, sent = [], set()
    for line in job.lines:
        row = job.row_of(line)
        if row is not None:
            if (line.outcome == "invalid") == row.valid:
                misjudged.append((line.export, line.row))
            if line.outcome not in ("invalid", "duplicate"):
                sent.add(row.n)
    findings.check("I1", misjudged, "rows whose validity was misjudged")
    lone = [
        (line.export, line.row)
        for line in job.lines
        if line.outcome == "duplicate" and (row := job.row_of(line)) is not None and row.n not in sent
    ]
    findings.check("I1", lone, "duplicates of no row that is sent")
    places = Counter(line.place for line in job.lines if line.place is not None)
    findings.check("I1", [place for place, count in places.items() if count > 1], "places that several rows claim")


def _equation(findings: Findings, job: Job) -> None:
    """The manifest closes, and counts what its parts hold and what the exports held."""
    counted = Counter((line.export, line.outcome) for line in job.lines)
    read = {export: len(rows) for export, rows in job.truth.exports.items()}
    for load in job.manifest["loads"]:
        for export in load["exports"]:
            name, outcomes = export["export"], export["outcomes"]
            if not export["read"] == sum(outcomes.values()) == read.get(name):
                findings.violations.append(f"I1: the closing equation of {name} does not close")
            if load["complete"] and any(count != counted[name, outcome] for outcome, count in outcomes.items()):
                findings.violations.append(f"I1: the manifest counts {outcomes} of {name}, which its parts do not hold")


def _applied_as_told(findings: Findings, job: Job) -> None:
    """I2 to I5, row by row: what the server applied at a line's place is that line's."""
    by_place = {line.place: line for line in job.lines if line.place is not None}
    times = Counter(each.place for each in job.applied)
    strangers = [
        each
        for each in job.applied
        if each.place not in by_place or (row := job.row_of(by_place[each.place])) is None or row.n != each.n
    ]
    findings.check("I5", strangers, "applied interactions that no ledger line stands for")
    refused, unnamed, unknown, unfounded = [], [], [], []
    for place, line in by_place.items():
        count = times[place]
        if line.outcome == "delivered" and not count and "assumed" not in line.reasons:
            unfounded.append(line)
        if count > 1 and not line.doubted:
            unnamed.append(line)
        if count and line.outcome in ("invalid", "rejected", "abandoned"):
            refused.append(line)
        if count and line.outcome != "delivered" and not line.doubted:
            unknown.append(line)
    findings.check("I2", unfounded, "delivered rows that the server never applied")
    findings.check("I3", unnamed, "rows applied twice and not named")
    findings.check("I4", refused, "refused rows that the server applied")
    invalid = {row.n for rows in job.truth.exports.values() for row in rows if not row.valid}
    findings.check("I4", invalid & {each.n for each in job.applied}, "invalid rows that the server applied")
    findings.check("I5", unknown, "applied rows that the ledger calls neither delivered nor doubtful")
    # Stricter than I3: a row in doubt is named, but it is not sent again unless someone decides that.
    again = {
        place
        for *key, _ in job.journal(
            "SELECT load, request, first, count, attempt, move FROM move "
            "WHERE move IN ('decided_resend', 'decided_not_delivered')"
        )
        for place in Attempt(*key).places()
    }
    twice = [place for place, count in times.items() if count > 1 and place not in again]
    findings.check("I3", twice, "rows applied twice though nobody decided to send them again")
    _sent_from_one_row(findings, job)


def _sent_from_one_row(findings: Findings, job: Job) -> None:
    """Of rows that are the same interaction, in whichever export, only one may reach the server, but where duplicates
    are sent. One that was rejected or abandoned leaves its place to another."""
    loads = tomllib.loads((job.state / "job.toml").read_text())["load"]
    if any(load["config"]["rows"].get("duplicates") == "send" for load in loads):
        return
    sent = Counter(
        row.n
        for line in job.lines
        if line.outcome in ("delivered", "in_doubt", "unsent") and (row := job.row_of(line)) is not None
    )
    several = [n for n, rows in sent.items() if rows > 1]
    findings.check("I3", several, "interactions that the server was sent from several rows")


def _crashes(findings: Findings, job: Job, *, kills: int, concurrency: int) -> None:
    """I6: only a crash loses requests, and no more than may be in the air."""
    per_execution = job.journal(
        "SELECT execution, count(*), sum(count), (SELECT ended_at FROM execution WHERE id = move.execution - 1) "
        "FROM move WHERE move = 'lost' GROUP BY execution"
    )
    findings.most_lost_at_once = max((requests for _, requests, *_ in per_execution), default=0)
    findings.check(
        "I6",
        [each for each in per_execution if each[1] > concurrency or each[2] > concurrency * 100],
        "restarts that found more in flight than allowed",
    )
    findings.check(
        "I6",
        [execution for execution, *_, ended_at in per_execution if ended_at is not None],
        "restarts that found something in flight though the execution before them had ended",
    )
    if len(per_execution) > kills:
        findings.violations.append(f"I6: {len(per_execution)} restarts found doubt after {kills} kills")


def _intents(findings: Findings, job: Job) -> None:
    findings.check("I7", [call.agent for call in job.calls if call.attempt is None], "calls that name no attempt")
    received = [(call.at_s, call.attempt) for call in job.calls if call.attempt is not None]
    findings.check("I7", [attempt for _, attempt in received if attempt not in job.intents], "calls without an intent")
    findings.check(
        "I7",
        # No tolerance: the journal's time is cut down to its millisecond.
        [attempt for at_s, attempt in received if attempt in job.intents and job.intents[attempt][2] > at_s],
        "calls that came before their intent",
    )
    findings.check(
        "I7",
        [(attempt, at_s) for at_s, attempt in received if job.durable.get(attempt, 0.0) > at_s],
        "calls that came before their intent was durable",
    )
    findings.proven_durable = sum(attempt in job.durable for _, attempt in received)
    findings.check(
        "I7",
        [attempt for attempt, count in Counter(attempt for _, attempt in received).items() if count > 1],
        "attempts on the wire twice",
    )
    bodies: dict[tuple[int, ...], set[str]] = {}
    for call in job.calls:
        if call.attempt is not None and call.sha256 is not None:
            bodies.setdefault(call.attempt[:4], set()).add(call.sha256)
    findings.check("I7", [part for part, seen in bodies.items() if len(seen) > 1], "requests whose contents changed")


def _pace(findings: Findings, job: Job, *, budget: float, concurrency: int) -> None:
    """I8. A call started after its intent was durable (or asked for), and before the server read it.

    The server may be slow to read: what is in the air then comes in a bunch that was no bunch when it started. So calls
    count to a second only if both ends lie in it; and by arrival no more may come than the budget and all in the air.
    """
    arrivals = [call.at_s for call in job.calls]
    findings.most_in_a_second = _most_in_a_second([(at_s, at_s) for at_s in arrivals])
    if findings.most_in_a_second > budget + concurrency:
        findings.violations.append(f"I8: {findings.most_in_a_second} calls came in a second, budget {budget:g}")
    started = sorted(
        (min(at_s, job.durable.get(attempt, job.intents[attempt][2])), at_s)
        for at_s, attempt in ((call.at_s, call.attempt) for call in job.calls)
        if attempt in job.intents
    )
    surely = _most_in_a_second(started)
    if surely > budget:
        findings.violations.append(f"I8: {surely} calls were surely started in a second, budget {budget:g}")
    newest_s = float("-inf")
    by_execution: dict[int, list[float]] = {}
    for call in job.calls:
        if call.attempt in job.intents:
            by_execution.setdefault(job.intents[call.attempt][1], []).append(call.at_s)
    early = []
    for execution, times in sorted(by_execution.items()):
        if min(times) < newest_s + 1.0 - CLOCK_S:
            early.append((execution, min(times) - newest_s))
        newest_s = max(newest_s, *times)
    findings.check("I8", early, "executions whose first call came within a second of the last one before them")


def _most_in_a_second(spans: Sequence[tuple[float, float]]) -> int:
    """How many of these (begin, end), ordered by begin, lie within one second that begins with one of them."""
    most, last = 0, 0
    for first, (begin, _) in enumerate(spans):
        while last < len(spans) and spans[last][0] < begin + 1.0:
            last += 1
        if last - first > most:  # else it cannot be more
            most = max(most, sum(end < begin + 1.0 for _, end in spans[first:last]))
    return most


def _order(findings: Findings, job: Job) -> None:
    """I10: within a load, each customer's interactions were first applied in the order of time.

    Rows that were ever in doubt excepted: those, not the rest of a request of which they are a part.
    """
    rows = {line.place: row for line in job.lines if line.place is not None and (row := job.row_of(line)) is not None}
    ever_doubted = {
        place
        for key in job.journal(
            "SELECT load, request, first, count, attempt FROM move WHERE move IN ('lost', 'unclear', 'decided_doubt')"
        )
        for place in Attempt(*key).places()
    }
    newest: dict[tuple[int, str], str] = {}
    seen: set[Place] = set()
    late = []
    for place, _ in job.applied:
        if place is None or place in ever_doubted or place in seen or place not in rows:
            continue
        seen.add(place)
        key = (place.load, rows[place].customer)
        if rows[place].timestamp < newest.get(key, ""):
            late.append(place)
        newest[key] = max(newest.get(key, ""), rows[place].timestamp)
    findings.check("I10", late, "interactions applied after a later one of their customer")


def _needless_doubts(findings: Findings, job: Job) -> None:
    """No promise, a figure: an attempt in doubt whose whole, sound reply the server had handed to its socket."""
    answered = {
        call.attempt
        for call in job.calls
        if call.status is not None and (call.rule is None or call.status in (401, 429, 503))
    }
    unclear = job.journal("SELECT load, request, first, count, attempt FROM move WHERE move = 'unclear'")
    findings.needless_doubts = sum(Attempt(*key) in answered for key in unclear)
