"""How the values of a typed export become text: exactly, to the last digit, the same on every run.

Texts, numbers, booleans and times stand as polars writes them; a UUID in its usual form; nested values as JSON. What
has no plain text is refused by `problem`. Dates, datetimes and floats keep their type: what they become depends on
what they are used for. Never looks at a value.
"""

import json
from collections.abc import Iterator, Sequence

import polars as pl

from backfill.adapters.exports.footer import Leaf
from backfill.core.columns import date_text

_TIME_TEXT = "%H:%M:%S%.f"
_DIGITS = 38  # of a decimal that polars can hold


def as_read(dtype: pl.DataType, leaves: Sequence[Leaf], *, legacy_utc: bool) -> pl.DataType:
    """The type that a column has to be read as.

    INT96 holds any day in nanoseconds, but polars' nanoseconds end in 2262 (and of 1600 it would make 2262, too): it is
    read as microseconds. With `legacy_utc` timestamps without a zone of the older kind get theirs.
    """
    rest = iter(leaves)
    return _as_read(dtype, rest, legacy_utc)


def _as_read(dtype: pl.DataType, leaves: Iterator[Leaf], legacy_utc: bool) -> pl.DataType:
    match dtype:
        case pl.List():
            return pl.List(_as_read(_instance(dtype.inner), leaves, legacy_utc))
        case pl.Array():
            return pl.Array(_as_read(_instance(dtype.inner), leaves, legacy_utc), dtype.size)
        case pl.Struct():
            return pl.Struct([pl.Field(f.name, _as_read(_instance(f.dtype), leaves, legacy_utc)) for f in dtype.fields])
        case pl.Map():
            key = _as_read(_instance(dtype.key), leaves, legacy_utc)
            return pl.Map(key, _as_read(_instance(dtype.value), leaves, legacy_utc))
    leaf = next(leaves, None)
    if leaf is None or not isinstance(dtype, pl.Datetime):
        return dtype
    if leaf.is_int96 and dtype.time_unit == "ns":
        return pl.Datetime("us", dtype.time_zone)
    if legacy_utc and leaf.is_legacy_utc and dtype.time_zone is None:
        return pl.Datetime(dtype.time_unit, "UTC")
    return dtype


def _instance(dtype: object) -> pl.DataType:
    return dtype() if isinstance(dtype, type) else dtype  # type: ignore[return-value]


def problem(dtype: pl.DataType, leaves: Sequence[Leaf]) -> str | None:
    """Why a column of this type cannot become text, as "is ..., ..."; None if it can."""
    readable = len(leaves) == 1 and (leaves[0].is_uuid or leaves[0].is_text)
    match dtype:
        case pl.Binary():
            return None if readable else "is untyped binary, which has no plain text. Export it as text"
        case pl.Duration() | pl.Object():
            return f"is of type {dtype}, which has no plain text. Export it as text"
        case pl.Decimal() if dtype.precision is not None and dtype.precision > _DIGITS:
            return f"is a decimal of {dtype.precision} digits, and {_DIGITS} can be read. Export it as text"
        case pl.List() | pl.Array():
            return problem(_instance(dtype.inner), ())
        case pl.Struct():
            return next((why for field in dtype.fields if (why := problem(_instance(field.dtype), ()))), None)
        case pl.Map():
            if not isinstance(_instance(dtype.key), pl.String):
                return "is a map whose keys are no texts, which JSON does not have. Export it as text"
            return problem(_instance(dtype.value), ())
        case pl.BaseExtension():
            return problem(_instance(dtype.ext_storage()), ())
    return None


def text(name: str, dtype: pl.DataType, leaves: Sequence[Leaf]) -> pl.Expr:
    """The column's values as text, or as dates, datetimes and floats."""
    value = pl.col(name)
    if isinstance(dtype, pl.BaseExtension):
        value, dtype = value.ext.storage(), _instance(dtype.ext_storage())
    if isinstance(dtype, pl.Datetime) and len(leaves) == 1 and leaves[0].is_date:
        return value.cast(pl.Date)  # pandas' date64, whose midnight nobody wrote
    if isinstance(dtype, pl.Date | pl.Datetime) or dtype.is_float():
        return value
    if isinstance(dtype, pl.Binary) and leaves[0].is_uuid:
        return _uuid(value).alias(name)
    if dtype.is_nested():
        return pl.when(value.is_not_null()).then(_json(value, dtype)).alias(name)
    return _leaf_text(value, dtype)


def _leaf_text(value: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    return value.dt.to_string(_TIME_TEXT) if isinstance(dtype, pl.Time) else value.cast(pl.String)


def _uuid(value: pl.Expr) -> pl.Expr:
    digits = value.bin.encode("hex")
    parts = ((0, 8), (8, 4), (12, 4), (16, 4), (20, 12))
    return pl.concat_str([digits.str.slice(start, size) for start, size in parts], separator="-")


def _json(value: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """JSON without blanks, members in the order of the file, a missing one as null. Numbers keep all of their digits;
    decimals, dates and times are strings, and what is no number (NaN) is null."""
    match dtype:
        case pl.Struct():
            parts: list[pl.Expr] = []
            for at, field in enumerate(dtype.fields):
                opening = ("," if at else "{") + _quoted(field.name) + ":"
                parts += [pl.lit(opening), _json(value.struct.field(field.name), _instance(field.dtype))]
            whole = pl.concat_str(*parts, pl.lit("}")) if parts else pl.lit("{}")
        case pl.List():
            items = value.list.eval(_json(pl.element(), _instance(dtype.inner)))
            whole = pl.concat_str(pl.lit("["), items.list.join(","), pl.lit("]"))
        case pl.Array():
            return _json(value.arr.to_list(), pl.List(dtype.inner))
        case pl.Map():
            entry = pl.element().struct
            pair = pl.concat_str(
                _json(entry.field("key"), _instance(dtype.key)),
                pl.lit(":"),
                _json(entry.field("value"), _instance(dtype.value)),
            )
            pairs = value.cast(pl.List(pl.Struct({"key": dtype.key, "value": dtype.value}))).list.eval(pair)
            whole = pl.concat_str(pl.lit("{"), pairs.list.join(","), pl.lit("}"))
        case pl.Date() | pl.Datetime():
            return _json(date_text(value, dtype), pl.String())
        case pl.Decimal() | pl.Time() | pl.Categorical() | pl.Enum():
            return _json(_leaf_text(value, dtype), pl.String())
        case pl.BaseExtension():
            return _json(value.ext.storage(), _instance(dtype.ext_storage()))
        case _:
            # polars escapes as JSON wants it, but only members of a struct: {"x":...}
            return pl.struct(value.alias("x")).struct.json_encode().str.slice(5).str.strip_suffix("}")
    return pl.when(value.is_not_null()).then(whole).otherwise(pl.lit("null"))


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)
