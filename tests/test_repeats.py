"""What a load repeats of earlier ones, with real files: only what may have been applied counts."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl
import pytest

from backfill.adapters import staging
from backfill.core.arrange import ORIGINALS_SCHEMA, Piece
from backfill.core.errors import StorageError
from backfill.core.lifecycle import Part, Standing, State
from backfill.repeats import Repeats, is_remembered
from tests.adapters.staged import StagedLoad

JUNE = "/exports/june.csv"


class Told:
    """A journal by plain values: the standings of each load."""

    def __init__(self, loads: Mapping[int, Sequence[tuple[Part, State]]] | None = None) -> None:
        self._loads = loads or {}

    def standings(self, load: int, first_request: int, last_request: int) -> list[Standing]:
        return [
            Standing(part, state, 1, None, None, None, None, False, None, None, 1)
            for part, state in self._loads.get(load, ())
            if first_request <= part.request <= last_request
        ]


def piece(number: int, load: StagedLoad) -> Piece:
    """All slots, since these rows have none of their own."""
    return Piece(
        piece=number,
        lane_from=0,
        lane_to=1,
        slot_from=0,
        slot_to=4096,
        rows=len(load.pieces[number]),
        first_request=load.first_request(number),
    )


def rows(fingerprints: Sequence[int], requests: Sequence[int | None] | None = None) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "slot": pl.Series([5] * len(fingerprints), dtype=pl.UInt16),
            "fingerprint": pl.Series(fingerprints, dtype=pl.UInt128),
            "request": pl.Series(requests or [1] * len(fingerprints), dtype=pl.Int64),
        }
    )


def a_load(state: Path, load: int, fingerprints: Sequence[int]) -> StagedLoad:
    """A load of one piece with these interactions, two to a request, written and remembered."""
    staged = StagedLoad((JUNE,))
    staged.next_piece()
    for _ in range(len(fingerprints) // 2):
        staged.request(0, 2)
    staged.write(state, load)
    Repeats(state, load, Told()).remember(piece(0, staged), rows(fingerprints))
    return staged


def originals(
    state: Path, load: int, fingerprints: Sequence[int], journal: Told, *, across_time: bool = False, at: int = 0
) -> list[tuple[int, int, int | None]]:
    """(place, row, load) of what is repeated."""
    here = StagedLoad((JUNE,), pieces=[[{}] for _ in range(at + 1)])
    found = Repeats(state, load, journal).originals(piece(at, here), rows(fingerprints), across_time=across_time)
    assert dict(found.schema) == ORIGINALS_SCHEMA
    columns = found.select("place", "duplicate_of_row", "duplicate_of_load").sort("place")
    return list(columns.iter_rows())


@pytest.mark.parametrize("state_of", list(State))
def test_what_may_have_been_applied_counts(tmp_path: Path, state_of: State) -> None:
    """Delivered, in doubt, on the wire or still to be sent: known. Rejected or abandoned: free to be sent again."""
    a_load(tmp_path, 1, [11, 12, 13, 14])
    standing = [(Part(1, 0, 2), state_of)]
    if state_of is State.SPLIT:  # its halves answer for the rows
        standing += [(Part(1, 0, 1), State.REJECTED), (Part(1, 1, 1), State.DELIVERED)]
    found = originals(tmp_path, 2, [99, 14, 12, 11], Told({1: standing}))
    free = {State.REJECTED: {11, 12}, State.ABANDONED: {11, 12}, State.SPLIT: {11}}.get(state_of, set())
    known = [(1, 4, 1), *([] if 12 in free else [(2, 2, 1)]), *([] if 11 in free else [(3, 1, 1)])]
    assert found == known


def test_the_first_that_counts_is_named(tmp_path: Path) -> None:
    """Rejected in the first, sent from the second: the third repeats that one. None repeats itself or later ones."""
    for load in (1, 2, 3):
        a_load(tmp_path, load, [11, 12])
    journal = Told({1: [(Part(1, 0, 1), State.REJECTED), (Part(1, 1, 1), State.DELIVERED)]})
    assert originals(tmp_path, 3, [11, 12], journal) == [(0, 1, 2), (1, 2, 1)]
    assert originals(tmp_path, 1, [11, 12], journal) == []


def test_repeats_among_the_rows_of_a_piece_all_name_the_same(tmp_path: Path) -> None:
    """Twins of one load that an earlier one has as well."""
    a_load(tmp_path, 1, [11, 12])
    assert originals(tmp_path, 2, [12, 12, 7, 12], Told()) == [(0, 2, 1), (1, 2, 1), (3, 2, 1)]


def test_a_row_that_repeats_another_is_not_remembered(tmp_path: Path) -> None:
    """Else a rejected row would leave twins behind that were never sent and yet count as met."""
    staged = a_load(tmp_path, 1, [11, 12])
    Repeats(tmp_path, 1, Told()).remember(piece(0, staged), rows([11, 12], [1, None]))
    assert originals(tmp_path, 2, [11, 12], Told()) == [(0, 1, 1)]


def test_earlier_pieces_of_the_own_load_are_asked_where_an_interaction_may_have_several_instants(
    tmp_path: Path,
) -> None:
    """A lane cut by time: the row of the earlier piece is named, as one of the same load."""
    staged = StagedLoad((JUNE,))
    for number in range(2):
        staged.next_piece()
        staged.request(0, 2)
        Repeats(tmp_path, 1, Told()).remember(piece(number, staged), rows([11, 12]))
    staged.write(tmp_path, 1)
    assert originals(tmp_path, 1, [12], Told(), at=1) == []
    assert originals(tmp_path, 1, [12], Told(), at=1, across_time=True) == [(0, 2, None)]
    assert originals(tmp_path, 1, [12], Told(), at=0, across_time=True) == []


def test_a_load_is_remembered_when_each_of_its_pieces_is(tmp_path: Path) -> None:
    """Before a changed export is taken, all of what it was before must be known; merged or not."""
    staged = StagedLoad((JUNE,))
    for _ in range(2):
        staged.next_piece()
        staged.request(0, 2)
    staged.write(tmp_path, 1)
    assert not is_remembered(tmp_path, 1)
    for number, known in ((0, False), (1, True)):
        Repeats(tmp_path, 1, Told()).remember(piece(number, staged), rows([11, 12]))
        assert is_remembered(tmp_path, 1) is known


def test_many_loads_are_merged_before_the_next_and_damage_is_noticed(tmp_path: Path) -> None:
    """Each load would look into every one of them; what is found stays the same."""
    for load in range(1, 36):
        a_load(tmp_path, load, [load * 2, load * 2 + 1])
    before = originals(tmp_path, 36, list(range(2, 72)), Told())
    Repeats(tmp_path, 36, Told()).prepare()
    assert [path.name for path in (tmp_path / "seen").iterdir()] == ["upto-00035"]
    assert originals(tmp_path, 36, list(range(2, 72)), Told()) == before
    assert len(before) == 70
    assert is_remembered(tmp_path, 7)
    (file,) = (tmp_path / "seen").rglob("*.parquet")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(StorageError, match="Restore it from a backup"):
        Repeats(tmp_path, 36, Told()).prepare()


def test_the_rows_of_an_earlier_load_must_be_as_they_were(tmp_path: Path) -> None:
    """What became of them is found by their place, so a damaged file is refused, not misread."""
    a_load(tmp_path, 1, [11, 12])
    file = staging.rows_file(tmp_path / "staged" / "1", 0)
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(StorageError, match=r"rows-00000\.parquet is damaged"):
        originals(tmp_path, 2, [11], Told())
