"""Every history of a small world: all interleavings of what is pending, with every reply that matters.

Two lanes and a few requests; at any moment anything that is under way may come next: a connection, the disk, a reply,
the time, a signal, a crash. Each state is walked once. Times count by their order alone: a Tick comes at any moment.
"""

import copyreg
import itertools
import math
import pickle
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace
from typing import NamedTuple

from backfill.core import events as d
from backfill.core.config import Budget, Delivery
from backfill.core.dispatch import Dispatch
from backfill.core.errors import ExitCode
from backfill.core.lifecycle import Move, Part, Recorded, State, unfinished
from backfill.core.reply import Fate, Verdict
from tests.simulation.account import refusals_in_a_row
from tests.simulation.disk import Disk, Violation, rows_of
from tests.simulation.scenario import Plan, Planned, Row


class Small(NamedTuple):
    """A small world: the sizes of the requests of each lane, its bad rows, and how much may go wrong in one history."""

    lanes: tuple[tuple[int, ...], ...] = ((2, 1), (1,))  # the requests are numbered from 1, lane by lane
    bad: frozenset[Row] = frozenset()
    troubles: int = 1  # replies other than the honest one, failed connections, failed tokens
    crashes: int = 1
    signals: int = 1
    in_doubt: str = "hold"
    on_400: str = "bisect"
    canary_calls: int = 2
    concurrency: int = 2


class Walked(NamedTuple):
    """How much there was to see."""

    states: int
    histories: int
    ends: int


_OK = Verdict(fate=Fate.ACKNOWLEDGED, http_status=200, cause="acknowledged")
_REFUSED = Verdict(fate=Fate.REFUSED, http_status=400, cause="refused")
_BUSY = Verdict(fate=Fate.UNAPPLIED, http_status=429, cause="unapplied")
_ERROR = Verdict(fate=Fate.UNCLEAR, http_status=500, cause="server_error")
_EXPIRED = Verdict(fate=Fate.UNAUTHORISED, http_status=401, cause="unauthorised")

_shared: dict[int, object] = {}
"""What all states of a walk have in common, and no copy of a state needs to carry."""


def _share(thing: object) -> None:
    _shared[id(thing)] = thing
    copyreg.pickle(type(thing), _reduce)


def _reduce(thing: object) -> tuple[Callable[[int], object], tuple[int]]:
    return _shared_again, (id(thing),)


def _shared_again(number: int) -> object:
    return _shared[number]


def _half() -> float:
    return 0.5


