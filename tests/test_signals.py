"""SIGTERM and SIGINT to the real command: start nothing new, wait for what is in flight, settle, 75; twice: at once."""

import contextlib
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import polars as pl
import pytest

from tests.command import GIVE_UP_S, Job, Server, agree, expect, serving, until, visits, write_csv

SIGNALS = (signal.SIGTERM, signal.SIGINT)
NOTHING_NEW_S = 0.2
"""So long after a signal no request may start any more."""


def reached(job: Job, words: str) -> bool:
    """Whether the running command has said this."""
    with contextlib.suppress(FileNotFoundError):
        return words in (job.folder / "stderr.log").read_text()
    return False


def exists(place: Path) -> bool:
    return place.exists()


def received(server: Server, enough: int) -> bool:
    return server.count() >= enough


def send(process: "subprocess.Popen[str]", number: signal.Signals) -> float:
    """Sends the signal; answers when, in epoch seconds."""
    at = time.time()
    process.send_signal(number)
    return at


def test_while_spooling_nothing_is_kept_and_nothing_sent(tmp_path: Path) -> None:
    """75; no part of the load stays, the exports are named as not taken yet; the same command then delivers them."""
    with serving(tmp_path / "log") as server:
        job = Job(tmp_path / "job", server.base_url)
        (job.folder / "many").mkdir()
        for place in range(300):
            path = job.folder / "many" / f"{place:04}.csv"
            job.truth[str(path)] = visits(1, first=place + 1)
            write_csv(path, job.truth[str(path)])
        process = job.start("many")
        until(partial(reached, job, "spooling"), "spooling")
        send(process, signal.SIGTERM)
        ended = job.wait(process)
        expect(ended, 75, "Stopping", "Stopped while staging", "nothing was sent", "Keep", "0000.csv", "Run the same")
        assert "arranging" not in ended.err, "it came too late to prove anything"
        assert server.count() == 0
        assert not list((job.state / "staged").glob("*"))
        expect(job.run("many"), 0, "delivered 300")
        assert agree(job, server) == {"delivered": 300}


