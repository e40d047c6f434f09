"""Verifying: sound jobs pass, and every kind of damage is found by the check that claims to find it."""

import hashlib
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backfill.adapters.journal import Journal
from backfill.adapters.state import StateDirectory
from backfill.core.errors import Unusable
from backfill.core.lifecycle import MOVES, STATE_OF_PARTS, Move, Part, Recorded, State, halves
from backfill.core.summary import OUTCOMES
from backfill.settle import LoadOnDisk, loads_on_disk, settle
from backfill.verify import CHECKS, Verdict, verify
from tests.adapters.staged import StagedLoad, delivered, freeze, record

AUGUST = "/exports/august.csv"
JUNE, JULY = "/exports/june.csv", "/exports/july.parquet"


def open_journal(state: Path) -> Journal:
    journal = Journal(state / "journal.db")
    journal.begin(command="run", settings={}, pid=1, host="here", at_ms=1)
    return journal


def settled(state: Path, journal: Journal, *, loads: int = 1) -> None:
    settle(
        [LoadOnDisk(load=load, folder=state / "staged" / str(load)) for load in range(1, loads + 1)],
        journal,
        state,
        report=lambda _: None,
    )


def a_job() -> tuple[StagedLoad, list[Part]]:
    """June: rows 1 to 3 in request 1, 4 a duplicate, 5 invalid, 6 and 7 in request 2. July: two rows in request 7."""
    load = StagedLoad((JUNE, JULY))
    load.next_piece()
    parts = [load.request(0, 3)]
    load.duplicate(0, of=load.pieces[0][0])
    load.refuse(0, "timestamp_missing")
    parts.append(load.request(0, 2))
    load.next_piece()
    parts.append(load.request(1, 2))
    return load, parts


