"""A disk that fills up or fails under the real command: a clean stop, no request after it, and a rerun that completes.

The server's own log and the instants of the disk's answers tell what was sent after the first commit that failed.
"""

import contextlib
import errno
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.account import AGENT
from tests.command import Ended, Job, Server, agree, expect, serving, until, visits
from tests.failing_disk import FailingDisk
from tests.test_run_refusals import small_disk

WAL = "journal.db-wal"

Attempt = tuple[int, int, int, int, int]
"""Load, request, first position, interactions, number of the attempt."""


# --------------------------------------------------------------------------------- what was sent after a failed commit


class Sent(NamedTuple):
    """Requests that the server received: all, those after the first failed commit, those that were never durable."""

    all: int
    after: int
    undurable: int


def sent(job: Job, server: Server, disk: FailingDisk) -> Sent:
    """Holds the server's log against the journal as a power cut at the first failure would have left it."""
    failed = disk.first_failure()
    durable = durable_intents(job, disk)
    received = [(float(call["at"]), attempt_of(call["user_agent"])) for call in server.calls()]
    return Sent(
        len(received),
        sum(at > failed.at for at, _ in received),
        sum(attempt not in durable for _, attempt in received),
    )


def attempt_of(agent: str) -> Attempt:
    found = AGENT.search(agent)
    assert found is not None
    load, request, first, last, attempt = map(int, found.groups())
    return load, request, first, last - first + 1, attempt


def durable_intents(job: Job, disk: FailingDisk) -> set[Attempt]:
    """The intents in the journal, of which its log is cut where the disk last said that it was safe."""
    calls = disk.calls_made()
    before = calls[: calls.index(disk.first_failure())]
    size = next((call.size for call in reversed(before) if call.call == "sync"), 0)
    copy = disk.folder / "durable"
    copy.mkdir()
    shutil.copy(job.state / "journal.db", copy)
    if (job.state / WAL).exists():  # else it was closed in good order, and what it held is in the journal itself
        (copy / WAL).write_bytes((job.state / WAL).read_bytes()[:size])
    with contextlib.closing(sqlite3.connect(copy / "journal.db")) as journal:
        rows = journal.execute("SELECT load, request, first, count, attempt FROM move WHERE move = 'intent'").fetchall()
    return {(load, request, first, count, attempt) for load, request, first, count, attempt in rows}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "log", "latency_ms=20") as server:
        yield server


def deliver_until_the_disk_fails(
    job: Job, server: Server, disk: FailingDisk, *, module: tuple[str, ...] = ("backfill",), calls: int = 12
) -> Ended:
    """Fails the disk once the server has seen some calls, in the midst of others."""
    process = job.start("a.csv", environment=disk.environment, module=module)
    until(lambda: server.count() > calls, "some calls")
    disk.fail()
    return job.wait(process)


# -------------------------------------------------------------------------------------------- the journal cannot commit


@pytest.mark.parametrize(
    ("calls", "error", "times"),
    [("sync", errno.EIO, 0), ("sync", errno.EIO, 1), ("write", errno.EIO, 1)],
    ids=["sync fails", "sync fails once", "write fails once"],
)
def test_after_a_failed_commit_nothing_is_sent(
    tmp_path: Path, server: Server, calls: str, error: int, times: int
) -> None:
    """Also where the disk recovers at once: 74, every call was durable before, and the rerun completes."""
    job = Job(tmp_path / "job", server.base_url)
    job.export("a.csv", visits(6_000, customers=600))
    disk = FailingDisk(tmp_path, WAL, (calls,), error, times)
    ended = deliver_until_the_disk_fails(job, server, disk)
    expect(ended, 74, "journal", str(job.state), "No further request was started", "run again")
    found = sent(job, server, disk)
    assert found.undurable == 0
    assert 12 <= found.all < 60
    assert found.after <= 8  # those that were durable before, and on their way
    disk.mend()
    expect(job.run("a.csv"), 4, "in doubt")
    outcomes = agree(job, server, attempts_seen=False, kills=1)
    assert outcomes["delivered"] + outcomes["in_doubt"] == 6_000
    assert outcomes["in_doubt"] <= 8 * 100


