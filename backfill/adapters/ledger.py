"""The ledger's files: Parquet parts per load and the manifest that names them.

    ledger/manifest.json            written last; the ledger is what it names
    ledger/<load>/part-NNNNN.parquet

A part is on disk whole or not at all. Everything here is derived from staging and journal, so it may be deleted
and made again. What a line says is not decided here.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from polars.exceptions import PanicException, PolarsError

from backfill.core.errors import StorageError

VERSION = 1

FOLDER = "ledger"
MANIFEST = "manifest.json"

_STAMPED_BYTES = 1 << 16
"""More than the footer of a piece takes."""

Counts = Mapping[str, Mapping[str, int]]
"""Rows by export and outcome."""


class Unreadable(Exception):
    """A file of the ledger cannot be read; the sentence names it. What that means is the caller's to say."""


class PartEntry(NamedTuple):
    """What the manifest says of one part.

    `path` is relative to the ledger's folder. `journal_moves` is the newest move of the part's requests and `staged`
    the stamp of the staged file that it was derived from: while both are the same, so is the part.
    """

    path: str
    load: int
    rows: int
    sha256: str
    bytes: int
    journal_moves: int
    staged: str
    outcomes: Counts


class ExportEntry(NamedTuple):
    """One export's account in the manifest. `read` was counted by the reader of the export."""

    export: str
    read: int
    outcomes: Mapping[str, int]


class LoadEntry(NamedTuple):
    """One load's account. `complete`: every row read has its line in a part; else the load has no parts yet."""

    load: int
    complete: bool
    customer_keys: str
    exports: tuple[ExportEntry, ...]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The ledger as of `written_at` (ISO 8601, UTC): every part that belongs to it, and the counts."""

    written_at: str = ""
    loads: tuple[LoadEntry, ...] = ()
    parts: tuple[PartEntry, ...] = field(default=())

    def parts_of(self, load: int) -> list[PartEntry]:
        return [part for part in self.parts if part.load == load]


def part_path(load: int, part: int) -> str:
    """Where part number `part` (from 0) of a load lies, relative to the ledger's folder."""
    return f"{load}/part-{part:05d}.parquet"


class Written(NamedTuple):
    """What was put on disk."""

    rows: int
    sha256: str
    bytes: int


