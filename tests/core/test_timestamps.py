"""Timestamps as exports spell them: Python's own reading is the measure."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal
from zoneinfo import ZoneInfo, available_timezones

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backfill.core.config import EPOCHS, Time
from backfill.core.timestamps import INSTANT, read_instants, spelling

EARLIEST, LATEST = (datetime(*day) for day in ((1, 1, 3), (9999, 12, 29)))  # noqa: DTZ001  # wall clocks
JULY = datetime(2024, 7, 1)  # noqa: DTZ001  # a wall clock
START = datetime(1970, 1, 1, tzinfo=UTC)

_LANDS = ("America/", "Europe/", "Asia/", "Africa/", "Australia/", "Pacific/", "Atlantic/", "Antarctica/", "Indian/")
ZONES = sorted(name for name in available_timezones() if name.startswith(_LANDS))


def read(values: Sequence[str | None], **time: Any) -> list[datetime | str | None]:
    """For each value its instant, else the reason why there is none."""
    got = read_instants(pl.Series(values, dtype=pl.String), spelling(Time(**time)))
    assert got.instant.dtype == INSTANT
    assert not (got.instant.is_not_null() & got.fault.is_not_null()).any()
    return [fault or instant for instant, fault in zip(*(part.to_list() for part in got), strict=True)]


def everywhere(text: str, **time: Any) -> datetime | str | None:
    """Read alone, and after values of other shapes, so that all ways of reading must answer the same."""
    alone = read([text], **time)[0]
    for first in (
        "2024-01-01T00:00:00Z",
        "2024-01-01 00:00:00.5",
        "2024-01-01T00:00:00+01:00",
        "2024-01-01T00:00:00-0100",
    ):
        assert read([first, text], **time)[1] == alone, first
    assert read([None, "x", text], **time)[2] == alone
    return alone


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-03-01T12:00:00Z", datetime(2024, 3, 1, 12, tzinfo=UTC)),
        ("2024-03-01t12:00:00z", datetime(2024, 3, 1, 12, tzinfo=UTC)),
        ("2024-03-01 12:00:00+02:00", datetime(2024, 3, 1, 10, tzinfo=UTC)),
        ("2024-03-01 12:00:00 +0200", datetime(2024, 3, 1, 10, tzinfo=UTC)),
        ("2024-03-01 12:00:00 UTC", datetime(2024, 3, 1, 12, tzinfo=UTC)),
        ("2024-03-01T12:00:00-0530", datetime(2024, 3, 1, 17, 30, tzinfo=UTC)),
        ("2024-03-01T12:00:00-05", datetime(2024, 3, 1, 17, tzinfo=UTC)),
        ("2024-03-01T12:00:00-00:00", datetime(2024, 3, 1, 12, tzinfo=UTC)),
        ("2024-03-01T12:00:00+23:59", datetime(2024, 2, 29, 12, 1, tzinfo=UTC)),
        ("2024-03-01T12:00Z", datetime(2024, 3, 1, 12, tzinfo=UTC)),
        ("2024-03-01T12Z", datetime(2024, 3, 1, 12, tzinfo=UTC)),
        ("2024-03-01T12:00:00.5Z", datetime(2024, 3, 1, 12, 0, 0, 500_000, tzinfo=UTC)),
        ("2024-03-01T12:00:00,123456789Z", datetime(2024, 3, 1, 12, 0, 0, 123_456, tzinfo=UTC)),
        ("2024-03-01T12:00:59.999999999Z", datetime(2024, 3, 1, 12, 0, 59, 999_999, tzinfo=UTC)),
        ("1969-12-31T23:59:59.9999999Z", datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)),
        ("2024-02-29T23:59:59+00:00", datetime(2024, 2, 29, 23, 59, 59, tzinfo=UTC)),
        ("20240301T120000Z", datetime(2024, 3, 1, 12, tzinfo=UTC)),
        ("20240301T1200+0100", datetime(2024, 3, 1, 11, tzinfo=UTC)),
        ("20240301T12Z", datetime(2024, 3, 1, 12, tzinfo=UTC)),
        ("2024-061T12:00Z", datetime(2024, 3, 1, 12, tzinfo=UTC)),
        ("2024061T12Z", datetime(2024, 3, 1, 12, tzinfo=UTC)),
        ("2024-W09-5T12:00Z", datetime(2024, 3, 1, 12, tzinfo=UTC)),
        ("2024W095T12Z", datetime(2024, 3, 1, 12, tzinfo=UTC)),
        ("2020-W53-7T00Z", datetime(2021, 1, 3, tzinfo=UTC)),
        ("2024-W01-1T00Z", datetime(2024, 1, 1, tzinfo=UTC)),
        # Midnight at the end of the day, by ISO 8601; nothing after it.
        ("2024-02-29T24:00:00Z", datetime(2024, 3, 1, tzinfo=UTC)),
        ("2024-12-31T24:00:00.000Z", datetime(2025, 1, 1, tzinfo=UTC)),
        ("2024-02-29T24Z", datetime(2024, 3, 1, tzinfo=UTC)),
        ("2024-02-29T24:00:01Z", "timestamp_unreadable"),
        ("2024-02-29T24:00:00.000001Z", "timestamp_unreadable"),
        ("2024-02-29T25:00:00Z", "timestamp_unreadable"),
        ("2023-02-29T23:59:59Z", "timestamp_unreadable"),
        ("2023-366", "timestamp_unreadable"),
        ("2024-000", "timestamp_unreadable"),
        ("2023-W53-1", "timestamp_unreadable"),
        ("2024-W00-1", "timestamp_unreadable"),
        ("2024-W10", "timestamp_unreadable"),
        ("2024-03", "timestamp_unreadable"),
        ("2024061", "timestamp_unreadable"),
        ("2024-06-30T23:59:60Z", "timestamp_leap_second"),
        ("2024-06-30T23:59:60.5+00:00", "timestamp_leap_second"),
        ("20240630T235960Z", "timestamp_leap_second"),
        ("2024-06-30T23:60:00Z", "timestamp_unreadable"),
        ("2024-06-30T23:59:61Z", "timestamp_unreadable"),
        # By ISO half a minute; by whom it was written, who knows.
        ("2024-03-01T12:30.5Z", "timestamp_unreadable"),
        ("2024-13-01T00:00:00Z", "timestamp_unreadable"),
        ("2024-3-1T00:00:00Z", "timestamp_unreadable"),
        ("24-03-01T00:00:00Z", "timestamp_unreadable"),
        ("01/02/2024 10:00", "timestamp_unreadable"),
        ("+2024-03-01T00:00:0Z", "timestamp_unreadable"),
        ("12024-03-01T00:00:00Z", "timestamp_unreadable"),
        ("2024-03-01T12:00:00+24:00", "timestamp_unreadable"),
        ("2024-03-01T12:00:00+01:60", "timestamp_unreadable"),
        ("2024-03-01T12:00:00Z ", "timestamp_unreadable"),
        (" 2024-03-01T12:00:00Z", "timestamp_unreadable"),
        ("2024-03-01T12:00:00Z\n", "timestamp_unreadable"),
        ("2024-03-01T12:00:00 CET", "timestamp_unreadable"),
        ("0000-01-01T00:00:00Z", "timestamp_unreadable"),
        ("\u0662\u0660\u0662\u0664-03-01T12:00:00Z", "timestamp_unreadable"),
        ("2024-03-01T1\u0662:00:00Z", "timestamp_unreadable"),
        ("2024-03-01T12:00:00.\uff15Z", "timestamp_unreadable"),
        ("20240301120000", "timestamp_number"),
        ("1709294400", "timestamp_number"),
        ("1709294400000.0", "timestamp_number"),
        ("1.54111E+12", "timestamp_spreadsheet_number"),
        ("1,54111E+12", "timestamp_spreadsheet_number"),
        ("45292.5", "timestamp_spreadsheet_number"),
        ("45292,5", "timestamp_spreadsheet_number"),
        ("45292", "timestamp_spreadsheet_number"),
        ("########", "timestamp_spreadsheet_number"),
        ("#VALUE!", "timestamp_spreadsheet_number"),
    ],
)
def test_iso_8601_is_read_or_refused_never_shifted(text: str, expected: datetime | str) -> None:
    """The same whatever shapes stand before it."""
    assert everywhere(text) == expected


def test_null_is_neither_read_nor_at_fault() -> None:
    """A missing timestamp is another rule's matter, whatever is declared."""
    assert read([None]) == read([None], formats=["epoch_ms"]) == read([None], zone="Europe/Berlin") == [None]


