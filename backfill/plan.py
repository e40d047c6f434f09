"""What a run would do, before anything is sent: counts, costs, and what is wrong with which rows.

Reads the exports as `stage.spool` does, and counts by the rules of arranging; keeps an outline of each row in a
temporary directory meanwhile. Sends nothing, locks nothing, and changes nothing in the state or anywhere else.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import polars as pl

from backfill import stage
from backfill.adapters import exports
from backfill.adapters.exports import Located
from backfill.adapters.scratch import Scratch
from backfill.adapters.state import JobFile, StateDirectory, Tenant
from backfill.core import forecast
from backfill.core.arrange import Piece, run_order
from backfill.core.calls import CALLS
from backfill.core.config import RunConfig
from backfill.core.encode import render
from backfill.core.limits import RUN_ROWS
from backfill.core.summary import Progress
from backfill.core.validate import Rules, rules
from backfill.intake import take_in

EXAMPLES = 3
"""Rows shown for each thing that is wrong."""

BUSIEST = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the user asked for.

    `exports`: files, directories, globs, and the same in object stores; `show`: so many interactions as JSON.
    """

    config: RunConfig
    exports: tuple[Located, ...]
    state: Path
    latency_s: float
    show: int


class Place(NamedTuple):
    """Where a row stands. `line` is None for Parquet."""

    export: str
    row: int
    line: int | None


class Example(NamedTuple):
    """A row with the value that is wrong in it; None where one is missing. Holds a customer's value."""

    place: Place
    value: str | None


