"""Puts interactions in order and cuts them into requests.

A pure function of the rows: the same rows come out in the same requests under the same numbers, whatever happened
between two tries. Never reads a file and never renders a value.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import polars as pl
from polars_hash import NonCryptographicHashingNameSpace as Hash

from backfill.core.columns import PROPERTY
from backfill.core.identity import IDENTITY_SCHEMA, customer, identified
from backfill.core.limits import (
    BUCKET_BYTES,
    BUCKET_ROWS,
    MAX_LANES,
    ROWS_PER_LANE,
    SLOTS,
)

ROW_SCHEMA = {
    "export": pl.UInt32(),
    "row": pl.Int64(),
    "line": pl.Int64(),
    "customer_key": pl.String(),
    "customer_key_name": pl.String(),
    "tid": pl.String(),
    "timestamp": pl.Datetime("us", "UTC"),
    "lane": pl.UInt16(),
    "request": pl.Int64(),
    "position": pl.Int16(),
    "duplicate_of_export": pl.UInt32(),
    "duplicate_of_row": pl.Int64(),
    "duplicate_of_load": pl.UInt32(),
}
"""The columns of `Arranged.rows`. Positions count from 0; a duplicate has neither request nor position.

`duplicate_of_export` counts within the load `duplicate_of_load`, null where that is the row's own.
"""

ORIGINALS_SCHEMA = {"place": pl.UInt32(), **{name: ROW_SCHEMA[name] for name in ROW_SCHEMA if "duplicate" in name}}
"""Rows, by their place in delivery order, that repeat what was arranged before."""

REQUEST_SCHEMA = {
    "request": pl.Int64(),
    "lane": pl.UInt16(),
    "tid": pl.String(),
    "count": pl.Int16(),
    "body": pl.String(),
    "sizes": pl.List(pl.UInt32()),
}
"""The columns of `Arranged.requests`. `body`: the interactions' JSON joined by commas, `sizes`: the bytes of each."""

SPAN_WIDTHS_US = (3_600_000_000, 1_000_000, 1)
"""How closely a lane that is too large is looked at: by hours, then by seconds and instants where these are crowded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What is arranged at once: the slots of some neighbouring lanes, or a range of time of one lane.

    All ranges are half open; times are epoch microseconds, None where a piece has all times. The numbers of its
    requests lie in [first_request, first_request + rows).
    """

    piece: int
    lane_from: int
    lane_to: int
    slot_from: int
    slot_to: int
    rows: int
    first_request: int
    time_from_us: int | None = None
    time_to_us: int | None = None


class Arranged(NamedTuple):
    """`rows`: one line per interaction, in delivery order. `requests`: one line per request."""

    rows: pl.DataFrame
    requests: pl.DataFrame


class Span(NamedTuple):
    """Rows of one lane whose timestamps begin with `start_us` and end before `start_us + width_us`."""

    start_us: int
    width_us: int
    rows: int


class LaneRange(NamedTuple):
    """Neighbouring lanes that together make a bucket. `too_large`: a single lane that has to be cut by time."""

    lane_from: int
    lane_to: int
    rows: int
    too_large: bool


def in_slots(rows: pl.DataFrame) -> pl.DataFrame:
    """The valid rows with their `slot`, UInt16: the share of all customers that each one's customer belongs to.

    With neither key nor tid there is no customer, and no order to keep. But a row's duplicates must come to the same
    lane to be seen, so its identity decides, or its content. `identity:...` becomes IDENTITY_SCHEMA.
    """
    placed = identified(rows).with_columns(_customer().alias("customer"))
    if placed["customer"].null_count():
        content = sorted(name for name in rows.columns if name.startswith(PROPERTY))
        text = [pl.concat_str(pl.lit(f"\0{name}\0"), pl.col(name)) for name in ("url", *content)]
        whole = pl.concat_str(pl.col("timestamp").dt.epoch("us").cast(pl.String), *text, ignore_nulls=True)
        identity = [name for name in IDENTITY_SCHEMA if name in placed.columns][-1:]
        placed = placed.with_columns(pl.coalesce("customer", *identity, Hash(whole).xxh3_64()).alias("customer"))
    return placed.with_columns((pl.col("customer") % SLOTS).cast(pl.UInt16).alias("slot")).drop("customer")


def _customer() -> pl.Expr:
    """Whose interaction a row is: a hash, UInt64, that is the same in every version; null with neither key nor tid."""
    return Hash(customer()).xxh3_64()


