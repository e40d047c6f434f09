"""The rules of a row, each with its answer for a missing value."""

import re
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from backfill.core import keys, timestamps
from backfill.core.config import SECTIONS, Rows, Time
from backfill.core.timestamps import INSTANT
from backfill.core.validate import FAULTS, HINTS, Rules, judge, rules

README = Path(__file__).parents[2] / "README.md"
NOW = datetime(2025, 1, 1, tzinfo=UTC)
GOOD = {
    "timestamp": "2024-03-01T12:00:00Z",
    "customer_key": "c1",
    "customer_key_name": None,
    "url": "api://shop/1",
    "tid": None,
}


def of(time: Time | None = None, rows: Rows | None = None) -> Rules:
    return rules(time or Time(), rows or Rows(), now=NOW)


def reasons(row: dict[str, str | None], rules: Rules | None = None) -> list[str]:
    text = pl.Schema(dict.fromkeys([*GOOD, "property:a"], pl.String))
    judged = judge(pl.DataFrame([{**GOOD, "property:a": "p", **row}], schema=text), rules or of())
    assert judged.valid.height + judged.invalid.height == 1
    return judged.invalid["reasons"].to_list()[0] if judged.invalid.height else []


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({}, []),
        ({"timestamp": None}, ["timestamp_missing"]),
        ({"timestamp": "yesterday"}, ["timestamp_unreadable"]),
        ({"timestamp": "2024-02-30T00:00:00Z"}, ["timestamp_unreadable"]),
        ({"timestamp": "2024-03-01T12:00:00"}, ["timestamp_without_zone"]),
        ({"timestamp": "2025-01-01T00:00:00Z"}, []),
        ({"timestamp": "2025-01-01T00:00:00.000001Z"}, ["timestamp_in_future"]),
        ({"customer_key": None}, ["customer_key_missing"]),
        ({"customer_key": " \u00a0\u2003"}, ["customer_key_blank"]),
        ({"customer_key": " c1 "}, []),
        ({"customer_key": "\u200b"}, []),
        ({"customer_key": "a\tb"}, ["customer_key_control_characters"]),
        ({"customer_key": "a\x7f"}, ["customer_key_control_characters"]),
        ({"customer_key": "\x85"}, ["customer_key_blank", "customer_key_control_characters"]),
        ({"customer_key": "ä" * 1000}, []),
        ({"customer_key": "ä" * 1001}, ["customer_key_too_long"]),
        ({"customer_key": None, "customer_key_name": "email"}, ["customer_key_name_without_key"]),
        ({"url": None}, ["url_missing"]),
        ({"url": "shop/1"}, ["url_not_a_uri"]),
        ({"url": "1api://x"}, ["url_not_a_uri"]),
        ({"url": "api:"}, ["url_not_a_uri"]),
        ({"url": "api://a b"}, ["url_not_a_uri"]),
        ({"url": "api://x\n"}, ["url_not_a_uri"]),
        ({"url": "urn:x"}, []),
        (
            {"timestamp": "x", "customer_key": " ", "url": "-"},
            ["timestamp_unreadable", "customer_key_blank", "url_not_a_uri"],
        ),
        (dict.fromkeys(GOOD), ["timestamp_missing", "customer_key_missing", "url_missing"]),
    ],
)
def test_a_row_leaves_with_all_its_reasons(row: dict[str, str | None], expected: list[str]) -> None:
    """Each rule finds its fault and no other's; a row with several has them all."""
    assert reasons(row) == expected


def test_a_key_may_be_missing_where_none_is_required() -> None:
    """But a key that is there must still be a good one, and a name alone still says nothing."""
    optional = of(rows=Rows(customer_key_required=False))
    assert reasons({"customer_key": None}, optional) == []
    assert reasons({"customer_key": " "}, optional) == ["customer_key_blank"]
    assert reasons({"customer_key": None, "customer_key_name": "n"}, optional) == ["customer_key_name_without_key"]


def test_bounds_are_inclusive() -> None:
    """The instant of the bound itself is still in."""
    bounded = of(Time(not_before="2024-01-01T00:00:00+01:00", not_after="2024-06-30T23:59:59Z"))
    assert reasons({"timestamp": "2023-12-31T23:00:00Z"}, bounded) == []
    assert reasons({"timestamp": "2023-12-31T22:59:59Z"}, bounded) == ["timestamp_before_not_before"]
    assert reasons({"timestamp": "2024-06-30T23:59:59Z"}, bounded) == []
    assert reasons({"timestamp": "2024-07-01T00:00:00Z"}, bounded) == ["timestamp_in_future"]