def split(part: Part) -> list[Recorded]:
    """A refused part of which the left half is rejected and the right one delivered."""
    left, right = halves(part)
    return [
        Recorded(load=1, part=part, move=Move.INTENT, attempt=1),
        Recorded(load=1, part=part, move=Move.DIVIDED, attempt=1, http_status=400, cause="refused", into=(left, right)),
        Recorded(load=1, part=left, move=Move.INTENT, attempt=2),
        Recorded(
            load=1, part=left, move=Move.REFUSED, attempt=2, http_status=400, cause="refused", reason="no such address"
        ),
        *delivered(right, attempt=2),
    ]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state of a job that went through, with a split: request 1 divided, 2 delivered, 7 (July) in doubt."""
    state = tmp_path_factory.mktemp("sound") / "state"
    load, (first, second, third) = a_job()
    freeze(state, [load])
    with open_journal(state) as journal:
        record(journal, [*split(first), *delivered(second)])
        record(
            journal,
            [
                Recorded(load=1, part=third, move=Move.INTENT, attempt=1),
                Recorded(load=1, part=third, move=Move.UNCLEAR, attempt=1, cause="no_reply"),
            ],
        )
        settled(state, journal)
    return state


@pytest.fixture
def state(sound: Path, tmp_path: Path) -> Path:
    """A copy of the sound job, to be damaged."""
    return Path(shutil.copytree(sound, tmp_path / "state"))


def failed(verdict: Verdict) -> set[str]:
    return {check.name for check in verdict.checks if not check.ok}


def detail(verdict: Verdict, name: str) -> str:
    return next(check.detail for check in verdict.checks if check.name == name)


# ---------------------------------------------------------------------------------------------------- sound jobs


def test_a_sound_job_passes_every_check(state: Path) -> None:
    """Nothing is found, every check says what it looked at, and the account is the one that was settled."""
    verdict = verify(state)
    assert verdict.ok
    assert [check.name for check in verdict.checks] == list(CHECKS)
    assert detail(verdict, "rows") == "2 exports"
    assert detail(verdict, "outcomes") == "9 rows"
    assert {each.export: {name: rows for name, rows in each.outcomes.items() if rows} for each in verdict.exports} == {
        JUNE: {"delivered": 4, "rejected": 1, "duplicate": 1, "invalid": 1},
        JULY: {"in_doubt": 2},
    }


def test_verifying_changes_nothing(state: Path) -> None:
    """No file of the state directory has another content afterwards."""

    def contents() -> dict[str, bytes]:
        return {
            path.relative_to(state).as_posix(): path.read_bytes()
            for path in sorted(state.glob("**/*"))
            if path.is_file() and not path.name.endswith(("-wal", "-shm"))  # SQLite's, without content of their own
        }

    before = contents()
    verify(state)
    assert contents() == before


def test_without_a_job_it_says_so(tmp_path: Path) -> None:
    """A directory that holds no job is refused, not called sound."""
    with pytest.raises(Unusable, match=r"There is no job.*or begin one with `backfill run`"):
        verify(tmp_path)


@pytest.mark.parametrize("arranged", [True, False])
def test_a_load_that_is_not_settled_yet_is_no_error(tmp_path: Path, arranged: bool) -> None:
    """Killed before settling, or while arranging: its rows are unsent or as the journal says, and `settled` tells."""
    state = tmp_path / "state"
    load, (first, *_) = a_job()
    load.not_arranged = set() if arranged else {1}
    freeze(state, [load])
    with open_journal(state) as journal:
        record(journal, delivered(first))
        if not arranged:
            settled(state, journal)  # as an execution does that stops early
    verdict = verify(state)
    assert verdict.ok
    assert "load 1 is not in the ledger yet" in detail(verdict, "settled")
    assert ("piece 1 is not arranged yet: its 2 rows are unsent" in detail(verdict, "settled")) is not arranged
    assert [{name: rows for name, rows in each.outcomes.items() if rows} for each in verdict.exports] == [
        {"delivered": 3, "duplicate": 1, "invalid": 1, "unsent": 2},
        {"unsent": 2},
    ]


def test_a_ledger_older_than_the_journal_is_no_error(state: Path) -> None:
    """Killed while delivering, after an earlier settling: the outdated part is named, and the account is new."""
    with open_journal(state) as journal:
        record(
            journal,
            [Recorded(load=1, part=Part(7, 0, 2), move=Move.DECIDED_DELIVERED, attempt=1, cause="assumed")],
        )
    verdict = verify(state)
    assert verdict.ok
    assert detail(verdict, "settled") == "ledger/1/part-00001.parquet is older than the journal or staging"
    assert verdict.exports[1].outcomes["delivered"] == 2


def test_a_settling_killed_before_its_manifest_is_no_error(state: Path) -> None:
    """A part newer than the manifest has another checksum; since the next run writes it anyway, that is no damage."""
    manifest = (state / "ledger" / "manifest.json").read_bytes()
    with open_journal(state) as journal:
        record(journal, [Recorded(load=1, part=Part(7, 0, 2), move=Move.DECIDED_DELIVERED, attempt=1, cause="assumed")])
        settled(state, journal)
    (state / "ledger" / "manifest.json").write_bytes(manifest)
    verdict = verify(state)
    assert verdict.ok
    assert "part-00001.parquet is older" in detail(verdict, "settled")


# ---------------------------------------------------------------------------------------------------- damage


def rewrite_part(state: Path, part: str, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    """Changes the lines of a part and makes the manifest's checksum, size and row count fit, as a forger would."""
    file = state / "ledger" / part
    change(pl.read_parquet(file.read_bytes())).write_parquet(file)
    manifest = json.loads((state / "ledger" / "manifest.json").read_text())
    entry = next(each for each in manifest["parts"] if each["path"] == part)
    entry["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    entry["bytes"] = file.stat().st_size
    entry["rows"] = pl.read_parquet(file.read_bytes()).height
    (state / "ledger" / "manifest.json").write_text(json.dumps(manifest))


def edit_manifest(state: Path, change: Callable[[Any], None]) -> None:
    file = state / "ledger" / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


def edit_journal(state: Path, statement: str) -> None:
    with closing(sqlite3.connect(state / "journal.db")) as connection:
        assert connection.execute(statement).rowcount > 0
        connection.commit()


def with_outcome(outcome: str) -> Callable[[pl.DataFrame], pl.DataFrame]:
    """Another outcome for the row 6 of June."""
    return lambda lines: lines.with_columns(
        outcome=pl.when(pl.col("row") == 6).then(pl.lit(outcome)).otherwise("outcome")
    )


FIRST = "1/part-00000.parquet"


def test_a_damaged_part_is_found(state: Path) -> None:
    """One flipped byte in a part fails its checksum."""
    file = state / "ledger" / FIRST
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1
    file.write_bytes(content)
    verdict = verify(state)
    assert "files" in failed(verdict)
    assert FIRST in detail(verdict, "files")


def test_other_bytes_with_the_same_lines_are_found(state: Path) -> None:
    """A part that someone wrote again says the same, but is not the file that the manifest vouches for."""
    file = state / "ledger" / FIRST
    pl.read_parquet(file.read_bytes()).write_parquet(file, compression="uncompressed")
    verdict = verify(state)
    assert failed(verdict) == {"files"}
    assert f"ledger/{FIRST} was changed or damaged" in detail(verdict, "files")


def test_a_missing_part_is_found(state: Path) -> None:
    """A part that is gone is named, and so are the rows that have no line any more."""
    (state / "ledger" / FIRST).unlink()
    verdict = verify(state)
    assert {"files", "rows", "equation"} <= failed(verdict)
    assert f"ledger/{FIRST} is missing" in detail(verdict, "files")
    assert f"{JUNE}: 6 rows not at all, first row 1" in detail(verdict, "rows")


def test_a_missing_row_is_found(state: Path) -> None:
    """A line taken out of a part, checksum mended: the row is named."""
    rewrite_part(state, FIRST, lambda lines: lines.filter(pl.col("row") != 6))
    verdict = verify(state)
    assert {"rows", "lines", "equation"} <= failed(verdict)
    assert f"{JUNE}: 1 rows not at all, first row 6" in detail(verdict, "rows")
    assert f"ledger/{FIRST} lacks 1 rows, first {JUNE} row 6" in detail(verdict, "lines")


def test_a_doubled_row_is_found(state: Path) -> None:
    """A line that stands twice, checksum mended: the row is named."""
    rewrite_part(state, FIRST, lambda lines: pl.concat([lines, lines.filter(pl.col("row") == 6)]))
    verdict = verify(state)
    assert {"rows", "lines", "equation"} <= failed(verdict)
    assert f"{JUNE}: 1 rows more than once, first row 6" in detail(verdict, "rows")


def test_a_row_that_was_never_read_is_found(state: Path) -> None:
    """A line for a row beyond the export's last is no row of it."""
    rewrite_part(
        state, FIRST, lambda lines: lines.with_columns(row=pl.when(pl.col("row") == 6).then(99).otherwise("row"))
    )
    verdict = verify(state)
    assert {"rows", "lines"} <= failed(verdict)
    assert "1 rows that were never read, first row 99" in detail(verdict, "rows")


@pytest.mark.parametrize("outcome", [each for each in OUTCOMES if each != "delivered"])
def test_a_changed_outcome_is_found(state: Path, outcome: str) -> None:
    """A line with another outcome than the history gives it, checksum mended: row and request are named."""
    rewrite_part(state, FIRST, with_outcome(outcome))
    verdict = verify(state)
    assert {"outcomes", "equation"} <= failed(verdict)
    assert f"another outcome for 1 rows, first {JUNE} row 6 (request 1/2)" in detail(verdict, "outcomes")


def test_outcomes_swapped_between_rows_are_found(state: Path) -> None:
    """Where all totals still fit, only the comparison row by row can tell; it does."""
    rewrite_part(
        state,
        FIRST,
        lambda lines: lines.with_columns(
            outcome=pl.when(pl.col("row") == 1)
            .then(pl.lit("delivered"))
            .when(pl.col("row") == 6)
            .then(pl.lit("rejected"))
            .otherwise("outcome")
        ),
    )
    verdict = verify(state)
    assert failed(verdict) == {"outcomes"}
    assert "another outcome for 2 rows" in detail(verdict, "outcomes")


@pytest.mark.parametrize(
    ("column", "value", "check"),
    [
        ("customer_key", pl.lit("other"), "lines"),
        ("customer_key", pl.lit(None, pl.String), "lines"),
        ("line", pl.col("line") + 1, "lines"),
        ("timestamp", pl.col("timestamp").dt.offset_by("1s"), "lines"),
        ("request", pl.col("request") + 1, "lines"),
        ("attempts", pl.col("attempts") + 1, "outcomes"),
        ("reasons", pl.lit(["invented"]), "outcomes"),
        ("tid", pl.lit("invented"), "outcomes"),
        ("sent_at", pl.col("sent_at").dt.offset_by("1s"), "outcomes"),
        ("execution", pl.col("execution") + 1, "outcomes"),
    ],
)
def test_any_other_changed_value_is_found(state: Path, column: str, value: pl.Expr, check: str) -> None:
    """Each column of a line is held against staging or history, and the finding shows none of its values."""
    rewrite_part(
        state,
        FIRST,
        lambda lines: lines.with_columns(pl.when(pl.col("row") == 6).then(value).otherwise(column).alias(column)),
    )
    verdict = verify(state)
    assert failed(verdict) == {check}
    assert detail(verdict, check) == f"ledger/{FIRST} has another {column} for 1 rows, first {JUNE} row 6 (request 1/2)"


@pytest.mark.parametrize(
    ("forgery", "finding"),
    [
        (
            "UPDATE part SET state = 'delivered', cause = 'acknowledged' WHERE request = 7",
            "request 7[0:2] differs in state, cause: the table says delivered, the history in_doubt",
        ),
        ("UPDATE part SET tid = 'invented' WHERE request = 2", "request 2[0:2] differs in tid"),
        ("DELETE FROM part WHERE request = 2", "request 2[0:2] is not in the table"),
        (
            "DELETE FROM part WHERE request = 1 AND first = 1",
            "request 1[0:3]: its parts end at position 1 instead of 3",
        ),
        (
            "INSERT INTO part (load, request, first, count, state, attempts) VALUES (1, 2, 1, 1, 'rejected', 1)",
            "request 2[0:2]: position 1 is in two parts",
        ),
        (
            "INSERT INTO part (load, request, first, count, state, attempts) VALUES (1, 900, 0, 1, 'planned', 0)",
            "load 1 has parts of requests that were never staged",
        ),
    ],
)
def test_a_forged_table_of_parts_is_found(state: Path, forgery: str, finding: str) -> None:
    """The table from which the ledger is made has to follow from the append-only history."""
    edit_journal(state, forgery)
    verdict = verify(state)
    assert failed(verdict) == {"parts"}
    assert finding in detail(verdict, "parts")


def test_a_ledger_made_from_a_forged_table_is_found(state: Path) -> None:
    """Where the forged table went into the ledger too, lines and history disagree: the proof is not circular."""
    edit_journal(state, "UPDATE part SET state = 'delivered', cause = 'acknowledged' WHERE request = 7")
    shutil.rmtree(state / "ledger")
    with open_journal(state) as journal:
        settled(state, journal)
    verdict = verify(state)
    assert failed(verdict) == {"parts", "outcomes", "equation"}
    assert f"first {JULY} row 1 (request 1/7)" in detail(verdict, "outcomes")


@pytest.mark.parametrize(
    ("forgery", "finding"),
    [
        ("UPDATE move SET move = 'refused' WHERE request = 7 AND move = 'intent'", "was refused while it was planned"),
        ("DELETE FROM move WHERE request = 2 AND move = 'intent'", "was acknowledged while it was planned"),
        ("UPDATE move SET parts = NULL WHERE move = 'divided'", "was divided, and its parts end at position 0"),
        ("UPDATE move SET request = 900 WHERE request = 2", "load 1 has moves of requests that were never staged"),
        ("UPDATE move SET load = 2 WHERE request = 2", "load 2 was sent, but job.toml does not know it"),
        ("UPDATE move SET move = 'invented' WHERE request = 2", "piece 0: the journal holds words that no journal has"),
    ],
)
def test_an_impossible_history_is_found(state: Path, forgery: str, finding: str) -> None:
    """Moves that the lifecycle does not hold, or of what was never staged, are named."""
    edit_journal(state, forgery)
    verdict = verify(state)
    assert "history" in failed(verdict)
    assert finding in detail(verdict, "history")


@pytest.mark.parametrize(
    ("move", "ok"), [("unapplied", True), ("acknowledged", False), ("unclear", False), ("decided_resend", False)]
)
def test_requests_of_an_earlier_staging_were_never_applied(tmp_path: Path, move: str, ok: bool) -> None:
    """A load may be staged anew after refusals only; that some of it was applied before is found by the history."""
    load = StagedLoad((JUNE,), numbered_from=5)
    load.next_piece()
    load.request(0, 3)
    state = tmp_path / "state"
    freeze(state, [load])
    with open_journal(state) as journal:
        before = {"decided_resend": [Move.UNCLEAR]}.get(move, [])
        for made in (Move.INTENT, *before, Move(move)):
            record(journal, [Recorded(load=1, part=Part(1, 0, 1), move=made, attempt=1)])
        settled(state, journal)
    verdict = verify(state)
    assert ("history" not in failed(verdict)) is ok


def test_a_journal_older_than_the_ledger_is_found(state: Path) -> None:
    """A journal restored from a backup lacks moves that the ledger has seen: rows would be sent twice."""
    edit_journal(state, "DELETE FROM move WHERE request = 7 AND move = 'unclear'")
    edit_journal(state, "UPDATE part SET state = 'in_flight', cause = NULL, settled_at = NULL WHERE request = 7")
    verdict = verify(state)
    assert failed(verdict) == {"history"}
    assert "the journal lacks moves that ledger/1/part-00001.parquet was made from" in detail(verdict, "history")


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (lambda manifest: manifest["loads"][0]["exports"][0]["outcomes"].update(delivered=5), "equation"),
        (lambda manifest: manifest["loads"][0]["exports"][0].update(read=8), "equation"),
        (lambda manifest: manifest["parts"][0]["outcomes"][JUNE].update(delivered=5), "files"),
        (lambda manifest: manifest["parts"].pop(0), "files"),
        (lambda manifest: manifest["parts"].append(manifest["parts"][0] | {"path": "1/part-00009.parquet"}), "files"),
        (lambda manifest: manifest["loads"].append(manifest["loads"][0] | {"load": 2}), "files"),
        (lambda manifest: manifest.pop("parts"), "files"),
    ],
)
def test_a_changed_manifest_is_found(state: Path, change: Callable[[Any], None], check: str) -> None:
    """Counts and names in the manifest are held against files, staging and job.toml."""
    edit_manifest(state, change)
    assert check in failed(verify(state))


