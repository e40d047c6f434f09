"""Writes interactions as the JSON that the API reads.

Each interaction is rendered once, when it is staged, and is never rendered again: what is sent, sent again after a
crash, or cut out of a request that was split, are the same bytes. Never decides which interactions share a request.
"""

import json
from collections.abc import Sequence

import polars as pl
from polars_hash import NonCryptographicHashingNameSpace as Hash

from backfill.core.calls import CALLS
from backfill.core.columns import PROPERTY
from backfill.core.config import BulkKey, Wire
from backfill.core.identity import DEFAULT_KEY_NAME, IDENTITY_SCHEMA
from backfill.core.identity import fingerprint as identity_fingerprint

_ESCAPES = {chr(code): f"\\u{code:04x}" for code in range(0x20)} | {
    "\b": "\\b",
    "\t": "\\t",
    "\n": "\\n",
    "\f": "\\f",
    "\r": "\\r",
    '"': '\\"',
    "\\": "\\\\",
}
"""What JSON does not allow inside a string (RFC 8259, section 7). Everything else stays as it is, in UTF-8."""

_Part = str | pl.Expr
"""A piece of rendered text: a constant, or what an expression gives for each row."""

_TEXT = ("url", "customer_key", "customer_key_name", "tid")


def render(rows: pl.DataFrame, wire: Wire) -> pl.DataFrame:
    """The JSON of each row and the fingerprint of its identity, or of its content where it has none of its own.

    Takes timestamp, url, customer_key, customer_key_name, tid and, in any order, property:...; and IDENTITY_SCHEMA
    where `rows.identity` is set.
    Shape: (rows, 2): `body` String; `fingerprint` UInt128. All values are JSON strings, but for a
    timestamp in epoch milliseconds; what a row lacks is left out. The fingerprint is equal for two interactions
    with the same instant, address, customer, tid and properties, whatever `[wire]` says. A key without a name is the
    same customer as one under the name that the API takes it for.
    """
    properties = sorted(name for name in rows.columns if name.startswith(PROPERTY))
    safe = _escaped(rows.select("timestamp", *_TEXT, *properties))
    # The long part is the same in the body and in what is hashed. So neither the order of its parts nor their
    # spelling may ever change: fingerprints are compared across loads, and across versions.
    content = safe.select("timestamp", "tid", _long_part(safe, properties).alias("content"))
    hashed = content
    if (nameless := rows.select(_is_nameless()).to_series()).any():
        named = pl.when(nameless).then(pl.lit(DEFAULT_KEY_NAME)).otherwise("customer_key_name")
        spelled = safe.with_columns(named.alias("customer_key_name"))
        hashed = spelled.select("timestamp", "tid", _long_part(spelled, properties).alias("content"))
    if wire.timestamp_format == "epoch_ms":
        time = pl.col("timestamp").dt.epoch("ms").cast(pl.String)
    else:
        time = pl.col("timestamp").dt.to_string('"%Y-%m-%dT%H:%M:%S%.3fZ"')
    head, address = f"{{{_quoted(wire.timestamp_field)}:", f",{_quoted(wire.address_field)}:"
    # Two hashes, since to join what the second is of to the long part would be another copy of everything.
    around = pl.concat_str(
        pl.col("timestamp").dt.epoch("us").cast(pl.String), pl.lit("\n"), pl.col("tid").fill_null("")
    )
    body = content.select(pl.concat_str(pl.lit(head), time, pl.lit(address), pl.col("content")).alias("body"))
    prints = hashed.select((Hash(pl.col("content")).xxh3_128() ^ Hash(around).xxh3_128()).alias("fingerprint"))
    if set(IDENTITY_SCHEMA) <= set(rows.columns):
        identity = rows.select(identity_fingerprint().alias("identity"))
        prints = prints.hstack(identity).select(pl.coalesce("identity", "fingerprint").alias("fingerprint"))
    return body.hstack(prints)


def _is_nameless() -> pl.Expr:
    return pl.col("customer_key").is_not_null() & pl.col("customer_key_name").is_null()


