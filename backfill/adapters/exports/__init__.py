"""Reads exports, CSV and Parquet, block by block.

Every row keeps its place: number and line. A record is never lost, padded or shifted in silence: what cannot be read
as the configuration says is an error with file and line. Never judges a value, and never writes anything.
"""

from pathlib import Path

from backfill.adapters.exports.content import begins_as, fingerprint, reading
from backfill.adapters.exports.delimited import CsvExport
from backfill.adapters.exports.export import Block, Export, Fingerprint
from backfill.adapters.exports.footer import MAGICS
from backfill.adapters.exports.parquet import ParquetExport
from backfill.adapters.exports.partitions import Partitioned, partitions
from backfill.adapters.exports.places import find
from backfill.core.config import Csv
from backfill.core.limits import CSV_BLOCK_BYTES

__all__ = [
    "Block",
    "CsvExport",
    "Export",
    "Fingerprint",
    "ParquetExport",
    "begins_as",
    "find",
    "fingerprint",
    "open_export",
]


def open_export(path: Path, options: Csv, *, block_bytes: int = CSV_BLOCK_BYTES) -> Export:
    """Open the export at `path`, by its contents and not by its name. Raises ExportError."""
    with reading(path), path.open("rb") as file:
        head = file.read(4)
    export: Export
    if head in MAGICS or path.suffix.casefold() in {".parquet", ".pq"}:
        export = ParquetExport(path, options.null_values)
    else:
        export = CsvExport(path, options, block_bytes=block_bytes)
    added = partitions(path)
    return Partitioned(export, added) if added else export
