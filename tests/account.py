"""Checks the account of a job against the server's own log: invariants I1 to I10 of the design, section 4.

Trusts nothing of the client: what was applied, when, and in which order comes from the sandbox's log; what was in the
exports from the generator. Only the ledger and the journal, which are under test, are the client's.

Every interaction carries its own number as property `n`; two rows with the same number are the same interaction.
"""

import json
import re
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

AGENT = re.compile(r"load (\d+); request (\d+); positions (\d+)-(\d+); attempt (\d+)")

CLOCK_S = 0.002
"""Client and server are one machine with one clock; the journal keeps milliseconds."""


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


@dataclass
class Findings:
    """Violations by invariant, and the figures of a storm."""

    violations: list[str] = field(default_factory=list)
    rows: int = 0
    applied: int = 0
    doubted_rows: int = 0
    most_in_a_second: int = 0

    def check(self, invariant: str, bad: Iterable[object], what: str) -> None:
        found = list(bad)
        if found:
            self.violations.append(f"{invariant}: {len(found)} {what}, e.g. {found[:3]}")


def server_log(log: Path, name: str) -> list[dict[str, Any]]:
    """The lines of applied.jsonl or requests.jsonl."""
    path = log / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def ledger(state: Path) -> pl.DataFrame:
    """All parts that the manifest names."""
    manifest = json.loads((state / "ledger" / "manifest.json").read_text())
    return pl.concat(pl.read_parquet(state / "ledger" / part["path"]) for part in manifest["parts"])


def check(state: Path, log: Path, truth: Truth, *, budget: float, concurrency: int, kills: int) -> Findings:
    """Hold the ledger against the server's log. `kills`: crashes so far, for the bound on new doubt."""
    findings = Findings()
    lines = ledger(state)
    findings.rows = sum(len(rows) for rows in truth.exports.values())
    _rows_once(findings, lines, truth)
    times = _applied(log)
    findings.applied = sum(times.values())
    outcomes = _by_number(lines, truth)
    _applied_as_told(findings, outcomes, times)
    _equation(findings, state)
    _intents(findings, state, log)
    _pace(findings, log, budget)
    _doubt(findings, state, outcomes, kills=kills, concurrency=concurrency)
    _order(findings, state, log, truth)
    return findings


def _rows_once(findings: Findings, lines: pl.DataFrame, truth: Truth) -> None:
    told = Counter(zip(lines["export"].to_list(), lines["row"].to_list(), strict=True))
    expected = {(export, row) for export, rows in truth.exports.items() for row in range(1, len(rows) + 1)}
    findings.check("I1", expected - told.keys(), "rows without a ledger line")
    findings.check("I1", told.keys() - expected, "ledger lines of rows that do not exist")
    findings.check("I1", [key for key, count in told.items() if count > 1], "rows with several ledger lines")
    findings.check(
        "I1",
        [
            (export, row)
            for export, row, outcome in lines.select("export", "row", "outcome").iter_rows()
            if (export, row) in expected and (outcome == "invalid") == truth.exports[export][row - 1].valid
        ],
        "rows whose validity was misjudged",
    )


def _applied(log: Path) -> Counter[int]:
    times: Counter[int] = Counter()
    for request in server_log(log, "applied"):
        for interaction in request["interactions"]:
            times[_number(interaction)] += 1
    return times


def _number(interaction: Mapping[str, Any]) -> int:
    return next(int(each["value"]) for each in interaction["properties"] if each["name"] == "n")


class Told(NamedTuple):
    outcome: str
    maybe_duplicate: bool
    reasons: Sequence[str] | None


def _by_number(lines: pl.DataFrame, truth: Truth) -> dict[int, list[Told]]:
    outcomes: dict[int, list[Told]] = {}
    for export, row, *told in lines.select("export", "row", "outcome", "maybe_duplicate", "reasons").iter_rows():
        if export in truth.exports and row <= len(truth.exports[export]):
            outcomes.setdefault(truth.exports[export][row - 1].n, []).append(Told(*told))
    return outcomes