@settings(deadline=None)  # a busy machine is no failure
@given(
    st.lists(
        st.tuples(
            st.datetimes(EARLIEST, LATEST),
            st.sampled_from(["T", " "]),
            st.integers(0, 9),
            st.sampled_from([".", ","]),
            st.integers(-1439, 1439),
            st.sampled_from(["Z", "hm", "h:m"]),
            st.booleans(),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_every_spelling_of_an_instant_is_that_instant(
    parts: list[tuple[datetime, str, int, str, int, str, bool]],
) -> None:
    """`datetime.fromisoformat` is the measure, at any precision, offset and mixture of shapes."""
    texts: list[str | None] = []
    for moment, between, digits, point, minutes, form, basic in parts:
        text = f"{moment.year:04}" + moment.strftime(f"-%m-%d{between}%H:%M:%S")
        if basic:
            text = text.replace("-", "").replace(":", "")
        text += f"{point}{moment.microsecond:06}789"[: digits + 1] if digits else ""
        sign, (hours, rest) = "-" if minutes < 0 else "+", divmod(abs(minutes), 60)
        text += {"Z": "Z", "h:m": f"{sign}{hours:02}:{rest:02}", "hm": f"{sign}{hours:02}{rest:02}"}[form]
        texts.append(text)
    expected = [datetime.fromisoformat(text or "").astimezone(UTC) for text in texts]
    assert read(texts) == expected


@settings(deadline=None)  # a busy machine is no failure
@given(
    st.text("0123456789-:TtWwZz+., ", max_size=32)
    | st.from_regex(r"\A[0-9]{4}-?[0-9W]{2}-?[0-9]{2}[T ]?[0-9:]{0,8}Z?\Z")
)
def test_no_text_is_read_as_another_instant_than_python_reads(text: str) -> None:
    """What both read, they read the same; the few forms that only we read are those that the table above has."""
    ours = everywhere(text, zone="UTC")
    try:
        known = datetime.fromisoformat(text)
    except ValueError:
        return
    if isinstance(ours, datetime):
        assert ours == (known if known.tzinfo else known.replace(tzinfo=UTC))


# --------------------------------------------------------------------------------------------------------- zones


@pytest.mark.parametrize("fold", ["refuse", "earlier", "later"])
@settings(deadline=None)  # a busy machine is no failure
@given(
    zone=st.sampled_from(ZONES),
    year=st.integers(1970, 2037),
    second=st.integers(0, 366 * 86_400),
    near=st.integers(-10_000, 10_000),
)
def test_wall_clocks_of_every_zone_are_read_as_zoneinfo_says(
    fold: Literal["refuse", "earlier", "later"], zone: str, year: int, second: int, near: int
) -> None:
    """Also around the changes of the clock: what it skipped is refused, what it showed twice goes by `time.fold`."""
    some = datetime(year, 1, 1) + timedelta(seconds=second)  # noqa: DTZ001  # a wall clock
    for wall in (some, _near_a_change(zone, year, near)):
        first, second_time = (wall.replace(tzinfo=ZoneInfo(zone), fold=at).astimezone(UTC) for at in (0, 1))
        if first == second_time:
            expected: datetime | str = first
        elif first > second_time:  # as zoneinfo tells a gap
            expected = "timestamp_in_gap"
        else:
            taken: dict[str, datetime | str] = {
                "refuse": "timestamp_ambiguous",
                "earlier": first,
                "later": second_time,
            }
            expected = taken[fold]
        assert read([wall.isoformat()], zone=zone, fold=fold) == [expected], (zone, wall)


def _near_a_change(zone: str, year: int, seconds: int) -> datetime:
    """A wall clock so many seconds from the first change of the year, or from its beginning where there is none."""
    clock, day = ZoneInfo(zone), datetime(year, 1, 1, tzinfo=UTC)
    while (
        day.year == year
        and day.astimezone(clock).utcoffset() == (day + timedelta(days=1)).astimezone(clock).utcoffset()
    ):
        day += timedelta(days=1)
    early, late = day, day + timedelta(days=1)
    while late - early > timedelta(seconds=1):
        middle = early + (late - early) // 2
        same = middle.astimezone(clock).utcoffset() == day.astimezone(clock).utcoffset()
        early, late = (middle, late) if same else (early, middle)
    return late.replace(microsecond=0).astimezone(clock).replace(tzinfo=None) + timedelta(seconds=seconds)


def test_a_zone_is_only_for_times_without_an_offset() -> None:
    """Summer and winter have their own offsets, a date is its midnight, and an offset that is written stands."""
    texts = ["2024-01-15T12:00:00", "2024-07-15 12:00", "2024-07-15", "2024-07-15T12:00:00Z"]
    assert [i.hour for i in read(texts, zone="Europe/Berlin") if isinstance(i, datetime)] == [11, 10, 22, 12]
    assert read(texts)[:3] == ["timestamp_without_zone"] * 3


def test_a_day_that_a_zone_left_out_is_a_gap() -> None:
    """Samoa had no 30 December 2011."""
    assert read(["2011-12-30T12:00:00"], zone="Pacific/Apia") == ["timestamp_in_gap"]


def test_beyond_the_known_rules_of_a_zone_nothing_is_read() -> None:
    """polars has no summer time after 2099; an hour off would be silent. UTC has no rules."""
    assert read(["2100-07-01T12:00:00"], zone="Europe/Berlin") == ["timestamp_unreadable"]
    assert read(["2100-07-01T12:00:00"], zone="UTC") == [datetime(2100, 7, 1, 12, tzinfo=UTC)]


# ------------------------------------------------------------------------------------------------------ declared


def test_declared_formats_are_tried_in_order_and_alone() -> None:
    """The first that fits wins; ISO 8601 is no longer read unless it is declared."""
    formats = ["%d.%m.%Y %H:%M", "%m/%d/%Y %H:%M", "epoch_ms"]
    texts = ["02.03.2024 10:00", "03/02/2024 10:00", "1709373600000"]
    assert read(texts, zone="UTC", formats=formats) == [datetime(2024, 3, 2, 10, tzinfo=UTC)] * 3
    refused = [None, "2024-03-02T10:00:00Z", "30.02.2024 10:00", "02.03.24 10:00"]
    assert read(refused, zone="UTC", formats=formats) == [None, *["timestamp_unreadable"] * 3]


def test_day_and_month_are_what_the_first_fitting_format_says() -> None:
    """The order of the list is the declaration; the other is tried only where the first cannot be."""
    formats = ["%d/%m/%Y", "%m/%d/%Y"]
    assert read(["01/02/2024", "01/13/2024"], zone="UTC", formats=formats) == [
        datetime(2024, 2, 1, tzinfo=UTC),
        datetime(2024, 1, 13, tzinfo=UTC),
    ]


def test_a_declared_format_carries_its_zone() -> None:
    """%z and a plain Z say which instant it is; without them a zone must be declared, and its gaps stay gaps."""
    assert read(["1/3/2024 12:00 +0200"], formats=["%d/%m/%Y %H:%M %z"]) == [datetime(2024, 3, 1, 10, tzinfo=UTC)]
    assert read(["2024-03-01 12:00Z"], formats=["%Y-%m-%d %H:%MZ"]) == [datetime(2024, 3, 1, 12, tzinfo=UTC)]
    plain = ["%Y-%m-%d %H:%M"]
    assert read(["2024-03-01 12:00"], formats=plain) == ["timestamp_without_zone"]
    walls = ["2024-03-31 02:30", "2024-10-27 02:30"]
    assert read(walls, zone="Europe/Berlin", formats=plain) == ["timestamp_in_gap", "timestamp_ambiguous"]


def test_a_leap_second_is_refused_under_declared_formats_too() -> None:
    """No further format is tried on it, and the rows beside it are read."""
    texts = ["30.06.2024 23:59:60", "30.06.2024 23:59:59", "01.01.1960 00:00:00"]
    got = read(texts, zone="UTC", formats=["%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M:60"])
    assert got[0] == "timestamp_leap_second"
    assert got[1:] == [datetime(2024, 6, 30, 23, 59, 59, tzinfo=UTC), datetime(1960, 1, 1, tzinfo=UTC)]


# -------------------------------------------------------------------------------------------------------- counts


@settings(deadline=None)  # a busy machine is no failure
@given(
    moment=st.datetimes(EARLIEST, datetime(9999, 12, 29)),  # noqa: DTZ001  # wall clocks
    unit=st.sampled_from(EPOCHS),
    written=st.sampled_from(["whole", "fraction", "long fraction", "float"]),
)
def test_counts_are_the_instants_that_they_count_to(moment: datetime, unit: str, written: str) -> None:
    """Negative ones too. A fraction is kept to the microsecond, and what is finer never leaves its second."""
    us = (moment.replace(tzinfo=UTC) - START) // timedelta(microseconds=1)
    per_us = {"epoch_s": 1_000_000, "epoch_ms": 1_000, "epoch_us": 1}[unit]
    digits = {"epoch_s": 6, "epoch_ms": 3, "epoch_us": 0}[unit]
    sign, (whole, rest) = "-" if us < 0 else "", divmod(abs(us), per_us)
    text = {
        "whole": f"{sign}{whole}",
        "float": f"{sign}{whole}.0",
        "fraction": f"{sign}{whole}." + (f"{rest:0{digits}}" if digits else "0"),
        "long fraction": f"{sign}{whole}." + (f"{rest:0{digits}}" if digits else "") + "5",
    }[written]
    if written in ("whole", "float"):
        us = whole * per_us * (-1 if us < 0 else 1)
    elif written == "long fraction" and us < 0:
        us -= 1  # towards the past: half a microsecond further from 1970
    expected = START + timedelta(microseconds=us)
    for others in ([], ["1709373600.5"]):
        got = read([text, *others], formats=[unit], not_before="0001-01-01T00:00:00Z")
        assert got[0] == (expected if us else START)


@pytest.mark.parametrize(
    ("unit", "text"),
    [
        ("epoch_s", "1709373600000"),
        ("epoch_s", "1709373600000000"),
        ("epoch_ms", "1709373600"),
        ("epoch_ms", "1709373600000000"),
        ("epoch_us", "1709373600"),
        ("epoch_us", "1709373600000"),
        ("epoch_s", "86400"),
        ("epoch_s", "999999999999999999"),
        ("epoch_us", "-999999999999999999"),
    ],
)
def test_a_count_in_another_unit_is_not_an_instant(unit: str, text: str) -> None:
    """Seconds for milliseconds and the reverse end in early 1970, or in a year that no calendar or export has."""
    got = read([text], formats=[unit])[0]
    if isinstance(got, datetime):
        assert got.year > 9000  # which is in the future
    else:
        assert got == ("timestamp_spreadsheet_number" if len(text) == 5 else "timestamp_epoch_unit")


def test_early_1970_is_meant_by_who_says_so() -> None:
    """A declared `not_before` at or before it; one after it changes nothing."""
    early = [START + timedelta(seconds=86_400)]
    assert read(["86400"], formats=["epoch_s"], not_before="1970-01-01T00:00:00Z") == early
    assert read(["8640000"], formats=["epoch_ms"], not_before="2000-01-01T00:00:00Z") == ["timestamp_epoch_unit"]
    assert read(["0", "-1"], formats=["epoch_s"]) == [START, START - timedelta(seconds=1)]


def test_mixed_units_are_told_apart_in_any_order() -> None:
    """A count that is no plausible instant in one declared unit is tried in the next."""
    texts = ["1709373600", "1709373600000"]
    for formats in (["epoch_s", "epoch_ms"], ["epoch_ms", "epoch_s"]):
        assert read(texts, formats=formats) == [datetime(2024, 3, 2, 10, tzinfo=UTC)] * 2


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("1.7E+9", "timestamp_spreadsheet_number"),
        ("1,709,373,600", "timestamp_unreadable"),
        ("1709373600,5", "timestamp_unreadable"),
        ("1 709 373 600", "timestamp_unreadable"),
        ("\u0661\u0667\u0660\u0669\u0663\u0667\u0663\u0666\u0660\u0660", "timestamp_unreadable"),
        ("0x65E1A1E0", "timestamp_unreadable"),
        ("", "timestamp_unreadable"),
    ],
)
def test_what_is_no_plain_count_is_refused(text: str, fault: str) -> None:
    """No separators, no exponent, no other digits."""
    assert read([text], formats=["epoch_s"]) == [fault]
    assert read(["1709373600", text], formats=["epoch_s"])[1] == fault


# --------------------------------------------------------------------------------------------------------- typed


@pytest.mark.parametrize(
    ("column", "time", "expected"),
    [
        (pl.Series([date(2024, 7, 1)]), {"zone": "Europe/Berlin"}, datetime(2024, 6, 30, 22, tzinfo=UTC)),
        (pl.Series([date(2024, 7, 1)]), {}, "timestamp_without_zone"),
        (pl.Series([JULY], dtype=pl.Datetime("ms")), {"zone": "UTC"}, datetime(2024, 7, 1, tzinfo=UTC)),
        (pl.Series([JULY], dtype=pl.Datetime("ns")), {}, "timestamp_without_zone"),
        (pl.Series([JULY]).dt.replace_time_zone("Asia/Tokyo"), {}, datetime(2024, 6, 30, 15, tzinfo=UTC)),
        (pl.Series([datetime(2024, 3, 31, 2, 30)]), {"zone": "Europe/Berlin"}, "timestamp_in_gap"),  # noqa: DTZ001
        (pl.Series([datetime(2024, 10, 27, 2, 30)]), {"zone": "Europe/Berlin"}, "timestamp_ambiguous"),  # noqa: DTZ001
        (pl.Series([2**62]).cast(pl.Datetime("ms")), {"zone": "UTC"}, "timestamp_unreadable"),
        (pl.Series([2**31 - 1], dtype=pl.Int32).cast(pl.Date), {"zone": "UTC"}, "timestamp_unreadable"),
        (pl.Series([None], dtype=pl.Datetime("us")), {"zone": "UTC"}, None),
        (
            pl.Series([-1]).cast(pl.Datetime("ns", "UTC")),
            {},
            datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        ),
    ],
)
def test_typed_timestamps_follow_the_same_rules(column: pl.Series, time: dict[str, Any], expected: Any) -> None:
    """With a zone an instant; without one as text without offset; a count beyond the calendar is unreadable."""
    got = read_instants(column, spelling(Time(**time)))
    assert (got.fault.item() or got.instant.item()) == expected