@pytest.mark.parametrize("variant", ["deaf", "not_awaited"])
def test_the_check_sees_what_goes_on_sending(tmp_path: Path, server: Server, variant: str) -> None:
    """The negative control: a job that does not listen to its journal sends calls that were never durable."""
    job = Job(tmp_path / "job", server.base_url)
    job.export("a.csv", visits(6_000, customers=600))
    disk = FailingDisk(tmp_path, WAL, ("sync",))
    ended = deliver_until_the_disk_fails(job, server, disk, module=("tests.broken", variant))
    assert ended.code != 0
    found = sent(job, server, disk)
    assert found.undurable > 8
    assert found.after > 8


def test_a_journal_that_cannot_be_read_sends_nothing(tmp_path: Path, server: Server) -> None:
    """EIO while it is opened: 74 with the remedy; afterwards all goes on."""
    job = Job(tmp_path / "job", server.base_url)
    job.export("a.csv", visits(300))
    expect(job.run("--limit", "100", "a.csv"), 75)
    disk = FailingDisk(tmp_path, "journal.db", ("read",))
    disk.fail()
    expect(job.run("a.csv", environment=disk.environment), 74, "journal.db", "disk I/O error", "run again")
    assert server.count() == 1 + 1  # a token, a call
    expect(job.run("a.csv"), 0)
    assert agree(job, server) == {"delivered": 300}


# -------------------------------------------------------------------------------------------- every other file of a job


def run_failing(job: Job, files: str, calls: str, *, code: int = 74) -> Ended:
    """Runs the command while these calls on these files fail, and sees that they did."""
    disk = FailingDisk(job.folder / f"{files.replace('/', '.')} {calls}", files, (calls,))
    disk.folder.mkdir()
    disk.fail()
    ended = job.run("a.csv", environment=disk.environment)
    assert disk.first_failure().error == errno.EIO
    expect(ended, code)
    return ended


BEFORE_DELIVERY = (
    ("state/lock", "write"),
    ("state/journal.db", "sync"),
    ("staged/1/run-", "write"),
    ("staged/1/invalid-", "write"),
    ("staged/1/manifest.json", "rename"),
    ("state/job.toml", "sync"),
    ("staged/1/rows-", "write"),
    ("staged/1/requests-", "sync"),
    ("staged/1/requests-", "rename"),
)


def test_a_file_that_cannot_be_written_before_anything_was_sent(tmp_path: Path, server: Server) -> None:
    """Each in turn: 74 with place and remedy, nothing sent, no half file; in the end the same command completes."""
    job = Job(tmp_path / "job", server.base_url, {"rows": {"max_rejected": "50%"}})
    job.export("a.csv", [*visits(150), *(row._replace(customer="") for row in visits(5, first=500))])
    for files, calls in BEFORE_DELIVERY:
        ended = run_failing(job, files, calls)
        assert str(job.state) in ended.err
        # The part of polars that writes the end of a file forgets what the system said.
        assert any(words in ended.err for words in ("Input/output error", "disk I/O error", "was not taken")), ended.err
        assert "then run" in ended.err
        assert not [path for path in job.kept() if path.endswith(".partial")]
    assert server.count() == 0
    expect(job.run("a.csv"), 0)
    assert agree(job, server) == {"delivered": 150, "invalid": 5}


def test_a_ledger_that_cannot_be_written_loses_nothing(tmp_path: Path, server: Server) -> None:
    """74 after all was delivered; with a sound disk the ledger is written, and nothing is sent again."""
    job = Job(tmp_path / "job", server.base_url)
    job.export("a.csv", visits(250))
    failures = (("ledger/1/part-", "write"), ("ledger/manifest.json", "sync"), ("ledger/1/part-", "rename"))
    for files, calls in failures:
        ended = run_failing(job, files, calls)
        for words in (str(job.state / "ledger"), "Input/output error", "Nothing is lost", "run again"):
            assert words in ended.err
    assert len(server.calls()) == 3
    expect(job.run("a.csv"), 0)
    assert len(server.calls()) == 3
    assert agree(job, server) == {"delivered": 250}


