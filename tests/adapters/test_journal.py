"""The journal against a real SQLite file, in real processes where one has to die."""

import contextlib
import os
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

from backfill.adapters.journal import SCHEMA_VERSION, Journal
from backfill.core.errors import StorageError
from backfill.core.lifecycle import Move, Part, Recorded, State

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


def test_a_journal_of_another_version_is_refused(path: Path) -> None:
    """Both versions are named."""
    with Journal(path):
        pass
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(StorageError, match=f"version {SCHEMA_VERSION + 1}.*version {SCHEMA_VERSION}"):
        Journal(path)


def test_a_missing_journal_is_not_made_for_a_reader(path: Path) -> None:
    """`verify` must not turn a lost journal into an empty one."""
    with pytest.raises(StorageError, match="no journal"):
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
