"""What is left to send, from real staged files and a real journal: which parts, in which order, with which bytes."""

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import pytest

from backfill.adapters import staging
from backfill.adapters.journal import Journal
from backfill.backlog import GROUP, Backlog, planned
from backfill.core.arrange import REQUEST_SCHEMA, ROW_SCHEMA, Arranged, Piece
from backfill.core.config import RunConfig
from backfill.core.errors import StorageError
from backfill.core.events import Ready
from backfill.core.lifecycle import Move, Part, Recorded, halves
from backfill.core.settings import parse

LOAD = 1


def config(*, concurrency: int = 1, **sections: object) -> RunConfig:
    return parse(
        {
            "api": {"base_url": "https://mxo.example", "site_key": "ONE-1"},
            "budget": {"concurrency": concurrency},
            **sections,
        }
    )


@dataclass(frozen=True)
class Planned:
    """One staged request."""

    part: Part
    lane: int
    tid: str | None
    interactions: tuple[bytes, ...]


@dataclass
class Staged:
    """A load put together piece by piece."""

    folder: Path
    planned: list[Planned] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    rows: int = 0

    def piece(self, lanes: range, requests: Sequence[tuple[int, str | None, int]], *, duplicates: int = 0) -> None:
        """The next piece, of these lanes. `requests`: lane, tid and interactions of each, in delivery order."""
        first_request = 1 + self.rows
        fresh = []
        for number, (lane, tid, count) in enumerate(requests, start=first_request):
            # Sizes are bytes, so each text is longer in UTF-8 than it is in characters.
            texts = [f'{{"request":{number},"position":{at},"name":"{"é€🙂"[at % 3] * at}"}}' for at in range(count)]
            fresh.append(Planned(Part(number, 0, count), lane, tid, tuple(text.encode() for text in texts)))
        rows = sum(each.part.interactions for each in fresh) + duplicates
        number = len(self.pieces)
        staging.write_piece(
            self.folder,
            number,
            Arranged(
                pl.DataFrame(schema=ROW_SCHEMA),
                pl.DataFrame(
                    [
                        {
                            "request": each.part.request,
                            "lane": each.lane,
                            "tid": each.tid,
                            "count": each.part.interactions,
                            "body": b",".join(each.interactions).decode(),
                            "sizes": [len(interaction) for interaction in each.interactions],
                        }
                        for each in fresh
                    ],
                    schema=REQUEST_SCHEMA,
                ),
            ),
        )
        self.pieces.append(
            Piece(
                piece=number,
                lane_from=lanes.start,
                lane_to=lanes.stop,
                slot_from=lanes.start,
                slot_to=lanes.stop,
                rows=rows,
                first_request=first_request,
            )
        )
        self.planned += fresh
        self.rows += rows

    def backlog(self, journal: Journal, using: RunConfig | None = None) -> Backlog:
        staging.write_manifest(
            self.folder,
            staging.Manifest(
                load=LOAD, lanes=500, exports=(), pieces=tuple(self.pieces), runs=0, properties=(), invalid_parts=0
            ),
        )
        return Backlog(self.folder, LOAD, using or config(), journal)


@pytest.fixture
def staged(tmp_path: Path) -> Staged:
    folder = tmp_path / "staged" / "1"
    staging.prepare(folder)
    return Staged(folder)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal.db") as journal:
        journal.begin(command="run", settings={}, pid=1, host="here", at_ms=1)
        yield journal


def drained(backlog: Backlog) -> list[Ready]:
    """All of it, as the dispatch asks: lane by lane while pieces of it follow, then the next bucket."""
    ready: list[Ready] = []
    while not (fetched := backlog.fetch(None)).exhausted:
        ready += fetched.ready
        while fetched.more:
            [lane] = fetched.more
            fetched = backlog.fetch(lane)
            assert fetched.lane == lane
            ready += fetched.ready
    return ready


def commit(journal: Journal, moves: Sequence[Recorded]) -> None:
    durable, errors = threading.Event(), []

    def told(error: StorageError | None) -> None:
        errors.append(error)
        durable.set()

    journal.commit(moves, 1_700_000_000_000, told)
    assert durable.wait(10)
    assert errors == [None]


