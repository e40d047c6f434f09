"""The account: what became of each row, as lines of the ledger.

Staged rows and the standings of their requests in, ledger lines out. Decides nothing that the journal does
not already hold, and never reads or writes a file.
"""

import hmac
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import polars as pl
from polars_hash import CryptographicHashingNameSpace as Cryptographic

from backfill.core.lifecycle import Standing, State

CustomerKeys = Literal["plain", "hmac", "omit"]
"""How the ledger names customers (`[ledger] customer_key`)."""

OUTCOME_OF: Mapping[State, str] = {
    State.PLANNED: "unsent",
    State.IN_FLIGHT: "in_doubt",  # only in the journal of an execution that died: nobody knows its fate
    State.DELIVERED: "delivered",
    State.REJECTED: "rejected",
    State.IN_DOUBT: "in_doubt",
    State.ABANDONED: "abandoned",
}
"""The outcome of a row whose part stands so. A split part has none: its own parts answer for its rows."""

_INSTANT = pl.Datetime("ms", "UTC")

LEDGER_SCHEMA = pl.Schema(
    {
        "export": pl.String(),
        "row": pl.Int64(),
        "line": pl.Int64(),
        "customer_key": pl.String(),
        "customer_key_name": pl.String(),
        "timestamp": pl.Datetime("us", "UTC"),
        "outcome": pl.String(),
        "reasons": pl.List(pl.String()),
        "duplicate_of": pl.String(),
        "load": pl.Int32(),
        "request": pl.Int64(),
        "position": pl.Int16(),
        "attempts": pl.Int32(),
        "http_status": pl.Int16(),
        "tid": pl.String(),
        "maybe_duplicate": pl.Boolean(),
        "sent_at": _INSTANT,
        "settled_at": _INSTANT,
        "execution": pl.Int32(),
    }
)
"""The ledger's columns in their order. `reasons` is never null, only empty."""

_STANDING_SCHEMA = pl.Schema(
    {
        "place": pl.Int64(),
        "standing_request": pl.Int64(),
        "end": pl.Int64(),
        "outcome": pl.String(),
        "attempts": pl.Int32(),
        "http_status": pl.Int16(),
        "reasons": pl.List(pl.String()),
        "reply_tid": pl.String(),
        "maybe_duplicate": pl.Boolean(),
        "sent_at": pl.Int64(),
        "settled_at": pl.Int64(),
        "execution": pl.Int32(),
    }
)

_PLACES = 1 << 15
"""Places kept for each request when (request, position) becomes one number: positions are Int16."""


def sent_lines(
    rows: pl.DataFrame,
    standings: Iterable[Standing],
    *,
    load: int,
    exports: Sequence[str],
    customer_keys: CustomerKeys = "plain",
    ledger_key: str | None = None,
    exports_by_load: Mapping[int, Sequence[str]] | None = None,
) -> pl.DataFrame:
    """The ledger lines of valid rows, duplicates included, in the order of `rows`.

    `rows` are the staged rows of one or more whole pieces; `standings` those of their requests, in any order,
    split parts included. A row whose request has no standing is unsent. `exports_by_load`: those of the loads that
    these rows repeat interactions of.
    Shape: (rows, 19), as LEDGER_SCHEMA.
    """
    placed = _placed(rows, standings)
    found = _found()
    duplicate = pl.col("duplicate_of_row").is_not_null()
    paths = pl.Series("export", exports, dtype=pl.String)
    original = _originals_exports(placed, paths, exports_by_load or {})
    return (
        placed.select(
            paths.gather(placed["export"]),
            "row",
            "line",
            *_customer_columns(customer_keys, ledger_key),
            "timestamp",
            outcome=pl.when(duplicate)
            .then(pl.lit("duplicate"))
            .when(found)
            .then("outcome")
            .otherwise(pl.lit("unsent")),
            reasons=pl.when(found).then("reasons").otherwise(pl.lit([], dtype=pl.List(pl.String))),
            duplicate_of=original + ":" + pl.col("duplicate_of_row").cast(pl.String),
            load=pl.lit(load, pl.Int32),
            request="request",
            position="position",
            attempts=pl.when(found).then("attempts").otherwise(pl.lit(0, pl.Int32)),
            http_status=pl.when(found).then("http_status"),
            tid=pl.coalesce("tid", pl.when(found).then("reply_tid")),
            maybe_duplicate=pl.when(found).then("maybe_duplicate").otherwise(pl.lit(value=False)),
            sent_at=pl.when(found).then(pl.col("sent_at").cast(_INSTANT)),
            settled_at=pl.when(found).then(pl.col("settled_at").cast(_INSTANT)),
            execution=pl.when(found).then("execution"),
        )
        .select(LEDGER_SCHEMA.names())
        .match_to_schema(LEDGER_SCHEMA)
    )


