"""What a load will come to: counted like arranging, by plain values."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars_hash import NonCryptographicHashingNameSpace as Hash

from backfill.core import arrange as arranging
from backfill.core import forecast
from backfill.core.config import Budget
from backfill.core.forecast import Customer, Tally

START = datetime(2024, 2, 29, 23, 59, 58, tzinfo=UTC)
LANES = 8

ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "export": st.integers(0, 1),
            "key": st.none() | st.sampled_from("abcdefgh"),
            "tid": st.none() | st.sampled_from("xyz"),
            "at": st.integers(0, 3),
            "what": st.integers(0, 2),
        }
    ),
    min_size=1,
    max_size=80,
)


def spooled(rows: list[dict[str, Any]]) -> pl.DataFrame:
    """Rows as staging spools them, with a fingerprint; content is `what`."""
    frame = pl.DataFrame(
        [
            {
                "export": row.get("export", 0),
                "row": number,
                "line": number + 1,
                "customer_key": row.get("key"),
                "customer_key_name": None,
                "tid": row.get("tid"),
                "timestamp": START + timedelta(seconds=row.get("at", 0)),
                "url": f"u:{row.get('what', number)}",
                "body": "{}",
            }
            for number, row in enumerate(rows, start=1)
        ],
        schema={
            "export": pl.UInt32,
            "row": pl.Int64,
            "line": pl.Int64,
            "customer_key": pl.String,
            "customer_key_name": pl.String,
            "tid": pl.String,
            "timestamp": pl.Datetime("us", "UTC"),
            "url": pl.String,
            "body": pl.String,
        },
    )
    content = pl.concat_str(
        pl.col("customer_key").fill_null("-"), pl.col("tid").fill_null("-"), pl.col("timestamp").cast(pl.String), "url"
    )
    return arranging.in_slots(frame).with_columns(Hash(content).xxh3_128().alias("fingerprint"))


def surveyed(rows: list[dict[str, Any]], **options: Any) -> forecast.Survey:
    whole = spooled(rows)
    outlines = forecast.outline(whole, whole.select("fingerprint"))
    return forecast.survey(outlines, **({"lanes": LANES, "most": 3, "skip": True} | options))


@settings(deadline=None)  # a busy machine is no failure
@given(ROWS, st.integers(1, 5), st.sampled_from(["skip", "send"]), st.booleans())
def test_it_counts_what_arranging_makes(rows: list[dict[str, Any]], most: int, duplicates: str, timeless: bool) -> None:
    """The same rows stay, and each lane has the same number of requests, with tids and without, whether interactions
    are told apart by their time as well or not."""
    whole = spooled(rows)
    if timeless:
        identity = pl.concat_str(pl.col("customer_key").fill_null("-"), "url")
        whole = whole.with_columns(Hash(identity).xxh3_128().alias("fingerprint"))
    ordered = arranging.delivery_order(whole, LANES)
    made = arranging.cut(ordered, first_request=1, most=most, duplicates=duplicates)
    outlines = forecast.outline(whole, whole.select("fingerprint"))
    found = forecast.survey(outlines, lanes=LANES, most=most, skip=duplicates == "skip")
    sent = made.rows.filter(pl.col("request").is_not_null())
    assert set(found.kept.select("export", "row").iter_rows()) == set(sent.select("export", "row").iter_rows())
    assert dict(found.lanes.select("lane", "requests").iter_rows()) == Counter(made.requests["lane"].to_list())


@settings(deadline=None)  # a busy machine is no failure
@given(ROWS, st.integers(1, 5))
def test_without_tids_it_would_be_what_arranging_makes_without_them(rows: list[dict[str, Any]], most: int) -> None:
    """`untied` is the cost of the same rows, each lane by itself, if no tid ended a request."""
    found = surveyed(rows, most=most)
    in_lanes = Counter(found.kept["lane"].to_list())
    assert dict(found.lanes.select("lane", "untied").iter_rows()) == {
        lane: -(-count // most) for lane, count in in_lanes.items()
    }


@settings(deadline=None)  # a busy machine is no failure
@given(ROWS, st.integers(1, 5))
def test_a_customers_requests_are_those_of_its_rows_alone(rows: list[dict[str, Any]], most: int) -> None:
    """In order of time, cut where its own tid changes and where a request is full; told by a second, plain count."""
    kept = {(row["export"], row["row"]) for row in surveyed(rows, most=most).kept.iter_rows(named=True)}
    own: dict[tuple[str | None, str | None], list[tuple[int, int, int, str | None]]] = {}
    for number, row in enumerate(rows, start=1):
        if (row["export"], number) in kept and (row["key"] or row["tid"]):
            whose = (row["key"], None if row["key"] else row["tid"])
            own.setdefault(whose, []).append((row["at"], row["export"], number, row["tid"]))
    expected = {
        whose: (len(its), sum(-(-len(list(run)) // most) for _, run in groupby(sorted(its), key=lambda one: one[3])))
        for whose, its in own.items()
    }
    found = surveyed(rows, most=most).customers.iter_rows(named=True)
    assert {
        (one["customer_key"], None if one["customer_key"] else one["tid"]): (one["rows"], one["requests"])
        for one in found
    } == expected


def test_what_an_earlier_piece_of_the_lane_holds_is_no_interaction() -> None:
    """By its fingerprint, whatever its time."""
    first = surveyed([{"key": "a", "what": 1}, {"key": "a", "what": 2}])
    again = surveyed([{"key": "a", "what": 2}, {"key": "a", "what": 3}], before=first.kept.select("high", "low"))
    assert again.kept["row"].to_list() == [2]
    assert again.lanes["requests"].to_list() == [1]


def test_half_a_fingerprint_is_not_taken_for_the_whole() -> None:
    """Two interactions whose lower halves are equal are still two."""
    rows = surveyed([{"key": "a", "what": 1}, {"key": "a", "what": 2}, {"key": "a", "what": 2}]).kept
    clash = pl.concat([rows, rows]).with_columns(pl.lit(7, pl.UInt64).alias("low")).drop("lane", "is_bound")
    assert forecast.survey(clash, lanes=LANES, most=100, skip=True).kept.height == 2


def test_months_are_counted_in_utc_and_exports_by_number() -> None:
    """Two seconds before March is February."""
    tally = Tally(busiest_shown=3)
    tally.add(surveyed([{"key": "a", "at": 0}, {"key": "a", "at": 1}, {"key": "b", "at": 2, "export": 1}]))
    assert tally.months == {"2024-02": 2, "2024-03": 1}
    assert tally.interactions == {0: 2, 1: 1}


def test_what_a_tid_costs_is_told() -> None:
    """Three rows of a customer under three tids are three calls, where one would do."""
    tally = Tally(busiest_shown=3)
    tally.add(surveyed([{"key": "a", "tid": tid, "at": at} for at, tid in enumerate("xyz")]))
    assert (tally.with_tid, tally.requests, tally.untied_requests) == (3, 3, 1)


def test_the_busiest_are_by_rows_and_the_slowest_by_requests() -> None:
    """A few rows with a tid each make a customer slower than many rows without; only so many are kept."""
    rows = [{"key": "many", "at": at} for at in range(9)]
    rows += [{"key": "slow", "tid": "xyz"[at % 3], "at": at} for at in range(5)]
    rows += [{"tid": "alone"}, {"tid": "alone", "at": 1}, {"key": "one"}]
    tally = Tally(busiest_shown=3)
    survey = surveyed(rows, most=100)
    tally.add_customers(survey.customers)
    assert tally.busiest == [
        Customer("many", None, None, 9, 1),
        Customer("slow", None, None, 5, 5),
        Customer(None, None, "alone", 2, 1),
    ]
    assert tally.slowest == tally.busiest[1]


def test_customers_of_several_pieces_are_joined() -> None:
    """A lane that is cut by time has a customer's rows in several pieces."""
    pieces = [surveyed([{"key": "a", "at": at}, {"key": "b", "at": at}][:at]).customers for at in (1, 2)]
    found = forecast.joined(pieces).sort("customer_key")
    assert found.select("customer_key", "rows", "requests").rows() == [("a", 2, 2), ("b", 1, 1)]


