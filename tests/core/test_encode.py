"""The JSON of interactions: against Python's own json module."""

import json
from datetime import UTC, datetime
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backfill.core.columns import PROPERTY
from backfill.core.config import BulkKey, Wire
from backfill.core.encode import cut, render, request_body

MOMENT = datetime(2024, 3, 1, 12, 0, 0, 123_456, tzinfo=UTC)
MOMENT_MS = 1_709_294_400_123
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
NAMES = ("amount", "channel", 'odd "name"\n')
PROPERTIES = tuple(PROPERTY + name for name in NAMES)


def rows(*values: dict[str, Any]) -> pl.DataFrame:
    schema = {"timestamp": pl.Datetime("us", "UTC")} | dict.fromkeys(
        ("url", "customer_key", "customer_key_name", "tid", *PROPERTIES), pl.String()
    )
    return pl.DataFrame([{"timestamp": MOMENT, "url": "api://shop", **value} for value in values], schema=schema)


def plain(row: dict[str, Any], timestamp: object = MOMENT_MS) -> dict[str, Any]:
    """What the row has to become, written the obvious way."""
    result: dict[str, Any] = {"timestamp": timestamp, "url": row["url"]}
    if row["customer_key"] is not None:
        result["customerKey"] = row["customer_key"]
    if row["customer_key_name"] is not None:
        result["customerKeyName"] = row["customer_key_name"]
    named = [(name, row[PROPERTY + name]) for name in NAMES]
    if any(value is not None for _, value in named):
        result["properties"] = [{"name": name, "value": value} for name, value in named if value is not None]
    return result


OPTIONAL = st.none() | TEXT


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "url": TEXT,
                "customer_key": OPTIONAL,
                "customer_key_name": OPTIONAL,
                **dict.fromkeys(PROPERTIES, OPTIONAL),
            }
        ),
        min_size=1,
        max_size=4,
    )
)
def test_the_json_is_what_pythons_json_would_write(values: list[dict[str, Any]]) -> None:
    """Any text, any part missing; and the same bytes whatever the neighbours."""
    frame = rows(*values)
    bodies = render(frame, Wire())["body"].to_list()
    assert [json.loads(body) for body in bodies] == [plain(row) for row in frame.iter_rows(named=True)]
    alone = [render(frame[n], Wire())["body"].item() for n in range(frame.height)]
    assert alone == bodies


def test_a_property_in_every_row_and_one_in_none_keep_the_order_of_names() -> None:
    """Commas come out right on both sides of a property that every row has."""
    for present in ([0], [1], [2], [0, 1], [1, 2], [0, 2], [0, 1, 2]):
        full = {PROPERTIES[n]: f"v{n}" for n in present}
        others = [{**full, PROPERTIES[n]: "x"} for n in range(3) if n not in present]
        frame = rows(full, *others)
        bodies = render(frame, Wire())["body"].to_list()
        assert [json.loads(body) for body in bodies] == [plain(row) for row in frame.iter_rows(named=True)]


def test_no_properties_at_all() -> None:
    """A mapping without properties, and no rows."""
    frame = rows({}).drop(PROPERTIES)
    assert json.loads(render(frame, Wire())["body"].item()) == {"timestamp": MOMENT_MS, "url": "api://shop"}
    assert render(frame.clear(), Wire()).schema == {"body": pl.String(), "fingerprint": pl.UInt128()}


def test_the_wire_names_the_fields() -> None:
    """Address and timestamp as the tenant takes them."""
    wire = Wire(address_field="uri", timestamp_field='at"', timestamp_format="iso8601")
    body = render(rows({}), wire)["body"].item()
    assert json.loads(body) == {'at"': "2024-03-01T12:00:00.123Z", "uri": "api://shop"}


def test_the_fingerprint_is_of_the_content_alone() -> None:
    """The wire form, a property that no row has and the columns' order change nothing."""
    row = {"customer_key": "c", "customer_key_name": "n", "property:channel": "v"}
    here = render(rows(row), Wire())["fingerprint"].item()
    there = render(rows(row), Wire(address_field="uri", timestamp_format="iso8601"))["fingerprint"].item()
    elsewhere = rows(row).select(*reversed(rows().columns), pl.lit(None, pl.String).alias("property:b"))
    assert here == there == render(elsewhere, Wire())["fingerprint"].item()


