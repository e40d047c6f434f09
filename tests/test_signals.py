"""Signals to the real command, at any moment: nothing new, wait for what is in flight, settle, 75; twice: at once.

The sweeps take one job through many executions, each with one more export and each signalled at another moment of its
life; at the end the ledger is held against the server's log.
"""

import contextlib
import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import polars as pl
import pytest

from tests.command import GIVE_UP_S, ROOT, Ended, Job, Server, agree, expect, serving, until, visits, write_csv

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
        expect(ended, 75, "Stopped by a signal", "in doubt 400", "Rows in doubt")
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


# ----------------------------------------------------------------------------------------------------- at any moment


SWEPT = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
MOMENTS = 7
"""In each of two jobs at once, so that they take no longer than the machine's second core allows."""


def moments(life_s: float, count: int, seed: int) -> Iterator[float]:
    """Seconds from the start, one at random in each equal share of an execution's life."""
    chance = random.Random(seed)
    return ((place + chance.random()) / count * life_s for place in range(count))


def touched(job: Job) -> dict[str, int]:
    """Every file of the state with the time of its last change."""
    return {str(path): path.stat().st_mtime_ns for path in job.state.rglob("*")}


def holds(job: Job, process: "subprocess.Popen[str]") -> bool:
    """Whether the job is held by this process."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return bool(json.loads((job.state / "lock").read_text())["pid"] == process.pid)
    return False


def one_more(job: Job, place: int) -> None:
    """Another export of seven requests."""
    job.export(f"exports/{place:03}.csv", visits(700, first=1 + place * 700, customers=350))


def answered_well(ended: Ended, sent: signal.Signals) -> bool:
    """75, or 0 where all was done. True where the signal came too early for us, and ended us as any program."""
    lines = ended.err.splitlines()
    own = [line for line in lines if "backfill" in line]
    if ended.code in (-sent, 130) or (ended.code == 1 and lines[-1:] == ["KeyboardInterrupt"]):
        assert "Traceback" not in ended.err or not own, ended.said  # only the interpreter's own start may show one
        return True
    assert ended.code in (0, 75), ended.said
    assert "Traceback" not in ended.said, ended.said
    return False


def swept(folder: Path, seed: int) -> None:
    """One job, interrupted again and again by one signal."""
    with serving(folder / "log", "latency_ms=60") as server:
        job = Job(folder / "job", server.base_url, budget=100)
        one_more(job, 0)
        whole = job.run("exports")
        expect(whole, 0)
        for place, delay_s in enumerate(moments(whole.seconds, MOMENTS, seed), start=1):
            one_more(job, place)
            before, calls = touched(job), server.count()
            number = SWEPT[(place + seed) % 3]
            process = job.start("exports")
            begun = bool(place % 2)  # however long a busy machine takes to start it
            if begun:
                until(partial(holds, job, process), "the lock")
            time.sleep(delay_s)
            at = send(process, number)
            ended = job.wait(process)
            if answered_well(ended, number):
                assert not begun
                assert (touched(job), server.count()) == (before, calls), "it had begun, and did not answer for itself"
            assert ended.seconds < 10, ended.said
            assert not [call for call in server.calls() if call["at"] > at + NOTHING_NEW_S]
        expect(job.run("exports"), 0)
        rows = 700 * (MOMENTS + 1)
        assert agree(job, server, attempts_seen=False) == {"delivered": rows}


def test_a_signal_at_any_moment_loses_nothing_and_leaves_no_doubt(tmp_path: Path) -> None:
    """75 or 0, no traceback, nothing new after 200 ms, what is in flight is waited for; the last rerun completes."""
    with ThreadPoolExecutor(2) as threads:
        for ran in [threads.submit(swept, tmp_path / str(seed), seed) for seed in (1, 2)]:
            ran.result()


def swept_twice(folder: Path, seed: int) -> None:
    """One job, interrupted again and again by two signals, while the server now and then holds its replies."""
    moments_each = 3
    with serving(folder / "log", "hold_s=300,after=8,every=5") as server:
        job = Job(folder / "job", server.base_url, budget=100)
        one_more(job, 0)
        whole = job.run("exports")
        expect(whole, 0)
        for place, delay_s in enumerate(moments(max(whole.seconds, 1.5), moments_each, seed), start=1):
            one_more(job, place)
            process = job.start("exports")
            time.sleep(0.2 + delay_s)
            first = send(process, signal.SIGTERM)
            time.sleep(0.1)
            again_s = time.monotonic()
            process.send_signal(signal.SIGINT)
            ended = job.wait(process, again_s)
            answered_well(ended, signal.SIGTERM)
            assert ended.seconds < 2, ended.said
            assert not [call for call in server.calls() if call["at"] > first + NOTHING_NEW_S]
    # The same server without the trouble; what was held stands in its log only now that it has ended.
    with serving(folder / "log", port=server.base_url.rpartition(":")[2]) as server:
        ended = job.run("exports")
        assert ended.code in (0, 4), ended.said
        outcomes = agree(job, server, attempts_seen=False, kills=moments_each)
    assert sum(outcomes.values()) == 700 * (moments_each + 1)
    assert set(outcomes) <= {"delivered", "in_doubt"}
    assert outcomes.get("in_doubt", 0) <= moments_each * 8 * 100, "more than what was in flight"


def test_two_signals_at_any_moment_stop_within_two_seconds(tmp_path: Path) -> None:
    """Also while replies are held: nothing new starts, and nothing but what was in flight is in doubt."""
    with ThreadPoolExecutor(2) as threads:
        for ran in [threads.submit(swept_twice, tmp_path / str(seed), seed) for seed in (3, 4)]:
            ran.result()


# ------------------------------------------------------------------------------------------- where Python cannot answer

DEAF = """
import hashlib, sys
from backfill.cli.signals import Watch
from backfill.core.stop import Stop
with Watch(Stop(), as_json=True):
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 1_000_000_000)  # many minutes without a step of Python's
"""


def test_a_second_signal_ends_even_who_is_deep_in_a_native_call(tmp_path: Path) -> None:
    """No handler of Python's runs meanwhile: the first is answered all the same, the second ends it, as JSON."""
    with (tmp_path / "err").open("w") as err:
        process = subprocess.Popen(
            [sys.executable, "-c", DEAF], stdout=subprocess.PIPE, stderr=err, text=True, cwd=ROOT
        )
    assert process.stdout is not None
    assert process.stdout.readline() == "busy\n"
    process.send_signal(signal.SIGTERM)
    until(lambda: "Stopping" in (tmp_path / "err").read_text(), "an answer")
    assert process.poll() is None
    again_s = time.monotonic()
    process.send_signal(signal.SIGTERM)
    said = json.loads(process.stdout.read())
    assert process.wait(GIVE_UP_S) == 75
    assert time.monotonic() - again_s < 2
    assert said["error"]["exit_code"] == 75
    assert "Stopped at once" in said["error"]["message"]
    process.stdout.close()


