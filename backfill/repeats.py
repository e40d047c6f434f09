"""Repeats: which interactions of a load were met before, in earlier loads or in earlier pieces of its own.

Joins what was remembered (`adapters.seen`) with where it stands (`adapters.staging`) and what became of it (the
journal), since only what may have been applied counts: a row that was rejected or abandoned can be mended and sent.
Never decides what becomes of a repeat.
"""

from pathlib import Path
from typing import Protocol

import polars as pl

from backfill.adapters import staging
from backfill.adapters.seen import Seen
from backfill.core.account import applicable
from backfill.core.arrange import ORIGINALS_SCHEMA, Piece
from backfill.core.errors import StorageError
from backfill.core.identity import halves
from backfill.core.lifecycle import Standing


class Standings(Protocol):
    """What is asked of the journal. Requests from first to last, both inclusive."""

    def standings(self, load: int, first_request: int, last_request: int) -> list[Standing]: ...


def is_remembered(state: Path, load: int) -> bool:
    """Whether all that may have been sent of a load would be known again. Raises: StorageError."""
    folder = state / "staged" / str(load)
    pieces = [each.piece for each in staging.read_manifest(folder).pieces if staging.is_arranged(folder, each.piece)]
    return Seen(state).holds(load, pieces)


class Repeats:
    """What one load repeats, and its own interactions as later loads will meet them. Its state must be locked."""

    def __init__(self, state: Path, load: int, journal: Standings) -> None:
        self._state = state
        self._staged = state / "staged"
        self._seen = Seen(state)
        self._load = load
        self._journal = journal
        self._pieces: dict[int, tuple[Piece, ...]] = {}

    def prepare(self) -> None:
        """Before the first piece: is everything remembered as it was written? Many files are made few.

        Raises: StorageError.
        """
        for load in range(1, self._load):
            if (self._staged / str(load)).is_dir() and not is_remembered(self._state, load):
                raise StorageError(
                    f"{self._seen.folder} does not know load {load}, which was staged: interactions of it would "
                    "be sent again. Restore the folder from a backup."
                )
        self._seen.check(self._load + 1)  # its own pieces too: what they hold is looked at
        self._seen.merge(self._load - 1)

    def originals(self, piece: Piece, rows: pl.DataFrame, *, across_time: bool) -> pl.DataFrame:
        """The rows of a piece whose interaction was met before, each with the first that it repeats.

        `rows`: fingerprint, in delivery order. `across_time`: also what earlier pieces of the same lane hold, which is
        needed where an interaction may have several instants.
        Shape: (repeats, 4), as ORIGINALS_SCHEMA. Raises: StorageError.
        """
        wanted = rows.select(pl.int_range(pl.len(), dtype=pl.UInt32).alias("at"), *halves("fingerprint"))
        found = self._seen.find(
            self._load,
            (piece.slot_from, piece.slot_to),
            wanted.select("high", "low"),
            before_piece=piece.piece if across_time else 0,
        )
        if found.is_empty():
            return pl.DataFrame(schema=ORIGINALS_SCHEMA)
        # In the order in which they were planned, so the first that counts is the first there was.
        groups = found.partition_by("load", "piece", maintain_order=True)
        first = pl.concat([self._counting(group) for group in groups]).unique(
            ["high", "low"], keep="first", maintain_order=True
        )
        return (
            wanted.join(first, on=["high", "low"], maintain_order="left")
            .select(
                pl.col("at").alias("place"),
                pl.col("export").alias("duplicate_of_export"),
                pl.col("row").alias("duplicate_of_row"),
                pl.when(pl.col("load") != self._load).then("load").alias("duplicate_of_load"),
            )
            .select(*ORIGINALS_SCHEMA)
        )

    def remember(self, piece: Piece, rows: pl.DataFrame) -> None:
        """Keeps the interactions of a piece durably, before any of its requests can be sent.

        `rows`: slot, fingerprint, request, in delivery order; one without a request is a repeat and not kept.
        Raises: StorageError.
        """
        placed = rows.with_columns(pl.int_range(pl.len(), dtype=pl.UInt32).alias("place"))
        planned = placed.filter(pl.col("request").is_not_null())
        self._seen.remember(self._load, piece.piece, (piece.slot_from, piece.slot_to), planned)

    def _counting(self, found: pl.DataFrame) -> pl.DataFrame:
        """Of the interactions found in one piece those that may have been applied, or may still be.

        Shape: (interactions, 5): high, low, load, export, row.
        """
        load, number = found.select("load", "piece").row(0)
        folder = self._staged / str(load)
        if load not in self._pieces:
            self._pieces[load] = staging.read_manifest(folder).pieces
        piece = self._pieces[load][number]
        standings = self._journal.standings(load, piece.first_request, piece.first_request + piece.rows - 1)
        rows = staging.places(folder, number)[found["place"]]
        met = found.select("high", "low", "load").hstack(rows)
        return met.filter(applicable(rows, standings)).drop("request", "position")
