"""The state directory against real files, a real second process and a real kill."""

import dataclasses
import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backfill.adapters import state
from backfill.adapters.state import Export, JobFile, Load, StateDirectory, Tenant, network_file_system
from backfill.core.config import RunConfig
from backfill.core.errors import ExitCode, JobHeld, StorageError, Unusable
from backfill.core.freeze import frozen
from backfill.core.settings import parse

TENANT = Tenant(base_url="https://mxo.example", site_key="ONE-1", call="interactions-offline")
EXPORT = Export(path="data/june.csv", size=123, mtime_ns=1_700_000_000_123_456_789, sha256="ab" * 32, rows=9)

HOLDER = """
import sys, pathlib
from backfill.adapters.state import StateDirectory
with StateDirectory(pathlib.Path(sys.argv[1])).lock("backfill run june.csv"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def other_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A real second process that holds the lock until its standard input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def config() -> RunConfig:
    return parse({"api": {"base_url": "https://mxo.example", "site_key": "k"}, "columns": {"properties": {"a": "b"}}})


# ---------------------------------------------------------------------------------------------------- the directory


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o777])
def test_only_the_owner_can_read_under_any_umask(tmp_path: Path, mask: int) -> None:
    """Directories come out 0700 and files 0600, whether the umask gives too much or too little."""
    directory = StateDirectory(tmp_path / ".backfill" / "june")
    with umask(mask), directory.lock("backfill run"):
        directory.write_job(JobFile(tenant=TENANT))
        directory.write_status({"phase": "spooling"})
    assert mode(tmp_path / ".backfill") == mode(directory.path) == 0o700
    files = list(directory.path.iterdir())
    assert {file.name for file in files} == {"lock", "job.toml", "status.json"}
    assert {mode(file) for file in files} == {0o600}


def test_an_open_directory_of_ours_is_closed(tmp_path: Path) -> None:
    """An empty directory that others may read is taken over and closed to them."""
    tmp_path.chmod(0o755)
    StateDirectory(tmp_path).prepare()
    assert mode(tmp_path) == 0o700


def test_a_directory_in_other_use_is_left_alone(tmp_path: Path) -> None:
    """`--state .` in somebody's project is refused, naming a file, and its mode stays."""
    (tmp_path / "thesis.docx").touch()
    tmp_path.chmod(0o755)
    with pytest.raises(Unusable, match=r"thesis\.docx"):
        StateDirectory(tmp_path).prepare()
    assert mode(tmp_path) == 0o755


def test_a_fresh_file_system_counts_as_empty(tmp_path: Path) -> None:
    """A volume's own lost+found is no other use."""
    (tmp_path / "lost+found").mkdir()
    StateDirectory(tmp_path).prepare()


