"""Broken variants of the product's decisions, each a mistake that a person would make; the simulation must catch them.

python -m tests.simulate --variants         how many seeds each of them needs
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from backfill.core import events as d
from backfill.core.authorisation import Authorisation
from backfill.core.breaker import Breaker
from backfill.core.budget import Allowance, Pacer
from backfill.core.canary import Canary
from backfill.core.config import Delivery
from backfill.core.dispatch import Dispatch
from backfill.core.lifecycle import Move, Recorded, State
from backfill.core.reply import Fate, Verdict
from tests.simulation.history import History

Variant = Callable[[], AbstractContextManager[Any]]


def _hears(mistake: Callable[[Dispatch, d.Event], d.Event]) -> AbstractContextManager[Any]:
    """A dispatch that takes some events for others."""
    handle = Dispatch.handle

    def mistaken(self: Dispatch, event: d.Event, now_s: float) -> list[d.Command]:
        return handle(self, mistake(self, event), now_s)

    return patch.object(Dispatch, "handle", mistaken)


def _judges(mistake: Callable[[Dispatch, Verdict], Verdict]) -> AbstractContextManager[Any]:
    """A dispatch that takes some replies for others."""

    def mistaken(self: Dispatch, event: d.Event) -> d.Event:
        return event._replace(verdict=mistake(self, event.verdict)) if isinstance(event, d.Replied) else event

    return _hears(mistaken)


def _says(mistake: Callable[[Dispatch, Recorded], Recorded | None]) -> AbstractContextManager[Any]:
    """A dispatch that journals some moves otherwise, or not at all."""
    handle = Dispatch.handle

    def mistaken(self: Dispatch, event: d.Event, now_s: float) -> list[d.Command]:
        commands: list[d.Command] = []
        for command in handle(self, event, now_s):
            if isinstance(command, d.Commit):
                moves = [moved for move in command.moves if (moved := mistake(self, move)) is not None]
                commands += [d.Commit(moves)] if moves else []
            else:
                commands.append(command)
        return commands

    return patch.object(Dispatch, "handle", mistaken)


# What is durable before what


def intent_not_awaited() -> AbstractContextManager[Any]:
    """The request goes out while its intent is still being written."""
    connected = Dispatch._connected

    def hasty(self: Dispatch, part: Any, commands: list[d.Command]) -> None:
        connected(self, part, commands)
        if part in self._flights:
            self._gate.append(self._flights[part])

    @contextlib.contextmanager
    def both() -> Iterator[None]:
        with patch.object(Dispatch, "_connected", hasty), _hears(lambda self, event: _not_committed(event)):
            yield

    return both()


def _not_committed(event: d.Event) -> d.Event:
    return d.Tick() if isinstance(event, d.Committed) else event


def in_flight_is_planned_at_restart() -> AbstractContextManager[Any]:
    """As if a crash proved that nothing had been sent."""

    def forgetful(self: History, *, resend: bool) -> None:
        for part in self.disk.in_state(State.IN_FLIGHT):
            self.disk.entries[part].state = State.PLANNED

    return patch.object(History, "recover", forgetful)


def belief_after_the_acknowledgement() -> AbstractContextManager[Any]:
    """A crash between the two forgets that the rows before were refused, and sends them after rows that follow."""
    handle = Dispatch.handle

    def late(self: Dispatch, event: d.Event, now_s: float) -> list[d.Command]:
        commands = handle(self, event, now_s)
        beliefs = [each for each in commands if isinstance(each, d.Commit) and each.moves[0].move is Move.BELIEVED]
        return [each for each in commands if each not in beliefs] + beliefs

    return patch.object(Dispatch, "handle", late)


# Doubt


def no_reply_is_not_sent() -> AbstractContextManager[Any]:
    """As every HTTP client with automatic retries has it."""
    return _hears(lambda self, event: d.NotSent(event.part, "no_reply") if isinstance(event, d.Unanswered) else event)


def errors_are_retried() -> AbstractContextManager[Any]:
    """500 and 502 are taken for "not now"."""
    return _judges(
        lambda self, verdict: replace(verdict, fate=Fate.UNAPPLIED) if verdict.fate is Fate.UNCLEAR else verdict
    )


def any_200_acknowledges() -> AbstractContextManager[Any]:
    """The body is not looked at."""
    return _judges(
        lambda self, verdict: (
            replace(verdict, fate=Fate.ACKNOWLEDGED, each=())
            if verdict.fate is Fate.UNCLEAR and verdict.http_status == 200
            else verdict
        )
    )


def not_sent_is_doubt() -> AbstractContextManager[Any]:
    """A connection that was refused puts its request in doubt."""
    return _hears(
        lambda self, event: d.Unanswered(event.part, event.cause, None) if isinstance(event, d.NotSent) else event
    )


def resend_unmarked() -> AbstractContextManager[Any]:
    """What is sent again after a doubt carries no mark."""
    return _says(
        lambda self, move: replace(move, move=Move.DECIDED_NOT_DELIVERED) if move.move is Move.DECIDED_RESEND else move
    )


def rejected_after_doubt() -> AbstractContextManager[Any]:
    """A refusal of the second attempt is taken for a word about the first."""
    refused = Dispatch._refused

    def trusting(self: Dispatch, flight: Any, *rest: Any) -> None:
        refused(self, replace(flight, marked=False) if flight.part.interactions == 1 else flight, *rest)

    return patch.object(Dispatch, "_refused", trusting)


# Refusals


def refusals_believed_at_once() -> AbstractContextManager[Any]:
    """The refused row is rejected, whoever else was acknowledged or not."""
    refused = Dispatch._refused

    def credulous(self: Dispatch, flight: Any, verdict: Verdict, said: str, commands: list[d.Command]) -> None:
        refused(self, flight, verdict, said, commands)
        self._believe(commands)

    return patch.object(Dispatch, "_refused", credulous)


def canary_never_opens() -> AbstractContextManager[Any]:
    """Refusals are counted, and nothing follows from it."""

    def deaf(self: Canary) -> None:
        self._refusals += 1

    return patch.object(Canary, "refused", deaf)


def always_proven() -> AbstractContextManager[Any]:
    """What the job was before does not matter: refusals at the end of its first load are believed."""
    init = Canary.__init__

    def proven(self: Canary, *, calls: int, proven: bool) -> None:
        init(self, calls=calls, proven=True)

    return patch.object(Canary, "__init__", proven)


def right_half_first() -> AbstractContextManager[Any]:
    """The parts of a refused request go out in the wrong order."""
    refused = Dispatch._refused

    def mirrored(self: Dispatch, flight: Any, *rest: Any) -> None:
        before = len(flight.lane.waiting)
        refused(self, flight, *rest)
        waiting = flight.lane.waiting
        if len(waiting) == before + 2:
            waiting[0], waiting[1] = waiting[1], waiting[0]

    return patch.object(Dispatch, "_refused", mirrored)


def half_lost() -> AbstractContextManager[Any]:
    """The right half of a split never comes to its turn."""
    refused = Dispatch._refused

    def forgetful(self: Dispatch, flight: Any, *rest: Any) -> None:
        before = len(flight.lane.waiting)
        refused(self, flight, *rest)
        if len(flight.lane.waiting) == before + 2:
            del flight.lane.waiting[1]

    return patch.object(Dispatch, "_refused", forgetful)


def sorted_part_forgotten() -> AbstractContextManager[Any]:
    """Of a reply with several fates, the rows to be tried again are not."""
    handle = Dispatch._sorted

    def forgetful(self: Dispatch, flight: Any, *rest: Any) -> None:
        before = len(flight.lane.waiting)
        free_lane = self._free_lane

        def freed(lane: Any, *arguments: Any) -> None:
            while len(lane.waiting) > before:
                lane.waiting.popleft()
            free_lane(lane, *arguments)

        with patch.object(self, "_free_lane", freed):
            handle(self, flight, *rest)

    return patch.object(Dispatch, "_sorted", forgetful)


def sorted_in_two_commits() -> AbstractContextManager[Any]:
    """The split is journaled first, and the fates of its parts after it."""
    handle = Dispatch.handle

    def apart(self: Dispatch, event: d.Event, now_s: float) -> list[d.Command]:
        commands: list[d.Command] = []
        for command in handle(self, event, now_s):
            if isinstance(command, d.Commit) and command.moves[0].move is Move.SORTED:
                commands += [d.Commit([command.moves[0]]), d.Commit(command.moves[1:])]
            else:
                commands.append(command)
        return commands

    return patch.object(Dispatch, "handle", apart)


# Order, pace, waiting


def retry_at_the_tail() -> AbstractContextManager[Any]:
    """A request to be tried again is put behind the others of its lane."""
    requeue = Dispatch._requeue

    def behind(self: Dispatch, flight: Any, *rest: Any) -> None:
        free_lane = self._free_lane

        def freed(lane: Any, *arguments: Any) -> None:
            lane.waiting.rotate(-1)
            free_lane(lane, *arguments)

        with patch.object(self, "_free_lane", freed):
            requeue(self, flight, *rest)

    return patch.object(Dispatch, "_requeue", behind)


def retry_after_ignored() -> AbstractContextManager[Any]:
    """Our own backoff is thought to be enough."""
    return _judges(lambda self, verdict: replace(verdict, retry_after_s=None))


def send_gate_dropped() -> AbstractContextManager[Any]:
    """Intents are paced, and sends follow them whenever the disk is done."""
    init = Dispatch.__init__

    def ungated(self: Dispatch, **known: Any) -> None:
        init(self, **known)
        self._sends = _NoPacer(requests_per_second=1.0)

    return patch.object(Dispatch, "__init__", ungated)


class _NoPacer(Pacer):
    def take(self, now_s: float, interactions: int, share: float = 1.0) -> None:
        pass


def budget_forgotten_at_restart() -> AbstractContextManager[Any]:
    """An execution starts as if none had been before it."""
    return patch.object(History, "not_before_s", lambda self: -math.inf)


def budget_from_the_last_intent() -> AbstractContextManager[Any]:
    """A restart waits for a second after the last intent, though a slow disk may have held its send back for longer."""

    def too_early(self: History) -> float:
        intents = (at_s + 1.0 for at_s, recorded in self.disk.history if recorded.move is Move.INTENT)
        return max(intents, default=-math.inf)

    return patch.object(History, "not_before_s", too_early)


def breaker_never_opens() -> AbstractContextManager[Any]:
    """Doubt after doubt, at full speed."""

    def deaf(self: Breaker, *, probe: bool, doubtful: bool = False) -> None:
        pass

    return patch.object(Breaker, "failed", deaf)


def no_slow_start() -> AbstractContextManager[Any]:
    """The first answer is not waited for: a server that is down meets as many requests as there are connections."""
    init = Breaker.__init__

    def closed(self: Breaker, *, failures: int) -> None:
        init(self, failures=failures)
        self.open = False

    return patch.object(Breaker, "__init__", closed)


def never_gives_up() -> AbstractContextManager[Any]:
    """`give_up_after_s` and `max_attempts` are read, and nothing follows from them."""
    init = Dispatch.__init__

    def stubborn(self: Dispatch, *, delivery: Delivery, **known: Any) -> None:
        patient = delivery.model_copy(update={"give_up_after_s": 1e12, "max_attempts": 10**9})
        init(self, delivery=patient, **known)

    return patch.object(Dispatch, "__init__", stubborn)


# Limits


def limit_counts_requests() -> AbstractContextManager[Any]:
    """`--limit 10` sends ten requests."""
    within_limit = Dispatch._within_limit

    def generous(self: Dispatch, lane: Any, commands: list[d.Command]) -> Any:
        if self._left == math.inf or self._left <= 0:
            return within_limit(self, lane, commands)
        left = self._left
        self._left = 10**9
        ready = within_limit(self, lane, commands)
        self._left = left - 1
        return ready

    return patch.object(Dispatch, "_within_limit", generous)


def day_budget_without_401() -> AbstractContextManager[Any]:
    """A call that was not let in is thought to be free."""
    refused = Authorisation.refused
    take = Allowance.take
    allowances: list[Allowance] = []

    def taken(self: Allowance, now_s: float) -> None:
        take(self, now_s)
        allowances[:] = [self]

    def free(self: Authorisation, generation: int, sent_s: float) -> None:
        refused(self, generation, sent_s)
        allowances[0]._left += 1

    @contextlib.contextmanager
    def both() -> Iterator[None]:
        with patch.object(Allowance, "take", taken), patch.object(Authorisation, "refused", free):
            yield

    return both()


def window_ends_unnoticed() -> AbstractContextManager[Any]:
    """The window is looked at when the execution begins, and never again."""
    return patch.object(Allowance, "closes_at_s", math.inf)


# Tokens and signals


def refresh_for_every_401() -> AbstractContextManager[Any]:
    """Each of the requests in the air that meet the same expiry asks for a token of its own."""
    refused = Authorisation.refused
    return patch.object(
        Authorisation, "refused", lambda self, generation, sent_s: refused(self, self.generation, sent_s)
    )


def overtaken_401_stops() -> AbstractContextManager[Any]:
    """A token counts as refused at its first use although a reply that is still to come shows that it was not."""
    refused = Authorisation.refused

    def rash(self: Authorisation, generation: int, sent_s: float) -> None:
        refused(self, generation, sent_s)
        if self.suspect:
            self.generation += 1  # nobody in the air was sent with this one

    return patch.object(Authorisation, "refused", rash)


def stop_lets_the_gate_run_dry() -> AbstractContextManager[Any]:
    """After a signal, what has its intent is still sent."""
    go_on = Dispatch._go_on

    def eager(self: Dispatch, now_s: float, commands: list[d.Command]) -> None:
        while self.stopped and self._gate and self._sends.ready_at_s <= now_s:
            self._send(self._gate.popleft(), now_s, commands)
        go_on(self, now_s, commands)

    return patch.object(Dispatch, "_go_on", eager)


def connections_not_given_back() -> AbstractContextManager[Any]:
    """A request that is let go keeps its connection."""
    handle = Dispatch.handle
    return patch.object(
        Dispatch,
        "handle",
        lambda self, event, now_s: [each for each in handle(self, event, now_s) if not isinstance(each, d.Release)],
    )


VARIANTS: Sequence[Variant] = (
    intent_not_awaited,
    in_flight_is_planned_at_restart,
    belief_after_the_acknowledgement,
    no_reply_is_not_sent,
    errors_are_retried,
    any_200_acknowledges,
    not_sent_is_doubt,
    resend_unmarked,
    rejected_after_doubt,
    refusals_believed_at_once,
    canary_never_opens,
    always_proven,
    right_half_first,
    half_lost,
    sorted_part_forgotten,
    sorted_in_two_commits,
    retry_at_the_tail,
    retry_after_ignored,
    send_gate_dropped,
    budget_forgotten_at_restart,
    budget_from_the_last_intent,
    breaker_never_opens,
    no_slow_start,
    never_gives_up,
    limit_counts_requests,
    day_budget_without_401,
    window_ends_unnoticed,
    refresh_for_every_401,
    overtaken_401_stops,
    stop_lets_the_gate_run_dry,
    connections_not_given_back,
)
