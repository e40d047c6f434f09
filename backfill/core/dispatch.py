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
from dataclasses import dataclass, field, replace
from typing import Any

from backfill.core.authorisation import Authorisation
from backfill.core.breaker import Breaker
from backfill.core.budget import Allowance, Hours, Pacer, Throttle
from backfill.core.canary import Canary
from backfill.core.config import Budget, Delivery
from backfill.core.errors import ExitCode
from backfill.core.events import (
    Command,
    Commit,
    Committed,
    Connect,
    Connected,
    Event,
    Fetch,
    Fetched,
    NotSent,
    Ready,
    RefreshToken,
    Release,
    Replied,
    Send,
    Stopped,
    StopRequested,
    Tick,
    TokenFailed,
    TokenGranted,
    TokenRefused,
    Unanswered,
)
from backfill.core.lifecycle import Move, Part, Recorded, halves
from backfill.core.reply import Fate, Verdict
from backfill.core.retry import backoff_s


@dataclass(slots=True)
class _Lane:
    """At any time a lane is one of: free, delayed, withheld, fetching, or owner of one flight; drained ones are
    forgotten."""

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
    marked: bool  # it was once in doubt, so it may have been applied
    probe: bool  # it started while the breaker was open
    intended: bool = False  # the intent has been handed to the journal
    token: int = 0  # the generation it was sent with; 0 before the send
    sent_s: float = -math.inf


GATE_S = 0.05
"""How much work, in seconds at the budget's pace, may have an intent and wait for its send. After a slow commit
no more is granted until these are out, so that a crash leaves little in doubt."""


