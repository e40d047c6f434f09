"""Settling: ledger and counts from real staged files and a real journal."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from backfill.adapters.journal import Journal
from backfill.adapters.state import StateDirectory
from backfill.core.account import LEDGER_SCHEMA, CustomerKeys
from backfill.core.errors import StorageError
from backfill.core.lifecycle import Move, Part, Recorded
from backfill.core.summary import ExportCounts, Progress
from backfill.settle import LoadOnDisk, loads_on_disk, settle
from tests.adapters.staged import StagedLoad, delivered, freeze, record

JUNE, JULY = "/exports/june.csv", "/exports/july.parquet"


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with StateDirectory(tmp_path / "state").lock("run"), Journal(tmp_path / "state" / "journal.db") as journal:
        journal.begin(command="run", settings={}, pid=1, host="here", at_ms=1)
        yield journal


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def settled(state: Path, journal: Journal, *, loads: int = 1, keys: CustomerKeys = "plain") -> tuple[ExportCounts, ...]:
    on_disk = [
        LoadOnDisk(load=load, folder=state / "staged" / str(load), customer_keys=keys) for load in range(1, loads + 1)
    ]
    return settle(on_disk, journal, state, report=lambda _: None)


def outcomes(counts: ExportCounts) -> dict[str, int]:
    return {outcome: rows for outcome, rows in counts.outcomes.items() if rows}


def ledger(state: Path) -> pl.DataFrame:
    return pl.read_parquet(state / "ledger" / "*" / "*.parquet").sort("load", "export", "row")


def manifest(state: Path) -> Any:
    return json.loads((state / "ledger" / "manifest.json").read_text())


def written(state: Path) -> dict[str, int]:
    """The inodes of all files of the ledger: a file that was written again has another."""
    return {
        path.relative_to(state / "ledger").as_posix(): path.stat().st_ino
        for path in (state / "ledger").glob("**/*")
        if path.is_file()
    }


def two_pieces() -> tuple[StagedLoad, list[Part]]:
    """June: rows 1 to 3 in a request, row 4 its duplicate, row 5 invalid; then July: rows 1 and 2 in another piece."""
    load = StagedLoad((JUNE, JULY))
    load.next_piece()
    parts = [load.request(0, 3)]
    load.duplicate(0, of=load.pieces[0][0])
    load.refuse(0, "timestamp_missing")
    load.next_piece()
    parts.append(load.request(1, 2))
    return load, parts


def test_every_row_read_has_one_line_and_the_equation_closes(state: Path, journal: Journal) -> None:
    """Delivered, duplicate, invalid and unsent rows of two exports: one line each, and `read` is the reader's count."""
    load, (first, _) = two_pieces()
    freeze(state, [load])
    record(journal, delivered(first, tid="t-1"))
    june, july = settled(state, journal)
    assert (june.export, june.load, june.read) == (JUNE, 1, 5)
    assert outcomes(june) == {"delivered": 3, "duplicate": 1, "invalid": 1}
    assert (july.export, july.read, outcomes(july)) == (JULY, 2, {"unsent": 2})
    assert june.balanced
    assert july.balanced
    lines = ledger(state)
    assert lines.schema == LEDGER_SCHEMA
    assert lines.select("export", "row").rows() == [(JULY, 1), (JULY, 2), *((JUNE, row) for row in range(1, 6))]
    assert lines.filter(pl.col("export") == JUNE)["tid"].to_list() == ["t-1", "t-1", "t-1", None, None]


def test_the_manifest_names_every_part_and_every_count(state: Path, journal: Journal) -> None:
    """Parts with rows, checksum and outcomes, and each export's account, in the documented form."""
    load, (first, _) = two_pieces()
    freeze(state, [load])
    record(journal, delivered(first))
    settled(state, journal)
    document = manifest(state)
    assert document["version"] == 1
    assert [(part["path"], part["load"], part["rows"]) for part in document["parts"]] == [
        ("1/part-00000.parquet", 1, 4),
        ("1/part-00001.parquet", 1, 2),
        ("1/part-00002.parquet", 1, 1),
    ]
    assert document["parts"][0]["outcomes"] == {JUNE: {"delivered": 3, "duplicate": 1}}
    assert document["parts"][0]["journal_moves"] == 2
    (account,) = document["loads"]
    assert (account["load"], account["complete"], account["customer_key"]) == (1, True, "plain")
    assert account["exports"] == [
        {
            "export": JUNE,
            "read": 5,
            "outcomes": {
                "delivered": 3,
                "invalid": 1,
                "rejected": 0,
                "duplicate": 1,
                "in_doubt": 0,
                "abandoned": 0,
                "unsent": 0,
            },
        },
        {
            "export": JULY,
            "read": 2,
            "outcomes": {
                "delivered": 0,
                "invalid": 0,
                "rejected": 0,
                "duplicate": 0,
                "in_doubt": 0,
                "abandoned": 0,
                "unsent": 2,
            },
        },
    ]


