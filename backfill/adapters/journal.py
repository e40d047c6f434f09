"""The journal: SQLite, the one truth about what left this machine.

One connection in one writer thread with group commit: `commit` takes a list of moves, returns at once, and calls
back when they are durable. Nothing outside this module knows that the journal is SQLite; it never decides which
move is made, but it refuses one that the lifecycle does not hold.

`synchronous=FULL`: with NORMAL acknowledged commits were lost in every simulated power cut, with FULL in none.
"""

import contextlib
import json
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self, TypeVar

from backfill.core.errors import BackfillError, StorageError, Unusable
from backfill.core.lifecycle import MOVES, STATE_OF_PARTS, Move, Part, Recorded, Standing, State

SCHEMA_VERSION = 2

_MIGRATIONS = {
    1: "ALTER TABLE execution ADD COLUMN note TEXT;"
    "ALTER TABLE execution ADD COLUMN place TEXT;"
    "ALTER TABLE execution ADD COLUMN inode INTEGER;"
}
"""What makes a journal of each earlier version one of the next. Moves are never rewritten."""

_SCHEMA = """
CREATE TABLE execution (
    id INTEGER PRIMARY KEY,
    started_at INTEGER NOT NULL,
    ended_at INTEGER,
    pid INTEGER NOT NULL,
    host TEXT NOT NULL,
    command TEXT NOT NULL,
    settings TEXT NOT NULL,
    shape TEXT NOT NULL,
    first_move INTEGER NOT NULL,
    exit_code INTEGER,
    note TEXT,
    place TEXT,
    inode INTEGER
);
CREATE TABLE part (
    load INTEGER NOT NULL,
    request INTEGER NOT NULL,
    first INTEGER NOT NULL,
    count INTEGER NOT NULL,
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    http_status INTEGER,
    cause TEXT,
    reason TEXT,
    tid TEXT,
    maybe_duplicate INTEGER NOT NULL DEFAULT 0,
    sent_at INTEGER,
    settled_at INTEGER,
    execution INTEGER,
    PRIMARY KEY (load, request, first, count)
) WITHOUT ROWID;
CREATE INDEX part_in_flight ON part (state) WHERE state = 'in_flight';
CREATE TABLE move (
    id INTEGER PRIMARY KEY,
    load INTEGER NOT NULL,
    request INTEGER NOT NULL,
    first INTEGER NOT NULL,
    count INTEGER NOT NULL,
    move TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    http_status INTEGER,
    cause TEXT,
    reason TEXT,
    tid TEXT,
    parts TEXT,
    execution INTEGER NOT NULL,
    at INTEGER NOT NULL
);
CREATE INDEX move_of_request ON move (load, request);
"""
# execution.shape: what the API's answers depend on (tenant, call, wire form, columns), as one word; first_move: the
# number of its first move, if it made any; note: why someone decided (`resolve --note`);
# place, inode: which file this journal was then, so that a copy can be told from the original.
# part: every part that has left `planned`, and the planned children of a split; the present state, for resuming.
# move: everything that ever happened, in order, never changed; part can be made from it, and `verify` does so.
# Times are epoch milliseconds, UTC.

_STATES_BEFORE: dict[Move, tuple[str, ...]] = {
    move: tuple(str(before) for before, made in MOVES if made is move) for move in Move
}
_STATE_AFTER: dict[Move, State] = {move: after for (_, move), after in MOVES.items()}

_ORDER = (
    *STATE_OF_PARTS,
    *(move for move in Move if move not in STATE_OF_PARTS and (State.IN_FLIGHT, move) in MOVES),
    *(
        move
        for move in Move
        if move not in STATE_OF_PARTS and (State.IN_FLIGHT, move) not in MOVES and move != "intent"
    ),
    Move.INTENT,
)
"""In which order the kinds of moves of one commit are carried out: splits, outcomes, what follows from outcomes,
intents. Within one commit no part is moved the other way round."""

_BORN_PLANNED = tuple(move for before, move in MOVES if before is State.PLANNED)
"""Moves that may be the first of a request, which has no row in `part` before it."""

