"""Day and time window on the wall clock of a zone: until when may be sent, and from when again?

Reads no clock: `now` carries the zone (`budget.window_zone`) and is passed in.
"""

import re
from datetime import UTC, datetime, time, timedelta
from typing import NamedTuple


class Window(NamedTuple):
    """From `opens` to `closes` each day; over midnight where it opens later than it closes."""

    opens: time
    closes: time


def parse(text: str) -> Window:
    """`22:00-06:00`. Raises: ValueError for anything else, and for a window without length."""
    found = re.fullmatch(r"([0-9]{2}):([0-9]{2})-([0-9]{2}):([0-9]{2})", text.replace(" ", ""), re.ASCII)
    if found is None:
        raise ValueError('write it as "22:00-06:00"')
    opens_h, opens_m, closes_h, closes_m = map(int, found.groups())
    window = Window(time(opens_h, opens_m), time(closes_h, closes_m))
    if window.opens == window.closes:
        raise ValueError("it has no length")
    return window


def closes_at(now: datetime, window: Window) -> datetime | None:
    """When the window that `now` lies in closes; None outside it."""
    for days in (-1, 0):
        opens = _on(now, window.opens, days)
        closes = _on(now, window.closes, days + (window.closes <= window.opens))
        if opens <= now < closes:
            return closes
    return None


def opens_at(now: datetime, window: Window) -> datetime:
    """When the window opens next, after `now`."""
    today = _on(now, window.opens, 0)
    return today if today > now else _on(now, window.opens, 1)


def day_begins_at(now: datetime, days: int = 0) -> datetime:
    """The midnight at which the day of `now` began, or that so many days later."""
    return _on(now, time(0), days)


def takes_s(calls: int, *, per_second: float, per_day: int | None, window: Window | None) -> float:
    """How long so many calls take on average days, in seconds of the calendar."""
    takes = calls / per_second
    if window is not None:
        opens, closes = (at.hour * 60 + at.minute for at in window)
        takes *= 1440 / ((closes - opens) % 1440)
    if per_day is not None:
        takes = max(takes, calls / per_day * 86_400)
    return takes


def _on(now: datetime, at: time, days: int) -> datetime:
    """That time of day in the zone of `now`, as an instant. A time that a clock change skips is taken as if it had
    not been changed yet."""
    return datetime.combine(now.date() + timedelta(days=days), at, tzinfo=now.tzinfo).astimezone(UTC)
