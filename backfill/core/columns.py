"""Which column of an export becomes which part of an interaction.

Compares the configuration with a header and says what is missing. Never looks at a value: whether one is good
is for `validate`.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import polars as pl

from backfill.core.config import Columns, ColumnSource, Constant, Csv, FromColumn, Template
from backfill.core.errors import ConfigurationError
from backfill.core.header import advice, looks_like_data, shown

TEXT_PARTS = ("customer_key", "customer_key_name", "url", "tid")
"""The parts of an interaction that are text, under the names that they have in every staged file."""

PROPERTY = "property:"
"""What a property's name is preceded by where it names a column of ours, so that it cannot meet another."""

IDENTITY = "identity:"
"""As PROPERTY, of a column that `rows.identity` names. It may be any other part as well, and is kept as text beside."""

_TEMPLATE = re.compile(r"\{\{|\}\}|\{([^{}]+)\}|[{}]")
_DATETIME_TEXT = "%Y-%m-%dT%H:%M:%S%.f"
_YEAR_1_DAY, _YEAR_10000_DAY = -719_162, 2_932_897  # from 1970-01-01 on


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnMap:
    """The configuration's `[columns]`, matched to one header.

    `properties` pairs columns with property names, sorted by name, so that one interaction has one spelling
    whatever the order of an export's columns.
    """

    timestamp: ColumnSource
    customer_key: ColumnSource | None
    customer_key_name: ColumnSource | None
    url: ColumnSource
    tid: ColumnSource | None
    properties: tuple[tuple[str, str], ...]
    identity: tuple[str, ...] = ()

    @property
    def used(self) -> tuple[str, ...]:
        """The columns that are read, each once; a reader may leave out all others."""
        parts = (self.timestamp, self.customer_key, self.customer_key_name, self.url, self.tid)
        named = [column for part in parts for column in columns_of(part)]
        return tuple(dict.fromkeys([*named, *(column for column, _ in self.properties), *self.identity]))

    def select(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The parts of each row under fixed names, so that nothing further on knows the export's columns.

        Shape: (rows, 5 + properties + identity): `timestamp` (text, or a Date or Datetime of a typed export),
        `customer_key` (text, or a Float of a typed export), `customer_key_name`, `url`, `tid` and, by name,
        `property:...`, `identity:...` (text). Empty text is no value: null. A key name that is not a column of its own
        says nothing without a key, so it is null where the key is.
        """
        schema = frame.schema
        timestamp = _text(self.timestamp, schema)
        if isinstance(self.timestamp, FromColumn) and schema[self.timestamp.column].is_temporal():
            timestamp = pl.col(self.timestamp.column)
        key = _text(self.customer_key, schema)
        if isinstance(self.customer_key, FromColumn) and schema[self.customer_key.column].is_float():
            key = pl.col(self.customer_key.column)
        key_name = _text(self.customer_key_name, schema)
        if not isinstance(self.customer_key_name, FromColumn):
            key_name = pl.when(key.is_not_null()).then(key_name)
        return frame.select(
            timestamp.alias("timestamp"),
            key.alias("customer_key"),
            key_name.alias("customer_key_name"),
            _text(self.url, schema).alias("url"),
            _text(self.tid, schema).alias("tid"),
            *(_column_text(column, schema).alias(PROPERTY + name) for column, name in self.properties),
            *(_column_text(column, schema).alias(IDENTITY + column) for column in self.identity),
        )


def columns_of(source: ColumnSource | None) -> tuple[str, ...]:
    """The columns that a source reads: none, one, or those of a template."""
    match source:
        case FromColumn(column=column):
            return (column,)
        case Template(template=template):
            return tuple(piece for piece, is_column in _pieces(template) if is_column)
        case _:
            return ()


def resolve(
    columns: Columns,
    header: Sequence[str],
    *,
    export: str,
    key_required: bool,
    identity: Sequence[str] = (),
    beginning: Sequence[str] = (),
    csv: Csv | None = None,
) -> ColumnMap:
    """Match the configuration to the header of `export`.

    `beginning`: the first lines of a CSV, for advice on `csv` where they are not read as they are meant.
    Raises ConfigurationError that names the export, the configuration key and the nearest column when a column is
    missing. Where no key is required and nobody chose a key column, a missing `customer_key` is no error.
    """
    customer_key = columns.customer_key
    key_was_chosen = "customer_key" in columns.model_fields_set
    if not key_required and not key_was_chosen and isinstance(customer_key, FromColumn):
        customer_key = customer_key if customer_key.column in header else None
    if customer_key is None and key_required:
        raise ConfigurationError(
            "columns.customer_key is empty, but every row must have a customer key. "
            "Name the column, or set rows.customer_key_required = false."
        )
    parts = {
        "timestamp": columns.timestamp,
        "customer_key": customer_key,
        "customer_key_name": columns.customer_key_name,
        "url": columns.url,
        "tid": columns.tid,
    }
    taken = {column: f"columns.{key}" for key, source in parts.items() for column in columns_of(source)}
    wanted = {
        **dict.fromkeys(identity, "rows.identity"),
        **dict.fromkeys(columns.properties or (), "columns.properties"),
        **taken,
    }
    for column in (*taken, *wanted):
        if column not in header:
            why = advice(tuple(wanted), header, beginning, csv) if csv is not None and beginning else ""
            raise _missing(column, header, export=export, key=wanted[column], why=why)
    return ColumnMap(
        timestamp=columns.timestamp,
        customer_key=customer_key,
        customer_key_name=columns.customer_key_name,
        url=columns.url,
        tid=columns.tid,
        properties=_properties(columns.properties, header, taken),
        identity=tuple(sorted(identity)),
    )


def _properties(
    chosen: list[str] | dict[str, str] | None, header: Sequence[str], taken: Collection[str]
) -> tuple[tuple[str, str], ...]:
    pairs: Iterable[tuple[str, str]]
    if chosen is None:
        pairs = [(column, column) for column in header if column not in taken]
    elif isinstance(chosen, dict):
        pairs = chosen.items()
    else:
        pairs = [(column, column) for column in chosen]
    # Names differ: the configuration and the header have been checked for that.
    by_name = {name: column for column, name in pairs}
    return tuple((by_name[name], name) for name in sorted(by_name))


def _missing(column: str, header: Sequence[str], *, export: str, key: str, why: str) -> ConfigurationError:
    folded = {name.casefold(): name for name in reversed(header)}
    near = get_close_matches(column.casefold(), folded, n=1, cutoff=0.5)
    if near and not looks_like_data(header):
        hint = f"Did you mean {folded[near[0]]!r}?"
        hint = f"{why} Otherwise: {hint[0].lower()}{hint[1:]}" if why else hint
    else:
        hint = why or f"It has: {shown(header)}."
    return ConfigurationError(f"{export} has no column {column!r}, which {key} names. {hint}")


def _pieces(template: str) -> list[tuple[str, bool]]:
    """The template as (text, is a column name). `{{` and `}}` stand for single braces."""
    pieces: list[tuple[str, bool]] = []
    position = 0
    for found in _TEMPLATE.finditer(template):
        pieces.append((template[position : found.start()], False))
        position = found.end()
        match found.group():
            case "{{" | "}}" as brace:
                pieces.append((brace[0], False))
            case "{" | "}":
                raise ConfigurationError(
                    f"The template {template!r} has a brace without its partner. "
                    "Write {column} for a column and {{ or }} for a brace."
                )
            case _:
                pieces.append((found.group(1), True))
    pieces.append((template[position:], False))
    return [piece for piece in pieces if piece[0]]


def _text(source: ColumnSource | None, schema: pl.Schema) -> pl.Expr:
    match source:
        case FromColumn(column=column):
            return _column_text(column, schema)
        case Constant(value=value):
            return pl.lit(value if value else None, dtype=pl.String)
        case Template(template=template):
            # A part without value leaves the whole without value: concat_str answers null for any null.
            return pl.concat_str(
                _column_text(piece, schema) if is_column else pl.lit(piece) for piece, is_column in _pieces(template)
            )
        case _:
            return pl.lit(None, dtype=pl.String)


def _column_text(column: str, schema: pl.Schema) -> pl.Expr:
    dtype = schema[column]
    value = pl.col(column)
    if isinstance(dtype, pl.Date | pl.Datetime):
        return date_text(value, dtype)
    if dtype != pl.String:
        value = value.cast(pl.String)
    return value.replace("", None)


def date_text(value: pl.Expr, dtype: pl.Date | pl.Datetime) -> pl.Expr:
    """As ISO 8601, with Z where the zone is known. What lies outside of the years 1 to 9999, such as another system's
    word for "for ever", is told as the count that it is: polars panics where it is to write some of them."""
    unit = dtype.time_unit if isinstance(dtype, pl.Datetime) else "days"
    form = _DATETIME_TEXT if isinstance(dtype, pl.Datetime) else "%Y-%m-%d"
    zoned = isinstance(dtype, pl.Datetime) and dtype.time_zone is not None

    def written(moment: pl.Expr) -> pl.Expr:
        return (moment.dt.convert_time_zone("UTC") if zoned else moment).dt.to_string(form + "Z" * zoned)

    if unit == "ns":
        return written(value)  # they all lie between 1677 and 2262
    count = value.to_physical().cast(pl.Int64)
    per_day = {"days": 1, "ms": 86_400_000, "us": 86_400_000_000}[unit]
    inside = count.is_between(_YEAR_1_DAY * per_day, _YEAR_10000_DAY * per_day, closed="left")
    as_count = pl.concat_str(count.cast(pl.String), pl.lit(f" {unit} since 1970-01-01"))
    return pl.when(inside).then(written(pl.when(inside).then(value))).otherwise(as_count)
