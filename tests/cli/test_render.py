"""What a person reads, as whole texts that can be checked by eye."""

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from backfill.cli.progress import Lines
from backfill.cli.render import (
    JobView,
    duration,
    next_steps,
    progress_line,
    status_json,
    status_text,
    summary_json,
    summary_text,
    verdict_json,
    verdict_text,
)
from backfill.core.errors import ExitCode
from backfill.core.summary import OUTCOMES, ExportCounts, Progress, Summary

JUNE = ExportCounts(
    export="/data/june.csv", load=1, read=10_000, outcomes={"delivered": 9_812, "invalid": 31, "duplicate": 157}
)
JULY = ExportCounts(export="/data/july.parquet", load=1, read=500, outcomes={"delivered": 400, "in_doubt": 100})
EMPTY = ExportCounts(export="/data/empty.csv", load=1, read=0, outcomes={})


def summary(**changes: Any) -> Summary:
    plain = Summary(
        exports=(JUNE,),
        exit_code=ExitCode.COMPLETE,
        ledger=".backfill/june/ledger",
        state=".backfill/june",
        execution=1,
        requests=104,
        duration_s=12.34,
    )
    return replace(plain, **changes)


def test_a_complete_run() -> None:
    """What happened, the closing equation, where the ledger lies, what to do next."""
    assert summary_text(summary()) == (
        "Complete: every row is accounted for.\n"
        "Sent     104 calls in 12.3 s (execution 1)\n"
        "Account  read 10,000 = delivered 9,812 + invalid 31 + rejected 0 + duplicate 157 + in doubt 0 + "
        "abandoned 0 + unsent 0\n"
        "Ledger   .backfill/june/ledger\n"
        "Next     31 invalid rows were not delivered: `backfill ledger --state .backfill/june --outcome invalid` shows "
        "why. Deliver them, mended, as an export of their own.\n"
    )


def test_a_complete_run_without_a_fault() -> None:
    """Where every row was delivered nothing is asked of anybody, and one command doubts all of it."""
    clean = replace(JUNE, read=9_812, outcomes={"delivered": 9_812})
    assert summary_text(summary(exports=(clean, EMPTY))) == (
        "Complete: every row is accounted for.\n"
        "Sent     104 calls in 12.3 s (execution 1)\n"
        "Account  read 9,812 = delivered 9,812 + invalid 0 + rejected 0 + duplicate 0 + in doubt 0 + abandoned 0 + "
        "unsent 0\n"
        "Ledger   .backfill/june/ledger\n"
        "Next     Nothing is left to do. `backfill verify --state .backfill/june` recomputes this account from the "
        "files.\n"
    )


def test_a_run_that_stopped_early() -> None:
    """Why, when to come back, what to keep, that the same command continues, and which exports miss most rows."""
    stopped = summary(
        exports=(JUNE, JULY, EMPTY),
        exit_code=ExitCode.STOPPED_EARLY,
        stopped="The server asks to wait for an hour.",
        resume_after="2024-06-01T12:00:00+00:00",
        not_taken=("/data/a.csv", "/data/b.csv", "/data/c.csv", "/data/d.csv"),
        requests=1,
        duration_s=3725.0,
        execution=2,
    )
    assert summary_text(stopped) == (
        "Stopped early; running it again continues.\n"
        "Reason   The server asks to wait for an hour.\n"
        "         Not before 2024-06-01T12:00:00+00:00.\n"
        "Sent     1 call in 1 h 02 min (execution 2)\n"
        "Account  read 10,500 = delivered 10,212 + invalid 31 + rejected 0 + duplicate 157 + in doubt 100 + "
        "abandoned 0 + unsent 0\n"
        "Exports  july.parquet  read 500: delivered 400, in doubt 100\n"
        "         june.csv      read 10,000: delivered 9,812, invalid 31, duplicate 157\n"
        "Ledger   .backfill/june/ledger\n"
        "Keep     /data/a.csv, /data/b.csv, /data/c.csv and 1 more: not taken yet, the next execution needs them\n"
        "Next     Run the same command again; it goes on where it stopped.\n"
        "         Rows in doubt are not sent again by themselves. `backfill resolve --state .backfill/june` shows "
        "them; ask the vendor whether they arrived, then decide there.\n"
    )


def test_an_account_that_does_not_add_up_says_so() -> None:
    """A broken equation is never printed as if it held."""
    short = replace(JUNE, read=10_001)
    assert "does not add up" in summary_text(summary(exports=(short,)))
    assert summary_json(summary(exports=(short,)))["balanced"] is False