def test_a_stray_file_among_the_parts_is_found(state: Path) -> None:
    """Whoever reads the whole folder would count its rows twice."""
    shutil.copy(state / "ledger" / FIRST, state / "ledger" / "1" / "part-00009.parquet")
    verdict = verify(state)
    assert failed(verdict) == {"files"}
    assert "ledger/1/part-00009.parquet does not belong to the ledger" in detail(verdict, "files")


@pytest.mark.parametrize("damage", ["missing", "cut short", "a row less", "no manifest"])
def test_damaged_staging_is_found(state: Path, damage: str) -> None:
    """Staged files are the other half of the truth; what is wrong with them is not taken for an unsettled load."""
    file = state / "staged" / "1" / "rows-00000.parquet"
    if damage == "missing":
        file.unlink()
    elif damage == "cut short":
        file.write_bytes(file.read_bytes()[:-20])
    elif damage == "a row less":
        pl.read_parquet(file.read_bytes()).filter(pl.col("row") != 4).write_parquet(file)
    else:
        (state / "staged" / "1" / "manifest.json").unlink()
    verdict = verify(state)
    assert "staged" in failed(verdict)


def test_findings_show_no_customers_values(state: Path) -> None:
    """Even where every line is wrong, the findings hold no key, no `tid` and no reason of a row."""
    rewrite_part(
        state,
        FIRST,
        lambda lines: lines.with_columns(
            customer_key=pl.lit("secret-key"), tid=pl.lit("secret-tid"), reasons=pl.lit(["secret-reason"])
        ),
    )
    verdict = verify(state)
    assert failed(verdict) == {"lines", "outcomes"}
    assert "secret" not in "".join(check.detail for check in verdict.checks)