@pytest.mark.parametrize("below", ["", "june", "a/b/june"])
def test_a_file_in_the_way_is_named(tmp_path: Path, below: str) -> None:
    """A file where the directory, or a part of its path, should be is refused with a remedy, and nothing is made."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(Unusable, match="is a file") as caught:
        StateDirectory(tmp_path / "file" / below).prepare()
    assert "--state" in caught.value.message
    assert (tmp_path / "file").read_text() == "x"


def test_a_dangling_link_is_named(tmp_path: Path) -> None:
    """A link to an unmounted disk must not be taken for an empty state."""
    (tmp_path / "june").symlink_to(tmp_path / "gone")
    with pytest.raises(Unusable, match=r"june is a link that leads nowhere\. Mend the link"):
        StateDirectory(tmp_path / "june").prepare()


def test_another_users_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state of another user is refused with both ids."""
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(Unusable, match=r"belongs to another user \(uid \d+, we are 4711\)\. Run as that user"):
        StateDirectory(tmp_path).prepare()


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.EROFS, Unusable), (errno.EACCES, Unusable), (errno.ENOSPC, StorageError), (errno.EIO, StorageError)],
)
def test_a_place_that_refuses_and_a_disk_that_fails_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    """Read-only is 78 (choose another place), a full disk 74 (mend it); both say why."""

    def fail(self: Path, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", fail)
    with pytest.raises(kind, match=os.strerror(number)):
        StateDirectory(tmp_path / "june").prepare()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_directory_is_refused(tmp_path: Path) -> None:
    """A directory without write permission is refused before anything starts."""
    (tmp_path / "june").mkdir()
    (tmp_path / "june").chmod(0o500)
    with pytest.raises(Unusable, match="Choose another --state"):
        StateDirectory(tmp_path / "june").prepare()


MOUNTS = r"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 27 0:40 / /home rw - nfs4 server:/home rw,vers=4.2
31 30 0:41 / /home/local rw shared:7 - xfs /dev/vdb rw
32 27 0:42 / /mnt/my\040share rw - cifs //srv/share rw
33 27 0:43 / /mnt/stack rw - nfs server:/a rw
34 33 0:44 / /mnt/stack rw - ext4 /dev/vdc rw
35 27 0:45 / /mnt/ssh rw - fuse.sshfs me@host: rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/june", None),
        ("/home", "nfs4"),
        ("/home/me/june", "nfs4"),
        ("/homestead/june", None),
        ("/home/local/june", None),
        ("/mnt/my share/june", "cifs"),
        ("/mnt/stack/june", None),
        ("/mnt/ssh/june", "fuse.sshfs"),
    ],
)
def test_the_innermost_and_latest_mount_decides(path: str, kind: str | None) -> None:
    """Network file systems are found by the mount that really holds the path, blanks and covered mounts included."""
    assert network_file_system(MOUNTS, path) == kind


def test_a_system_without_mountinfo_is_taken_as_local() -> None:
    """Where nothing is known, nothing is refused."""
    assert network_file_system("", "/home/me") is None


def test_a_network_file_system_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refusal names the type and the reason, through links too, and leaves no directory behind."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    mounts = f"27 1 254:0 / / rw - ext4 /dev/vda rw\n28 27 0:9 / {tmp_path.resolve()}/real rw - nfs4 s:/x rw\n"
    monkeypatch.setattr(state, "_mountinfo", lambda: mounts)
    with pytest.raises(Unusable, match=r"lies on a network file system \(nfs4\)\..*same rows"):
        StateDirectory(tmp_path / "link" / "june").prepare()
    assert not (tmp_path / "real" / "june").exists()


# ------------------------------------------------------------------------------------------------------------- lock


def test_a_held_job_names_its_holder(tmp_path: Path) -> None:
    """Who comes second learns pid, host, since when, which directory, and what to do: exit code 11."""
    folder = tmp_path / "june"
    with other_process(folder) as process:
        with pytest.raises(JobHeld) as caught, StateDirectory(folder).lock("backfill run"):
            pytest.fail("held twice")
        expected = rf"Another execution \(pid {process.pid} on .+, since 20\d\d-.+Z\) holds {folder}\. Wait for it, or "
        assert caught.match(expected + r"choose another --state\.")
    assert caught.value.exit_code is ExitCode.JOB_HELD


def test_the_lock_comes_free_when_its_holder_ends(tmp_path: Path) -> None:
    """After an orderly end the next execution holds the job."""
    with other_process(tmp_path / "june") as process:
        process.communicate("")
        with StateDirectory(tmp_path / "june").lock("backfill run"):
            pass


def test_a_killed_execution_leaves_no_stale_lock(tmp_path: Path) -> None:
    """SIGKILL frees the lock though its file still names the dead."""
    with other_process(tmp_path / "june") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert str(process.pid) in (tmp_path / "june" / "lock").read_text()
        with StateDirectory(tmp_path / "june").lock("backfill run"):
            pass