class Ledger:
    """The ledger's folder in a state directory."""

    def __init__(self, state: Path) -> None:
        self.folder = state / FOLDER

    def write_part(self, path: str, lines: pl.DataFrame) -> Written:
        """Writes the lines durably in place of what was there; `write_manifest` then makes the file's name durable.

        Raises: StorageError.
        """
        buffer = BytesIO()
        lines.write_parquet(buffer, compression="zstd")
        content = buffer.getvalue()
        target = self.folder / path
        try:
            self._make_folder(target.parent)
            _replace(target, content)
        except OSError as error:
            raise _cannot_write(target, error) from error
        return Written(lines.height, hashlib.sha256(content).hexdigest(), len(content))

    def write_manifest(self, manifest: Manifest) -> None:
        """Makes the parts' names durable, then the manifest, and so the ledger that it names.

        Raises: StorageError.
        """
        document = {
            "version": VERSION,
            "written_at": manifest.written_at,
            "loads": [
                {
                    "load": load.load,
                    "complete": load.complete,
                    "customer_key": load.customer_keys,
                    "exports": [export._asdict() for export in load.exports],
                }
                for load in manifest.loads
            ],
            "parts": [part._asdict() for part in manifest.parts],
        }
        target = self.folder / MANIFEST
        try:
            self._make_folder(self.folder)
            for load in {part.load for part in manifest.parts}:
                _sync_folder(self.folder / str(load))
            _replace(target, json.dumps(document, indent=1, ensure_ascii=False).encode())
            _sync_folder(self.folder)
        except OSError as error:
            raise _cannot_write(target, error) from error

    def read_manifest(self) -> Manifest | None:
        """The manifest, or None where no ledger was written yet.

        Raises: Unreadable when there is one that cannot be understood.
        """
        path = self.folder / MANIFEST
        try:
            document = json.loads(path.read_bytes())
            if document["version"] != VERSION:
                raise Unreadable(
                    f"{FOLDER}/{MANIFEST} was written by another version of backfill (format {document['version']}, "
                    f"this one knows {VERSION})"
                )
            return _manifest(document)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Unreadable(f"{FOLDER}/{MANIFEST} cannot be read ({type(error).__name__})") from error

    def holds(self, entry: PartEntry) -> bool:
        """Is the part there, just as it was written? Reads it: some 11 bytes a row."""
        try:
            # The size first: it spares reading what was cut short.
            return (self.folder / entry.path).stat().st_size == entry.bytes and self.sha256(entry.path) == entry.sha256
        except (OSError, Unreadable):
            return False

    def sha256(self, path: str) -> str:
        """The checksum of a part as it lies on disk. Raises: Unreadable."""
        try:
            with (self.folder / path).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError as error:
            raise Unreadable(f"{FOLDER}/{path} is missing") from error
        except OSError as error:
            raise Unreadable(f"{FOLDER}/{path} cannot be read: {error.strerror}") from error

    def read_part(self, path: str) -> pl.DataFrame:
        """The lines of a part. Shape: (rows, 19). Raises: Unreadable."""
        try:
            # Not memory-mapped: a part that is replaced while it is read would change under the frame.
            return pl.read_parquet(BytesIO((self.folder / path).read_bytes()))
        except FileNotFoundError as error:
            raise Unreadable(f"{FOLDER}/{path} is missing") from error
        except (OSError, PolarsError, PanicException) as error:
            raise Unreadable(f"{FOLDER}/{path} is no readable Parquet file") from error

    def files(self) -> list[str]:
        """The paths of all parts on disk, named by a manifest or not, relative to the ledger's folder."""
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.glob("*/*.parquet"))

    def keep_only(self, paths: Iterable[str]) -> None:
        """Deletes parts that are not among `paths`, and what a killed execution left half-written.

        A reader that takes the whole folder would count such rows twice. Raises: StorageError.
        """
        kept = set(paths)
        try:
            for path in [*self.folder.glob("*/*.parquet"), *self.folder.glob("**/*.tmp")]:
                if path.relative_to(self.folder).as_posix() not in kept:
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(
                f"Cannot delete an outdated file in {self.folder}: {error.strerror}. "
                "Look at its permissions, then run again."
            ) from error

    def _make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        for place in dict.fromkeys((self.folder, folder)):
            place.mkdir(mode=0o700, exist_ok=True)
            place.chmod(0o700)
            _sync_folder(place.parent)


def stamp(source: Path) -> str:
    """Tells a staged Parquet file from any other that might take its place, also in a copy of the state directory.

    Its end holds the place, size and bounds of every column, so reading that much is enough to see that a load was
    spooled again. Raises: Unreadable.
    """
    try:
        with source.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _STAMPED_BYTES))
            return f"{size}-{hashlib.sha256(file.read()).hexdigest()[:32]}"
    except OSError as error:
        raise Unreadable(f"{source.name} cannot be read: {error.strerror}") from error


def _replace(target: Path, content: bytes) -> None:
    """Puts `content` at `target`, durably and at once; after a crash there is the old file or the new one."""
    temporary = target.with_name(target.name + ".tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, 0o600)  # whatever the umask, and whatever a killed execution left behind
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(target)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot_write(target: Path, error: OSError) -> StorageError:
    return StorageError(
        f"Cannot write {target}: {error.strerror}. Nothing is lost, since the ledger is derived from staging and "
        "journal: make room, or mend the permissions, and run again."
    )


def _manifest(document: Any) -> Manifest:
    return Manifest(
        written_at=document["written_at"],
        loads=tuple(
            LoadEntry(
                load["load"],
                load["complete"],
                load["customer_key"],
                tuple(ExportEntry(**export) for export in load["exports"]),
            )
            for load in document["loads"]
        ),
        parts=tuple(PartEntry(**part) for part in document["parts"]),
    )
