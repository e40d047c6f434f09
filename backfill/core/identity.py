"""Which interactions are the same: what stands for one when it is looked for among millions.

Values in, hashes out; the hashes are kept across loads and versions, so what they are made of may never change. Never
looks for a twin: that is `arrange`'s matter within a load, and `backfill.repeats`' across loads.
"""

import polars as pl
from polars_hash import NonCryptographicHashingNameSpace as Hash

from backfill.core.columns import IDENTITY

DEFAULT_KEY_NAME = "customerkey"
"""What the API takes for a key without a name (API reference, `customerKeyName`)."""

IDENTITY_SCHEMA = {"identity_high": pl.UInt64(), "identity_low": pl.UInt64()}
"""What `identified` puts in place of the columns of `rows.identity`. In two halves: UInt128 is no type of Parquet's."""


def customer() -> pl.Expr:
    """Whose interaction a row is, as text: (key name, key), else its tid; null with neither."""
    # The letter keeps keys and tids apart. No key holds a control character, so the last NUL ends the name.
    by_key = pl.concat_str(
        pl.lit("k"), pl.col("customer_key_name").fill_null(DEFAULT_KEY_NAME), pl.lit("\0"), pl.col("customer_key")
    )
    return pl.coalesce(by_key, pl.concat_str(pl.lit("t"), pl.col("tid")))


def identified(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows with IDENTITY_SCHEMA instead of `identity:...`; as they are where `rows.identity` names no column.

    Equal for two rows of one customer with the same values in the same columns, whatever else differs; no value is
    another value than any text. Null where a row has none of these values: then only its whole content tells it from
    others, or all such rows of a customer were one.
    """
    columns = sorted(name for name in rows.columns if name.startswith(IDENTITY))
    if not columns:
        return rows
    # Each text behind its length, so that no two rows are spelled alike whatever stands in them.
    told = [_measured(customer())]
    for column in columns:
        name = column.removeprefix(IDENTITY)
        told += [pl.lit(f"{len(name.encode())}:{name}="), _measured(pl.col(column))]
    some = pl.any_horizontal(pl.col(columns).is_not_null())
    whole = rows.select(Hash(pl.when(some).then(pl.concat_str(told))).xxh3_128().alias("whole"))
    return rows.drop(columns).hstack(whole.select(halves("whole", *IDENTITY_SCHEMA)))


def fingerprint() -> pl.Expr:
    """The identity of rows that `identified` gave, as one UInt128."""
    high, low = (pl.col(name).cast(pl.UInt128) for name in IDENTITY_SCHEMA)
    return high * pl.lit(2**64, pl.UInt128) + low


def halves(column: str, high: str = "high", low: str = "low") -> list[pl.Expr]:
    """A UInt128 as two UInt64 of these names."""
    whole = pl.col(column)
    return [(whole // 2**64).cast(pl.UInt64).alias(high), (whole % 2**64).cast(pl.UInt64).alias(low)]


def _measured(text: pl.Expr) -> pl.Expr:
    return pl.concat_str(text.str.len_bytes().cast(pl.String), pl.lit(":"), text).fill_null("-")
