"""Timestamps and customer keys as exports spell them, in CSV and in Parquet."""

import io
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time
from typing import Any

import polars as pl

from tests.corpus.case import KEY, Case, Invalid, Row, Sent
from tests.corpus.text import key

NOON = 1_709_294_400_000
"""2024-03-01T12:00:00Z in epoch ms."""

HOUR = 3_600_000


def times(name: str, pairs: Sequence[tuple[str, int | str]], **time: object) -> Case:
    """A CSV of timestamps, each with its epoch ms or the reason why it has none."""
    lines = ["timestamp,customer_key,url"]
    lines += [f'"{text}",{key(number)},api://shop/x' for number, (text, _) in enumerate(pairs, start=1)]
    content = "".join(line + "\n" for line in lines)
    rows: list[Row] = [
        Invalid(line=number + 1, reasons=[verdict])
        if isinstance(verdict, str)
        else Sent(line=number + 1, key=key(number), at=verdict)
        for number, (_, verdict) in enumerate(pairs, start=1)
    ]
    return Case(name=name, make=content.encode, config=_config(time=time), rows=rows)


def keys(name: str, pairs: Sequence[tuple[str, str | None]], rule: str = "refuse", **csv: object) -> Case:
    """A CSV of keys, each with the key that is sent; None where the next entry of a pair is the reason."""
    lines = ["timestamp,customer_key,url"] + [f'2024-03-01T12:00:00Z,"{text}",api://shop/x' for text, _ in pairs]
    content = "".join(line + "\n" for line in lines)
    return Case(
        name=name,
        make=content.encode,
        config=_config(rows={"whole_number_keys": rule}, csv=csv),
        rows=[_row(verdict or text, number + 1) for number, (text, verdict) in enumerate(pairs, start=1)],
    )


def typed(name: str, values: Mapping[str, Any], verdicts: Sequence[Row], **config: Mapping[str, object]) -> Case:
    """A Parquet file of these values beside good ones."""
    size = len(verdicts)
    good = {"timestamp": ["2024-03-01T12:00:00Z"] * size, "customer_key": [key(n + 1) for n in range(size)]}
    frame = pl.DataFrame(good | {"url": ["api://shop/x"] * size} | dict(values))

    def made() -> bytes:
        content = io.BytesIO()
        frame.write_parquet(content)
        return content.getvalue()

    return Case(name=name, make=made, file="export.parquet", config=_config(**config), rows=verdicts)


def _config(**sections: Mapping[str, object]) -> dict[str, dict[str, object]]:
    given = {section: dict(values) for section, values in sections.items() if values}
    given.setdefault("rows", {})["max_rejected"] = 100
    return given


def _row(verdict: str, line: int | None) -> Row:
    if verdict.startswith("customer_key_"):
        return Invalid(line=line, reasons=[verdict])
    return Sent(line=line, key=verdict)


_FIRST_OF_TWO = 1_729_989_000_000
"""2024-10-27T00:30:00Z: half past two in Berlin, in summer time."""