class Dispatch:
    """The decisions of delivering one load: drive it until `idle`.

    `stopped` says why nothing more starts, None while all is well. `sent` counts the calls made: what they cost;
    `admitted` the interactions that a limit let through.
    """

    def __init__(
        self,
        *,
        load: int,
        budget: Budget,
        delivery: Delivery,
        jitter: Callable[[], float],
        not_before_s: float,
        proven: bool = True,
        hours: Hours | None = None,
        limit: int | None = None,
    ) -> None:
        """`jitter` gives numbers in [0, 1); no request starts before `not_before_s`.

        `proven`: the job was acknowledged as it is configured now, and did not end in refusals since. `limit`:
        interactions that are sent at the most.
        """
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
        self._throttle = Throttle()
        self._allowance = Allowance(hours or Hours())
        self._canary = Canary(calls=delivery.canary_calls, proven=proven)
        self._breaker = Breaker(failures=delivery.breaker_failures)
        self._unbelieved: list[Recorded] = []
        self._last_refusal = ""
        self._unreachable = ""  # the last reason why there was no connection or token, until there is one
        self._left = math.inf if limit is None else limit
        self._admitted: dict[int, int] = {}  # by request: the end of the positions that a limit has let through
        self._withheld = 0  # lanes whose next request the limit keeps back
        self._most_gated = max(2, int(GATE_S * budget.requests_per_second))
        self._lanes: dict[int, _Lane] = {}
        self._free: deque[_Lane] = deque()
        self._delayed: list[tuple[float, int, _Lane]] = []
        self._flights: dict[Part, _Flight] = {}
        self._unsent = 0  # flights that have not come to their send
        self._gate: deque[_Flight] = deque()
        self._exhausted = False
        self._fetching: set[int | None] = set()
        self._authorisation = Authorisation()
        self._failing_since_s: float | None = None
        self._now_s = not_before_s
        self.stopped: Stopped | None = None
        self.sent = 0
        self.admitted = 0

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
        wake_s = min(self._allowance.closes_at_s, self._authorisation.wanted_at_s)
        if self._gate:
            wake_s = min(wake_s, self._sends.ready_at_s)
        if self._delayed:
            wake_s = min(wake_s, self._delayed[0][0])
        if self._may_start:
            wake_s = min(wake_s, self._grants.ready_at_s)
        if self._failing_since_s is not None:
            wake_s = min(wake_s, self._failing_since_s + self._delivery.give_up_after_s)
        return wake_s

    def handle(self, event: Event, now_s: float) -> list[Command]:
        """Take in one event; returns what is to be done now, in order."""
        commands: list[Command] = []
        self._now_s = now_s
        match event:
            case Tick():
                pass
            case Connected(part):
                self._connected(part, commands)
            case NotSent(part, cause, said):
                self._not_sent(part, cause, said or cause, now_s, commands)
            case Committed(parts):
                self._gate.extend(self._flights[part] for part in parts)
            case Replied(part, verdict):
                self._replied(self._flights[part], verdict, now_s, commands)
            case Unanswered(part, reason, http_status):
                self._throttle.push_back(now_s)  # a server that does not answer may be one that cannot keep up
                self._unclear(
                    self._flights[part], now_s, commands, cause="no_reply", reason=reason, http_status=http_status
                )
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
    def _may_start(self) -> bool:
        most = 1 if self._canary.open or self._breaker.open else self._concurrency
        return (
            bool(self._free)
            and self._authorisation.valid
            and len(self._flights) < most
            and len(self._gate) < self._most_gated
            and self._allowance.left(self._now_s) > self._unsent
        )

    def _go_on(self, now_s: float, commands: list[Command]) -> None:
        self._look_for_reasons_to_stop(now_s)
        if self.stopped:
            self._let_go(commands)
            return
        if not self._authorisation.valid:
            self._ungate(commands)
            if self._authorisation.wanted_at_s <= now_s:
                self._authorisation.asked()
                commands.append(RefreshToken())
        while self._gate and self._sends.ready_at_s <= now_s:
            self._send(self._gate.popleft(), now_s, commands)
        while self._delayed and self._delayed[0][0] <= now_s:
            self._free.append(heapq.heappop(self._delayed)[2])
        while self._may_start and self._grants.ready_at_s <= now_s:
            self._start(self._free.popleft(), now_s, commands)
        # Twice the lanes that can be busy, so that the next bucket is there before this one's lanes run dry.
        most_lanes = 2 * self._concurrency + self._withheld
        if not self._exhausted and None not in self._fetching and len(self._lanes) < most_lanes and self._left > 0:
            self._fetching.add(None)
            commands.append(Fetch(None))
        if not self._flights and not self._fetching:
            self._look_at_the_end(commands)

    def _look_for_reasons_to_stop(self, now_s: float) -> None:
        if self._failing_since_s is not None and now_s - self._failing_since_s >= self._delivery.give_up_after_s:
            self._stop(
                ExitCode.STOPPED_EARLY,
                f"Nothing was acknowledged for {self._delivery.give_up_after_s:g} s (delivery.give_up_after_s). "
                f"{self._unreachable}".rstrip(),
            )
        if self._breaker.burns:
            self._stop(
                ExitCode.STOPPED_EARLY,
                f"The server gives no usable answer: {self._delivery.breaker_failures} calls, one after the other, "
                "were left in doubt (delivery.breaker_failures). Run again when it answers.",
            )
        if self._breaker.out_of_retries:
            self._stop(
                ExitCode.STOPPED_EARLY,
                "Too many calls had to be repeated (the retry budget is half of all calls). Lower "
                "budget.requests_per_second, or run again when the server is well.",
            )
        if self._canary.gives_up:
            self._stop_for_refusals()
        if self._authorisation.suspect and not any(
            flight.token == self._authorisation.generation for flight in self._flights.values()
        ):
            self._stop(
                ExitCode.CREDENTIALS_REFUSED,
                "The API refused the token at its first use (401). Check that the credentials belong to this base_url "
                "and site_key.",
            )
        if now_s >= self._allowance.closes_at_s:
            self._stop(
                ExitCode.STOPPED_EARLY,
                "The time window (budget.window) has ended.",
                resume_after_s=self._allowance.refill_s(now_s),
            )

    def _look_at_the_end(self, commands: list[Command]) -> None:
        """Nothing is in the air. Is there a reason why nothing will start any more?"""
        if self._exhausted and not self._lanes:
            if self._canary.open_from_start and self._unbelieved:
                self._stop_for_refusals()
            else:
                # Three bad rows at the end of a load must not jam a night: other rows were acknowledged before them.
                self._believe(commands)
        elif self._left <= 0 and self._withheld == len(self._lanes):
            if self._canary.open_from_start and self._unbelieved:
                self._stop_for_refusals()  # a trial that was refused says so
            self._stop(ExitCode.STOPPED_EARLY, "As many interactions were sent as --limit allows.")
        elif self._free and self._allowance.left(self._now_s) <= 0:
            self._stop(
                ExitCode.STOPPED_EARLY,
                "The day's budget (budget.requests_per_day) is used up.",
                resume_after_s=self._allowance.refill_s(self._now_s),
            )

    def _start(self, lane: _Lane, now_s: float, commands: list[Command]) -> None:
        ready = self._within_limit(lane, commands)
        if ready is None:
            self._withheld += 1
            return
        self._grants.take(now_s, ready.part.interactions, self._throttle.share(now_s))
        self._flights[ready.part] = _Flight(
            lane=lane, part=ready.part, attempt=ready.attempts + 1, marked=ready.marked, probe=self._breaker.open
        )
        self._unsent += 1
        commands.append(Connect(ready.part))

    def _within_limit(self, lane: _Lane, commands: list[Command]) -> Ready | None:
        """The next part of the lane, cut to what the limit still allows; None if that is nothing."""
        ready = lane.waiting.popleft()
        if self._left == math.inf:
            return ready
        request, first, interactions = ready.part
        if first + interactions <= self._admitted.get(request, 0):
            return ready  # tried again, or a part of what was let through before
        if self._left <= 0:
            lane.waiting.appendleft(ready)
            return None
        if interactions > self._left:
            now, later = (
                Part(request, first, int(self._left)),
                Part(request, first + int(self._left), interactions - int(self._left)),
            )
            commands.append(
                Commit(
                    [
                        Recorded(
                            load=self._load, part=ready.part, move=Move.CUT, attempt=ready.attempts, into=(now, later)
                        )
                    ]
                )
            )
            lane.waiting.appendleft(ready._replace(part=later))
            ready = ready._replace(part=now)
        self._left -= ready.part.interactions
        self.admitted += ready.part.interactions
        self._admitted[request] = ready.part.first + ready.part.interactions
        return ready

    def _connected(self, part: Part, commands: list[Command]) -> None:
        flight = self._flights.get(part)
        if flight is None:  # let go while it was connecting
            commands.append(Release(part))
            return
        if not self._authorisation.valid:  # an intent must not wait for a token: a crash would leave it in doubt
            commands.append(Release(part))
            self._again(flight, commands, None)
            return
        flight.intended = True
        self._unreachable = ""
        commands.append(Commit([self._move(flight, Move.INTENT)]))

    def _send(self, flight: _Flight, now_s: float, commands: list[Command]) -> None:
        self._sends.take(now_s, flight.part.interactions, self._throttle.share(now_s))
        self._allowance.take(now_s)
        self._breaker.called()
        flight.token = self._authorisation.generation
        flight.sent_s = now_s
        self._unsent -= 1
        self.sent += 1
        commands.append(Send(flight.part, flight.attempt))

    def _fetched(self, event: Fetched, commands: list[Command]) -> None:
        self._fetching.discard(event.lane)
        if event.lane is None:
            self._exhausted = event.exhausted
        lanes: dict[int, _Lane] = {}
        numbers = {ready.lane for ready in event.ready} | event.more
        for number in sorted(numbers if event.lane is None else numbers | {event.lane}):
            lanes[number] = self._lanes.setdefault(number, _Lane(number))
            lanes[number].more = number in event.more
        for ready in event.ready:
            lanes[ready.lane].waiting.append(ready)
        for lane in lanes.values():
            self._free_lane(lane, commands)

    # What came back

    def _replied(self, flight: _Flight, verdict: Verdict, now_s: float, commands: list[Command]) -> None:
        if verdict.fate in (Fate.ACKNOWLEDGED, Fate.REFUSED, Fate.TOO_LARGE) or verdict.each:
            self._authorisation.let_in(flight.token)
        said = f"HTTP {verdict.http_status}" + (f": {verdict.words}" if verdict.words else "")
        if len(set(verdict.each)) > 1:
            self._sorted(flight, verdict.each, now_s, commands)
            return
        match verdict.fate:
            case Fate.ACKNOWLEDGED:
                self._acknowledged(flight.lane, commands)
                self._conclude(flight, Move.ACKNOWLEDGED, commands, verdict)
            case Fate.REFUSED | Fate.TOO_LARGE:
                self._refused(flight, verdict, said, commands)
            case Fate.UNAUTHORISED:
                self._authorisation.refused(flight.token, flight.sent_s)
                flight.lane.failures += 1
                if flight.lane.failures > self._delivery.max_attempts:  # an expiry alone never stops anything
                    self._out_of_attempts(flight, said)
                self._again(flight, commands, verdict)
                if self._free[-1] is flight.lane:
                    self._free.rotate()  # the next token serves first whom this one has refused
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
                self._unclear(
                    flight, now_s, commands, http_status=verdict.http_status, cause=verdict.cause, reason=said
                )

    def _acknowledged(self, lane: _Lane, commands: list[Command]) -> None:
        self._canary.acknowledged()
        self._useful(lane)
        self._believe(commands)

    def _useful(self, lane: _Lane) -> None:
        """The server gave an answer that it gives when it is well."""
        self._breaker.answered()
        self._failing_since_s = None
        lane.failures = 0

    def _believe(self, commands: list[Command]) -> None:
        """An acknowledgement stands beside the refusals: they were about their rows."""
        if self._unbelieved:
            commands.append(Commit(self._unbelieved))
            self._unbelieved = []

    def _refused(self, flight: _Flight, verdict: Verdict, said: str, commands: list[Command]) -> None:
        self._useful(flight.lane)
        self._canary.refused()
        self._last_refusal = said
        # Where each row was refused by name, there is nothing to look for.
        bisect = (self._delivery.on_400 == "bisect" and not verdict.each) or verdict.fate is Fate.TOO_LARGE
        if flight.part.interactions > 1 and bisect:
            into = halves(flight.part)
            for part in reversed(into):
                flight.lane.waiting.appendleft(Ready(flight.lane.number, part, flight.attempt, flight.marked))
            self._conclude(flight, Move.DIVIDED, commands, verdict, into=into)
            return
        self._look_for_the_last_row(flight)
        if flight.marked:
            # The refusal speaks of this attempt; the one before it may have been applied.
            self._conclude(flight, Move.UNCLEAR, commands, verdict, cause="refused_after_doubt", reason=said)
        else:
            self._unbelieved.append(self._move(flight, Move.BELIEVED, verdict, reason=said))
            self._conclude(flight, Move.UNAPPLIED, commands, verdict, reason=said)

    def _look_for_the_last_row(self, flight: _Flight) -> None:
        waiting = flight.lane.waiting
        if not waiting or waiting[0].part.request != flight.part.request:
            self._canary.refused_to_the_last_row()

    def _unapplied(self, flight: _Flight, verdict: Verdict, said: str, now_s: float, commands: list[Command]) -> None:
        self._throttle.push_back(now_s)
        self._heed(verdict, said, now_s)
        self._failed(flight, now_s)
        self._breaker.retried()
        self._out_of_attempts(flight, said)
        self._again(flight, commands, verdict, now_s + self._backoff_s(flight.lane))

    def _heed(self, verdict: Verdict, said: str, now_s: float) -> None:
        """Wait as the server asks: it means all of us, not this lane alone."""
        wait_s = verdict.retry_after_s
        if wait_s is None:
            return
        if wait_s > self._delivery.give_up_after_s:
            self._stop(
                ExitCode.STOPPED_EARLY,
                f"The server asks to wait {wait_s:.0f} s ({said}), longer than delivery.give_up_after_s.",
                resume_after_s=wait_s,
            )
        self._grants.ready_at_s = max(self._grants.ready_at_s, now_s + wait_s)

    def _unclear(
        self,
        flight: _Flight,
        now_s: float,
        commands: list[Command],
        *,
        http_status: int | None,
        cause: str,
        reason: str,
    ) -> None:
        self._failed(flight, now_s, doubtful=True)
        doubt = self._move(flight, Move.UNCLEAR, http_status=http_status, cause=cause, reason=reason)
        if self._delivery.in_doubt == "hold":
            flight.lane.failures = 0  # they belonged to the request that is in doubt now
            self._land(flight)
            commands.append(Commit([doubt]))
            self._free_lane(flight.lane, commands)
            return
        self._breaker.retried()
        self._out_of_attempts(flight, reason)
        commands.append(Commit([doubt, self._move(flight, Move.DECIDED_RESEND)]))
        self._requeue(flight, flight.attempt, True, commands, now_s + self._backoff_s(flight.lane))

    def _sorted(self, flight: _Flight, each: Sequence[Verdict], now_s: float, commands: list[Command]) -> None:
        """One reply, several fates: the request is replaced by a part for each run of equal ones, in one commit."""
        runs: list[tuple[Verdict, Part]] = []
        for position, verdict in enumerate(each, start=flight.part.first):
            if runs and runs[-1][0] == verdict:
                part = runs[-1][1]
                runs[-1] = (verdict, part._replace(interactions=part.interactions + 1))
            else:
                runs.append((verdict, Part(flight.part.request, position, 1)))
        fates = {verdict.fate for verdict in each}
        if Fate.ACKNOWLEDGED in fates:
            self._acknowledged(flight.lane, commands)
        elif Fate.REFUSED in fates:
            self._useful(flight.lane)
            self._canary.refused()
        else:
            self._failed(flight, now_s, doubtful=Fate.UNCLEAR in fates)
        if Fate.UNAPPLIED in fates:
            self._throttle.push_back(now_s)
        moves = [self._move(flight, Move.SORTED, into=tuple(part for _, part in runs))]
        again: list[Ready] = []
        for verdict, part in runs:
            said = f"HTTP {verdict.http_status}" + (f": {verdict.words}" if verdict.words else "")
            move = self._fate_of_run(flight, verdict, acknowledged=Fate.ACKNOWLEDGED in fates)
            child = replace(flight, part=part)
            moves.append(self._move(child, move, verdict, **({} if move is Move.ACKNOWLEDGED else {"reason": said})))
            if verdict.fate is Fate.REFUSED and move is Move.UNAPPLIED:
                self._unbelieved.append(self._move(child, Move.BELIEVED, verdict, reason=said))
                self._last_refusal = said
            elif move is Move.UNAPPLIED:
                again.append(Ready(flight.lane.number, part, flight.attempt, flight.marked))
            elif move is Move.UNCLEAR and verdict.fate is Fate.UNCLEAR and self._delivery.in_doubt == "resend":
                moves.append(self._move(child, Move.DECIDED_RESEND))
                again.append(Ready(flight.lane.number, part, flight.attempt, True))
        commands.append(Commit(moves))
        self._land(flight)
        flight.lane.waiting.extendleft(reversed(again))
        if Fate.REFUSED in fates:  # an acknowledgement among them has closed the canary
            self._look_for_the_last_row(flight)
        if again:
            flight.lane.failures += 1
            self._breaker.retried()
            self._out_of_attempts(flight, "some interactions not applied")
        self._free_lane(flight.lane, commands, now_s + self._backoff_s(flight.lane) if again else None)

    @staticmethod
    def _fate_of_run(flight: _Flight, verdict: Verdict, *, acknowledged: bool) -> Move:
        match verdict.fate:
            case Fate.ACKNOWLEDGED:
                return Move.ACKNOWLEDGED
            case Fate.UNAPPLIED:
                return Move.UNAPPLIED
            case Fate.REFUSED if flight.marked:
                return Move.UNCLEAR
            case Fate.REFUSED:
                return Move.REFUSED if acknowledged else Move.UNAPPLIED
        return Move.UNCLEAR

    def _not_sent(self, part: Part, cause: str, said: str, now_s: float, commands: list[Command]) -> None:
        flight = self._flights.get(part)
        if flight is None:  # let go while it was connecting
            return
        if cause == "closed_before_sending" and not flight.lane.failures:
            # A kept-alive connection that the server had closed says nothing about the server: try a new one at once.
            flight.lane.failures += 1
            self._again(flight, commands, None, now_s, cause=cause)
            return
        self._failed(flight, now_s)
        self._unreachable = f"No connection to api.base_url: {said}"
        if cause == "proxy_credentials":  # asking again could get the account locked
            self._stop(ExitCode.CREDENTIALS_REFUSED, self._unreachable)
        if cause == "untrusted":  # a certificate does not mend itself, and a person should hear of it now
            self._stop(ExitCode.UNUSABLE, self._unreachable)
        self._out_of_attempts(flight, self._unreachable)
        self._again(flight, commands, None, now_s + self._backoff_s(flight.lane), cause=cause)

    def _token_answered(self, event: TokenGranted | TokenRefused | TokenFailed, now_s: float) -> None:
        match event:
            case TokenGranted():
                self._authorisation.granted(now_s)
                self._unreachable = ""
            case TokenRefused(code, reason):
                self._stop(code, reason)
            case TokenFailed(reason):
                self._authorisation.failed()
                self._unreachable = f"No token: {reason.rstrip('.')}."
                failures = self._authorisation.failures
                if failures >= self._delivery.max_attempts:
                    self._stop(ExitCode.STOPPED_EARLY, f"No token after {failures} attempts: {reason.rstrip('.')}.")
                if self._failing_since_s is None:
                    self._failing_since_s = now_s
                self._authorisation.not_before(now_s + backoff_s(failures, self._delivery, self._jitter()))

    # What follows

    def _failed(self, flight: _Flight, now_s: float, *, doubtful: bool = False) -> None:
        flight.lane.failures += 1
        if self._failing_since_s is None:
            self._failing_since_s = now_s
        self._breaker.failed(probe=flight.probe, doubtful=doubtful)
        if self._breaker.open:
            # Half of the wait is certain: probes that come at once would tell nothing new.
            wait_s = backoff_s(max(1, self._breaker.failed_probes), self._delivery, 0.5 + self._jitter() / 2)
            self._grants.ready_at_s = max(self._grants.ready_at_s, now_s + wait_s)

    def _backoff_s(self, lane: _Lane) -> float:
        return backoff_s(max(1, lane.failures), self._delivery, self._jitter())

    def _out_of_attempts(self, flight: _Flight, said: str) -> None:
        if flight.lane.failures >= self._delivery.max_attempts:
            self._stop(
                ExitCode.STOPPED_EARLY,
                f"Request {flight.part.request} failed {flight.lane.failures} times in a row "
                f"(delivery.max_attempts). The last time: {said.rstrip('.')}. Run again when the API answers.",
            )

    def _stop_for_refusals(self) -> None:
        self._stop(
            ExitCode.UNUSABLE,
            f"The API refuses what is sent, {self._canary.refusals} calls in a row, the last with "
            f"{self._last_refusal.rstrip('.')}. Nothing of it was applied, and no row is taken as rejected. "
            "Mend the configuration ([columns], [wire], api.call), declare such rows invalid (time.not_before, ...), "
            "raise delivery.canary_calls if so many bad rows in a row are possible, or abandon them.",
        )

    def _stop(self, code: ExitCode, reason: str, resume_after_s: float | None = None) -> None:
        """The first reason stands; what follows from it is no reason of its own."""
        if self.stopped is None:
            self.stopped = Stopped(code=code, reason=reason, resume_after_s=resume_after_s)

    def _move(self, flight: _Flight, move: Move, verdict: Verdict | None = None, **known: Any) -> Recorded:
        if verdict is not None:
            known = {"http_status": verdict.http_status, "cause": verdict.cause, "tid": verdict.tid} | known
        return Recorded(load=self._load, part=flight.part, move=move, attempt=flight.attempt, **known)

    def _land(self, flight: _Flight) -> None:
        del self._flights[flight.part]
        self._unsent -= not flight.token

    def _conclude(
        self, flight: _Flight, move: Move, commands: list[Command], verdict: Verdict | None = None, **known: Any
    ) -> None:
        """The part has its fate, for now at least; the lane goes on with what follows it."""
        commands.append(Commit([self._move(flight, move, verdict, **known)]))
        self._land(flight)
        self._free_lane(flight.lane, commands)

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
        self._requeue(flight, attempts, flight.marked, commands, not_before_s)

    def _requeue(
        self, flight: _Flight, attempts: int, marked: bool, commands: list[Command], not_before_s: float | None
    ) -> None:
        self._land(flight)
        flight.lane.waiting.appendleft(Ready(flight.lane.number, flight.part, attempts, marked))
        self._free_lane(flight.lane, commands, not_before_s)

    def _free_lane(self, lane: _Lane, commands: list[Command], not_before_s: float | None = None) -> None:
        if lane.waiting:
            if not_before_s is not None:
                heapq.heappush(self._delayed, (not_before_s, lane.number, lane))
            elif self._canary.open:
                self._free.appendleft(lane)  # go on asking about the same request, until its last row
            else:
                self._free.append(lane)
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
