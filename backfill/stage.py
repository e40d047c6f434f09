"""Stages a load: exports become requests on disk.

`spool` reads and validates every row once; when its manifest is there, the exports are no longer needed. `arrange`
then makes requests of the spooled rows, piece by piece, and renders each row once. Both may be killed at any instant:
spooling starts anew, arranging goes on with the next piece, and the bytes of every request come out the same. Never
sends anything.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import polars as pl

from backfill.adapters import exports, staging
from backfill.adapters.staging import Manifest, StagedExport
from backfill.core import arrange as arranging
from backfill.core.columns import PROPERTY, resolve
from backfill.core.config import RunConfig
from backfill.core.encode import render
from backfill.core.errors import ExportError, StoppedEarly
from backfill.core.limits import BUCKET_BYTES, BUCKET_ROWS, MAX_INTERACTIONS, RUN_ROWS, SLOTS
from backfill.core.summary import Progress, refused_limit
from backfill.core.validate import Rules, judge, rules


def spool(
    paths: Sequence[Path],
    config: RunConfig,
    folder: Path,
    *,
    load: int,
    now: datetime,
    report: Callable[[Progress], None],
    stopped: Callable[[], bool],
) -> Manifest:
    """Read the exports into `folder` and write the manifest that freezes the load.

    `paths`: files, as `exports.find` lists them. `now` bounds timestamps where time.not_after says nothing. Begins
    with an empty folder whatever is in it, and leaves none behind when it does not come to its end.
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
            pieces=spooling.pieces(),
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
    report: Callable[[Progress], None],
    stopped: Callable[[], bool],
) -> None:
    """Make requests of a spooled load, from the first piece that has none yet.

    After the last piece the runs are deleted. Raises StorageError, and StoppedEarly soon after `stopped()` is true.
    """
    manifest = staging.read_manifest(folder)
    done = 0
    for piece in manifest.pieces:
        if not staging.is_arranged(folder, piece.piece):
            _check_stop(stopped)
            _arrange_piece(folder, config, manifest, piece)
        done += piece.rows
        report(Progress("arranging", done, manifest.valid))
    staging.remove_runs(folder)


def _arrange_piece(folder: Path, config: RunConfig, manifest: Manifest, piece: arranging.Piece) -> None:
    """A function of its own, so that nothing of a piece is in memory when the next one is read."""
    rows = staging.read_piece(folder, manifest, piece)
    # Ordered before they are rendered: JSON is four times as much to move.
    rows = arranging.delivery_order(rows, manifest.lanes)
    rows = rows.drop("url", *manifest.properties).hstack(render(rows, config.wire))
    arranged = arranging.cut(
        rows,
        first_request=piece.first_request,
        most=1 if config.api.call == "interaction-offline" else MAX_INTERACTIONS,
        duplicates=config.rows.duplicates,
    )
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
        self._slot_rows = [0] * SLOTS
        self._slot_bytes = [0] * SLOTS
        self._properties: set[str] = set()

    @property
    def lanes(self) -> int:
        return arranging.lane_count(sum(self._slot_rows))

    @property
    def properties(self) -> tuple[str, ...]:
        return tuple(sorted(self._properties))

    def take(self, number: int, path: Path) -> StagedExport:
        """Read one export to its end."""
        config = self._config
        export = exports.open_export(path, config.csv)
        columns = resolve(
            config.columns, export.header, export=str(path), key_required=config.rows.customer_key_required
        )
        read = valid = 0
        reasons: dict[str, int] = {}
        for block in export.blocks(columns.used):
            _check_stop(self._stopped)
            size = block.frame.height
            judged = judge(
                columns.select(block.frame).with_columns(
                    pl.lit(number, pl.UInt32).alias("export"),
                    pl.int_range(block.row, block.row + size, dtype=pl.Int64, eager=True).alias("row"),
                    pl.lit(None, pl.Int64).alias("line") if block.lines is None else block.lines.alias("line"),
                ),
                self._rules,
            )
            self._keep(judged.valid)
            self._set_aside(judged.invalid, reasons)
            read, valid = read + size, valid + judged.valid.height
            self._rows_read += size
            self._report(Progress("spooling", self._rows_read, None))
        self._check_refused(path, read, read - valid, reasons)
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

    def pieces(self) -> tuple[arranging.Piece, ...]:
        """The plan of arranging: buckets, and those that are a single large lane cut by time."""
        lanes = self.lanes
        pieces: list[arranging.Piece] = []
        first_request = 1
        for bucket in arranging.buckets(self._slot_rows, self._slot_bytes, lanes):
            slots = arranging.first_slot(bucket.lane_from, lanes), arranging.first_slot(bucket.lane_to, lanes)
            ranges = self._time_ranges(slots, bucket.rows) if bucket.too_large else [None]
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

    def _time_ranges(self, slots: tuple[int, int], rows: int) -> list[arranging.Span]:
        size = sum(self._slot_bytes[slots[0] : slots[1]])
        limit = max(1, min(BUCKET_ROWS, rows * BUCKET_BYTES // size))
        coarsest, *finer = arranging.SPAN_WIDTHS_US
        spans = staging.spans(self._folder, self.runs, slots, None, coarsest)
        for width_us in finer:
            for crowd in arranging.crowded(spans, limit):
                _check_stop(self._stopped)
                times_us = crowd.start_us, crowd.start_us + crowd.width_us
                spans.remove(crowd)
                spans += staging.spans(self._folder, self.runs, slots, times_us, width_us)
        return arranging.time_ranges(spans, limit)

    def _keep(self, valid: pl.DataFrame) -> None:
        if valid.is_empty():
            return
        rows = arranging.in_slots(valid).with_columns(_content_bytes(valid).alias("bytes"))
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
        for slot, count, size in rows.group_by("slot").agg(pl.len(), pl.col("bytes").sum()).iter_rows():
            self._slot_rows[slot] += count
            self._slot_bytes[slot] += size
        self._properties |= {name for name in rows.columns if name.startswith(PROPERTY)}
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

    def _check_refused(self, path: Path, read: int, invalid: int, reasons: dict[str, int]) -> None:
        allowed = refused_limit(self._config.rows.max_rejected, read)
        if invalid <= allowed:
            return
        ranked = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
        listed = ", ".join(f"{reason} {count:,}" for reason, count in ranked)
        raise ExportError(
            f"{path}: {invalid:,} of {read:,} rows are invalid ({listed}), and rows.max_rejected = "
            f"{self._config.rows.max_rejected!r} allows {allowed:,}. Nothing of it was sent. "
            "Mend the export or the configuration, or raise rows.max_rejected."
        )


def _content_bytes(rows: pl.DataFrame) -> pl.Series:
    """How much text each row brings into a request, near enough to keep pieces small."""
    content = ["url", *(name for name in rows.columns if name.startswith(PROPERTY))]
    return rows.select(pl.sum_horizontal(pl.col(content).str.len_bytes())).to_series()


def _check_stop(stopped: Callable[[], bool]) -> None:
    if stopped():
        raise StoppedEarly("Stopped while staging; nothing was sent yet. Run again to go on.")