def test_the_fingerprint_is_known_forever() -> None:
    """Fingerprints are kept across loads and versions: this one was computed when the format was fixed."""
    row = {
        "customer_key": 'c"1',
        "customer_key_name": "n",
        "tid": "t",
        "property:amount": "1",
        "property:channel": "web",
    }
    assert render(rows(row), Wire())["fingerprint"].item() == 328137533860277688538610534945902843864


@pytest.mark.parametrize(
    "other",
    [
        {"timestamp": MOMENT.replace(microsecond=123_457)},
        {"url": "api://shop2"},
        {"customer_key": "d"},
        {"customer_key": None},
        {"customer_key_name": "email"},
        {"tid": "t"},
        {"property:amount": "2"},
        {"property:amount": None},
        {"property:amount": None, "property:channel": "1"},
        {"property:channel": "1"},
    ],
)
def test_any_difference_makes_another_fingerprint(other: dict[str, Any]) -> None:
    """Else a row would be left out as a duplicate that it is not."""
    row = {"customer_key": "c", "customer_key_name": "customerkey", "property:amount": "1"}
    one, two = render(rows(row, {**row, **other}), Wire())["fingerprint"]
    assert one != two


def test_a_request_is_an_array_an_object_or_the_one_interaction() -> None:
    """The bulk call takes an array, or an object with one; the single call the interaction itself."""
    fragment = b'{"a":1},{"a":2}'
    assert request_body(fragment, Wire(), "interactions-offline") == b'[{"a":1},{"a":2}]'
    assert request_body(fragment, Wire(bulk=BulkKey(key='ä"')), "interactions-offline") == (
        '{"ä\\"":[{"a":1},{"a":2}]}'.encode()
    )
    assert request_body(b'{"a":1}', Wire(), "interaction-offline") == b'{"a":1}'


@given(st.lists(st.text(min_size=1).map(str.encode), min_size=1, max_size=6), st.data())
def test_cut_takes_exactly_the_positions(parts: list[bytes], data: st.DataObject) -> None:
    """Sizes are bytes, not characters, and the commas between are nobody's."""
    first = data.draw(st.integers(0, len(parts) - 1))
    count = data.draw(st.integers(1, len(parts) - first))
    sizes = [len(part) for part in parts]
    assert cut(b",".join(parts), sizes, first, count) == b",".join(parts[first : first + count])


def test_cut_refuses_positions_that_are_not_there() -> None:
    """A split that misses the request is a bug, not an empty body."""
    for first, count in ((0, 3), (2, 1), (-1, 1), (0, 0)):
        with pytest.raises(ValueError, match="no positions"):
            cut(b"a,b", [1, 1], first, count)


def test_a_key_without_a_name_has_the_fingerprint_of_the_apis_default_name() -> None:
    """The same customer to the API; the body stays as the row has it, and a tid alone gets no name."""
    alone, named = {"customer_key": "c"}, {"customer_key": "c", "customer_key_name": "customerkey"}
    rendered = render(rows(alone, named, {"tid": "t"}), Wire())
    assert rendered["fingerprint"][0] == rendered["fingerprint"][1] == render(rows(named), Wire())["fingerprint"][0]
    assert "customerKeyName" not in rendered["body"][0]
    assert rendered["fingerprint"][2] == render(rows({"tid": "t"}), Wire())["fingerprint"][0]


def test_an_identity_takes_the_place_of_the_contents_fingerprint() -> None:
    """Where a row has one; a row without keeps that of its content."""
    frame = rows({"url": "a"}, {"url": "b"}, {"url": "c"})
    known = frame.with_columns(
        pl.Series("identity_high", [1, 1, None], dtype=pl.UInt64),
        pl.Series("identity_low", [2, 2, None], dtype=pl.UInt64),
    )
    by_content, by_identity = (render(each, Wire()) for each in (frame, known))
    assert by_identity["fingerprint"].to_list() == [2**64 + 2, 2**64 + 2, by_content["fingerprint"][2]]
    assert by_identity["body"].equals(by_content["body"])