def test_a_started_program_does_not_inherit_the_lock(tmp_path: Path) -> None:
    """A child that outlives us (the sandbox, say) must not keep the job held."""
    directory = StateDirectory(tmp_path / "june")
    with directory.lock("backfill run"):
        child = subprocess.Popen(
            [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            close_fds=False,
        )
        assert child.stdout is not None
        child.stdout.readline()  # Popen may return an instant before exec has closed the child's files
    try:
        with directory.lock("backfill run"):
            pass
    finally:
        child.kill()
        child.communicate()


def test_a_lock_is_freed_by_an_error_inside(tmp_path: Path) -> None:
    """Whatever ends the execution ends its hold."""
    directory = StateDirectory(tmp_path / "june")
    with pytest.raises(ZeroDivisionError), directory.lock("backfill run"):
        raise ZeroDivisionError
    with directory.lock("backfill run"):
        pass


# --------------------------------------------------------------------------------------------------------- job.toml


def test_a_job_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Tenant, frozen configuration and fingerprints come back equal; the configuration can be parsed again."""
    directory = StateDirectory(tmp_path)
    job = JobFile(tenant=TENANT, loads=(Load(load=1, config=frozen(config()), exports=(EXPORT,)),))
    directory.write_job(job)
    assert directory.read_job() == job


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@settings(max_examples=50, deadline=None)
@given(paths=st.lists(names, max_size=4), constant=names)
def test_any_name_survives(tmp_path_factory: pytest.TempPathFactory, paths: list[str], constant: str) -> None:
    """Quotes, line ends, control characters and other scripts in names come back as they were."""
    directory = StateDirectory(tmp_path_factory.mktemp("state"))
    exports = tuple(Export(path=path, size=0, mtime_ns=0, sha256="", rows=0) for path in paths)
    job = JobFile(tenant=TENANT, loads=(Load(load=1, config={"columns": {"url": constant}}, exports=exports),))
    directory.write_job(job)
    assert directory.read_job() == job


def test_nothing_frozen_yet(tmp_path: Path) -> None:
    """A state without job.toml, and one that does not exist, have no job."""
    assert StateDirectory(tmp_path).read_job() is None
    assert StateDirectory(tmp_path / "gone").read_job() is None
    assert not StateDirectory(tmp_path / "gone").exists()


def test_a_name_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    """A file name that no record can hold is refused with the remedy, and the old record stays."""
    directory = StateDirectory(tmp_path)
    directory.write_job(JobFile(tenant=TENANT))
    odd = Export(path=os.fsdecode(b"\xff.csv"), size=0, mtime_ns=0, sha256="", rows=0)
    with pytest.raises(Unusable, match="Rename"):
        directory.write_job(JobFile(tenant=TENANT, loads=(Load(load=1, config={}, exports=(odd,)),)))
    assert directory.read_job() == JobFile(tenant=TENANT)


GOOD = 'version = 1\n[tenant]\nbase_url = "https://x"\nsite_key = "k"\ncall = "interactions-offline"\n'


@pytest.mark.parametrize(
    "text",
    [
        "",
        GOOD.replace("version = 1", ""),
        GOOD.replace("version = 1", "version = true"),
        GOOD.replace("version = 1", "version = 0"),
        GOOD[:-9],
        GOOD.replace('site_key = "k"', "site_key = 5"),
        GOOD + "[[load]]\nload = 2\nexport = []\n[load.config]\n",
        GOOD + '[[load]]\nload = 1\nexport = [{ path = "a" }]\n[load.config]\n',
        GOOD + "[[load]]\nload = 1\nexport = []\nconfig = { columns = 1 }\n",
        "load = 1\n" + GOOD,
    ],
)
def test_a_damaged_record_stops_everything(tmp_path: Path, text: str) -> None:
    """A record that is not as we leave it is never guessed at: 74, with what to do and what not to do."""
    (tmp_path / "job.toml").write_text(text)
    with pytest.raises(
        StorageError, match=r"job\.toml is damaged.*backup; what was sent stands in journal.*do not begin anew"
    ):
        StateDirectory(tmp_path).read_job()


def test_the_good_record_of_these_tests_is_good(tmp_path: Path) -> None:
    """The cases above fail by their damage alone."""
    (tmp_path / "job.toml").write_text(GOOD)
    assert StateDirectory(tmp_path).read_job() is not None


def test_bytes_that_are_no_text_are_damage(tmp_path: Path) -> None:
    """Rubbish from a failing disk is told as damage, not as a traceback."""
    (tmp_path / "job.toml").write_bytes(b"\xff\x00")
    with pytest.raises(StorageError, match="damaged"):
        StateDirectory(tmp_path).read_job()


def test_a_later_versions_record_is_refused(tmp_path: Path) -> None:
    """An older program does not touch what a later one wrote, though it could read some of it."""
    (tmp_path / "job.toml").write_text(GOOD.replace("version = 1", "version = 2"))
    with pytest.raises(Unusable, match="later version"):
        StateDirectory(tmp_path).read_job()


def test_a_failed_write_leaves_the_old_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails at the sync freezes nothing: the old record is whole, the error says which file."""
    directory = StateDirectory(tmp_path)
    directory.write_job(JobFile(tenant=TENANT))

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match=r"job\.toml cannot be written \(Input/output error\)"):
        directory.write_job(JobFile(tenant=TENANT, loads=(Load(load=1, config={}, exports=()),)))
    assert directory.read_job() == JobFile(tenant=TENANT)


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC while writing is 74 with a remedy."""

    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(StorageError, match=r"No space left on device.*Free"):
        StateDirectory(tmp_path).write_status({"phase": "spooling"})


def test_an_export_whose_name_is_no_text_is_told(tmp_path: Path) -> None:
    """Linux takes any bytes as a name; a record of them could not be read again."""
    job = JobFile(
        tenant=TENANT, loads=(Load(load=1, config={}, exports=(dataclasses.replace(EXPORT, path="\udcff.csv"),)),)
    )
    with pytest.raises(Unusable, match=r"The name of an export is no valid UTF-8, .*Rename the file"):
        StateDirectory(tmp_path).write_job(job)
    assert StateDirectory(tmp_path).read_job() is None


def test_a_record_that_cannot_be_read_is_told_with_its_cause(tmp_path: Path) -> None:
    """By its path; it is not taken for a job that was never begun."""
    (tmp_path / "job.toml").mkdir()
    with pytest.raises(
        StorageError, match=r"job\.toml cannot be read \(Is a directory\)\. Check its owner and the disk"
    ):
        StateDirectory(tmp_path).read_job()


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two executions could not see each other there."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", fail)
    said = (
        r"lock cannot be locked \(No locks available\): this file system knows no locks\. Choose a --state on a local"
    )
    with pytest.raises(Unusable, match=said), StateDirectory(tmp_path).lock("backfill run"):
        pass


def test_the_record_is_synced_before_and_after_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content, then name, then folder reach the disk in this order: the rename is the freeze."""
    steps: list[str] = []
    sync, rename = os.fsync, Path.replace
    kinds = {True: "folder", False: "file"}

    def seen_sync(file: int) -> None:
        steps.append(kinds[stat.S_ISDIR(os.fstat(file).st_mode)])
        sync(file)

    def seen_rename(self: Path, target: Path) -> Path:
        steps.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", seen_sync)
    monkeypatch.setattr(Path, "replace", seen_rename)
    StateDirectory(tmp_path).write_job(JobFile(tenant=TENANT))
    assert steps == ["file", "rename", "folder"]


# ------------------------------------------------------------------------------------------------------- status.json


def test_a_status_is_never_half_read(tmp_path: Path) -> None:
    """A reader beside a busy writer sees the one or the other status, whole."""
    directory = StateDirectory(tmp_path)
    directory.write_status({"n": 0, "filler": ""})
    done = threading.Event()

    def write() -> None:
        for n in range(300):
            directory.write_status({"n": n, "filler": "x" * (n * 500)})
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = 0
    while not done.is_set():
        status = directory.read_status()
        assert status is not None
        assert len(status["filler"]) == status["n"] * 500
        seen += 1
    writer.join()
    assert seen > 10


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff"])
def test_a_status_that_a_power_cut_spoiled_is_no_status(tmp_path: Path, content: bytes) -> None:
    """It was only news, so nothing is lost and nobody is troubled."""
    (tmp_path / "status.json").write_bytes(content)
    assert StateDirectory(tmp_path).read_status() is None


def test_no_status_yet(tmp_path: Path) -> None:
    """A job that never ran has no status."""
    assert StateDirectory(tmp_path).read_status() is None
