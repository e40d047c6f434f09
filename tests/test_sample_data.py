"""The sample data: the same every time, and as `expected.json` says by a count of its own."""

import csv
import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from backfill.core.config import RunConfig
from tests.make_sample_data import BRANCH, WEB, make

FOLDER = Path(__file__).parent.parent / "sample_data"

Row = tuple[int, int | None, dict[str, Any]]


def test_making_it_again_changes_nothing(tmp_path: Path) -> None:
    """The seeded script writes the very files that are kept."""
    make(tmp_path)
    for name in (WEB, "expected.json", "backfill.toml"):
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes(), (
            f"run python -m tests.make_sample_data: {name}"
        )
    assert_frame_equal(pl.read_parquet(tmp_path / BRANCH), pl.read_parquet(FOLDER / BRANCH))


def test_another_seed_makes_other_data(tmp_path: Path) -> None:
    """What is compared above does depend on the dice."""
    make(tmp_path, seed=1)
    assert (tmp_path / WEB).read_bytes() != (FOLDER / WEB).read_bytes()


def csv_rows() -> Iterator[Row]:
    """Row, line and cells of the CSV by Python's csv module; an empty cell is None."""
    with (FOLDER / WEB).open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        names = next(reader)
        line = reader.line_num + 1
        for row, cells in enumerate(reader, start=1):
            assert len(cells) == len(names)
            yield row, line, {name: cell or None for name, cell in zip(names, cells, strict=True)}
            line = reader.line_num + 1


def parquet_rows() -> Iterator[Row]:
    """Row and values of the Parquet file; it has no lines."""
    for row, values in enumerate(pl.read_parquet(FOLDER / BRANCH).iter_rows(named=True), start=1):
        yield row, None, values


def reasons_of(values: dict[str, Any]) -> tuple[list[str], datetime | None]:
    """The design's rules, written a second time in plain Python; and the instant, where there is one."""
    reasons = []
    timestamp = values["timestamp"]
    if isinstance(timestamp, str):
        try:
            timestamp = datetime.fromisoformat(timestamp)
        except ValueError:
            reasons.append("timestamp_unreadable")
    if timestamp is None:
        reasons.append("timestamp_missing")
    elif isinstance(timestamp, datetime):
        if timestamp.tzinfo is None:
            reasons.append("timestamp_without_zone")
        elif timestamp > datetime.now(UTC):
            reasons.append("timestamp_in_future")
    key, url = values["customer_key"], values["url"]
    if key is None:
        reasons.append("customer_key_missing")
    elif not key.strip():
        reasons.append("customer_key_blank")
    elif re.search(r"[\x00-\x1f\x7f]", key):
        reasons.append("customer_key_control_characters")
    elif len(key) > 1000:
        reasons.append("customer_key_too_long")
    if url is None:
        reasons.append("url_missing")
    elif not re.match(r"[a-z]+:", url):
        reasons.append("url_not_a_uri")
    return sorted(reasons), timestamp if isinstance(timestamp, datetime) else None


@pytest.mark.parametrize(("export", "rows"), [(WEB, csv_rows), (BRANCH, parquet_rows)])
def test_an_independent_count_agrees(export: str, rows: Any) -> None:
    """Every invalid row, every duplicate and every figure of expected.json is found again by another way."""
    told = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))
    invalid, duplicates = [], []
    by_reason: Counter[str] = Counter()
    first: dict[object, int] = {}
    read = 0
    for row, line, values in rows():
        read += 1
        place = {"export": export, "row": row, "line": line}
        reasons, at = reasons_of(values)
        if reasons:
            invalid.append(place | {"reasons": reasons})
            by_reason.update(reasons)
            continue
        content = (at, tuple(values[name] for name in values if name != "timestamp"))
        if content in first:
            duplicates.append(place | {"duplicate_of": f"{export}:{first[content]}"})
        first.setdefault(content, row)
    assert invalid == [one for one in told["invalid_rows"] if one["export"] == export]
    assert duplicates == [one for one in told["duplicate_rows"] if one["export"] == export]
    assert told["exports"][export] == {
        "read": read,
        "valid": read - len(invalid),
        "invalid": len(invalid),
        "invalid_by_reason": dict(sorted(by_reason.items())),
        "duplicate": len(duplicates),
        "delivered": read - len(invalid) - len(duplicates),
    }


def test_the_total_is_the_sum() -> None:
    """The totals are those of the two exports, and the closing equation holds."""
    told = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))
    total, exports = told["total"], told["exports"].values()
    for figure in ("read", "valid", "invalid", "duplicate", "delivered"):
        assert total[figure] == sum(one[figure] for one in exports)
    assert total["read"] == total["delivered"] + total["invalid"] + total["duplicate"]
    keys = [
        values["customer_key"]
        for rows in (csv_rows(), parquet_rows())
        for _, _, values in rows
        if not reasons_of(values)[0]
    ]
    assert total["customers"] == len(set(keys))


def test_it_is_what_a_newcomer_needs() -> None:
    """About 10,000 rows of some thousand customers, a few of them busy, with what makes exports hard."""
    told = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))
    assert 9_500 <= told["total"]["read"] <= 10_500
    assert 2_500 <= told["total"]["customers"] <= 3_500
    rows = [values for _, _, values in csv_rows()]
    keys = Counter(values["customer_key"] for values in rows)
    assert keys.most_common(2)[1][1] > 100
    assert any(key and key.lstrip("0") != key and key.lstrip("0") in keys for key in keys)
    assert sum(values["tid"] is not None for values in rows) > 50
    text = (FOLDER / WEB).read_text(encoding="utf-8")
    assert '"loyalty, gold"' in text
    assert '""oak""' in text
    assert not text.isascii()
    assert text.count("\n") > len(rows) + 50
    kinds = set(pl.read_parquet_schema(FOLDER / BRANCH).values())
    assert {pl.Datetime("us", "UTC"), pl.Float64(), pl.Boolean(), pl.Int32(), pl.Int64(), pl.Date()} <= kinds
    assert sum(file.stat().st_size for file in FOLDER.iterdir() if file.is_file()) < 2_000_000


def test_the_configuration_is_one() -> None:
    """backfill.toml holds known keys only, and its limit lets both exports pass."""
    config = RunConfig.model_validate(tomllib.loads((FOLDER / "backfill.toml").read_text(encoding="utf-8")))
    assert config.rows.max_rejected == "1%"
    told = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))
    for one in told["exports"].values():
        assert one["invalid"] < one["read"] * 0.01