@pytest.mark.parametrize("code", [code for code in ExitCode if code not in (ExitCode.USAGE, ExitCode.JOB_HELD)])
def test_every_end_has_a_headline_and_a_next_step(code: ExitCode) -> None:
    """No exit code that a summary can carry leaves a person without an answer."""
    assert next_steps(code, ".backfill/june", {"delivered": 1})
    assert "exit code" not in summary_text(summary(exit_code=code)).splitlines()[0]


def test_a_state_with_blanks_can_be_pasted() -> None:
    """Commands in the text are quoted for a shell."""
    assert "--state '/my data/june'" in next_steps(ExitCode.COMPLETE, "/my data/june", {})[0]


def test_many_exports_are_not_all_listed() -> None:
    """A thousand exports still make a summary of half a screen, which names the three that miss most rows."""
    exports = tuple(replace(JUNE, export=f"/data/{n}.csv", outcomes={"invalid": n}) for n in range(1000))
    text = summary_text(summary(exports=exports, exit_code=ExitCode.ROWS_REFUSED))
    assert len(text.splitlines()) < 12
    assert re.findall(r"\d+\.csv", text) == ["999.csv", "998.csv", "997.csv"]
    assert "and 996 more; --json names each" in text


def test_the_summary_as_json() -> None:
    """The documented object: the same facts, with machine words and every outcome."""
    value = summary_json(summary(exit_code=ExitCode.ROWS_REFUSED, warnings=("careful",)))
    assert value == {
        "exit_code": 3,
        "stopped": None,
        "resume_after": None,
        "remaining_calls": 0,
        "remaining_s": 0.0,
        "read": 10_000,
        "outcomes": {**dict.fromkeys(OUTCOMES, 0), "delivered": 9_812, "invalid": 31, "duplicate": 157},
        "balanced": True,
        "exports": [
            {
                "export": "/data/june.csv",
                "load": 1,
                "read": 10_000,
                "outcomes": {**dict.fromkeys(OUTCOMES, 0), "delivered": 9_812, "invalid": 31, "duplicate": 157},
            }
        ],
        "not_taken": [],
        "requests": 104,
        "duration_s": 12.34,
        "execution": 1,
        "ledger": ".backfill/june/ledger",
        "state": ".backfill/june",
        "warnings": ["careful"],
    }


# -------------------------------------------------------------------------------------------------------- progress


def test_a_line_of_progress() -> None:
    """Time, phase, rows and share; counters only where there is something to count."""
    delivering = Progress("delivering", 120_000, 1_000_000, requests=1_312, in_doubt=3, rejected=2, budget_share=0.5)
    assert progress_line(delivering, 65.2) == (
        "00:01:05 delivering 120,000 of 1,000,000 rows (12%), 1,312 calls, 50% of the budget, 3 in doubt, 2 rejected"
    )
    assert progress_line(Progress("spooling", 5, None), 0) == "00:00:00 spooling 5 rows"
    assert progress_line(Progress("delivering", 0, 0), 0) == "00:00:00 delivering 0 of 0 rows"


def test_lines_come_with_a_new_phase_and_then_every_five_seconds() -> None:
    """A log of a long run stays short, and still shows every phase."""
    now, lines = [0.0], list[str]()
    shown = Lines(lines.append, lambda: now[0])
    for tenth in range(120):
        now[0] = tenth / 10
        shown.report(Progress("spooling" if tenth < 30 else "delivering", tenth, None))
    assert lines == [
        "00:00:00 spooling 0 rows",
        "00:00:03 delivering 30 rows",
        "00:00:08 delivering 80 rows, 10 rows/s",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (12.34, "12.3 s"), (65, "1 min 05 s"), (3599.9, "59 min 59 s"), (90_000, "25 h 00 min")],
)
def test_durations(seconds: float, text: str) -> None:
    """Each in the unit that a person would use."""
    assert duration(seconds) == text


# ---------------------------------------------------------------------------------------------------------- status

NOW = datetime(2024, 6, 1, 12, 0, 30, tzinfo=UTC)
STATUS: Mapping[str, Any] = {
    "pid": 812,
    "host": "box",
    "execution": 3,
    "running_s": 65.0,
    "updated_at": "2024-06-01T12:00:29.500+00:00",
    "exit_code": None,
    "phase": "delivering",
    "rows_done": 120,
    "rows_total": 1_000,
    "requests": 4,
    "in_doubt": 0,
    "rejected": 0,
    "budget_share": None,
}


def view(**changes: Any) -> JobView:
    plain = JobView(
        state=".backfill/june",
        tenant="https://mxo.example, site key ONE-1, interactions-offline",
        status=STATUS,
        alive=True,
        accounted=(JUNE,),
        unaccounted=((2, (("/data/july.csv", 1_000),)),),
        ledger_as_of="2024-06-01T11:00:00+00:00",
    )
    return replace(plain, **changes)


