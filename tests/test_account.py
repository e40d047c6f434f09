"""The checker of the account sees each breach: a sound job's records are doctored in one place, and it must say so.

One real job is made, killed once and finished; every test works on a copy of its records.
"""

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.account import Findings, Truth, check, server_log
from tests.storm import BUDGET, CONCURRENCY, Kill, Storm, Weather


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Storm:
    """A finished job with rows in doubt, a crash, calls that were tried again, and notes of durable intents."""
    stormy = Storm(tmp_path_factory.mktemp("account") / "job", seed=3, rows=2_500)
    weather = Weather("changing", ("status=503,every=4", "drop=after,every=9", "latency_ms=20"))
    stormy.round(weather, [Kill("applied")], slow=(0.0, 0.0))
    return stormy


class Records:
    """The records of a job, to be doctored."""

    def __init__(self, job: Storm, folder: Path) -> None:
        self.job = job
        self.state, self.log, self.notes = folder / "state", folder / "server", folder / "durable.jsonl"
        shutil.copytree(job.state, self.state)
        shutil.copytree(job.log, self.log)
        shutil.copy(job.notes, self.notes)

    def check(self, kills: int = 1) -> Findings:
        return check(
            self.state,
            self.log,
            Truth(self.job.truth),
            budget=BUDGET,
            concurrency=CONCURRENCY,
            kills=kills,
            notes=self.notes,
        )

    def lines(self, name: str, doctor: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
        """Of the server's applied.jsonl or requests.jsonl."""
        lines = doctor(server_log(self.log, name))
        (self.log / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def ledger(self, doctor: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
        """Of the ledger's first part."""
        part = (
            self.state
            / "ledger"
            / json.loads((self.state / "ledger" / "manifest.json").read_text())["parts"][0]["path"]
        )
        doctor(pl.read_parquet(part)).write_parquet(part)

    def rename(self, outcome: str, into: str) -> None:
        """One row with this outcome gets another."""
        self.ledger(
            lambda lines: lines.with_columns(
                outcome=pl.when((pl.col("outcome") == outcome) & ((pl.col("outcome") == outcome).cum_sum() == 1))
                .then(pl.lit(into))
                .otherwise(pl.col("outcome"))
            )
        )

    def journal(self, statement: str) -> None:
        connection = sqlite3.connect(self.state / "journal.db", isolation_level=None)
        try:
            assert connection.execute(statement).rowcount > 0, "the statement doctored nothing"
        finally:
            connection.close()

    def applied_soundly(self) -> int:
        """Where in applied.jsonl a request stands that was acknowledged."""
        acknowledged = {line["user_agent"] for line in server_log(self.log, "requests") if line["status"] == 200}
        return next(at for at, line in enumerate(server_log(self.log, "applied")) if line["user_agent"] in acknowledged)

    def applied_doubtfully(self) -> int:
        lost = {
            line["user_agent"] for line in server_log(self.log, "requests") if (line["rule"] or "").startswith("drop")
        }
        return next(at for at, line in enumerate(server_log(self.log, "applied")) if line["user_agent"] in lost)


@pytest.fixture
def records(sound: Storm, tmp_path: Path) -> Records:
    return Records(sound, tmp_path)


def violated(records: Records, words: str, **options: int) -> None:
    """Asserts that the checker complains in these words."""
    assert words in "\n".join(records.check(**options).violations)


def test_a_sound_job_is_found_sound(records: Records) -> None:
    """Undoctored, nothing is violated, and there was something to check of each kind."""
    findings = records.check()
    assert findings.violations == []
    assert findings.doubted_rows
    assert findings.most_lost_at_once
    assert findings.proven_durable
    assert findings.needless_doubts == 0


def test_i1_a_missing_line(records: Records) -> None:
    """A row without a ledger line is seen, and that the manifest counts it all the same."""
    records.ledger(lambda lines: lines[1:])
    violated(records, "I1: 1 rows without a ledger line")
    violated(records, "which its parts do not hold")


def test_i1_a_line_too_many(records: Records) -> None:
    """A row with two ledger lines is seen."""
    records.ledger(lambda lines: pl.concat([lines, lines[:1]]))
    violated(records, "I1: 1 rows with several ledger lines")


def test_i1_a_valid_row_called_invalid(records: Records) -> None:
    """A misjudged row is seen."""
    records.rename("delivered", "invalid")
    violated(records, "I1: 1 rows whose validity was misjudged")


def test_i1_a_row_called_duplicate_of_nothing(records: Records) -> None:
    """A row that is called a duplicate though no row like it is sent is seen."""
    records.rename("delivered", "duplicate")
    violated(records, "duplicates of no row that is sent")


def test_i1_an_equation_that_does_not_close(records: Records) -> None:
    """A manifest that counts a row too many is seen."""
    path = records.state / "ledger" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["loads"][0]["exports"][0]["outcomes"]["delivered"] += 1
    path.write_text(json.dumps(manifest))
    violated(records, "closing equation")


def test_i2_delivered_and_never_applied(records: Records) -> None:
    """A delivered row that the server never applied is seen."""
    gone = records.applied_soundly()
    records.lines("applied", lambda lines: lines[:gone] + lines[gone + 1 :])
    violated(records, "I2")


def test_i3_applied_twice(records: Records) -> None:
    """A delivered row that the server applied twice is seen."""
    records.lines("applied", lambda lines: [*lines, lines[records.applied_soundly()]])
    violated(records, "rows applied twice and not named")


def test_i3_doubt_is_no_leave_to_send_again(records: Records) -> None:
    """A row in doubt that was applied twice is seen too, if nobody decided to send it again."""
    records.lines("applied", lambda lines: [*lines, lines[records.applied_doubtfully()]])
    found = records.check().violations
    assert not any("not named" in each for each in found)
    assert any("though nobody decided" in each for each in found)


@pytest.mark.parametrize("outcome", ["rejected", "abandoned"])
def test_i4_refused_and_applied(records: Records, outcome: str) -> None:
    """A row that the ledger calls refused, and that the server applied, is seen."""
    records.rename("delivered", outcome)
    violated(records, "I4: 1 refused rows")


def test_i4_invalid_and_applied(records: Records) -> None:
    """An invalid row among what the server applied is seen."""
    invalid = next(row.n for rows in records.job.truth.values() for row in rows if not row.valid)

    def doctor(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        next(one for one in lines[0]["interactions"][0]["properties"] if one["name"] == "n")["value"] = str(invalid)
        return lines

    records.lines("applied", doctor)
    violated(records, "I4: 1 invalid rows")
    violated(records, "applied interactions that no ledger line stands for")


def test_i5_applied_and_called_unsent(records: Records) -> None:
    """A row that the server applied, and that the ledger calls unsent, is seen."""
    records.rename("delivered", "unsent")
    violated(records, "I5: 1 applied rows")


def test_i5_applied_from_nowhere(records: Records) -> None:
    """An applied request that no ledger line knows of is seen."""
    records.lines("applied", lambda lines: [*lines, lines[0] | {"user_agent": "someone else"}])
    violated(records, "applied interactions that no ledger line stands for")


def test_i6_more_lost_than_may_be_in_the_air(records: Records) -> None:
    """A crash that put more requests in doubt than the concurrency allows is seen."""
    records.journal(
        "INSERT INTO move (load, request, first, count, move, attempt, execution, at) "
        "SELECT load, request, first, count, 'lost', attempt, 2, at FROM move WHERE move = 'intent' LIMIT 9"
    )
    violated(records, "more in flight than allowed")


def test_i6_doubt_without_a_crash(records: Records) -> None:
    """Requests lost by an execution that ended in order are seen, and more losses than there were kills."""
    violated(records, "restarts found doubt after 0 kills", kills=0)
    records.journal("UPDATE execution SET ended_at = started_at WHERE ended_at IS NULL")
    violated(records, "though the execution before them had ended")


def test_i7_a_call_without_intent(records: Records) -> None:
    """A call of which the journal holds no intent is seen."""
    records.journal("DELETE FROM move WHERE id = (SELECT min(id) FROM move WHERE move = 'intent')")
    violated(records, "I7: 1 calls without an intent")


def test_i7_an_intent_too_late(records: Records) -> None:
    """An intent that is one second younger than its call is seen."""
    records.journal("UPDATE move SET at = at + 1000 WHERE id = (SELECT min(id) FROM move WHERE move = 'intent')")
    violated(records, "I7: 1 calls that came before their intent")


def test_i7_durable_too_late(records: Records) -> None:
    """An intent that was asked for in time, and was durable only after the server had the call, is seen."""
    notes = [json.loads(line) for line in records.notes.read_text().splitlines()]
    records.notes.write_text("".join(json.dumps(note | {"at": note["at"] + 1}) + "\n" for note in notes))
    violated(records, "before their intent was durable")


def test_i7_an_intent_that_was_never_noted(records: Records) -> None:
    """An intent of an execution that noted each commit, and of which there is no note, is taken for not durable."""
    notes = records.notes.read_text().splitlines()
    records.notes.write_text("\n".join(notes[: len(notes) // 2]) + "\n")
    violated(records, "before their intent was durable")


def test_i7_an_attempt_twice_on_the_wire(records: Records) -> None:
    """A call that the server received twice under one attempt is seen."""
    records.lines("requests", lambda lines: [*lines, lines[-1]])
    violated(records, "attempts on the wire twice")


def test_i7_a_call_that_names_no_attempt(records: Records) -> None:
    """A call without our User-Agent is not passed over."""
    records.lines("requests", lambda lines: [*lines, lines[-1] | {"user_agent": "python-httpx/1.0"}])
    violated(records, "calls that name no attempt")


def test_i7_a_body_that_changed(records: Records) -> None:
    """A request whose second attempt has another body is seen."""

    def doctor(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        next(line for line in lines if line["status"] == 503)["sha256"] = "0" * 64
        return lines

    records.lines("requests", doctor)
    violated(records, "requests whose contents changed")


def test_i8_too_many_in_a_second(records: Records) -> None:
    """Calls that came at a hundred times the pace are seen."""
    lines = server_log(records.log, "requests")
    copies = [
        line | {"at": line["at"] + shift / 1000} for line in lines if line["call"] != "token" for shift in range(120)
    ]
    records.lines("requests", lambda _: copies)
    violated(records, "calls came in a second")
    violated(records, "were surely started in a second")


def test_i8_a_server_that_was_slow_to_read_is_no_burst(records: Records) -> None:
    """Calls in the air that the server reads late and at once are not held against the client."""

    def doctor(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        calls = sorted((line for line in lines if line["call"] != "token"), key=lambda line: line["at"])
        for line in calls[-6:]:
            line["at"] = calls[-1]["at"]
        return lines

    records.lines("requests", doctor)
    assert records.check().violations == []


def test_i8_a_restart_too_soon(records: Records) -> None:
    """An execution that sends within a second of the last call of the one before is seen."""
    requests = server_log(records.log, "requests")
    last = max(line["at"] for line in requests)
    first = min(line["at"] for line in requests if line["call"] != "token")
    records.lines(
        "requests", lambda lines: [line | {"at": first + (line["at"] - first) / (last - first)} for line in lines]
    )
    violated(records, "within a second of the last one before them")


def test_i10_another_order(records: Records) -> None:
    """Requests applied in the opposite order are seen."""
    records.lines("applied", lambda lines: lines[::-1])
    violated(records, "I10")


def test_i10_doubt_excuses_only_its_own_rows(records: Records) -> None:
    """Where a part of each request was in doubt, the rest of it must still be in order."""
    records.lines("applied", lambda lines: lines[::-1])
    before = records.check().violations
    records.journal(
        "INSERT INTO move (load, request, first, count, move, attempt, execution, at) "
        "SELECT load, request, first, 1, 'unclear', 99, execution, at FROM move WHERE move = 'intent'"
    )
    after = records.check().violations
    assert any("I10" in each for each in after)
    records.journal("UPDATE move SET count = (SELECT max(count) FROM move) WHERE move = 'unclear' AND attempt = 99")
    assert any("I10" in each for each in before)
    assert not any("I10" in each for each in records.check().violations)
