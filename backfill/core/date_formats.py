"""Declared formats of dates: strptime codes as people know them, read by polars without what it passes over in silence.

polars reads a leap second as the next minute's first, `.%f` as nanoseconds, a name of a zone as nothing, and a year of
two digits as one of antiquity. Never knows a zone.
"""

import re
from datetime import UTC, datetime
from typing import NamedTuple

import polars as pl

from backfill.core.errors import ConfigurationError

_FIRST_YEAR = 1000
"""Under %Y "24" is the year 24, which nobody has meant who exports interactions."""

_EXAMPLE = datetime(2024, 12, 25, 13, 45, 58, tzinfo=UTC)


class Read(NamedTuple):
    """What a format read of a column: Datetime(us), with zone UTC where the format has offsets, null where it did not
    fit. `leap`: where it did, but for seconds of 60.
    """

    moment: pl.Series
    leap: pl.Series


def check(declared: str) -> None:
    """Raises ConfigurationError for a format that cannot read back what it wrote.

    It would refuse every row, or shift it.
    """
    if re.search(r"%[-_0]?Z", declared):
        raise ConfigurationError(
            f"time.formats: {declared!r} holds %Z, the name of a zone, which says no offset by itself (CST has three). "
            "Use %z where the export has offsets; else write the name as plain text and declare time.zone."
        )
    if re.search(r"%[369]?f", _for_polars(declared).replace("%.f", "")):
        raise ConfigurationError(
            f"time.formats: {declared!r} holds a fraction that is not read behind a point. Write %.f, which has the "
            "point in it, as in '%d.%m.%Y %H:%M:%S%.f'."
        )
    try:
        written = pl.Series([_EXAMPLE]).dt.to_string(_for_polars(declared))
        read = written.str.to_datetime(_for_polars(declared), time_unit="us", strict=False).to_list()[0]
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        read = None
    # What a format leaves out is zero; what it says twelve hours early, it says wrong.
    cuts = ((0, 0, 0), (_EXAMPLE.hour, 0, 0), (_EXAMPLE.hour, _EXAMPLE.minute, 0))
    moments = [_EXAMPLE, *(_EXAMPLE.replace(hour=hour, minute=minute, second=second) for hour, minute, second in cuts)]
    if read is None or read.replace(tzinfo=UTC) not in moments:
        raise ConfigurationError(
            f"time.formats: {declared!r} describes no date, or not the hour of the day. Use strptime codes, such as "
            "'%d.%m.%Y %H:%M:%S' or '%m/%d/%Y %I:%M %p', or one of epoch_s, epoch_ms, epoch_us."
        )


def read(column: pl.Series, declared: str) -> Read:
    """Read a column of text by one format."""
    moment = column.str.to_datetime(_for_polars(declared), time_unit="us", strict=False)
    leap = _is_leap_second(column, moment, declared)
    good = (~leap & (moment.dt.year() >= _FIRST_YEAR)).fill_null(False)
    return Read(moment.zip_with(good, pl.repeat(None, len(moment), dtype=moment.dtype, eager=True)), leap)


def _for_polars(declared: str) -> str:
    """Python's `.%f` is a fraction; to polars it is a count of nanoseconds after a point."""
    return declared.replace(".%f", "%.f")


_EXPANSIONS = {
    "c": "%a %b %e %H:%M:%S %Y",
    "+": "%Y-%m-%dT%H:%M:%S%.f%:z",
    "r": "%I:%M:%S %p",
    "T": "%H:%M:%S",
    "X": "%H:%M:%S",
    "R": "%H:%M",
    "F": "%Y-%m-%d",
    "D": "%m/%d/%y",
    "x": "%m/%d/%y",
    "v": "%e-%b-%Y",
    "h": "%b",
}
_SHAPES = {
    **dict.fromkeys("YG", "[0-9]{4}"),
    **dict.fromkeys("mdHMIyCgVUWekl", r"\s*[0-9]{1,2}"),
    "S": r"\s*([0-9]{1,2})",
    "j": r"\s*[0-9]{1,3}",
    **dict.fromkeys("uwq", "[0-9]"),
    **dict.fromkeys("BbAa", r"\p{L}+\.?"),
    **dict.fromkeys("pP", r"\p{L}\.?\p{L}\.?"),
    "f": "[.0-9]*",
    "z": r"\s*(?:[Zz]|[+-][0-9:]{2,8})",
    "s": "[+-]?[0-9]+",
    **dict.fromkeys("nt", r"\s*"),
    "%": "%",
}
_CODE = re.compile(r"%[-_0]?([:.#]*[369]?)([A-Za-z+%])|(\s+)", re.ASCII)


def _seconds(declared: str) -> str | None:
    """A regular expression whose group holds the seconds of texts of this format; None if it has no seconds."""
    whole = re.sub(r"%([-_0]?)([c+rTXRFDxvh])", lambda code: _EXPANSIONS[code[2]], declared)
    if not re.search(r"%[-_0]?S", whole):
        return None
    shape, position = "", 0
    for code in _CODE.finditer(whole):
        shape += re.escape(whole[position : code.start()])
        shape += r"\s*" if code[3] else _SHAPES.get(code[2], ".*?")
        position = code.end()
    return f"^{shape}{re.escape(whole[position:])}$"


def _is_leap_second(column: pl.Series, read: pl.Series, declared: str) -> pl.Series:
    """Where the seconds are 60, which polars reads as the next minute's first."""
    no = pl.repeat(False, len(column), eager=True)
    shape = _seconds(declared)
    if shape is None:
        return no
    suspects = ((read.dt.second() == 0) & column.str.contains("60", literal=True)).fill_null(False).arg_true()
    if not len(suspects):
        return no
    # A text that the shape does not fit is taken for one too: better refused than shifted.
    seconds = column.gather(suspects).str.extract(shape).fill_null("60")
    return no.scatter(suspects, seconds == "60")