# ------------------------------------------------------------------------------------------------ what is unfinished


def test_untouched_everything_is_left_in_delivery_order(staged: Staged, journal: Journal) -> None:
    """Each request once, with its lane, though numbers leap between pieces that hold duplicates."""
    staged.piece(range(2), [(0, None, 3), (0, None, 1), (1, "t", 2)], duplicates=4)
    staged.piece(range(2, 5), [(2, None, 1), (4, None, 100)], duplicates=1)
    assert [each.part.request for each in staged.planned] == [1, 2, 3, 11, 12]
    backlog = staged.backlog(journal)
    assert drained(backlog) == [Ready(each.lane, each.part, 0) for each in staged.planned]
    assert backlog.fetch(None).exhausted
    assert planned(staged.folder, staging.read_manifest(staged.folder)).interactions == 107


def test_a_load_of_duplicates_only_leaves_nothing(staged: Staged, journal: Journal) -> None:
    """A piece without a request is fetched, too."""
    staged.piece(range(2), [], duplicates=3)
    assert drained(staged.backlog(journal)) == []


class _History:
    """Some fate for a request, whose leaves are known because they are made here. `moves`: in order."""

    def __init__(self, whole: Part, chance: random.Random) -> None:
        self.moves: list[Recorded] = []
        self.left: list[tuple[Part, int]] = []
        self._chance = chance
        self._live(whole)

    def _live(self, part: Part, before: int = 0) -> None:
        attempts = before + self._chance.choice([0, 1, 1, 1, 2, 3])
        for attempt in range(before + 1, attempts):
            self._attempt(part, attempt, Move.UNAPPLIED)
        if attempts == before:
            self.left.append((part, before))
            return
        ends = [Move.ACKNOWLEDGED, Move.REFUSED, Move.UNCLEAR, Move.UNAPPLIED]
        end = self._chance.choice(ends if part.interactions == 1 else [*ends, Move.DIVIDED, Move.DIVIDED])
        self._attempt(part, attempts, end)
        if end is Move.UNAPPLIED:
            self.left.append((part, attempts))
        elif end is Move.DIVIDED:
            for half in halves(part):
                self._live(half, attempts)

    def _attempt(self, part: Part, attempt: int, end: Move) -> None:
        into = halves(part) if end is Move.DIVIDED else ()
        self.moves.append(Recorded(load=LOAD, part=part, move=Move.INTENT, attempt=attempt))
        self.moves.append(Recorded(load=LOAD, part=part, move=end, attempt=attempt, into=into))


@pytest.mark.parametrize("seed", range(5))
def test_whatever_was_delivered_before_exactly_the_rest_is_left(staged: Staged, journal: Journal, seed: int) -> None:
    """Delivered, refused, in doubt, split and split again: what comes out are the planned leaves, in order, each with
    its attempts so far. Another load's history is not ours."""
    chance = random.Random(seed)
    for first in range(0, 12, 3):
        staged.piece(range(first, first + 3), [(first + at % 3, None, chance.choice([1, 2, 7])) for at in range(70)])
    histories = [_History(each.part, chance) for each in staged.planned]
    for turn in range(max(len(history.moves) for history in histories)):
        commit(journal, [history.moves[turn] for history in histories if turn < len(history.moves)])
    other = Recorded(load=2, part=staged.planned[0].part, move=Move.INTENT, attempt=1)
    commit(journal, [other])
    expected = [
        Ready(each.lane, part, attempts)
        for each, history in zip(staged.planned, histories, strict=True)
        for part, attempts in history.left
    ]
    assert any(ready.part.interactions not in (1, 2, 7) for ready in expected), "no split part is left: a weak seed"
    assert drained(staged.backlog(journal)) == expected


def test_what_a_dead_execution_left_in_flight_is_not_sent_again(
    staged: Staged, journal: Journal, tmp_path: Path
) -> None:
    """It is in doubt once the next execution has begun."""
    staged.piece(range(1), [(0, None, 2), (0, None, 2)])
    first, second = (each.part for each in staged.planned)
    commit(journal, [Recorded(load=LOAD, part=first, move=Move.INTENT, attempt=1)])
    journal.close()
    with Journal(tmp_path / "journal.db") as again:
        assert again.begin(command="run", settings={}, pid=2, host="here", at_ms=2) == 1
        assert [ready.part for ready in drained(staged.backlog(again))] == [second]


