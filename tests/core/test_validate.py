"""The rules of a row, each with its answer for a missing value."""

import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backfill.core.config import Rows, Time
from backfill.core.errors import ConfigurationError
from backfill.core.validate import FAULTS, INSTANT, Rules, judge, read_instants, rules

EARLIEST, LATEST = (datetime(*day) for day in ((1, 1, 3), (9999, 12, 29)))  # noqa: DTZ001  # wall clocks
JULY = datetime(2024, 7, 1)  # noqa: DTZ001  # a wall clock
NOW = datetime(2025, 1, 1, tzinfo=UTC)
GOOD = {
    "timestamp": "2024-03-01T12:00:00Z",
    "customer_key": "c1",
    "customer_key_name": None,
    "url": "api://shop/1",
    "tid": None,
}


def of(time: Time | None = None, rows: Rows | None = None) -> Rules:
    return rules(time or Time(), rows or Rows(), now=NOW)


def reasons(row: dict[str, str | None], rules: Rules | None = None) -> list[str]:
    text = pl.Schema(dict.fromkeys([*GOOD, "property:a"], pl.String))
    judged = judge(pl.DataFrame([{**GOOD, "property:a": "p", **row}], schema=text), rules or of())
    assert judged.valid.height + judged.invalid.height == 1
    return judged.invalid["reasons"].to_list()[0] if judged.invalid.height else []


def instants(values: Sequence[str | None], time: Time | None = None) -> list[datetime | None]:
    return read_instants(pl.Series(values, dtype=pl.String), of(time)).instant.to_list()


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({}, []),
        ({"timestamp": None}, ["timestamp_missing"]),
        ({"timestamp": "yesterday"}, ["timestamp_unreadable"]),
        ({"timestamp": "2024-02-30T00:00:00Z"}, ["timestamp_unreadable"]),
        ({"timestamp": "2024-03-01T12:00:00"}, ["timestamp_without_zone"]),
        ({"timestamp": "2025-01-01T00:00:00Z"}, []),
        ({"timestamp": "2025-01-01T00:00:00.000001Z"}, ["timestamp_in_future"]),
        ({"customer_key": None}, ["customer_key_missing"]),
        ({"customer_key": " \u00a0\u2003"}, ["customer_key_blank"]),
        ({"customer_key": " c1 "}, []),
        ({"customer_key": "\u200b"}, []),
        ({"customer_key": "a\tb"}, ["customer_key_control_characters"]),
        ({"customer_key": "a\x7f"}, ["customer_key_control_characters"]),
        ({"customer_key": "\x85"}, ["customer_key_blank", "customer_key_control_characters"]),
        ({"customer_key": "ä" * 1000}, []),
        ({"customer_key": "ä" * 1001}, ["customer_key_too_long"]),
        ({"customer_key": None, "customer_key_name": "email"}, ["customer_key_name_without_key"]),
        ({"url": None}, ["url_missing"]),
        ({"url": "shop/1"}, ["url_not_a_uri"]),
        ({"url": "1api://x"}, ["url_not_a_uri"]),
        ({"url": "api:"}, ["url_not_a_uri"]),
        ({"url": "api://a b"}, ["url_not_a_uri"]),
        ({"url": "api://x\n"}, ["url_not_a_uri"]),
        ({"url": "urn:x"}, []),
        (
            {"timestamp": "x", "customer_key": " ", "url": "-"},
            ["timestamp_unreadable", "customer_key_blank", "url_not_a_uri"],
        ),
        (dict.fromkeys(GOOD), ["timestamp_missing", "customer_key_missing", "url_missing"]),
    ],
)
def test_a_row_leaves_with_all_its_reasons(row: dict[str, str | None], expected: list[str]) -> None:
    """Each rule finds its fault and no other's; a row with several has them all."""
    assert reasons(row) == expected


def test_a_key_may_be_missing_where_none_is_required() -> None:
    """But a key that is there must still be a good one, and a name alone still says nothing."""
    optional = of(rows=Rows(customer_key_required=False))
    assert reasons({"customer_key": None}, optional) == []
    assert reasons({"customer_key": " "}, optional) == ["customer_key_blank"]
    assert reasons({"customer_key": None, "customer_key_name": "n"}, optional) == ["customer_key_name_without_key"]


