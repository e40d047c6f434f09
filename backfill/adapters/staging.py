"""The staged files of a load: runs, then pieces, in Parquet, and the manifest that says what they are.

A file is there whole or not at all: it is written under another name, made durable, then renamed. Never decides what
goes into which file.
"""

import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from backfill.core.arrange import REQUEST_SCHEMA, ROW_SCHEMA, Arranged, Piece, Span
from backfill.core.errors import StorageError

VERSION = 1

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
"""The columns of every run. Beside them it has the properties of its rows (core.columns.PROPERTY), as text."""

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
    "Restore the state directory from a copy; if nothing of this load was sent, remove its folder under staged/ "
    "and run again with its exports."
)

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
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
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
    with _writing(folder):
        with _whole(path) as partial:
            partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        _sync(folder)
        _sync(folder.parent)


def read_manifest(folder: Path) -> Manifest:
    """Raises StorageError if the load was never staged whole, or if the file is not what was written."""
    path = folder / "manifest.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["version"] != VERSION:
            raise StorageError(f"{path} was written by another version of backfill. Go on with the one that wrote it.")
        return Manifest(
            load=document["load"],
            lanes=document["lanes"],
            exports=tuple(StagedExport(**export) for export in document["exports"]),
            pieces=tuple(Piece(**piece) for piece in document["pieces"]),
            runs=document["runs"],
            properties=tuple(document["properties"]),
            invalid_parts=document["invalid_parts"],
        )
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path) from error


def is_arranged(folder: Path, piece: int) -> bool:
    return _requests(folder, piece).is_file()


def write_piece(folder: Path, piece: int, arranged: Arranged) -> None:
    """The requests last: their presence says that the piece is arranged."""
    _write_parquet(rows_file(folder, piece), arranged.rows, _ROW_GROUP, "zstd", 1)
    _write_parquet(_requests(folder, piece), arranged.requests, _REQUEST_GROUP, "zstd", 1)
    with _writing(folder):
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
    wanted = _within((piece.slot_from, piece.slot_to), times)
    paths = [_run(folder, run) for run in range(manifest.runs)]
    schema = RUN_SCHEMA | dict.fromkeys(manifest.properties, pl.String())
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
    wanted = _within(slots, times_us)
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
    return _collected(rows_file(folder, piece), lambda scan: scan.select(*ROW_SCHEMA))


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
    return _collected(invalid_file(folder, part), lambda scan: scan.select(*INVALID_SCHEMA))


def rows_file(folder: Path, piece: int) -> Path:
    """Where the rows of a piece lie."""
    return folder / f"rows-{piece:05}.parquet"


def invalid_file(folder: Path, part: int) -> Path:
    """Where the rows of a part that the rules refuse lie."""
    return folder / f"invalid-{part:05}.parquet"


def _within(slots: tuple[int, int], times_us: tuple[int, int] | None) -> pl.Expr:
    wanted = pl.col("slot").is_between(pl.lit(slots[0], pl.UInt16), pl.lit(slots[1] - 1, pl.UInt16))
    if times_us is None:
        return wanted
    first, end = (pl.lit(time).cast(RUN_SCHEMA["timestamp"]) for time in times_us)
    return wanted & (pl.col("timestamp") >= first) & (pl.col("timestamp") < end)


def _run(folder: Path, number: int) -> Path:
    return folder / f"run-{number:05}.parquet"


def _requests(folder: Path, piece: int) -> Path:
    return folder / f"requests-{piece:05}.parquet"


def _collected(path: Path, query: Callable[[pl.LazyFrame], pl.LazyFrame]) -> pl.DataFrame:
    try:
        return query(pl.scan_parquet(path, glob=False)).collect()
    except (OSError, *_POLARS_FAILED) as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> StorageError:
    state = "is damaged" if path.exists() else "is missing"
    return StorageError(f"{path} {state}. {_RESTORE}")


def _write_parquet(
    path: Path, frame: pl.DataFrame, group_rows: int, codec: Literal["zstd", "uncompressed"], level: int | None
) -> None:
    with _writing(path.parent), _whole(path) as partial:
        frame.write_parquet(partial, compression=codec, compression_level=level, row_group_size=group_rows)


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A name to write to; afterwards the file is durable and has its own. The caller makes the folder durable."""
    partial = path.with_name(path.name + _PARTIAL)
    try:
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
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
        # A file whose end does not fit: the part of polars that writes it forgets what the system said.
        said = "the end of a file does not fit" if code is None else os.strerror(code)
        if code is None or code in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            remedy = "Free some space there (staging takes up to 1.5 times the exports), or choose another --state"
        else:
            remedy = "Check the disk and its permissions"
        raise StorageError(f"{folder} cannot be written: {said}. {remedy}, then run again.") from error
