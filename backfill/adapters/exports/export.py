"""What an export is to its readers: records in blocks, each with its place, and a fingerprint.

Never opens a file.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import polars as pl

from backfill.core.address import Address

POLARS_FAILED = (pl.exceptions.PolarsError, pl.exceptions.PanicException)


Located = Path | Address
"""Where an export lies: a file, or an object in a store."""


class Fingerprint(NamedTuple):
    """What an export was when it was read.

    `sha256` is of the file as it lies there, packed or not, in hexadecimal. An object has its ETag there, as
    `core.address.Seen.identity` gives it, and no mtime (0).
    """

    path: Located
    size: int
    mtime_ns: int
    sha256: str


class Block(NamedTuple):
    """Some consecutive records.

    `frame` has the export's columns as text; a typed export's dates, datetimes and floats keep their type. Empty text
    is as good as null: which of them a reader gives says nothing. The first record has the number `row`, the others
    follow; numbers count data records from 1. `lines` says where in the file each
    record starts (Int64, from 1, only LF ends a line), None for Parquet.
    """

    frame: pl.DataFrame
    row: int
    lines: pl.Series | None


class Export(Protocol):
    """One export, open for a single pass.

    `header` names its columns; `beginning` are the first lines of a CSV, from which one may see why a column is
    missing (none for Parquet).
    """

    @property
    def path(self) -> Located: ...

    header: tuple[str, ...]
    beginning: tuple[str, ...]

    def blocks(self, columns: Sequence[str]) -> Iterator[Block]:
        """The records in their order, with at least `columns`. Raises ExportError."""

    def fingerprint(self) -> Fingerprint:
        """What was read, after the last block. Raises ExportError if the file changed meanwhile."""


def without_words(frame: pl.DataFrame, words: Sequence[str]) -> pl.DataFrame:
    """The frame with null for every text that is one of `words`, to the character."""
    if not words:
        return frame
    # Floats keep their type for a while, and NaN is the word that they have for nothing.
    value = pl.col(pl.String, pl.Float32, pl.Float64)
    is_word = value.cast(pl.String).is_in(list(words))
    return frame.with_columns(pl.when(is_word).then(None).otherwise(value).name.keep())
