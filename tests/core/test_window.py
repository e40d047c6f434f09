"""Day and window on the wall clock of a zone."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backfill.core.window import Window, closes_at, day_begins_at, opens_at, parse, takes_s

BERLIN = ZoneInfo("Europe/Berlin")


def berlin(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN)


@pytest.mark.parametrize(
    ("now", "closes", "opens"),
    [
        ("2026-03-10T22:00", "2026-03-11T06:00", "2026-03-11T22:00"),
        ("2026-03-11T05:59:59", "2026-03-11T06:00", "2026-03-11T22:00"),
        ("2026-03-11T06:00", None, "2026-03-11T22:00"),
        ("2026-03-11T21:59", None, "2026-03-11T22:00"),
        ("2026-03-28T23:00", "2026-03-29T06:00", "2026-03-29T22:00"),
    ],
)
def test_a_window_over_midnight(now: str, closes: str | None, opens: str) -> None:
    """It belongs to the evening it opens in, also in the night of a clock change."""
    window = parse("22:00-06:00")
    assert closes_at(berlin(now), window) == (None if closes is None else berlin(closes))
    assert opens_at(berlin(now), window) == berlin(opens)


def test_the_night_of_a_clock_change_is_an_hour_shorter() -> None:
    """From 23:00 to 06:00 there are six hours when the clock goes forward."""
    now = berlin("2026-03-28T23:00")
    closes = closes_at(now, parse("22:00-06:00"))
    assert closes is not None
    assert (closes - day_begins_at(now)).total_seconds() == (23 + 6) * 3600


def test_a_day_begins_at_its_midnight_in_the_zone() -> None:
    """Not at UTC's."""
    assert day_begins_at(berlin("2026-03-11T00:30")).isoformat() == "2026-03-10T23:00:00+00:00"
    assert day_begins_at(berlin("2026-03-11T00:30"), 1).isoformat() == "2026-03-11T23:00:00+00:00"


@pytest.mark.parametrize(
    "text", ["", "22-6", "22:00", "24:00-06:00", "22:60-06:00", "06:00-06:00", "22:00-06:00-07:00"]
)
def test_what_is_no_window_is_refused(text: str) -> None:
    """With a ValueError, which becomes a sentence about the key."""
    with pytest.raises(ValueError, match=r"length|write|must be in"):
        parse(text)


@given(st.times(), st.times(), st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)))  # noqa: DTZ001 - zone below
def test_inside_or_the_next_opening_comes_first(opens: object, closes: object, now: datetime) -> None:
    """Whenever it is, the window closes within a day or opens within a day and a half."""
    window = Window(opens, closes)  # type: ignore[arg-type]
    moment = now.replace(tzinfo=BERLIN, fold=0)
    end = closes_at(moment, window)
    if end is not None:
        assert 0 < (end - moment).total_seconds() <= 25 * 3600
    assert 0 < (opens_at(moment, window) - moment).total_seconds() <= 26 * 3600


def test_how_long_calls_take() -> None:
    """7,200 calls at 1 a second: two hours, a quarter of an eight-hour night, or three days of 2,400."""
    assert takes_s(7200, per_second=1, per_day=None, window=None) == 7200
    assert takes_s(7200, per_second=1, per_day=None, window=parse("22:00-06:00")) == 3 * 7200
    assert takes_s(7200, per_second=1, per_day=2400, window=None) == 3 * 86400
