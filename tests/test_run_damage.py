"""A state that was damaged, lost in part, moved, or written by another version: a clear refusal, and nothing sent.

Looking at it never ends in a traceback, and when the cause is gone the same command completes.
"""

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backfill.cli import main
from tests.command import CLIENT_ID, SECRET, Ended, Job, Server, agree, expect, serving, until, visits
from tests.failing_disk import FailingDisk

# --------------------------------------------------------------------------------------------------------- what is done


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_in(share: float) -> Callable[[Path], None]:
    """Changes one bit in each of three neighbouring bytes."""

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        first = int(share * len(content))
        for place in range(first, first + 3):
            content[place] ^= 0x04
        path.write_bytes(content)

    return flip


def delete(path: Path) -> None:
    path.unlink()


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], None]] = {
    "cut": cut,
    "empty": empty,
    "bits at the start": flip_in(0.0),
    "bits at a third": flip_in(0.33),
    "bits at two thirds": flip_in(0.67),
    "bits near the end": flip_in(0.97),
    "deleted": delete,
    "a directory": replace_by_directory,
}

DERIVED = ("ledger/1/part-00000.parquet", "ledger/1/part-00001.parquet", "ledger/manifest.json", "status.json")
STAGED = tuple(
    f"staged/1/{name}"
    for name in (
        "manifest.json",
        "checksums-00000.json",
        "requests-00000.parquet",
        "rows-00000.parquet",
        "invalid-00000.parquet",
    )
)


def put_back(path: Path, content: bytes) -> None:
    if path.is_dir():
        path.rmdir()
    path.write_bytes(content)
    path.chmod(0o600)


class Half:
    """A job of which 100 of 249 interactions are delivered, then the server refused."""

    def __init__(
        self, folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        self.server = server
        self._capfd = capfd
        self.job = Job(folder, server.base_url, {"rows": {"max_rejected": "50%"}})
        rows = visits(250)
        self.job.export("a.csv", [rows[0]._replace(customer=""), *rows[1:]])
        expect(self.job.run("a.csv"), 77, "delivered 100", "unsent 149")
        monkeypatch.chdir(folder)
        monkeypatch.setenv("BACKFILL_CLIENT_ID", CLIENT_ID)
        monkeypatch.setenv("BACKFILL_CLIENT_SECRET", SECRET)

    def call(self, command: str, *exports: str) -> Ended:
        """The command in this process, which is much faster than one of its own."""
        words = ["--config", "backfill.toml"] if command == "run" else []
        self._capfd.readouterr()
        code = main([command, "--state", str(self.job.state), *words, *exports])
        return Ended(code, *self._capfd.readouterr(), 0.0)

    def look(self) -> None:
        """Whatever the state is like: 0, or 74 or 78 with a sentence; never a traceback."""
        for command in ("status", "ledger", "verify"):
            ended = self.call(command)
            assert ended.code in (0, 74, 78), ended.said
            expect(ended._replace(out=""), ended.code)  # `ledger` prints customers' keys on standard output
            if ended.code == 78 or (ended.code == 74 and not ended.out):
                assert "Error: " in ended.err
                assert ended.err.rstrip().endswith("."), ended.err


@pytest.fixture
def half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Half]:
    with serving(tmp_path / "log", "status=403,after=1,until=2") as server:
        yield Half(tmp_path / "job", server, monkeypatch, capfd)


# ----------------------------------------------------------------------------------------------------------- the damage


def test_damaged_truth_is_refused_and_nothing_is_sent(half: Half) -> None:
    """Every file that cannot be made again, damaged in each way: 74 naming it and what to do; put back, all goes on."""
    calls = len(half.server.calls())
    damaged = [(name, damage) for name in ("job.toml", *STAGED) for damage in DAMAGES]
    # Bits in the pages of SQLite may be values, of which it keeps no checksum; its head and its shape it knows.
    damaged += [
        ("journal.db", damage) for damage in DAMAGES if damage.startswith(("cut", "empty", "bits at the st", "d"))
    ]
    for name, damage in damaged:
        path = half.job.state / name
        content = path.read_bytes()
        DAMAGES[damage](path)
        what = f"{name}, {damage}"
        ended = half.call("run", "a.csv")
        assert ended.code == 74, f"{what}: {ended.said}"
        expect(ended, 74, name, "" if damage == "a directory" else "estore")
        half.look()
        if name in STAGED:
            assert half.call("verify").code == 74, what
        put_back(path, content)
    assert len(half.server.calls()) == calls, "something was sent"
    expect(half.job.run("a.csv"), 0)
    assert agree(half.job, half.server) == {"delivered": 249, "invalid": 1}