_PART_COLUMNS = (
    "request, first, count, state, attempts, http_status, cause, reason, tid, maybe_duplicate, sent_at, "
    "settled_at, execution"
)

OnDurable = Callable[[StorageError | None], None]
_T = TypeVar("_T")


@dataclass(slots=True)
class _Commit:
    moves: Sequence[Recorded]
    at_ms: int
    on_durable: OnDurable


@dataclass(slots=True)
class _Query:
    run: Callable[[sqlite3.Connection], object]
    result: "Future[object]" = field(default_factory=Future)


class Journal:
    """An open journal. `execution` is this process's number in it, 0 before `begin`."""

    @classmethod
    def existing(cls, path: Path) -> Self:
        """Opens a journal that must be there. Raises: StorageError where it is not; else as the constructor."""
        return cls(path, must_exist=True)

    def __init__(self, path: Path, *, must_exist: bool = False) -> None:
        """Opens the journal, making it where there is none; one of an earlier version becomes one of ours.

        Raises: StorageError where it is damaged or cannot be written, Unusable for one of a later version.
        """
        self._path = path
        self._must_exist = must_exist
        self.execution = 0
        self._failure: StorageError | None = None
        self._queue: queue.SimpleQueue[_Commit | _Query | None] = queue.SimpleQueue()
        opened: Future[None] = Future()
        self._thread = threading.Thread(target=self._write, args=(opened,), name="journal", daemon=True)
        self._thread.start()
        opened.result()

    def begin(
        self,
        *,
        command: str,
        settings: Mapping[str, object],
        pid: int,
        host: str,
        at_ms: int,
        shape: str = "",
        resend: bool = False,
        note: str | None = None,
    ) -> int:
        """Start an execution. Returns how many parts a dead execution left in flight.

        They are in doubt from now on; with `resend` they are planned again, marked. `shape`: one word for all that
        the API's answers depend on. `note`: what a person wants to be remembered of it.
        """

        here = self._path.resolve()

        def run(connection: sqlite3.Connection) -> int:
            cursor = connection.execute(
                "INSERT INTO execution (started_at, pid, host, command, settings, shape, note, place, inode, "
                "first_move) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, (SELECT coalesce(max(id), 0) + 1 FROM move))",
                (at_ms, pid, host, command, json.dumps(settings), shape, note, str(here), here.stat().st_ino),
            )
            self.execution = int(cursor.lastrowid or 0)
            lost = [
                Recorded(load=load, part=Part(*part), move=Move.LOST, attempt=attempts, cause="crash")
                for load, *part, attempts in connection.execute(
                    "SELECT load, request, first, count, attempts FROM part WHERE state = 'in_flight'"
                ).fetchall()
            ]
            again = [replace(each, move=Move.DECIDED_RESEND, cause=None) for each in lost if resend]
            self._record(connection, [*lost, *again], at_ms)
            return len(lost)

        return self._ask(run)

    def must_be_original(self) -> None:
        """Asked before `begin`. Raises: Unusable for a copy whose original is still there: both would send the same
        rows. A journal that was moved, or came back from a backup, is nobody's copy.
        """
        last = self._ask(
            lambda connection: connection.execute(
                "SELECT place, inode FROM execution WHERE place IS NOT NULL ORDER BY id DESC LIMIT 1"
            ).fetchone()
        )
        if last is None:
            return
        place, inode = Path(last[0]), int(last[1])
        try:
            # Another file by now, or ours by another path (a bind mount), is no original.
            if place.stat().st_ino != inode or place.samefile(self._path):
                return
        except OSError:
            return
        raise Unusable(
            f"{self._path.parent} is a copy of {place.parent}, which is still there: both would send the same rows. "
            f"Go on with {place.parent}, or remove it (or rename it) if the copy shall go on in its place."
        )

    def refusals_in_a_row(self) -> int:
        """Refused calls (400, 413, 422) since the last acknowledgement, or since ever."""
        # The parts of a request share its attempt numbers, so that says nothing of calls: each refused part is one,
        # but those that one reply sorted, which are one together.
        return self._ask(
            lambda connection: int(
                connection.execute(
                    "WITH since AS (SELECT * FROM move WHERE id > coalesce("
                    "(SELECT id FROM move WHERE move = 'acknowledged' ORDER BY id DESC LIMIT 1), 0)) "
                    "SELECT count(DISTINCT coalesce((SELECT id FROM since sorted WHERE sorted.move = 'sorted' "
                    "AND sorted.load = since.load AND sorted.request = since.request "
                    "AND sorted.attempt = since.attempt AND since.first >= sorted.first "
                    "AND since.first < sorted.first + sorted.count), id)) FROM since "
                    "WHERE http_status IN (400, 413, 422) "
                    "AND (move IN ('divided', 'unapplied') OR cause = 'refused_after_doubt')"
                ).fetchone()[0]
            )
        )

    def acknowledged_as(self, shape: str) -> bool:
        """Whether some execution of this shape was ever acknowledged."""

        def run(connection: sqlite3.Connection) -> bool:
            spans = connection.execute(
                "SELECT id, first_move, (SELECT min(first_move) FROM execution later WHERE later.id > execution.id) "
                "FROM execution WHERE shape = ? ORDER BY id DESC",
                (shape,),
            ).fetchall()
            return any(
                connection.execute(
                    "SELECT 1 FROM move WHERE id >= ? AND id < ? AND move = 'acknowledged' LIMIT 1",
                    (first, 2**63 - 1 if end is None else end),
                ).fetchone()
                for _, first, end in spans
            )

        return self._ask(run)

    def calls_since(self, at_ms: int) -> int:
        """Calls that may have been made since then, by any execution; ask after `begin`.

        A call whose intent is older counts if its outcome (the loss at a crash included) is not: it may have started
        long after its intent, when the commit was slow.
        """
        return self._ask(
            lambda connection: int(
                connection.execute(
                    "SELECT count(*) FROM move intent WHERE move = 'intent' AND (at >= ? OR EXISTS ("
                    "SELECT 1 FROM move outcome WHERE outcome.load = intent.load AND outcome.request = intent.request "
                    "AND outcome.first = intent.first AND outcome.count = intent.count "
                    "AND outcome.attempt = intent.attempt AND outcome.at >= ? AND outcome.move IN "
                    "('acknowledged', 'unapplied', 'refused', 'divided', 'sorted', 'unclear', 'lost')))",
                    (at_ms, at_ms),
                ).fetchone()[0]
            )
        )

    def end(self, *, exit_code: int, at_ms: int) -> None:
        """Note how this execution ended."""
        self._ask(
            lambda connection: connection.execute(
                "UPDATE execution SET ended_at = ?, exit_code = ? WHERE id = ?", (at_ms, exit_code, self.execution)
            )
        )

    def commit(self, moves: Sequence[Recorded], at_ms: int, on_durable: OnDurable) -> None:
        """Make the moves durable; then call `on_durable(None)`, or `on_durable(error)`, in the writer's thread.

        After an error nothing is written any more: every later commit fails with the same one.
        """
        self._queue.put(_Commit(moves, at_ms, on_durable))

    def standings(self, load: int, first_request: int, last_request: int) -> list[Standing]:
        """How the parts of these requests (both inclusive) stand, ordered by part."""

        def run(connection: sqlite3.Connection) -> list[Standing]:
            rows = connection.execute(
                f"SELECT {_PART_COLUMNS} FROM part WHERE load = ? AND request BETWEEN ? AND ? "
                "ORDER BY request, first, count DESC",
                (load, first_request, last_request),
            )
            return [
                Standing(
                    Part(request, first, count),
                    State(state),
                    attempts,
                    http_status,
                    cause,
                    reason,
                    tid,
                    bool(maybe_duplicate),
                    sent_at,
                    settled_at,
                    execution,
                )
                for (
                    request,
                    first,
                    count,
                    state,
                    attempts,
                    http_status,
                    cause,
                    reason,
                    tid,
                    maybe_duplicate,
                    sent_at,
                    settled_at,
                    execution,
                ) in rows
            ]

        return self._ask(run)

    def moves(self, load: int, first_request: int, last_request: int) -> list[tuple[Recorded, int, int]]:
        """Every move of these requests in the order it was made: (move, execution, epoch ms)."""

        def run(connection: sqlite3.Connection) -> list[tuple[Recorded, int, int]]:
            return [
                (
                    Recorded(
                        load=load,
                        part=Part(request, first, count),
                        move=Move(move),
                        attempt=attempt,
                        http_status=http_status,
                        cause=cause,
                        reason=reason,
                        tid=tid,
                        into=tuple(Part(*part) for part in json.loads(parts)) if parts else (),
                    ),
                    execution,
                    at,
                )
                for request, first, count, move, attempt, http_status, cause, reason, tid, parts, execution, at in (
                    connection.execute(
                        "SELECT request, first, count, move, attempt, http_status, cause, reason, tid, parts, "
                        "execution, at FROM move WHERE load = ? AND request BETWEEN ? AND ? ORDER BY id",
                        (load, first_request, last_request),
                    )
                )
            ]

        return self._ask(run)

    def newest_move(self, load: int, first_request: int, last_request: int) -> int:
        """The number of the newest move of these requests, 0 if they never moved: unchanged means nothing happened."""
        return self._ask(
            lambda connection: int(
                connection.execute(
                    "SELECT coalesce(max(id), 0) FROM move WHERE load = ? AND request BETWEEN ? AND ?",
                    (load, first_request, last_request),
                ).fetchone()[0]
            )
        )

    def is_unapplied(self, load: int) -> bool:
        """Whether nothing of a load may have been applied and nobody has decided anything of it.

        It may have been sent and refused, or not have come through: such parts are planned again.
        """
        return self._ask(
            lambda connection: (
                connection.execute(
                    "SELECT 1 FROM part WHERE load = ? AND (state NOT IN ('planned', 'split') OR maybe_duplicate) "
                    "LIMIT 1",
                    (load,),
                ).fetchone()
                is None
            )
        )

    def highest_request(self, load: int) -> int:
        """The highest number of a request of this load that ever moved, 0 if none did."""
        return self._ask(
            lambda connection: int(
                connection.execute("SELECT coalesce(max(request), 0) FROM move WHERE load = ?", (load,)).fetchone()[0]
            )
        )

    def settled_interactions(self, load: int) -> int:
        """Interactions of a load that no execution will send any more unless someone decides so."""
        return self._ask(
            lambda connection: int(
                connection.execute(
                    "SELECT coalesce(sum(count), 0) FROM part "
                    "WHERE load = ? AND state IN ('delivered', 'rejected', 'in_doubt', 'abandoned')",
                    (load,),
                ).fetchone()[0]
            )
        )

    def last_move_ms(self) -> int | None:
        """When the newest move of any execution was journaled. After `begin`, no request started later than that.

        The newest intent would not do: its request may have started much later, after a slow commit.
        """
        return self._ask(
            lambda connection: next(
                (int(at) for (at,) in connection.execute("SELECT at FROM move ORDER BY id DESC LIMIT 1")), None
            )
        )

    def close(self) -> None:
        """Write what is queued, then close."""
        self._queue.put(None)
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Everything below runs in the writer's thread, except _ask.

    def _ask(self, run: Callable[[sqlite3.Connection], _T]) -> _T:
        query = _Query(run)
        self._queue.put(query)
        return query.result.result()  # type: ignore[return-value] # what `run` returns is what is set

    def _write(self, opened: "Future[None]") -> None:
        try:
            connection = _open(self._path, must_exist=self._must_exist)
        except BackfillError as error:
            opened.set_exception(error)
            return
        opened.set_result(None)
        closing = False
        while not closing:
            batch: list[_Commit] = []
            query: _Query | None = None
            item = self._queue.get()
            while True:
                if item is None:
                    closing = True
                elif isinstance(item, _Commit):
                    batch.append(item)
                else:
                    query = item
                if closing or query is not None or self._queue.empty():
                    break
                item = self._queue.get()
            if batch:
                self._commit_batch(connection, batch)
            if query is not None:
                self._answer(connection, query)
        with contextlib.suppress(sqlite3.Error):  # everything that was promised is already durable
            connection.close()

    def _commit_batch(self, connection: sqlite3.Connection, batch: list[_Commit]) -> None:
        if self._failure is None:
            try:
                connection.execute("BEGIN IMMEDIATE")
                for at_ms in dict.fromkeys(commit.at_ms for commit in batch):
                    self._record(
                        connection, [move for commit in batch if commit.at_ms == at_ms for move in commit.moves], at_ms
                    )
                connection.execute("COMMIT")
            except sqlite3.Error as error:
                self._failure = _failure(self._path, error)
                _roll_back(connection)
        for commit in batch:
            commit.on_durable(self._failure)

    def _answer(self, connection: sqlite3.Connection, query: _Query) -> None:
        if self._failure is not None:  # a disk that failed once is not written to again, even if it would now
            query.result.set_exception(self._failure)
            return
        try:
            connection.execute("BEGIN")
            result = query.run(connection)
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._failure = _failure(self._path, error)
            _roll_back(connection)
            query.result.set_exception(self._failure)
        except Exception as error:  # noqa: BLE001 - a bug: it belongs to whoever asked, the thread must live on
            _roll_back(connection)
            query.result.set_exception(error)
        else:
            query.result.set_result(result)

    def _record(self, connection: sqlite3.Connection, moves: Sequence[Recorded], at_ms: int) -> None:
        """Write moves of one moment, each kind in one statement, in the order of `_ORDER`."""
        connection.executemany(
            "INSERT INTO move (load, request, first, count, move, attempt, http_status, cause, reason, tid, parts, "
            "execution, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    each.load,
                    *each.part,
                    each.move,
                    each.attempt,
                    each.http_status,
                    each.cause,
                    each.reason,
                    each.tid,
                    json.dumps(each.into) if each.into else None,
                    self.execution,
                    at_ms,
                )
                for each in moves
            ],
        )
        by_kind: dict[Move, list[Recorded]] = {}
        for each in moves:
            by_kind.setdefault(each.move, []).append(each)
        for move in sorted(by_kind, key=_ORDER.index):
            if move is Move.INTENT:
                self._intend(connection, by_kind[move], at_ms)
            else:
                self._settle(connection, move, by_kind[move], at_ms)

    def _intend(self, connection: sqlite3.Connection, intents: Sequence[Recorded], at_ms: int) -> None:
        written = connection.executemany(
            "INSERT INTO part (load, request, first, count, state, attempts, sent_at, execution) "
            "VALUES (?, ?, ?, ?, 'in_flight', ?, ?, ?) ON CONFLICT DO UPDATE SET state = 'in_flight', "
            "attempts = excluded.attempts, sent_at = excluded.sent_at, execution = excluded.execution, "
            "http_status = NULL, cause = NULL, reason = NULL, settled_at = NULL WHERE state = 'planned'",
            [(each.load, *each.part, each.attempt, at_ms, self.execution) for each in intents],
        ).rowcount
        _all_moved(written, intents)

    def _settle(self, connection: sqlite3.Connection, move: Move, alike: Sequence[Recorded], at_ms: int) -> None:
        if move in _BORN_PLANNED:
            connection.executemany(
                "INSERT OR IGNORE INTO part (load, request, first, count, state, attempts) "
                "VALUES (?, ?, ?, ?, 'planned', 0)",
                [(each.load, *each.part) for each in alike],
            )
        before = ", ".join(f"'{state}'" for state in _STATES_BEFORE[move])
        # A part that goes back to `planned` is not settled. Without a reply of its own a move leaves the last one.
        settled_at = None if _STATE_AFTER[move] is State.PLANNED else at_ms
        written = connection.executemany(  # the states are constants of ours
            "UPDATE part SET state = ?, http_status = coalesce(?, http_status), cause = coalesce(?, cause), "
            "reason = coalesce(?, reason), tid = coalesce(?, tid), settled_at = ?, execution = ?, "
            "maybe_duplicate = CASE ? WHEN 'decided_resend' THEN 1 WHEN 'decided_not_delivered' THEN 0 "
            "ELSE maybe_duplicate END "
            f"WHERE load = ? AND request = ? AND first = ? AND count = ? AND state IN ({before})",
            [
                (
                    _STATE_AFTER[move],
                    each.http_status,
                    each.cause,
                    each.reason,
                    each.tid,
                    settled_at,
                    self.execution,
                    move,
                    each.load,
                    *each.part,
                )
                for each in alike
            ],
        ).rowcount
        _all_moved(written, alike)
        if move in STATE_OF_PARTS:
            self._divide(connection, STATE_OF_PARTS[move], alike)

    def _divide(self, connection: sqlite3.Connection, state: State, alike: Sequence[Recorded]) -> None:
        """The parts of a split take over what happened to the rows in them: attempts, mark and, in flight, the send."""
        connection.executemany(
            "INSERT INTO part (load, request, first, count, state, attempts, maybe_duplicate, sent_at, execution) "
            "SELECT load, request, ?, ?, ?, attempts, maybe_duplicate, iif(? = 'in_flight', sent_at, NULL), "
            "iif(? = 'in_flight', execution, NULL) "
            "FROM part WHERE load = ? AND request = ? AND first = ? AND count = ?",
            [
                (part.first, part.interactions, state, state, state, each.load, *each.part)
                for each in alike
                for part in each.into
            ],
        )


