"""Interactions written by hand: what is refused, and what bytes they become."""

import contextlib
import json
from datetime import UTC, datetime
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backfill.core import interaction
from backfill.core.calls import CALLS
from backfill.core.config import BulkKey, Wire
from backfill.core.encode import render
from backfill.core.errors import UsageError
from backfill.core.interaction import Request, from_json, from_options
from backfill.core.validate import FAULTS

NOW = datetime(2024, 6, 1, tzinfo=UTC)
OFFLINE = "interaction-offline"
BULK = "interactions-offline"
POST = "interaction-post"


def request(document: object, call: str = POST, **wire: Any) -> Request:
    return interaction.request(document, call, Wire(**wire), now=NOW)


def one(**elements: object) -> dict[str, object]:
    return {"url": "api://a"} | elements


def refusal(document: object, call: str = POST) -> str:
    with pytest.raises(UsageError) as refused:
        request(document, call)
    return refused.value.message


@pytest.mark.parametrize(
    ("elements", "said"),
    [
        ({"url": None}, "`url` is missing"),
        ({"url": 5}, "`url` must be text"),
        ({"url": "a b"}, "`url` is no URI"),
        ({"customerKey": 4711}, "`customerKey` must be text"),
        ({"customerKey": " "}, "`customerKey` is blank"),
        ({"customerKey": "a\tb"}, "control characters"),
        ({"customerKey": "x" * 1001}, "longer than 1,000"),
        ({"customerKeyName": "email"}, "without `customerKey`"),
        ({"customerKey": "1", "customerKeyName": ""}, "`customerKeyName` is blank"),
        ({"tid": ""}, "`tid` is blank"),
        ({"tid": 3}, "`tid` must be text"),
        ({"properties": {"a": "b"}}, "`properties` must be an array"),
        ({"properties": [{"name": "a"}]}, "`properties` must be an array"),
        ({"properties": [{"name": "", "value": "b"}]}, "`properties` must be an array"),
        ({"properties": [{"name": "a", "value": None}]}, "`properties` must be an array"),
        ({"properties": [{"name": "a", "value": "b", "c": 1}]}, "`properties` must be an array"),
        ({"device": "phone"}, "`device` must be"),
        ({"timestamp": 1}, "`timestamp` is for offline calls only"),
        ({"uri": "api://b"}, "`uri` is no element of an interaction (did you mean `url`?)"),
        ({"customer_key_name": "x"}, "did you mean `customerKeyName`?"),
        ({"zzzzzz": "x"}, "known are url, customerKey, customerKeyName, properties, device, timestamp and tid"),
        ({"\x1b[2J\u202e": "x"}, "`\ufffd[2J\ufffd`"),
        ({"device": ["\ud800"]}, "half a character"),
        ({"device": [float("inf")]}, "a number without end"),
    ],
)
def test_what_is_no_interaction_is_refused(elements: dict[str, object], said: str) -> None:
    """With the element and the reason."""
    assert said in refusal(one(**elements))


@pytest.mark.parametrize(
    ("timestamp", "said"),
    [
        (None, "is missing"),
        ("2024-05-06T07:08:09", "has no offset"),
        ("yesterday", "cannot be read"),
        ("1718000000000", "is a number in quotes"),
        (10**20, "cannot be read"),
        (1.5, "must be ISO 8601"),
        (True, "must be ISO 8601"),
        ("2024-06-01T00:00:00.001Z", "lies in the future"),
    ],
)
def test_a_time_that_cannot_be_is_refused(timestamp: object, said: str) -> None:
    """Missing, without offset, unreadable, of another kind, or in the future."""
    assert f"`timestamp` {said}" in refusal(one(timestamp=timestamp), OFFLINE)


def test_every_fault_of_every_interaction_is_told_by_its_place() -> None:
    """Up to ten; no value is shown."""
    said = refusal([one(timestamp=1), one(), one(url="SECRET", timestamp="SECRET"), "SECRET"], BULK)
    assert said.startswith("3 of 4 interactions are invalid, so nothing was sent:\n")
    assert [line.split(":")[0].strip() for line in said.splitlines()[1:]] == [f"interaction {n}" for n in (2, 3, 3, 4)]
    assert "SECRET" not in said
    assert "and 2 more" in refusal([one()] * 12, BULK)