def applicable(rows: pl.DataFrame, standings: Iterable[Standing]) -> pl.Series:
    """Which of these staged rows may have been applied, or may still be: all but those rejected or abandoned.

    Takes request and position of each; `standings` as `sent_lines` does.
    """
    kept = ~pl.col("outcome").is_in([OUTCOME_OF[State.REJECTED], OUTCOME_OF[State.ABANDONED]])
    return _placed(rows, standings).select(kept=pl.when(_found()).then(kept).otherwise(pl.lit(value=True)))["kept"]


def invalid_lines(
    invalid: pl.DataFrame,
    *,
    load: int,
    exports: Sequence[str],
    customer_keys: CustomerKeys = "plain",
    ledger_key: str | None = None,
) -> pl.DataFrame:
    """The ledger lines of rows that our own rules refuse, with all their reasons.

    Shape: (rows, 19), as LEDGER_SCHEMA.
    """
    paths = pl.Series("export", exports, dtype=pl.String)
    lines = invalid.select(
        paths.gather(invalid["export"]),
        "row",
        "line",
        *_customer_columns(customer_keys, ledger_key),
        "timestamp",
        "reasons",
        "tid",
        outcome=pl.lit("invalid"),
        load=pl.lit(load, pl.Int32),
        attempts=pl.lit(0, pl.Int32),
        maybe_duplicate=pl.lit(value=False),
    )
    nothing = [pl.lit(None, kind).alias(name) for name, kind in LEDGER_SCHEMA.items() if name not in lines.columns]
    return lines.with_columns(nothing).select(LEDGER_SCHEMA.names()).match_to_schema(LEDGER_SCHEMA)


def count_outcomes(lines: pl.DataFrame) -> dict[str, dict[str, int]]:
    """Rows by export and outcome; outcomes without rows are left out."""
    counts: dict[str, dict[str, int]] = {}
    grouped = lines.group_by("export", "outcome").len().sort("export", "outcome")
    for export, outcome, rows in grouped.iter_rows():
        counts.setdefault(export, {})[outcome] = rows
    return counts


def add_counts(total: dict[str, dict[str, int]], more: Mapping[str, Mapping[str, int]]) -> None:
    """Adds `more` to `total`, in place."""
    for export, outcomes in more.items():
        into = total.setdefault(export, {})
        for outcome, rows in outcomes.items():
            into[outcome] = into.get(outcome, 0) + rows


def made_with(customer_keys: CustomerKeys, ledger_key: str | None) -> str:
    """How customers are named, as the ledger's manifest keeps it: for "hmac" with a fingerprint of the key, which
    tells one key from another and is none itself.
    """
    if customer_keys != "hmac" or ledger_key is None:
        return customer_keys
    return f"hmac:{hmac.digest(ledger_key.encode(), _MARK, 'sha256').hex()[:16]}"


_MARK = b"backfill: which ledger key is this?"


def _placed(rows: pl.DataFrame, standings: Iterable[Standing]) -> pl.DataFrame:
    """The rows, each with the standing of the part that may hold it; whether it does says `_found`."""
    parts = _standings_frame(standings)
    # Parts that were not split tile their request, so the last one beginning at or before a position holds
    # it, if any does. One pass over both sides; rows are nearly sorted already, since requests grow along lanes.
    standing = (
        rows.select(nth=pl.int_range(pl.len()), place=pl.col("request") * _PLACES + pl.col("position").cast(pl.Int64))
        .sort("place", nulls_last=True)
        .join_asof(parts, on="place", strategy="backward")
        .sort("nth")
        .drop("nth", "place")
    )
    return rows.hstack(standing)