def _long_part(safe: pl.DataFrame, properties: Sequence[str]) -> pl.Expr:
    """From the address to the end; what comes before it is a matter of `[wire]`."""
    return _joined(
        [
            '"',
            pl.col("url"),
            '"',
            *_optional(safe, "customer_key", ',"customerKey":"'),
            *_optional(safe, "customer_key_name", ',"customerKeyName":"'),
            *_property_list(safe, properties),
            "}",
        ],
        ignore_nulls=True,
    )


def request_body(fragment: bytes, wire: Wire, call: str) -> bytes:
    """The body of a request whose interactions' JSON, joined by commas, is `fragment`.

    A call of one takes the object itself, the bulk call an array or an object with one.
    """
    if not CALLS[call].many:
        return fragment
    if isinstance(wire.bulk, BulkKey):
        return b"{%s:[%s]}" % (_quoted(wire.bulk.key).encode(), fragment)
    return b"[%s]" % fragment


def cut(fragment: bytes, sizes: Sequence[int], first: int, count: int) -> bytes:
    """The interactions at positions [first, first + count) of a request's fragment. `sizes`: bytes of each one."""
    if first < 0 or count < 1 or first + count > len(sizes):
        raise ValueError(f"no positions {first} to {first + count} in a request of {len(sizes)}")
    start = sum(sizes[:first]) + first  # a comma after each
    return fragment[start : start + sum(sizes[first : first + count]) + count - 1]


def _escaped(rows: pl.DataFrame) -> pl.DataFrame:
    """Text as it stands between the quotes of JSON. Looked at first, since few columns need any change."""
    text = [name for name, dtype in rows.schema.items() if dtype == pl.String]
    found = rows.select(pl.col(text).str.contains_any(list(_ESCAPES)).any()).row(0)
    needy = [name for name, needs in zip(text, found, strict=True) if needs]
    if not needy:
        return rows
    return rows.with_columns(pl.col(needy).str.replace_many(_ESCAPES))


def _optional(rows: pl.DataFrame, column: str, opening: str, closing: str = '"') -> list[_Part]:
    """`opening`, the value, `closing`; nothing where the value is missing."""
    missing = rows[column].null_count()
    if missing == rows.height:
        return []
    parts: list[_Part] = [opening, pl.col(column), closing]
    return parts if missing == 0 else [_joined(parts)]


def _property_list(rows: pl.DataFrame, columns: Sequence[str]) -> list[_Part]:
    """The `properties` of each row; nothing for a row that has none."""
    opening = ',"properties":['
    objects = [(column, f'{{"name":{_quoted(column.removeprefix(PROPERTY))},"value":"') for column in columns]
    anchor = next((at for at, (column, _) in enumerate(objects) if rows[column].null_count() == 0), None)
    if anchor is None:
        some = [part for column, start in objects for part in _optional(rows, column, start, '"}')]
        if not some:
            return []
        listed = pl.concat_str(some, separator=",", ignore_nulls=True)
        return [_joined([opening, pl.when(listed != "").then(listed), "]"])]
    # One property is in every row. Those before it bring a comma after them, those behind it one before them, so that
    # a row's text is put together in a single step.
    parts: list[_Part] = [opening]
    for column, start in objects[:anchor]:
        parts += _optional(rows, column, start, '"},')
    column, start = objects[anchor]
    parts += [start, pl.col(column), '"}']
    for column, start in objects[anchor + 1 :]:
        parts += _optional(rows, column, "," + start, '"}')
    return [*parts, "]"]


def _joined(parts: Sequence[_Part], *, ignore_nulls: bool = False) -> pl.Expr:
    """All parts as one text. Neighbouring constants are joined first: each part costs a copy per row."""
    merged: list[pl.Expr] = []
    constant = ""
    for part in parts:
        if isinstance(part, str):
            constant += part
            continue
        if constant:
            merged.append(pl.lit(constant))
        merged.append(part)
        constant = ""
    if constant:
        merged.append(pl.lit(constant))
    return pl.concat_str(merged, ignore_nulls=ignore_nulls)


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)
