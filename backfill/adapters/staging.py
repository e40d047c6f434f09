"""The staged files of a load: runs, then pieces, in Parquet, and the manifest that says what they are.

A file is there whole or not at all: it is written under another name, made durable, then renamed. Each one's checksum
is kept, since a Parquet file of which some bits have changed reads as one with other values. Never decides what goes
into which file.

    manifest.json              with the checksums of itself, the runs and the invalid rows
    run-NNNNN.parquet          until the last piece is arranged
    invalid-NNNNN.parquet
    rows-NNNNN.parquet         per piece
    checksums-NNNNN.json       of the rows and the requests of a piece
    requests-NNNNN.parquet     written last: the piece is arranged
"""

import errno
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl

from backfill.core.arrange import REQUEST_SCHEMA, ROW_SCHEMA, Arranged, Piece, Span, within
from backfill.core.errors import StorageError, Unusable
from backfill.core.identity import IDENTITY_SCHEMA

VERSION = 2
"""Of a load's files. Version 1 had no checksums."""

RUN_SCHEMA = {
    "slot": pl.UInt16(),
    "export": pl.UInt32(),
    "row": pl.Int64(),
    "line": pl.Int64(),
    "customer_key": pl.String(),
    "customer_key_name": pl.String(),
    "tid": pl.String(),
    "timestamp": pl.Datetime("us", "UTC"),
    "url": pl.String(),
}
"""The columns of every run. Beside them it has the properties of its rows (core.columns.PROPERTY), as text, and where
`rows.identity` is set IDENTITY_SCHEMA."""

INVALID_SCHEMA = {
    "export": pl.UInt32(),
    "row": pl.Int64(),
    "line": pl.Int64(),
    "customer_key": pl.String(),
    "customer_key_name": pl.String(),
    "tid": pl.String(),
    "timestamp": pl.Datetime("us", "UTC"),
    "reasons": pl.List(pl.String()),
}

_RUN_GROUP_ROWS = 8_192
"""A piece takes some thousand neighbouring rows of each run, and reads whole row groups."""

_ROW_GROUP = 65_536

_REQUEST_GROUP = 64
"""Requests in a row group: some 1.5 MB, the least that reading one request takes."""

_PARTIAL = ".partial"

_RESTORE = (
    "Restore the state directory from a backup, or at least this file, then run again. Nothing is sent of what cannot "
    "be read. If nothing of its exports was sent yet, they can be run in another --state."
)

_AT_ONCE = 1 << 20

