"""The rules that a row must keep to become an interaction.

Every rule is asked of every row and states its answer for a missing value, so a row leaves with all its faults at
once. Never mends a value, never reads a clock (`now` is passed in), never decides what becomes of a faulty row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

import polars as pl

from backfill.core.columns import PROPERTY
from backfill.core.config import Rows, Time
from backfill.core.errors import ConfigurationError
from backfill.core.limits import MAX_KEY_CHARS

INSTANT = pl.Datetime("us", "UTC")

_WALL = "%Y-%m-%dT%H:%M:%S"
_WALL_SHAPE = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-5][0-9]"
# Seconds end at 59: polars reads a leap second as the first of the next minute, which would shift it.
_ISO = (
    r"^(?P<date>[0-9]{4}-[0-9]{2}-[0-9]{2})"
    r"(?:[Tt ](?P<minutes>[0-9]{2}:[0-9]{2})(?P<seconds>:[0-5][0-9])?(?:[.,](?P<fraction>[0-9]{1,9}))?"
    r"(?:(?P<zulu>[Zz])|(?P<sign>[+-])(?P<offset_h>[01][0-9]|2[0-3]):?(?P<offset_m>[0-5][0-9]))?)?$"
)
_FIRST_US = int(datetime(1, 1, 2, tzinfo=UTC).timestamp()) * 1_000_000
_LAST_US = int(datetime(9999, 12, 31, tzinfo=UTC).timestamp()) * 1_000_000
# A day inside what Python's datetime can hold, so that no zone carries an instant over its edge.
_EPOCHS = {"epoch_s": 1_000_000, "epoch_ms": 1_000, "epoch_us": 1}
_EXAMPLE = datetime(2024, 12, 25, 13, 45, 58, tzinfo=UTC)


class Judged(NamedTuple):
    """The rows of one frame, parted: `valid` has the parts of interactions, `invalid` has `reasons` instead."""

    valid: pl.DataFrame
    invalid: pl.DataFrame


class Instants(NamedTuple):
    """What was read of a column of timestamps, row by row.

    `instant` is null where nothing could be read; `zoneless` says that all but the zone could be.
    """

    instant: pl.Series
    zoneless: pl.Series


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the configuration says about rows. Bounds are inclusive."""

    zone: str | None
    formats: tuple[str, ...] | None
    not_before: datetime | None
    not_after: datetime
    customer_key_required: bool


def rules(time: Time, rows: Rows, *, now: datetime) -> Rules:
    """What `[time]` and `[rows]` ask for. `now` bounds timestamps where `time.not_after` says nothing.

    Raises ConfigurationError for a format that no date can have.
    """
    for declared in time.formats or ():
        _check_format(declared)
    return Rules(
        zone=time.zone,
        formats=None if time.formats is None else tuple(time.formats),
        not_before=None if time.not_before is None else datetime.fromisoformat(time.not_before),
        not_after=now if time.not_after is None else datetime.fromisoformat(time.not_after),
        customer_key_required=rows.customer_key_required,
    )


def judge(rows: pl.DataFrame, rules: Rules) -> Judged:
    """Part the rows of a block into valid and invalid ones.

    Takes what `ColumnMap.select` gives, with any further columns (where the row stands). In `valid` the timestamp
    has become an instant, Datetime(us, UTC). `invalid` keeps all but `url` and the properties, and has `reasons`,
    List(String), never empty, in the order of `FAULTS`; its timestamp is null where it could not be read.
    """
    given = rows["timestamp"].is_not_null()
    instant, zoneless = read_instants(rows["timestamp"], rules)
    judged = rows.with_columns(instant.alias("timestamp"))
    asked = judged.with_columns(given.alias("given"), zoneless.alias("zoneless"))
    found = asked.select(fault(rules).alias(reason) for reason, fault in FAULTS.items())
    reasons = [reason for reason, count in zip(FAULTS, found.sum().row(0), strict=True) if count]
    kept = [name for name in rows.columns if name != "url" and not name.startswith(PROPERTY)]
    if not reasons:
        none = judged.clear().select(*kept, pl.lit(None, dtype=pl.List(pl.String)).alias("reasons"))
        return Judged(judged, none)
    faulty = found.select(pl.any_horizontal(reasons)).to_series()
    listed = (
        found.filter(faulty)
        .select(pl.concat_list(pl.when(pl.col(reason)).then(pl.lit(reason)) for reason in reasons).list.drop_nulls())
        .to_series()
    )
    invalid = judged.filter(faulty).select(*kept, listed.alias("reasons"))
    return Judged(judged.filter(~faulty), invalid)


def _timestamp_missing(_: Rules) -> pl.Expr:
    return ~pl.col("given")


def _timestamp_unreadable(_: Rules) -> pl.Expr:
    return pl.col("given") & pl.col("timestamp").is_null() & ~pl.col("zoneless")


def _timestamp_without_zone(_: Rules) -> pl.Expr:
    return pl.col("zoneless")