CASES: list[Case] = [
    times(
        "time-iso",
        [
            ("2024-03-01T12:00:00Z", NOON),
            ("2024-03-01t14:00:00+02:00", NOON),
            ("2024-03-01 12:00:00.123456789Z", NOON + 123),
            ("2024-03-01T12:00:00,9999Z", NOON + 999),
            ("20240301T120000Z", NOON),
            ("2024-061T12Z", NOON),
            ("2024-W09-5T12:00-00:00", NOON),
            ("2024-02-29T24:00:00Z", NOON - 12 * HOUR),
            ("1969-12-31T23:59:59.9999999Z", -1),
            ("2024-03-01T12:00:00", "timestamp_without_zone"),
            ("2024-03-01", "timestamp_without_zone"),
            ("", "timestamp_missing"),
            ("yesterday", "timestamp_unreadable"),
            ("01/02/24 10:00", "timestamp_unreadable"),
            ("2023-02-29T12:00:00Z", "timestamp_unreadable"),
            ("2024-03-01T24:00:01Z", "timestamp_unreadable"),
            ("2024-03-01T12:30.5Z", "timestamp_unreadable"),
            ("\u0662\u0660\u0662\u0664-03-01T12:00:00Z", "timestamp_unreadable"),
            ("2016-12-31T23:59:60Z", "timestamp_leap_second"),
            ("1.54111E+12", "timestamp_spreadsheet_number"),
            ("45292.5", "timestamp_spreadsheet_number"),
            ("1709294400000", "timestamp_number"),
            ("2999-01-01T00:00:00Z", "timestamp_in_future"),
        ],
    ),
    times("time-zone", [("2024-03-01 13:00", NOON), ("2024-07-01", 1_719_784_800_000)], zone="Europe/Berlin"),
    times(
        "time-fold-refused",
        [("2024-10-27 02:30", "timestamp_ambiguous"), ("2024-03-31 02:30", "timestamp_in_gap")],
        zone="Europe/Berlin",
    ),
    times(
        "time-fold-earlier",
        [("2024-10-27 02:30", _FIRST_OF_TWO), ("2024-03-31 02:30", "timestamp_in_gap")],
        zone="Europe/Berlin",
        fold="earlier",
    ),
    times(
        "time-fold-later",
        [("2024-10-27 02:30", _FIRST_OF_TWO + HOUR), ("2024-03-31 02:30", "timestamp_in_gap")],
        zone="Europe/Berlin",
        fold="later",
    ),
    times(
        "time-formats",
        [
            ("01.03.2024 12:00:00", NOON),
            ("03/01/2024 12:00 PM", NOON),
            ("1709294400", NOON),
            ("01.03.24 12:00:00", "timestamp_unreadable"),
            ("31.12.2016 23:59:60", "timestamp_leap_second"),
            ("2024-03-01T12:00:00Z", "timestamp_unreadable"),
        ],
        zone="UTC",
        formats=["%d.%m.%Y %H:%M:%S", "%m/%d/%Y %I:%M %p", "epoch_s"],
    ),
    times(
        "time-epoch-s",
        [
            ("1709294400", NOON),
            ("1709294400.5", NOON + 500),
            ("-1", -1_000),
            ("1709294400000", "timestamp_epoch_unit"),
            ("1.7E+9", "timestamp_spreadsheet_number"),
        ],
        formats=["epoch_s"],
    ),
    times(
        "time-epoch-ms",
        [("1709294400000", NOON), ("1709294400000.0", NOON), ("1709294400", "timestamp_epoch_unit")],
        formats=["epoch_ms"],
    ),
    times(
        "time-epoch-us",
        [("1709294400000999", NOON), ("1709294400000", "timestamp_epoch_unit")],
        formats=["epoch_us"],
    ),
    Case(
        name="time-of-two-columns",
        make=lambda: (
            "date,time,customer_key,url\n"
            f"01.03.2024,13:00,{key(1)},api://shop/x\n"
            f"01.03.2024,,{key(2)},api://shop/x\n"
            f",13:00,{key(3)},api://shop/x\n"
        ).encode(),
        config=_config(
            columns={"timestamp": {"template": "{date} {time}"}},
            time={"zone": "Europe/Berlin", "formats": ["%d.%m.%Y %H:%M"]},
        ),
        rows=[
            Sent(line=2, key=key(1), at=NOON),
            Invalid(line=3, reasons=["timestamp_missing"]),
            Invalid(line=4, reasons=["timestamp_missing"]),
        ],
    ),
    typed(
        "time-of-two-typed-columns",
        {"timestamp": [None], "date": [date(2024, 3, 1)], "time": [time(12, 0)]},
        [Sent(line=None, key=key(1), at=NOON)],
        columns={"timestamp": {"template": "{date}T{time}"}, "properties": []},
        time={"zone": "UTC"},
    ),
    typed(
        "time-typed-zone",
        {"timestamp": pl.Series([datetime(2024, 3, 31, 2, 30), datetime(2024, 3, 1, 13), None])},  # noqa: DTZ001
        [
            Invalid(line=None, reasons=["timestamp_in_gap"]),
            Sent(line=None, key=key(2), at=NOON),
            Invalid(line=None, reasons=["timestamp_missing"]),
        ],
        time={"zone": "Europe/Berlin"},
    ),
    typed(
        "time-typed-instant",
        {"timestamp": pl.Series([datetime(2024, 3, 1, 12, tzinfo=UTC)])},
        [Sent(line=None, key=key(1), at=NOON)],
    ),
    typed(
        "time-typed-float",
        {"timestamp": pl.Series([float(NOON), NOON + 0.5])},
        [Sent(line=None, key=key(1), at=NOON), Sent(line=None, key=key(2), at=NOON)],
        time={"formats": ["epoch_ms"]},
    ),
    keys(
        "key-numbers-refused",
        [
            ("17850.0", "customer_key_whole_number"),
            ("2.82E+18", "customer_key_exponent"),
            ("2.82e+18", "customer_key_exponent"),
            ("9007199254740993.0", "customer_key_imprecise"),
            ("17850", None),
            ("0017850", None),
            ("17850.50", None),
        ],
    ),
    keys(
        "key-numbers-mended",
        [
            ("17850.0", "17850"),
            ("2.82E+18", "customer_key_exponent"),
            ("9007199254740993.0", "customer_key_imprecise"),
            ("0017850.0", None),
        ],
        rule="mend",
    ),
    keys(
        "key-to-the-character",
        [
            (f"{KEY} ", None),
            (f" {KEY}", None),
            (f"{KEY}\u00e4", None),
            (f"{KEY}a\u0308", None),
            (f"{KEY}\u202e", None),
            (f"{KEY}\u200b", None),
            (KEY.lower(), None),
            (KEY, None),
            ("\u00a0 ", "customer_key_blank"),
            ("", "customer_key_missing"),
            ("x" * 1000, None),
            ("x" * 1001, "customer_key_too_long"),
        ],
    ),
    keys(
        "key-missing-words",
        [("NaN", "customer_key_missing"), ("?", "customer_key_missing"), ("nan", None), ("-", None)],
        null_values=["NaN", "?"],
    ),
    typed(
        "key-floats-refused",
        {"customer_key": pl.Series([17850.0, 12.5, float("nan"), float("inf"), 2.82e18, None])},
        [
            Invalid(line=None, reasons=["customer_key_whole_number"]),
            Invalid(line=None, reasons=["customer_key_not_whole"]),
            Invalid(line=None, reasons=["customer_key_not_whole"]),
            Invalid(line=None, reasons=["customer_key_not_whole"]),
            Invalid(line=None, reasons=["customer_key_imprecise"]),
            Invalid(line=None, reasons=["customer_key_missing"]),
        ],
    ),
    typed(
        "key-floats-mended",
        {"customer_key": pl.Series([17850.0, 12.5, 2.0**53, float("nan")])},
        [
            Sent(line=None, key="17850"),
            Invalid(line=None, reasons=["customer_key_not_whole"]),
            Invalid(line=None, reasons=["customer_key_imprecise"]),
            Invalid(line=None, reasons=["customer_key_missing"]),
        ],
        rows={"whole_number_keys": "mend"},
        csv={"null_values": ["NaN"]},
    ),
    typed(
        "key-integers",
        {"customer_key": pl.Series([2**63 - 1, 17850])},
        [Sent(line=None, key=str(2**63 - 1)), Sent(line=None, key="17850")],
    ),
]