class World:
    """One state: the dispatch, the disk, the server, and what is pending between them."""

    def __init__(self, small: Small, plan: Plan, delivery: Delivery, patient: Delivery, budget: Budget) -> None:
        self.small = small
        self.plan = plan
        self.delivery = delivery
        self.patient = patient
        self.budget = budget
        self.disk = Disk(plan)
        self.troubles, self.crashes, self.signals = small.troubles, small.crashes, small.signals
        self.applied: Counter[Row] = Counter()
        self.order: dict[int, list[Row]] = {}  # by customer
        self.executions = 0
        self.finished = False
        self.begin()

    def begin(self) -> None:
        """An execution starts, as the journal and the command line have it."""
        self.executions += 1
        if self.executions > 3 + self.small.troubles + self.small.crashes + self.small.signals:
            raise Violation("executions follow one another, and the job does not come to its end")
        lost = self.disk.in_state(State.IN_FLIGHT)
        if len(lost) > self.budget.concurrency:
            raise Violation(f"I6: a crash left {len(lost)} requests in doubt")
        moves = [self._move(part, Move.LOST) for part in lost]
        if self.small.in_doubt == "resend":
            moves += [self._move(part, Move.DECIDED_RESEND) for part in lost]
        self.disk.write(moves, 0.0)
        refusals = refusals_in_a_row(self.disk)
        self.now_s = 0.0
        self.dispatch = Dispatch(
            load=1,
            budget=self.budget,
            delivery=self.delivery,
            jitter=_half,
            not_before_s=0.0,
            proven=refusals is not None and refusals < self.delivery.canary_calls,
        )
        self.fetches: list[int | None] = []
        self.fetched = False
        self.connecting: list[Part] = []
        self.handed: list[list[Recorded]] = []
        self.air: list[Part] = []
        self.asking = False
        self.handle(d.Tick())

    def _move(self, part: Part, move: Move) -> Recorded:
        return Recorded(load=1, part=part, move=move, attempt=self.disk.entries[part].attempts)

    # What may come next

    def choices(self) -> Iterator[tuple[str, object]]:
        """Each by a word and what it concerns."""
        if self.finished:
            return
        if self.handed:
            yield "durable", None
        for lane in self.fetches:
            yield "fetched", lane
        for part in self.connecting:
            yield "connected", part
            if self.troubles:
                yield "not connected", part
        for part in self.air:
            honest = "refused" if self.plan.bad.intersection(rows_of(part)) else "acknowledged"
            yield honest, part
            if self.troubles:
                for word in _TROUBLES:
                    if word not in ("some busy", "some refused") or part.interactions > 1:
                        yield word, part
        if self.asking:
            yield "token", None
            if self.troubles:
                yield "no token", None
        if self.now_s < self.dispatch.wake_at_s < math.inf:
            yield "tick", None
        if self.signals and self.dispatch.stopped is None:
            yield "signal", None
        if self.crashes:
            for durable in range(len(self.handed) + 1):
                for applied in itertools.product((False, True), repeat=len(self.air)):
                    yield "crash", (durable, applied)

    def do(self, word: str, what: object) -> None:
        """It happens."""
        match word, what:
            case "durable", _:
                moves = self.handed.pop(0)
                self.disk.write(moves, 0.0)
                intents = [move.part for move in moves if move.move is Move.INTENT]
                if intents:
                    self.handle(d.Committed(intents))
            case "fetched", None:
                self.fetches.remove(None)
                self.handle(self._fetched())
            case "connected", Part() as part:
                self.connecting.remove(part)
                self.handle(d.Connected(part))
            case "not connected", Part() as part:
                self.troubles -= 1
                self.connecting.remove(part)
                self.handle(d.NotSent(part, "refused"))
            case "token", _:
                self.asking = False
                self.handle(d.TokenGranted())
            case "no token", _:
                self.troubles -= 1
                self.asking = False
                self.handle(d.TokenFailed("down"))
            case "tick", _:
                self.now_s = self.dispatch.wake_at_s
                self.handle(d.Tick())
            case "signal", _:
                self.signals -= 1
                self.handle(d.StopRequested(ExitCode.STOPPED_EARLY, "signal"))
            case "crash", (int(durable), tuple(applied)):
                self.crashes -= 1
                for moves in self.handed[:durable]:
                    self.disk.write(moves, 0.0)
                for part, done in zip(self.air, applied, strict=True):
                    if done:
                        self._apply(part)
                self.check()
                self.begin()
            case _, Part() as part:
                self._reply(word, part)
        self.check()
        if not self.finished and self.dispatch.idle and not self.handed:
            self._ended()

    def _ended(self) -> None:
        stopped = self.dispatch.stopped
        if stopped is not None:
            if stopped.code is ExitCode.UNUSABLE:
                if self.delivery is self.patient and self._abandoned():
                    return
                self.delivery = self.patient  # as the message says
            self.begin()
            return
        left = self.disk.in_state(State.PLANNED) + self.disk.in_state(State.IN_FLIGHT)
        if left:
            raise Violation(f"the execution ended as complete, and {left} are left")
        self.finished = True

    def _abandoned(self) -> bool:
        """Whoever runs the job gives up what the API refuses, if that is all that is left."""
        refused = any if self.small.on_400 == "reject" else all
        left = self.disk.in_state(State.PLANNED)
        if not all(refused(row in self.plan.bad for row in rows_of(part)) for part in left):
            return False
        for part in left:
            marked = self.disk.entries[part].marked
            self.disk.write([self._move(part, Move.DECIDED_DOUBT if marked else Move.DECIDED_ABANDON)], 0.0)
        self.check()
        self.finished = True
        return True

    def _reply(self, word: str, part: Part) -> None:
        self.air.remove(part)
        if word in _TROUBLES:
            self.troubles -= 1
        rows = list(rows_of(part))
        verdict: Verdict | None = None
        match word:
            case "acknowledged":
                self._apply(part)
                verdict = _OK
            case "refused" | "refused wrongly":
                verdict = _REFUSED
            case "busy":
                verdict = _BUSY
            case "error, applied" | "error":
                verdict = _ERROR
            case "expired":
                verdict = _EXPIRED
            case "some busy":
                self.applied[rows[0]] += 1
                self.order.setdefault(self._customer(part), []).append(rows[0])
                verdict = replace(_BUSY, each=(_OK, *[_BUSY] * (len(rows) - 1)))
            case "some refused":
                verdict = replace(_ERROR, each=(_REFUSED, *[_ERROR] * (len(rows) - 1)))
        if word.endswith(", applied"):
            self._apply(part)
        event: d.Event
        if word == "stale":
            event = d.NotSent(part, "closed_before_sending")
        else:
            event = d.Unanswered(part, "closed", None) if verdict is None else d.Replied(part, verdict)
        self.handle(event)

    def _customer(self, part: Part) -> int:
        return self.plan.requests[part.request].customers[0]

    def _apply(self, part: Part) -> None:
        self.applied.update(rows_of(part))
        self.order.setdefault(self._customer(part), []).extend(rows_of(part))

    def _fetched(self) -> d.Fetched:
        ready = []
        for request, planned in self.plan.requests.items():
            whole = Part(request, 0, len(planned.customers))
            ready += [
                d.Ready(planned.lane, part, attempts, marked)
                for part, attempts, marked in unfinished(whole, self.disk.standings(request))
            ]
        return d.Fetched(None, ready, frozenset(), exhausted=True)

    def handle(self, event: d.Event) -> None:
        """Tell the dispatch; what it orders becomes pending."""
        for command in self.dispatch.handle(event, self.now_s):
            match command:
                case d.Connect(part):
                    self.connecting.append(part)
                case d.Commit(moves):
                    self.handed.append(list(moves))
                case d.Send(part, attempt):
                    entry = self.disk.entries.get(part)
                    if entry is None or entry.state is not State.IN_FLIGHT or entry.attempts != attempt:
                        raise Violation(f"I7: {part}, attempt {attempt}, is sent without a durable intent")
                    if self.dispatch.stopped is not None:
                        raise Violation(f"{part} is sent after the stop")
                    self.air.append(part)
                    if len(self.air) > self.budget.concurrency:
                        raise Violation(f"{len(self.air)} requests are in the air")
                case d.Release(part):
                    if part in self.connecting:
                        self.connecting.remove(part)
                case d.Fetch(lane):
                    self.fetches.append(lane)
                case d.RefreshToken():
                    if self.asking:
                        raise Violation("two tokens are asked for at once")
                    self.asking = True

    def check(self) -> None:
        """I1 to I5 and I10, by what is durable at this moment."""
        tiles: Counter[Row] = Counter()
        for part, entry in self.disk.leaves():
            held = entry.state in (State.IN_DOUBT, State.IN_FLIGHT) or entry.marked
            for row in rows_of(part):
                tiles[row] += 1
                times = self.applied[row]
                if entry.state is State.DELIVERED and not times:
                    raise Violation(f"I2: {row} is delivered, and was never applied")
                if times > 1 and not held:
                    raise Violation(f"I3: {row} was applied {times} times")
                if entry.state in (State.REJECTED, State.ABANDONED) and times:
                    raise Violation(f"I4: {row} is {entry.state}, and was applied")
                if times and not held and entry.state is not State.DELIVERED:
                    raise Violation(f"I5: {row} was applied, and is {entry.state}")
        if tiles.total() != self.plan.rows or len(tiles) != self.plan.rows:
            raise Violation("I1: the parts do not tile their requests")
        for rows in self.order.values():
            kept = [row for row in rows if row not in self.disk.doubted]
            if kept != sorted(kept):
                raise Violation(f"I10: rows were applied in the order {kept}")

    def key(self) -> Hashable:
        """Two states with the same key have the same future: everything but absolute times and idle counters."""
        dispatch = self.dispatch
        now_s = self.now_s
        authorisation, canary, breaker = dispatch._authorisation, dispatch._canary, dispatch._breaker
        return (
            (self.finished, self.executions, self.troubles, self.crashes, self.signals, self.asking),
            self.delivery is self.patient,
            tuple(self.fetches),
            tuple(self.connecting),
            tuple(self.air),
            tuple(tuple((move.part, move.move, move.attempt) for move in moves) for moves in self.handed),
            tuple(
                (part, entry.state, entry.attempts, entry.marked) for part, entry in sorted(self.disk.entries.items())
            ),
            tuple(sorted(self.disk.doubted)),
            tuple((customer, *rows) for customer, rows in sorted(self.order.items())),
            refusals_in_a_row(self.disk),
            tuple(
                (lane.number, *lane.waiting, lane.failures, lane.more) for _, lane in sorted(dispatch._lanes.items())
            ),
            tuple(lane.number for lane in dispatch._free),
            tuple((at_s > now_s, lane) for at_s, lane, _ in sorted(dispatch._delayed, key=lambda entry: entry[:2])),
            tuple(
                (
                    *(part, flight.attempt, flight.marked, flight.probe, flight.intended),
                    *(flight.token == 0, flight.token == authorisation.generation),
                )
                for part, flight in sorted(dispatch._flights.items())
            ),
            tuple(flight.part for flight in dispatch._gate),
            (dispatch._exhausted, dispatch.stopped is not None and dispatch.stopped.code),
            (authorisation.valid, authorisation.suspect, authorisation._let_in, authorisation.failures),
            (authorisation.wanted_at_s > now_s, authorisation.wanted_at_s < math.inf),
            (canary.open, canary.open_from_start, canary._refusals, canary._hopeless),
            (breaker.open, breaker._failures, breaker.failed_probes, breaker._doubtful_probes),
            tuple((move.part, move.move) for move in dispatch._unbelieved),
            (dispatch._grants.ready_at_s > now_s, dispatch._sends.ready_at_s > now_s),
            dispatch._grants.ready_at_s > dispatch._sends.ready_at_s,
        )


