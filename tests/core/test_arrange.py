"""Order, duplicates and the cutting of requests."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backfill.core import arrange as arranging
from backfill.core.arrange import LaneRange, Span
from backfill.core.limits import BUCKET_BYTES, BUCKET_ROWS, SLOTS

START = datetime(2024, 1, 1, tzinfo=UTC)
LANES = 8


def spooled(rows: list[dict[str, Any]]) -> pl.DataFrame:
    """Rows as staging spools them. Content is `what`, so equal rows have equal fingerprints."""
    frame = pl.DataFrame(
        [
            {
                "export": row.get("export", 0),
                "row": number,
                "line": number + 1,
                "customer_key": row.get("key"),
                "customer_key_name": "customerkey" if row.get("key") else None,
                "tid": row.get("tid"),
                "timestamp": START + timedelta(seconds=row.get("at", 0)),
                "body": f'{{"n":{number}}}',
                "fingerprint": repr(
                    [row.get("key"), row.get("tid"), row.get("at", 0), row.get("what", number)]
                ).encode(),
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
            "body": pl.String,
            "fingerprint": pl.Binary,
        },
    )
    return arranging.in_slots(frame.with_columns(pl.col("fingerprint").cast(pl.String).alias("url")))


def arrange(rows: pl.DataFrame, lanes: int, first: int, most: int, duplicates: str) -> arranging.Arranged:
    ordered = arranging.delivery_order(rows, lanes)
    return arranging.cut(ordered, first_request=first, most=most, duplicates=duplicates)


def arranged(
    rows: list[dict[str, Any]], *, most: int = 100, duplicates: str = "skip", first: int = 1
) -> arranging.Arranged:
    return arrange(spooled(rows), LANES, first, most, duplicates)


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "export": st.integers(0, 1),
            "key": st.none() | st.sampled_from("abcde"),
            "tid": st.none() | st.sampled_from("xyz"),
            "at": st.integers(0, 3),
            "what": st.integers(0, 2),
        }
    ),
    min_size=1,
    max_size=60,
)


@settings(max_examples=60)
@given(ROWS, st.sampled_from([1, 3, 100]), st.sampled_from(["skip", "send"]), st.randoms())
def test_what_holds_for_every_piece(rows: list[dict[str, Any]], most: int, duplicates: str, random: Any) -> None:
    """Each row once, one tid and lane a request, customers in time order; the order of reading changes nothing."""
    frame = spooled(rows)
    result = arrange(frame, LANES, 7, most, duplicates)
    lines = result.rows.to_dicts()
    assert sorted(line["row"] for line in lines) == list(range(1, len(rows) + 1))

    sent = [line for line in lines if line["request"] is not None]
    seen: dict[bytes, tuple[int, int]] = {}
    contents = dict(zip(frame["row"].to_list(), frame["fingerprint"].to_list(), strict=True))
    for line in sorted(lines, key=lambda line: (line["export"], line["row"])):
        original = seen.setdefault(contents[line["row"]], (line["export"], line["row"]))
        if duplicates == "send" or original == (line["export"], line["row"]):
            assert line["request"] is not None
            assert line["duplicate_of_row"] is None
        else:
            assert (line["duplicate_of_export"], line["duplicate_of_row"]) == original
            assert line["request"] is line["position"] is None

    requests = result.requests.to_dicts()
    assert [request["request"] for request in requests] == list(range(7, 7 + len(requests)))
    by_request = Counter(line["request"] for line in sent)
    bodies = dict(zip(frame["row"].to_list(), frame["body"].to_list(), strict=True))
    for request in requests:
        own = [line for line in sent if line["request"] == request["request"]]
        assert [line["position"] for line in own] == list(range(request["count"]))
        assert request["count"] == by_request[request["request"]] <= most
        assert {line["tid"] for line in own} == {request["tid"]}
        assert {line["lane"] for line in own} == {request["lane"]}
        assert request["body"] == ",".join(bodies[line["row"]] for line in own)
        assert request["sizes"] == [len(bodies[line["row"]]) for line in own]

    last: dict[object, tuple[datetime, int, int]] = {}
    lane_of: dict[object, int] = {}
    for line in sent:
        place = line["timestamp"], line["export"], line["row"]
        customer = line["customer_key"] or (line["tid"] or place,)
        assert last.get(customer, place) <= place
        last[customer] = place
        assert lane_of.setdefault(customer, line["lane"]) == line["lane"]

    order = list(range(len(rows)))
    random.shuffle(order)
    again = arrange(frame[order], LANES, 7, most, duplicates)
    assert again.rows.equals(result.rows)
    assert again.requests.equals(result.requests)


def test_requests_are_as_full_as_tid_and_lane_allow() -> None:
    """250 interactions of one customer make three requests; a tid makes them one customer after another."""
    assert arranged([{"key": "a", "at": n} for n in range(250)]).requests["count"].to_list() == [100, 100, 50]
    mixed = [{"key": key, "tid": f"t{key}", "at": n} for n in range(50) for key in ("a", "b")]
    assert sorted(arranged(mixed).requests["count"].to_list()) == [50, 50]


def test_customers_without_tid_come_first_and_by_time() -> None:
    """A customer counts as one with a tid as soon as a single row of it has one."""
    rows = [
        {"key": "a", "at": 1, "tid": "x"},
        {"key": "a", "at": 0},
        {"key": "b", "at": 2},
        {"key": "c", "at": 1},
    ]
    one_lane = arrange(spooled(rows), 1, 1, 100, "skip")
    assert one_lane.rows["row"].to_list() == [4, 3, 2, 1]
    assert one_lane.requests.select("tid", "count").rows() == [(None, 3), ("x", 1)]


def test_rows_without_customer_meet_their_duplicates() -> None:
    """With neither key nor tid, equal content leads to the same lane."""
    result = arranged([{"what": "same"}, {"what": "other"}, {"what": "same"}])
    assert result.rows.filter(pl.col("request").is_null())["row"].to_list() == [3]


def test_an_unnamed_key_belongs_to_the_default_name() -> None:
    """The API takes a key without a name as a `customerkey`, so both are one customer and keep one order."""
    rows = spooled([{"key": "a"}] * 3 + [{"tid": "a"}]).with_columns(
        pl.Series("customer_key_name", [None, "customerkey", "email", None])
    )
    slots = arranging.in_slots(rows)["slot"].to_list()
    assert slots[0] == slots[1]
    assert len(set(slots)) == 3


def test_slots_are_known_forever() -> None:
    """A slot decides about lanes of loads that are staged but not sent yet: no version may change it."""
    assert spooled([{"key": "c1"}, {"tid": "t1"}])["slot"].to_list() == [917, 2302]


@pytest.mark.parametrize(("rows", "lanes"), [(0, 1), (1_999, 1), (4_000, 2), (100_000, 50), (5_000_000, 512)])
def test_lanes_grow_with_the_rows(rows: int, lanes: int) -> None:
    """Twenty full requests a lane, at most 512."""
    assert arranging.lane_count(rows) == lanes


@pytest.mark.parametrize("lanes", [1, 2, 3, 7, 50, 511, 512])
def test_every_slot_is_in_the_lane_that_begins_before_it(lanes: int) -> None:
    """`first_slot` and the formula of arranging agree, and lanes differ by at most one slot."""
    firsts = [arranging.first_slot(lane, lanes) for lane in range(lanes + 1)]
    assert (firsts[0], firsts[-1]) == (0, SLOTS)
    widths = {end - start for start, end in pairwise(firsts)}
    assert max(widths) - min(widths) <= 1
    for lane in range(lanes):
        assert {slot * lanes // SLOTS for slot in range(firsts[lane], firsts[lane + 1])} == {lane}


def held(by_lane: dict[int, int], lanes: int) -> list[int]:
    slots = [0] * SLOTS
    for lane, count in by_lane.items():
        slots[arranging.first_slot(lane, lanes)] = count
    return slots


def test_buckets_join_lanes_up_to_their_size() -> None:
    """Lanes stay whole; a large one stands alone; empty ones at an edge are left out."""
    rows = held({1: 100_000, 2: 40_000, 4: 20_000, 5: BUCKET_ROWS + 1, 7: 5}, 10)
    assert arranging.buckets(rows, [0] * SLOTS, 10) == [
        LaneRange(1, 3, 140_000, too_large=False),
        LaneRange(4, 5, 20_000, too_large=False),
        LaneRange(5, 6, BUCKET_ROWS + 1, too_large=True),
        LaneRange(7, 8, 5, too_large=False),
    ]
    assert arranging.buckets([0] * SLOTS, [0] * SLOTS, 10) == []


def test_buckets_are_bounded_by_bytes_too() -> None:
    """Few but enormous interactions are a bucket as well."""
    rows, size = held({0: 2, 1: 2, 2: 2}, 3), held({0: BUCKET_BYTES // 2, 1: BUCKET_BYTES // 2, 2: BUCKET_BYTES + 1}, 3)
    assert [(b.lane_from, b.lane_to, b.too_large) for b in arranging.buckets(rows, size, 3)] == [
        (0, 2, False),
        (2, 3, True),
    ]


@given(
    st.lists(st.tuples(st.integers(-50, 50), st.integers(1, 30)), unique_by=lambda span: span[0]), st.integers(1, 50)
)
def test_time_ranges_tile_the_spans(counts: list[tuple[int, int]], limit: int) -> None:
    """Every span in exactly one range, ranges in order of time, none beyond the limit that could have been cut."""
    spans = [Span(start * 10, 10, rows) for start, rows in counts]
    ranges = arranging.time_ranges(spans, limit)
    assert sum(r.rows for r in ranges) == sum(s.rows for s in spans)
    for one, two in pairwise(ranges):
        assert one.start_us + one.width_us <= two.start_us
    for found in ranges:
        inside = [s for s in spans if found.start_us <= s.start_us < found.start_us + found.width_us]
        assert sum(s.rows for s in inside) == found.rows
        assert found.rows <= limit or len(inside) == 1


def test_crowded_spans_are_those_that_can_be_cut() -> None:
    """One instant cannot be."""
    spans = [Span(0, 10, 5), Span(10, 10, 6), Span(20, 1, 9)]
    assert arranging.crowded(spans, 5) == [Span(10, 10, 6)]


def test_what_another_load_has_is_in_no_request() -> None:
    """Its twins of the same piece name that one as well, and the others are cut as if it were not there."""
    frame = spooled([{"key": "a", "at": 1, "what": 1}, {"key": "a", "at": 1, "what": 1}, {"key": "a", "at": 2}])
    known = pl.DataFrame(
        {"place": [0, 1], "duplicate_of_export": [3, 3], "duplicate_of_row": [9, 9], "duplicate_of_load": [1, 1]},
        schema=arranging.ORIGINALS_SCHEMA,
    )
    ordered = arranging.delivery_order(frame, LANES)
    for duplicates, requests in (("skip", [None, None, 1]), ("send", [1, 1, 1])):
        result = arranging.cut(ordered, first_request=1, most=100, duplicates=duplicates, originals=known)
        assert result.rows["request"].to_list() == requests
        original = [("duplicate_of_export", 3), ("duplicate_of_row", 9), ("duplicate_of_load", 1)]
        for column, value in original:
            expected = [value, value, None] if duplicates == "skip" else [None] * 3
            assert result.rows[column].to_list() == expected
    whole = arranging.cut(ordered, first_request=1, most=100, duplicates="skip", originals=known.clear())
    assert whole.rows["duplicate_of_row"].to_list() == [None, 1, None]


def test_of_one_identity_the_earliest_stays() -> None:
    """By time, then by export and row: so it is the same whether they meet in one piece or in two."""
    frame = spooled([{"key": "a", "at": at, "what": what} for at, what in ((3, 1), (1, 2), (1, 3), (2, 4))])
    ordered = arranging.delivery_order(frame.with_columns(pl.lit("same").alias("fingerprint")), LANES)
    result = arranging.cut(ordered, first_request=1, most=100, duplicates="skip")
    named = dict(result.rows.select("row", "duplicate_of_row").iter_rows())
    assert named == {1: 2, 2: None, 3: 2, 4: 2}


def test_rows_of_nobody_with_one_identity_share_a_slot() -> None:
    """Whatever their content: else they would never meet."""
    frame = spooled([{"at": n, "what": n} for n in range(40)]).drop("slot")
    known = frame.with_columns(pl.lit("m-1").alias("identity:message"))
    assert arranging.in_slots(known)["slot"].n_unique() == 1
    assert arranging.in_slots(frame)["slot"].n_unique() > 1
    nothing = known.with_columns(pl.lit(None, pl.String).alias("identity:message"))
    assert arranging.in_slots(nothing)["slot"].equals(arranging.in_slots(frame)["slot"])
