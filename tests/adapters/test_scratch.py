"""Scratch space: where it lies, who may read it, and that it goes."""

import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from backfill.adapters.scratch import Scratch
from backfill.core.arrange import Span
from backfill.core.errors import StorageError

START = datetime(2024, 1, 1, tzinfo=UTC)
SECOND_US = 1_000_000


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def rows(slots: list[int], seconds: list[int]) -> pl.DataFrame:
    return pl.DataFrame(
        {"slot": slots, "timestamp": [START + timedelta(seconds=at) for at in seconds], "n": range(len(slots))},
        schema={"slot": pl.UInt16, "timestamp": pl.Datetime("us", "UTC"), "n": pl.Int64},
    )


def us(second: int) -> int:
    return round((START + timedelta(seconds=second)).timestamp()) * SECOND_US


def test_only_its_owner_can_read_it_and_it_goes(place: Path) -> None:
    """0700 and 0600, since keys of customers lie there; nothing is left, after an error neither."""
    with Scratch() as scratch:
        scratch.write(rows([1], [0]))
        (folder,) = place.iterdir()
        (file,) = folder.iterdir()
        assert (folder.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)
    assert list(place.iterdir()) == []
    with pytest.raises(ZeroDivisionError):
        _broken_off()
    assert list(place.iterdir()) == []


def _broken_off() -> None:
    with Scratch() as scratch:
        scratch.write(rows([1], [0]))
        raise ZeroDivisionError


def test_it_gives_back_slots_and_times(place: Path) -> None:
    """Of all parts, from the first of a range to before its end."""
    with Scratch() as scratch:
        scratch.write(rows([1, 2, 3], [0, 1, 2]))
        scratch.write(rows([2, 2, 4], [5, 6, 7]))
        assert scratch.read((2, 4), None)["timestamp"].dt.second().to_list() == [1, 2, 5, 6]
        assert scratch.read((2, 4), (us(2), us(6)))["timestamp"].dt.second().to_list() == [2, 5]


def test_it_counts_rows_by_time(place: Path) -> None:
    """In spans of the width that is asked for, in their order."""
    with Scratch() as scratch:
        scratch.write(rows([1, 2, 3], [0, 1, 2]))
        scratch.write(rows([2, 2, 4], [1, 11, 7]))
        assert scratch.spans((2, 4), None, 10 * SECOND_US) == [
            Span(us(0), 10 * SECOND_US, 3),
            Span(us(10), 10 * SECOND_US, 1),
        ]


def test_a_place_that_fails_is_named_with_what_to_do(place: Path) -> None:
    """Where it is, and that TMPDIR names another one."""
    with Scratch() as scratch:
        scratch.write(rows([1], [0]))
        (folder,) = place.iterdir()
        next(folder.iterdir()).unlink()
        with pytest.raises(StorageError) as told:
            scratch.read((1, 2), None)
    assert str(folder) in told.value.message
    assert "cannot be written or read. Free some space there" in told.value.message
    assert "name another place in TMPDIR" in told.value.message


def test_no_place_at_all_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A TMPDIR that is not there."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(StorageError, match="TMPDIR"), Scratch():
        pass
