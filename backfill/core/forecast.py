"""What a load will come to, before it is staged: requests, lanes, how long it takes, and whose rows are the most.

Counts by the rules of `arrange`, on rows of which only an outline is kept, so that the figures are those of a run. How
long it takes is an estimate: the API's latency is a guess, and its mood unknown. Never reads a row by itself.
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import polars as pl
from polars_hash import NonCryptographicHashingNameSpace as Hash

from backfill.core.arrange import delivery_order
from backfill.core.budget import SHARE
from backfill.core.config import Budget
from backfill.core.identity import customer, halves
from backfill.core.limits import SLOTS
from backfill.core.window import parse

OUTLINE_SCHEMA = {
    "slot": pl.UInt16(),
    "export": pl.UInt32(),
    "row": pl.Int64(),
    "customer_key": pl.String(),
    "customer_key_name": pl.String(),
    "tid": pl.String(),
    "timestamp": pl.Datetime("us", "UTC"),
    "whose": pl.UInt64(),
    "high": pl.UInt64(),
    "low": pl.UInt64(),
}
"""What is kept of an interaction. `whose` is its customer as a hash, null with neither key nor tid; `high` and `low`
are its fingerprint, since UInt128 is no type of Parquet's."""

_DAY_S = 86_400.0

UNSEEN = (
    r"[\p{Cf}\p{Zl}\p{Zp}\x{A0}\x{34F}\x{115F}\x{1160}\x{17B4}\x{17B5}\x{180B}-\x{180F}\x{2000}-\x{200A}\x{202F}"
    r"\x{205F}\x{3000}\x{3164}\x{FE00}-\x{FE0F}\x{FFA0}]|^\s|\s\z"
)
"""In a key: characters without a shape of their own, or that turn the direction of others; blanks at the ends too."""


def outline(placed: pl.DataFrame, fingerprints: pl.DataFrame) -> pl.DataFrame:
    """What is kept of rows that have their slot. `fingerprints`: `fingerprint`, UInt128. Shape: OUTLINE_SCHEMA."""
    return (
        placed.with_columns(Hash(customer()).xxh3_64().alias("whose"))
        .hstack(fingerprints.select(halves("fingerprint")))
        .select(*OUTLINE_SCHEMA)
    )


def unseen(keys: pl.Series) -> pl.Series:
    """Which keys hold characters that a person does not see; not the missing ones."""
    return keys.str.contains(UNSEEN).fill_null(False)


class Survey(NamedTuple):
    """What the rows of one piece come to, repeats taken out.

    `kept`: the outlines that stay. `lanes`: lane, requests, untied (requests if there were no `tid`). `customers`:
    whose, customer_key, customer_key_name, tid, rows, requests (that hold rows of this customer alone, if no other's
    were there to share them).
    """

    kept: pl.DataFrame
    lanes: pl.DataFrame
    customers: pl.DataFrame