# ---------------------------------------------------------------------------------------------------- any job


@st.composite
def staged_loads(draw: st.DrawFn) -> tuple[StagedLoad, list[Part]]:
    """Two exports, up to three pieces, requests of up to five rows, duplicates and invalid rows anywhere."""
    load = StagedLoad((JUNE, JULY))
    parts = []
    for _ in range(draw(st.integers(0, 3))):
        load.next_piece()
        for kind in draw(st.lists(st.sampled_from(["request", "duplicate", "invalid"]), max_size=6)):
            export = draw(st.integers(0, 1))
            if kind == "request":
                tid = draw(st.sampled_from([None, "t-1"]))
                parts.append(load.request(export, draw(st.integers(1, 5)), tid=tid))
            elif kind == "duplicate" and parts:
                first = next(row for piece in load.pieces for row in piece if row["request"])
                load.duplicate(export, of=first)
            else:
                load.refuse(export, "url_missing")
        if not load.pieces[-1]:
            parts.append(load.request(0, 1))
    return load, parts


@st.composite
def histories(draw: st.DrawFn, parts: list[Part]) -> list[Recorded]:
    """Any walk along MOVES for each part, splits included, that may end in any state."""
    moves = []
    waiting = [(part, State.PLANNED, 0) for part in parts]
    while waiting:
        part, state, attempts = waiting.pop()
        possible = {move for before, move in MOVES if before is state}
        if part.interactions == 1:
            possible -= STATE_OF_PARTS.keys()
        move = draw(st.sampled_from([None, *sorted(possible)])) if attempts < 4 else None
        if move is None:
            continue
        attempts += move is Move.INTENT
        into = halves(part) if move in STATE_OF_PARTS else ()
        replied = move in (Move.ACKNOWLEDGED, Move.REFUSED, Move.DIVIDED, Move.BELIEVED)
        moves.append(
            Recorded(
                load=1,
                part=part,
                move=move,
                attempt=attempts,
                http_status=draw(st.sampled_from([200, 400, 503])) if replied else None,
                cause=draw(st.sampled_from([None, "acknowledged", "refused"])) if move is not Move.INTENT else None,
                reason=draw(st.sampled_from([None, "no such address"])) if replied else None,
                tid=draw(st.sampled_from([None, "t-2"])) if replied else None,
                into=into,
            )
        )
        waiting += [(child, STATE_OF_PARTS[move], attempts) for child in into]
        if not into:
            waiting.append((part, MOVES[state, move], attempts))
    return moves


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_every_row_has_exactly_one_line_whatever_happened(data: st.DataObject) -> None:
    """For any staged rows and any lawful history, settled once or in two goes: one line per row read, the equation
    closes with the reader's count, `verify` agrees with everything and comes to the same account."""
    load, parts = data.draw(staged_loads())
    moves = data.draw(histories(parts))
    pause = data.draw(st.integers(0, len(moves)), label="moves before the first settling")
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state"
        freeze(state, [load])
        on_disk = [LoadOnDisk(load=1, folder=state / "staged" / "1")]
        with open_journal(state) as journal:
            for some in (moves[:pause], moves[pause:]):
                record(journal, some)
                counts = settle(on_disk, journal, state, report=lambda _: None)
        for nth, account in enumerate(counts):
            assert account.read == load.rows_read(nth)
            assert account.balanced
        files = sorted((state / "ledger" / "1").glob("*.parquet")) if (state / "ledger" / "1").exists() else []
        lines = [line for file in files for line in pl.read_parquet(file).select("export", "row").rows()]
        assert sorted(lines) == sorted(
            (path, row) for nth, path in enumerate(load.exports) for row in range(1, load.rows_read(nth) + 1)
        )
        verdict = verify(state)
        assert [check for check in verdict.checks if not check.ok] == []
        assert verdict.exports == counts


@pytest.mark.parametrize(
    ("export", "row", "load", "ok"), [(0, 7, 1, True), (1, 3, 1, False), (2, 1, 1, False), (0, 1, 3, False)]
)
def test_a_duplicate_of_a_row_that_there_is_not_is_found(
    tmp_path: Path, export: int, row: int, load: int, ok: bool
) -> None:
    """What a row repeats must have been read in that load, or an earlier one; a sound one is named by its path."""
    first, _ = a_job()
    second = StagedLoad((AUGUST,))
    second.next_piece()
    second.duplicate(0, of={"export": export, "row": row}, load=load)
    freeze(tmp_path / "state", [first, second])
    job = StateDirectory(tmp_path / "state").read_job()
    assert job is not None
    with open_journal(tmp_path / "state") as journal:
        if ok:
            settle(loads_on_disk(tmp_path / "state", job), journal, tmp_path / "state", report=lambda _: None)
    verdict = verify(tmp_path / "state")
    assert (verdict.ok, "staged" in failed(verdict)) == (ok, not ok)
    if not ok:
        assert f"duplicates of rows that load {load} does not have" in detail(verdict, "staged")
