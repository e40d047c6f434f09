"""The journal against a real SQLite file, in real processes where one has to die."""

import contextlib
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from backfill.adapters import journal as journal_module
from backfill.adapters.journal import SCHEMA_VERSION, Journal
from backfill.core.errors import StorageError, Unusable
from backfill.core.lifecycle import Move, Part, Recorded, State, halves

WHOLE = Part(7, 0, 100)


def move(part: Part, what: Move, attempt: int = 1, **known: object) -> Recorded:
    return Recorded(load=1, part=part, move=what, attempt=attempt, **known)  # type: ignore[arg-type]


def commit(journal: Journal, moves: Sequence[Recorded], at_ms: int = 1000) -> StorageError | None:
    """Commit and wait until it is durable."""
    done = threading.Event()
    errors: list[StorageError | None] = []

    def on_durable(error: StorageError | None) -> None:
        errors.append(error)
        done.set()

    journal.commit(moves, at_ms, on_durable)
    assert done.wait(30)
    return errors[0]


def begin(journal: Journal) -> int:
    return journal.begin(command="run", settings={}, pid=os.getpid(), host="here", at_ms=1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    with Journal(path) as opened:
        begin(opened)
        yield opened


def states(journal: Journal) -> dict[Part, State]:
    return {standing.part: standing.state for standing in journal.standings(1, 0, 10**9)}


def test_an_attempt_is_an_intent_and_an_outcome(journal: Journal) -> None:
    """The standing sums up the moves; the moves stay as they were."""
    assert commit(journal, [move(WHOLE, Move.INTENT)], 1000) is None
    assert states(journal) == {WHOLE: State.IN_FLIGHT}
    assert commit(journal, [move(WHOLE, Move.ACKNOWLEDGED, http_status=200, tid="t")], 2000) is None
    (standing,) = journal.standings(1, 7, 7)
    assert (standing.state, standing.attempts, standing.http_status, standing.tid) == (State.DELIVERED, 1, 200, "t")
    assert (standing.sent_at_ms, standing.settled_at_ms, standing.execution) == (1000, 2000, 1)
    assert [(each.move, at) for each, _, at in journal.moves(1, 7, 7)] == [
        (Move.INTENT, 1000),
        (Move.ACKNOWLEDGED, 2000),
    ]


def test_a_planned_part_is_not_settled(journal: Journal) -> None:
    """After a 503 the request waits again, with its attempts counted."""
    commit(journal, [move(WHOLE, Move.INTENT)])
    commit(journal, [move(WHOLE, Move.UNAPPLIED, http_status=503)])
    (standing,) = journal.standings(1, 7, 7)
    assert (standing.state, standing.attempts, standing.settled_at_ms) == (State.PLANNED, 1, None)
    commit(journal, [move(WHOLE, Move.INTENT, attempt=2)])
    (standing,) = journal.standings(1, 7, 7)
    assert (standing.state, standing.attempts, standing.http_status) == (State.IN_FLIGHT, 2, None)


def test_an_outcome_and_the_next_intent_share_a_commit(journal: Journal) -> None:
    """Within one commit the retry of a part follows the outcome before it."""
    commit(journal, [move(WHOLE, Move.INTENT)])
    assert commit(journal, [move(WHOLE, Move.INTENT, attempt=2), move(WHOLE, Move.UNAPPLIED)]) is None
    assert states(journal) == {WHOLE: State.IN_FLIGHT}


def test_a_split_replaces_the_request_in_one_commit(journal: Journal) -> None:
    """Its parts are planned, and tile it."""
    left, right = Part(7, 0, 50), Part(7, 50, 50)
    commit(journal, [move(WHOLE, Move.INTENT)])
    assert commit(journal, [move(WHOLE, Move.DIVIDED, into=(left, right)), move(left, Move.INTENT)]) is None
    assert states(journal) == {WHOLE: State.SPLIT, left: State.IN_FLIGHT, right: State.PLANNED}
    assert journal.moves(1, 7, 7)[1][0].into == (left, right)


@pytest.mark.parametrize("what", [each for each in Move if each is not Move.INTENT])
def test_a_move_that_the_lifecycle_does_not_hold_is_refused(journal: Journal, what: Move) -> None:
    """A bug elsewhere cannot write nonsense into the truth; and nothing is written after it."""
    commit(journal, [move(WHOLE, Move.INTENT)])
    commit(journal, [move(WHOLE, Move.ACKNOWLEDGED)])
    assert isinstance(commit(journal, [move(WHOLE, what)]), StorageError)
    assert isinstance(commit(journal, [move(Part(8, 0, 1), Move.INTENT)]), StorageError)


def test_a_second_intent_in_flight_is_refused(journal: Journal) -> None:
    """One attempt at a time."""
    commit(journal, [move(WHOLE, Move.INTENT)])
    assert isinstance(commit(journal, [move(WHOLE, Move.INTENT, attempt=2)]), StorageError)


def test_commits_of_one_moment_are_grouped(journal: Journal) -> None:
    """A thousand commits in a hurry all become durable, in few transactions."""
    done = threading.Semaphore(0)
    for number in range(1000):
        journal.commit([move(Part(number, 0, 1), Move.INTENT)], 5, lambda error: done.release())
    for _ in range(1000):
        assert done.acquire(timeout=30)
    assert len(states(journal)) == 1000


def test_what_a_dead_execution_left_in_flight_is_in_doubt(path: Path) -> None:
    """The next `begin` says how many, and names the crash as the cause."""
    with Journal(path) as journal:
        begin(journal)
        commit(journal, [move(WHOLE, Move.INTENT), move(Part(8, 0, 3), Move.INTENT)])
        commit(journal, [move(WHOLE, Move.ACKNOWLEDGED)])
    with Journal(path) as journal:
        assert begin(journal) == 1
        assert journal.execution == 2
        assert states(journal) == {WHOLE: State.DELIVERED, Part(8, 0, 3): State.IN_DOUBT}
        assert journal.standings(1, 8, 8)[0].cause == "crash"
        assert begin(journal) == 0


def test_a_durable_commit_outlives_a_kill(path: Path) -> None:
    """SIGKILL directly after the answer loses nothing."""
    script = textwrap.dedent(
        f"""
        import os, signal
        from pathlib import Path
        from tests.adapters.test_journal import begin, commit, move, WHOLE
        from backfill.adapters.journal import Journal
        from backfill.core.lifecycle import Move
        journal = Journal(Path({str(path)!r}))
        begin(journal)
        assert commit(journal, [move(WHOLE, Move.INTENT)]) is None
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    with Journal(path) as journal:
        assert begin(journal) == 1


def test_the_journal_is_durable_by_its_settings(journal: Journal) -> None:
    """WAL with synchronous FULL: with NORMAL a power cut takes acknowledged commits."""
    pragmas = journal._ask(
        lambda connection: [
            connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "locking_mode")
        ]
    )
    assert pragmas == ["wal", 2, "exclusive"]


def test_only_its_owner_may_read_it(path: Path) -> None:
    """0600 under any umask, its side files too."""
    before = os.umask(0)
    try:
        with Journal(path) as journal:
            begin(journal)
            commit(journal, [move(WHOLE, Move.INTENT)])
            for file in path.parent.iterdir():
                assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    finally:
        os.umask(before)


def test_the_newest_move_tells_whether_anything_happened(journal: Journal) -> None:
    """Settling writes a ledger part again only if this has changed."""
    assert journal.newest_move(1, 0, 100) == 0
    commit(journal, [move(WHOLE, Move.INTENT)])
    newest = journal.newest_move(1, 0, 100)
    assert newest > 0
    commit(journal, [move(Part(200, 0, 1), Move.INTENT)])
    assert journal.newest_move(1, 0, 100) == newest


def test_a_load_is_unapplied_while_all_that_was_sent_of_it_is_planned_again(journal: Journal) -> None:
    """Refused, not come through, divided: nothing was applied. In flight, in doubt, fated or decided: who knows."""
    assert (journal.is_unapplied(1), journal.highest_request(1)) == (True, 0)
    left, right = halves(WHOLE)
    commit(journal, [move(WHOLE, Move.INTENT)])
    assert not journal.is_unapplied(1)
    commit(journal, [move(WHOLE, Move.DIVIDED, http_status=400, into=(left, right))])
    assert journal.is_unapplied(1)
    commit(journal, [move(left, Move.INTENT, 2)])
    commit(journal, [move(left, Move.UNAPPLIED, 2)])
    assert (journal.is_unapplied(1), journal.highest_request(1)) == (True, WHOLE.request)
    commit(journal, [move(left, Move.INTENT, 3)])
    commit(journal, [move(left, Move.UNCLEAR, 3)])
    assert not journal.is_unapplied(1)
    commit(journal, [move(left, Move.DECIDED_RESEND, 3)])
    assert not journal.is_unapplied(1), "planned again, but it may have been applied"
    commit(journal, [move(right, Move.DECIDED_ABANDON)])
    assert not journal.is_unapplied(1)
    assert journal.is_unapplied(2)


def test_settled_interactions_are_those_that_nobody_will_send(journal: Journal) -> None:
    """Doubt counts as settled: only a decision changes it."""
    commit(journal, [move(Part(number, 0, 10), Move.INTENT) for number in range(1, 5)])
    commit(journal, [move(Part(1, 0, 10), Move.ACKNOWLEDGED), move(Part(2, 0, 10), Move.UNCLEAR)])
    commit(journal, [move(Part(3, 0, 10), Move.UNAPPLIED)])
    assert journal.settled_interactions(1) == 20


def test_the_last_move_is_known_across_executions(path: Path) -> None:
    """So that the budget holds across restarts: no request started later, since a crash's loss is a move of its own."""
    with Journal(path) as journal:
        begin(journal)
        assert journal.last_move_ms() is None
        commit(journal, [move(WHOLE, Move.INTENT)], 12345)
    with Journal(path) as journal:
        assert journal.last_move_ms() == 12345
        journal.begin(command="run", settings={}, pid=1, host="here", at_ms=99999)
        assert journal.last_move_ms() == 99999


def test_a_damaged_journal_is_refused_with_the_remedy(path: Path) -> None:
    """It is never taken for an empty one."""
    path.write_bytes(b"This is not a database, whatever its name says. " * 100)
    with pytest.raises(StorageError, match=r"not a database.*do not delete it"):
        Journal(path)
    assert path.read_bytes().startswith(b"This is not")


def test_a_journal_of_a_later_version_is_refused(path: Path) -> None:
    """Both versions are named, and the file stays as it was."""
    with Journal(path):
        pass
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(Unusable, match=f"format {SCHEMA_VERSION + 1}.*knows {SCHEMA_VERSION}"):
        Journal(path)
    assert version(path) == SCHEMA_VERSION + 1


VERSION_1 = """
CREATE TABLE execution (id INTEGER PRIMARY KEY, started_at INTEGER NOT NULL, ended_at INTEGER, pid INTEGER NOT NULL,
    host TEXT NOT NULL, command TEXT NOT NULL, settings TEXT NOT NULL, shape TEXT NOT NULL,
    first_move INTEGER NOT NULL, exit_code INTEGER);
CREATE TABLE part (load INTEGER NOT NULL, request INTEGER NOT NULL, first INTEGER NOT NULL, count INTEGER NOT NULL,
    state TEXT NOT NULL, attempts INTEGER NOT NULL, http_status INTEGER, cause TEXT, reason TEXT, tid TEXT,
    maybe_duplicate INTEGER NOT NULL DEFAULT 0, sent_at INTEGER, settled_at INTEGER, execution INTEGER,
    PRIMARY KEY (load, request, first, count)) WITHOUT ROWID;
CREATE INDEX part_in_flight ON part (state) WHERE state = 'in_flight';
CREATE TABLE move (id INTEGER PRIMARY KEY, load INTEGER NOT NULL, request INTEGER NOT NULL, first INTEGER NOT NULL,
    count INTEGER NOT NULL, move TEXT NOT NULL, attempt INTEGER NOT NULL, http_status INTEGER, cause TEXT, reason TEXT,
    tid TEXT, parts TEXT, execution INTEGER NOT NULL, at INTEGER NOT NULL);
CREATE INDEX move_of_request ON move (load, request);
INSERT INTO execution VALUES (1, 5, 6, 7, 'host', 'run', '{}', 'shape', 1, 75);
INSERT INTO part VALUES (1, 7, 0, 2, 'in_flight', 1, NULL, NULL, NULL, NULL, 0, 1000, NULL, 1);
INSERT INTO move VALUES (1, 1, 7, 0, 2, 'intent', 1, NULL, NULL, NULL, NULL, NULL, 1, 1000);
PRAGMA user_version = 1;
"""
"""A journal as version 1 wrote it, its process killed with one request in flight."""


def version(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


def write_version_1(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(VERSION_1)


def test_a_journal_of_an_earlier_version_is_migrated(path: Path) -> None:
    """What it knows stays known, its open intent becomes doubt, and a note can be kept."""
    write_version_1(path)
    with Journal(path, must_exist=True) as journal:
        assert journal.begin(command="resolve", settings={}, pid=1, host="here", at_ms=1, note="asked Ada") == 1
        assert states(journal) == {Part(7, 0, 2): State.IN_DOUBT}
        assert [each.move for each, _, _ in journal.moves(1, 7, 7)] == [Move.INTENT, Move.LOST]
    assert version(path) == SCHEMA_VERSION
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT id, note FROM execution").fetchall() == [(1, None), (2, "asked Ada")]


def test_a_migrated_journal_has_the_tables_of_a_new_one(path: Path, tmp_path: Path) -> None:
    """Migrations and schema are two tellings of the same thing."""
    write_version_1(path)
    for each in (path, tmp_path / "new.db"):
        with Journal(each):
            pass
    old, new = (columns(each) for each in (path, tmp_path / "new.db"))
    assert old == new


def columns(path: Path) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(
            'SELECT tables.name, columns.name, columns.type, columns."notnull", columns.pk FROM sqlite_master tables, '
            "pragma_table_info(tables.name) columns WHERE tables.type = 'table' ORDER BY 1, 2"
        ).fetchall()


def test_a_migration_that_fails_leaves_the_journal_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a migration would be worse than none."""
    write_version_1(path)
    broken = "ALTER TABLE execution ADD COLUMN note TEXT;ALTER TABLE nowhere ADD COLUMN note TEXT;"
    monkeypatch.setattr(journal_module, "_MIGRATIONS", {1: broken})
    with pytest.raises(StorageError, match="nowhere"):
        Journal(path)
    assert version(path) == 1
    assert ("execution", "note") not in {each[:2] for each in columns(path)}


def test_an_empty_journal_is_a_lost_one_where_there_must_be_one(path: Path) -> None:
    """Cut down to nothing by a broken disk, it must not begin anew and send everything again."""
    path.touch()
    with pytest.raises(StorageError, match=r"is empty.*do not begin anew"):
        Journal.existing(path)
    assert path.stat().st_size == 0


def test_a_missing_journal_is_not_made_for_a_reader(path: Path) -> None:
    """`verify` must not turn a lost journal into an empty one."""
    with pytest.raises(StorageError, match="is not there"):
        Journal.existing(path)
    assert not path.exists()


def test_a_full_disk_fails_the_commit_and_every_later_one(path: Path) -> None:
    """No intent is reported durable that is not; the limit on the file's size stands for a full disk."""
    script = textwrap.dedent(
        f"""
        import resource, signal
        from pathlib import Path
        from tests.adapters.test_journal import begin, commit, move
        from backfill.adapters.journal import Journal
        from backfill.core.lifecycle import Move, Part
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        journal = Journal(Path({str(path)!r}))
        begin(journal)
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
        durable = 0
        for number in range(100):
            parts = [Part(number * 100 + each, 0, 1) for each in range(100)]
            error = commit(journal, [move(part, Move.INTENT) for part in parts])
            if error is not None:
                break
            durable += 100
        print(durable, error.exit_code, error.message)
        assert commit(journal, [move(Part(10**6, 0, 1), Move.INTENT)]) is error
        """
    )
    result = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    durable, code, message = result.stdout.split(maxsplit=2)
    assert code == "74"
    assert "No further request was started" in message
    with Journal(path) as journal:
        assert begin(journal) == int(durable) > 0


def test_the_parts_of_a_split_take_over_what_happened_to_their_rows(journal: Journal) -> None:
    """Attempts and mark, and in flight the send as well: a row is not younger for standing in a smaller request."""
    left, right = Part(7, 0, 50), Part(7, 50, 50)
    commit(journal, [move(WHOLE, Move.INTENT)], 1000)
    commit(journal, [move(WHOLE, Move.UNCLEAR), move(WHOLE, Move.DECIDED_RESEND)], 2000)
    commit(journal, [move(WHOLE, Move.INTENT, attempt=2)], 3000)
    moves = [move(WHOLE, Move.SORTED, attempt=2, into=(left, right)), move(left, Move.ACKNOWLEDGED, attempt=2)]
    assert commit(journal, [*moves, move(right, Move.UNAPPLIED, attempt=2)], 4000) is None
    whole, left_now, right_now = sorted(journal.standings(1, 7, 7), key=lambda each: (each.part.first, -each.part[2]))
    assert (whole.state, left_now.state, right_now.state) == (State.SPLIT, State.DELIVERED, State.PLANNED)
    assert (left_now.attempts, left_now.sent_at_ms, left_now.maybe_duplicate) == (2, 3000, True)
    assert (right_now.attempts, right_now.maybe_duplicate) == (2, True)


def test_a_request_may_be_cut_or_abandoned_before_it_was_ever_sent(journal: Journal) -> None:
    """The journal knows nothing of it until then."""
    now, later = Part(7, 0, 30), Part(7, 30, 70)
    assert commit(journal, [move(WHOLE, Move.CUT, attempt=0, into=(now, later)), move(now, Move.INTENT)]) is None
    assert commit(journal, [move(Part(8, 0, 5), Move.DECIDED_ABANDON, attempt=0)]) is None
    assert states(journal) == {
        WHOLE: State.SPLIT,
        now: State.IN_FLIGHT,
        later: State.PLANNED,
        Part(8, 0, 5): State.ABANDONED,
    }


def test_a_refusal_is_believed_later(journal: Journal) -> None:
    """Until an acknowledgement it stands as planned, with what the API said."""
    commit(journal, [move(WHOLE, Move.INTENT)])
    commit(journal, [move(WHOLE, Move.UNAPPLIED, http_status=400, reason="no url")])
    assert states(journal) == {WHOLE: State.PLANNED}
    assert commit(journal, [move(WHOLE, Move.BELIEVED, http_status=400, reason="no url")]) is None
    (standing,) = journal.standings(1, 7, 7)
    assert (standing.state, standing.http_status, standing.reason) == (State.REJECTED, 400, "no url")


def test_under_resend_what_was_in_flight_is_planned_again_and_marked(path: Path) -> None:
    """At least once: sent again, and named as perhaps doubled."""
    with Journal(path) as journal:
        begin(journal)
        commit(journal, [move(WHOLE, Move.INTENT)])
    with Journal(path) as journal:
        assert journal.begin(command="run", settings={}, pid=1, host="here", at_ms=2, resend=True) == 1
        (standing,) = journal.standings(1, 7, 7)
        assert (standing.state, standing.maybe_duplicate) == (State.PLANNED, True)
        assert [each.move for each, _, _ in journal.moves(1, 7, 7)] == [Move.INTENT, Move.LOST, Move.DECIDED_RESEND]


def test_refusals_in_a_row_count_calls_since_the_last_acknowledgement(journal: Journal) -> None:
    """However many rows a refusal names; other replies neither count nor end the row."""
    assert journal.refusals_in_a_row() == 0
    left, right = Part(7, 0, 50), Part(7, 50, 50)
    commit(journal, [move(WHOLE, Move.INTENT)])
    commit(journal, [move(WHOLE, Move.DIVIDED, http_status=400, into=(left, right))])
    commit(journal, [move(left, Move.INTENT, attempt=2)])
    commit(journal, [move(left, Move.UNAPPLIED, attempt=2, http_status=422)])
    commit(journal, [move(right, Move.INTENT, attempt=2)])
    commit(journal, [move(right, Move.UNAPPLIED, attempt=2, http_status=503)])
    assert journal.refusals_in_a_row() == 2
    commit(journal, [move(Part(8, 0, 1), Move.INTENT)])
    commit(journal, [move(Part(8, 0, 1), Move.ACKNOWLEDGED, http_status=200)])
    assert journal.refusals_in_a_row() == 0


def test_refusals_of_both_halves_are_two_and_those_of_one_reply_are_one(journal: Journal) -> None:
    """The parts of a request share its attempt numbers; each was a call, unless one reply sorted them."""
    left, right = Part(7, 0, 50), Part(7, 50, 50)
    commit(journal, [move(WHOLE, Move.INTENT)])
    commit(journal, [move(WHOLE, Move.DIVIDED, http_status=400, into=(left, right))])
    for half in (left, right):
        commit(journal, [move(half, Move.INTENT, attempt=2)])
        commit(journal, [move(half, Move.UNAPPLIED, attempt=2, http_status=400)])
    assert journal.refusals_in_a_row() == 3
    whole, parts = Part(8, 0, 3), (Part(8, 0, 2), Part(8, 2, 1))
    commit(journal, [move(whole, Move.INTENT)])
    refused = [move(part, Move.UNAPPLIED, http_status=400) for part in parts]
    commit(journal, [move(whole, Move.SORTED, into=parts), *refused])
    assert journal.refusals_in_a_row() == 4


def test_a_shape_is_proven_by_an_acknowledgement_under_it(path: Path) -> None:
    """Not by one under another configuration, and not by an execution without any."""
    with Journal(path) as journal:
        journal.begin(command="run", settings={}, pid=1, host="here", at_ms=1, shape="old")
        commit(journal, [move(WHOLE, Move.INTENT)])
        commit(journal, [move(WHOLE, Move.ACKNOWLEDGED)])
        journal.begin(command="run", settings={}, pid=1, host="here", at_ms=2, shape="new")
        commit(journal, [move(Part(8, 0, 1), Move.INTENT)])
        assert [journal.acknowledged_as(shape) for shape in ("old", "new", "other")] == [True, False, False]
        commit(journal, [move(Part(8, 0, 1), Move.ACKNOWLEDGED)])
        assert journal.acknowledged_as("new")


def test_calls_are_counted_from_a_moment_on(journal: Journal) -> None:
    """For the day's budget, across executions: by their intent, or by an outcome that came after the moment."""
    commit(journal, [move(WHOLE, Move.INTENT), move(Part(8, 0, 1), Move.INTENT)], 900)
    commit(journal, [move(WHOLE, Move.UNAPPLIED)], 999)
    assert [journal.calls_since(at_ms) for at_ms in (0, 900, 901, 1000)] == [2, 2, 1, 0]
    commit(journal, [move(Part(8, 0, 1), Move.ACKNOWLEDGED), move(WHOLE, Move.INTENT, attempt=2)], 1001)
    assert [journal.calls_since(at_ms) for at_ms in (900, 1000, 1002)] == [3, 2, 0]
    commit(journal, [move(WHOLE, Move.SORTED, attempt=2, into=(Part(7, 0, 60), Part(7, 60, 40)))], 1003)
    assert journal.calls_since(1002) == 1


def test_a_vendor_that_confirms_takes_the_mark_away(journal: Journal) -> None:
    """Decided as not delivered, a row is sent again unmarked, also if it was sent again in doubt before."""
    commit(journal, [move(WHOLE, Move.INTENT)])
    commit(journal, [move(WHOLE, Move.UNCLEAR), move(WHOLE, Move.DECIDED_RESEND)])
    commit(journal, [move(WHOLE, Move.INTENT, attempt=2)])
    commit(journal, [move(WHOLE, Move.UNCLEAR, attempt=2)])
    assert journal.standings(1, 7, 7)[0].maybe_duplicate
    commit(journal, [move(WHOLE, Move.DECIDED_NOT_DELIVERED, attempt=2)])
    assert not journal.standings(1, 7, 7)[0].maybe_duplicate


def test_a_copy_is_refused_while_its_original_is_there(tmp_path: Path) -> None:
    """Two of the same job would send the same rows; once the original is gone, the copy goes on."""
    original, copy = tmp_path / "a" / "journal.db", tmp_path / "b" / "journal.db"
    for path in (original, copy):
        path.parent.mkdir()
    with Journal(original) as journal:
        journal.must_be_original()
        begin(journal)
    shutil.copy2(original, copy)
    with (
        Journal(copy) as journal,
        pytest.raises(Unusable, match=r"b is a copy of .*a, which is still there.*remove it"),
    ):
        journal.must_be_original()
    with Journal(original) as journal:
        journal.must_be_original()
    original.rename(tmp_path / "elsewhere.db")
    with Journal(copy) as journal:
        journal.must_be_original()


def test_a_moved_or_linked_journal_is_no_copy(tmp_path: Path) -> None:
    """Nor is one of which a backup was put back in its place."""
    first, second = tmp_path / "a" / "journal.db", tmp_path / "b" / "journal.db"
    first.parent.mkdir()
    with Journal(first) as journal:
        begin(journal)
    backup = first.read_bytes()
    first.parent.rename(second.parent)
    first.parent.symlink_to(second.parent)
    for path in (second, first):
        with Journal(path) as journal:
            journal.must_be_original()
            begin(journal)
    second.unlink()
    second.write_bytes(backup)
    with Journal(second) as journal:
        journal.must_be_original()