def test_bounds_are_inclusive() -> None:
    """The instant of the bound itself is still in."""
    bounded = of(Time(not_before="2024-01-01T00:00:00+01:00", not_after="2024-06-30T23:59:59Z"))
    assert reasons({"timestamp": "2023-12-31T23:00:00Z"}, bounded) == []
    assert reasons({"timestamp": "2023-12-31T22:59:59Z"}, bounded) == ["timestamp_before_not_before"]
    assert reasons({"timestamp": "2024-06-30T23:59:59Z"}, bounded) == []
    assert reasons({"timestamp": "2024-07-01T00:00:00Z"}, bounded) == ["timestamp_in_future"]


def test_no_rule_answers_null() -> None:
    """`when(null)` does not fire: a rule that answered null would let the row through in silence."""
    empty = pl.DataFrame([dict.fromkeys(GOOD)], schema=dict.fromkeys(GOOD, pl.String)).with_columns(
        pl.lit(None, INSTANT).alias("timestamp"), given=pl.lit(False), zoneless=pl.lit(False)
    )
    for time in (Time(), Time(not_before="2024-01-01T00:00:00Z")):
        for reason, fault in FAULTS.items():
            assert empty.select(fault(of(time))).item() is not None, reason


def test_invalid_rows_keep_their_place_and_lose_their_content() -> None:
    """What the ledger needs stays; the address and the properties go."""
    rows = pl.DataFrame(
        {**{k: [v] * 2 for k, v in GOOD.items()}, "property:a": ["a", "b"], "row": [1, 2]}
    ).with_columns(pl.Series("url", ["api://x", None]), pl.col("customer_key_name", "tid").cast(pl.String))
    judged = judge(rows, of())
    assert judged.valid["row"].to_list() == [1]
    assert judged.invalid.columns == ["timestamp", "customer_key", "customer_key_name", "tid", "row", "reasons"]
    assert judged.invalid["timestamp"].to_list() == [datetime(2024, 3, 1, 12, tzinfo=UTC)]
    assert judge(rows.clear(), of()).invalid.schema == judged.invalid.schema


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-03-01T12:00:00Z", datetime(2024, 3, 1, 12, tzinfo=UTC)),
        ("2024-03-01t12:00:00z", datetime(2024, 3, 1, 12, tzinfo=UTC)),
        ("2024-03-01 12:00:00+02:00", datetime(2024, 3, 1, 10, tzinfo=UTC)),
        ("2024-03-01T12:00:00-0530", datetime(2024, 3, 1, 17, 30, tzinfo=UTC)),
        ("2024-03-01T12:00Z", datetime(2024, 3, 1, 12, tzinfo=UTC)),
        ("2024-03-01T12:00:00.5Z", datetime(2024, 3, 1, 12, 0, 0, 500_000, tzinfo=UTC)),
        ("2024-03-01T12:00:00,123456789Z", datetime(2024, 3, 1, 12, 0, 0, 123_456, tzinfo=UTC)),
        ("2024-02-29T23:59:59+00:00", datetime(2024, 2, 29, 23, 59, 59, tzinfo=UTC)),
        ("2023-02-29T23:59:59Z", None),
        ("2024-03-01T24:00:00Z", None),
        ("2024-03-01T23:59:60Z", None),
        ("2024-13-01T00:00:00Z", None),
        ("2024-3-1T00:00:00Z", None),
        ("+2024-03-01T00:00:0Z", None),
        ("2024-03-01T12:00:00+24:00", None),
        ("2024-03-01T12:00:00Z ", None),
        ("0000-01-01T00:00:00Z", None),
        ("20240301T120000Z", None),
        ("1709294400", None),
    ],
)
def test_iso_8601_is_read_or_refused_never_shifted(text: str, expected: datetime | None) -> None:
    """Alone, and after a value of another shape, so that both ways of reading answer the same."""
    assert instants([text]) == [expected]
    first = "2024-01-01T00:00:00Z"
    assert instants([first, text])[1] == expected
    assert instants([None, "2024-01-01T00:00:00+01:00", text])[2] == expected