def run_order(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows of a run by slot, then time, so that the rows of a piece stand together in it.

    A second is close enough, and makes one key of both: to sort by two takes twice as long.
    """
    second = pl.col("timestamp").dt.epoch("s").clip(0, 2**32 - 1)
    return rows.sort(pl.col("slot").cast(pl.Int64) * 2**32 + second, maintain_order=True)


def lane_count(valid_rows: int) -> int:
    """How many lanes a load has."""
    return max(1, min(MAX_LANES, valid_rows // ROWS_PER_LANE))


def first_slot(lane: int, lanes: int) -> int:
    """Where a lane begins. The lane of a slot is `slot * lanes // SLOTS`; `first_slot(lanes, lanes)` is SLOTS."""
    return -(-lane * SLOTS // lanes)


def buckets(slot_rows: Sequence[int], slot_bytes: Sequence[int], lanes: int) -> list[LaneRange]:
    """Group the lanes into buckets of at most BUCKET_ROWS rows and BUCKET_BYTES of JSON.

    `slot_rows`, `slot_bytes`: what each slot holds. A lane beyond that is a bucket alone. Lanes without rows at
    the edge of a bucket belong to none.
    """
    ranges: list[LaneRange] = []
    start = end = rows = size = 0

    def close() -> None:
        if rows:
            ranges.append(LaneRange(start, end, rows, rows > BUCKET_ROWS or size > BUCKET_BYTES))

    for lane in range(lanes):
        slots = slice(first_slot(lane, lanes), first_slot(lane + 1, lanes))
        lane_rows, lane_bytes = sum(slot_rows[slots]), sum(slot_bytes[slots])
        if not lane_rows:
            continue
        if rows + lane_rows > BUCKET_ROWS or size + lane_bytes > BUCKET_BYTES:
            close()
            rows = size = 0
        if not rows:
            start = lane
        end, rows, size = lane + 1, rows + lane_rows, size + lane_bytes
    close()
    return ranges


def crowded(spans: Sequence[Span], limit: int) -> list[Span]:
    """The spans that hold more rows than a piece should and can be looked at more closely."""
    return [span for span in spans if span.rows > limit and span.width_us > 1]


def time_ranges(spans: Sequence[Span], limit: int) -> list[Span]:
    """Neighbouring spans, in order of time, joined up to `limit` rows. One instant is never cut in two.

    So interactions of the same content, which share their instant, always meet in one piece. With `rows.identity` they
    may not: then a piece has to look into those before it.
    """
    joined: list[Span] = []
    for span in sorted(spans):
        last = joined[-1] if joined else None
        if last is not None and last.rows + span.rows <= limit:
            end_us = span.start_us + span.width_us
            joined[-1] = Span(last.start_us, end_us - last.start_us, last.rows + span.rows)
        else:
            joined.append(span)
    return joined


def within(slots: tuple[int, int], times_us: tuple[int, int] | None) -> pl.Expr:
    """Whether a row lies in the slots [from, to) and the times [from, to), as those of a piece are."""
    wanted = pl.col("slot").is_between(pl.lit(slots[0], pl.UInt16), pl.lit(slots[1] - 1, pl.UInt16))
    if times_us is None:
        return wanted
    first, end = (pl.lit(time).cast(ROW_SCHEMA["timestamp"]) for time in times_us)
    return wanted & (pl.col("timestamp") >= first) & (pl.col("timestamp") < end)


def delivery_order(rows: pl.DataFrame, lanes: int) -> pl.DataFrame:
    """The rows of one piece, read in any order, as they are to be delivered, with their `lane`.

    Within a lane come first the customers without any `tid`, by (timestamp, export, row), then those with one, by
    (customer, timestamp, export, row): a tid is a parameter of the whole request.
    """
    lane = (pl.col("slot").cast(pl.UInt32) * lanes // SLOTS).cast(pl.UInt16)
    placed = rows.with_columns(lane.alias("lane"))
    if rows["tid"].null_count() == rows.height:
        return placed.sort(*_by_lane_and_time(placed), "export", "row")
    bound = pl.col("tid").is_not_null().any().over("customer")
    return (
        placed.with_columns(_customer().alias("customer"))
        .with_columns(pl.when(bound).then("customer").alias("bound"))
        .sort("lane", "bound", "timestamp", "export", "row", nulls_last=False)
        .drop("bound", "customer")
    )


def _by_lane_and_time(rows: pl.DataFrame) -> list[pl.Expr]:
    """Both in one key where 54 bits hold all times (570 years): it takes two thirds of the time of sorting by two."""
    time = rows["timestamp"].to_physical()
    first, last = time.min(), time.max()
    if not (isinstance(first, int) and isinstance(last, int) and last - first < 2**54):
        return [pl.col("lane"), pl.col("timestamp")]
    return [pl.col("lane").cast(pl.Int64) * 2**54 + (pl.col("timestamp").cast(pl.Int64) - first)]


def cut(
    rows: pl.DataFrame, *, first_request: int, most: int, duplicates: str, originals: pl.DataFrame | None = None
) -> Arranged:
    """Find duplicates among rows in delivery order, and cut the others into requests of at most `most` interactions.

    Takes what `delivery_order` gives, with the `body` and `fingerprint` of each row. Of interactions with one
    fingerprint the first by (timestamp, export, row) stays; the others name it in duplicate_of_export and
    duplicate_of_row and are in no request, unless `duplicates` is "send". None stays of those in `originals`
    (ORIGINALS_SCHEMA), which repeat what other pieces or loads hold. A request ends where lane or `tid` changes.
    """
    rows = _with_originals(rows, originals) if duplicates == "skip" else rows.with_columns(_no_original())
    sent = rows.select("lane", "tid", "body", kept=pl.col("duplicate_of_row").is_null()).with_row_index("index")
    starts = pl.any_horizontal(
        pl.col("lane").ne_missing(pl.col("lane").shift()), pl.col("tid").ne_missing(pl.col("tid").shift())
    )
    sent = (
        sent.filter("kept")
        .with_columns(pl.int_range(pl.len(), dtype=pl.Int64).alias("n"), starts.alias("starts"))
        .with_columns((pl.col("n") - pl.when("starts").then("n").forward_fill()).alias("run"))
        .with_columns((pl.col("run") % most).cast(pl.Int16).alias("position"))
        .with_columns(((pl.col("position") == 0).cum_sum().cast(pl.Int64) + (first_request - 1)).alias("request"))
    )
    numbered = rows.with_columns(
        _spread(sent, "request", rows.height, pl.Int64()), _spread(sent, "position", rows.height, pl.Int16())
    )
    requests = sent.group_by("request", maintain_order=True).agg(
        pl.col("lane").first(),
        pl.col("tid").first(),
        pl.len().cast(pl.Int16).alias("count"),
        pl.col("body").str.join(","),
        pl.col("body").str.len_bytes().alias("sizes"),
    )
    return Arranged(numbered.select(*ROW_SCHEMA), requests.select(*REQUEST_SCHEMA))


def _no_original() -> list[pl.Expr]:
    return [
        pl.lit(None, dtype=pl.UInt32).alias("duplicate_of_export"),
        pl.lit(None, dtype=pl.Int64).alias("duplicate_of_row"),
        pl.lit(None, dtype=pl.UInt32).alias("duplicate_of_load"),
    ]


def _with_originals(rows: pl.DataFrame, known: pl.DataFrame | None) -> pl.DataFrame:
    repeated = _twins(rows)
    if known is not None and known.height:
        known = known.rename({"place": "index"})
        repeated = pl.concat([known, repeated.join(known, on="index", how="anti").select(known.columns)])
    if repeated.is_empty():
        return rows.with_columns(_no_original())
    return rows.with_columns(
        _spread(repeated, "duplicate_of_export", rows.height, pl.UInt32()),
        _spread(repeated, "duplicate_of_row", rows.height, pl.Int64()),
        _spread(repeated, "duplicate_of_load", rows.height, pl.UInt32()),
    )


def _twins(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows that repeat one of the same piece, by `index`."""
    if rows["fingerprint"].n_unique() == rows.height:  # a third of the cost of looking which ones are twins
        return pl.DataFrame(schema=ORIGINALS_SCHEMA).rename({"place": "index"})
    twins = rows.select("fingerprint", "timestamp", "export", "row").with_row_index("index")
    return (
        twins.filter(pl.col("fingerprint").is_duplicated())
        .sort("timestamp", "export", "row")
        .with_columns(
            pl.col("export").first().over("fingerprint").alias("duplicate_of_export"),
            pl.col("row").first().over("fingerprint").alias("duplicate_of_row"),
        )
        .filter((pl.col("export") != pl.col("duplicate_of_export")) | (pl.col("row") != pl.col("duplicate_of_row")))
        .with_columns(pl.lit(None, dtype=pl.UInt32).alias("duplicate_of_load"))
    )


def _spread(some: pl.DataFrame, column: str, size: int, dtype: pl.DataType) -> pl.Series:
    """The values of `column` at the rows that `index` names, null at all others."""
    if some.height == size:
        return some.sort("index")[column].cast(dtype)
    spread = pl.repeat(None, size, dtype=dtype, eager=True)
    return spread.scatter(some["index"], some[column]).alias(column)