def test_no_rule_answers_null() -> None:
    """`when(null)` does not fire: a rule that answered null would let the row through in silence."""
    empty = pl.DataFrame([dict.fromkeys(GOOD)], schema=dict.fromkeys(GOOD, pl.String)).with_columns(
        pl.lit(None, INSTANT).alias("timestamp"),
        given=pl.lit(False),
        timestamp_fault=pl.lit(None, timestamps.FAULT),
        key_fault=pl.lit(None, keys.FAULT),
    )
    for time in (Time(), Time(not_before="2024-01-01T00:00:00Z")):
        for reason, fault in FAULTS.items():
            assert empty.select(fault(of(time))).item() is not None, reason


def test_invalid_rows_keep_their_place_and_lose_their_content() -> None:
    """What the ledger needs stays; the address and the properties go."""
    rows = pl.DataFrame(
        {**{k: [v] * 2 for k, v in GOOD.items()}, "property:a": ["a", "b"], "row": [1, 2]}
    ).with_columns(pl.Series("url", ["api://x", None]), pl.col("customer_key_name", "tid").cast(pl.String))
    judged = judge(rows, of())
    assert judged.valid["row"].to_list() == [1]
    assert judged.invalid.columns == ["timestamp", "customer_key", "customer_key_name", "tid", "row", "reasons"]
    assert judged.invalid["timestamp"].to_list() == [datetime(2024, 3, 1, 12, tzinfo=UTC)]
    assert judge(rows.clear(), of()).invalid.schema == judged.invalid.schema


def test_every_reason_has_a_hint_and_a_line_in_the_readme() -> None:
    """Whoever meets a machine word finds what is wrong and what to change."""
    assert list(HINTS) == list(FAULTS)
    assert all(hint.endswith(".") and len(hint) > 40 for hint in HINTS.values())
    table = re.findall(
        r"^\| `((?:timestamp|customer_key|url)_[a-z_]+)` \|", README.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert table == list(FAULTS)


def test_hints_name_only_keys_that_exist() -> None:
    """A remedy that cannot be configured is none."""
    known = {f"{section}.{key}" for section, model in SECTIONS.items() for key in model.model_fields}
    named = {name for hint in HINTS.values() for name in re.findall(r"\b(?:time|rows|csv|columns)\.[a-z_]+", hint)}
    assert named <= known
    assert {"time.fold", "rows.whole_number_keys", "csv.null_values"} <= named


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"timestamp": "1.54111E+12"}, ["timestamp_spreadsheet_number"]),
        ({"timestamp": "1709373600000"}, ["timestamp_number"]),
        ({"timestamp": "2024-06-30T23:59:60Z"}, ["timestamp_leap_second"]),
        ({"customer_key": "17850.0"}, ["customer_key_whole_number"]),
        ({"customer_key": "2.82E+18"}, ["customer_key_exponent"]),
        ({"customer_key": "9007199254740993.0"}, ["customer_key_imprecise"]),
        (
            {"timestamp": "45292.5", "customer_key": "1.0"},
            ["timestamp_spreadsheet_number", "customer_key_whole_number"],
        ),
    ],
)
def test_what_a_number_made_of_a_value_is_named(row: dict[str, str | None], expected: list[str]) -> None:
    """The faults that reading finds arrive among a row's reasons."""
    assert reasons(row) == expected


def test_a_mended_key_is_the_key_of_the_row() -> None:
    """What goes on is the number without its .0, in a valid row."""
    row = pl.DataFrame([{**GOOD, "customer_key": "17850.0"}], schema=dict.fromkeys(GOOD, pl.String))
    judged = judge(row, of(rows=Rows(whole_number_keys="mend")))
    assert judged.valid["customer_key"].to_list() == ["17850"]


def test_float_keys_of_a_typed_export_become_text_in_both_parts() -> None:
    """Valid and invalid rows have text for a key, whatever it was."""
    rows = pl.DataFrame(
        {name: [value] * 3 for name, value in GOOD.items()}, schema=dict.fromkeys(GOOD, pl.String)
    ).with_columns(customer_key=pl.Series([17850.0, float("nan"), 2.0**53]))
    judged = judge(rows, of(rows=Rows(whole_number_keys="mend")))
    assert judged.valid["customer_key"].to_list() == ["17850"]
    assert judged.invalid["customer_key"].to_list() == ["NaN", "9007199254740992.0"]
    assert judged.invalid["reasons"].to_list() == [["customer_key_not_whole"], ["customer_key_imprecise"]]
