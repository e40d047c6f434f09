"""The rules that a row must keep to become an interaction.

Every rule is asked of every row and states its answer for a missing value, so a row leaves with all its faults at
once. How timestamps and keys are spelled is `timestamps`' and `keys`' matter. Never reads a clock (`now` is passed
in), never decides what becomes of a faulty row.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

import polars as pl

from backfill.core import keys, timestamps
from backfill.core.columns import PROPERTY
from backfill.core.config import Rows, Time
from backfill.core.limits import MAX_KEY_CHARS
from backfill.core.timestamps import INSTANT, Spelling


class Judged(NamedTuple):
    """The rows of one frame, parted: `valid` has the parts of interactions, `invalid` has `reasons` instead."""

    valid: pl.DataFrame
    invalid: pl.DataFrame


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the configuration says about rows. Bounds are inclusive."""

    timestamps: Spelling
    not_before: datetime | None
    not_after: datetime
    customer_key_required: bool
    mend_whole_number_keys: bool


def rules(time: Time, rows: Rows, *, now: datetime) -> Rules:
    """What `[time]` and `[rows]` ask for. `now` bounds timestamps where `time.not_after` says nothing.

    Raises ConfigurationError for a format that no date can have.
    """
    return Rules(
        timestamps=timestamps.spelling(time),
        not_before=None if time.not_before is None else datetime.fromisoformat(time.not_before),
        not_after=now if time.not_after is None else datetime.fromisoformat(time.not_after),
        customer_key_required=rows.customer_key_required,
        mend_whole_number_keys=rows.whole_number_keys == "mend",
    )


def judge(rows: pl.DataFrame, rules: Rules) -> Judged:
    """Part the rows of a block into valid and invalid ones.

    Takes what `ColumnMap.select` gives, with any further columns (where the row stands). In `valid` the timestamp
    has become an instant, Datetime(us, UTC), and the key is text. `invalid` keeps all but `url` and the properties,
    and has `reasons`, List(String), never empty, in the order of `FAULTS`; its timestamp is null where it could not be
    read.
    """
    given = rows["timestamp"].is_not_null()
    read = timestamps.read_instants(rows["timestamp"], rules.timestamps)
    known = keys.read_keys(rows["customer_key"], mend=rules.mend_whole_number_keys)
    judged = rows.with_columns(read.instant.alias("timestamp"), known.key.alias("customer_key"))
    asked = judged.with_columns(
        given.alias("given"), read.fault.alias("timestamp_fault"), known.fault.alias("key_fault")
    )
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


def _timestamp_fault(reason: str) -> Callable[[Rules], pl.Expr]:
    # Null is no fault: the timestamp was read, or is missing, which the rule above has said.
    return lambda _: (pl.col("timestamp_fault") == pl.lit(reason, timestamps.FAULT)).fill_null(False)


def _key_fault(reason: str) -> Callable[[Rules], pl.Expr]:
    # Null is no fault: the key is no damaged number, or missing.
    return lambda _: (pl.col("key_fault") == pl.lit(reason, keys.FAULT)).fill_null(False)


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
    **{reason: _timestamp_fault(reason) for reason in timestamps.FAULT.categories},
    "timestamp_in_future": _timestamp_in_future,
    "timestamp_before_not_before": _timestamp_before_not_before,
    "customer_key_missing": _customer_key_missing,
    "customer_key_blank": _customer_key_blank,
    "customer_key_control_characters": _customer_key_control_characters,
    "customer_key_too_long": _customer_key_too_long,
    **{reason: _key_fault(reason) for reason in keys.FAULT.categories},
    "customer_key_name_without_key": _customer_key_name_without_key,
    "url_missing": _url_missing,
    "url_not_a_uri": _url_not_a_uri,
}
"""Reason → rule: an expression that is true where a row has the fault, never null."""

