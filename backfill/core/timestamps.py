"""Timestamps as exports spell them, read as instants or refused with the reason.

Nothing is guessed: not the zone, not the century, not the order of day and month, not the unit of a count. Never asks
for the zone of the machine, never reads a clock. Whether an instant is a plausible one is for `validate`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, NamedTuple

import polars as pl

from backfill.core import date_formats
from backfill.core.config import EPOCHS, Time

INSTANT = pl.Datetime("us", "UTC")

UNREADABLE = "timestamp_unreadable"
SPREADSHEET = "timestamp_spreadsheet_number"
NUMBER = "timestamp_number"
EPOCH_UNIT = "timestamp_epoch_unit"
LEAP_SECOND = "timestamp_leap_second"
WITHOUT_ZONE = "timestamp_without_zone"
IN_GAP = "timestamp_in_gap"
AMBIGUOUS = "timestamp_ambiguous"

FAULT = pl.Enum([UNREADABLE, SPREADSHEET, NUMBER, EPOCH_UNIT, LEAP_SECOND, WITHOUT_ZONE, IN_GAP, AMBIGUOUS])
"""Why a timestamp that is there could not be read."""

_SETTLED = (LEAP_SECOND, WITHOUT_ZONE, IN_GAP, AMBIGUOUS)
"""Faults of a text whose spelling was understood: no further format is tried."""

_ISO = (
    r"^(?P<year>[0-9]{4})"
    r"(?:-(?P<month>[0-9]{2})-(?P<day>[0-9]{2})|(?P<month_day>[0-9]{4})|-(?P<ordinal>[0-9]{3})|(?P<days>[0-9]{3})"
    r"|-W(?P<week>[0-9]{2})-(?P<weekday>[1-7])|W(?P<week_weekday>[0-9]{2}[1-7]))"
    # A fraction belongs to seconds: ISO 8601 would have one of minutes mean another time than most who write it.
    r"(?:[Tt ](?P<h>[0-9]{2})(?::?(?P<m>[0-9]{2})(?::?(?P<s>[0-9]{2})(?:[.,](?P<fraction>[0-9]{1,9}))?)?)?"
    r"(?: ?(?:(?P<zulu>[Zz]|UTC)|(?P<sign>[+-])(?P<offset_h>[01][0-9]|2[0-3])(?::?(?P<offset_m>[0-5][0-9]))?))?)?$"
)
_BARE_ORDINAL = r"^[0-9]{7}$"
"""`2024061` alone is more often a number than a day."""

_USUAL = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}([T ])[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:?[0-9]{2})?", re.ASCII
)
_OFFSETS = {
    "": "",
    "Z": "Z",
    "+0000": "[+-](?:[01][0-9]|2[0-3])[0-5][0-9]",
    "+00:00": "[+-](?:[01][0-9]|2[0-3]):[0-5][0-9]",
}
_WHOLE_COUNT = r"^[+-]?[0-9]{1,18}$"
_COUNT = r"^(?P<sign>[+-]?)(?P<whole>[0-9]{1,18})(?:\.(?P<fraction>[0-9]{1,30}))?$"

_FIRST_US = int(datetime(1, 1, 2, tzinfo=UTC).timestamp()) * 1_000_000
_LAST_US = int(datetime(9999, 12, 31, tzinfo=UTC).timestamp()) * 1_000_000
_DAY_US = 86_400_000_000
# A day inside what Python's datetime can hold, so that no zone carries an instant over its edge.
_LAST_RULE_US = int(datetime(2100, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
"""From here on polars knows no summer time of any zone."""
_EARLY_US = 10**13
"""Seconds of today taken for milliseconds, milliseconds taken for microseconds and a spreadsheet's day numbers taken
for seconds all lie between 1970 and this (26 April 1970), where no export of interactions has any."""

_PER_US = dict(zip(EPOCHS, (1_000_000, 1_000, 1), strict=True))
_AMBIGUOUS: dict[str, Literal["null", "earliest", "latest"]] = {
    "refuse": "null",
    "earlier": "earliest",
    "later": "latest",
}


class Instants(NamedTuple):
    """What was read of a column, row by row: `instant` (INSTANT), and where there is none, why (`fault`, FAULT).

    Where the column has no value, both are null.
    """

    instant: pl.Series
    fault: pl.Series


@dataclass(frozen=True, slots=True, kw_only=True)
class Spelling:
    """How an export writes its timestamps. `early_counts`: counts that mean early 1970 are taken at their word."""

    zone: str | None = None
    formats: tuple[str, ...] | None = None
    fold: Literal["refuse", "earlier", "later"] = "refuse"
    early_counts: bool = False


def spelling(time: Time) -> Spelling:
    """What `[time]` says. Raises ConfigurationError for a format that would misread, or could never read."""
    for declared in time.formats or ():
        if declared not in EPOCHS:
            date_formats.check(declared)
    plausible = None if time.not_before is None else datetime.fromisoformat(time.not_before).timestamp()
    return Spelling(
        zone=time.zone,
        formats=None if time.formats is None else tuple(time.formats),
        fold=time.fold,
        # Who says that early 1970 is not too early, means it.
        early_counts=plausible is not None and plausible * 1_000_000 < _EARLY_US,
    )


def read_instants(column: pl.Series, spelling: Spelling) -> Instants:
    """Read a column of timestamps: text, or a Date or Datetime of a typed export.

    Text is read as ISO 8601 / RFC 3339, or by the declared formats alone. What is finer than a microsecond is cut off.
    24:00 is the midnight at the end of its day, as ISO 8601 has it. A time without an offset is taken in the
    declared zone; where its clock shows it twice, by the declared fold.
    """
    if column.dtype == pl.Date:
        # A date is its midnight. Bounded first: polars panics at days that it cannot count in microseconds.
        inside = column.to_physical().is_between(_FIRST_US // _DAY_US, _LAST_US // _DAY_US)
        midnight = column.zip_with(inside, _none(len(column), pl.Date())).cast(pl.Datetime("us"))
        return _named(column, _in_zone(midnight, spelling))
    if isinstance(column.dtype, pl.Datetime):
        return _named(column, _read_typed(column, spelling))
    if spelling.formats is not None:
        return _named(column, _read_declared(column, spelling.formats, spelling), spelling.formats)
    return _named(column, _read_iso(column, spelling))


# --------------------------------------------------------------------------------------------------------- typed


def _read_typed(column: pl.Series, spelling: Spelling) -> Instants:
    dtype = column.dtype
    assert isinstance(dtype, pl.Datetime)
    per_second = {"ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}[dtype.time_unit]
    # Bounded before it is brought to microseconds: a count of milliseconds can be too large for them.
    if per_second <= 1_000_000:
        physical, per_us = column.to_physical(), 1_000_000 // per_second
        inside = physical.is_between(_FIRST_US // per_us, _LAST_US // per_us)
        column = column.zip_with(inside, _none(len(column), dtype))
    column = column.dt.cast_time_unit("us")
    if dtype.time_zone is None:
        return _in_zone(column, spelling)
    return _faultless(column.dt.convert_time_zone("UTC"))


# ------------------------------------------------------------------------------------------------------ ISO 8601


def _read_iso(column: pl.Series, spelling: Spelling) -> Instants:
    """Nearly every export has one shape, so that of its first value is tried on all; the grammar reads the rest."""
    first = column.drop_nulls().head(1).to_list()
    usual = _USUAL.fullmatch(first[0]) if first else None
    if usual is None:
        return _read_grammar(column, spelling)
    between, fraction, tail = usual[1], usual[2], re.sub("[+-][0-9]{2}(:?)[0-9]{2}", r"+00\g<1>00", usual[3] or "")
    digits = r"(?:\.[0-9]{1,9})?" if fraction else ""
    # Seconds end at 59: polars reads a leap second as the first of the next minute, which would shift it.
    shape = f"^[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}{between}[0-9]{{2}}:[0-9]{{2}}:[0-5][0-9]{digits}{_OFFSETS[tail]}$"
    code = f"%Y-%m-%d{between}%H:%M:%S{'%.f' if fraction else ''}"
    text = pl.col("text")
    wall = (text.str.head(-len(tail)) if tail else text).str.to_datetime(
        code, time_unit="us", strict=False, cache=False
    )
    if len(tail) > 1:
        sign = pl.when(text.str.tail(len(tail)).str.starts_with("-")).then(-1).otherwise(1)
        hours, minutes = (
            text.str.tail(length).str.head(2).cast(pl.Int64, strict=False) for length in (len(tail) - 1, 2)
        )
        wall -= pl.duration(seconds=(hours * 3600 + minutes * 60) * sign, time_unit="us")
    read = pl.DataFrame({"text": column}).select(pl.when(text.str.contains(shape)).then(wall)).to_series()
    result = _faultless(_bounded(read.dt.replace_time_zone("UTC"))) if tail else _in_zone(read, spelling)
    left = (read.is_null() & column.is_not_null()).arg_true()
    return _amended(result, left, _read_grammar(column.gather(left), spelling)) if len(left) else result


def _read_grammar(column: pl.Series, spelling: Spelling) -> Instants:
    """Any form of `_ISO`. Many times slower than a usual shape."""
    parts = pl.DataFrame({"text": column, "part": column.str.extract_groups(_ISO)})
    parts = parts.unnest("part")  # group by group: a match may lack any but the year
    number = {name: pl.col(name).cast(pl.Int64) for name in parts.columns if name not in {"text", "zulu", "sign"}}
    week, weekday = (
        pl.coalesce(number["week"], number["week_weekday"] // 10),
        pl.coalesce(number["weekday"], number["week_weekday"] % 10),
    )
    month_day = pl.coalesce(pl.concat_str("month", "day"), "month_day")
    calendar = pl.concat_str("year", month_day).str.to_date("%Y%m%d", strict=False, cache=False)
    ordinal = pl.coalesce(number["ordinal"], pl.when(~pl.col("text").str.contains(_BARE_ORDINAL)).then(number["days"]))
    new_year = pl.concat_str("year", pl.lit("0101")).str.to_date("%Y%m%d", strict=False, cache=False)
    fourth = new_year + pl.duration(days=3)  # of January, which is always in the first week
    by_ordinal = new_year + pl.duration(days=ordinal - 1)
    by_week = fourth + pl.duration(days=(week - 1) * 7 + weekday - fourth.dt.weekday().cast(pl.Int64))
    hour, minute, second = (number[name].fill_null(0) for name in ("h", "m", "s"))
    padded = pl.col("fraction").fill_null("0").str.pad_end(6, "0")
    fraction_us = padded.str.head(6).cast(pl.Int64)
    end_of_day = (hour == 24) & (minute == 0) & (second == 0) & ~padded.str.contains("[1-9]")
    of_the_clock = ((hour <= 23) & (minute <= 59) & (second <= 60)) | end_of_day
    read = parts.select(
        date=pl.coalesce(
            calendar,
            pl.when(by_ordinal.dt.year().cast(pl.Int64) == number["year"]).then(by_ordinal),
            pl.when(by_week.dt.iso_year().cast(pl.Int64) == number["year"]).then(by_week),
        ),
        of_the_clock=of_the_clock,
        leap=second == 60,
        clock=pl.duration(hours=hour, minutes=minute, seconds=second, microseconds=fraction_us, time_unit="us"),
        offset=pl.when(pl.col("zulu").is_not_null())
        .then(pl.duration(seconds=0, time_unit="us"))
        .otherwise(
            pl.duration(seconds=number["offset_h"] * 3600 + number["offset_m"].fill_null(0) * 60, time_unit="us")
            * pl.when(pl.col("sign") == "-").then(-1).otherwise(1)
        ),
    ).select(
        "offset",
        wall=pl.when(pl.col("of_the_clock") & ~pl.col("leap")).then(
            pl.col("date").cast(pl.Datetime("us")) + pl.col("clock")
        ),
        leap=(pl.col("leap") & pl.col("of_the_clock") & pl.col("date").is_not_null()).fill_null(False),
    )
    with_offset = read.select((pl.col("wall") - pl.col("offset")).dt.replace_time_zone("UTC")).to_series()
    without = read["offset"].is_null()
    local = _in_zone(read["wall"].zip_with(without, _none(read.height, pl.Datetime("us"))), spelling)
    instant = _bounded(local.instant.zip_with(without, with_offset))
    return Instants(instant, local.fault.zip_with(~read["leap"], _all(read.height, LEAP_SECOND)))


# ------------------------------------------------------------------------------------------------------ declared


def _read_declared(column: pl.Series, formats: Sequence[str], spelling: Spelling) -> Instants:
    """By the first format that reads a value."""
    result = _faultless(_none(len(column), INSTANT))
    left = column.is_not_null().arg_true()
    for declared in formats:
        if not len(left):
            break
        attempt = _by_format(column.gather(left), declared, spelling)
        result = _amended(result, left, attempt)
        left = left.filter(attempt.instant.is_null() & ~attempt.fault.is_in(_SETTLED).fill_null(False))
    return result


def _by_format(column: pl.Series, declared: str, spelling: Spelling) -> Instants:
    if declared == "%s":
        declared = "epoch_s"
    if declared in _PER_US:
        return _by_count(column, _PER_US[declared], early=spelling.early_counts)
    read, leap = date_formats.read(column, declared)
    if isinstance(read.dtype, pl.Datetime) and read.dtype.time_zone is not None:
        instants = _faultless(_bounded(read.dt.convert_time_zone("UTC")))
    elif declared.endswith("Z"):
        # Whoever writes a plain Z into a format means what ISO 8601 means by it.
        instants = _faultless(_bounded(read.dt.replace_time_zone("UTC")))
    else:
        instants = _in_zone(read, spelling)
    return Instants(instants.instant, instants.fault.zip_with(~leap, _all(len(leap), LEAP_SECOND)))


def _by_count(column: pl.Series, per_us: int, *, early: bool) -> Instants:
    """Seconds, milliseconds or microseconds since 1970; `per_us` of the last make one of them."""
    if column.str.contains(_WHOLE_COUNT).all():
        size = column.cast(pl.Int64)
        most = _LAST_US // per_us
        us = size.zip_with(size.is_between(-most, most), _none(len(size), pl.Int64())) * per_us
    else:
        us = _by_fraction(column, per_us)
    inside = us.is_between(_FIRST_US, _LAST_US)
    if not early:
        inside &= ~us.is_between(0, _EARLY_US, closed="none")
    us = us.zip_with(inside.fill_null(False), _none(len(us), pl.Int64()))
    return _faultless(us.cast(pl.Datetime("us")).dt.replace_time_zone("UTC"))


def _by_fraction(column: pl.Series, per_us: int) -> pl.Series:
    """Microseconds since 1970, of counts with fractions among other texts."""
    parts = pl.DataFrame({"part": column.str.extract_groups(_COUNT)}).unnest("part")
    digits = len(str(per_us)) - 1
    fraction = pl.col("fraction").fill_null("")
    kept = fraction.str.pad_end(digits, "0").str.head(digits) if digits else pl.lit("0")
    size = pl.col("whole").cast(pl.Int64)
    read = parts.select(
        "sign",
        cut=fraction.str.slice(digits).str.contains("[1-9]"),
        size=pl.when(size <= _LAST_US // per_us).then(size * per_us + kept.cast(pl.Int64)),
    ).select(
        # What is cut off goes towards the past, on both sides of 1970: an instant stays in its second.
        pl.when(pl.col("sign") == "-")
        .then(-pl.col("size") - pl.col("cut").cast(pl.Int64))
        .otherwise("size")
        .alias("us")
    )
    return read["us"]


# --------------------------------------------------------------------------------------------------------- zones


def _in_zone(wall: pl.Series, spelling: Spelling) -> Instants:
    """What the clocks of the declared zone showed, as instants; without a zone only the fact that one is missing."""
    zone = spelling.zone
    if zone is None:
        fault = _none(len(wall), FAULT).zip_with(wall.is_null(), _all(len(wall), WITHOUT_ZONE))
        return Instants(_none(len(wall), INSTANT), fault)
    if zone != "UTC":
        wall = _bounded(wall, _LAST_RULE_US)
    ambiguous = _AMBIGUOUS[spelling.fold]
    instant = wall.dt.replace_time_zone(zone, ambiguous=ambiguous, non_existent="null").dt.convert_time_zone("UTC")
    result = _faultless(_bounded(instant))
    failed = (instant.is_null() & wall.is_not_null()).arg_true()
    if not len(failed):
        return result
    twice = wall.gather(failed).dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null").is_not_null()
    why = _all(len(failed), AMBIGUOUS).zip_with(twice, _all(len(failed), IN_GAP))
    return Instants(result.instant, result.fault.scatter(failed, why))


# -------------------------------------------------------------------------------------------------------- faults

_NUMBER_OF_A_SHEET = r"^[+-]?[0-9](?:[.,][0-9]+)?[Ee][+-]?[0-9]{1,3}$|^[1-9][0-9]{4}(?:[.,][0-9]+)?$|^#"
_LEAP = r":[0-9]{2}:60(?:[^0-9]|$)"
_NUMBER = r"^[+-]?[0-9]{9,}(?:\.[0-9]*)?$"


def _named(column: pl.Series, read: Instants, formats: Sequence[str] | None = None) -> Instants:
    """With a fault for every value that was not read."""
    left = (column.is_not_null() & read.instant.is_null() & read.fault.is_null()).arg_true()
    if not len(left):
        return read
    if column.dtype != pl.String:
        return Instants(read.instant, read.fault.scatter(left, _all(len(left), UNREADABLE)))
    text = pl.col("text")
    counts = formats is not None and not _PER_US.keys().isdisjoint(formats)
    why = pl.DataFrame({"text": column.gather(left)}).select(
        # An exponent or five digits is a spreadsheet's whatever was declared.
        pl.when(text.str.contains(_NUMBER_OF_A_SHEET))
        .then(pl.lit(SPREADSHEET))
        .when(text.str.contains(_COUNT) & counts)
        .then(pl.lit(EPOCH_UNIT))
        .when(text.str.contains(_NUMBER))
        .then(pl.lit(NUMBER))
        .when(text.str.contains(_LEAP))
        .then(pl.lit(LEAP_SECOND))
        .otherwise(pl.lit(UNREADABLE))
        .cast(FAULT)
    )
    return Instants(read.instant, read.fault.scatter(left, why.to_series()))


# --------------------------------------------------------------------------------------------------------- parts


def _bounded(instant: pl.Series, last_us: int = _LAST_US) -> pl.Series:
    inside = instant.to_physical().is_between(_FIRST_US, last_us)
    if inside.all():
        return instant
    return instant.zip_with(inside.fill_null(False), _none(len(instant), instant.dtype))


def _amended(result: Instants, where: pl.Series, better: Instants) -> Instants:
    """`result`, with the rows at the indexes `where` taken from `better`."""
    return Instants(result.instant.scatter(where, better.instant), result.fault.scatter(where, better.fault))


def _faultless(instant: pl.Series) -> Instants:
    return Instants(instant, _none(len(instant), FAULT))


def _none(size: int, dtype: pl.DataType | type[pl.DataType]) -> pl.Series:
    return pl.repeat(None, size, dtype=dtype, eager=True)


def _all(size: int, reason: str) -> pl.Series:
    return pl.repeat(reason, size, dtype=FAULT, eager=True)