_POLARS_FAILED = (pl.exceptions.PolarsError, pl.exceptions.PanicException)


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedExport:
    """An export as it was when it was staged; its place in the manifest is its number in the staged files."""

    path: str
    rows: int
    valid: int
    invalid: int
    size: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What spooling a load came to. Its file is the last that spooling writes.

    `runs`: how many there were; `properties`: the columns that some of them have beside RUN_SCHEMA.
    """

    load: int
    lanes: int
    exports: tuple[StagedExport, ...]
    pieces: tuple[Piece, ...]
    runs: int
    properties: tuple[str, ...]
    invalid_parts: int

    @property
    def read(self) -> int:
        return sum(export.rows for export in self.exports)

    @property
    def valid(self) -> int:
        return sum(export.valid for export in self.exports)

    @property
    def invalid(self) -> int:
        return sum(export.invalid for export in self.exports)


def prepare(folder: Path) -> None:
    """An empty folder for a load, whatever an interrupted spool left in it."""
    with _writing(folder):
        for place in (folder.parent, folder):
            place.mkdir(mode=0o700, exist_ok=True)
            place.chmod(0o700)  # whatever the umask
        # The manifest first: without it, the rest counts for nothing.
        (folder / "manifest.json").unlink(missing_ok=True)
        for path in folder.iterdir():
            path.unlink()


def discard(folder: Path) -> None:
    """Leave nothing of a spool that did not come to its end. Never hides why it did not."""
    with suppress(OSError):
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def write_run(folder: Path, number: int, rows: pl.DataFrame) -> None:
    """`rows`: RUN_SCHEMA and properties. Not compressed: that would be a third of the work of writing and reading them.

    They take nine tenths of the CSV's size instead of half of it, until the last piece is arranged.
    """
    properties = sorted(name for name in rows.columns if name not in RUN_SCHEMA)
    _write_parquet(_run(folder, number), rows.select(*RUN_SCHEMA, *properties), _RUN_GROUP_ROWS, "uncompressed", None)


def write_invalid(folder: Path, part: int, rows: pl.DataFrame) -> None:
    _write_parquet(invalid_file(folder, part), rows.select(*INVALID_SCHEMA), _ROW_GROUP, "zstd", 3)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """From here on the load is staged: a later execution needs none of its exports."""
    document = {
        "version": VERSION,
        "load": manifest.load,
        "lanes": manifest.lanes,
        "exports": [asdict(export) for export in manifest.exports],
        "rows": {"read": manifest.read, "valid": manifest.valid, "invalid": manifest.invalid},
        "pieces": [asdict(piece) for piece in manifest.pieces],
        "runs": manifest.runs,
        "properties": manifest.properties,
        "invalid_parts": manifest.invalid_parts,
    }
    path = folder / "manifest.json"
    files = [_run(folder, run) for run in range(manifest.runs)]
    files += [invalid_file(folder, part) for part in range(manifest.invalid_parts)]
    with _writing(folder):
        document["checksums"] = {file.name: _checksum(file) for file in files}
        _write_json(path, document)
        _sync(folder)
        _sync(folder.parent)


def read_manifest(folder: Path) -> Manifest:
    """Raises StorageError if it is not there or not what was written, Unusable for one of a later version."""
    path = folder / "manifest.json"
    document = _read_json(path)
    try:
        return Manifest(
            load=document["load"],
            lanes=document["lanes"],
            exports=tuple(StagedExport(**export) for export in document["exports"]),
            pieces=tuple(Piece(**piece) for piece in document["pieces"]),
            runs=document["runs"],
            properties=tuple(document["properties"]),
            invalid_parts=document["invalid_parts"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path) from error


def check_runs(folder: Path, manifest: Manifest) -> None:
    """Raises StorageError where a run is not as it was spooled, or went because all was arranged that is gone now."""
    runs = [_run(folder, run) for run in range(manifest.runs)]
    if not any(run.exists() for run in runs):
        for piece in manifest.pieces:
            if _checksums(folder, piece.piece).exists() and not is_arranged(folder, piece.piece):
                raise _damaged(_requests(folder, piece.piece))
    _check(folder / "manifest.json", runs)


def check_invalid(folder: Path, manifest: Manifest) -> None:
    """Raises StorageError where the rows that the rules refuse are not as they were spooled."""
    _check(folder / "manifest.json", [invalid_file(folder, part) for part in range(manifest.invalid_parts)])


def check_piece(folder: Path, piece: int) -> None:
    """Raises StorageError where the rows or requests of a piece are not as they were arranged.

    Reads both files whole; the system then has them at hand for whoever reads them next.
    """
    _check(_checksums(folder, piece), [rows_file(folder, piece), _requests(folder, piece)])


def is_arranged(folder: Path, piece: int) -> bool:
    return _requests(folder, piece).is_file()


def write_piece(folder: Path, piece: int, arranged: Arranged) -> None:
    """The requests last: their presence says that the piece is arranged."""
    rows, requests = rows_file(folder, piece), _requests(folder, piece)
    _write_parquet(rows, arranged.rows, _ROW_GROUP, "zstd", 1)
    with _writing(folder):
        with _whole(requests) as partial:
            _put_parquet(partial, arranged.requests, _REQUEST_GROUP, "zstd", 1)
            checksums = {rows.name: _checksum(rows), requests.name: _checksum(partial)}
            _write_json(_checksums(folder, piece), {"checksums": checksums})
            _sync(folder)  # or a power cut could leave requests without their checksum
        _sync(folder)


def remove_runs(folder: Path) -> None:
    """After the last piece. What an interrupted write left goes as well."""
    with _writing(folder):
        for path in folder.iterdir():
            if path.name.startswith("run-") or path.suffix == _PARTIAL:
                path.unlink()


def read_piece(folder: Path, manifest: Manifest, piece: Piece) -> pl.DataFrame:
    """The rows of a piece, out of all runs. Shape: RUN_SCHEMA and all properties of the load."""
    times = None
    if piece.time_from_us is not None and piece.time_to_us is not None:
        times = piece.time_from_us, piece.time_to_us
    wanted = within((piece.slot_from, piece.slot_to), times)
    paths = [_run(folder, run) for run in range(manifest.runs)]
    schema = RUN_SCHEMA | {name: IDENTITY_SCHEMA.get(name, pl.String()) for name in manifest.properties}
    try:
        # One query for all runs: with one for each, half of the time went into starting them.
        scan = pl.scan_parquet(paths, glob=False, schema=schema, missing_columns="insert")
        rows = scan.filter(wanted).collect()
    except (OSError, *_POLARS_FAILED) as error:
        for path in paths:
            _collected(path, lambda scan: scan)
        raise _damaged(folder) from error
    if rows.height != piece.rows:
        raise StorageError(
            f"The runs in {folder} hold {rows.height} rows of piece {piece.piece}, and {piece.rows} were spooled. "
            + _RESTORE
        )
    return rows


def spans(
    folder: Path, runs: int, slots: tuple[int, int], times_us: tuple[int, int] | None, width_us: int
) -> list[Span]:
    """How many rows of the slots [from, to) and the times [from, to) begin in each span of `width_us`."""
    wanted = within(slots, times_us)
    span = pl.col("timestamp").cast(pl.Int64) // width_us
    found: dict[int, int] = {}
    for run in range(runs):
        counts = _collected(
            _run(folder, run), lambda scan: scan.filter(wanted).group_by(span.alias("span")).agg(pl.len())
        )
        for start, rows in counts.iter_rows():
            found[start] = found.get(start, 0) + rows
    return [Span(start * width_us, width_us, rows) for start, rows in sorted(found.items())]


def rows(folder: Path, piece: int) -> pl.DataFrame:
    """One line per valid row of the piece, in delivery order. Shape: core.arrange.ROW_SCHEMA."""
    _check(_checksums(folder, piece), [rows_file(folder, piece)])
    return _collected(rows_file(folder, piece), lambda scan: _with_all(scan).select(*ROW_SCHEMA))


def places(folder: Path, piece: int) -> pl.DataFrame:
    """As `rows`, but only where each one stands: export, row, request, position."""
    _check(_checksums(folder, piece), [rows_file(folder, piece)])
    return _collected(rows_file(folder, piece), lambda scan: scan.select("export", "row", "request", "position"))


def request_index(folder: Path, piece: int) -> pl.DataFrame:
    """The planned requests of a piece, in their order, without bodies. Shape: request, lane, tid, count."""
    return _collected(_requests(folder, piece), lambda scan: scan.select("request", "lane", "tid", "count"))


def request_bodies(folder: Path, piece: int, offset: int, count: int) -> pl.DataFrame:
    """Requests [offset, offset + count) of a piece, counted from 0. Shape: core.arrange.REQUEST_SCHEMA.

    Reads no more than the row groups of 64 requests that these lie in.
    """
    return _collected(_requests(folder, piece), lambda scan: scan.slice(offset, count).select(*REQUEST_SCHEMA))


def invalid(folder: Path, part: int) -> pl.DataFrame:
    """Rows that the rules refuse. Shape: INVALID_SCHEMA."""
    _check(folder / "manifest.json", [invalid_file(folder, part)])
    return _collected(invalid_file(folder, part), lambda scan: scan.select(*INVALID_SCHEMA))


def rows_file(folder: Path, piece: int) -> Path:
    """Where the rows of a piece lie."""
    return folder / f"rows-{piece:05}.parquet"


def invalid_file(folder: Path, part: int) -> Path:
    """Where the rows of a part that the rules refuse lie."""
    return folder / f"invalid-{part:05}.parquet"


def _with_all(scan: pl.LazyFrame) -> pl.LazyFrame:
    """Rows that were arranged before loads knew of each other name no load."""
    if "duplicate_of_load" in scan.collect_schema():
        return scan
    return scan.with_columns(pl.lit(None, ROW_SCHEMA["duplicate_of_load"]).alias("duplicate_of_load"))


def _run(folder: Path, number: int) -> Path:
    return folder / f"run-{number:05}.parquet"


def _requests(folder: Path, piece: int) -> Path:
    return folder / f"requests-{piece:05}.parquet"


def _checksums(folder: Path, piece: int) -> Path:
    return folder / f"checksums-{piece:05}.json"


def _checksum(path: Path) -> str:
    """CRC-32 and size: against a disk that changes bits. It costs a quarter of what SHA-256 would."""
    crc = size = 0
    with path.open("rb") as file:
        while block := file.read(_AT_ONCE):
            crc = zlib.crc32(block, crc)
            size += len(block)
    return f"{crc:08x}-{size}"


def _check(kept: Path, files: list[Path]) -> None:
    """Raises StorageError where a file is not the one whose checksum stands in `kept`."""
    checksums = _read_json(kept)["checksums"]
    for path in files:
        try:
            found = _checksum(path)
        except OSError as error:
            raise _damaged(path) from error
        if found != checksums.get(path.name):
            raise _damaged(path)


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    """The caller makes the folder durable."""
    content = json.dumps(document, indent=1)
    with _whole(path) as partial:
        partial.write_text(json.dumps({**document, "own_checksum": _of_text(content)}, indent=1) + "\n", "utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    """Raises StorageError for a file that is missing or not as it was written, Unusable for one of a later version."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        version, own_checksum = document.get("version"), document.pop("own_checksum", None)
        if type(version) is int and version != VERSION and version > 0:
            later = "a later" if version > VERSION else "an earlier"
            raise Unusable(
                f"{path} was written by {later} version of backfill (format {version}, this one knows {VERSION}). "
                "Install that version again and finish its loads with it, or choose another --state."
            )
        # Read and written again it is the same text, so this compares every value in it.
        if own_checksum != _of_text(json.dumps(document, indent=1)):
            raise _damaged(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path) from error
    else:
        return dict(document)


