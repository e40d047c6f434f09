"""What was seen before, on a real disk: found again, by slot, through merges, kills and damage."""

import random
from pathlib import Path

import polars as pl
import pytest

from backfill.adapters.seen import FOUND_SCHEMA, Seen
from backfill.core.errors import StorageError
from backfill.core.identity import halves
from backfill.core.limits import SLOTS

ALL = (0, SLOTS)


def interactions(numbers: range) -> pl.DataFrame:
    """Made-up fingerprints over the whole of 128 bits, each with a slot that follows from it."""
    return pl.DataFrame(
        {
            "slot": pl.Series([number * 37 % SLOTS for number in numbers], dtype=pl.UInt16),
            "fingerprint": pl.Series([fingerprint(number) for number in numbers], dtype=pl.UInt128),
            "place": pl.Series(range(len(numbers)), dtype=pl.UInt32),
        }
    )


def fingerprint(number: int) -> int:
    return random.Random(number).getrandbits(128)


def wanted(numbers: range) -> pl.DataFrame:
    return interactions(numbers).select(halves("fingerprint"))


def places(found: pl.DataFrame) -> list[tuple[int, int, int]]:
    return list(found.select("load", "piece", "place").iter_rows())


@pytest.fixture
def seen(tmp_path: Path) -> Seen:
    return Seen(tmp_path)


def test_an_interaction_of_an_earlier_load_is_found_where_it_stands(seen: Seen) -> None:
    """By load, piece and place; what was never seen is not found."""
    seen.remember(1, 0, ALL, interactions(range(100)))
    seen.remember(2, 0, ALL, interactions(range(100, 200)))
    assert places(seen.find(3, ALL, wanted(range(98, 102)))) == [(1, 0, 98), (1, 0, 99), (2, 0, 0), (2, 0, 1)]
    assert seen.find(3, ALL, wanted(range(500, 600))).is_empty()
    assert dict(seen.find(3, ALL, wanted(range(1))).schema) == FOUND_SCHEMA


def test_a_load_does_not_find_itself_or_later_ones(seen: Seen) -> None:
    """Arranged again after a kill, a piece must come out as it did before."""
    seen.remember(1, 0, ALL, interactions(range(10)))
    seen.remember(2, 0, ALL, interactions(range(10)))
    assert {load for load, _, _ in places(seen.find(2, ALL, wanted(range(10))))} == {1}


def test_half_of_a_fingerprint_is_not_enough(seen: Seen) -> None:
    """Both halves must agree: 64 bits alone collide among a few billion interactions."""
    seen.remember(1, 0, ALL, interactions(range(10)))
    for half in ("high", "low"):
        other = wanted(range(10)).with_columns(pl.lit(0, pl.UInt64).alias(half))
        assert seen.find(2, ALL, other).is_empty()


def test_a_piece_done_again_replaces_what_it_remembered(seen: Seen) -> None:
    """A kill between remembering and arranging costs nothing, whatever had changed in between."""
    seen.remember(1, 0, ALL, interactions(range(10)))
    seen.remember(1, 0, ALL, interactions(range(5, 10)))
    assert len(places(seen.find(2, ALL, wanted(range(10))))) == 5


def test_a_forgotten_load_is_not_found(seen: Seen) -> None:
    """A load that nothing was sent of may be spooled again under other rules; those before it stay."""
    seen.forget_after(0)
    seen.remember(1, 0, ALL, interactions(range(10)))
    seen.remember(2, 0, ALL, interactions(range(5, 20)))
    for _ in range(2):
        seen.forget_after(1)
    assert [load for load, _, _ in places(seen.find(3, ALL, wanted(range(20))))] == [1] * 10
    seen.forget_after(0)
    assert list(seen.folder.iterdir()) == []


def test_a_load_is_forgotten_out_of_a_merged_folder(seen: Seen) -> None:
    """Of the loads merged with it all stay, also where an interrupted merge had left other folders."""
    for load in range(1, 6):
        seen.remember(load, 0, ALL, interactions(range(load * 10, load * 10 + 10)))
    seen.merge(3, at=1)
    kept = {path: path.read_bytes() for path in seen.folder.rglob("*.parquet")}
    seen.merge(5, at=1)
    for path, content in kept.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    seen.forget_after(3)
    assert [path.name for path in seen.folder.iterdir()] == ["upto-00003"]
    assert [load for load, _, _ in places(seen.find(4, ALL, wanted(range(100))))] == [1] * 10 + [2] * 10 + [3] * 10