_TROUBLES = (
    "refused wrongly",
    "busy",
    "error",
    "error, applied",
    "no reply",
    "no reply, applied",
    "expired",
    "stale",
    "some busy",
    "some refused",
)


_BAD = frozenset({(1, 1)})

WORLDS = (
    Small(bad=_BAD, on_400="reject", signals=0),
    Small(bad=_BAD, in_doubt="resend", signals=0),
    Small(crashes=2, signals=0),
    Small(lanes=((2,), (1,)), troubles=2, signals=0),
    Small(lanes=((1, 1), (2,)), bad=frozenset({(1, 0), (3, 1)}), signals=0),
    Small(in_doubt="resend"),
    Small(bad=_BAD),
)
"""Small worlds that are worth walking, the quickest first."""


def walk(small: Small) -> Walked:
    """Walks all of it. Raises Violation, with the way that led to it."""
    plan = Plan()
    numbers = itertools.count(1)
    for lane, sizes in enumerate(small.lanes):
        for size in sizes:
            plan.requests[next(numbers)] = Planned(lane, (lane,) * size)
    plan.bad = set(small.bad)
    delivery = Delivery.model_validate(
        {
            "in_doubt": small.in_doubt,
            "on_400": small.on_400,
            "canary_calls": small.canary_calls,
            "breaker_failures": 2,
            "max_attempts": 2,
            "give_up_after_s": 1e12,
        }
    )
    patient = delivery.model_copy(update={"canary_calls": 1000})
    budget = Budget(requests_per_second=1000, concurrency=small.concurrency)
    for thing in (plan, delivery, patient, budget):
        _share(thing)
    try:
        world = World(small, plan, delivery, patient, budget)
        return _walk(world)
    finally:
        _shared.clear()