def test_a_job_that_is_running() -> None:
    """Who works on it and how far, what the ledger holds and what it does not yet."""
    assert status_text(view(), NOW) == (
        "Job      .backfill/june\n"
        "Tenant   https://mxo.example, site key ONE-1, interactions-offline\n"
        "Now      execution 3 (pid 812 on box) is delivering 120 of 1,000 rows (12%), 4 calls\n"
        "Load 1   june.csv: read 10,000 = delivered 9,812 + invalid 31 + rejected 0 + duplicate 157 + in doubt 0 + "
        "abandoned 0 + unsent 0\n"
        "Load 2   july.csv: 1,000 rows, not in the ledger yet\n"
        "Ledger   .backfill/june/ledger, as of 2024-06-01T11:00:00+00:00\n"
    )


def test_a_job_whose_execution_was_killed() -> None:
    """A dead process is not shown as running, and the next step is named."""
    dead = view(alive=False)
    text = status_text(dead, NOW)
    assert "died while delivering 120 of 1,000 rows" in text
    assert "Next     Run the same command again" in text
    assert status_json(dead)["running"] is False


def test_a_job_that_ended() -> None:
    """The exit code of the last execution and when."""
    ended = view(status={**STATUS, "exit_code": 75})
    assert "execution 3 ended with exit code 75 at 2024-06-01T12:00:29.500+00:00" in status_text(ended, NOW)
    assert status_json(ended)["running"] is False


def test_a_job_with_rows_unsent() -> None:
    """After an early stop the next step is named, though the ledger holds every load."""
    unsent = replace(JUNE, outcomes={"delivered": 9_000, "unsent": 1_000})
    stopped = view(status={**STATUS, "exit_code": 75}, accounted=(unsent,), unaccounted=())
    assert status_text(stopped, NOW).endswith("Next     Run the same command again; it goes on where it stopped.\n")
    assert "Next" not in status_text(replace(stopped, accounted=(JUNE,)), NOW)


def test_a_job_of_many_exports_fits_the_screen() -> None:
    """A nightly job of years shows its newest exports; JSON has them all."""
    many = view(accounted=tuple(replace(JUNE, load=n, export=f"/data/{n}.csv") for n in range(1, 1001)))
    text = status_text(many, NOW)
    assert "Loads    990 exports more" in text
    assert "Load 1000" in text
    assert len(text.splitlines()) < 20
    assert len(status_json(many)["exports"]) == 1000


def test_an_execution_that_fell_silent() -> None:
    """One that has told nothing for a while is said to, on this host or another."""
    later = datetime(2024, 6, 1, 12, 5, 0, tzinfo=UTC)
    assert "it has said nothing for 4 min 30 s" in status_text(view(alive=None), later)
    assert "said nothing" not in status_text(view(alive=None), NOW)


def test_a_job_at_its_very_beginning() -> None:
    """Before the first freeze there is a lock and nothing else; nothing is made up."""
    bare = view(status=None, alive=None, tenant=None, accounted=(), unaccounted=(), ledger_as_of=None)
    assert status_text(bare, NOW) == (
        "Job      .backfill/june\nNow      no execution has told anything yet\nLoads    none yet\n"
    )
    assert status_json(bare)["last"] is None


@pytest.mark.parametrize("status", [{}, {"phase": "starting"}, {"rows_done": "x", "updated_at": 5, "requests": None}])
def test_a_strange_status_is_no_reason_to_fail(status: dict[str, Any]) -> None:
    """status.json of another version still shows what it has."""
    assert "Now      " in status_text(view(status=status), NOW)


# --------------------------------------------------------------------------------------------------------- verdict

CLAIMS = {"files": "every file is there", "rows": "each row once"}


def test_a_good_verdict() -> None:
    """Every check with claim and evidence, then the account."""
    assert verdict_text([("files", True, "3 parts"), ("rows", True, "")], (JUNE, JULY), CLAIMS) == (
        "Everything agrees (2 checks).\n"
        "ok     files     every file is there\n"
        "                 3 parts\n"
        "ok     rows      each row once\n"
        "Account  read 10,500 = delivered 10,212 + invalid 31 + rejected 0 + duplicate 157 + in doubt 100 + "
        "abandoned 0 + unsent 0\n"
    )


def test_a_bad_verdict() -> None:
    """What does not agree stands in the first line, and the last says what mends it."""
    text = verdict_text([("files", False, "1/part-00000.parquet is missing"), ("rows", True, "")], (JUNE,), CLAIMS)
    assert text.startswith("Something does not agree: files.\nWRONG  files     every file is there\n")
    assert "backfill run" in text.splitlines()[-1]
    assert verdict_json([("files", False, "x")], ())["ok"] is False
