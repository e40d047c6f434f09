"""Customer keys as exports spell them: kept to the character, or recognised as damaged by a number's way of writing.

Nothing is trimmed, folded or normalised: a key is what identifies a person, and another spelling is another person.
The one thing that may be mended, when told to, is a whole number that went through a float. Whether a key that is not
damaged is a good one is for `validate`.
"""

from typing import NamedTuple

import polars as pl

WHOLE_NUMBER = "customer_key_whole_number"
EXPONENT = "customer_key_exponent"
IMPRECISE = "customer_key_imprecise"
NOT_WHOLE = "customer_key_not_whole"

FAULT = pl.Enum([WHOLE_NUMBER, EXPONENT, IMPRECISE, NOT_WHOLE])
"""What a key lost on its way through a number."""

_WHOLE = r"^(?:-?[1-9][0-9]*|0)\.0$"
"""As floats are written. `017850.0`, `1.50` and `1.2.0` were never one, so they are keys like any other."""

_EXPONENT = r"^[+-]?[0-9](?:(?:[.,][0-9]+)?[Ee][+-][0-9]{2,3}|\.[0-9]+[Ee]-?[0-9]{1,3})$"
"""As spreadsheets and most languages write it, and as Java does (`2.82E18`). `1E10` may be anybody's key."""

_EXACT: dict[type[pl.DataType], int] = {pl.Float64: 2**53, pl.Float32: 2**24, pl.Float16: 2**11}
"""From here on a float stands for more than one whole number."""


class Keys(NamedTuple):
    """The keys of a column, row by row: `key` (String), and what is wrong with it (`fault`, FAULT, mostly null)."""

    key: pl.Series
    fault: pl.Series


def read_keys(column: pl.Series, *, mend: bool) -> Keys:
    """Read a column of keys: text, or a float of a typed export.

    `mend`: `17850.0` is the key `17850`, where it is sure that no digit was lost.
    """
    if column.dtype.is_float():
        return _read_floats(column, mend=mend)
    fault = pl.repeat(None, len(column), dtype=FAULT, eager=True)
    whole = column.str.ends_with(".0").fill_null(False)
    if whole.any():
        whole &= column.str.contains(_WHOLE).fill_null(False)
        column, fault = _judged(column, fault, whole, _is_exact(column.filter(whole)), mend=mend)
    exponent = column.str.contains(_EXPONENT).fill_null(False)
    if exponent.any():
        fault = fault.zip_with(~exponent, _all(len(fault), EXPONENT))
    return Keys(column, fault)


def _is_exact(written: pl.Series) -> pl.Series:
    """Of whole numbers as text: no digit was lost."""
    number = written.str.head(-2).cast(pl.Int64, strict=False)
    return (number.abs() < _EXACT[pl.Float64]).fill_null(False)


def _read_floats(column: pl.Series, *, mend: bool) -> Keys:
    limit = _EXACT[column.dtype.base_type()]
    column = column.cast(pl.Float64)
    # Zero has no sign as a key.
    column = column.zip_with((column != 0).fill_null(True), pl.repeat(0.0, len(column), eager=True))
    whole = (column.is_finite() & (column == column.floor())).fill_null(False)
    fault = pl.repeat(None, len(column), dtype=FAULT, eager=True)
    fault = fault.zip_with(whole | column.is_null(), _all(len(column), NOT_WHOLE))
    exact = column.filter(whole).abs() < limit
    return Keys(*_judged(column.cast(pl.String), fault, whole, exact, mend=mend))


def _judged(
    column: pl.Series, fault: pl.Series, whole: pl.Series, exact: pl.Series, *, mend: bool
) -> tuple[pl.Series, pl.Series]:
    """With the keys at `whole`, of which `exact` says which lost nothing, mended or refused."""
    rows = whole.arg_true()
    good, lost = rows.filter(exact), rows.filter(~exact)
    fault = fault.scatter(lost, _all(len(lost), IMPRECISE))
    if mend:
        return column.scatter(good, column.gather(good).str.head(-2)), fault
    return column, fault.scatter(good, _all(len(good), WHOLE_NUMBER))


def _all(size: int, reason: str) -> pl.Series:
    return pl.repeat(reason, size, dtype=FAULT, eager=True)


SUSPICIONS = {
    "blank at an end": r"^\p{White_Space}|\p{White_Space}$",
    "unusual blank": r"[\p{White_Space}&&[^ ]]",
    "direction of text": r"\p{Bidi_Control}",
    "invisible": r"[\p{Default_Ignorable_Code_Point}\p{Cf}\p{Co}\x{2800}&&[^\p{Bidi_Control}]]",
}
"""What to say of a key → a pattern of what a person would not see in it. Such keys are good, and seldom meant."""


def suspicious(key: pl.Expr) -> pl.Expr:
    """Whether a key holds something that a person would not see. Never null: no key is not suspicious."""
    return key.str.contains("|".join(SUSPICIONS.values())).fill_null(False)


def suspicions(key: pl.Expr) -> pl.Expr:
    """The names in SUSPICIONS of what a key holds, as List(String); empty for none and for no key."""
    return pl.concat_list(
        pl.when(key.str.contains(pattern)).then(pl.lit(name)) for name, pattern in SUSPICIONS.items()
    ).list.drop_nulls()
