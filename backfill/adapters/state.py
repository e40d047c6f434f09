"""The state directory: who holds it, what was frozen in it, how it stands.

    lock          held through flock by the one execution that may write here; its holder's name is inside
    job.toml      the tenant and, per load, the frozen configuration and the exports; replacing it freezes a load
    status.json   where the running execution stands, or how the last one ended

Every file is 0600 and every directory 0700, whatever the umask, since customers' values lie here. What the
journal, the staged files and the ledger hold is not known here, nor is anything decided.
"""

import contextlib
import errno
import fcntl
import json
import os
import re
import socket
import stat
import time
import tomllib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tomli_w

from backfill.core.errors import JobHeld, StorageError, Unusable

_T = TypeVar("_T")

VERSION = 1
"""Of job.toml. A file of a later version is refused: an older program would overlook what it says."""

LOCK = "lock"
JOB = "job.toml"
STATUS = "status.json"
HOLDER_READS = 20
HOLDER_READ_EVERY_S = 0.02
"""For at most 0.4 s; a holder needs some microseconds from the lock to its name, unless it is stopped in between."""

TEMPORARY = ".tmp"
"""Suffix of a file on its way. Only the holder of the lock writes, so one fixed name each is enough and a killed
execution leaves at most one behind, which the next one overwrites."""

_OWN = frozenset(
    {LOCK, JOB, STATUS, JOB + TEMPORARY, STATUS + TEMPORARY, "journal.db", "staged", "seen", "ledger", "sandbox"}
)
_FOREIGN_ALLOWED = frozenset({"lost+found"})  # an empty file system is an empty directory to its user

NETWORK_FILE_SYSTEMS = frozenset(
    {
        "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ncpfs", "ceph", "lustre", "gpfs", "glusterfs", "beegfs",
        "pvfs2", "ocfs2", "gfs2", "davfs", "fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone", "fuse.goofys",
        "fuse.blobfuse", "fuse.blobfuse2", "fuse.glusterfs", "fuse.ceph-fuse", "fuse.juicefs", "fuse.mountpoint-s3",
        "fuse.davfs2", "fuse.curlftpfs", "fuse.smbnetfs", "fuse.grpcfuse", "fuse.osxfs",
    }
)  # fmt: skip
"""Types in /proc/self/mountinfo on which flock or SQLite's WAL does not hold across machines, or at all."""


# ---------------------------------------------------------------------------------------------------- what is kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """Whom the job delivers to. Another tenant in the same state is refused by who reads this."""

    base_url: str
    site_key: str
    call: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """The fingerprint of an export: by size and mtime it is known quickly, by its content surely."""

    path: str
    size: int
    mtime_ns: int
    sha256: str
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One load as it was frozen. `config` is `core.freeze.frozen`, by section and key."""

    load: int
    config: Mapping[str, Mapping[str, Any]]
    exports: tuple[Export, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFile:
    """job.toml: the tenant, and the loads numbered 1, 2, 3, ..."""

    tenant: Tenant
    loads: tuple[Load, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds the lock, as the holder wrote it; for messages only: the kernel alone knows whether it is held."""

    pid: int
    host: str
    started_at: str
    """ISO 8601, UTC, to the second."""
    command: str


# ---------------------------------------------------------------------------------------------------- the directory


