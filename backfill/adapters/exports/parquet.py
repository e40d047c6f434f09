"""Reads Parquet in blocks that stay small, whatever a file unpacks to.

Values become text by `values`; what a file says about itself comes from `footer`. Never judges a value.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from backfill.adapters.exports.content import changed, fingerprint, reading
from backfill.adapters.exports.export import POLARS_FAILED, Block, Fingerprint, without_words
from backfill.adapters.exports.footer import Leaf, RowGroup, check_pages, read_footer
from backfill.adapters.exports.values import as_read, problem, text
from backfill.core.errors import ExportError
from backfill.core.limits import CSV_BLOCK_BYTES, MAX_RECORD_BYTES

_BLOCK_ROWS = 50_000  # as many as a block of CSV has, for rows of 160 bytes
_SPAN_ROWS = 200_000  # a row group is decoded in slices of so many; 50,000 cost five times the time of the whole
_SPAN_BYTES = 64 << 20
_SPAN_VALUES = 4_000_000  # of a repeated column


class ParquetExport:
    """A Parquet file, some 50,000 rows at once."""

    def __init__(self, path: Path, null_values: Sequence[str] = ()) -> None:
        self.path = path
        self.beginning: tuple[str, ...] = ()  # a table without lines
        self._null_values = null_values
        self._fingerprint: Fingerprint | None = None
        self._footer = read_footer(path)
        self.header = self._footer.columns
        _check_names(self.header, path)
        self._leaves: dict[str, list[Leaf]] = {name: [] for name in self.header}
        for leaf in self._footer.leaves:
            self._leaves[leaf.column].append(leaf)
        with reading(path):
            try:
                self._schema = dict(pl.read_parquet_schema(path)) if self.header else {}
            except POLARS_FAILED as error:
                raise self._unreadable(error) from error
        if tuple(self._schema) != self.header:
            raise ExportError(
                f"{path} cannot be read as Parquet: its columns are not those it announces. Export or copy it again."
            )

    def blocks(self, columns: Sequence[str]) -> Iterator[Block]:
        """As `Export.blocks`; values become text as `values.text` says."""
        columns = columns or self.header[:1]  # of nothing, nobody could tell how many rows it has
        for column in columns:
            why = problem(self._schema[column], self._leaves[column])
            if why is not None:
                raise ExportError(
                    f"{self.path}: column {column!r} {why}, or leave it out by listing the wanted columns in "
                    "columns.properties."
                )
        with reading(self.path):
            before = self.path.stat()
        row = 1
        with reading(self.path):
            for first, count in self._spans(columns):
                for frame in self._decoded(columns, first, count):
                    yield Block(without_words(frame, self._null_values), row, None)
                    row += frame.height
                if row - 1 != first + count:
                    raise ExportError(
                        f"{self.path}: {row - 1:,} rows could be read of {first + count:,} announced. "
                        "Export or copy it again."
                    )
        self._fingerprint = fingerprint(self.path)
        if (self._fingerprint.size, self._fingerprint.mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise changed(self.path)

    def fingerprint(self) -> Fingerprint:
        assert self._fingerprint is not None, "the last block has not been read"
        return self._fingerprint

    def _spans(self, columns: Sequence[str]) -> Iterator[tuple[int, int]]:
        """What is decoded at once, as (first row from 0, rows): a slice of a row group, or some small ones together.
        Their pages have been checked."""
        first = start = held_bytes = 0
        with self.path.open("rb", buffering=0) as file:
            for group in self._footer.row_groups:
                size, most = _weight(group, columns)
                if start > first and (start + group.rows - first > most or held_bytes + size > _SPAN_BYTES):
                    yield first, start - first
                    first, held_bytes = start, 0
                check_pages(self.path, file, group, columns)
                start += group.rows
                held_bytes += size
                while start - first > most:
                    yield first, most
                    first, held_bytes = first + most, 0
        if start > first:
            yield first, start - first

    def _decoded(self, columns: Sequence[str], first: int, count: int) -> Iterator[pl.DataFrame]:
        stored = {name: as_read(self._schema[name], self._leaves[name], legacy_utc=False) for name in columns}
        wanted = {name: as_read(self._schema[name], self._leaves[name], legacy_utc=True) for name in columns}
        # A schema is given only where it changes something: INT96.
        schema = None if all(stored[name] == self._schema[name] for name in columns) else stored
        row = first
        try:
            scan = pl.scan_parquet(
                self.path,
                glob=False,
                hive_partitioning=False,
                schema=schema,
                extra_columns="raise" if schema is None else "ignore",
            ).select(
                pl.col(name) if stored[name] == wanted[name] else pl.col(name).cast(wanted[name]) for name in columns
            )
            texts = [text(name, wanted[name], self._leaves[name]) for name in columns]
            for frame in scan.slice(first, count).collect_batches(chunk_size=_BLOCK_ROWS, maintain_order=True):
                for part in self._small(frame, row):
                    yield part.select(texts)
                row += frame.height
        except POLARS_FAILED as error:
            raise self._unreadable(error) from error

    def _small(self, frame: pl.DataFrame, first: int) -> Iterator[pl.DataFrame]:
        """The frame in parts with little text each: many rows can share one long value, until they are copied."""
        texts = _text_bytes(frame)
        if not texts or frame.is_empty():
            yield frame
            return
        sizes = frame.select(pl.sum_horizontal(texts)).to_series()
        largest = sizes.max()
        assert isinstance(largest, int)
        if largest > MAX_RECORD_BYTES:
            row = first + (sizes.arg_max() or 0) + 1
            raise ExportError(
                f"{self.path}: row {row:,} holds {largest:,} bytes of text, more than any record may have."
            )
        start = 0
        while start < frame.height:
            upto = sizes.slice(start).cum_sum().search_sorted(CSV_BLOCK_BYTES, side="right")
            yield frame.slice(start, max(1, upto))
            start += max(1, upto)

    def _unreadable(self, error: BaseException) -> ExportError:
        return ExportError(
            f"{self.path} cannot be read as Parquet ({str(error).splitlines()[0][:200]}). Export or copy it again."
        )


def _check_names(names: Sequence[str], path: Path) -> None:
    if not names:
        raise ExportError(f"{path} has no columns. Export it again.")
    seen: dict[str, int] = {}
    for position, name in enumerate(names, start=1):
        if not name.strip():
            raise ExportError(f"{path}: column {position} has no name. Give it one when exporting.")
        if name in seen:
            raise ExportError(
                f"{path}: columns {seen[name]} and {position} are both named {name!r}, so nobody could tell which is "
                "meant. Rename one when exporting."
            )
        seen[name] = position


def _text_bytes(frame: pl.DataFrame) -> list[pl.Expr]:
    """How long the texts of each row are, for every column that has such."""
    words = pl.Categorical | pl.Enum
    return [
        (pl.col(name).cat if isinstance(dtype, words) else pl.col(name).str).len_bytes().cast(pl.Int64)
        for name, dtype in frame.schema.items()
        if isinstance(dtype, pl.String | words)
    ]


def _weight(group: RowGroup, columns: Sequence[str]) -> tuple[int, int]:
    """How many bytes the columns of a row group are when they are unpacked, and how many rows to decode at once."""
    used = [chunk for chunk in group.chunks if chunk.leaf.column in columns]
    size = sum(chunk.unpacked_bytes for chunk in used)
    values = max((chunk.values for chunk in used if chunk.leaf.is_repeated), default=0)
    per_bytes = group.rows * _SPAN_BYTES // max(1, size)
    per_values = group.rows * _SPAN_VALUES // max(1, values)
    return size, max(1, min(_SPAN_ROWS, per_bytes or 1, per_values or 1)) if group.rows else _SPAN_ROWS
