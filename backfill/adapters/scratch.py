"""Scratch space on disk for as long as a command needs it: rows that would not fit into memory, as Parquet.

A folder of its own, 0700, in the system's place for temporary files (TMPDIR says where); it is gone when the command
ends, however it ends but by SIGKILL. Nothing in it is durable, or meant to be. Never decides which rows lie in it.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import polars as pl

from backfill.core.arrange import Span, within
from backfill.core.errors import StorageError

_GROUP_ROWS = 8_192
"""As in staged runs: whoever wants some slots passes over the groups of others."""

_POLARS_FAILED = (pl.exceptions.PolarsError, pl.exceptions.PanicException)


class Scratch:
    """Rows with `slot` and `timestamp`, written in parts, each in the order of slots, and read by slot and time."""

    def __init__(self) -> None:
        self._parts: list[Path] = []

    def __enter__(self) -> Self:
        try:
            self._folder = tempfile.TemporaryDirectory(prefix="backfill-", ignore_cleanup_errors=True)
        except OSError as error:
            raise StorageError(
                f"No temporary directory can be made ({error.strerror}). Name a place with space in TMPDIR, then run "
                "the same command again."
            ) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._folder.cleanup()

    @property
    def folder(self) -> Path:
        """For files that others need meanwhile; gone with the rest."""
        return Path(self._folder.name)

    def write(self, rows: pl.DataFrame) -> None:
        """Adds a part. Raises: StorageError."""
        path = Path(self._folder.name) / f"{len(self._parts):05}.parquet"
        with self._usable():
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            rows.write_parquet(path, compression="uncompressed", row_group_size=_GROUP_ROWS)
        self._parts.append(path)

    def read(self, slots: tuple[int, int], times_us: tuple[int, int] | None) -> pl.DataFrame:
        """The rows of the slots and times [from, to), in the order in which they were written. Raises: StorageError."""
        return self._collected(lambda scan: scan.filter(within(slots, times_us)))

    def spans(self, slots: tuple[int, int], times_us: tuple[int, int] | None, width_us: int) -> list[Span]:
        """How many rows of these slots and times begin in each span of `width_us`. Raises: StorageError."""
        span = (pl.col("timestamp").cast(pl.Int64) // width_us).alias("span")
        counts = self._collected(lambda scan: scan.filter(within(slots, times_us)).group_by(span).agg(pl.len()))
        return [Span(start * width_us, width_us, rows) for start, rows in counts.sort("span").iter_rows()]

    def _collected(self, query: Callable[[pl.LazyFrame], pl.LazyFrame]) -> pl.DataFrame:
        with self._usable():
            return query(pl.scan_parquet(self._parts, glob=False)).collect()

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except (OSError, *_POLARS_FAILED) as error:
            raise StorageError(
                f"The temporary files in {self._folder.name} cannot be written or read. Free some space there (some "
                "80 bytes a row), or name another place in TMPDIR; then run the same command again."
            ) from error
