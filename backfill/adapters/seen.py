"""The interactions seen so far, as fingerprints by slot: for telling that one was planned in an earlier load.

Remembers where each stands (load, piece, place in the piece) and leaves what became of it to the journal, so that a
decision made later counts. Files are only ever added, or many replaced by few; never decides what is a duplicate.

    seen/load-00003/00000-0000-0585-1c291ca3.parquet     piece, slots [from, to), CRC-32 of the file
    seen/upto-00002/00000-0000-4096-9b1de0f7.parquet     loads 1 and 2, merged: part, slots, CRC-32

Memory is bounded by the size of one file and by what is looked for, not by what is remembered.
"""

import os
import re
import shutil
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import polars as pl

from backfill.core.errors import StorageError
from backfill.core.identity import halves
from backfill.core.limits import SLOTS

FOLDER = "seen"

SCHEMA = {
    "slot": pl.UInt16(),
    "high": pl.UInt64(),
    "low": pl.UInt64(),
    "load": pl.UInt32(),
    "piece": pl.UInt32(),
    "place": pl.UInt32(),
}
"""One line per interaction: its fingerprint in two halves, since UInt128 is no type of Parquet's."""

FOUND_SCHEMA = {name: dtype for name, dtype in SCHEMA.items() if name != "slot"}

MERGE_AT = 32
"""As many loads are kept apart; then they are merged, since each piece of a new load looks into every one."""

_FILE_ROWS = 1_000_000
"""Rows of a merged file, some 25 MB: what is in memory at once while merging."""

_ROW_GROUP = 16_384
"""A piece looks for the slots that it has; whole row groups of other slots are passed over."""

_NAME = re.compile(r"(\d{5})-(\d{4})-(\d{4})-([0-9a-f]{8})\.parquet")
_POLARS_FAILED = (pl.exceptions.PolarsError, pl.exceptions.PanicException)
_AT_ONCE = 1 << 20


class _File(NamedTuple):
    path: Path
    part: int
    slot_from: int
    slot_to: int
    crc: str

    def overlaps(self, slots: tuple[int, int]) -> bool:
        return self.slot_from < slots[1] and self.slot_to > slots[0]


class Seen:
    """The folder `seen` of a state directory."""

    def __init__(self, state: Path) -> None:
        self.folder = state / FOLDER

    def remember(self, load: int, piece: int, slots: tuple[int, int], rows: pl.DataFrame) -> None:
        """Keeps the fingerprints of a piece durably; done again, it replaces what it did before.

        `rows`: slot, fingerprint (UInt128), and its place in the piece, UInt32. Raises: StorageError.
        """
        lines = rows.select(
            "slot",
            *halves("fingerprint"),
            pl.lit(load, pl.UInt32).alias("load"),
            pl.lit(piece, pl.UInt32).alias("piece"),
            "place",
        ).sort("slot")
        with _writing(self.folder):
            folder = _made(self.folder / f"load-{load:05}")
            kept = _write(folder, piece, slots, lines)
            for file in _files(folder):
                if file.part == piece and file.path != kept:
                    file.path.unlink()
            _sync_folder(folder)

    def forget_after(self, load: int) -> None:
        """Drops all loads after this one: they were never frozen, or are to be spooled again. Raises: StorageError."""
        if not self.folder.is_dir():
            return
        with _writing(self.folder):
            later = [folder for folder in self.folder.iterdir() if _kind(folder)[1] > load]
            merged = [folder for folder in later if _kind(folder)[0] == "upto"]
            if merged and load:
                # The loads up to this one have no other place, and the newest has all of them.
                shutil.rmtree(self.folder / f"upto-{load:05}", ignore_errors=True)
                self._rebuild(load, [max(merged, key=lambda folder: _kind(folder)[1])])
            for folder in later:
                shutil.rmtree(folder)

    def holds(self, load: int, pieces: Collection[int]) -> bool:
        """Whether these pieces of a load are remembered, apart or merged with others."""
        if any(_kind(folder)[1] >= load for folder in self.folder.glob("upto-*")):
            return True
        folder = self.folder / f"load-{load:05}"
        return set(pieces) <= {file.part for file in (_files(folder) if folder.is_dir() else ())}

    def find(
        self, before_load: int, slots: tuple[int, int], wanted: pl.DataFrame, *, before_piece: int = 0
    ) -> pl.DataFrame:
        """Where interactions of earlier loads stand that have one of these fingerprints.

        `wanted`: high, low. `before_piece`: the pieces of load `before_load` before this one are asked, too.
        Shape: (matches, 5), as FOUND_SCHEMA; an interaction met several times has several lines, in the order of
        loads, pieces and places. Raises: StorageError.
        """
        inside = _in_slots(slots)
        found = [pl.DataFrame(schema=FOUND_SCHEMA)]
        own = self.folder / f"load-{before_load:05}"
        for folder in [*self._folders(before_load), *([own] if before_piece and own.is_dir() else [])]:
            for file in _files(folder):
                if not file.overlaps(slots) or (folder == own and file.part >= before_piece):
                    continue
                found.append(
                    _read(
                        file.path,
                        lambda scan: (
                            scan.filter(inside)
                            .join(wanted.lazy(), on=["high", "low"], how="semi")
                            .select(*FOUND_SCHEMA)
                        ),
                    )
                )
        return pl.concat(found).sort("load", "piece", "place")

    def check(self, before_load: int) -> None:
        """Raises: StorageError where a file is not as it was written: a forgotten interaction would be sent twice."""
        for folder in self._folders(before_load):
            for file in _files(folder):
                try:
                    crc = _crc(file.path)
                except OSError as error:
                    raise _unreadable(file.path) from error
                if crc != file.crc:
                    raise _unreadable(file.path)

    def merge(self, upto_load: int, *, at: int = MERGE_AT) -> bool:
        """Makes few files of many, once more than `at` loads up to this one lie apart. Returns whether it did.

        A kill at any instant leaves the many or the few. Raises: StorageError.
        """
        folders = self._folders(upto_load + 1)
        if len(folders) <= at:
            return False
        with _writing(self.folder):
            self._rebuild(upto_load, folders)
            for folder in self.folder.iterdir():  # also what a merge left that was killed at this point
                kind, number = _kind(folder)
                if (kind == "load" and number <= upto_load) or (kind == "upto" and number < upto_load):
                    shutil.rmtree(folder)
        return True

    def _rebuild(self, upto_load: int, folders: list[Path]) -> None:
        """Makes the folder of all loads up to this one out of these; it is there whole or not at all."""
        target = self.folder / f"upto-{upto_load:05}"
        shutil.rmtree(_partial(target), ignore_errors=True)
        building = _made(_partial(target))
        files = [file for folder in folders for file in _files(folder)]
        for part, slots in enumerate(_spans(_slot_counts(file.path for file in files))):
            wanted = _in_slots(slots) & (pl.col("load") <= upto_load)
            paths = [file.path for file in files if file.overlaps(slots)]
            lines = pl.concat([_read(path, partial(_filtered, wanted)) for path in paths])
            _write(building, part, slots, lines.sort("slot"))
        _sync_folder(building)
        building.rename(target)
        _sync_folder(self.folder)

    def _folders(self, before_load: int) -> list[Path]:
        """The folders that together hold the loads before this one, each load once: merged ones come first."""
        if not self.folder.is_dir():
            return []
        loads: dict[int, Path] = {}
        merged: dict[int, Path] = {}
        for folder in self.folder.iterdir():
            kind, number = _kind(folder)
            if kind is not None:
                (loads if kind == "load" else merged)[number] = folder
        # A merge that was killed before it had removed the many: the few hold all of them.
        newest = max((number for number in merged if number < before_load), default=0)
        apart = [loads[number] for number in sorted(loads) if newest < number < before_load]
        return [merged[newest], *apart] if newest else apart


