"""The account: staged rows and standings to ledger lines."""

import hmac
import re
from datetime import UTC, datetime

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backfill.core.account import (
    LEDGER_SCHEMA,
    OUTCOME_OF,
    add_counts,
    applicable,
    count_outcomes,
    invalid_lines,
    made_with,
    sent_lines,
)
from backfill.core.lifecycle import Part, Standing, State
from backfill.core.summary import OUTCOMES
from tests.adapters.staged import INVALID, ROWS, StagedLoad

EXPORTS = ("/exports/june.csv", "/exports/july.csv")


def standing(
    part: Part, state: State, *, attempts: int = 1, cause: str | None = None, reason: str | None = None
) -> Standing:
    sent, settled = (None, None) if state is State.PLANNED and not attempts else (1_700_000_000_000, 1_700_000_000_500)
    return Standing(part, state, attempts, 200, cause, reason, "reply-tid", False, sent, settled, 3)


def frame(load: StagedLoad) -> pl.DataFrame:
    return pl.DataFrame([row for piece in load.pieces for row in piece], schema=ROWS)


def a_load() -> StagedLoad:
    load = StagedLoad(EXPORTS)
    load.next_piece()
    return load


def test_a_row_without_a_standing_is_unsent() -> None:
    """A request that never left `planned` has no standing; its rows are unsent, with no attempt, time or execution."""
    load = a_load()
    load.request(0, 2)
    lines = sent_lines(frame(load), [], load=1, exports=EXPORTS)
    assert lines["outcome"].to_list() == ["unsent", "unsent"]
    assert lines["attempts"].to_list() == [0, 0]
    assert lines["reasons"].to_list() == [[], []]
    assert lines["maybe_duplicate"].to_list() == [False, False]
    assert lines.select("sent_at", "settled_at", "execution", "http_status", "tid").null_count().row(0) == (2,) * 5


def test_every_column_of_a_delivered_row() -> None:
    """A delivered line repeats its staged row and adds what the standing says, in the contract's types and order."""
    load = a_load()
    part = load.request(1, 1)
    lines = sent_lines(frame(load), [standing(part, State.DELIVERED, cause="acknowledged")], load=2, exports=EXPORTS)
    assert lines.schema == LEDGER_SCHEMA
    assert lines.row(0, named=True) == {
        "export": "/exports/july.csv",
        "row": 1,
        "line": 2,
        "customer_key": "0001",
        "customer_key_name": "customerkey",
        "timestamp": load.pieces[0][0]["timestamp"],
        "outcome": "delivered",
        "reasons": [],
        "duplicate_of": None,
        "load": 2,
        "request": 1,
        "position": 0,
        "attempts": 1,
        "http_status": 200,
        "tid": "reply-tid",
        "maybe_duplicate": False,
        "sent_at": datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC),
        "settled_at": datetime(2023, 11, 14, 22, 13, 20, 500_000, tzinfo=UTC),
        "execution": 3,
    }


def test_the_rows_own_tid_comes_before_the_replys() -> None:
    """A row that was exported with a `tid` keeps it, whatever the reply named."""
    load = a_load()
    part = load.request(0, 1, tid="row-tid")
    lines = sent_lines(frame(load), [standing(part, State.DELIVERED)], load=1, exports=EXPORTS)
    assert lines["tid"].to_list() == ["row-tid"]


def test_each_part_of_a_split_answers_for_its_positions() -> None:
    """After a split each row has the outcome of the narrowest part that holds it, and the split part none."""
    load = a_load()
    before, split, after = load.request(0, 2), load.request(0, 4), load.request(0, 2)
    standings = [
        standing(after, State.IN_DOUBT, cause="no_reply"),
        standing(split, State.SPLIT),
        standing(Part(split.request, 2, 1), State.REJECTED, attempts=3, cause="refused", reason="url is no URI"),
        standing(Part(split.request, 3, 1), State.PLANNED, attempts=0),
        standing(Part(split.request, 0, 2), State.DELIVERED, cause="acknowledged"),
        standing(before, State.ABANDONED),
    ]
    lines = sent_lines(frame(load), standings, load=1, exports=EXPORTS)
    assert lines["outcome"].to_list() == [
        *("abandoned", "abandoned"),
        *("delivered", "delivered", "rejected", "unsent"),
        *("in_doubt", "in_doubt"),
    ]
    assert lines["reasons"].to_list()[4:7] == [["refused", "url is no URI"], [], ["no_reply"]]
    assert lines["attempts"].to_list()[4] == 3