def _all_moved(written: int, moves: Sequence[Recorded]) -> None:
    if written != len(moves):
        raise sqlite3.IntegrityError(
            f"{len(moves) - written} of {len(moves)} requests to be {moves[0].move} stand where that move is illegal"
        )


def _open(path: Path, *, must_exist: bool) -> sqlite3.Connection:
    try:
        # SQLite itself would use the umask for a new file.
        os.close(os.open(path, os.O_RDWR | (0 if must_exist else os.O_CREAT) | os.O_CLOEXEC, 0o600))
        path.chmod(0o600)
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    except FileNotFoundError:
        raise _lost(path, "is not there") from None
    except (sqlite3.Error, OSError) as error:
        raise _failure(path, error) from error
    try:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        version = _version(connection, path, must_exist=must_exist)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        _bring_up_to_date(connection, version)
    except BaseException as error:
        connection.close()  # which takes back a migration that did not come to its end
        if isinstance(error, sqlite3.Error):
            raise _failure(path, error) from error
        raise
    return connection


def _version(connection: sqlite3.Connection, path: Path, *, must_exist: bool) -> int:
    """Asked before anything is written, so that a journal that is refused stays as it is."""
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > SCHEMA_VERSION:
        raise Unusable(
            f"The journal {path} was written by a later version of backfill (format {version}, this one knows "
            f"{SCHEMA_VERSION}). Install that version again, or choose another --state."
        )
    if version == 0 and must_exist:
        raise _lost(path, "is empty")
    return version