def survey(rows: pl.DataFrame, *, lanes: int, most: int, skip: bool, before: pl.DataFrame | None = None) -> Survey:
    """Count what a piece would be cut into: as `arrange.cut` does it, without the requests.

    `rows`: OUTLINE_SCHEMA, the whole piece. `most`: interactions in a request. `skip`: of one interaction only the
    first is sent, and none that `before` (high, low) holds: those of earlier pieces of the same lane.
    """
    lane = (pl.col("slot").cast(pl.UInt32) * lanes // SLOTS).cast(pl.UInt16)
    rows = rows.with_columns(lane.alias("lane"))
    tied = rows["tid"].null_count() < rows.height
    if tied:
        rows = rows.with_columns(pl.col("tid").is_not_null().any().over("whose").alias("is_bound"))
        rows = delivery_order(rows, lanes)
    else:
        rows = rows.with_columns(pl.lit(False).alias("is_bound"))
    kept = _without_repeats(rows, before) if skip else rows
    untied = kept.group_by("lane").agg(_requests(pl.len(), most).alias("untied"))
    free = kept.filter(~pl.col("is_bound")) if tied else kept
    customers = _customers(free.group_by("whose"), pl.len(), _requests(pl.len(), most))
    if not tied:
        return Survey(kept, untied.with_columns(pl.col("untied").alias("requests")), customers)
    by_run = kept.group_by(_begins("lane", "tid").cum_sum().alias("run")).agg(
        pl.col("lane").first(), _requests(pl.len(), most).alias("requests")
    )
    by_lane = by_run.group_by("lane").agg(pl.col("requests").sum())
    bound = kept.filter("is_bound").with_columns(_begins("whose", "tid").cum_sum().alias("run"))
    own = bound.group_by("whose", "run").agg(
        pl.len().alias("rows"),
        pl.col("customer_key", "customer_key_name", "tid").first(),
        _requests(pl.len(), most).alias("requests"),
    )
    customers = pl.concat(
        [customers, _customers(own.group_by("whose"), pl.col("rows").sum(), pl.col("requests").sum())]
    )
    return Survey(kept, untied.join(by_lane, on="lane"), customers)


def _customers(grouped: "pl.dataframe.group_by.GroupBy", rows: pl.Expr, requests: pl.Expr) -> pl.DataFrame:
    found = grouped.agg(
        pl.col("customer_key", "customer_key_name", "tid").first(),
        rows.cast(pl.Int64).alias("rows"),
        requests.cast(pl.Int64).alias("requests"),
    ).filter(pl.col("whose").is_not_null())
    # Of a customer with a key any of its tids would be chance.
    return found.with_columns(pl.when(pl.col("customer_key").is_null()).then("tid").alias("tid"))


def _requests(rows: pl.Expr, most: int) -> pl.Expr:
    return ((rows.cast(pl.Int64) + (most - 1)) // most).cast(pl.Int64)


def _begins(*names: str) -> pl.Expr:
    """Whether one of these is another than in the row before."""
    return pl.any_horizontal(pl.col(name).ne_missing(pl.col(name).shift()) for name in names)


def _without_repeats(rows: pl.DataFrame, before: pl.DataFrame | None) -> pl.DataFrame:
    if before is not None:
        rows = rows.join(before, on=["high", "low"], how="anti", maintain_order="left")
    if rows["low"].n_unique() == rows.height:
        return rows  # half of a fingerprint tells nearly all of them apart, at a third of the cost
    indexed = rows.with_row_index("index")
    later = (
        indexed.filter(pl.col("low").is_duplicated())
        .sort("timestamp", "export", "row")
        .filter(~pl.struct("high", "low").is_first_distinct())
    )
    return indexed.join(later.select("index"), on="index", how="anti", maintain_order="left").drop("index")


class Customer(NamedTuple):
    """One of the busiest. Without a key it is known by its `tid`."""

    customer_key: str | None
    customer_key_name: str | None
    tid: str | None
    rows: int
    requests: int


@dataclass(kw_only=True)
class Tally:
    """What the pieces of a load come to together. It grows with months and exports, not with rows."""

    busiest_shown: int
    interactions: Counter[int] = field(default_factory=Counter)
    """By the number of the export."""
    months: Counter[str] = field(default_factory=Counter)
    """Interactions by month, UTC: `2024-02`."""
    with_tid: int = 0
    untied_requests: int = 0
    by_lane: Counter[int] = field(default_factory=Counter)
    busiest: list[Customer] = field(default_factory=list)
    """By rows, most first."""
    slowest: Customer | None = None
    """The customer that needs the most requests: they go one after another."""

    @property
    def requests(self) -> int:
        return self.by_lane.total()

    def add(self, survey: Survey) -> None:
        """Take in a piece, but for its customers: they may have rows in other pieces of their lane."""
        kept = survey.kept
        for export, rows in kept.group_by("export").len().iter_rows():
            self.interactions[export] += rows
        time = pl.col("timestamp").dt
        for year, month, rows in (
            kept.group_by(time.year().alias("year"), time.month().alias("month")).len().iter_rows()
        ):
            self.months[f"{year:04}-{month:02}"] += rows
        self.with_tid += kept.height - kept["tid"].null_count()
        for lane, requests, untied in survey.lanes.select("lane", "requests", "untied").iter_rows():
            self.by_lane[lane] += requests
            self.untied_requests += untied

    def add_customers(self, customers: pl.DataFrame) -> None:
        """Take in customers of whom there is no row in any other piece."""
        names = Customer._fields
        for row in customers.top_k(self.busiest_shown, by=["rows", "whose"]).select(*names).iter_rows():
            self.busiest.append(Customer(*row))
        self.busiest.sort(key=lambda one: (-one.rows, one.customer_key or "", one.tid or ""))
        del self.busiest[self.busiest_shown :]
        for row in customers.top_k(1, by=["requests", "whose"]).select(*names).iter_rows():
            if self.slowest is None or row[-1] > self.slowest.requests:
                self.slowest = Customer(*row)


def joined(customers: list[pl.DataFrame]) -> pl.DataFrame:
    """The customers of several pieces of one lane, each once."""
    if len(customers) == 1:
        return customers[0]
    return _customers(pl.concat(customers).group_by("whose"), pl.col("rows").sum(), pl.col("requests").sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Duration:
    """About how long a load takes. `bound_by`: what sets the pace: a key of the configuration, or `lane`.

    `sending_s`: while requests may be sent; `calendar_s`: from the first to the last, pauses included. `sittings`: how
    many windows or days it takes; None where neither bounds it.
    """

    sending_s: float
    calendar_s: float
    bound_by: str
    sittings: int | None


def duration(*, requests: int, interactions: int, longest_lane: int, budget: Budget, latency_s: float) -> Duration:
    """How long so many requests take, of which `longest_lane` go one after another, each `latency_s` after the last."""
    bounds = {"budget.requests_per_second": requests / (SHARE * budget.requests_per_second)}
    if budget.interactions_per_second is not None:
        bounds["budget.interactions_per_second"] = interactions / (SHARE * budget.interactions_per_second)
    bounds["budget.concurrency"] = requests * latency_s / budget.concurrency
    bounds["lane"] = longest_lane * latency_s
    bound_by = max(bounds, key=lambda key: bounds[key])
    sending_s = bounds[bound_by]
    if not requests or (budget.window is None and budget.requests_per_day is None):
        return Duration(sending_s=sending_s, calendar_s=sending_s, bound_by=bound_by, sittings=None)
    rate = requests / sending_s if sending_s else math.inf
    at_once = rate * (_DAY_S if budget.window is None else window_s(budget.window))
    if budget.requests_per_day is not None:
        at_once = min(at_once, budget.requests_per_day)
    sittings = math.ceil(round(requests / at_once, 9))
    last_s = (requests - (sittings - 1) * at_once) / rate
    return Duration(
        sending_s=sending_s, calendar_s=(sittings - 1) * _DAY_S + last_s, bound_by=bound_by, sittings=sittings
    )


def window_s(text: str) -> float:
    """How long a window lasts on a day without a change of the clock."""
    opens, closes = (at.hour * 60 + at.minute for at in parse(text))
    return ((closes - opens) % 1440) * 60.0