def _timestamp_in_future(rules: Rules) -> pl.Expr:
    # Null is no instant, and the rules above have said so.
    return (pl.col("timestamp") > _instant(rules.not_after)).fill_null(False)


def _timestamp_before_not_before(rules: Rules) -> pl.Expr:
    if rules.not_before is None:
        return pl.lit(False)
    return (pl.col("timestamp") < _instant(rules.not_before)).fill_null(False)


def _customer_key_missing(rules: Rules) -> pl.Expr:
    if not rules.customer_key_required:
        return pl.lit(False)
    return pl.col("customer_key").is_null() & ~_name_alone()


def _customer_key_blank(_: Rules) -> pl.Expr:
    return pl.col("customer_key").str.contains(r"^\s*$").fill_null(False)


def _customer_key_control_characters(_: Rules) -> pl.Expr:
    return pl.col("customer_key").str.contains(r"\p{Cc}").fill_null(False)


def _customer_key_too_long(_: Rules) -> pl.Expr:
    return (pl.col("customer_key").str.len_chars() > MAX_KEY_CHARS).fill_null(False)


def _name_alone() -> pl.Expr:
    return pl.col("customer_key_name").is_not_null() & pl.col("customer_key").is_null()


def _customer_key_name_without_key(_: Rules) -> pl.Expr:
    return _name_alone()


def _url_missing(_: Rules) -> pl.Expr:
    return pl.col("url").is_null()


def _url_not_a_uri(_: Rules) -> pl.Expr:
    # Null is missing, which the rule above has said.
    return (~pl.col("url").str.contains(r"^[A-Za-z][A-Za-z0-9+.-]*:[^\s\p{Cc}]+$")).fill_null(False)


FAULTS: Mapping[str, Callable[[Rules], pl.Expr]] = {
    "timestamp_missing": _timestamp_missing,
    "timestamp_unreadable": _timestamp_unreadable,
    "timestamp_without_zone": _timestamp_without_zone,
    "timestamp_in_future": _timestamp_in_future,
    "timestamp_before_not_before": _timestamp_before_not_before,
    "customer_key_missing": _customer_key_missing,
    "customer_key_blank": _customer_key_blank,
    "customer_key_control_characters": _customer_key_control_characters,
    "customer_key_too_long": _customer_key_too_long,
    "customer_key_name_without_key": _customer_key_name_without_key,
    "url_missing": _url_missing,
    "url_not_a_uri": _url_not_a_uri,
}
"""Reason → rule: an expression that is true where a row has the fault, never null."""


def read_instants(column: pl.Series, rules: Rules) -> Instants:
    """Read a column of timestamps: text, or a Date or Datetime of a typed export.

    Text is read as ISO 8601 / RFC 3339, or by the declared formats alone. A time without an offset is taken in
    `rules.zone`; where the zone's clock shows it twice or never, it is not read.
    """
    if column.dtype == pl.Date:
        # A date is its midnight.
        return _in_zone(column.cast(pl.Datetime("us")), rules.zone)
    if isinstance(column.dtype, pl.Datetime):
        return _read_typed(column, rules.zone)
    if rules.formats is not None:
        return _read_declared(column, rules.formats, rules.zone)
    return _read_iso(column, rules.zone)