def test_a_status_that_cannot_be_written_stops_nothing(tmp_path: Path, server: Server) -> None:
    """status.json is news only."""
    job = Job(tmp_path / "job", server.base_url)
    job.export("a.csv", visits(250))
    run_failing(job, "status.json", "write", code=0)
    assert agree(job, server) == {"delivered": 250}


# -------------------------------------------------------------------------------------------------- a disk that is full


def fill(disk: Path) -> Callable[[], None]:
    """Fills a disk to its last page; answers how to take that back."""
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * (65_536 if shutil.disk_usage(disk).free >= 65_536 else 4_096))
    return filler.unlink


@pytest.fixture
def full(tmp_path: Path, server: Server) -> Job:
    """A job whose state will lie on a disk of its own."""
    job = Job(tmp_path / "job", server.base_url, budget=200.0)
    job.state = job.folder / "disk" / "state"
    mark = "{:x}".format
    job.export("a.csv", visits(12_000, customers=1_200, mark=lambda place: mark(place * 7919 % 10_007) * 4))
    return job


def test_a_disk_that_is_full_at_the_start(full: Job, server: Server) -> None:
    """74 before anything is begun; with room, all is well."""
    with small_disk(full.state.parent, "64m"):
        free = fill(full.state.parent)
        expect(full.run("a.csv"), 74, str(full.state), "No space left", "Free", "run the same command again")
        assert server.count() == 0
        free()
        expect(full.run("a.csv"), 0)
        assert agree(full, server) == {"delivered": 12_000}


def test_a_disk_that_is_full_from_spooling_to_settling(full: Job, server: Server, tmp_path: Path) -> None:
    """With room for what is there and a little more, each station in turn does not fit: 74 each time, nothing lost."""
    with small_disk(full.state.parent, "64m") as resize:

        def with_room_for(more_kb: int, *words: str) -> None:
            used = shutil.disk_usage(full.state.parent).used // 1024
            resize(f"{used + more_kb}k")
            expect(full.run("a.csv"), 74, str(full.state), *words)
            resize("64m")

        with_room_for(400, "No space left", "Free some space")  # spooling
        assert not list((full.state / "staged").glob("*/*"))
        assert server.count() == 0
        arranging = FailingDisk(tmp_path, "staged/1/rows-", ("write",))
        arranging.fail()
        expect(full.run("a.csv", environment=arranging.environment), 74)
        with_room_for(100, "No space left", "Free some space")
        assert {path.name[:3] for path in (full.state / "staged" / "1").iterdir()} == {"man", "run"}
        assert server.count() == 0
        settling = FailingDisk(tmp_path, "ledger/1/part-", ("write",))
        settling.fail()
        expect(full.run("a.csv", environment=settling.environment), 74, "Nothing is lost")
        calls = server.count()
        with_room_for(80, "ledger", "No space left", "Nothing is lost")
        expect(full.run("a.csv"), 0)
        assert server.count() == calls
        assert agree(full, server) == {"delivered": 12_000}


def test_a_disk_that_fills_up_while_delivering(full: Job, server: Server, tmp_path: Path) -> None:
    """No call whose intent the full disk did not take; with room the same command completes."""
    with small_disk(full.state.parent, "64m"):
        disk = FailingDisk(tmp_path, WAL, ())  # it only looks on
        process = full.start("a.csv", environment=disk.environment)
        until(lambda: server.count() > 12, "some calls")
        free = fill(full.state.parent)
        expect(full.wait(process), 74, "journal", "full", "Free space", "run again")
        assert disk.first_failure().error == errno.ENOSPC
        assert sent(full, server, disk).undurable == 0
        assert server.count() < 121
        free()
        expect(full.run("a.csv"), 4, "in doubt")
        outcomes = agree(full, server, attempts_seen=False, kills=1)
        assert outcomes["delivered"] + outcomes["in_doubt"] == 12_000