def test_settling_again_writes_nothing(state: Path, journal: Journal) -> None:
    """Where nothing moved, no file is touched, the manifest included, and the counts are the same."""
    load, (first, _) = two_pieces()
    freeze(state, [load])
    record(journal, delivered(first))
    counts = settled(state, journal)
    before = written(state)
    assert settled(state, journal) == counts
    assert written(state) == before


def test_only_the_piece_that_moved_is_written_again(state: Path, journal: Journal) -> None:
    """A delivery in one piece leaves the other parts alone."""
    load, (first, second) = two_pieces()
    freeze(state, [load])
    record(journal, delivered(first))
    settled(state, journal)
    before = written(state)
    record(journal, delivered(second))
    _, july = settled(state, journal)
    assert outcomes(july) == {"delivered": 2}
    changed = {path for path, inode in written(state).items() if before[path] != inode}
    assert changed == {"1/part-00001.parquet", "manifest.json"}


@pytest.mark.parametrize("damage", ["missing", "cut short", "no manifest", "damaged manifest"])
def test_a_damaged_ledger_is_made_anew(state: Path, journal: Journal, damage: str) -> None:
    """Whatever is missing or visibly damaged is written again, and the ledger is what it was."""
    load, (first, _) = two_pieces()
    freeze(state, [load])
    record(journal, delivered(first))
    counts = settled(state, journal)
    lines, parts = ledger(state), manifest(state)["parts"]
    part = state / "ledger" / "1" / "part-00000.parquet"
    if damage == "missing":
        part.unlink()
    elif damage == "cut short":
        part.write_bytes(part.read_bytes()[:-10])
    elif damage == "no manifest":
        (state / "ledger" / "manifest.json").unlink()
    else:
        (state / "ledger" / "manifest.json").write_text('{"version":')
    assert settled(state, journal) == counts
    assert ledger(state).equals(lines)
    assert manifest(state)["parts"] == parts


def test_a_load_that_was_staged_anew_replaces_its_lines(state: Path, journal: Journal) -> None:
    """A load of which nothing was applied may be spooled again by other rules: no line of the old rows remains."""
    load, _ = two_pieces()
    freeze(state, [load])
    settled(state, journal)
    for file in (state / "staged" / "1").iterdir():
        file.unlink()
    (state / "staged" / "1").rmdir()
    anew = StagedLoad((JUNE, JULY))
    anew.next_piece()
    anew.request(0, 5)
    anew.request(1, 2)
    freeze(state, [anew])
    june, july = settled(state, journal)
    assert (outcomes(june), outcomes(july)) == ({"unsent": 5}, {"unsent": 2})
    assert ledger(state).height == 7
    assert set(written(state)) == {"1/part-00000.parquet", "manifest.json"}


def test_a_load_not_wholly_arranged_is_counted_but_not_written(state: Path, journal: Journal) -> None:
    """Stopped while arranging: what was sent counts, the rest is unsent, and the manifest calls it incomplete."""
    load, (first, _) = two_pieces()
    load.not_arranged = {1}
    freeze(state, [load])
    record(journal, delivered(first))
    june, july = settled(state, journal)
    assert outcomes(june) == {"delivered": 3, "duplicate": 1, "invalid": 1}
    assert outcomes(july) == {"unsent": 2}
    assert june.balanced
    assert july.balanced
    (account,) = manifest(state)["loads"]
    assert account["complete"] is False
    assert set(written(state)) == {"manifest.json"}


