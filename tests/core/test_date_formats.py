"""Declared formats, without what polars passes over in silence."""

import re
from datetime import datetime

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backfill.core.date_formats import check, read
from backfill.core.errors import ConfigurationError

FORMATS = [
    "%Y-%m-%d %H:%M:%S",
    "%Y%m%d%H%M%S",
    "%Y%m%dT%H%M%S",
    "%d.%m.%Y %H:%M:%S",
    "%m/%d/%Y %I:%M:%S %p",
    "%d/%b/%Y:%H:%M:%S",
    "%d %B %Y %H:%M:%S",
    "%H:%M:%S %d.%m.%Y",
    "%Y-%m-%d %H:%M:%S.%f",
    "%S %M %H %d %m %Y",
    "%Y-%j %H:%M:%S",
]


@pytest.mark.parametrize(
    ("declared", "why"),
    [
        ("%H:%M", "no date"),
        ("%Q", "no date"),
        ("%d/%m %H:%M", "no date"),
        ("%d.%m.%Y %I:%M", "hour of the day"),
        ("%Y-%m-%d %H:%M %Z", "%Z"),
        ("%Y-%m-%d %H:%M:%S,%f", "%.f"),
        ("%Y%m%d%H%M%S%3f", "%.f"),
    ],
)
def test_a_format_that_would_misread_is_refused(declared: str, why: str) -> None:
    """Every row would be invalid, or have a time that nobody wrote; the message says which format and why."""
    with pytest.raises(ConfigurationError, match=re.escape(repr(declared))) as caught:
        check(declared)
    assert why in caught.value.message


@pytest.mark.parametrize("declared", FORMATS)
@settings(deadline=None)  # a busy machine is no failure
@given(moment=st.datetimes(datetime(1000, 1, 1), datetime(9999, 12, 30)))  # noqa: DTZ001  # wall clocks
def test_what_python_writes_is_read_as_python_meant_it(declared: str, moment: datetime) -> None:
    """strftime of the same codes is the measure; no real time is taken for a leap second."""
    check(declared)
    if "%f" not in declared:
        moment = moment.replace(microsecond=0)
    text = moment.strftime(declared.replace("%Y", f"{moment.year:04}"))
    got = read(pl.Series([text]), declared)
    assert (got.moment.to_list(), got.leap.to_list()) == ([moment], [False])


@pytest.mark.parametrize("declared", [*FORMATS, "%c", "%FT%T", "%D %r", "%Y-%m-%d %H:%M:%S %z", "%+", "%d %h %Y %X"])
@settings(deadline=None)  # a busy machine is no failure
@given(moment=st.datetimes(datetime(1970, 1, 1), datetime(2067, 12, 30)))  # noqa: DTZ001  # wall clocks
def test_a_leap_second_is_never_the_next_minute(declared: str, moment: datetime) -> None:
    """Whatever the format, seconds of 60 give no moment, and are called what they are."""
    second = moment.replace(second=31, microsecond=0)
    column = pl.Series([second]).dt.replace_time_zone("UTC")
    before, after = (
        column.dt.to_string(
            declared.replace(".%f", "%.f")
            .replace("%S", seconds)
            .replace("%T", f"%H:%M:{seconds}")
            .replace("%X", f"%H:%M:{seconds}")
        )
        for seconds in ("%S", "60")
    )
    if before.item() == after.item():  # the code hides its seconds
        places = [at.start() for at in re.finditer("31", before.item())]
        texts = [before.item()[:at] + "60" + before.item()[at + 2 :] for at in places]
    else:
        texts = [after.item()]
    for text in texts:
        got = read(pl.Series([text]), declared)
        if got.leap.item():
            assert got.moment.item() is None
        elif got.moment.item() is not None:  # another 31 than the seconds', such as the year's
            assert got.moment.item().second == 31
    if len(texts) == 1:
        assert read(pl.Series(texts), declared).leap.to_list() == [True]


def test_a_year_of_two_digits_is_not_antiquity() -> None:
    """Under %Y it is not read, so that another format may, or the row is invalid."""
    assert read(pl.Series(["01.02.24", "01.02.2024"]), "%d.%m.%Y").moment.is_null().to_list() == [True, False]


def test_a_declared_year_of_two_digits_is_read() -> None:
    """Who writes %y has said so; no century but this one's is made of it by polars, and the future is refused later."""
    assert read(pl.Series(["01.02.24 10:00"]), "%d.%m.%y %H:%M").moment.to_list() == [datetime(2024, 2, 1, 10)]  # noqa: DTZ001


def test_python_s_fraction_is_a_fraction() -> None:
    """polars alone reads `.5` of `.%f` as five nanoseconds."""
    got = read(pl.Series(["2024-03-01 10:00:00.5"]), "%Y-%m-%d %H:%M:%S.%f")
    assert got.moment.to_list() == [datetime(2024, 3, 1, 10, 0, 0, 500_000)]  # noqa: DTZ001


@pytest.mark.parametrize("text", ["\u0662\u0660\u0662\u0664-03-01 10:00:00", "2024-03-01 1\u0660:00:00"])
def test_digits_of_other_scripts_are_not_read(text: str) -> None:
    """Not even by a declared format."""
    assert read(pl.Series([text]), "%Y-%m-%d %H:%M:%S").moment.to_list() == [None]