def test_rows_without_a_customer_are_nobodys() -> None:
    """Each stands for itself, so together they are no busy customer."""
    assert surveyed([{"what": 1}, {"what": 2}]).customers.is_empty()


# ----------------------------------------------------------------------------------------------------------- duration


def lasting(requests: int, *, interactions: int = 0, longest: int = 1, latency: float = 0.0, **budget: Any) -> Any:
    return forecast.duration(
        requests=requests,
        interactions=interactions,
        longest_lane=longest,
        budget=Budget(**budget),
        latency_s=latency,
    )


@pytest.mark.parametrize(
    ("given_", "bound_by", "sending_s"),
    [
        ({"requests": 1_980}, "budget.requests_per_second", 100),
        (
            {"requests": 1_980, "interactions": 198_000, "interactions_per_second": 100.0},
            "budget.interactions_per_second",
            2_000,
        ),
        ({"requests": 1_980, "latency": 2.0, "concurrency": 4}, "budget.concurrency", 990),
        ({"requests": 1_980, "latency": 0.2, "longest": 1_000}, "lane", 200),
    ],
)
def test_the_tightest_bound_sets_the_pace(given_: dict[str, Any], bound_by: str, sending_s: float) -> None:
    """Budget, connections that wait for replies, or one lane: whichever takes longest, at 0.99 of the budget."""
    took = lasting(**given_)
    assert (took.bound_by, took.sending_s) == (bound_by, pytest.approx(sending_s))
    assert (took.calendar_s, took.sittings) == (took.sending_s, None)


