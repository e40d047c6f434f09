"""Writes interactions as the JSON that the API reads.

Each interaction is rendered once, when it is staged, and is never rendered again: what is sent, sent again after a
crash, or cut out of a request that was split, are the same bytes. Never decides which interactions share a request.
"""

import json
from collections.abc import Sequence

import polars as pl
from polars_hash import NonCryptographicHashingNameSpace as Hash

from backfill.core.columns import PROPERTY
from backfill.core.config import BulkKey, Wire

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
    """The JSON of each row and the fingerprint of its content.

    Takes timestamp, url, customer_key, customer_key_name, tid and, in any order, property:...
    Shape: (rows, 2): `body` String; `fingerprint` UInt128. All values are JSON strings, but for a
    timestamp in epoch milliseconds; what a row lacks is left out. The fingerprint is equal for two interactions
    with the same instant, address, customer, tid and properties, whatever `[wire]` says.
    """
    properties = sorted(name for name in rows.columns if name.startswith(PROPERTY))
    safe = _escaped(rows.select("timestamp", *_TEXT, *properties))
    parts: list[_Part] = [
        '"',
        pl.col("url"),
        '"',
        *_optional(safe, "customer_key", ',"customerKey":"'),
        *_optional(safe, "customer_key_name", ',"customerKeyName":"'),
        *_property_list(safe, properties),
        "}",
    ]
    # The long part is the same in the body and in what is hashed. So neither the order of these parts nor their
    # spelling may ever change: fingerprints are compared across loads, and across versions.
    content = safe.select("timestamp", "tid", _joined(parts, ignore_nulls=True).alias("content"))
    if wire.timestamp_format == "epoch_ms":
        time = pl.col("timestamp").dt.epoch("ms").cast(pl.String)
    else:
        time = pl.col("timestamp").dt.to_string('"%Y-%m-%dT%H:%M:%S%.3fZ"')
    head, address = f"{{{_quoted(wire.timestamp_field)}:", f",{_quoted(wire.address_field)}:"
    # Two hashes, since to join what the second is of to the long part would be another copy of everything.
    around = pl.concat_str(
        pl.col("timestamp").dt.epoch("us").cast(pl.String), pl.lit("\n"), pl.col("tid").fill_null("")
    )
    return content.select(
        pl.concat_str(pl.lit(head), time, pl.lit(address), pl.col("content")).alias("body"),
        (Hash(pl.col("content")).xxh3_128() ^ Hash(around).xxh3_128()).alias("fingerprint"),
    )


def request_body(fragment: bytes, wire: Wire, call: str) -> bytes:
    """The body of a request whose interactions' JSON, joined by commas, is `fragment`.

    `interaction-offline` takes the one object itself, the bulk call an array or an object with one.
    """
    if call == "interaction-offline":
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
