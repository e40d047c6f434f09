"""Settling: bring the ledger up to what staging and journal say, then count.

Sends nothing and changes neither staging nor journal. Run again, it writes only what has changed or is missing, so a
kill at any instant costs nothing but the work.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Protocol

import polars as pl

from backfill.adapters import staging
from backfill.adapters.ledger import (
    ExportEntry,
    Ledger,
    LoadEntry,
    Manifest,
    PartEntry,
    Unreadable,
    part_path,
    stamp,
)
from backfill.adapters.state import JobFile, Load
from backfill.core.account import CustomerKeys, add_counts, count_outcomes, invalid_lines, made_with, sent_lines
from backfill.core.arrange import Piece
from backfill.core.errors import ConfigurationError, StorageError
from backfill.core.lifecycle import Standing
from backfill.core.summary import OUTCOMES, ExportCounts, Progress

_LAST_REQUEST = 2**62
"""Beyond every request number: for asking about a whole load."""


class Journal(Protocol):
    """What settling asks of the journal. Requests from first to last, both inclusive."""

    def standings(self, load: int, first_request: int, last_request: int) -> list[Standing]: ...

    def newest_move(self, load: int, first_request: int, last_request: int) -> int: ...


@dataclass(frozen=True, kw_only=True)
class LoadOnDisk:
    """A frozen load: its number, its staged folder, and how its ledger names customers (frozen with it).

    `exports`: their paths, for rows of later loads that repeat some of theirs. `ledger_key`: what makes pseudonyms of
    customers where that is by "hmac".
    """

    load: int
    folder: Path
    customer_keys: CustomerKeys = "plain"
    ledger_key: str | None = field(default=None, repr=False)
    exports: tuple[str, ...] = ()


def require_ledger_key(ledger_key: str | None, job: JobFile, configured: CustomerKeys = "plain") -> None:
    """Raises: ConfigurationError where customers are to be named by "hmac" and nothing to make it with was given.

    Asked before anything is sent, since without it nothing can be settled.
    """
    loads = [load.load for load in job.loads if _customer_keys(load) == "hmac"]
    if ledger_key is None and (loads or configured == "hmac"):
        whose = f"The ledger of load {loads[0]} names" if loads else "ledger.customer_key names"
        raise ConfigurationError(
            f'{whose} customers by "hmac", and there is no key to make it with. Set BACKFILL_LEDGER_KEY, or '
            "BACKFILL_LEDGER_KEY_FILE to a file that holds it: the same one every time."
        )


def _customer_keys(load: Load) -> CustomerKeys:
    kept = load.config.get("ledger", {}).get("customer_key")
    return "omit" if kept == "omit" else "hmac" if kept == "hmac" else "plain"


def loads_on_disk(state: Path, job: JobFile, ledger_key: str | None = None) -> list[LoadOnDisk]:
    """All loads that the job has frozen."""
    return [
        LoadOnDisk(
            load=load.load,
            folder=state / "staged" / str(load.load),
            customer_keys=_customer_keys(load),
            ledger_key=ledger_key,
            exports=tuple(export.path for export in load.exports),
        )
        for load in job.loads
    ]


def settle(
    loads: Sequence[LoadOnDisk], journal: Journal, state: Path, *, report: Callable[[Progress], None]
) -> tuple[ExportCounts, ...]:
    """Writes the ledger of these loads, all that the job has frozen, and counts their rows by export and outcome.

    A load that is not wholly arranged (its execution stopped early) is counted, its rows not yet arranged being
    unsent, but gets no parts: its manifest entry says `complete: false` until a later execution has arranged it.
    Memory: one piece at a time.
    Raises: StorageError when the ledger cannot be written.
    """
    ledger = Ledger(state)
    try:
        before = ledger.read_manifest() or Manifest()
    except Unreadable:
        before = Manifest()  # derived, like the parts: everything is written anew
    manifests = [staging.read_manifest(load.folder) for load in loads]
    progress = _Report(report, sum(export.rows for manifest in manifests for export in manifest.exports))
    entries: list[LoadEntry] = []
    parts: list[PartEntry] = []
    exports = {load.load: load.exports for load in loads}
    for load, manifest in zip(loads, manifests, strict=True):
        settled = _Settling(load, manifest, exports, journal, ledger, before, progress).settle()
        entries.append(settled.entry)
        parts += settled.parts
    after = Manifest(
        written_at=datetime.now(UTC).isoformat(timespec="milliseconds"), loads=tuple(entries), parts=tuple(parts)
    )
    if (after.loads, after.parts) != (before.loads, before.parts):
        ledger.write_manifest(after)
    ledger.keep_only(part.path for part in parts)
    return tuple(
        ExportCounts(export=export.export, load=entry.load, read=export.read, outcomes=export.outcomes)
        for entry in entries
        for export in entry.exports
    )


def must_not_be_ahead(loads: Sequence[LoadOnDisk], journal: Journal, state: Path) -> None:
    """A ledger that knows more than the journal was made from another: one that was put back is older than what was
    sent, and going on with it would send rows again.

    Raises: StorageError.
    """
    try:
        manifest = Ledger(state).read_manifest() or Manifest()
    except Unreadable:
        return
    for load in loads:
        newest = max((part.journal_moves for part in manifest.parts_of(load.load)), default=0)
        if newest > journal.newest_move(load.load, 0, _LAST_REQUEST):
            raise StorageError(
                f"The journal {state / 'journal.db'} is older than the ledger that was made from it: what was sent of "
                f"load {load.load} since then would be sent again. Put the newest journal back, with journal.db-wal if "
                "there is one; do not go on with this one."
            )


class _Settled(NamedTuple):
    entry: LoadEntry
    parts: list[PartEntry]


class _Report:
    """Adds up rows and tells how far settling is."""

    def __init__(self, report: Callable[[Progress], None], total: int) -> None:
        self._report = report
        self._total = total
        self._done = 0

    def add(self, rows: int) -> None:
        self._done += rows
        self._report(Progress("settling", self._done, self._total))


class _Source(NamedTuple):
    """What a part is derived from: the staged file, and how to derive its lines from that."""

    path: str
    moves: int
    stamp: str
    derive: Callable[[], pl.DataFrame]


class _Settling:
    """One load on its way into the ledger."""

    def __init__(
        self,
        load: LoadOnDisk,
        manifest: staging.Manifest,
        exports_by_load: Mapping[int, Sequence[str]],
        journal: Journal,
        ledger: Ledger,
        before: Manifest,
        progress: _Report,
    ) -> None:
        self._load = load
        self._manifest = manifest
        self._exports_by_load = exports_by_load
        self._journal = journal
        self._ledger = ledger
        self._progress = progress
        self._exports = [export.path for export in manifest.exports]
        self._keys = made_with(load.customer_keys, load.ledger_key)
        same_keys = any(entry.load == load.load and entry.customer_keys == self._keys for entry in before.loads)
        self._before = {part.path: part for part in before.parts_of(load.load)} if same_keys else {}

    def settle(self) -> _Settled:
        arranged = [piece for piece in self._manifest.pieces if staging.is_arranged(self._load.folder, piece.piece)]
        complete = len(arranged) == len(self._manifest.pieces)
        counts: dict[str, dict[str, int]] = {}
        parts = []
        for source in self._sources(arranged):
            if complete:
                entry = self._up_to_date(source)
                parts.append(entry)
                add_counts(counts, entry.outcomes)
                self._progress.add(entry.rows)
            else:
                lines = source.derive()
                add_counts(counts, count_outcomes(lines))
                self._progress.add(lines.height)
        if not complete:
            add_counts(counts, self._not_arranged(counts))
        exports = tuple(
            ExportEntry(export.path, export.rows, _every_outcome(counts.get(export.path, {})))
            for export in self._manifest.exports
        )
        return _Settled(LoadEntry(self._load.load, complete, self._keys, exports), parts)

    def _sources(self, arranged: Sequence[Piece]) -> Iterator[_Source]:
        """The pieces, then the files of invalid rows: parts are numbered in this order, whatever is arranged."""
        load, folder, exports, keys = self._load.load, self._load.folder, self._exports, self._load.customer_keys
        ledger_key = self._load.ledger_key
        for piece in arranged:
            first, last = piece.first_request, piece.first_request + piece.rows - 1

            def lines(piece: Piece = piece, first: int = first, last: int = last) -> pl.DataFrame:
                standings = self._journal.standings(load, first, last)
                rows = staging.rows(folder, piece.piece)
                return sent_lines(
                    rows,
                    standings,
                    load=load,
                    exports=exports,
                    customer_keys=keys,
                    ledger_key=ledger_key,
                    exports_by_load=self._exports_by_load,
                )

            yield _Source(
                part_path(load, piece.piece),
                # Asked before the standings: a move made in between shows as one that the part does not know yet.
                self._journal.newest_move(load, first, last),
                _stamp(staging.rows_file(folder, piece.piece)),
                lines,
            )
        for part in range(self._manifest.invalid_parts):

            def refused(part: int = part) -> pl.DataFrame:
                invalid = staging.invalid(folder, part)
                return invalid_lines(invalid, load=load, exports=exports, customer_keys=keys, ledger_key=ledger_key)

            yield _Source(
                part_path(load, len(self._manifest.pieces) + part),
                0,
                _stamp(staging.invalid_file(folder, part)),
                refused,
            )

    def _up_to_date(self, source: _Source) -> PartEntry:
        """The part's entry, the part being written where it is missing, cut short or outdated."""
        known = self._before.get(source.path)
        if (
            known is not None
            and (known.journal_moves, known.staged) == (source.moves, source.stamp)
            and self._ledger.holds(known)
        ):
            return known
        lines = source.derive()
        written = self._ledger.write_part(source.path, lines)
        return PartEntry(
            path=source.path,
            load=self._load.load,
            rows=written.rows,
            sha256=written.sha256,
            bytes=written.bytes,
            journal_moves=source.moves,
            staged=source.stamp,
            outcomes=count_outcomes(lines),
        )

    def _not_arranged(self, counts: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
        """The valid rows of each export that lie in pieces not yet arranged: all of them are unsent."""
        missing = {}
        for export in self._manifest.exports:
            seen = counts.get(export.path, {})
            missing[export.path] = {"unsent": export.valid - sum(seen.values()) + seen.get("invalid", 0)}
        return missing


def _stamp(staged: Path) -> str:
    try:
        return stamp(staged)
    except Unreadable as error:
        raise StorageError(
            f"The staged file {staged} is gone or damaged: {error}. Restore it from a backup: what was sent of it "
            "stands in the journal, but its rows can no longer be accounted for."
        ) from error


def _every_outcome(counts: Mapping[str, int]) -> dict[str, int]:
    return {outcome: counts.get(outcome, 0) for outcome in OUTCOMES}