HOUR = 3_600
PER_HOUR = round(20 * 0.99 * HOUR)


@pytest.mark.parametrize(
    ("requests", "budget", "sittings", "calendar_h"),
    [
        (PER_HOUR * 8, {"window": "22:00-06:00"}, 1, 8),
        (PER_HOUR * 8 + 1, {"window": "22:00-06:00"}, 2, 24),
        (PER_HOUR * 20, {"window": "22:00-06:00"}, 3, 52),
        (PER_HOUR * 20, {"window": "09:00-17:00"}, 3, 52),
        (1_000, {"requests_per_day": 1_000}, 1, 1_000 / PER_HOUR),
        (2_500, {"requests_per_day": 1_000}, 3, 48 + 500 / PER_HOUR),
        (PER_HOUR * 30, {"requests_per_day": PER_HOUR * 100}, 2, 30),
        (PER_HOUR * 9, {"window": "22:00-06:00", "requests_per_day": PER_HOUR * 3}, 3, 51),
        (0, {"window": "22:00-06:00"}, None, 0),
    ],
)
def test_windows_and_days_make_sittings(
    requests: int, budget: dict[str, Any], sittings: int | None, calendar_h: float
) -> None:
    """As many nights or days as the requests need; from the first to the last, the pauses count."""
    took = lasting(requests, **budget)
    assert took.sittings == sittings
    assert took.calendar_s / HOUR == pytest.approx(calendar_h, abs=0.01)


# ------------------------------------------------------------------------------------------------------------- unseen


@pytest.mark.parametrize(
    "key",
    [
        "a\u200bb", "a\u202eb", "\ufeffa", "a\u00adb", "a\u00a0b", "a\u2009b", " a", "a ", "a\u2066b", "\u3164",
        "a\ufe0f", "a\U000e0061",
    ],
)  # fmt: skip
def test_characters_that_nobody_sees_are_found(key: str) -> None:
    """Joiners, marks of direction, soft hyphens, tags, wide blanks; plain blanks only at the ends."""
    assert forecast.unseen(pl.Series([key])).to_list() == [True]


@pytest.mark.parametrize("key", ["C0001", "Ärger", "李雷", "a b", "x@y.example", "محمد", "😀", None])
def test_characters_that_are_seen_are_let_be(key: str | None) -> None:
    """Letters of any script, blanks between them, and no key at all."""
    assert forecast.unseen(pl.Series([key], dtype=pl.String)).to_list() == [False]