def _read_typed(column: pl.Series, zone: str | None) -> Instants:
    dtype = column.dtype
    assert isinstance(dtype, pl.Datetime)
    per_second = {"ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}[dtype.time_unit]
    # Bounded before it is brought to microseconds: a count of milliseconds can be too large for them.
    if per_second <= 1_000_000:
        physical, per_us = column.to_physical(), 1_000_000 // per_second
        inside = physical.is_between(_FIRST_US // per_us, _LAST_US // per_us)
        column = column.zip_with(inside, pl.Series([None], dtype=dtype).extend_constant(None, len(column) - 1))
    column = column.dt.cast_time_unit("us")
    if dtype.time_zone is None:
        return _in_zone(column, zone)
    return Instants(column.dt.convert_time_zone("UTC"), _never(column))


def _read_iso(column: pl.Series, zone: str | None) -> Instants:
    """Nearly every export has one shape, so that of its first value is tried on all; the grammar reads the rest."""
    first = column.drop_nulls().head(1).to_list()
    tail = first[0][19:] if first else ""
    if tail not in {"", "Z", "+00:00", "+0000"}:
        return _read_grammar(column, zone)
    usual = pl.col("text").str.contains(f"^{_WALL_SHAPE}{pl.escape_regex(tail)}$")
    wall = pl.col("text").str.to_datetime(_WALL + tail, time_unit="us", strict=False, cache=False)
    read = pl.DataFrame({"text": column}).select(pl.when(usual).then(wall)).to_series()
    left = (read.is_null() & column.is_not_null()).arg_true()
    result = _in_zone(read, "UTC" if tail else zone)
    return _amended(result, left, _read_grammar(column.gather(left), zone)) if len(left) else result


def _read_grammar(column: pl.Series, zone: str | None) -> Instants:
    """Any form of `_ISO`. Four times slower than a fixed shape."""
    part = pl.col("part").struct.field
    read = (
        pl.DataFrame({"part": column.str.extract_groups(_ISO)})
        .select(
            # Group by group, since a match of the whole may lack any part but the date.
            wall=pl.concat_str(
                part("date"), pl.lit("T"), part("minutes").fill_null("00:00"), part("seconds").fill_null(":00")
            ).str.to_datetime(_WALL, time_unit="us", strict=False, cache=False),
            fraction_us=part("fraction").fill_null("0").str.pad_end(6, "0").str.head(6).cast(pl.Int64),
            offset_s=pl.when(part("zulu").is_not_null())
            .then(0)
            .otherwise(
                (part("offset_h").cast(pl.Int64) * 3600 + part("offset_m").cast(pl.Int64) * 60)
                * pl.when(part("sign") == "-").then(-1).otherwise(1)
            ),
        )
        .select(
            wall=pl.col("wall") + pl.duration(microseconds="fraction_us", time_unit="us"),
            offset=pl.duration(seconds="offset_s", time_unit="us"),
        )
    )
    with_offset = read.select((pl.col("wall") - pl.col("offset")).dt.replace_time_zone("UTC")).to_series()
    without = read["offset"].is_null()
    local = _in_zone(read["wall"].zip_with(without, _no_walls(read.height)), zone)
    return Instants(_bounded(local.instant.zip_with(without, with_offset)), local.zoneless)


def _read_declared(column: pl.Series, formats: Sequence[str], zone: str | None) -> Instants:
    """By the first format that reads a value."""
    size = len(column)
    result = Instants(pl.repeat(None, size, dtype=INSTANT, eager=True), pl.repeat(False, size, eager=True))
    left = column.is_not_null().arg_true()
    for declared in formats:
        if not len(left):
            break
        attempt = _by_format(column.gather(left), declared, zone)
        result = _amended(result, left, attempt)
        left = left.filter(attempt.instant.is_null() & ~attempt.zoneless)
    return result


def _by_format(column: pl.Series, declared: str, zone: str | None) -> Instants:
    if declared in _EPOCHS:
        count = column.str.extract(r"^([+-]?[0-9]{1,18})$").cast(pl.Int64)
        per_us = _EPOCHS[declared]
        inside = count.is_between(_FIRST_US // per_us, _LAST_US // per_us)
        counts = pl.DataFrame({"count": count, "inside": inside})
        instant = counts.select(
            pl.when("inside").then(pl.col("count") * per_us).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
        ).to_series()
        return Instants(instant, _never(instant))
    read = column.str.to_datetime(declared, time_unit="us", strict=False)
    if isinstance(read.dtype, pl.Datetime) and read.dtype.time_zone is not None:
        return Instants(_bounded(read.dt.convert_time_zone("UTC")), _never(read))
    if declared.endswith("Z"):
        # Whoever writes a plain Z into a format means what ISO 8601 means by it.
        return _in_zone(read, "UTC")
    return _in_zone(read, zone)


def _in_zone(wall: pl.Series, zone: str | None) -> Instants:
    """What the clocks of `zone` showed, as instants; without a zone only the fact that one is missing."""
    if zone is None:
        return Instants(pl.repeat(None, len(wall), dtype=INSTANT, eager=True), wall.is_not_null())
    instant = wall.dt.replace_time_zone(zone, ambiguous="null", non_existent="null").dt.convert_time_zone("UTC")
    return Instants(_bounded(instant), _never(wall))


def _bounded(instant: pl.Series) -> pl.Series:
    inside = instant.to_physical().is_between(_FIRST_US, _LAST_US)
    if inside.all():
        return instant
    return instant.zip_with(inside, pl.repeat(None, len(instant), dtype=INSTANT, eager=True))


def _amended(result: Instants, where: pl.Series, better: Instants) -> Instants:
    """`result`, with the rows at the indexes `where` taken from `better`."""
    return Instants(result.instant.scatter(where, better.instant), result.zoneless.scatter(where, better.zoneless))


def _never(like: pl.Series) -> pl.Series:
    return pl.repeat(False, len(like), eager=True)


def _no_walls(size: int) -> pl.Series:
    return pl.repeat(None, size, dtype=pl.Datetime("us"), eager=True)


def _instant(moment: datetime) -> pl.Expr:
    return pl.lit(moment.astimezone(UTC)).cast(INSTANT)


def _check_format(declared: str) -> None:
    """A format that cannot even read back the day that it wrote would refuse every row, or shift it."""
    if declared in _EPOCHS:
        return
    try:
        written = pl.Series([_EXAMPLE]).dt.to_string(declared)
        read = written.str.to_datetime(declared, time_unit="us", strict=False).to_list()[0]
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        read = None
    if read is None or read.date() != _EXAMPLE.date():
        raise ConfigurationError(
            f"time.formats: {declared!r} describes no date. Use strptime codes, such as '%d.%m.%Y %H:%M:%S', "
            "or one of epoch_s, epoch_ms, epoch_us."
        )