def _of_text(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def _collected(path: Path, query: Callable[[pl.LazyFrame], pl.LazyFrame]) -> pl.DataFrame:
    try:
        return query(pl.scan_parquet(path, glob=False)).collect()
    except (OSError, *_POLARS_FAILED) as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> StorageError:
    state = "is damaged" if path.is_file() else "is missing"
    return StorageError(f"{path} {state}. {_RESTORE}")


def _write_parquet(
    path: Path, frame: pl.DataFrame, group_rows: int, codec: Literal["zstd", "uncompressed"], level: int | None
) -> None:
    with _writing(path.parent), _whole(path) as partial:
        _put_parquet(partial, frame, group_rows, codec, level)


def _put_parquet(
    path: Path, frame: pl.DataFrame, group_rows: int, codec: Literal["zstd", "uncompressed"], level: int | None
) -> None:
    frame.write_parquet(path, compression=codec, compression_level=level, row_group_size=group_rows)


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A name to write to; afterwards the file is durable and has its own. The caller makes the folder durable."""
    partial = path.with_name(path.name + _PARTIAL)
    try:
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
        partial.chmod(0o600)  # whatever the umask, and whatever was left there
        yield partial
        _sync(partial)
        partial.rename(path)
    except BaseException:  # whatever it was, a polars panic included, no partial file stays; it goes on up
        partial.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Says what to do when the disk will not take a file. polars hides the system's error in a sentence."""
    try:
        yield
    except (OSError, *_POLARS_FAILED) as error:
        code = error.errno if isinstance(error, OSError) else None
        if code is None and (found := re.search(r"\(os error (\d+)\)", str(error))):
            code = int(found.group(1))
        if code is None and "transport error" not in str(error):
            raise
        # A file whose end was not taken: the part of polars that writes it forgets what the system said.
        said = "the end of a file was not taken, as by a full disk" if code is None else os.strerror(code)
        remedy = "Check the disk and its permissions"
        if code is None or code in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            remedy = "Free some space there (staging takes up to 1.5 times the exports)"
        if code is None:
            remedy += ", and if there is enough, check the disk"
        raise StorageError(f"{folder} cannot be written: {said}. {remedy}, then run again.") from error