def test_two_loads_have_their_own_parts_and_counts(state: Path, journal: Journal) -> None:
    """The same export in two loads is accounted for twice, each by its own requests, though their numbers coincide."""
    loads = []
    for _ in range(2):
        load = StagedLoad((JUNE,))
        load.next_piece()
        load.request(0, 2)
        loads.append(load)
    freeze(state, loads)
    record(journal, delivered(Part(1, 0, 2), load=2))
    first, second = settled(state, journal, loads=2)
    assert (first.load, outcomes(first)) == (1, {"unsent": 2})
    assert (second.load, outcomes(second)) == (2, {"delivered": 2})
    assert ledger(state).select("load", "outcome").rows() == [(1, "unsent")] * 2 + [(2, "delivered")] * 2


def test_omitted_customer_keys_are_in_no_file_of_the_ledger(state: Path, journal: Journal) -> None:
    """Under `customer_key = "omit"` no byte of a key reaches the disk; a ledger written before is replaced."""
    load, _ = two_pieces()
    freeze(state, [load], customer_key="omit")
    settled(state, journal)
    assert ledger(state)["customer_key"].null_count() == 0 + 1  # only the invalid row had none
    settled(state, journal, keys="omit")
    assert ledger(state)["customer_key"].null_count() == 7
    assert ledger(state)["customer_key_name"].null_count() == 7


def test_a_split_request_is_accounted_for_part_by_part(state: Path, journal: Journal) -> None:
    """A refused request of three: the bad row is rejected with the API's reason, the others are delivered."""
    load, (whole, _) = two_pieces()
    freeze(state, [load])
    left, right = Part(1, 0, 1), Part(1, 1, 2)

    def move(part: Part, move: Move, **more: object) -> Recorded:
        return Recorded(load=1, part=part, move=move, attempt=1, **more)  # type: ignore[arg-type]

    record(
        journal,
        [
            move(whole, Move.INTENT),
            move(whole, Move.DIVIDED, http_status=400, cause="refused", into=(left, right)),
            move(left, Move.INTENT),
            move(left, Move.REFUSED, http_status=400, cause="refused", reason="url is no URI"),
            *delivered(right),
        ],
    )
    june, _ = settled(state, journal)
    assert outcomes(june) == {"delivered": 2, "rejected": 1, "duplicate": 1, "invalid": 1}
    lines = ledger(state).filter(pl.col("outcome") == "rejected")
    assert lines["row"].to_list() == [1]
    assert lines["reasons"].to_list() == [["refused", "url is no URI"]]
    assert lines["http_status"].to_list() == [400]


def test_progress_ends_at_all_rows(state: Path, journal: Journal) -> None:
    """The last report says that every row read was settled, whether its part was written or only looked at."""
    load, _ = two_pieces()
    freeze(state, [load])
    for _ in range(2):
        seen: list[Progress] = []
        settle([LoadOnDisk(load=1, folder=state / "staged" / "1")], journal, state, report=seen.append)
        assert seen[-1] == Progress("settling", 7, 7)


def test_a_lost_staged_file_is_a_storage_error(state: Path, journal: Journal) -> None:
    """Rows that were staged and cannot be read are never passed over in silence."""
    load, _ = two_pieces()
    freeze(state, [load])
    (state / "staged" / "1" / "rows-00001.parquet").unlink()
    with pytest.raises(StorageError, match=r"The staged file .*rows-00001\.parquet is gone or damaged: .*Restore it"):
        settled(state, journal)


def test_no_load_makes_an_empty_account(state: Path, journal: Journal) -> None:
    """A job without loads settles to nothing and writes no ledger."""
    assert settled(state, journal, loads=0) == ()
    assert not (state / "ledger").exists()


def test_a_row_that_repeats_another_load_names_its_export(state: Path, journal: Journal) -> None:
    """By the path that job.toml keeps for that load."""
    first, _ = two_pieces()
    second = StagedLoad(("/exports/august.csv",))
    second.next_piece()
    second.duplicate(0, of=first.pieces[1][1], load=1)
    freeze(state, [first, second])
    job = StateDirectory(state).read_job()
    assert job is not None
    settle(loads_on_disk(state, job), journal, state, report=lambda _: None)
    assert ledger(state).filter(load=2)["duplicate_of"].to_list() == [f"{JULY}:2"]
