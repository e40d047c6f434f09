"""Parquet: how values are stored, what has no text, and files that are not whole. Written by pyarrow."""

from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import pyarrow as pa

from tests.adapters.exports.columnar import parquet, without_logical_types
from tests.corpus.case import Case, Invalid, Row, Sent
from tests.corpus.text import key, two

AT = datetime(2024, 3, 1, 12, tzinfo=UTC)
AT_MS = 1_709_294_400_000
UTC_TIMES = pa.timestamp("us", "UTC")
SOME_INVALID = {"rows": {"max_rejected": "100%"}}


def table(count: int = 2, **columns: pa.Array) -> pa.Table:
    """Good rows: timestamp, customer_key, url; `columns` are added, or stand in their place."""
    good = {
        "timestamp": pa.array([AT] * count, UTC_TIMES),
        "customer_key": pa.array([key(number) for number in range(1, count + 1)]),
        "url": pa.array(["api://shop/x"] * count),
    }
    return pa.table(good | columns)


def sent(number: int, at: int | None = AT_MS, **values: str) -> Sent:
    return Sent(line=None, key=key(number), values=values, at=at)


def keyed(*keys: str) -> list[Row]:
    return [Sent(line=None, key=each) for each in keys]


def case(
    name: str,
    made: pa.Table | bytes | Callable[[], bytes],
    verdict: list[Row] | tuple[str, ...],
    config: Mapping[str, Mapping[str, object]] | None = None,
    file: str = "export.parquet",
    **options: Any,
) -> Case:
    """`verdict`: the rows, or the words of the refusal."""

    def make() -> bytes:
        if isinstance(made, pa.Table):
            return parquet(made, **options)
        return made if isinstance(made, bytes) else made()

    rows, refused = (verdict, None) if isinstance(verdict, list) else (None, verdict)
    return Case(name=f"parquet-{name}", make=make, config=config or {}, file=file, rows=rows, refused=refused)


def times(kind: pa.DataType, *given: object) -> pa.Table:
    return table(len(given), timestamp=pa.array(given, kind))


def damaged() -> bytes:
    raw = bytearray(
        parquet(table(), write_page_checksum=True, write_statistics=False, compression="none", use_dictionary=False)
    )
    raw[raw.index(b"PRIVATE-2")] ^= 1
    return bytes(raw)


LOCAL = pa.timestamp("us")
FAR_PAST, FAR_FUTURE = datetime(1600, 1, 1), datetime(9999, 12, 31)  # noqa: DTZ001
NOON = datetime(2024, 3, 1, 12)  # noqa: DTZ001
IN_UTC = {"time": {"zone": "UTC"}}

TIMES = [
    case("zoned", times(pa.timestamp("ns", "Europe/Zurich"), AT, AT), [sent(1), sent(2)]),
    case(
        "int96",
        times(LOCAL, FAR_PAST, NOON, FAR_FUTURE),
        [sent(1, -11_676_096_000_000), sent(2), Invalid(line=None, reasons=["timestamp_in_future"])],
        IN_UTC | SOME_INVALID,
        use_deprecated_int96_timestamps=True,
        store_schema=False,
    ),
    case("older-kind-means-utc", lambda: without_logical_types(parquet(times(LOCAL, NOON, NOON))), [sent(1), sent(2)]),
    case("without-zone", times(LOCAL, NOON), ("timestamp_without_zone",)),
    case("dates", times(pa.date32(), date(2024, 3, 1)), [sent(1, AT_MS - 43_200_000)], IN_UTC),
    case(
        "no-time-at-all",
        # What another system writes for "for ever": polars panics at it.
        table(
            3,
            timestamp=pa.array([2**63 - 1, None, 0], UTC_TIMES),
            until=pa.array([0, 0, 2**63 - 1], pa.timestamp("ms", "UTC")),
        ),
        [
            Invalid(line=None, reasons=["timestamp_unreadable"]),
            Invalid(line=None, reasons=["timestamp_missing"]),
            sent(3, 0, until="9223372036854775807 ms since 1970-01-01"),
        ],
        SOME_INVALID,
    ),
    case("time-of-day", times(pa.time64("us"), time(1, 2)), ("timestamp_unreadable",)),
    case("text", times(pa.string(), "2024-03-01T13:00:00+01:00"), [sent(1)]),
]

KEYS = [
    case(
        "integers",
        table(customer_key=pa.array([2**64 - 1, 2**53 + 1], pa.uint64())),
        keyed("18446744073709551615", "9007199254740993"),
    ),
    case(
        "decimals",
        table(customer_key=pa.array([Decimal(10**20 - 1), Decimal(7)], pa.decimal128(20, 0))),
        keyed("9" * 20, "7"),
    ),
    case("floats", table(customer_key=pa.array([1.0, 1.5])), ("customer_key_whole_number", "customer_key_not_whole")),
    case(
        "floats-mended",
        table(3, customer_key=pa.array([17850.0, 2.0**53, float("nan")])),
        [
            *keyed("17850"),
            Invalid(line=None, reasons=["customer_key_imprecise"]),
            Invalid(line=None, reasons=["customer_key_not_whole"]),
        ],
        {"rows": {"whole_number_keys": "mend", "max_rejected": "100%"}},
    ),
    case("binary", table(customer_key=pa.array([b"PRIVATE", b"x"])), ("customer_key", "untyped binary", "as text")),
    case(
        "uuids",
        table(1, customer_key=pa.array([b"0123456789abcdef"], pa.uuid())),
        keyed("30313233-3435-3637-3839-616263646566"),
    ),
]  # fmt: skip

VALUES = [
    case(
        "nested-and-others",
        table(
            1,
            items=pa.array([[{"sku": 'a"b', "n": 2**60, "price": Decimal("1.10")}]]),
            kind=pa.array(["Zürich"]).dictionary_encode(),
            yes=pa.array([True]),
            sum=pa.array([Decimal("12345678901234567.10")]),
            nothing=pa.nulls(1),
            share=pa.array([0.1]),
        ),
        [
            sent(
                1,
                items='[{"sku":"a\\"b","n":1152921504606846976,"price":"1.10"}]',
                kind="Zürich",
                yes="true",
                sum="12345678901234567.10",
                share="0.1",
            )
        ],
    ),
    case("duration", table(1, took=pa.array([1], pa.duration("s"))), ("'took'", "Duration", "columns.properties")),
]

FILES = [
    case("no-rows", table(0), []),
    case("no-columns", pa.table({}), ("has no columns",)),
    case(
        "one-name-twice",
        pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["n", "n"]),
        ("columns 1 and 2 are both named 'n'",),
    ),
    case("damaged", damaged, ("damaged", "'customer_key' does not fit its checksum")),
    case("cut", lambda: parquet(table())[:-20], ("cannot be read as Parquet", "cut short")),
    case("encrypted", b"PARE" + bytes(40) + b"PARE", ("is encrypted", "without encryption")),
    case("that-is-csv", two().encode(), ("is not Parquet", "ends in .csv")),
    case("named-csv", table(1), [sent(1)], file="export.csv"),
    case("in-folders", table(1), [sent(1, shop="a", day="2024-03-01")], file="shop=a/day=2024-03-01/export.parquet"),
]

CASES: list[Case] = [*TIMES, *KEYS, *VALUES, *FILES]