def test_what_is_derived_is_written_anew(half: Half) -> None:
    """Ledger parts, its manifest and the status, damaged in each way: looking says so, and `run` mends it unasked."""
    expect(half.job.run("a.csv"), 0)
    calls = half.server.count()
    whole = half.job.ledger()
    for name in DERIVED:
        for damage, do in DAMAGES.items():
            path = half.job.state / name
            content = path.read_bytes()
            do(path)
            half.look()
            if name.startswith("ledger") and (name, damage) != ("ledger/manifest.json", "deleted"):
                assert half.call("verify").code == 74, f"{name}, {damage}"
            if path.is_dir():  # nobody's disk does that; a person has to take it away
                put_back(path, content)
            ended = half.call("run", "a.csv")
            expect(ended, 0)
            assert half.job.ledger().equals(whole), f"{name}, {damage}"
    assert half.server.count() == calls
    assert agree(half.job, half.server) == {"delivered": 249, "invalid": 1}


def test_a_run_that_changed_is_not_arranged(tmp_path: Path) -> None:
    """Spooled and not arranged yet: a run of which a bit changed, or that is gone, is 74 before anything is sent."""
    with serving(tmp_path / "log") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(300))
        disk = FailingDisk(tmp_path, "staged/1/rows-", ("write",))
        disk.fail()
        expect(job.run("a.csv", environment=disk.environment), 74)
        run = job.state / "staged" / "1" / "run-00000.parquet"
        content = run.read_bytes()
        for do in (flip_in(0.3), delete):
            do(run)
            expect(job.run("a.csv"), 74, "run-00000.parquet", "Restore")
            put_back(run, content)
        assert server.count() == 0
        expect(job.run("a.csv"), 0)
        assert agree(job, server) == {"delivered": 300}


# -------------------------------------------------------------------------------------------- what was lost or put back


def test_a_job_file_that_is_lost_or_older_is_noticed(half: Half) -> None:
    """The journal knows of a load that job.toml does not: 74, with or without exports; nothing staged is touched."""
    job = half.job
    expect(job.run("a.csv"), 0)
    older = (job.state / "job.toml").read_bytes()
    job.export("b.csv", visits(30, first=1_000))
    expect(half.call("run", "b.csv"), 0)
    newest, calls, kept = (job.state / "job.toml").read_bytes(), half.server.count(), job.kept()
    for content, words, load in ((None, "is missing", 1), (older, "is older than the journal", 2)):
        (job.state / "job.toml").unlink(missing_ok=True)
        if content is not None:
            (job.state / "job.toml").write_bytes(content)
        for exports in (("a.csv",), ("b.csv",), ()):
            expect(half.call("run", *exports), 74, "job.toml", words, f"load {load}", "Restore it from a backup")
        expect(half.call("status"), 0, "Warning", "job.toml", f"load {load}", "Restore")
        expect(half.call("verify"), 74, "job.toml does not know")
    put_back(job.state / "job.toml", newest)
    assert job.kept() == kept
    expect(job.run("a.csv", "b.csv"), 0)
    assert half.server.count() == calls
    assert agree(job, half.server) == {"delivered": 279, "invalid": 1}


def test_a_journal_put_back_from_before_is_noticed(half: Half) -> None:
    """What was sent since then would be sent again; the ledger knows of it. 74, and `verify` says so too."""
    job = half.job
    older = (job.state / "journal.db").read_bytes()
    expect(job.run("a.csv"), 0)
    newest, calls = (job.state / "journal.db").read_bytes(), half.server.count()
    (job.state / "journal.db").write_bytes(older)
    expect(
        half.call("run", "a.csv"),
        74,
        "journal.db",
        "older than the ledger",
        "would be sent again",
        "Put the newest journal",
    )
    expect(half.call("verify"), 74, "the journal lacks moves")
    (job.state / "journal.db").write_bytes(newest)
    expect(job.run("a.csv"), 0)
    assert half.server.count() == calls
    assert agree(job, half.server) == {"delivered": 249, "invalid": 1}


