"""Reads exports, CSV and Parquet, block by block, from files and from object stores.

Every row keeps its place: number and line. A record is never lost, padded or shifted in silence: what cannot be read
as the configuration says is an error with file and line. Never judges a value, and never writes anything but the copy
of an object that is being read.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from backfill.adapters.exports.content import begins_as, fingerprint, reading
from backfill.adapters.exports.delimited import CsvExport
from backfill.adapters.exports.export import Block, Export, Fingerprint, Located
from backfill.adapters.exports.footer import MAGICS
from backfill.adapters.exports.objects import Fetched, fetch, look, never
from backfill.adapters.exports.parquet import ParquetExport
from backfill.adapters.exports.partitions import Partitioned, partitions
from backfill.adapters.exports.places import find, located
from backfill.core.config import Csv
from backfill.core.limits import CSV_BLOCK_BYTES

__all__ = [
    "Block",
    "CsvExport",
    "Export",
    "Fingerprint",
    "Located",
    "ParquetExport",
    "begins_as",
    "find",
    "fingerprint",
    "located",
    "look",
    "never",
    "open_export",
    "opened",
]

_PARQUET = (".parquet", ".pq")


def open_export(path: Path, options: Csv, *, block_bytes: int = CSV_BLOCK_BYTES) -> Export:
    """Open the export at `path`, by its contents and not by its name. Raises ExportError."""
    return _partitioned(_reader(path, options, block_bytes), path)


@contextmanager
def opened(
    place: Located, options: Csv, *, folder: Path | None, stopped: Callable[[], bool] = never
) -> Iterator[Export]:
    """As `open_export`; an object is fetched into `folder` and deleted from there at the end.

    Raises beside ExportError: StorageError, and StoppedEarly where a store does not answer or `stopped()` is true.
    """
    if isinstance(place, Path):
        yield open_export(place, options)
        return
    assert folder is not None, "whoever reads objects says where to"
    suffix = Path(place.key).suffix.casefold()
    copy = folder / f"fetched{suffix if suffix in _PARQUET else ''}"
    try:
        seen = fetch(place, copy, stopped)
        export = Fetched(lambda path: _reader(path, options, CSV_BLOCK_BYTES), copy, place, seen)
        yield _partitioned(export, Path("/", place.key))
    finally:
        copy.unlink(missing_ok=True)


def _reader(path: Path, options: Csv, block_bytes: int) -> Export:
    with reading(path), path.open("rb") as file:
        head = file.read(4)
    if head in MAGICS or path.suffix.casefold() in _PARQUET:
        return ParquetExport(path, options.null_values)
    return CsvExport(path, options, block_bytes=block_bytes)


def _partitioned(export: Export, path: Path) -> Export:
    added = partitions(path)
    return Partitioned(export, added) if added else export