class StateDirectory:
    """A state directory by its path; nothing is touched until a method is called."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def exists(self) -> bool:
        """Whether a job was ever begun here."""
        return (self.path / LOCK).exists() or (self.path / JOB).exists()

    def prepare(self) -> None:
        """Makes the directory, or takes over one that is empty or a state already, and sees that only we can read it.

        Raises: Unusable, with the remedy, for a network file system, a place that is not a directory, not ours, not
        writable or in other use; StorageError where the disk fails.
        """
        kind = network_file_system(_mountinfo(), os.path.realpath(self.path))
        if kind is not None:
            raise Unusable(
                f"{self.path} lies on a network file system ({kind}). Locks and the journal are not safe there: two "
                f"executions could send the same rows. {self._elsewhere('on a local disk')}"
            )
        try:
            self._make()
            self._check_use()
        except (NotADirectoryError, FileExistsError):
            raise Unusable(
                f"{self.path} cannot be the state directory: it, or a part of its path, is a file. "
                "Choose another --state."
            ) from None
        except OSError as error:
            self._refuse(self.path, "be used as the state directory", error)

    def _make(self) -> None:
        missing = []
        place = self.path
        while not place.exists():
            if place.is_symlink():
                raise Unusable(f"{place} is a link that leads nowhere. Mend the link, or choose another --state.")
            missing.append(place)
            place = place.parent
        for place in reversed(missing):
            with contextlib.suppress(FileExistsError):  # another execution was a moment faster
                place.mkdir(mode=0o700)
            place.chmod(0o700)  # the umask may have taken bits away that we need ourselves
            _sync_folder(place.parent)

    def _check_use(self) -> None:
        known = self.path.stat()
        if not stat.S_ISDIR(known.st_mode):
            raise NotADirectoryError
        if known.st_uid != os.geteuid():
            # Root too: files that it left behind could not be written by the job's own user any more.
            raise Unusable(
                f"{self.path} belongs to another user (uid {known.st_uid}, we are {os.geteuid()}). Run as that user."
                + ("" if self.exists() else " Or choose another --state, for instance a new directory inside it.")
            )
        if not self.exists():
            others = sorted({entry.name for entry in self.path.iterdir()} - _OWN - _FOREIGN_ALLOWED)
            if others:
                raise Unusable(
                    f'{self.path} holds other files ("{others[0]}", ...), so it is no state directory. '
                    "Choose a --state that is empty or does not exist yet."
                )
        if stat.S_IMODE(known.st_mode) & 0o077:
            self.path.chmod(0o700)
        if not os.access(self.path, os.R_OK | os.W_OK | os.X_OK):
            code = errno.EROFS if os.statvfs(self.path).f_flag & os.ST_RDONLY else errno.EACCES
            raise OSError(code, os.strerror(code))

    def _refuse(self, place: Path, what: str, error: OSError) -> NoReturn:
        """Where the place itself is wrong, another one helps (78); where the disk fails, it must be mended (74)."""
        cause = error.strerror or type(error).__name__
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR):
            raise Unusable(f"{place} cannot {what} ({cause}). {self._elsewhere('that can be written')}") from None
        raise StorageError(
            f"{place} cannot {what} ({cause}). Free or mend the disk, then run the same command again."
        ) from error

    def _elsewhere(self, where: str) -> str:
        """The remedy for a wrong place. Never another one for a job that was begun: there it would begin anew."""
        try:
            begun = self.exists()
        except OSError:
            begun = True
        if begun:
            return f"Move the whole directory to a place {where}; in an empty --state, rows would be sent again."
        return f"Choose another --state, {where}."

    # ------------------------------------------------------------------------------------------------------ lock

    @contextlib.contextmanager
    def lock(self, command: str) -> Iterator[None]:
        """Holds the directory for this execution; prepares it first.

        The kernel lets go when the process ends, however it ends. `command` is shown to whoever finds it held.
        Raises: JobHeld, Unusable, StorageError.
        """
        self.prepare()
        place = self.path / LOCK
        try:
            # Not inheritable by exec (Python's default), or a child would hold the job after our death.
            held = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            self._refuse(place, "be opened", error)
        try:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise JobHeld(_held(self.path, _holder_soon(held))) from None
            except OSError as error:
                raise Unusable(
                    f"{place} cannot be locked ({error.strerror}): this file system knows no locks. "
                    "Choose a --state on a local disk."
                ) from None
            try:
                os.fchmod(held, 0o600)
                _write_holder(held, command)
            except OSError as error:
                self._refuse(place, "be written", error)
            yield
            with contextlib.suppress(OSError):
                os.ftruncate(held, 0)  # or the next holder's reader might see our name for an instant
        finally:
            os.close(held)

    # --------------------------------------------------------------------------------------------------- job.toml

    def read_job(self) -> JobFile | None:
        """What was frozen; None where nothing was yet.

        Raises: StorageError for a damaged file, Unusable for one of a later version.
        """
        place = self.path / JOB
        content = _read(place)
        if content is None:
            return None
        try:
            raw = tomllib.loads(content.decode())
            _check_version(place, raw["version"])
            _check_sum(content)
            return _job_of(raw)
        except (UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
            where = f" ({error})" if isinstance(error, tomllib.TOMLDecodeError) else ""
            raise StorageError(
                f"{place} is damaged{where}. Restore it from a backup; what was sent stands in journal.db beside it, "
                "so do not begin anew in another state, or rows would be sent again."
            ) from None

    def write_job(self, job: JobFile) -> None:
        """Replaces job.toml durably. When this returns, the loads in it are frozen; before, they are not.

        Raises: StorageError; Unusable for an export whose name is no UTF-8.
        """
        try:
            content = _with_sum(tomli_w.dumps(_written(job)).encode())
        except UnicodeEncodeError:
            raise Unusable(
                "The name of an export is no valid UTF-8, so it can be kept in no record. Rename the file."
            ) from None
        replace(self.path / JOB, content, durable=True)

    # ------------------------------------------------------------------------------------------------- status.json

    def write_status(self, status: Mapping[str, Any]) -> None:
        """Replaces status.json at once, so that a reader sees the old or the new one. Not durable: it is only news.

        Raises: StorageError.
        """
        replace(self.path / STATUS, json.dumps(status, ensure_ascii=False).encode(), durable=False)

    def read_status(self) -> dict[str, Any] | None:
        """The last status; None where there is none, or where a power cut left it empty. Raises: StorageError."""
        try:
            status = json.loads(_read(self.path / STATUS) or b"null")
        except ValueError:
            return None
        return status if isinstance(status, dict) else None


def replace(path: Path, content: bytes, *, durable: bool) -> None:
    """Puts `content` in place of the file, whole or not at all, readable by its owner only.

    With `durable`, it also outlives a power cut from the moment this returns. Raises: StorageError.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.fchmod(file, 0o600)
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(file, rest) :]
            if durable:
                os.fsync(file)
        finally:
            os.close(file)
        temporary.replace(path)
        if durable:
            _sync_folder(path.parent)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written ({error.strerror}). Free or mend the disk, then run the same command again."
        ) from error