def test_a_killed_jobs_journal_without_its_log_is_refused(tmp_path: Path) -> None:
    """Until the first checkpoint all that was sent stands in journal.db-wal: without it the journal counts as lost."""
    with serving(tmp_path / "log", "latency_ms=20") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(3_000, customers=300))
        process = job.start("a.csv")
        until(lambda: server.count() > 5, "some calls")
        process.kill()
        process.wait()
        wal = job.state / "journal.db-wal"
        content = wal.read_bytes()
        wal.unlink()
        began = time.time()
        expect(job.run("a.csv"), 74, "journal.db", "Without it nobody can say what was sent", "Restore")
        assert all(float(call["at"]) < began for call in server.calls())
        put_back(wal, content)
        expect(job.run("a.csv"), 4, "in doubt")
        outcomes = agree(job, server, attempts_seen=False, kills=1)
        assert outcomes["delivered"] + outcomes["in_doubt"] == 3_000


# ------------------------------------------------------------------------------------------------------ another version


def test_what_a_later_version_wrote_is_refused(half: Half) -> None:
    """78 naming file, both formats and the remedy; nothing is sent, and looking is safe."""
    calls = half.server.count()
    for name in ("job.toml", "staged/1/manifest.json"):
        path = half.job.state / name
        content = path.read_bytes()
        if name == "job.toml":
            path.write_bytes(content.replace(b"version = 1\n", b"version = 9\n"))
        else:
            path.write_text(json.dumps(json.loads(content) | {"version": 9}))
        ended = half.call("run", "a.csv")
        expect(ended, 78, name, "later version", "format 9", "Install that version again")
        half.look()
        put_back(path, content)
    assert half.server.count() == calls
    expect(half.job.run("a.csv"), 0)
    assert agree(half.job, half.server) == {"delivered": 249, "invalid": 1}


def test_a_ledger_that_a_later_version_wrote_is_written_anew(half: Half) -> None:
    """It is derived; looking at it says what is the matter."""
    path = half.job.state / "ledger" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"version": 9}))
    expect(half.call("ledger"), 74, "ledger/manifest.json", "another version", "format 9")
    expect(half.call("status"), 0, "Warning", "another version")
    expect(half.job.run("a.csv"), 0)
    assert agree(half.job, half.server) == {"delivered": 249, "invalid": 1}


# -------------------------------------------------------------------------------------------------------- another place


def test_a_moved_state_goes_on(half: Half) -> None:
    """`mv` changes nothing: what was delivered is not sent again, the rest is sent once."""
    job = half.job
    moved = job.folder / "elsewhere" / "moved"
    moved.parent.mkdir()
    job.state = job.state.rename(moved)
    expect(job.run("a.csv"), 0, str(moved))
    assert agree(job, half.server) == {"delivered": 249, "invalid": 1}


def test_a_copy_made_before_goes_on_after_the_original_is_lost(half: Half) -> None:
    """A backup of an unfinished job, of which nothing was sent since, is as good as the job."""
    job = half.job
    backup = job.folder / "backup"
    shutil.copytree(job.state, backup)
    shutil.rmtree(job.state)
    job.state = backup
    expect(job.run("a.csv"), 0)
    assert agree(job, half.server) == {"delivered": 249, "invalid": 1}


def test_a_state_that_is_read_only_is_refused(half: Half) -> None:
    """78, never with the advice to take another state, where rows would be sent again; writable, all goes on."""
    job, calls = half.job, half.server.count()
    place = str(job.state)
    for options in (["--bind", place, place], ["-o", "remount,bind,ro", place]):
        mounted = subprocess.run(["mount", *options], capture_output=True, check=False)
        if mounted.returncode:
            pytest.skip(f"nothing can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        ended = job.run("a.csv")
        expect(ended, 78, place, "Read-only file system", "Move the whole directory", "would be sent again")
        half.look()
    finally:
        subprocess.run(["umount", place], check=True)
    assert half.server.count() == calls
    expect(job.run("a.csv"), 0)
    assert agree(job, half.server) == {"delivered": 249, "invalid": 1}


def test_a_copied_state_is_refused_while_the_original_is_there(tmp_path: Path) -> None:
    """Two jobs that think themselves the only one would send every row twice. Without the original it goes on."""
    with serving(tmp_path / "log") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(500))
        expect(job.run("a.csv", "--limit", "100"), 75)
        original = job.state
        job.state = tmp_path / "copy"
        shutil.copytree(original, job.state)
        calls = server.count()
        expect(job.run("a.csv"), 78, "is a copy of", str(original), "remove it")
        expect(job.run("--abandon", command="resolve"), 78, "is a copy of")
        assert server.count() == calls
        shutil.rmtree(original)
        expect(job.run("a.csv"), 0)
        assert agree(job, server) == {"delivered": 500}