def crowd(job: Job, rows: int) -> None:
    """So many rows that they are arranged in several pieces, nearly all of them repetitions: few calls deliver them."""
    known = visits(400, customers=400)
    whole = pl.DataFrame(
        {
            "n": [row.n for row in known],
            "timestamp": [row.at.isoformat(timespec="milliseconds") for row in known],
            "customer_key": [row.customer for row in known],
            "url": "api://shop/visit",
            "mark": "plain",
            "tid": "",
        }
    )
    pl.concat([whole] * (rows // 400)).write_csv(job.folder / "crowd.csv")
    job.truth[str(job.folder / "crowd.csv")] = known * (rows // 400)


def test_while_arranging_what_is_staged_is_kept_and_nothing_sent(tmp_path: Path) -> None:
    """75 between two pieces; the next execution goes on with the next piece and needs no export any more."""
    with serving(tmp_path / "log") as server:
        job = Job(tmp_path / "job", server.base_url)
        crowd(job, 320_000)
        process = job.start("crowd.csv")
        until(partial(exists, job.state / "staged" / "1" / "requests-00000.parquet"), "the first piece")
        send(process, signal.SIGINT)
        ended = job.wait(process)
        expect(ended, 75, "Stopped while staging", "nothing was sent", "unsent")
        staged = job.state / "staged" / "1"
        arranged = len(list(staged.glob("requests-*.parquet")))
        assert (staged / "manifest.json").exists()
        assert 0 < arranged < 3, "it came too late to prove anything"
        assert server.count() == 0
        first = (staged / "requests-00000.parquet").stat().st_mtime_ns
        (job.folder / "crowd.csv").unlink()
        expect(job.run(), 0, "read 320,000 = delivered 400", "duplicate 319,600")
        assert (staged / "requests-00000.parquet").stat().st_mtime_ns == first, "no piece is arranged twice"
        sent = [interaction for line in server.applied() for interaction in line["interactions"]]
        assert sorted(sent, key=lambda one: int(one["timestamp"])) == [
            row.interaction() for row in visits(400, customers=400)
        ]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_while_delivering_what_is_in_flight_is_waited_for(tmp_path: Path, number: signal.Signals) -> None:
    """75; by the server's log nothing new starts, what was in flight is delivered, nothing is in doubt."""
    with serving(tmp_path / "log", "latency_ms=400,until=12") as server:
        job = Job(tmp_path / "job", server.base_url, budget=40)
        job.export("a.csv", visits(6_000, customers=600))
        process = job.start("a.csv")
        until(partial(received, server, 4), "calls")
        at = send(process, number)
        ended = job.wait(process)
        expect(ended, 75, "Stopping", "Stopped by a signal", "in doubt 0", "Run the same command again")
        calls = server.calls()
        assert max(call["at"] for call in calls) <= at + NOTHING_NEW_S
        assert any(call["at"] < at < call["answered_at"] for call in calls), "nothing was in flight: this proves little"
        stopped = job.outcomes()
        assert stopped["delivered"] == sum(call["interactions"] for call in calls)
        assert stopped["delivered"] + stopped["unsent"] == 6_000
        expect(job.run("--set", "budget.requests_per_second=200", "a.csv"), 0)
        job.budget = 200
        # What had an intent and not been sent was planned again: a try that was never made.
        assert agree(job, server, attempts_seen=False) == {"delivered": 6_000}


def test_a_second_signal_stops_at_once_and_names_the_doubt(tmp_path: Path) -> None:
    """Within two seconds; the rows in flight, and no others, are in doubt and stay so; a rerun delivers the rest."""
    with serving(tmp_path / "log", "hold_s=60,after=4,until=8") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(8_000, customers=800))
        process = job.start("a.csv")
        until(partial(received, server, 5), "calls")
        time.sleep(0.5)  # all four lanes are being held now
        send(process, signal.SIGTERM)
        time.sleep(0.5)
        assert process.poll() is None, "the first signal waits for what is in flight"
        again = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.wait(GIVE_UP_S)
        assert time.monotonic() - again < 2
        ended = job.wait(process)
        expect(ended, 75, "Stopped by a signal", "in doubt 400", "--outcome in_doubt")
        held = job.ledger().filter(outcome="in_doubt")
        assert (held.height, held["request"].n_unique()) == (400, 4)
        assert {reason for reasons in held["reasons"].to_list() for reason in reasons[:1]} == {"no_reply"}
        expect(job.run("a.csv"), 4, "delivered 7,600", "in doubt 400")
    # What was held stands in the server's log only now that it has ended.
    assert agree(job, server) == {"delivered": 7_600, "in_doubt": 400}


def test_the_wait_for_what_is_in_flight_is_bounded(tmp_path: Path) -> None:
    """After shutdown_grace_s whoever has not answered leaves its request in doubt; one signal is enough."""
    with serving(tmp_path / "log", "hold_s=60,after=2,until=3") as server:
        job = Job(tmp_path / "job", server.base_url, {"delivery": {"shutdown_grace_s": 0.5}})
        job.export("a.csv", visits(500))
        process = job.start("a.csv")
        until(partial(received, server, 3), "calls")
        time.sleep(0.3)
        began_s = time.monotonic()
        send(process, signal.SIGTERM)
        ended = job.wait(process, began_s)
        expect(ended, 75, "delivered 200", "in doubt 100", "unsent 200")
        assert 0.4 < ended.seconds < 2.5
        expect(job.run("a.csv"), 4)
    assert agree(job, server) == {"delivered": 400, "in_doubt": 100}


def test_a_signal_while_waiting_for_a_retry_ends_at_once(tmp_path: Path) -> None:
    """With nothing in flight there is nothing to wait for, however long the backoff or Retry-After."""
    with serving(tmp_path / "log", "status=503,retry_after=600,until=1") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(150))
        process = job.start("a.csv")
        until(partial(received, server, 2), "a call")
        time.sleep(0.2)
        began_s = time.monotonic()
        send(process, signal.SIGTERM)
        ended = job.wait(process, began_s)
        expect(ended, 75, "unsent 150", "in doubt 0")
        assert ended.seconds < 2
        expect(job.run("a.csv"), 0)
        assert agree(job, server) == {"delivered": 150}