class Shown(NamedTuple):
    """An interaction as it is sent: `body` is its JSON, `tid` goes into the request's address."""

    place: Place
    tid: str | None
    body: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportPlan:
    """`interactions`: valid rows less the duplicates, which are those of them that repeat another."""

    export: str
    read: int
    invalid: int
    interactions: int

    @property
    def duplicate(self) -> int:
        return self.read - self.invalid - self.interactions


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run of these exports would do.

    `refusals`: why it would refuse them, as sentences. `known`: exports of earlier loads, which it would not take
    again; nothing else here counts them. `earlier_loads`: how many loads the state holds; rows that one of them has
    already would turn out to be duplicates, and are counted as interactions here.
    """

    exports: tuple[ExportPlan, ...]
    refusals: tuple[str, ...]
    known: tuple[str, ...]
    earlier_loads: int
    warnings: tuple[str, ...]
    invalid: dict[str, int]
    invalid_examples: dict[str, tuple[Example, ...]]
    unseen_keys: int
    unseen_examples: tuple[Example, ...]
    lanes: int
    tally: forecast.Tally
    duration: forecast.Duration
    shown: tuple[Shown, ...]

    def count(self, what: str) -> int:
        """Of all exports: read, invalid, interactions or duplicate."""
        return sum(getattr(export, what) for export in self.exports)


def plan(order: Order, *, now: datetime, report: Callable[[Progress], None]) -> Plan:
    """Read the exports and count. `now` bounds timestamps where time.not_after says nothing.

    Raises what `run` raises for exports that cannot be read; those with too many invalid rows are no error here.
    """
    config = order.config
    api = config.api
    job = StateDirectory(order.state).read_job() or JobFile(
        tenant=Tenant(base_url=api.base_url, site_key=api.site_key, call=api.call)
    )
    intake = take_in(order.exports, job)
    with Scratch() as scratch:
        reading = _Reading(order, rules(config.time, config.rows, now=now), scratch, report)
        read = [reading.take(number, path) for number, path in enumerate(intake.new)]
        reading.flush()
        tally = _counted(reading.pieces(), reading.shares.lanes, order, scratch, report)
    # Rows that earlier loads hold would be taken out of `tally` here, by what adapters.seen remembers of them. The
    # journal alone says which of them count, and no one may look into it while an execution runs.
    return Plan(
        exports=tuple(
            ExportPlan(export=str(path), read=rows, invalid=invalid, interactions=tally.interactions[number])
            for number, (path, (rows, invalid)) in enumerate(zip(intake.new, read, strict=True))
        ),
        refusals=tuple(reading.refusals),
        known=tuple(str(path) for path in intake.named if path not in set(intake.new)),
        earlier_loads=len(job.loads),
        warnings=intake.warnings,
        invalid=dict(sorted(reading.invalid.items(), key=lambda item: (-item[1], item[0]))),
        invalid_examples={reason: tuple(found) for reason, found in reading.examples.items()},
        unseen_keys=reading.unseen_keys,
        unseen_examples=tuple(reading.unseen_examples),
        lanes=reading.shares.lanes,
        tally=tally,
        duration=forecast.duration(
            requests=tally.requests,
            interactions=tally.interactions.total(),
            longest_lane=max(tally.by_lane.values(), default=0),
            budget=config.budget,
            latency_s=order.latency_s,
        ),
        shown=tuple(reading.shown),
    )


def _counted(
    pieces: Sequence[Piece], lanes: int, order: Order, scratch: Scratch, report: Callable[[Progress], None]
) -> forecast.Tally:
    config = order.config
    tally = forecast.Tally(busiest_shown=BUSIEST)
    done, total = 0, sum(piece.rows for piece in pieces)
    for _, parts in groupby(pieces, key=lambda piece: piece.lane_from):
        customers: list[pl.DataFrame] = []
        before: list[pl.DataFrame] = []
        for piece in parts:
            survey = forecast.survey(
                scratch.read((piece.slot_from, piece.slot_to), _times(piece)),
                lanes=lanes,
                most=CALLS[config.api.call].most,
                skip=config.rows.duplicates == "skip",
                before=pl.concat(before) if before else None,
            )
            tally.add(survey)
            customers.append(survey.customers)
            if config.rows.identity is not None and piece.time_from_us is not None:
                before.append(survey.kept.select("high", "low"))
            done += piece.rows
            report(Progress("counting", done, total))
        tally.add_customers(forecast.joined(customers))
    return tally


def _times(piece: Piece) -> tuple[int, int] | None:
    if piece.time_from_us is None or piece.time_to_us is None:
        return None
    return piece.time_from_us, piece.time_to_us


class _Reading:
    """What is known of the exports while they are read, and the outlines that are not on disk yet."""

    def __init__(self, order: Order, rules: Rules, scratch: Scratch, report: Callable[[Progress], None]) -> None:
        self.shares = stage.Shares()
        self.refusals: list[str] = []
        self.invalid: Counter[str] = Counter()
        self.examples: dict[str, list[Example]] = {}
        self.unseen_keys = 0
        self.unseen_examples: list[Example] = []
        self.shown: list[Shown] = []
        self._order = order
        self._rules = rules
        self._scratch = scratch
        self._report = report
        self._rows_read = 0
        self._shown_before: set[int] = set()
        self._pending: list[pl.DataFrame] = []
        self._pending_rows = 0

    def take(self, number: int, path: Located) -> tuple[int, int]:
        """Read one export to its end: how many rows it has, and how many of them are invalid."""
        with exports.opened(path, self._order.config.csv, folder=self._scratch.folder) as export:
            return self._read(export, number, path)

    def _read(self, export: exports.Export, number: int, path: Located) -> tuple[int, int]:
        config = self._order.config
        read = invalid = 0
        reasons: Counter[str] = Counter()
        for parts, judged in stage.judged_blocks(export, number, config, self._rules):
            if judged.invalid.height:
                reasons.update(dict(judged.invalid["reasons"].explode().value_counts().iter_rows()))
                self._look_at_invalid(str(path), parts, judged.invalid)
            if judged.valid.height:
                self._keep(str(path), judged.valid)
            read, invalid = read + parts.height, invalid + judged.invalid.height
            self._rows_read += parts.height
            self._report(Progress("reading", self._rows_read, None))
        export.fingerprint()  # raises if it changed meanwhile
        self.invalid.update(reasons)
        refusal = stage.over_limit(path, config, read=read, invalid=invalid, reasons=reasons)
        if refusal is not None:
            self.refusals.append(refusal)
        return read, invalid

    def flush(self) -> None:
        """Write what is still pending."""
        if self._pending_rows:
            rows = run_order(pl.concat(self._pending))
            self.shares.count(rows)
            self._scratch.write(rows.drop("bytes"))
            self._pending.clear()
            self._pending_rows = 0

    def pieces(self) -> tuple[Piece, ...]:
        """The same as those of a run."""
        return self.shares.pieces(1, self._scratch.spans)

    def _keep(self, path: str, valid: pl.DataFrame) -> None:
        placed = stage.placed(valid)
        rendered = render(placed, self._order.config.wire)
        if len(self.shown) < self._order.show:
            self._show(path, placed, rendered)
        self._look_at_keys(path, placed)
        self._pending.append(forecast.outline(placed, rendered).hstack(placed.select("bytes")))
        self._pending_rows += placed.height
        if self._pending_rows >= RUN_ROWS:
            self.flush()

    def _show(self, path: str, placed: pl.DataFrame, rendered: pl.DataFrame) -> None:
        rows = placed.select("row", "line", "tid").hstack(rendered)
        for row, line, tid, body, fingerprint in rows.iter_rows():
            if len(self.shown) == self._order.show:
                return
            if fingerprint not in self._shown_before or self._order.config.rows.duplicates == "send":
                self._shown_before.add(fingerprint)
                self.shown.append(Shown(Place(path, row, line), tid, body))

    def _look_at_keys(self, path: str, rows: pl.DataFrame) -> None:
        found = rows.select("row", "line", "customer_key").filter(forecast.unseen(rows["customer_key"]))
        self.unseen_keys += found.height
        for row, line, key in found.head(EXAMPLES - len(self.unseen_examples)).iter_rows():
            self.unseen_examples.append(Example(Place(path, row, line), key))

    def _look_at_invalid(self, path: str, parts: pl.DataFrame, invalid: pl.DataFrame) -> None:
        for reason in invalid["reasons"].explode().unique(maintain_order=True):
            known = self.examples.setdefault(reason, [])
            if len(known) < EXAMPLES:
                known += self._examples(path, parts, invalid, reason, EXAMPLES - len(known))

    @staticmethod
    def _examples(path: str, parts: pl.DataFrame, invalid: pl.DataFrame, reason: str, most: int) -> Iterator[Example]:
        rows = invalid.filter(pl.col("reasons").list.contains(reason))["row"].head(most)
        of = parts.filter(pl.col("row").is_in(rows.implode()))
        part = part_of(reason)
        value = pl.lit(None, pl.String).alias("value") if part is None else pl.col(part).cast(pl.String)
        for row, line, text in of.select("row", "line", value).iter_rows():
            yield Example(Place(path, row, line), text)


def part_of(reason: str) -> str | None:
    """The part of an interaction that a reason is about: reasons begin with its name."""
    parts = ("timestamp", "customer_key_name", "customer_key", "tid", "url")
    return next((part for part in parts if reason.startswith(part)), None)