def network_file_system(mountinfo: str, path: str) -> str | None:
    """The type of the network file system on which `path` (absolute, without links) lies; None if it is local.

    `mountinfo` is the text of /proc/self/mountinfo; where a system has none, every place counts as local.
    """
    best, kind = "", None
    for line in mountinfo.splitlines():
        mount, separator, source = line.partition(" - ")
        fields, types = mount.split(" "), source.split(" ")
        if not separator or len(fields) < 5:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
        below = path == point or path.startswith(point.rstrip("/") + "/")
        if below and len(point) >= len(best):  # a later mount on the same point hides the earlier one
            best, kind = point, types[0]
    return kind if kind in NETWORK_FILE_SYSTEMS else None


def _mountinfo() -> str:
    try:
        return Path("/proc/self/mountinfo").read_text(errors="replace")
    except OSError:
        return ""


# ------------------------------------------------------------------------------------------------------------ helpers


def _refuse(place: Path, what: str, error: OSError) -> NoReturn:
    """Where the place itself is wrong, another one helps (78); where the disk fails, it must be mended (74)."""
    cause = error.strerror or type(error).__name__
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR):
        raise Unusable(f"{place} cannot {what} ({cause}). Choose another --state.") from None
    raise StorageError(
        f"{place} cannot {what} ({cause}). Free or mend the disk, then run the same command again."
    ) from error


def _sync_folder(place: Path) -> None:
    folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read(place: Path) -> bytes | None:
    try:
        return place.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StorageError(f"{place} cannot be read ({error.strerror}). Check its owner and the disk.") from error