def _kind(folder: Path) -> tuple[str | None, int]:
    named = re.fullmatch(r"(load|upto)-(\d{5,})", folder.name)
    return (None, 0) if named is None else (named[1], int(named[2]))


def _filtered(condition: pl.Expr, scan: pl.LazyFrame) -> pl.LazyFrame:
    return scan.filter(condition)


def _in_slots(slots: tuple[int, int]) -> pl.Expr:
    return pl.col("slot").is_between(pl.lit(slots[0], pl.UInt16), pl.lit(slots[1] - 1, pl.UInt16))


def _files(folder: Path) -> Iterator[_File]:
    for path in sorted(folder.iterdir()):
        named = _NAME.fullmatch(path.name)
        if named is not None:
            yield _File(path, int(named[1]), int(named[2]), int(named[3]), named[4])


def _write(folder: Path, part: int, slots: tuple[int, int], lines: pl.DataFrame) -> Path:
    """Writes a file durably but for its name. Its checksum is part of that, so there is no second truth to keep."""
    buffer = BytesIO()
    # Nine tenths of it are hashes, which no codec makes smaller.
    lines.select(*SCHEMA).write_parquet(buffer, compression="uncompressed", row_group_size=_ROW_GROUP)
    content = buffer.getbuffer()
    target = folder / f"{part:05}-{slots[0]:04}-{slots[1]:04}-{zlib.crc32(content):08x}.parquet"
    temporary = _partial(target)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, 0o600)  # whatever the umask
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    temporary.replace(target)
    return target


def _slot_counts(paths: Iterable[Path]) -> list[int]:
    counts = [0] * SLOTS
    for path in paths:
        for slot, count in _read(path, lambda scan: scan.group_by("slot").agg(pl.len())).iter_rows():
            counts[slot] += count
    return counts


def _spans(counts: list[int]) -> Iterator[tuple[int, int]]:
    """Neighbouring slots, [from, to), with some _FILE_ROWS interactions each; a larger slot is alone."""
    start = rows = 0
    for slot, count in enumerate(counts):
        if rows and rows + count > _FILE_ROWS:
            yield start, slot
            start, rows = slot, 0
        rows += count
    if rows:
        yield start, len(counts)


def _crc(path: Path) -> str:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(_AT_ONCE):
            crc = zlib.crc32(block, crc)
    return f"{crc:08x}"


def _read(path: Path, query: Callable[[pl.LazyFrame], pl.LazyFrame]) -> pl.DataFrame:
    try:
        return query(pl.scan_parquet(path, glob=False)).collect()
    except (*_POLARS_FAILED, OSError) as error:
        raise _unreadable(path) from error


def _unreadable(path: Path) -> StorageError:
    return StorageError(
        f"{path} is gone or damaged. It says which interactions were met before, and without it some would be sent "
        "twice. Restore it from a backup."
    )


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _made(folder: Path) -> Path:
    for place in (folder.parent, folder):
        if not place.is_dir():
            place.mkdir(mode=0o700)
            place.chmod(0o700)
            _sync_folder(place.parent)
    return folder


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be written: {error.strerror}. Free some space there, or mend the disk, then run again."
        ) from error