def test_a_hot_lane_comes_piece_by_piece(staged: Staged, journal: Journal) -> None:
    """The next bucket does not wait for it, each answer says whether more of the lane follows, and time order stays."""
    staged.piece(range(3), [(0, None, 1)])
    for _ in range(3):
        staged.piece(range(3, 4), [(3, None, 2), (3, None, 2)], duplicates=1)
    staged.piece(range(4, 9), [(4, None, 1)])
    hot = [Ready(3, each.part, 0) for each in staged.planned if each.lane == 3]
    backlog = staged.backlog(journal)
    cool, opening, last = (backlog.fetch(None) for _ in range(3))
    assert [(each.lane, each.more) for each in (cool, opening, last)] == [
        (None, frozenset()),
        (None, frozenset({3})),
        (None, frozenset()),
    ]
    assert backlog.fetch(None).exhausted
    assert list(opening.ready) == hot[:2]
    second, third = backlog.fetch(3), backlog.fetch(3)
    assert (second.lane, list(second.ready), second.more) == (3, hot[2:4], frozenset({3}))
    assert (third.lane, list(third.ready), third.more) == (3, hot[4:], frozenset())


def test_a_finished_piece_of_a_hot_lane_is_passed(staged: Staged, journal: Journal) -> None:
    """Nothing of it is left, and the lane goes on with the next one."""
    staged.piece(range(1), [(0, None, 1)])
    staged.piece(range(1), [(0, None, 1)])
    first, second = (each.part for each in staged.planned)
    for move in (Move.INTENT, Move.ACKNOWLEDGED):
        commit(journal, [Recorded(load=LOAD, part=first, move=move, attempt=1)])
    backlog = staged.backlog(journal)
    opening = backlog.fetch(None)
    assert (opening.ready, opening.more) == ([], frozenset({0}))
    assert [ready.part for ready in backlog.fetch(0).ready] == [second]


# ------------------------------------------------------------------------------------------------------------ bodies


def many(staged: Staged, *, groups: int) -> None:
    """Two pieces with so many groups each, the last one short, of one to seven interactions."""
    count = GROUP * groups - 5
    for start in (0, 3):
        requests = [(start + at % 3, f"tid {at}" if at % 4 else None, 1 + at % 7) for at in range(count)]
        staged.piece(range(start, start + 3), requests, duplicates=2)


def test_each_body_is_the_staged_bytes(staged: Staged, journal: Journal) -> None:
    """In any order of asking, from both pieces, at the edges of groups: the bytes and the tid are that request's."""
    many(staged, groups=3)
    backlog = staged.backlog(journal)
    order = list(staged.planned)
    random.Random(1).shuffle(order)
    for each in (*order[:150], staged.planned[GROUP - 1], staged.planned[GROUP], staged.planned[-1]):
        body = backlog.body(each.part)
        assert body.content == b"[" + b",".join(each.interactions) + b"]"
        assert body.tid == each.tid


def test_a_part_is_cut_out_byte_by_byte(staged: Staged, journal: Journal) -> None:
    """All parts that splits can leave hold just their own interactions, also where characters take several bytes."""
    staged.piece(range(1), [(0, None, 1), (0, "t", 13), (0, None, 2)])
    whole = staged.planned[1]
    backlog = staged.backlog(journal)
    for first in range(13):
        for count in range(1, 13 - first + 1):
            body = backlog.body(Part(whole.part.request, first, count))
            assert body.content == b"[" + b",".join(whole.interactions[first : first + count]) + b"]"
            assert body.tid == "t"