def test_the_rules_for_rows_have_words_here() -> None:
    """Every fault that a row can have and that a hand-written interaction can meet is told in a sentence."""
    # Of [time] and [rows], none of which is asked here: no bound, no zone, no declared unit, no key to be mended.
    out_of_reach = {
        "timestamp_before_not_before",
        "timestamp_epoch_unit",
        "timestamp_in_gap",
        "timestamp_ambiguous",
        "customer_key_missing",
        "customer_key_not_whole",
    }
    assert set(FAULTS) - set(interaction._SAID) == out_of_reach


def test_a_list_has_up_to_a_hundred_and_one_tid() -> None:
    """Only the call of many takes one; an object is a list of one there."""
    assert request([one(timestamp=1, tid="t")] * 100, BULK).interactions == 100
    assert "The list holds 101 interactions, so nothing was sent: a call takes 1 to 100." in refusal(
        [one(timestamp=1)] * 101, BULK
    )
    assert "0 interactions" in refusal([], BULK)
    assert "different `tid`s" in refusal([one(timestamp=1, tid="t"), one(timestamp=1)], BULK)
    assert "--call interactions-offline" in refusal([one()], POST)
    assert request(one(timestamp=1, tid="t"), BULK) == Request(
        call=BULK, body=b'[{"timestamp":1,"url":"api://a"}]', tid="t", interactions=1
    )


@pytest.mark.parametrize("call", CALLS)
def test_the_wire_form(call: str) -> None:
    """The address field is the tenant's in every call; time and frame only where the call has them."""
    time: dict[str, object] = {"timestamp": "2024-05-06T09:08:09.1+02:00"} if CALLS[call].historic else {}
    made = request(
        one(**time), call, address_field="uri", timestamp_field="at", timestamp_format="iso8601", bulk=BulkKey(key="k")
    )
    bare: Any = {"at": "2024-05-06T07:08:09.100Z", "uri": "api://a"} if time else {"uri": "api://a"}
    assert json.loads(made.body) == ({"k": [bare]} if CALLS[call].many else bare)


_TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=8)


@given(
    key=_TEXT.filter(str.strip) | st.none(),
    properties=st.dictionaries(_TEXT.filter(bool), _TEXT.filter(bool), max_size=3),
    at_ms=st.integers(-(10**12), int(NOW.timestamp() * 1000)),
    form=st.sampled_from(["epoch_ms", "iso8601"]),
)
def test_by_hand_and_from_an_export_are_the_same_bytes(
    key: str | None, properties: dict[str, str], at_ms: int, form: Any
) -> None:
    """What a tenant takes from `send` it takes from a job."""
    listed = sorted(properties.items())
    document = from_options(url="api://a", customer_key=key, properties=listed, timestamp=str(at_ms))
    wire = Wire(timestamp_format=form)
    row = pl.DataFrame(
        {
            "timestamp": [at_ms * 1000],
            "url": ["api://a"],
            "customer_key": [key],
            "customer_key_name": [None],
            "tid": [None],
        }
        | {f"property:{name}": [value] for name, value in listed},
        schema_overrides={
            "timestamp": pl.Int64,
            "customer_key": pl.String,
            "customer_key_name": pl.String,
            "tid": pl.String,
        },
    ).with_columns(pl.col("timestamp").cast(pl.Datetime("us", "UTC")))
    made = interaction.request(document, OFFLINE, wire, now=NOW)
    assert made.body.decode() == render(row, wire)["body"][0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is no JSON (line 1, column 1: Expecting value). Mend it there."),
        (b'{"url":\n  x}', "line 2, column 3"),
        (b'{"url": "SECRET", "url": "b"}', "`url` is given twice"),
        (b'{"a": NaN}', "NaN is no number"),
        (b"\xff{}", "not UTF-8 (byte 0)"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"timestamp": ' + b"9" * 5000 + b"}", "a number too long"),
    ],
)
def test_a_file_that_is_no_json_says_where(content: bytes, said: str) -> None:
    """Line and column, or what the API could not read; never what stands there."""
    with pytest.raises(UsageError) as refused:
        from_json(content, "some.json")
    assert refused.value.message.startswith("some.json is n")
    assert said in refused.value.message
    assert "SECRET" not in refused.value.message


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["url", "tid", "timestamp", "properties", "device", "name", "value", "x"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=8,
    ),
    st.sampled_from(list(CALLS)),
)
def test_any_document_is_refused_or_becomes_json(document: Any, call: str) -> None:
    """No document is a crash."""
    with contextlib.suppress(UsageError):
        json.loads(request(document, call).body)


def test_nothing_of_it_is_shown() -> None:
    """A request that is printed by mistake tells no value."""
    assert repr(request(one(customerKey="4711"))) == "Request(interaction-post, 1)"