def test_pieces_of_the_own_load_are_found_on_request(seen: Seen) -> None:
    """Those before the piece that asks, never itself or later ones: arranged again it must come out the same."""
    seen.remember(1, 0, ALL, interactions(range(10)))
    for piece in range(3):
        seen.remember(2, piece, ALL, interactions(range(10)))
    found = seen.find(2, ALL, wanted(range(1)), before_piece=2)
    assert places(found) == [(1, 0, 0), (2, 0, 0), (2, 1, 0)]


def test_merging_changes_nothing_that_is_found(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few files instead of many, cut by slot, the newest loads kept apart; then merged with them again."""
    monkeypatch.setattr("backfill.adapters.seen._FILE_ROWS", 50)
    for load in range(1, 11):
        rows = interactions(range(load * 100, load * 100 + 60))
        for piece, slots in enumerate([(0, 2000), (2000, SLOTS)]):
            seen.remember(load, piece, slots, rows.filter(pl.col("slot").is_between(*slots, closed="left")))
    everything = wanted(range(2000))
    before = places(seen.find(11, ALL, everything))
    assert not seen.merge(10, at=10)
    assert seen.merge(8, at=3)
    assert sorted(path.name for path in seen.folder.iterdir()) == ["load-00009", "load-00010", "upto-00008"]
    assert len(list((seen.folder / "upto-00008").iterdir())) > 3
    assert places(seen.find(11, ALL, everything)) == before
    assert seen.merge(10, at=2)
    assert [path.name for path in seen.folder.iterdir()] == ["upto-00010"]
    assert places(seen.find(11, ALL, everything)) == before
    seen.check(11)


def test_a_merge_killed_before_its_end_counts_each_load_once(seen: Seen) -> None:
    """The few are there and the many still are: nothing is found twice, and the next merge goes on."""
    for load in (1, 2, 3):
        seen.remember(load, 0, ALL, interactions(range(load * 10, load * 10 + 10)))
    kept = {path: path.read_bytes() for path in seen.folder.rglob("*.parquet")}
    seen.merge(2, at=1)
    for path, content in kept.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    assert len(places(seen.find(4, ALL, wanted(range(10, 40))))) == 30
    assert seen.merge(3, at=1)
    assert len(places(seen.find(4, ALL, wanted(range(10, 40))))) == 30
    assert [path.name for path in seen.folder.iterdir()] == ["upto-00003"]


def test_only_the_files_of_these_slots_are_opened(seen: Seen) -> None:
    """A piece looks at its own share: a file of other slots may even be unreadable."""
    rows = interactions(range(200)).with_columns(pl.lit(7, pl.UInt16).alias("slot"))
    seen.remember(1, 0, (0, 100), rows)
    seen.remember(1, 1, (100, SLOTS), rows.with_columns(pl.lit(100, pl.UInt16).alias("slot")))
    next(path for path in seen.folder.rglob("00001-*")).write_bytes(b"")
    assert seen.find(2, (0, 100), wanted(range(200))).height == 200
    with pytest.raises(StorageError, match="gone or damaged"):
        seen.find(2, (99, 101), wanted(range(200)))


@pytest.mark.parametrize("at", [4, 100, -1])
def test_a_flipped_bit_is_noticed(seen: Seen, at: int) -> None:
    """Whichever byte it is in: an interaction forgotten in silence would be sent twice."""
    seen.remember(1, 0, ALL, interactions(range(100)))
    seen.check(2)
    (file,) = seen.folder.rglob("*.parquet")
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)
    with pytest.raises(StorageError, match="Restore it from a backup"):
        seen.check(2)


def test_a_place_that_cannot_be_written_is_told_with_its_cause(seen: Seen) -> None:
    """A file where the folder should be, for instance: what is not remembered would be sent twice."""
    seen.folder.write_text("in the way")
    said = r"cannot be written: (File exists|Not a directory)\. Free some space there, or mend the disk, then run again"
    with pytest.raises(StorageError, match=said):
        seen.remember(1, 0, ALL, interactions(range(10)))


def test_nothing_is_readable_by_others(seen: Seen) -> None:
    """Directories 0700, files 0600, through a merge too."""
    for load in (1, 2):
        seen.remember(load, 0, ALL, interactions(range(10)))
    seen.merge(2, at=1)
    modes = {path.stat().st_mode & 0o777 for path in (seen.folder, *seen.folder.rglob("*"))}
    assert modes == {0o700, 0o600}