def _found() -> pl.Expr:
    # A duplicate has no request, and a row before the first part no standing: null means not found.
    same_request = pl.col("standing_request") == pl.col("request")
    return (same_request & (pl.col("position").cast(pl.Int64) < pl.col("end"))).fill_null(value=False)


def _originals_exports(rows: pl.DataFrame, own: pl.Series, exports_by_load: Mapping[int, Sequence[str]]) -> pl.Series:
    """The export in which each row's original stands; null for a row that repeats none."""
    if rows["duplicate_of_load"].null_count() == rows.height:
        return own.gather(rows["duplicate_of_export"])
    loads = rows["duplicate_of_load"].drop_nulls().unique().sort().to_list()
    beginnings, paths = {}, own.to_list()
    for load in loads:
        beginnings[load] = len(paths)
        paths += exports_by_load[load]
    beginning = rows["duplicate_of_load"].replace_strict(beginnings, return_dtype=pl.UInt32).fill_null(0)
    return pl.Series("export", paths, dtype=pl.String).gather(rows["duplicate_of_export"] + beginning)


def _customer_columns(customer_keys: CustomerKeys, ledger_key: str | None) -> list[pl.Expr]:
    key, name = pl.col("customer_key"), pl.col("customer_key_name")
    match customer_keys:
        case "plain":
            return [key, name]
        case "hmac":
            assert ledger_key is not None  # asked for before anything was sent
            return [Cryptographic(key).hmac_sha256(key=ledger_key).alias("customer_key"), name]
        case "omit":
            return [pl.lit(None, pl.String).alias(column) for column in ("customer_key", "customer_key_name")]


def _standings_frame(standings: Iterable[Standing]) -> pl.DataFrame:
    """The parts that answer for rows, sorted by where they begin. `end` is the position after their last."""
    leaves = [standing for standing in standings if standing.state is not State.SPLIT]
    if not leaves:
        return _STANDING_SCHEMA.to_frame()
    # Column by column and strictly typed: where every request holds one row (each with a `tid` of its own), a
    # frame made of tuples costs three times as much.
    # The machine word, then the sentence. An acknowledgement is the rule and needs no reason.
    words = pl.concat_list(pl.col("cause").replace("acknowledged", None), pl.col("reason"))
    return (
        pl.DataFrame(
            [
                pl.Series("standing_request", [standing.part.request for standing in leaves], pl.Int64),
                pl.Series("first", [standing.part.first for standing in leaves], pl.Int64),
                pl.Series("interactions", [standing.part.interactions for standing in leaves], pl.Int64),
                pl.Series("outcome", [OUTCOME_OF[standing.state] for standing in leaves], pl.String),
                pl.Series("attempts", [standing.attempts for standing in leaves], pl.Int32),
                pl.Series("http_status", [standing.http_status for standing in leaves], pl.Int16),
                pl.Series("cause", [standing.cause for standing in leaves], pl.String),
                pl.Series("reason", [standing.reason for standing in leaves], pl.String),
                pl.Series("reply_tid", [standing.tid for standing in leaves], pl.String),
                pl.Series("maybe_duplicate", [standing.maybe_duplicate for standing in leaves], pl.Boolean),
                pl.Series("sent_at", [standing.sent_at_ms for standing in leaves], pl.Int64),
                pl.Series("settled_at", [standing.settled_at_ms for standing in leaves], pl.Int64),
                pl.Series("execution", [standing.execution for standing in leaves], pl.Int32),
            ]
        )
        .with_columns(
            place=pl.col("standing_request") * _PLACES + pl.col("first"),
            end=pl.col("first") + pl.col("interactions"),
            reasons=words.list.drop_nulls(),
        )
        .select(_STANDING_SCHEMA.names())
        .sort("place")
    )