HINTS: Mapping[str, str] = {
    "timestamp_missing": (
        "The row has no timestamp, or one of the columns of its template is empty. Mend the export, or look "
        "whether columns.timestamp names the right column."
    ),
    timestamps.UNREADABLE: (
        "No date and time in a known form. ISO 8601 is read by itself; declare any other form in "
        'time.formats, such as ["%d.%m.%Y %H:%M"]. Two-digit years and the order of day and month are never '
        "guessed."
    ),
    timestamps.SPREADSHEET: (
        "A spreadsheet made a number of it (1.54111E+12, 45292.5). Export it again from the system it comes "
        "from, not through the spreadsheet."
    ),
    timestamps.NUMBER: (
        'A bare number. If it counts time since 1970, declare time.formats = ["epoch_ms"], or epoch_s or epoch_us.'
    ),
    timestamps.EPOCH_UNIT: (
        "In the declared unit the number means early 1970, or a year beyond 9999: probably the unit is "
        "another. 10 digits are epoch_s, 13 epoch_ms, 16 epoch_us. If early 1970 is meant, set "
        "time.not_before to it."
    ),
    timestamps.LEAP_SECOND: ("A leap second (:60), which an instant of the API cannot say. Write :59 in the export."),
    timestamps.WITHOUT_ZONE: (
        'It has no offset. Declare the zone that it was written in: time.zone = "Europe/London", or "UTC".'
    ),
    timestamps.IN_GAP: (
        "No clock in time.zone showed this time: it was skipped when summer time began. Perhaps it was "
        "written in another zone; declare that one in time.zone."
    ),
    timestamps.AMBIGUOUS: (
        'The clocks in time.zone showed this time twice, when summer time ended. time.fold = "earlier" or '
        '"later" takes one of the two; or export with offsets.'
    ),
    "timestamp_in_future": (
        "It lies after time.not_after, by default the moment of reading. Look at time.zone, at time.formats "
        "and at the clock of the system that wrote it."
    ),
    "timestamp_before_not_before": (
        "It lies before time.not_before. Leave such rows out, or set time.not_before earlier."
    ),
    "customer_key_missing": (
        "The row has no customer key. Mend the export; or set rows.customer_key_required = false to send such"
        " rows without one."
    ),
    "customer_key_blank": ("The key is nothing but blanks. Mend the export, or name such a value in csv.null_values."),
    "customer_key_control_characters": (
        "The key holds a tab, a line end or another control character. Mend the export."
    ),
    "customer_key_too_long": (
        f"The key is longer than {MAX_KEY_CHARS:,} characters. Look whether columns.customer_key names the "
        "right column."
    ),
    keys.WHOLE_NUMBER: (
        "The key is a whole number that went through a float (17850.0). Export it as text; or set "
        'rows.whole_number_keys = "mend" to send 17850.'
    ),
    keys.EXPONENT: (
        "A spreadsheet or a float wrote the key with an exponent (2.82E+18), and its digits are lost. Export "
        "it again as text."
    ),
    keys.IMPRECISE: (
        "The key went through a float that cannot tell it from its neighbours (beyond 2^53, of 32 bits beyond"
        " 2^24). Export it again as text or as an integer."
    ),
    keys.NOT_WHOLE: (
        "The key's column is a float, and the value is no whole number (12.5, NaN, inf). Export it as text; a"
        ' missing key is null, or csv.null_values = ["NaN"].'
    ),
    "customer_key_name_without_key": (
        "The row names a kind of customer key and has no key. Mend the export, or let "
        "columns.customer_key_name be a constant."
    ),
    "url_missing": (
        "The row has no address, or one of the columns of its template is empty. Mend the export, or look "
        "whether columns.url names the right column."
    ),
    "url_not_a_uri": (
        "The address is no URI such as api://shop/checkout: it needs a scheme and holds no blanks. Mend the "
        'export, or put it together: columns.url = { template = "api://shop/{page}" }.'
    ),
}
"""Reason → what is wrong and what to change, for a person. Examples in it are ours, no customer's."""


def _instant(moment: datetime) -> pl.Expr:
    return pl.lit(moment.astimezone(UTC)).cast(INSTANT)
