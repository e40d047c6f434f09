"""Stages a load: exports become requests on disk.

`spool` reads and validates every row once; when its manifest is there, the exports are no longer needed. `arrange`
then makes requests of the spooled rows, piece by piece, and renders each row once. Both may be killed at any instant:
spooling starts anew, arranging goes on with the next piece, and the bytes of every request come out the same. Never
sends anything.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import polars as pl

from backfill.adapters import exports, staging
from backfill.adapters.exports import Located
from backfill.adapters.staging import Manifest, StagedExport
from backfill.core import arrange as arranging
from backfill.core.calls import CALLS
from backfill.core.columns import PROPERTY, resolve
from backfill.core.config import RunConfig
from backfill.core.encode import render
from backfill.core.errors import ExportError, StoppedEarly
from backfill.core.identity import IDENTITY_SCHEMA
from backfill.core.limits import BUCKET_BYTES, BUCKET_ROWS, RUN_ROWS, SLOTS
from backfill.core.summary import Progress, refused_limit
from backfill.core.validate import Judged, Rules, judge, rules
from backfill.repeats import Repeats


def spool(
    paths: Sequence[Located],
    config: RunConfig,
    folder: Path,
    *,
    load: int,
    first_request: int = 1,
    now: datetime,
    report: Callable[[Progress], None],
    stopped: Callable[[], bool],
) -> Manifest:
    """Read the exports into `folder` and write the manifest that freezes the load.

    `paths`: files and objects, as `exports.find` lists them; an object is fetched into `folder` while it is read.
    `first_request`: the number of the first request; more than 1 where the load was staged and tried before, since the
    contents of a request that was ever tried never change. `now` bounds timestamps where time.not_after says nothing.
    Begins with an empty folder whatever is in it, and leaves none behind when it does not come to its end.
    Raises ConfigurationError, ExportError (also for an export with more invalid rows than rows.max_rejected),
    StorageError, and StoppedEarly soon after `stopped()` is true.
    """
    staging.prepare(folder)
    try:
        spooling = _Spooling(folder, config, rules(config.time, config.rows, now=now), report, stopped)
        staged = tuple(spooling.take(number, path) for number, path in enumerate(paths))
        spooling.flush()
        manifest = Manifest(
            load=load,
            lanes=spooling.lanes,
            exports=staged,
            pieces=spooling.pieces(first_request),
            runs=spooling.runs,
            properties=spooling.properties,
            invalid_parts=spooling.invalid_parts,
        )
    except BaseException:  # whatever it was (polars panics are no Exception), half a load must not stay; it goes on up
        staging.discard(folder)
        raise
    staging.write_manifest(folder, manifest)
    return manifest


def arrange(
    folder: Path,
    config: RunConfig,
    *,
    repeats: Repeats,
    report: Callable[[Progress], None],
    stopped: Callable[[], bool],
) -> None:
    """Make requests of a spooled load, from the first piece that has none yet.

    What `repeats` knows of earlier loads is not planned again, and each piece is remembered there before it is there.
    After the last piece the runs are deleted. Raises StorageError, and StoppedEarly soon after `stopped()` is true.
    """
    manifest = staging.read_manifest(folder)
    if not all(staging.is_arranged(folder, piece.piece) for piece in manifest.pieces):
        staging.check_runs(folder, manifest)
        repeats.prepare()
    done = 0
    for piece in manifest.pieces:
        if not staging.is_arranged(folder, piece.piece):
            _check_stop(stopped)
            _arrange_piece(folder, config, manifest, piece, repeats)
        done += piece.rows
        report(Progress("arranging", done, manifest.valid))
    staging.remove_runs(folder)


def _arrange_piece(
    folder: Path, config: RunConfig, manifest: Manifest, piece: arranging.Piece, repeats: Repeats
) -> None:
    """A function of its own, so that nothing of a piece is in memory when the next one is read."""
    rows = staging.read_piece(folder, manifest, piece)
    # Ordered before they are rendered: JSON is four times as much to move.
    rows = arranging.delivery_order(rows, manifest.lanes)
    rows = rows.drop("url", *manifest.properties).hstack(render(rows, config.wire))
    originals = None
    if config.rows.duplicates == "skip":
        # By its content an interaction has one instant, so it lies in one piece; by identity it may lie in several.
        across_time = config.rows.identity is not None and piece.time_from_us is not None
        originals = repeats.originals(piece, rows.select("fingerprint"), across_time=across_time)
    arranged = arranging.cut(
        rows,
        first_request=piece.first_request,
        most=CALLS[config.api.call].most,
        duplicates=config.rows.duplicates,
        originals=originals,
    )
    # Before the piece is there: what may be sent must never be unknown to a later load.
    repeats.remember(piece, rows.select("slot", "fingerprint").hstack(arranged.rows.select("request")))
    staging.write_piece(folder, piece.piece, arranged)


class _Spooling:
    """What is known of a load while its exports are read, and the rows that are not in a run yet."""

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        rules: Rules,
        report: Callable[[Progress], None],
        stopped: Callable[[], bool],
    ) -> None:
        self.runs = 0
        self.invalid_parts = 0
        self._folder = folder
        self._config = config
        self._rules = rules
        self._report = report
        self._stopped = stopped
        self._rows_read = 0
        self._pending: list[pl.DataFrame] = []
        self._pending_rows = self._pending_bytes = 0
        self._pending_invalid: list[pl.DataFrame] = []
        self._pending_invalid_rows = 0
        self._shares = Shares()
        self._properties: set[str] = set()

    @property
    def lanes(self) -> int:
        return self._shares.lanes

    @property
    def properties(self) -> tuple[str, ...]:
        return tuple(sorted(self._properties))

    def take(self, number: int, path: Located) -> StagedExport:
        """Read one export to its end."""
        with exports.opened(path, self._config.csv, folder=self._folder, stopped=self._stopped) as export:
            return self._read(export, number, path)

    def _read(self, export: exports.Export, number: int, path: Located) -> StagedExport:
        read = valid = 0
        reasons: dict[str, int] = {}
        for block in judged_blocks(export, number, self._config, self._rules):
            _check_stop(self._stopped)
            self._keep(block.judged.valid)
            self._set_aside(block.judged.invalid, reasons)
            read, valid = read + block.parts.height, valid + block.judged.valid.height
            self._rows_read += block.parts.height
            self._report(Progress("spooling", self._rows_read, None))
        refusal = over_limit(path, self._config, read=read, invalid=read - valid, reasons=reasons)
        if refusal is not None:
            raise ExportError(
                f"{refusal} Nothing of it was sent. Mend the export or the configuration, or raise rows.max_rejected."
            )
        seen = export.fingerprint()
        return StagedExport(
            path=str(path),
            rows=read,
            valid=valid,
            invalid=read - valid,
            size=seen.size,
            mtime_ns=seen.mtime_ns,
            sha256=seen.sha256,
        )

    def flush(self) -> None:
        """Write what is still pending."""
        if self._pending_rows:
            self._write_run()
        if self._pending_invalid_rows:
            self._write_invalid()

    def pieces(self, first_request: int) -> tuple[arranging.Piece, ...]:
        """The plan of arranging."""
        spans = partial(staging.spans, self._folder, self.runs)
        return self._shares.pieces(first_request, spans, lambda: _check_stop(self._stopped))

    def _keep(self, valid: pl.DataFrame) -> None:
        if valid.is_empty():
            return
        rows = placed(valid)
        self._pending.append(rows)
        self._pending_rows += rows.height
        self._pending_bytes += int(rows["bytes"].sum())
        if self._pending_rows >= RUN_ROWS or self._pending_bytes >= BUCKET_BYTES:
            self._write_run()

    def _write_run(self) -> None:
        # Exports may differ in their properties; what a row has not, is null.
        rows = arranging.run_order(pl.concat(self._pending, how="diagonal"))
        self._pending.clear()
        self._pending_rows = self._pending_bytes = 0
        self._shares.count(rows)
        self._properties |= {name for name in rows.columns if name.startswith(PROPERTY) or name in IDENTITY_SCHEMA}
        staging.write_run(self._folder, self.runs, rows.drop("bytes"))
        self.runs += 1

    def _set_aside(self, invalid: pl.DataFrame, reasons: dict[str, int]) -> None:
        if invalid.is_empty():
            return
        for reason, count in invalid["reasons"].explode().value_counts().iter_rows():
            reasons[reason] = reasons.get(reason, 0) + count
        self._pending_invalid.append(invalid)
        self._pending_invalid_rows += invalid.height
        if self._pending_invalid_rows >= RUN_ROWS:
            self._write_invalid()

    def _write_invalid(self) -> None:
        staging.write_invalid(self._folder, self.invalid_parts, pl.concat(self._pending_invalid))
        self._pending_invalid.clear()
        self.invalid_parts += 1
        self._pending_invalid_rows = 0


class JudgedBlock(NamedTuple):
    """Some consecutive rows of an export: `parts` as they stand in it, and the same rows parted by the rules."""

    parts: pl.DataFrame
    judged: Judged


def judged_blocks(export: exports.Export, number: int, config: RunConfig, rules: Rules) -> Iterator[JudgedBlock]:
    """The rows of an export that has just been opened, each with its place: export (`number`), row and line.

    Raises ConfigurationError, ExportError.
    """
    columns = resolve(
        config.columns,
        export.header,
        export=str(export.path),
        key_required=config.rows.customer_key_required,
        identity=config.rows.identity or (),
        beginning=export.beginning,
        csv=config.csv,
    )
    for block in export.blocks(columns.used):
        parts = columns.select(block.frame).with_columns(
            pl.lit(number, pl.UInt32).alias("export"),
            pl.int_range(block.row, block.row + block.frame.height, dtype=pl.Int64, eager=True).alias("row"),
            pl.lit(None, pl.Int64).alias("line") if block.lines is None else block.lines.alias("line"),
        )
        yield JudgedBlock(parts, judge(parts, rules))


def over_limit(path: Located, config: RunConfig, *, read: int, invalid: int, reasons: Mapping[str, int]) -> str | None:
    """Why an export is refused that has more invalid rows than rows.max_rejected, as a sentence; None if it has not."""
    allowed = refused_limit(config.rows.max_rejected, read)
    if invalid <= allowed:
        return None
    ranked = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    listed = ", ".join(f"{reason} {count:,}" for reason, count in ranked)
    return (
        f"{path}: {invalid:,} of {read:,} rows are invalid ({listed}), and rows.max_rejected = "
        f"{config.rows.max_rejected!r} allows {allowed:,}."
    )


class Shares:
    """What each slot holds, and what follows from it: lanes, and the pieces that are arranged one by one."""

    def __init__(self) -> None:
        self._rows = [0] * SLOTS
        self._bytes = [0] * SLOTS

    def count(self, rows: pl.DataFrame) -> None:
        """Takes what `placed` gives, many rows at once: each call costs as much as some ten thousand of them."""
        for slot, count, size in rows.group_by("slot").agg(pl.len(), pl.col("bytes").sum()).iter_rows():
            self._rows[slot] += count
            self._bytes[slot] += size

    @property
    def lanes(self) -> int:
        return arranging.lane_count(sum(self._rows))

    def pieces(
        self, first_request: int, spans: "Spans", look_up: Callable[[], None] = lambda: None
    ) -> tuple[arranging.Piece, ...]:
        """Buckets, and those that are a single large lane cut by time.

        `spans`: counts the rows of some slots and times by time. `look_up` is called now and then, and may raise.
        """
        lanes = self.lanes
        pieces: list[arranging.Piece] = []
        for bucket in arranging.buckets(self._rows, self._bytes, lanes):
            slots = arranging.first_slot(bucket.lane_from, lanes), arranging.first_slot(bucket.lane_to, lanes)
            ranges = self._time_ranges(slots, bucket.rows, spans, look_up) if bucket.too_large else [None]
            for span in ranges:
                rows = bucket.rows if span is None else span.rows
                pieces.append(
                    arranging.Piece(
                        piece=len(pieces),
                        lane_from=bucket.lane_from,
                        lane_to=bucket.lane_to,
                        slot_from=slots[0],
                        slot_to=slots[1],
                        rows=rows,
                        first_request=first_request,
                        time_from_us=None if span is None else span.start_us,
                        time_to_us=None if span is None else span.start_us + span.width_us,
                    )
                )
                first_request += rows
        return tuple(pieces)

    def _time_ranges(
        self, slots: tuple[int, int], rows: int, spans: "Spans", look_up: Callable[[], None]
    ) -> list[arranging.Span]:
        size = sum(self._bytes[slots[0] : slots[1]])
        limit = max(1, min(BUCKET_ROWS, rows * BUCKET_BYTES // size))
        coarsest, *finer = arranging.SPAN_WIDTHS_US
        found = spans(slots, None, coarsest)
        for width_us in finer:
            for crowd in arranging.crowded(found, limit):
                look_up()
                times_us = crowd.start_us, crowd.start_us + crowd.width_us
                found.remove(crowd)
                found += spans(slots, times_us, width_us)
        return arranging.time_ranges(found, limit)


class Spans(Protocol):
    """As `staging.spans`, of rows that are kept somewhere."""

    def __call__(
        self, slots: tuple[int, int], times_us: tuple[int, int] | None, width_us: int
    ) -> list[arranging.Span]: ...


def placed(valid: pl.DataFrame) -> pl.DataFrame:
    """The valid rows of a block with their `slot`, and in `bytes` how much text each brings into a request."""
    return arranging.in_slots(valid).with_columns(_content_bytes(valid).alias("bytes"))


def _content_bytes(rows: pl.DataFrame) -> pl.Series:
    """How much text each row brings into a request, near enough to keep pieces small."""
    content = ["url", *(name for name in rows.columns if name.startswith(PROPERTY))]
    return rows.select(pl.sum_horizontal(pl.col(content).str.len_bytes())).to_series()


def _check_stop(stopped: Callable[[], bool]) -> None:
    if stopped():
        raise StoppedEarly("Stopped while staging; nothing was sent yet. Run again to go on.")
