"""What each type of Parquet becomes: exact text, typed times and floats, JSON; or refused by name.

pyarrow writes, and says what each value was.
"""

import json
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backfill.adapters.exports import open_export
from backfill.core.config import Csv
from backfill.core.errors import ExportError
from tests.adapters.exports.columnar import parquet, without_logical_types, written

FAR = [datetime(1, 1, 1), datetime(1600, 2, 29, 1, 2, 3, 4), datetime(1969, 12, 31, 23, 59, 59, 999_999)]  # noqa: DTZ001
FAR += [datetime(2024, 3, 1, 12), datetime(2262, 4, 12), datetime(9999, 12, 31, 23, 59, 59, 999_999)]  # noqa: DTZ001


def values(path: Path, column: str = "a") -> list[Any]:
    blocks = [block.frame for block in open_export(path, Csv()).blocks((column,))]
    return pl.concat(blocks)[column].to_list() if blocks else []


@pytest.mark.parametrize("store_schema", [True, False])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Zurich"])
@pytest.mark.parametrize("options", [{}, {"version": "1.0"}, {"use_deprecated_int96_timestamps": True}])
def test_instants_are_those_that_were_written(
    tmp_path: Path, options: dict[str, Any], zone: str | None, store_schema: bool
) -> None:
    """From the year 1 to 9999, in every way that Parquet stores microseconds, INT96 included: none is clamped."""
    path = written(
        tmp_path, pa.table({"a": pa.array(FAR, pa.timestamp("us", zone))}), store_schema=store_schema, **options
    )
    (block,) = open_export(path, Csv()).blocks(("a",))
    dtype = block.frame["a"].dtype
    assert isinstance(dtype, pl.Datetime)
    assert dtype.time_unit == "us"
    # INT96 has no zone of its own: only pyarrow's note in the file knows it.
    lost = "use_deprecated_int96_timestamps" in options and not store_schema
    assert (dtype.time_zone is None) == (zone is None or lost)
    epoch = datetime(1970, 1, 1)  # noqa: DTZ001
    assert block.frame["a"].to_physical().to_list() == [(moment - epoch) // timedelta(microseconds=1) for moment in FAR]


@pytest.mark.parametrize(("unit", "per_s"), [("ms", 10**3), ("ns", 10**9)])
def test_other_units_keep_every_digit(tmp_path: Path, unit: str, per_s: int) -> None:
    """Milliseconds and nanoseconds, before and after 1970."""
    counts = [-1, 0, 1, 1_709_294_400 * per_s + 1]
    path = written(tmp_path, pa.table({"a": pa.array(counts, pa.timestamp(unit))}))
    (block,) = open_export(path, Csv()).blocks(("a",))
    assert block.frame["a"].dtype == pl.Datetime(unit)  # type: ignore[arg-type]
    assert block.frame["a"].to_physical().to_list() == counts


@pytest.mark.parametrize("unit", ["ms", "us"])
def test_the_older_kinds_of_timestamp_mean_utc(tmp_path: Path, unit: str) -> None:
    """TIMESTAMP_MILLIS and TIMESTAMP_MICROS without a logical type; what says that it is local stays without a zone."""
    table = pa.table({"a": pa.array([1], pa.timestamp(unit)), "l": pa.array([[1]], pa.list_(pa.timestamp("us")))})
    raw = parquet(table, version="1.0", store_schema=False)
    assert values(written(tmp_path, raw))[0].tzinfo is None
    old = written(tmp_path, without_logical_types(raw))
    (block,) = open_export(old, Csv()).blocks(("a", "l"))
    assert block.frame["a"].dtype == pl.Datetime(unit, "UTC")  # type: ignore[arg-type]
    assert block.frame["l"].to_list() == ['["1970-01-01T00:00:00.000001Z"]']


def test_int96_inside_nested_values_is_not_clamped_either(tmp_path: Path) -> None:
    """Beside nanoseconds of another member, which keep theirs."""
    kind = pa.struct([("n", pa.int64()), ("at", pa.timestamp("us"))])
    table = pa.table({"a": pa.array([{"n": 1, "at": FAR[1]}, None, {"n": 2, "at": FAR[-1]}], kind)})
    path = written(tmp_path, table, use_deprecated_int96_timestamps=True, store_schema=False)
    assert values(path) == [
        '{"n":1,"at":"1600-02-29T01:02:03.000004"}',
        None,
        '{"n":2,"at":"9999-12-31T23:59:59.999999"}',
    ]


@pytest.mark.parametrize(
    ("kind", "given", "text"),
    [
        (pa.int8(), [-128, 127], ["-128", "127"]),
        (pa.uint64(), [2**64 - 1, 2**53 + 1], ["18446744073709551615", "9007199254740993"]),
        (pa.int64(), [-(2**63), 2**53 + 1], ["-9223372036854775808", "9007199254740993"]),
        (pa.decimal128(20, 0), [Decimal(10**20 - 1), Decimal(0)], ["99999999999999999999", "0"]),
        (pa.decimal128(38, 2), [Decimal("1234567890123456.10"), Decimal("-0.01")], ["1234567890123456.10", "-0.01"]),
        (pa.bool_(), [True, False], ["true", "false"]),
        (pa.large_string(), ["a", ""], ["a", ""]),
        (pa.time64("us"), [time(1, 2, 3), time(1, 2, 3, 4)], ["01:02:03", "01:02:03.000004"]),
        (pa.date64(), [date(2024, 3, 1), date(1, 1, 1)], [date(2024, 3, 1), date(1, 1, 1)]),
        (pa.uuid(), [b"0123456789abcdef", None], ["30313233-3435-3637-3839-616263646566", None]),
        (pa.json_(), ['{"a": 1}', "[]"], ['{"a": 1}', "[]"]),
        (pa.null(), [None, None], [None, None]),
        (pa.dictionary(pa.int32(), pa.string()), ["é", None], ["é", None]),
        (pa.float64(), [17850.0, 0.1], [17850.0, 0.1]),
        (pa.list_(pa.int64()), [[2**63 - 1, None], []], ["[9223372036854775807,null]", "[]"]),
        (pa.list_(pa.float64(), 2), [[1.5, float("nan")], None], ["[1.5,null]", None]),
        (pa.map_(pa.string(), pa.float64()), [[('q"', 1.0), ("é", None)], []], ['{"q\\"":1.0,"é":null}', "{}"]),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("store_schema", [True, False])
def test_values_become_text_to_the_last_digit(
    tmp_path: Path, kind: pa.DataType, given: list[Any], text: list[Any], store_schema: bool
) -> None:
    """Whether or not pyarrow notes its own types in the file; dates and floats keep their type."""
    assert values(written(tmp_path, pa.table({"a": pa.array(given, kind)}), store_schema=store_schema)) == text


def test_nested_values_become_json(tmp_path: Path) -> None:
    """In the order of the file, without blanks, members without value as null, decimals and times as strings."""
    kind = pa.struct(
        [
            ("z", pa.string()),
            ('a "b"', pa.list_(pa.struct([("d", pa.decimal128(5, 2)), ("at", pa.timestamp("us", "UTC"))]))),
            ("day", pa.date32()),
            ("on", pa.bool_()),
            ("empty", pa.null()),
        ]
    )
    moment = datetime(2024, 3, 1, 12, tzinfo=UTC)
    row = {
        "z": 'x"\n\\',
        'a "b"': [{"d": Decimal("1.10"), "at": moment}, None],
        "day": date(2024, 3, 1),
        "on": True,
        "empty": None,
    }
    path = written(tmp_path, pa.table({"a": pa.array([row, None, {}], kind)}))
    assert values(path) == [
        '{"z":"x\\"\\n\\\\","a \\"b\\"":[{"d":"1.10","at":"2024-03-01T12:00:00Z"},null],"day":"2024-03-01","on":true,'
        '"empty":null}',
        None,
        '{"z":null,"a \\"b\\"":null,"day":null,"on":null,"empty":null}',
    ]


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        (pa.binary(), b"x", "untyped binary"),
        (pa.binary(16), b"0" * 16, "untyped binary"),
        (pa.list_(pa.binary()), [b"x"], "untyped binary"),
        (pa.struct([("b", pa.binary())]), {"b": b"x"}, "untyped binary"),
        (pa.duration("us"), 1, "Duration"),
        (pa.decimal256(76, 0), Decimal(10**75), "decimal of 76 digits, and 38 can be read"),
        (pa.map_(pa.int64(), pa.string()), [(1, "x")], "a map whose keys are no texts"),
    ],
    ids=str,
)
def test_what_has_no_plain_text_is_refused_by_name(tmp_path: Path, kind: pa.DataType, value: Any, said: str) -> None:
    """With the remedy; the other columns can be read."""
    path = written(tmp_path, pa.table({"a": pa.array([value], kind), "b": [1]}))
    with pytest.raises(ExportError, match=rf"column 'a' is .*{said}.*as text, or leave it out.*columns\.properties"):
        values(path)
    assert values(path, "b") == ["1"]


SCALARS = st.one_of(
    st.tuples(st.just(pa.string()), st.lists(st.none() | st.text(st.characters(codec="utf-8")), max_size=8)),
    st.tuples(st.just(pa.int64()), st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), max_size=8)),
    st.tuples(st.just(pa.uint64()), st.lists(st.none() | st.integers(0, 2**64 - 1), max_size=8)),
    st.tuples(st.just(pa.bool_()), st.lists(st.none() | st.booleans(), max_size=8)),
)  # fmt: skip


@given(column=SCALARS, nested=st.booleans(), group=st.integers(1, 5), page=st.sampled_from(["1.0", "2.0"]))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_table_comes_back(
    tmp_path: Path, column: tuple[pa.DataType, list[Any]], nested: bool, group: int, page: str
) -> None:
    """Whatever pyarrow writes, plain or in lists of structs: the text is that of Python, the JSON means the same."""
    kind, given_values = column
    if nested:
        rows: list[Any] = [[{"x": value}, None] for value in given_values]
        array = pa.array(rows, pa.list_(pa.struct([("x", kind)])))
    else:
        rows, array = given_values, pa.array(given_values, kind)
    path = written(tmp_path, pa.table({"a": array}), row_group_size=group, data_page_version=page)
    got = values(path)
    if nested:
        assert [json.loads(text) for text in got] == rows
    else:
        as_text = {True: "true", False: "false", None: None}
        assert got == [as_text[v] if v is None or isinstance(v, bool) else str(v) for v in rows]