class _Node:
    """A state on the way that is being walked: what is left to try in it, and how many histories went through it."""

    def __init__(self, world: World, key: int, word: str) -> None:
        self.frozen = pickle.dumps(world, pickle.HIGHEST_PROTOCOL)
        self.left = list(world.choices())
        self.key = key
        self.word = word
        self.histories = 1 if world.finished else 0


def _walk(first: World) -> Walked:
    known: dict[int, int] = {}  # how many histories lead on from a state
    ends = 0
    way = [_Node(first, hash(first.key()), "begin")]
    on_the_way = {way[0].key}
    while True:
        node = way[-1]
        if not node.left:
            known[node.key] = node.histories
            on_the_way.discard(node.key)
            way.pop()
            if not way:
                return Walked(len(known), node.histories, ends)
            way[-1].histories += node.histories
            continue
        word, what = node.left.pop()
        world: World = pickle.loads(node.frozen)
        said = word if what is None else f"{word} {what}"
        try:
            world.do(word, what)
        except Exception as error:
            told = "\n".join([*(each.word for each in way), said])
            raise Violation(f"{told}\n{error}") from error
        key = hash(world.key())
        if key in known:
            node.histories += known[key]
        elif key in on_the_way:
            pass  # nothing has come of it
        else:
            ends += world.finished
            way.append(_Node(world, key, said))
            on_the_way.add(key)
