"""A small world in virtual time for the dispatch: a server that answers by a script, a disk, a token endpoint.

It carries out commands as `deliver` does, and decides nothing. The account it keeps (`applied`, `calls`) is the
server's own.
"""

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from backfill.core import events as d
from backfill.core.budget import Hours
from backfill.core.config import Budget, Delivery
from backfill.core.dispatch import Dispatch
from backfill.core.errors import ExitCode
from backfill.core.lifecycle import STATE_OF_PARTS, Move, Part, Recorded, State, after
from backfill.core.reply import Fate, Verdict


class Answer(NamedTuple):
    """What the server does with a call: whether it applies it, and the event that the client then sees."""

    applies: bool
    event: Callable[[Part], d.Event]
    after_s: float = 0.05


def ok(part: Part) -> Answer:
    """Applied and acknowledged."""
    return status(200, applies=True)(part)


def status(
    code: int, *, applies: bool = False, after_s: float = 0.05, retry_after_s: float | None = None
) -> Callable[[Part], Answer]:
    """A server that answers this status to everything."""
    fate = {
        200: Fate.ACKNOWLEDGED,
        302: Fate.REDIRECTED,
        400: Fate.REFUSED,
        401: Fate.UNAUTHORISED,
        403: Fate.FORBIDDEN,
        404: Fate.MISDIRECTED,
        413: Fate.TOO_LARGE,
        429: Fate.UNAPPLIED,
        500: Fate.UNCLEAR,
    }[code]
    verdict = Verdict(fate=fate, http_status=code, cause=str(fate), retry_after_s=retry_after_s)
    return lambda part: Answer(applies, lambda part: d.Replied(part, verdict), after_s)


def silence(*, applies: bool) -> Callable[[Part], Answer]:
    """The connection ends after the request was read."""
    return lambda part: Answer(applies, lambda part: d.Unanswered(part, "closed", None))


@dataclass
class World:
    """`lanes`: sizes of the requests of each lane. `server`: called once per call with the part."""

    lanes: dict[int, list[int]]
    server: Callable[[Part], Answer] = ok
    budget: Budget = field(default_factory=lambda: Budget(requests_per_second=1000))
    delivery: Delivery = field(default_factory=Delivery)
    tokens: Callable[[int], d.Event] = lambda number: d.TokenGranted()
    connect: Callable[[Part], d.Event] = d.Connected
    commit_s: float = 0.001
    jitter: Callable[[], float] = lambda: 0.5
    proven: bool = True
    hours: Hours | None = None
    limit: int | None = None
    calls: list[tuple[float, Part, int]] = field(default_factory=list)
    applied: Counter[tuple[int, int]] = field(default_factory=Counter)
    order: list[tuple[int, int]] = field(default_factory=list)
    states: dict[Part, State] = field(default_factory=dict)
    moves: list[Recorded] = field(default_factory=list)
    commits: list[list[Recorded]] = field(default_factory=list)
    token_requests: int = 0
    now_s: float = 0.0

    def __post_init__(self) -> None:
        self.lane_of: dict[int, int] = {}
        self._queue: list[tuple[float, int, d.Event]] = []
        self._numbers = itertools.count()
        self._fetched = False
        self.dispatch = Dispatch(
            load=1,
            budget=self.budget,
            delivery=self.delivery,
            jitter=self.jitter,
            not_before_s=0.0,
            proven=self.proven,
            hours=self.hours,
            limit=self.limit,
        )

    def run(self, *, until_s: float = math.inf, stop_at_s: float = math.inf) -> Dispatch:
        """Drive the dispatch until it is idle, or until the time is up."""
        if stop_at_s < math.inf:
            self._later(stop_at_s, d.StopRequested(ExitCode.STOPPED_EARLY, "signal"))
        self._handle(d.Tick())
        while not self.dispatch.idle:
            due_s = self._queue[0][0] if self._queue else math.inf
            wake_s = self.dispatch.wake_at_s
            assert min(due_s, wake_s) < math.inf, "nothing is under way and nothing will ever happen"
            if min(due_s, wake_s) > until_s:
                break
            if wake_s < due_s:
                self.now_s = max(self.now_s, wake_s)
                self._handle(d.Tick())
            else:
                self.now_s = max(self.now_s, due_s)
                self._handle(heapq.heappop(self._queue)[2])
        return self.dispatch

    def _later(self, at_s: float, event: d.Event) -> None:
        heapq.heappush(self._queue, (at_s, next(self._numbers), event))

    def _handle(self, event: d.Event) -> None:
        for command in self.dispatch.handle(event, self.now_s):
            self._carry_out(command)

    def _carry_out(self, command: d.Command) -> None:
        match command:
            case d.Fetch():
                self._later(self.now_s, self._fetch())
            case d.Connect(part):
                self._later(self.now_s, self.connect(part))
            case d.Commit(moves):
                self._commit(moves)
            case d.Send(part, attempt):
                self._send(part, attempt)
            case d.RefreshToken():
                self.token_requests += 1
                self._later(self.now_s + 0.01, self.tokens(self.token_requests))
            case d.Release():
                pass

    def again(self, server: Callable[[Part], Answer], *, proven: bool) -> "World":
        """The next execution of the same job: the journal is kept, and what was in flight is in doubt."""
        states: dict[Part, State] = {
            part: State.IN_DOUBT if state is State.IN_FLIGHT else state for part, state in self.states.items()
        }
        return World(
            self.lanes,
            server,
            budget=self.budget,
            delivery=self.delivery,
            proven=proven,
            states=states,
            applied=self.applied,
            order=self.order,
        )

    def _fetch(self) -> d.Fetched:
        ready = []
        numbers = itertools.count(1)
        if not self._fetched:
            for lane, sizes in self.lanes.items():
                for size in sizes:
                    number = next(numbers)
                    self.lane_of[number] = lane
                    parts = sorted(part for part in self.states if part.request == number)
                    left = [part for part in parts if self.states[part] is State.PLANNED]
                    ready += [d.Ready(lane, part, 0) for part in (left if parts else [Part(number, 0, size)])]
        self._fetched = True
        return d.Fetched(None, ready, frozenset(), exhausted=True)

    def _commit(self, moves: Sequence[Recorded]) -> None:
        for move in moves:
            self.states[move.part] = after(self.states.get(move.part, State.PLANNED), move.move)
            if move.into:
                self.states |= dict.fromkeys(move.into, STATE_OF_PARTS[move.move])
            self.moves.append(move)
        self.commits.append(list(moves))
        intents = [move.part for move in moves if move.move is Move.INTENT]
        if intents:
            self._later(self.now_s + self.commit_s, d.Committed(intents))

    def _send(self, part: Part, attempt: int) -> None:
        assert self.states[part] is State.IN_FLIGHT, "sent without a durable intent"
        self.calls.append((self.now_s, part, attempt))
        answer = self.server(part)
        if answer.applies:
            for position in range(part.first, part.first + part.interactions):
                self.applied[part.request, position] += 1
                self.order.append((part.request, position))
        self._later(self.now_s + answer.after_s, answer.event(part))

    def interactions(self, state: State) -> set[tuple[int, int]]:
        """(request, position) of all interactions whose part has this state."""
        return {
            (part.request, position)
            for part, found in self.states.items()
            if found is state
            for position in range(part.first, part.first + part.interactions)
        }
