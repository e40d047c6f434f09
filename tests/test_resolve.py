"""`backfill resolve` as a user types it: what is shown, what is decided, what the next run makes of it."""

import csv
import fcntl
import os
import pty
import select
import signal
import sqlite3
import struct
import subprocess
import sys
import termios
import time
from contextlib import closing
from pathlib import Path

import polars as pl
import pytest

from tests.command import PRIVATE, ROOT, Job, agree, expect, serving, until, visits


def notes(job: Job) -> list[tuple[str, str | None]]:
    """(command, note) of every execution in the journal."""
    with closing(sqlite3.connect(job.state / "journal.db")) as connection:
        return connection.execute("SELECT command, note FROM execution ORDER BY id").fetchall()


def moves(job: Job) -> int:
    with closing(sqlite3.connect(job.state / "journal.db")) as connection:
        return int(connection.execute("SELECT count(*) FROM move").fetchone()[0])


def test_without_a_decision_it_shows_and_changes_nothing(tmp_path: Path) -> None:
    """The preview names counts, causes, times and what to do; ledger and journal stay as they are."""
    with serving(tmp_path / "log", "drop=after,every=4") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(1_500, customers=300))
        expect(job.run("a.csv"), 4, "in doubt 300", "backfill resolve")
        before, made = job.outcomes(), moves(job)
        shown = job.run(command="resolve")
        expect(shown, 0, "300 rows in 3 requests (no_reply 300)", "a.csv 300", "nothing was decided", "--not-delivered")
        said = job.run("--json", command="resolve").object()
        assert (said["rows"], said["by_cause"], said["carried_out"]) == (300, {"no_reply": 300}, False)
        assert (job.outcomes(), moves(job)) == (before, made)
        assert notes(job) == [("run", None)]


def test_rows_taken_as_delivered_are_final_and_named_assumed(tmp_path: Path) -> None:
    """Their reason tells that a person said so, the note is journaled, and the next run sends nothing."""
    with serving(tmp_path / "log", "drop=after,every=4") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(1_500, customers=300))
        expect(job.run("a.csv"), 4)
        ended = job.run("--delivered", "--note", "ticket 4711", command="resolve")
        expect(ended, 0, "taken as delivered", "delivered 1,500", "in doubt 0")
        assert job.ledger().filter(pl_has("assumed")).height == 300
        assert notes(job)[-1] == ("resolve", "ticket 4711")
        calls = len(server.calls())
        expect(job.run("a.csv"), 0)
        assert len(server.calls()) == calls
        assert agree(job, server) == {"delivered": 1_500}


def pl_has(reason: str) -> pl.Expr:
    return pl.col("reasons").list.contains(reason)


@pytest.mark.parametrize(("option", "rule", "marked"), [("--not-delivered", "read", 0), ("--resend", "after", 300)])
def test_rows_to_be_sent_again_are_sent_by_the_next_run(tmp_path: Path, option: str, rule: str, marked: int) -> None:
    """What the vendor never got is sent unmarked; what may have arrived is sent again and marked."""
    with serving(tmp_path / "log", f"drop={rule},every=4,until=12") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(1_500, customers=300))
        expect(job.run("a.csv"), 4, "in doubt 300")
        expect(job.run(option, command="resolve"), 0, "unsent 300", "Next", "backfill run")
        expect(job.run("a.csv"), 0)
        assert job.ledger()["maybe_duplicate"].sum() == marked
        assert agree(job, server) == {"delivered": 1_500}


def test_an_abandoned_export_is_never_sent_though_it_shares_requests(tmp_path: Path) -> None:
    """Single rows are taken: requests that hold rows of both exports are cut, the others' rows still go."""
    with serving(tmp_path / "log") as server:
        job = Job(tmp_path / "job", server.base_url)
        right = visits(900, customers=300)
        job.export("right.csv", right[::2])
        job.export("wrong.csv", [visit._replace(mark="wrong") for visit in right[1::2]])
        expect(job.run("right.csv", "wrong.csv", "--limit", "150"), 75)
        sent = job.ledger().filter(outcome="delivered")["export"].str.ends_with("wrong.csv").sum()
        assert sent > 0
        expect(job.run("--export", "wrong.csv", "--abandon", command="resolve"), 0, "abandoned")
        expect(job.run("right.csv", "wrong.csv"), 0)
        assert agree(job, server) == {"delivered": 450 + sent, "abandoned": 450 - sent}
        assert (
            sum(
                property_["value"] == "wrong"
                for request in server.applied()
                for interaction in request["interactions"]
                for property_ in interaction["properties"]
            )
            == sent
        )


def test_what_was_sent_again_and_is_then_abandoned_is_in_doubt_again(tmp_path: Path) -> None:
    """It may have been applied by the first attempt, so nobody may call it abandoned."""
    with serving(tmp_path / "log", "drop=after,every=4") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(800, customers=300))
        expect(job.run("a.csv"), 4, "in doubt 200")
        expect(job.run("--resend", command="resolve"), 0)
        ended = job.run("--abandon", command="resolve")
        expect(ended, 0, "200 rows", "in doubt 200", "abandoned 0")
        assert "abandoned" in job.reasons("in_doubt")
        expect(job.run("a.csv"), 4)
        assert agree(job, server) == {"delivered": 600, "in_doubt": 200}


def test_a_load_that_was_never_arranged_can_be_abandoned(tmp_path: Path) -> None:
    """An export that somebody regrets before the first call: its requests are made only to be given up."""
    with serving(tmp_path / "log") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(300, customers=300))
        expect(job.run("a.csv", "--set", f"budget.window={window_elsewhere()}"), 75)
        expect(job.run("a.csv", "--limit", "1"), 75)
        expect(job.run("--abandon", "--yes", command="resolve"), 0)
        expect(job.run("a.csv"), 0)
        assert agree(job, server) == {"delivered": 1, "abandoned": 299}