def test_a_reader_that_does_not_read_cannot_hold_the_process(tmp_path: Path) -> None:
    """The whole job is done, its summary finds the pipe full: two signals end it, and a rerun has nothing to send."""
    with serving(tmp_path / "log") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(300))
        read, write = os.pipe()
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
        os.write(write, b"x" * 4096)

        def onto_the_pipe() -> None:
            os.dup2(write, 1)

        process = job.start("a.csv", before=onto_the_pipe)
        os.close(write)
        until(partial(exists, job.state / "ledger" / "manifest.json"), "the ledger")
        time.sleep(0.5)
        send(process, signal.SIGTERM)
        time.sleep(0.2)
        assert process.poll() is None
        again_s = time.monotonic()
        send(process, signal.SIGTERM)
        assert job.wait(process, again_s).seconds < 2
        assert process.returncode == 75
        os.close(read)
        expect(job.run("a.csv"), 0)
        assert len(server.calls()) == 3
        assert agree(job, server) == {"delivered": 300}


def test_while_the_embedded_sandbox_starts_it_is_not_waited_for(tmp_path: Path) -> None:
    """75 at once, and no sandbox is left behind."""
    job = Job(tmp_path / "job", "http://127.0.0.1:9")
    job.export("a.csv", visits(100))
    process = job.start("--sandbox", "a.csv")
    words = job.state / "sandbox" / "stderr.log"
    until(partial(exists, words), "the sandbox's start")
    began_s = time.monotonic()
    send(process, signal.SIGTERM)
    ended = job.wait(process, began_s)
    expect(ended, 75, "Stopped by a signal while the sandbox started")
    assert ended.seconds < 2
    assert not sandboxes(job.state / "sandbox")
    expect(job.run("--sandbox", "a.csv"), 0, "delivered 100")


def sandboxes(folder: Path) -> list[str]:
    """Processes that name this folder in their arguments."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(folder).encode() in place.read_bytes():
                found.append(place.parent.name)
    return found