@pytest.mark.parametrize(
    ("api", "wire", "wrapped"),
    [
        ("interactions-offline", {"bulk": {"key": "interactions"}}, b'{"interactions":[%s]}'),
        ("interaction-offline", {}, b"%s"),
    ],
)
def test_the_wire_form_wraps_the_bytes(
    staged: Staged, journal: Journal, api: str, wire: dict[str, object], wrapped: bytes
) -> None:
    """The rendered interactions stay as they are; the configuration says what stands around them."""
    staged.piece(range(1), [(0, None, 1)])
    using = parse({"api": {"base_url": "https://mxo.example", "site_key": "ONE-1", "call": api}, "wire": wire})
    [each] = staged.planned
    assert staged.backlog(journal, using).body(each.part).content == wrapped % each.interactions[0]


def test_a_body_in_memory_needs_no_disk(staged: Staged, journal: Journal) -> None:
    """Before it was read there is none; afterwards its whole group is there, with the same bytes."""
    many(staged, groups=2)
    backlog = staged.backlog(journal)
    first, neighbour, far = (staged.planned[at].part for at in (0, GROUP - 1, GROUP))
    assert backlog.cached_body(first) is None
    body = backlog.body(first)
    for path in staged.folder.glob("requests-*"):
        path.unlink()
    assert backlog.cached_body(first) == body
    assert backlog.cached_body(neighbour) == backlog.body(neighbour)
    assert backlog.cached_body(far) is None


def test_memory_does_not_grow_with_the_load(staged: Staged, journal: Journal) -> None:
    """However many requests were sent, bodies of a few groups are held: those used last."""
    many(staged, groups=12)
    backlog = staged.backlog(journal, config(concurrency=2))
    for each in staged.planned:
        backlog.body(each.part)
    held = [each for each in staged.planned if backlog.cached_body(each.part) is not None]
    groups = len(held) / GROUP
    assert 2 <= groups <= 2 + 8
    assert held == staged.planned[-len(held) :]


# ----------------------------------------------------------------------------------------------------- many at once


def in_threads(count: int, work: Callable[[int], object]) -> None:
    """Starts `work` in so many threads at the same moment; raises what any of them raised."""
    together = threading.Barrier(count)

    def run(nth: int) -> None:
        together.wait(10)
        work(nth)

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(run, range(count)))


def test_a_group_that_many_want_at_once_is_read_once(
    staged: Staged, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lanes go side by side through the same group; each gets its own body of the one reading."""
    many(staged, groups=1)
    backlog = staged.backlog(journal)
    reads: list[int] = []
    read = staging.request_bodies

    def slow(folder: Path, piece: int, offset: int, count: int) -> pl.DataFrame:
        reads.append(offset)
        time.sleep(0.1)
        return read(folder, piece, offset, count)

    monkeypatch.setattr(staging, "request_bodies", slow)

    def ask(nth: int) -> None:
        each = staged.planned[nth]
        assert backlog.body(each.part).content == b"[" + b",".join(each.interactions) + b"]"

    in_threads(12, ask)
    assert reads == [0]


def test_different_groups_are_read_side_by_side(
    staged: Staged, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for a group that he does not need: both readings are under way at the same time."""
    many(staged, groups=2)
    backlog = staged.backlog(journal)
    both = threading.Barrier(2)
    read = staging.request_bodies

    def meeting(folder: Path, piece: int, offset: int, count: int) -> pl.DataFrame:
        both.wait(10)  # breaks, and so fails, where the other reading has to wait for this one
        return read(folder, piece, offset, count)

    monkeypatch.setattr(staging, "request_bodies", meeting)
    in_threads(2, lambda nth: backlog.body(staged.planned[GROUP * nth].part))


# ------------------------------------------------------------------------------------------------------------ damage


def test_a_missing_file_is_named_and_can_be_put_back(staged: Staged, journal: Journal) -> None:
    """Both fetching and reading say which; a failed reading leaves no lock behind."""
    many(staged, groups=1)
    path = staged.folder / "requests-00001.parquet"
    away = path.rename(staged.folder / "away")
    backlog = staged.backlog(journal)
    backlog.fetch(None)
    with pytest.raises(StorageError, match=r"requests-00001\.parquet is missing"):
        backlog.fetch(None)
    last = staged.planned[-1]
    with pytest.raises(StorageError, match=r"requests-00001\.parquet is missing"):
        backlog.body(last.part)
    away.rename(path)
    assert backlog.body(last.part).content == b"[" + b",".join(last.interactions) + b"]"