def window_elsewhere() -> str:
    """A time window of one hour that is not now, in UTC."""
    hour = (time.gmtime().tm_hour + 6) % 24
    return f"{hour:02}:00-{hour:02}:30"


def test_filters_choose_by_request_cause_and_time(tmp_path: Path) -> None:
    """Each request of the list is decided alone; what the filters leave out stays in doubt."""
    with serving(tmp_path / "log", "drop=after,every=4", "status=500,every=6") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(2_000, customers=300))
        expect(job.run("a.csv"), 4)
        doubt = job.ledger().filter(outcome="in_doubt")
        by_cause = {why: doubt.filter(pl_has(why)).height for why in ("no_reply", "server_error")}
        assert all(by_cause.values())
        said = job.run("--cause", "server_error", "--json", command="resolve").object()
        assert said["by_cause"] == {"server_error": by_cause["server_error"]}
        request = doubt["request"][0]
        said = job.run("--request", f"1/{request}", "--delivered", "--json", command="resolve").object()
        assert (said["carried_out"], said["rows"]) == (True, 100)
        assert job.outcomes()["in_doubt"] == doubt.height - 100
        assert job.run("--until", "2020-01-01T00:00:00Z", "--json", command="resolve").object()["rows"] == 0
        assert job.run("--since", "2020-01-01T00:00:00Z", "--json", command="resolve").object()["rows"] > 0


def test_the_list_for_the_vendor_has_exactly_the_rows_concerned(tmp_path: Path) -> None:
    """With keys, times, requests and attempts, readable by its owner only; the screen shows no customer."""
    with serving(tmp_path / "log", "drop=after,every=4") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(1_500, customers=300))
        expect(job.run("a.csv"), 4)
        expect(job.run("--rows", "ask.csv", command="resolve"), 0, "ask.csv")
        with (job.folder / "ask.csv").open(newline="") as file:
            told = list(csv.DictReader(file))
        doubt = job.ledger().filter(outcome="in_doubt")
        assert sorted(int(line["row"]) for line in told) == sorted(doubt["row"].to_list())
        assert all(line["customer_key"].startswith(PRIVATE) and line["sent_at"] for line in told)
        assert (job.folder / "ask.csv").stat().st_mode & 0o777 == 0o600


def test_a_killed_run_leaves_doubt_that_can_be_decided_at_once(tmp_path: Path) -> None:
    """Without another run in between: what was in flight is in doubt by its crash."""
    with serving(tmp_path / "log", "hold_s=30,after=3") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(10_000, customers=4_000))
        process = job.start("a.csv")
        until(lambda: server.count() >= 4, "three calls and the token's")
        time.sleep(0.5)  # what is held stands in the server's log only afterwards
        held = job.run("--json", command="resolve")
        expect(held, 11, "Another execution", str(process.pid))
        process.send_signal(signal.SIGKILL)
        process.wait()
        shown = job.run("--json", command="resolve").object()
        assert shown["rows"] > 0
        assert shown["by_cause"] == {"crash": shown["rows"]}
        assert job.run("--cause", "crash", "--not-delivered", "--json", command="resolve").object()["carried_out"]
        assert "in_doubt" not in job.outcomes()


def test_names_that_the_job_does_not_have_are_usage_errors(tmp_path: Path) -> None:
    """A typing error must not come out as a reassuring nothing."""
    with serving(tmp_path / "log") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(10))
        expect(job.run("a.csv"), 0)
        expect(job.run("--export", "b.csv", command="resolve"), 2, "b.csv is no export of this job", "a.csv")
        expect(job.run("--load", "2", command="resolve"), 2, "There is no load 2 in this job; it has loads 1 to 1.")
        expect(job.run("--request", "1-2", command="resolve"), 2, "LOAD/REQUEST")
        expect(job.run("--since", "yesterday", command="resolve"), 2, "ISO 8601")
        expect(job.run("--until", "2024-01-01T00:00:00", command="resolve"), 2, "no offset")
        expect(job.run("--cause", "bad_luck", command="resolve"), 2, "crash")
    nowhere = Job(tmp_path / "nowhere", "http://127.0.0.1:1")
    expect(nowhere.run(command="resolve"), 78, "There is no job")


def test_on_a_terminal_it_asks_before_it_decides(tmp_path: Path) -> None:
    """No leaves everything as it was; yes carries it out."""
    with serving(tmp_path / "log", "drop=after,every=4") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(400, customers=300))
        expect(job.run("a.csv"), 4)
        assert "[y/N]" in on_a_terminal(job, "n\n")
        assert job.outcomes()["in_doubt"] == 100
        assert "taken as delivered" in on_a_terminal(job, "y\n")
        assert "in_doubt" not in job.outcomes()


def on_a_terminal(job: Job, answer: str) -> str:
    """`resolve --delivered` on a pseudo-terminal, the question answered; what it said."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    words = [sys.executable, "-m", "backfill", "resolve", "--state", str(job.state), "--delivered"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=job.folder)
    os.close(theirs)
    said, answered = b"", False
    while select.select([ours], [], [], 30)[0]:
        try:
            said += os.read(ours, 4096)
        except OSError:  # Linux says so when the other end is closed
            break
        if not answered and b"[y/N]" in said:
            os.write(ours, answer.encode())
            answered = True
    process.wait(30)
    os.close(ours)
    return said.decode()
