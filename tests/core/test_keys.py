"""Customer keys, kept to the character or recognised as what a number made of them."""

import unicodedata

import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from backfill.core.keys import EXPONENT, IMPRECISE, NOT_WHOLE, WHOLE_NUMBER, read_keys, suspicions, suspicious


def read(
    key: str | float | None, *, mend: bool = False, dtype: pl.DataType | None = None
) -> tuple[str | None, str | None]:
    column = pl.Series([key], dtype=dtype or (pl.Float64() if isinstance(key, float) else pl.String()))
    keys = read_keys(column, mend=mend)
    return keys.key.item(), keys.fault.item()


@pytest.mark.parametrize(
    ("key", "fault", "mended"),
    [
        ("17850.0", WHOLE_NUMBER, "17850"),
        ("0.0", WHOLE_NUMBER, "0"),
        ("-5.0", WHOLE_NUMBER, "-5"),
        ("9007199254740991.0", WHOLE_NUMBER, "9007199254740991"),
        ("9007199254740992.0", IMPRECISE, None),
        ("-9007199254740992.0", IMPRECISE, None),
        ("99999999999999999999.0", IMPRECISE, None),
        ("2.82E+18", EXPONENT, None),
        ("2.82e+18", EXPONENT, None),
        ("2,82E+18", EXPONENT, None),
        ("5E-07", EXPONENT, None),
        ("1E+100", EXPONENT, None),
        ("2.82E18", EXPONENT, None),
        ("5.0E-7", EXPONENT, None),
    ],
)
def test_numbers_that_went_through_a_float_are_recognised(key: str, fault: str, mended: str | None) -> None:
    """Refused; mended only where no digit can be lost, and only when told to."""
    assert read(key) == (key, fault)
    assert read(key, mend=True) == ((mended, None) if mended else (key, fault))


@pytest.mark.parametrize(
    "key",
    [
        "17850",
        "017850.0",
        "17850.00",
        "1.2.0",
        "v1.0",
        ".0",
        "17850.0 ",
        "12.5",
        "1e5",
        "12E+18",
        "2.82E+1",
        "E+18",
        "NaN",
        "null",
        "-",
        "?",
        " c ",
        "c\u00a0",
        "A",
        "a",
        "\u00e4",
        "a\u0308",
        "\u0661.0",
        "\u200bx",
        "-0.0",
        "+1.0",
        "1E10",
        "1E10.0",
    ],
)
def test_all_other_text_is_a_key_to_the_character(key: str) -> None:
    """Neither trimmed nor folded nor normalised, with the mending rule or without."""
    assert read(key) == read(key, mend=True) == (key, None)


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"])), min_size=1))
def test_any_text_comes_back_unchanged_or_with_a_fault(keys: list[str | None]) -> None:
    """Without the mending rule no key ever changes; null stays null and has no fault."""
    got = read_keys(pl.Series(keys, dtype=pl.String), mend=False)
    assert got.key.to_list() == keys
    assert all(fault is None for key, fault in zip(keys, got.fault.to_list(), strict=True) if key is None)


@settings(deadline=None)  # a busy machine is no failure
@given(st.integers(-(2**60), 2**60))
def test_a_mended_key_is_the_integer_that_the_float_was_made_of(number: int) -> None:
    """As text and as a typed float; where the float may stand for another integer, it is refused."""
    text = f"{number}.0"
    for key in (text, float(number)):
        got, fault = read(key, mend=True)
        if abs(number) < 2**53:
            assert (got, fault) == (str(number), None)
        else:
            assert fault == IMPRECISE


@settings(deadline=None)  # a busy machine is no failure
@given(st.floats())
def test_typed_floats_follow_the_rules_of_their_text(number: float) -> None:
    """A whole number as Python's int says; all else, NaN and infinity included, is refused."""
    assume(number != 0)
    whole = number == number and number not in (float("inf"), float("-inf")) and number.is_integer()
    got, fault = read(number)
    assert fault == (NOT_WHOLE if not whole else IMPRECISE if abs(number) >= 2**53 else WHOLE_NUMBER)
    if fault == WHOLE_NUMBER:
        assert read(number, mend=True) == (str(int(number)), None)
        assert read(got) == (got, WHOLE_NUMBER)


def test_a_typed_zero_has_no_sign() -> None:
    """Minus zero is a way of floats, not of keys."""
    assert read(-0.0, mend=True) == ("0", None)


def test_short_floats_lose_digits_sooner() -> None:
    """32 bits tell whole numbers apart up to 2^24."""
    assert read(2.0**24 - 1, mend=True, dtype=pl.Float32()) == ("16777215", None)
    assert read(2.0**24, mend=True, dtype=pl.Float32())[1] == IMPRECISE


def test_half_floats_lose_digits_soonest() -> None:
    """16 bits tell whole numbers apart up to 2^11: 2049 is kept as 2048."""
    assert read(2.0**11 - 1, mend=True, dtype=pl.Float16()) == ("2047", None)
    assert read(2.0**11, mend=True, dtype=pl.Float16())[1] == IMPRECISE
    assert read(2049.0, mend=True, dtype=pl.Float16())[1] == IMPRECISE


def test_a_missing_float_is_a_missing_key() -> None:
    """Null has no fault here: that it is missing is another rule's word."""
    assert read(None, dtype=pl.Float64()) == (None, None)


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("c1", []),
        ("a b", []),
        ("\u00e4\u0308\u6f22\U0001f600", []),
        (None, []),
        (" c1", ["blank at an end"]),
        ("c1\n", ["blank at an end", "unusual blank"]),
        ("a\u00a0b", ["unusual blank"]),
        ("c\u3000", ["blank at an end", "unusual blank"]),
        ("a\u202eb", ["direction of text"]),
        ("\u200fa", ["direction of text"]),
        ("a\u2066b\u2069", ["direction of text"]),
        ("a\u200bb", ["invisible"]),
        ("a\u00adb", ["invisible"]),
        ("\ufeffa", ["invisible"]),
        ("a\u3164", ["invisible"]),
        ("a\ue000", ["invisible"]),
        ("a\ufe0f", ["invisible"]),
        ("\u2800a", ["invisible"]),
        ("a\U000e0041", ["invisible"]),
    ],
)
def test_what_nobody_sees_in_a_key_is_named(key: str | None, names: list[str]) -> None:
    """Each kind by its name, and no key that shows all of itself."""
    column = pl.DataFrame({"key": [key]}, schema={"key": pl.String})
    assert column.select(suspicions(pl.col("key"))).item().to_list() == names
    assert column.select(suspicious(pl.col("key"))).item() is bool(names)


@settings(deadline=None)  # a busy machine is no failure
@given(st.characters(categories=["Cf", "Zs", "Zl", "Zp", "Co"]))
def test_no_format_character_and_no_blank_but_the_plain_one_goes_unseen(character: str) -> None:
    """Python's Unicode database is the measure."""
    column = pl.DataFrame({"key": [f"a{character}b"]})
    assert column.select(suspicious(pl.col("key"))).item() is (character != " "), unicodedata.name(character, "?")