def _write_holder(lock: int, command: str) -> None:
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": command,
    }
    # The new name over the old one, and then to its length: at no moment is the file without a whole first line.
    os.ftruncate(lock, os.pwrite(lock, json.dumps(holder).encode() + b"\n", 0))


def _holder_soon(lock: int) -> Holder | None:
    """The holder writes its name right after it was given the lock, so who reads none waits a moment for it."""
    for _ in range(HOLDER_READS):
        holder = _read_holder(lock)
        if holder is not None:
            return holder
        time.sleep(HOLDER_READ_EVERY_S)
    return None


def _read_holder(lock: int) -> Holder | None:
    """None if the holder has not written its name yet."""
    try:
        raw = json.loads(os.pread(lock, 1 << 16, 0).partition(b"\n")[0])
        return Holder(
            pid=int(raw["pid"]), host=str(raw["host"]), started_at=str(raw["started_at"]), command=str(raw["command"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _held(path: Path, holder: Holder | None) -> str:
    who = "" if holder is None else f" (pid {holder.pid} on {holder.host}, since {holder.started_at})"
    return f"Another execution{who} holds {path}. Wait for it, or choose another --state."


def _written(job: JobFile) -> dict[str, Any]:
    return {
        "version": VERSION,
        "tenant": {"base_url": job.tenant.base_url, "site_key": job.tenant.site_key, "call": job.tenant.call},
        "load": [
            {
                "load": load.load,
                "config": {section: dict(keys) for section, keys in load.config.items()},
                "export": [
                    {
                        "path": export.path,
                        "size": export.size,
                        "mtime_ns": export.mtime_ns,
                        "sha256": export.sha256,
                        "rows": export.rows,
                    }
                    for export in load.exports
                ],
            }
            for load in job.loads
        ],
    }


def _check_version(place: Path, version: object) -> None:
    if type(version) is not int or version < 1:
        raise ValueError("no version")
    if version > VERSION:
        raise Unusable(
            f"{place} was written by a later version of backfill (format {version}, this one knows {VERSION}). "
            "Install that version again, or choose another --state."
        )


def _with_sum(content: bytes) -> bytes:
    """As a comment in front, so that a file that was cut short has one as well."""
    return b"# checksum %08x\n%b" % (zlib.crc32(content), content)


def _check_sum(content: bytes) -> None:
    """Bits that changed may make another value instead of nonsense. Earlier files have no checksum.

    Raises: ValueError.
    """
    first, _, rest = content.partition(b"\n")
    if first.startswith(b"#") and first != b"# checksum %08x" % zlib.crc32(rest):
        raise ValueError("checksum")


def _job_of(raw: Mapping[str, Any]) -> JobFile:
    """Raises KeyError, TypeError or ValueError where anything is not as `_written` leaves it."""
    tenant = raw["tenant"]
    loads = tuple(
        Load(
            load=_typed(load["load"], int),
            config={section: dict(_typed(keys, dict)) for section, keys in _typed(load["config"], dict).items()},
            exports=tuple(_export_of(export) for export in _tables(load["export"])),
        )
        for load in _tables(raw.get("load", []))
    )
    if [load.load for load in loads] != list(range(1, len(loads) + 1)):
        raise ValueError("loads are not numbered 1, 2, 3, ...")
    return JobFile(
        tenant=Tenant(
            base_url=_typed(tenant["base_url"], str),
            site_key=_typed(tenant["site_key"], str),
            call=_typed(tenant["call"], str),
        ),
        loads=loads,
    )


def _export_of(raw: Mapping[str, Any]) -> Export:
    return Export(
        path=_typed(raw["path"], str),
        size=_typed(raw["size"], int),
        mtime_ns=_typed(raw["mtime_ns"], int),
        sha256=_typed(raw["sha256"], str),
        rows=_typed(raw["rows"], int),
    )


def _tables(value: object) -> Sequence[Mapping[str, Any]]:
    return [_typed(item, dict) for item in _typed(value, list)]


def _typed(value: object, kind: type[_T]) -> _T:
    if type(value) is not kind:
        raise TypeError(f"not {kind.__name__}")
    return value
