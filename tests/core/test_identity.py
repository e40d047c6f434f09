"""What stands for an interaction: by which rows are equal, and by which they are not."""

from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars_hash import NonCryptographicHashingNameSpace as Hash

from backfill.core.columns import IDENTITY
from backfill.core.identity import IDENTITY_SCHEMA, fingerprint, halves, identified

COLUMNS = ("a", "b:1=")
SCHEMA = dict.fromkeys(
    ("customer_key", "customer_key_name", "tid", *(IDENTITY + name for name in COLUMNS)), pl.String()
)
ROW = {"customer_key": "c", IDENTITY + "a": "1", IDENTITY + "b:1=": "2"}
VALUES = st.none() | st.text(st.sampled_from("12:-=kt\0"), max_size=4)


def prints(*rows: dict[str, Any], columns: tuple[str, ...] = tuple(SCHEMA)) -> list[int | None]:
    frame = identified(pl.DataFrame(list(rows), schema=SCHEMA).select(columns))
    return frame.select(fingerprint()).to_series().to_list()


def test_the_identity_is_known_forever() -> None:
    """It is kept across loads and versions: these are xxh3_128 of the texts written out here."""
    texts = ["14:kcustomerkey\0c1:a=1:14:b:1==1:2", "2:tt1:a=2:ä4:b:1==-"]
    hashes = [8387273923750600836913333985900010299, 66434943341225623805113955907804973484]
    assert prints(ROW, {"tid": "t", IDENTITY + "a": "ä"}) == hashes
    assert pl.DataFrame({"text": texts}).select(Hash(pl.col("text")).xxh3_128()).to_series().to_list() == hashes


@given(st.lists(st.fixed_dictionaries(dict.fromkeys(SCHEMA, VALUES)), min_size=2, max_size=12))
def test_two_rows_are_one_exactly_where_customer_and_values_are_equal(rows: list[dict[str, Any]]) -> None:
    """Whatever stands in them, null and every text apart; without any value there is no identity."""

    def meant(row: dict[str, Any]) -> object:
        values = tuple(row[IDENTITY + name] for name in COLUMNS)
        if not any(value is not None for value in values):
            return None
        if row["customer_key"] is not None:
            name = "customerkey" if row["customer_key_name"] is None else row["customer_key_name"]
            # No key holds a control character (`validate`), so this text is unlike any other name and key.
            return f"k{name}\0{row['customer_key']}", values
        return None if row["tid"] is None else f"t{row['tid']}", values

    found = prints(*rows)
    for one, its in zip(rows, found, strict=True):
        for other, others in zip(rows, found, strict=True):
            assert (its == others) == (meant(one) == meant(other))


def test_the_names_of_the_columns_count_and_their_order_does_not() -> None:
    """Another identity is another memory; written in another order it is the same."""
    whole = tuple(SCHEMA)
    assert prints(ROW, columns=whole) == prints(ROW, columns=whole[::-1])
    renamed = pl.DataFrame([ROW], schema=SCHEMA).rename({IDENTITY + "a": IDENTITY + "A"})
    assert identified(renamed).select(fingerprint()).item() != prints(ROW)[0]


def test_without_identity_columns_rows_stay_as_they_are() -> None:
    """The plain case costs nothing."""
    frame = pl.DataFrame([ROW], schema=SCHEMA).select("customer_key", "customer_key_name", "tid")
    assert identified(frame) is frame


def test_the_columns_themselves_are_not_carried_on() -> None:
    """Only their hash is, in two types that Parquet has."""
    frame = identified(pl.DataFrame([ROW], schema=SCHEMA))
    assert dict(frame.schema) == dict(list(SCHEMA.items())[:3]) | IDENTITY_SCHEMA


@pytest.mark.parametrize("number", [0, 1, 2**64 - 1, 2**64, 2**128 - 1])
def test_halves_lose_nothing(number: int) -> None:
    """Every bit of 128 comes back."""
    frame = pl.DataFrame({"whole": pl.Series([number], dtype=pl.UInt128)}).select(halves("whole", *IDENTITY_SCHEMA))
    assert frame.select(fingerprint()).item() == number