def _applied_as_told(findings: Findings, outcomes: Mapping[int, list[Told]], times: Counter[int]) -> None:
    def told(*names: str) -> set[int]:
        return {n for n, lines in outcomes.items() if any(line.outcome in names for line in lines)}

    delivered = {
        n
        for n, lines in outcomes.items()
        if any(line.outcome == "delivered" and "assumed" not in (line.reasons or ()) for line in lines)
    }
    doubted = told("in_doubt") | {n for n, lines in outcomes.items() if any(line.maybe_duplicate for line in lines)}
    findings.check("I2", delivered - times.keys(), "delivered rows that the server never applied")
    findings.check("I3", {n for n, count in times.items() if count > 1} - doubted, "rows applied twice and not named")
    final = told("invalid", "rejected", "abandoned") - delivered - doubted
    findings.check("I4", final & times.keys(), "refused rows that the server applied")
    findings.check("I5", times.keys() - told("delivered") - doubted, "applied rows that the ledger does not know of")
    findings.check("I5", told("unsent") & times.keys(), "applied rows that are called unsent")


def _equation(findings: Findings, state: Path) -> None:
    manifest = json.loads((state / "ledger" / "manifest.json").read_text())
    for load in manifest["loads"]:
        for export in load["exports"]:
            if export["read"] != sum(export["outcomes"].values()):
                findings.violations.append(f"I1: the closing equation of {export['export']} does not close")


def _journal(state: Path, query: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(f"file:{state / 'journal.db'}?mode=ro", uri=True)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def _attempts(log: Path) -> list[tuple[float, tuple[int, ...]]]:
    """Every call that the server received, in order: when its head came, and (load, request, first, count, attempt)."""
    found = []
    for request in server_log(log, "requests"):
        agent = AGENT.search(request["user_agent"] or "")
        if agent is not None:
            load, number, first, last, attempt = map(int, agent.groups())
            found.append((float(request["at"]), (load, number, first, last - first + 1, attempt)))
    return sorted(found)


def _intents(findings: Findings, state: Path, log: Path) -> None:
    intents = {
        tuple(key): at / 1000
        for *key, at in _journal(
            state, "SELECT load, request, first, count, attempt, at FROM move WHERE move = 'intent'"
        )
    }
    received = _attempts(log)
    findings.check("I7", [key for _, key in received if key not in intents], "calls without an intent")
    findings.check(
        "I7",
        [key for at, key in received if key in intents and intents[key] > at + CLOCK_S],
        "calls that came before their intent",
    )
    findings.check(
        "I7",
        [key for key, count in Counter(key for _, key in received).items() if count > 1],
        "attempts on the wire twice",
    )


def _pace(findings: Findings, log: Path, budget: float) -> None:
    starts = [at for at, _ in _attempts(log)]
    first = 0
    for last, at in enumerate(starts):
        while at - starts[first] >= 1.0:
            first += 1
        findings.most_in_a_second = max(findings.most_in_a_second, last - first + 1)
    if findings.most_in_a_second > budget:
        findings.violations.append(f"I8: {findings.most_in_a_second} calls in a second, budget {budget:g}")


def _doubt(
    findings: Findings, state: Path, outcomes: Mapping[int, list[Told]], *, kills: int, concurrency: int
) -> None:
    per_execution = _journal(
        state, "SELECT execution, sum(count), count(*) FROM move WHERE move = 'lost' GROUP BY execution"
    )
    findings.doubted_rows = sum(any(line.outcome == "in_doubt" for line in lines) for lines in outcomes.values())
    findings.check(
        "I6",
        [each for each in per_execution if each[2] > concurrency],
        "restarts that found more in flight than allowed",
    )
    if len(per_execution) > kills:
        findings.violations.append(f"I6: {len(per_execution)} restarts found doubt after {kills} kills")


def _order(findings: Findings, state: Path, log: Path, truth: Truth) -> None:
    """I10: within a load, each customer's interactions were first applied in the order of time."""
    rows = {row.n: row for rows in truth.exports.values() for row in rows}
    ever_doubted = {
        (load, request)
        for load, request in _journal(state, "SELECT load, request FROM move WHERE move IN ('lost', 'unclear')")
    }
    newest: dict[tuple[int, str], str] = {}
    seen: set[int] = set()
    late = []
    for request in server_log(log, "applied"):
        agent = AGENT.search(request["user_agent"] or "")
        if agent is None:
            continue
        load, number = int(agent[1]), int(agent[2])
        if (load, number) in ever_doubted:
            continue
        for interaction in request["interactions"]:
            row = rows[_number(interaction)]
            key = (load, row.customer)
            if row.n not in seen and row.timestamp < newest.get(key, ""):
                late.append(row.n)
            seen.add(row.n)
            newest[key] = max(newest.get(key, ""), row.timestamp)
    findings.check("I10", late, "interactions applied after a later one of their customer")