def _bring_up_to_date(connection: sqlite3.Connection, version: int) -> None:
    """Makes the tables, or migrates them version by version, in one transaction: a kill leaves the version before."""
    if version == SCHEMA_VERSION:
        return
    steps = _SCHEMA if version == 0 else "".join(_MIGRATIONS[each] for each in range(version, SCHEMA_VERSION))
    connection.executescript(f"BEGIN IMMEDIATE;{steps}PRAGMA user_version = {SCHEMA_VERSION};COMMIT;")


def _lost(path: Path, what: str) -> StorageError:
    return StorageError(
        f"The journal {path} {what}. Without it nobody can say what was sent. Restore it from a backup; do not begin "
        "anew, or rows would be sent again."
    )


def _roll_back(connection: sqlite3.Connection) -> None:
    with contextlib.suppress(sqlite3.Error):  # the first error is the one to report
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _failure(path: Path, error: sqlite3.Error | OSError) -> StorageError:
    said = str(error)
    if "full" in said or "No space" in said:
        remedy = "Free space on its disk, then run again: nothing that was sent is forgotten."
    elif "malformed" in said or "not a database" in said:
        remedy = "Restore it from a backup, or ask what was sent before starting anew; do not delete it."
    elif "locked" in said:
        remedy = "Another program has it open; close that, then run again."
    else:
        remedy = "Mend the disk, then run again: nothing that was sent is forgotten."
    return StorageError(f"The journal {path} failed ({said}). No further request was started. {remedy}")
