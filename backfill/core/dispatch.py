"""Dispatch: which request may start now, and what follows from what came back.

Events in, commands out. `deliver` drives this object with a real server and a real disk, the simulation with made-up
ones; neither decides anything. It never sleeps, reads no clock (`now_s` is passed in, monotonic seconds) and
draws no random number (`jitter` is passed in).

One request's way through here:

    lane free, budget grants → Connect → Connected → Commit(intent) → Committed → the send passes the spacing once more
    → Send → Replied | Unanswered → Commit(outcome), and the lane is free again

The connection comes before the intent, so that a server that cannot be reached leaves no doubt and no journal entry.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from backfill.core.budget import Pacer
from backfill.core.config import Budget, Delivery
from backfill.core.errors import ExitCode
from backfill.core.lifecycle import Move, Part, Recorded, halves
from backfill.core.reply import Fate, Verdict
from backfill.core.retry import backoff_s

# Events


class Ready(NamedTuple):
    """A part that may be sent: its lane, and the attempts that the journal already knows."""

    lane: int
    part: Part
    attempts: int


class Fetched(NamedTuple):
    """Answer to Fetch: work for new lanes, or for `lane`, in delivery order.

    `more`: lanes of which a later piece follows. `exhausted`: no new lanes are left in this load.
    """

    lane: int | None
    ready: Sequence[Ready]
    more: frozenset[int]
    exhausted: bool


class Connected(NamedTuple):
    part: Part


class NotSent(NamedTuple):
    """No byte of the request was handed to a socket, before the intent or after it."""

    part: Part
    cause: str


class Committed(NamedTuple):
    """The intents of these parts are durable."""

    parts: Sequence[Part]


class Replied(NamedTuple):
    part: Part
    verdict: Verdict
    words: str | None  # the API's words, masked


class Unanswered(NamedTuple):
    """At least one byte may have left, and no whole reply came; `reason` says how it ended."""

    part: Part
    reason: str
    http_status: int | None


class TokenGranted(NamedTuple):
    pass


class TokenRefused(NamedTuple):
    """The token endpoint refuses the credentials; `code` says whether they or the configuration are at fault."""

    code: ExitCode
    reason: str


class TokenFailed(NamedTuple):
    """The token endpoint could not be asked, or answered nothing usable: to be tried again."""

    reason: str


class Tick(NamedTuple):
    """Time has passed."""


class StopRequested(NamedTuple):
    """Start nothing new."""

    code: ExitCode
    reason: str


Event = (
    Fetched
    | Connected
    | NotSent
    | Committed
    | Replied
    | Unanswered
    | TokenGranted
    | TokenRefused
    | TokenFailed
    | Tick
    | StopRequested
)

# Commands


class Fetch(NamedTuple):
    """Open new lanes, or more of `lane`."""

    lane: int | None


class Connect(NamedTuple):
    part: Part


class Commit(NamedTuple):
    """Journal these moves. Intents among them are answered by Committed; the others may ride with any commit."""

    moves: Sequence[Recorded]


class Send(NamedTuple):
    """Make the attempt on the connection that this part holds."""

    part: Part
    attempt: int


class Release(NamedTuple):
    """Give the connection back unused."""

    part: Part


class RefreshToken(NamedTuple):
    pass


Command = Fetch | Connect | Commit | Send | Release | RefreshToken


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """Why no further request starts; `resume_after_s` from now, where the server said when."""

    code: ExitCode
    reason: str
    resume_after_s: float | None = None


@dataclass(slots=True)
class _Lane:
    """At any time a lane is one of: free, delayed, fetching, or owner of one flight; drained ones are forgotten."""

    number: int
    waiting: deque[Ready] = field(default_factory=deque)
    more: bool = False  # a later piece of this lane has not been fetched yet
    failures: int = 0  # in a row, of the request at its head


@dataclass(slots=True)
class _Flight:
    """A granted request on its way."""

    lane: _Lane
    part: Part
    attempt: int
    intended: bool = False  # the intent has been handed to the journal
    token: int = 0  # the generation it was sent with; 0 before the send


GATE_S = 0.05
"""How much work, in seconds at the budget's pace, may have an intent and wait for its send. After a slow commit
no more is granted until these are out, so that a crash leaves little in doubt."""


class Dispatch:
    """The decisions of delivering one load: drive it until `idle`.

    `stopped` says why nothing more starts, None while all is well. `sent` counts the calls made: what they cost.
    """

    def __init__(
        self, *, load: int, budget: Budget, delivery: Delivery, jitter: Callable[[], float], not_before_s: float
    ) -> None:
        """`jitter` gives numbers in [0, 1); no request starts before `not_before_s`."""
        self._load = load
        self._delivery = delivery
        self._concurrency = budget.concurrency
        self._jitter = jitter
        self._grants, self._sends = (
            Pacer(
                requests_per_second=budget.requests_per_second,
                interactions_per_second=budget.interactions_per_second,
                not_before_s=not_before_s,
            )
            for _ in range(2)
        )
        self._most_gated = max(2, int(GATE_S * budget.requests_per_second))
        self._lanes: dict[int, _Lane] = {}
        self._free: deque[_Lane] = deque()
        self._delayed: list[tuple[float, int, _Lane]] = []
        self._flights: dict[Part, _Flight] = {}
        self._gate: deque[_Flight] = deque()
        self._exhausted = False
        self._fetching: set[int | None] = set()
        self._token = 0  # generation
        self._token_valid = False
        self._token_proven = False  # some request was let in with the present token
        self._token_asked = False
        self._token_failures = 0
        self._token_not_before_s = -math.inf
        self._failing_since_s: float | None = None
        self.stopped: Stopped | None = None
        self.sent = 0

    @property
    def idle(self) -> bool:
        """Nothing is in the air, and nothing is left that would ever start."""
        if self._flights or self._fetching:
            return False
        return self.stopped is not None or (self._exhausted and not self._lanes)

    @property
    def in_the_air(self) -> int:
        return len(self._flights)

    @property
    def wake_at_s(self) -> float:
        """When a Tick is due at the latest, if nothing else happens; infinity where time alone changes nothing."""
        if self.stopped:
            return math.inf
        wake_s = math.inf
        if self._gate:
            wake_s = self._sends.ready_at_s
        if self._delayed:
            wake_s = min(wake_s, self._delayed[0][0])
        if self._wants_token:
            wake_s = min(wake_s, self._token_not_before_s)
        if self._may_start:
            wake_s = min(wake_s, self._grants.ready_at_s)
        if self._failing_since_s is not None:
            wake_s = min(wake_s, self._failing_since_s + self._delivery.give_up_after_s)
        return wake_s

    def handle(self, event: Event, now_s: float) -> list[Command]:
        """Take in one event; returns what is to be done now, in order."""
        commands: list[Command] = []
        match event:
            case Tick():
                pass
            case Connected(part):
                self._connected(part, commands)
            case NotSent(part, cause):
                self._not_sent(part, cause, now_s, commands)
            case Committed(parts):
                self._gate.extend(self._flights[part] for part in parts)
            case Replied(part, verdict, words):
                self._replied(self._flights[part], verdict, words, now_s, commands)
            case Unanswered(part, reason, http_status):
                flight = self._flights[part]
                self._failed(flight.lane, now_s)
                self._conclude(flight, Move.UNCLEAR, commands, cause="no_reply", reason=reason, http_status=http_status)
            case Fetched():
                self._fetched(event, commands)
            case TokenGranted() | TokenRefused() | TokenFailed():
                self._token_answered(event, now_s)
            case StopRequested(code, reason):
                self._stop(code, reason)
        self._go_on(now_s, commands)
        return commands

    # What may start

    @property
    def _wants_token(self) -> bool:
        return not self._token_valid and not self._token_asked

    @property
    def _may_start(self) -> bool:
        return (
            bool(self._free)
            and self._token_valid
            and len(self._flights) < self._concurrency
            and len(self._gate) < self._most_gated
        )

    def _go_on(self, now_s: float, commands: list[Command]) -> None:
        if self._failing_since_s is not None and now_s - self._failing_since_s >= self._delivery.give_up_after_s:
            self._stop(
                ExitCode.STOPPED_EARLY,
                f"Nothing was acknowledged for {self._delivery.give_up_after_s:g} s (delivery.give_up_after_s).",
            )
        if self.stopped:
            self._let_go(commands)
            return
        if not self._token_valid:
            self._ungate(commands)
            if self._wants_token and self._token_not_before_s <= now_s:
                self._token_asked = True
                commands.append(RefreshToken())
        while self._gate and self._sends.ready_at_s <= now_s:
            self._send(self._gate.popleft(), now_s, commands)
        while self._delayed and self._delayed[0][0] <= now_s:
            self._free.append(heapq.heappop(self._delayed)[2])
        while self._may_start and self._grants.ready_at_s <= now_s:
            self._start(self._free.popleft(), now_s, commands)
        # Twice the lanes that can be busy, so that the next bucket is there before this one's lanes run dry.
        if not self._exhausted and None not in self._fetching and len(self._lanes) < 2 * self._concurrency:
            self._fetching.add(None)
            commands.append(Fetch(None))

    def _start(self, lane: _Lane, now_s: float, commands: list[Command]) -> None:
        ready = lane.waiting.popleft()
        self._grants.take(now_s, ready.part.interactions)
        self._flights[ready.part] = _Flight(lane=lane, part=ready.part, attempt=ready.attempts + 1)
        commands.append(Connect(ready.part))

    def _connected(self, part: Part, commands: list[Command]) -> None:
        flight = self._flights.get(part)
        if flight is None:  # let go while it was connecting
            commands.append(Release(part))
            return
        flight.intended = True
        commands.append(Commit([self._move(flight, Move.INTENT)]))

    def _send(self, flight: _Flight, now_s: float, commands: list[Command]) -> None:
        self._sends.take(now_s, flight.part.interactions)
        flight.token = self._token
        self.sent += 1
        commands.append(Send(flight.part, flight.attempt))

    def _fetched(self, event: Fetched, commands: list[Command]) -> None:
        self._fetching.discard(event.lane)
        if event.lane is None:
            self._exhausted = event.exhausted
        lanes: dict[int, _Lane] = {}
        for number in (
            *(ready.lane for ready in event.ready),
            *event.more,
            *([] if event.lane is None else [event.lane]),
        ):
            lanes[number] = self._lanes.setdefault(number, _Lane(number))
            lanes[number].more = number in event.more
        for ready in event.ready:
            lanes[ready.lane].waiting.append(ready)
        for lane in lanes.values():
            self._free_lane(lane, commands)

    # What came back

    def _replied(
        self, flight: _Flight, verdict: Verdict, words: str | None, now_s: float, commands: list[Command]
    ) -> None:
        if verdict.fate in (Fate.ACKNOWLEDGED, Fate.REFUSED):
            self._token_proven = self._token_proven or flight.token == self._token
        said = f"HTTP {verdict.http_status}" + (f": {words}" if words else "")
        match verdict.fate:
            case Fate.ACKNOWLEDGED:
                self._failing_since_s = None
                flight.lane.failures = 0
                self._conclude(flight, Move.ACKNOWLEDGED, commands, verdict)
            case Fate.REFUSED | Fate.TOO_LARGE:
                flight.lane.failures = 0
                bisect = self._delivery.on_400 == "bisect" or verdict.fate is Fate.TOO_LARGE
                if flight.part.interactions > 1 and bisect:
                    self._divide(flight, verdict, commands)
                else:
                    self._conclude(flight, Move.REFUSED, commands, verdict, reason=said)
            case Fate.UNAUTHORISED:
                if flight.token == self._token:
                    self._token_valid = False
                    if not self._token_proven:
                        self._stop(
                            ExitCode.CREDENTIALS_REFUSED,
                            "The API refused the token at its first use (401). Check that the credentials belong to "
                            "this base_url and site_key.",
                        )
                self._again(flight, commands, verdict)
            case Fate.FORBIDDEN:
                self._stop(
                    ExitCode.CREDENTIALS_REFUSED,
                    f"The credentials lack the permission for this call ({said}). Have it granted, then run again.",
                )
                self._again(flight, commands, verdict)
            case Fate.MISDIRECTED:
                self._stop(
                    ExitCode.UNUSABLE,
                    f"The server redirects ({said}), which is never followed; nothing was applied. Check api.base_url."
                    if verdict.cause == "redirect"
                    else f"The API does not take this call ({said}); nothing was applied. Check api.base_url and "
                    "api.call.",
                )
                self._again(flight, commands, verdict)
            case Fate.REDIRECTED:
                self._stop(
                    ExitCode.UNUSABLE,
                    f"The server redirects ({said}), which is never followed. Check api.base_url.",
                )
                self._conclude(flight, Move.UNCLEAR, commands, verdict)
            case Fate.UNAPPLIED:
                self._unapplied(flight, verdict, said, now_s, commands)
            case Fate.UNCLEAR:
                self._failed(flight.lane, now_s)
                self._conclude(flight, Move.UNCLEAR, commands, verdict)

    def _unapplied(self, flight: _Flight, verdict: Verdict, said: str, now_s: float, commands: list[Command]) -> None:
        wait_s = verdict.retry_after_s
        if wait_s is not None:
            if wait_s > self._delivery.give_up_after_s:
                self._stop(
                    ExitCode.STOPPED_EARLY,
                    f"The server asks to wait {wait_s:.0f} s ({said}), longer than delivery.give_up_after_s.",
                    resume_after_s=wait_s,
                )
            # The server means all of us, not this lane alone.
            self._grants.ready_at_s = max(self._grants.ready_at_s, now_s + wait_s)
        self._failed(flight.lane, now_s)
        self._out_of_attempts(flight, said)
        self._again(flight, commands, verdict, now_s + self._backoff_s(flight.lane))

    def _not_sent(self, part: Part, cause: str, now_s: float, commands: list[Command]) -> None:
        flight = self._flights.get(part)
        if flight is None:  # let go while it was connecting
            return
        self._failed(flight.lane, now_s)
        self._out_of_attempts(flight, f"no connection to api.base_url ({cause})")
        # A kept-alive connection that the server had closed says nothing about the server: try a new one at once.
        stale = cause == "closed_before_sending" and flight.lane.failures == 1
        self._again(flight, commands, None, now_s if stale else now_s + self._backoff_s(flight.lane), cause=cause)

    def _token_answered(self, event: TokenGranted | TokenRefused | TokenFailed, now_s: float) -> None:
        self._token_asked = False
        match event:
            case TokenGranted():
                self._token += 1
                self._token_valid = True
                self._token_proven = False
                self._token_failures = 0
            case TokenRefused(code, reason):
                self._stop(code, reason)
            case TokenFailed(reason):
                self._token_failures += 1
                if self._token_failures >= self._delivery.max_attempts:
                    self._stop(ExitCode.STOPPED_EARLY, f"No token after {self._token_failures} attempts: {reason}")
                if self._failing_since_s is None:
                    self._failing_since_s = now_s
                self._token_not_before_s = now_s + backoff_s(self._token_failures, self._delivery, self._jitter())

    # What follows

    def _failed(self, lane: _Lane, now_s: float) -> None:
        lane.failures += 1
        if self._failing_since_s is None:
            self._failing_since_s = now_s

    def _backoff_s(self, lane: _Lane) -> float:
        return backoff_s(lane.failures, self._delivery, self._jitter())

    def _out_of_attempts(self, flight: _Flight, said: str) -> None:
        if flight.lane.failures >= self._delivery.max_attempts:
            self._stop(
                ExitCode.STOPPED_EARLY,
                f"Request {flight.part.request} failed {flight.lane.failures} times in a row "
                f"(delivery.max_attempts), last with {said}. Run again when the API answers.",
            )

    def _stop(self, code: ExitCode, reason: str, resume_after_s: float | None = None) -> None:
        """The first reason stands; what follows from it is no reason of its own."""
        if self.stopped is None:
            self.stopped = Stopped(code=code, reason=reason, resume_after_s=resume_after_s)

    def _move(self, flight: _Flight, move: Move, verdict: Verdict | None = None, **known: Any) -> Recorded:
        if verdict is not None:
            known = {"http_status": verdict.http_status, "cause": verdict.cause, "tid": verdict.tid} | known
        return Recorded(load=self._load, part=flight.part, move=move, attempt=flight.attempt, **known)

    def _conclude(
        self,
        flight: _Flight,
        move: Move,
        commands: list[Command],
        verdict: Verdict | None = None,
        **known: Any,
    ) -> None:
        """The part has its fate; the lane goes on with its next request."""
        commands.append(Commit([self._move(flight, move, verdict, **known)]))
        del self._flights[flight.part]
        if move is Move.UNCLEAR:
            flight.lane.failures = 0  # they belonged to the request that is in doubt now
        self._free_lane(flight.lane, commands)

    def _divide(self, flight: _Flight, verdict: Verdict, commands: list[Command]) -> None:
        into = halves(flight.part)
        for part in reversed(into):
            flight.lane.waiting.appendleft(Ready(flight.lane.number, part, 0))
        self._conclude(flight, Move.DIVIDED, commands, verdict, into=into)

    def _again(
        self,
        flight: _Flight,
        commands: list[Command],
        verdict: Verdict | None,
        not_before_s: float | None = None,
        cause: str | None = None,
    ) -> None:
        """The part provably changed nothing: it goes back to the head of its lane."""
        attempts = flight.attempt - 1
        if flight.intended:
            attempts = flight.attempt
            known = {} if cause is None else {"cause": cause}
            commands.append(Commit([self._move(flight, Move.UNAPPLIED, verdict, **known)]))
        del self._flights[flight.part]
        flight.lane.waiting.appendleft(Ready(flight.lane.number, flight.part, attempts))
        self._free_lane(flight.lane, commands, not_before_s)

    def _free_lane(self, lane: _Lane, commands: list[Command], not_before_s: float | None = None) -> None:
        if lane.waiting:
            if not_before_s is None:
                self._free.append(lane)
            else:
                heapq.heappush(self._delayed, (not_before_s, lane.number, lane))
        elif lane.more:
            self._fetching.add(lane.number)
            commands.append(Fetch(lane.number))
        else:
            del self._lanes[lane.number]

    def _ungate(self, commands: list[Command]) -> None:
        """Intents that wait for their send must not wait for a token as well: a crash would leave them in doubt."""
        while self._gate:
            flight = self._gate.popleft()
            commands.append(Release(flight.part))
            self._again(flight, commands, None, cause="not_sent")

    def _let_go(self, commands: list[Command]) -> None:
        """Stopped: whatever has not been handed to a socket is planned again."""
        self._ungate(commands)
        for flight in [flight for flight in self._flights.values() if not flight.intended]:
            commands.append(Release(flight.part))
            self._again(flight, commands, None)