def test_a_delivery_that_was_only_assumed_says_so() -> None:
    """A reason other than the acknowledgement stays with a delivered row: a decision taken for it must be seen."""
    load = a_load()
    part = load.request(0, 1)
    lines = sent_lines(frame(load), [standing(part, State.DELIVERED, cause="assumed")], load=1, exports=EXPORTS)
    assert (lines["outcome"].item(), lines["reasons"].to_list()) == ("delivered", [["assumed"]])


def test_a_duplicate_names_its_original_and_no_request() -> None:
    """A duplicate points at the first row as `export:row`, also when that stands in another export."""
    load = a_load()
    part = load.request(0, 1)
    load.duplicate(1, of=load.pieces[0][0])
    lines = sent_lines(frame(load), [standing(part, State.DELIVERED)], load=1, exports=EXPORTS)
    assert lines["outcome"].to_list() == ["delivered", "duplicate"]
    assert lines["duplicate_of"].to_list() == [None, "/exports/june.csv:1"]
    assert lines["request"].to_list() == [1, None]
    assert lines["attempts"].to_list() == [1, 0]


def test_a_request_in_flight_is_in_doubt() -> None:
    """Whoever settles while a dead execution's request still stands in flight may not call it unsent."""
    load = a_load()
    part = load.request(0, 1)
    lines = sent_lines(frame(load), [standing(part, State.IN_FLIGHT)], load=1, exports=EXPORTS)
    assert lines["outcome"].to_list() == ["in_doubt"]


def test_an_invalid_row_keeps_all_its_reasons() -> None:
    """Invalid rows come out with every reason and the values that could be read, in the ledger's schema."""
    load = StagedLoad(EXPORTS)
    load.refuse(1, "timestamp_missing", "url_missing")
    lines = invalid_lines(pl.DataFrame(load.invalid[0], schema=INVALID), load=4, exports=EXPORTS)
    assert lines.schema == LEDGER_SCHEMA
    line = lines.row(0, named=True)
    assert line["outcome"] == "invalid"
    assert line["reasons"] == ["timestamp_missing", "url_missing"]
    assert (line["export"], line["row"], line["line"], line["load"]) == ("/exports/july.csv", 1, 2, 4)
    assert (line["attempts"], line["maybe_duplicate"], line["request"]) == (0, False, None)


@pytest.mark.parametrize("staged", ["sent", "invalid"])
def test_omitted_customer_keys_are_nowhere_in_the_ledger(staged: str) -> None:
    """Under `customer_key = "omit"` neither key nor key name reaches a line."""
    load = a_load()
    load.request(0, 1)
    load.refuse(0, "url_missing")
    if staged == "sent":
        lines = sent_lines(frame(load), [], load=1, exports=EXPORTS, customer_keys="omit")
    else:
        invalid = pl.DataFrame(load.invalid[0], schema=INVALID).with_columns(customer_key=pl.lit("0001"))
        lines = invalid_lines(invalid, load=1, exports=EXPORTS, customer_keys="omit")
    assert lines.schema == LEDGER_SCHEMA
    assert lines.select("customer_key", "customer_key_name").rows() == [(None, None)]


@pytest.mark.parametrize("staged", ["sent", "invalid"])
def test_customers_become_pseudonyms_under_a_key(staged: str) -> None:
    """Under `customer_key = "hmac"`: HMAC-SHA256 of the key in hex, no key staying none; key names stay."""
    keys = ["0001", "Zoë", None]
    rows = pl.DataFrame({"customer_key": keys})
    load = a_load()
    for _ in keys:
        load.request(0, 1)
        load.refuse(0, "url_missing")
    if staged == "sent":
        named = frame(load).with_columns(rows["customer_key"], customer_key_name=pl.lit("email"))
        lines = sent_lines(named, [], load=1, exports=EXPORTS, customer_keys="hmac", ledger_key="k3y-of-the-ledger")
    else:
        named = pl.DataFrame(load.invalid[0], schema=INVALID).with_columns(
            rows["customer_key"], customer_key_name=pl.lit("email")
        )
        lines = invalid_lines(named, load=1, exports=EXPORTS, customer_keys="hmac", ledger_key="k3y-of-the-ledger")
    expected = [
        None if key is None else hmac.new(b"k3y-of-the-ledger", key.encode(), "sha256").hexdigest() for key in keys
    ]
    assert lines.schema == LEDGER_SCHEMA
    assert lines["customer_key"].to_list() == expected
    assert lines["customer_key_name"].to_list() == ["email"] * 3


