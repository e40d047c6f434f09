"""Several executions of one job at once: one works, the others learn who holds it, and those that only look disturb
nobody.
"""

import contextlib
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.account import AGENT
from tests.command import (
    CLIENT_ID,
    GIVE_UP_S,
    ROOT,
    SECRET,
    Job,
    Server,
    agree,
    discreet,
    expect,
    serving,
    until,
    visits,
)

SOON_S = 2.0
"""Within so long who comes second must have left, the start of the interpreter included."""


def command(
    job: Job, *words: str | Path, state: Path | None = None, cwd: Path | None = None
) -> "subprocess.Popen[str]":
    """A command on the job with output of its own; `state`: by which path."""
    where = ["--state", str(job.state if state is None else state)]
    if words[0] == "run":
        where += ["--config", str(job.folder / "backfill.toml")]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BACKFILL_")}
    return subprocess.Popen(
        [sys.executable, "-m", "backfill", *map(str, words), *where],
        cwd=job.folder if cwd is None else cwd,
        env=inherited | {"PYTHONPATH": str(ROOT), "BACKFILL_CLIENT_ID": CLIENT_ID, "BACKFILL_CLIENT_SECRET": SECRET},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def told(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """How it ended and what it said."""
    out, err = process.communicate(timeout=GIVE_UP_S)
    discreet(out + err)
    assert "Traceback" not in err
    return process.returncode, out, err


def received(server: Server, enough: int) -> bool:
    return server.count() >= enough


@contextlib.contextmanager
def busy(folder: Path, rows: int = 3_000, *, budget: float = 20.0) -> Iterator[tuple[Job, Server]]:
    """A job that takes some seconds, and its server."""
    with serving(folder / "log") as server:
        job = Job(folder / "job", server.base_url, budget=budget)
        job.export("a.csv", visits(rows, customers=300))
        yield job, server


@pytest.fixture
def bound(tmp_path: Path) -> Iterator[Callable[[Path], Path | None]]:
    """Shows a directory at a second place, where the system lets us."""
    mounted: list[Path] = []

    def bind(place: Path) -> Path | None:
        other = tmp_path / "bound"
        other.mkdir()
        with contextlib.suppress(FileNotFoundError):
            if (
                os.geteuid() == 0
                and not subprocess.run(["mount", "--bind", place, other], capture_output=True).returncode
            ):
                mounted.append(other)
                return other
        return None

    yield bind
    for other in mounted:
        subprocess.run(["umount", other], check=True)


def test_whatever_the_path_one_sends_and_the_others_name_it(
    tmp_path: Path, bound: Callable[[Path], Path | None]
) -> None:
    """Started at once by the path itself, a link, `..`, a relative path and a bind mount: one 0, the others 11."""
    with busy(tmp_path, 1_000) as (job, server):
        job.state.mkdir(mode=0o700)
        (tmp_path / "link").symlink_to(job.state)
        paths: list[tuple[Path, Path]] = [
            (job.state, job.folder),
            (tmp_path / "link", job.folder),
            (job.folder / ".." / "job" / "state", job.folder),
            (Path("../job/state"), tmp_path / "log"),
        ]
        if (other := bound(job.state)) is not None:
            paths.append((other, tmp_path))
        started = [command(job, "run", job.folder / "a.csv", state=state, cwd=cwd) for state, cwd in paths]
        with ThreadPoolExecutor(len(started)) as threads:
            ended = list(threads.map(told, started))
        assert sorted(code for code, _, _ in ended) == [0, *[11] * (len(paths) - 1)], ended
        (holder,) = [process.pid for process, (code, _, _) in zip(started, ended, strict=True) if code == 0]
        for code, _, err in ended:
            if code == 11:
                assert f"(pid {holder} on {socket.gethostname()}, since 20" in err
        assert agree(job, server) == {"delivered": 1_000}


def test_who_comes_second_leaves_within_two_seconds_and_touches_nothing(tmp_path: Path) -> None:
    """11 as text and as JSON; also with --sandbox, before one is started; the holder's files stay as they are."""
    job = Job(tmp_path / "job", "http://127.0.0.1:9")
    job.export("a.csv", visits(3_000, customers=300))
    with contextlib.ExitStack() as stack:
        words = ("--sandbox", "--set", "budget.requests_per_second=10")
        first = job.start(*words, "a.csv")
        stack.callback(job.wait, first)
        stack.callback(first.send_signal, signal.SIGTERM)
        log = job.state / "sandbox" / "requests.jsonl"
        until(lambda: log.exists() and log.stat().st_size > 0, "calls")
        said = (job.state / "sandbox" / "stderr.log").stat()
        took_s = []
        for more in ((), ("--json",), ()):
            began_s = time.monotonic()
            code, out, err = told(command(job, "run", *words, "a.csv", *more))
            took_s.append(time.monotonic() - began_s)
            message = json.loads(out)["error"]["message"] if more else err
            assert code == 11
            assert f"pid {first.pid}" in message
            since = datetime.fromisoformat(message.partition("since ")[2].partition(")")[0])
            assert abs(since.timestamp() - time.time()) < 60
            assert "Wait for it, or choose another --state" in message
        assert min(took_s) < SOON_S
        assert (job.state / "sandbox" / "stderr.log").stat().st_mtime_ns == said.st_mtime_ns
    assert first.returncode == 75


def test_a_stopped_holder_keeps_the_job_and_a_killed_one_does_not(tmp_path: Path) -> None:
    """SIGSTOP: 11 as long as it lasts, however long nothing happens; SIGKILL: the next execution goes on at once."""
    with busy(tmp_path) as (job, server):
        first = job.start("a.csv")
        until(partial(received, server, 4), "calls")
        first.send_signal(signal.SIGSTOP)
        for _ in range(2):
            code, _, err = told(command(job, "run", "a.csv"))
            assert (code, f"pid {first.pid}" in err) == (11, True)
        calls = server.count()
        first.send_signal(signal.SIGKILL)
        first.wait(GIVE_UP_S)
        assert server.count() == calls
        ended = job.run("a.csv")
        assert ended.code in (0, 4), ended.said
        assert sum(agree(job, server, kills=1).values()) == 3_000


def test_no_child_keeps_the_job_of_a_killed_holder(tmp_path: Path) -> None:
    """The embedded sandbox lives on, stopped, when its parent is killed; the next execution gets the lock."""
    job = Job(tmp_path / "job", "http://127.0.0.1:9")
    job.export("a.csv", visits(2_000, customers=300))
    first = job.start("--sandbox", "--set", "budget.requests_per_second=10", "a.csv")
    log = job.state / "sandbox" / "requests.jsonl"
    until(lambda: log.exists() and log.stat().st_size > 0, "calls")
    children = [int(pid) for pid in Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()]
    assert children
    try:
        for child in children:
            os.kill(child, signal.SIGSTOP)
        first.send_signal(signal.SIGKILL)
        first.wait(GIVE_UP_S)
        assert all(Path(f"/proc/{child}").exists() for child in children)
        ended = job.run("--sandbox", "a.csv")
    finally:
        for child in children:
            os.kill(child, signal.SIGCONT)
    assert ended.code in (0, 4), ended.said


def test_without_its_lock_file_a_job_is_still_not_sent_twice(tmp_path: Path) -> None:
    """Someone removes the file under an execution: the journal serves one process only, so the second is refused."""
    with busy(tmp_path, 1_500) as (job, server):
        first = job.start("a.csv")
        until(partial(received, server, 4), "calls")
        (job.state / "lock").unlink()
        first.send_signal(signal.SIGSTOP)  # or it might end while the second waits for the journal
        try:
            code, _, err = told(command(job, "run", "a.csv"))
        finally:
            first.send_signal(signal.SIGCONT)
        assert (code, "database is locked" in err) == (74, True)
        expect(job.wait(first), 0, "delivered 1,500")
        assert agree(job, server) == {"delivered": 1_500}


# --------------------------------------------------------------------------------------------------- who only looks


def test_status_always_answers_and_never_disturbs(tmp_path: Path) -> None:
    """Asked again and again from the first moment to the last: each answer is whole, rows never become fewer, and the
    run comes to its end as ever.
    """
    with busy(tmp_path, 4_000, budget=30) as (job, server):
        job.state.mkdir(mode=0o700)
        process = job.start("a.csv")
        seen: list[Mapping[str, Any]] = []
        answers = 0
        while process.poll() is None:
            code, out, err = told(command(job, "status", "--json"))
            view = json.loads(out)
            if code == 78:  # nothing was begun yet
                assert not seen, err
                continue
            assert code == 0
            answers += 1
            if view["last"] is not None:
                seen.append(view["last"])
                assert view["last"]["pid"] == process.pid
        expect(job.wait(process), 0, "delivered 4,000")
        done = [each["rows_done"] for each in seen if each.get("phase") == "delivering"]
        assert answers >= 3
        assert done == sorted(done)
        assert agree(job, server) == {"delivered": 4_000}


def test_verify_waits_for_nobody_and_nobody_fails_because_of_it(tmp_path: Path) -> None:
    """While an execution runs it answers 11 and names it; `ledger` shows what was settled last; the run goes on."""
    with busy(tmp_path, 1_500) as (job, server):
        expect(job.run("--limit", "200", "a.csv"), 75)
        first = job.start("a.csv")
        until(partial(received, server, 6), "calls")
        first.send_signal(signal.SIGSTOP)  # or it might have ended before they look
        code, out, _ = told(command(job, "verify", "--json"))
        error = json.loads(out)["error"]
        assert (code, error["exit_code"], f"pid {first.pid}" in error["message"]) == (11, 11, True)
        ledger = command(job, "ledger", "--outcome", "delivered")
        out, err = ledger.communicate(timeout=GIVE_UP_S)
        assert (ledger.returncode, out.count("\n"), err) == (0, 201, "")
        first.send_signal(signal.SIGCONT)
        expect(job.wait(first), 0, "delivered 1,500")
        assert agree(job, server) == {"delivered": 1_500}
        expect(job.run(command="verify"), 0)


# ----------------------------------------------------------------------------------------------------------- hammer


def test_twenty_starts_at_random_never_overlap_nor_pass_the_budget(tmp_path: Path) -> None:
    """Some are killed, some stopped, some come to nothing; by the server's log executions follow one another, and in
    no second are there more calls than the budget.
    """
    chance = random.Random(11)
    with busy(tmp_path, 6_000, budget=25) as (job, server):
        started: list[subprocess.Popen[str]] = []
        signals = kills = due = 0
        while len(started) < 20 or (signals < 2 and len(started) < 60):
            started.append(command(job, "run", job.folder / "a.csv"))
            time.sleep(chance.uniform(0.0, 0.5))
            if server.count() > due + 5:  # by the calls, so that each execution makes some however slow the machine is
                with contextlib.suppress(ValueError, KeyError, StopIteration):
                    holder = json.loads((job.state / "lock").read_text())["pid"]
                    number = (signal.SIGKILL, signal.SIGTERM)[signals % 2]
                    next(each for each in started if each.pid == holder).send_signal(number)
                    signals, kills, due = signals + 1, kills + (number is signal.SIGKILL), server.count()
        with ThreadPoolExecutor(len(started)) as threads:
            codes = [code for code, _, _ in threads.map(told, started)]
        assert set(codes) <= {0, 4, 11, 75, -9}, codes
        assert codes.count(11) >= 3, codes
        ended = job.run("a.csv")
        assert ended.code in (0, 4), ended.said
        outcomes = agree(job, server, attempts_seen=False, kills=kills)
        assert sum(outcomes.values()) == 6_000
        assert one_after_another(job, server) >= 2, codes


def one_after_another(job: Job, server: Server) -> int:
    """Asserts that the calls of an execution lie together in the server's log; answers how many made some."""
    with contextlib.closing(sqlite3.connect(job.state / "journal.db")) as connection:
        made = {
            tuple(key): execution
            for *key, execution in connection.execute(
                "SELECT load, request, first, count, attempt, execution FROM move WHERE move = 'intent'"
            )
        }
    order = []
    for call in server.calls():
        agent = AGENT.search(call["user_agent"])
        assert agent is not None
        load, request, first, last, attempt = map(int, agent.groups())
        order.append(made[load, request, first, last - first + 1, attempt])
    assert order == sorted(order), "two executions sent at once"
    return len(set(order))
