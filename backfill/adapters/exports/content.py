"""The bytes of an export: that they can be read, unpacked in a stream, and are the same from beginning to end.

gzip, zstd and zip are known by their first bytes, never by a name. Never knows what the bytes mean.
"""

import hashlib
import io
import os
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from backfill.adapters.exports.export import Fingerprint
from backfill.core.errors import ExportError

if sys.version_info >= (3, 14):
    from compression import gzip, zstd
else:
    import gzip

    from backports import zstd

HEAD_BYTES = 4096
"""So much of the beginning is looked at to tell what a file is."""

_HASH_BYTES = 1 << 20
_PACKED_BYTES = 1 << 18  # read at once from a packed file
_WINDOW_LOG = 27  # 128 MB, zstd's own limit: a file that needs more to be unpacked says so

_GZIP, _ZSTD, _ZIP = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PK\x03\x04"
_NOT_EXPORTS = ("__MACOSX/", ".DS_Store")  # what a Mac adds to an archive

_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, zstd.ZstdError, zipfile.BadZipFile)


def fingerprint(path: Path) -> Fingerprint:
    """Identify the export at `path` by reading it once."""
    with reading(path), path.open("rb", buffering=0) as file:
        before = os.fstat(file.fileno())
        digest = hashlib.sha256()
        while chunk := file.read(_HASH_BYTES):
            digest.update(chunk)
        return unchanged(path, before, os.fstat(file.fileno()), digest.hexdigest())


def begins_as(path: Path, size: int, sha256: str) -> bool:
    """Whether the first `size` bytes are those of a known export: whether it has only grown at its end."""
    with reading(path), path.open("rb", buffering=0) as file:
        digest, left = hashlib.sha256(), size
        while left and (chunk := file.read(min(left, _HASH_BYTES))):
            digest.update(chunk)
            left -= len(chunk)
    return left == 0 and digest.hexdigest() == sha256


class _Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class Content:
    """An export's bytes, unpacked, for a single pass; `head` is how they begin.

    Memory stays flat however much a few packed bytes stand for. Raises ExportError where it cannot be unpacked.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack = ExitStack()
        with reading(path):
            self._file = _Hashed(path)
            self._stack.enter_context(self._file)
            try:
                self._unpacked = self._unpack()
                self.head = self._read(HEAD_BYTES)
            except BaseException:  # whatever it was, nobody else will close the file; it goes on up
                self._stack.close()
                raise
        self._ahead = self.head

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def skip_head(self, count: int) -> None:
        """Leave out the first bytes of `head`: a byte order mark."""
        self._ahead = self._ahead[count:]

    def readinto(self, target: memoryview) -> int:
        """Fill `target` with what comes next; 0 at the end."""
        if self._ahead:
            count = min(len(self._ahead), len(target))
            target[:count] = self._ahead[:count]
            self._ahead = self._ahead[count:]
            return count + (self._readinto(target[count:]) if count < len(target) else 0)
        return self._readinto(target)

    def fingerprint(self) -> Fingerprint:
        """What was read, at its end. Raises ExportError if the file changed meanwhile."""
        with reading(self._path):
            return self._file.fingerprint(self._path)

    def _unpack(self) -> _Readable | None:
        start = self._file.peek(4)
        if start[:2] == _GZIP:
            packed = self._stack.enter_context(io.BufferedReader(self._file, _PACKED_BYTES))
            return self._stack.enter_context(gzip.GzipFile(fileobj=packed))
        if start == _ZSTD:
            packed = self._stack.enter_context(io.BufferedReader(self._file, _PACKED_BYTES))
            options = {int(zstd.DecompressionParameter.window_log_max): _WINDOW_LOG}
            return self._stack.enter_context(zstd.ZstdFile(packed, options=options))
        if start == _ZIP:
            return self._member()
        return None

    def _member(self) -> _Readable:
        """The one file in a zip archive."""
        with self._unpacking():
            archive = self._stack.enter_context(zipfile.ZipFile(self._path))
        names = [info.filename for info in archive.infolist() if not info.is_dir()]
        if "[Content_Types].xml" in names:
            raise ExportError(f"{self._path} is an Excel workbook. Save its sheet as CSV (UTF-8) first.")
        names = [name for name in names if not name.startswith(_NOT_EXPORTS)]
        if len(names) != 1:
            raise ExportError(
                f"{self._path} is a zip archive of {len(names)} files, and exactly one is expected. Unpack it first."
            )
        with self._unpacking():
            return self._stack.enter_context(archive.open(names[0]))

    def _readinto(self, target: memoryview) -> int:
        if self._unpacked is None:
            return self._file.readinto(target)
        with self._unpacking():
            data = self._unpacked.read(len(target))
        target[: len(data)] = data
        return len(data)

    def _read(self, most: int) -> bytes:
        """Up to `most` bytes; fewer only at the end."""
        target = bytearray(most)
        held = 0
        while held < most and (count := self._readinto(memoryview(target)[held:])):
            held += count
        return bytes(target[:held])

    @contextmanager
    def _unpacking(self) -> Iterator[None]:
        try:
            yield
        except EOFError as error:
            raise ExportError(
                f"{self._path} is cut short: its packed data ends before its end. Export or copy it again."
            ) from error
        except (RuntimeError, NotImplementedError) as error:
            # zipfile says so where a password is needed or the compression is one that it does not know
            raise ExportError(
                f"{self._path} is packed in a way that cannot be read (a password, or a rare compression). "
                "Unpack it first."
            ) from error
        except _DAMAGED as error:
            hint = "Export or copy it again."
            if isinstance(error, zstd.ZstdError) and "memory" in str(error):
                hint = "It was packed with a window of over 128 MB (zstd --long): unpack it first."
            raise ExportError(f"{self._path} is damaged: it cannot be unpacked. {hint}") from error


class _Hashed(io.RawIOBase):
    """A file that remembers what was read of it, from the beginning to the end."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._raw = path.open("rb", buffering=0)
        self._before = os.fstat(self._raw.fileno())
        self._digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._raw.close()
        super().close()

    def peek(self, count: int) -> bytes:
        return os.pread(self._raw.fileno(), count, 0)

    def readinto(self, target: memoryview) -> int:  # type: ignore[override]  # nobody passes anything else
        count = self._raw.readinto(target) or 0
        self._digest.update(target[:count])
        return count

    def fingerprint(self, path: Path) -> Fingerprint:
        """Of the whole file: what an unpacker had no need of is read now."""
        rest = memoryview(bytearray(_HASH_BYTES))
        while self.readinto(rest):
            pass
        return unchanged(path, self._before, os.fstat(self._raw.fileno()), self._digest.hexdigest())


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Says which export it was that the operating system would not give."""
    try:
        yield
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror or error}.") from error


def unchanged(path: Path, before: os.stat_result, after: os.stat_result, sha256: str) -> Fingerprint:
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise changed(path)
    return Fingerprint(path, after.st_size, after.st_mtime_ns, sha256)


def changed(path: Path) -> ExportError:
    return ExportError(f"{path} changed while it was read. Wait until it is complete, then run again.")