def test_the_manifest_can_tell_one_ledger_key_from_another() -> None:
    """By a fingerprint that is the same every time, and neither the key nor any customer's pseudonym."""
    marks = {made_with("hmac", key) for key in ("one-ledger-key-1", "one-ledger-key-2")}
    assert len(marks) == 2
    assert made_with("hmac", "one-ledger-key-1") in marks
    assert all(re.fullmatch("hmac:[0-9a-f]{16}", mark) for mark in marks)
    assert (made_with("plain", "one-ledger-key-1"), made_with("omit", None)) == ("plain", "omit")


def test_every_state_but_split_has_an_outcome_that_the_summary_counts() -> None:
    """No state of a part can lead to a row without an outcome, or with one that the closing equation leaves out."""
    assert set(OUTCOME_OF) == set(State) - {State.SPLIT}
    assert set(OUTCOME_OF.values()) | {"invalid", "duplicate"} == set(OUTCOMES)


def test_counts_are_by_export_and_outcome() -> None:
    """Counts of several parts add up per export and outcome."""
    load = a_load()
    part = load.request(0, 3)
    load.request(1, 2)
    lines = sent_lines(frame(load), [standing(part, State.DELIVERED)], load=1, exports=EXPORTS)
    total: dict[str, dict[str, int]] = {}
    add_counts(total, count_outcomes(lines))
    add_counts(total, count_outcomes(lines))
    assert total == {"/exports/june.csv": {"delivered": 6}, "/exports/july.csv": {"unsent": 4}}


LEAVES = [state for state in State if state is not State.SPLIT]


@settings(deadline=None)
@given(st.data())
def test_the_range_join_agrees_with_looking_up_each_row(data: st.DataObject) -> None:
    """For any requests, splits and gaps, each row has the outcome of the one part that holds its position."""
    load = a_load()
    expected: list[str] = []
    standings: list[Standing] = []
    for _ in range(data.draw(st.integers(0, 6), label="requests")):
        size = data.draw(st.integers(1, 7), label="size")
        part = load.request(0, size)
        cuts = sorted(data.draw(st.sets(st.integers(1, size - 1)), label="cuts")) if size > 1 else []
        if cuts:
            standings.append(standing(part, State.SPLIT))
        for first, end in zip([0, *cuts], [*cuts, size], strict=True):
            state = data.draw(st.sampled_from([None, *LEAVES]), label="state")
            if state is not None:
                standings.append(standing(Part(part.request, first, end - first), state))
            expected += ["unsent" if state is None else OUTCOME_OF[state]] * (end - first)
        if data.draw(st.booleans(), label="duplicate"):
            load.duplicate(1, of=load.pieces[0][0])
            expected.append("duplicate")
    rows = frame(load)
    shuffled = data.draw(st.permutations(standings), label="order of standings")
    lines = sent_lines(rows, shuffled, load=1, exports=EXPORTS)
    assert lines["outcome"].to_list() == expected
    assert lines.select("row", "request", "position").equals(rows.select("row", "request", "position"))
    assert lines.schema == LEDGER_SCHEMA


def test_a_duplicate_names_the_export_of_the_load_that_it_repeats() -> None:
    """Exports are numbered within their load, so the same number means another file in another load."""
    load = a_load()
    load.request(0, 1)
    load.duplicate(0, of=load.pieces[0][0])
    load.duplicate(1, of={"export": 1, "row": 7}, load=2)
    load.duplicate(1, of={"export": 0, "row": 8}, load=1)
    earlier = {1: ["/exports/may.csv"], 2: ["/exports/x.csv", "/exports/y.csv"], 3: EXPORTS}
    lines = sent_lines(frame(load), [], load=3, exports=EXPORTS, exports_by_load=earlier)
    assert lines["duplicate_of"].to_list() == [
        None,
        "/exports/june.csv:1",
        "/exports/y.csv:7",
        "/exports/may.csv:8",
    ]


@pytest.mark.parametrize("state", [state for state in State if state is not State.SPLIT])
def test_only_what_was_rejected_or_abandoned_is_not_applicable(state: State) -> None:
    """A row whose request has no standing was not sent yet and will be."""
    load = a_load()
    part = load.request(0, 2)
    load.request(0, 1)
    found = applicable(frame(load).select("request", "position"), [standing(Part(part.request, 1, 1), state)])
    assert found.to_list() == [True, state not in (State.REJECTED, State.ABANDONED), True]