@given(
    st.lists(
        st.tuples(
            st.datetimes(EARLIEST, LATEST),
            st.sampled_from(["T", " "]),
            st.integers(0, 6),
            st.integers(-1439, 1439),
            st.sampled_from(["Z", "hm", "h:m"]),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_every_spelling_of_an_instant_is_that_instant(parts: list[tuple[datetime, str, int, int, str]]) -> None:
    """Python's own reading of the same moment is the measure, at any precision, offset and mixture of shapes."""
    texts: list[str | None] = []
    expected = []
    for moment, separator, digits, minutes, form in parts:
        micro = moment.microsecond // 10 ** (6 - digits) * 10 ** (6 - digits)
        moment = moment.replace(microsecond=micro)
        text = moment.strftime("%Y").zfill(4) + moment.strftime(f"-%m-%d{separator}%H:%M:%S")
        text += f".{micro:06}"[: digits + 1] if digits else ""
        if form == "Z":
            offset = UTC
            text += "Z"
        else:
            offset = timezone(timedelta(minutes=minutes))
            sign, (hours, rest) = "-" if minutes < 0 else "+", divmod(abs(minutes), 60)
            text += f"{sign}{hours:02}:{rest:02}" if form == "h:m" else f"{sign}{hours:02}{rest:02}"
        texts.append(text)
        expected.append(moment.replace(tzinfo=offset).astimezone(UTC))
    assert instants(texts) == expected


def test_a_declared_zone_reads_times_without_offset() -> None:
    """Summer and winter have their own offsets, a date is its midnight; a time skipped or repeated is unread."""
    berlin = Time(zone="Europe/Berlin")
    texts = ["2024-01-15T12:00:00", "2024-07-15 12:00", "2024-07-15", "2024-07-15T12:00:00Z"]
    assert [i and i.hour for i in instants(texts, berlin)] == [11, 10, 22, 12]
    assert instants(["2024-03-31T02:30:00", "2024-10-27T02:30:00"], berlin) == [None, None]
    read = read_instants(pl.Series(["2024-03-31T02:30:00"]), of(berlin))
    assert read.zoneless.to_list() == [False]


def test_declared_formats_are_tried_in_order_and_alone() -> None:
    """The first that fits wins; ISO 8601 is no longer read unless it is declared."""
    declared = Time(zone="UTC", formats=["%d.%m.%Y %H:%M", "%m/%d/%Y %H:%M", "epoch_ms"])
    assert instants(
        ["02.03.2024 10:00", "03/02/2024 10:00", "1709373600000", None, "2024-03-02T10:00:00Z"], declared
    ) == [
        datetime(2024, 3, 2, 10, tzinfo=UTC),
        datetime(2024, 3, 2, 10, tzinfo=UTC),
        datetime(2024, 3, 2, 10, tzinfo=UTC),
        None,
        None,
    ]
    assert instants(["30.02.2024 10:00"], declared) == [None]


def test_a_declared_format_carries_its_zone() -> None:
    """%z and a plain Z say which instant it is; without them a zone must be declared."""
    assert instants(["1/3/2024 12:00 +0200"], Time(formats=["%d/%m/%Y %H:%M %z"])) == [
        datetime(2024, 3, 1, 10, tzinfo=UTC)
    ]
    assert instants(["2024-03-01 12:00Z"], Time(formats=["%Y-%m-%d %H:%MZ"])) == [datetime(2024, 3, 1, 12, tzinfo=UTC)]
    read = read_instants(pl.Series(["2024-03-01 12:00"]), of(Time(formats=["%Y-%m-%d %H:%M"])))
    assert (read.instant.to_list(), read.zoneless.to_list()) == ([None], [True])


@pytest.mark.parametrize(
    ("column", "zone", "expected"),
    [
        (pl.Series([date(2024, 7, 1)]), "Europe/Berlin", datetime(2024, 6, 30, 22, tzinfo=UTC)),
        (pl.Series([date(2024, 7, 1)]), None, None),
        (pl.Series([JULY], dtype=pl.Datetime("ms")), "UTC", datetime(2024, 7, 1, tzinfo=UTC)),
        (pl.Series([JULY], dtype=pl.Datetime("ns")), None, None),
        (
            pl.Series([JULY]).dt.replace_time_zone("Asia/Tokyo"),
            None,
            datetime(2024, 6, 30, 15, tzinfo=UTC),
        ),
        (pl.Series([2**62]).cast(pl.Datetime("ms")), "UTC", None),
    ],
)
def test_typed_timestamps_follow_the_same_rules(column: pl.Series, zone: str | None, expected: Any) -> None:
    """With a zone an instant; without one as text without offset; a count beyond the calendar is unreadable."""
    assert read_instants(column, of(Time(zone=zone))).instant.to_list() == [expected]


@pytest.mark.parametrize("declared", ["%H:%M", "%Q", "%d/%m %H:%M"])
def test_a_format_that_describes_no_date_is_refused(declared: str) -> None:
    """Every row would be invalid, or have a day that nobody wrote."""
    with pytest.raises(ConfigurationError, match=re.escape(declared)):
        of(Time(formats=[declared]))
