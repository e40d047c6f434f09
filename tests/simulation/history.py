"""One history: executions of a job one after the other, each driving a dispatch until it is idle or the process dies.

It carries out commands as `deliver` does and decides nothing. What it watches while it goes: intents before
sends, concurrency, single flight of tokens, belief, and that everything ends.
"""

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

from backfill.core import events as d
from backfill.core.budget import Hours
from backfill.core.config import Budget, Delivery
from backfill.core.dispatch import Dispatch
from backfill.core.errors import ExitCode
from backfill.core.lifecycle import MOVES, Move, Part, Recorded, State, unfinished
from backfill.core.reply import Fate, Verdict
from tests.simulation.account import Call, check_order, check_pace, check_rows, refusals_in_a_row
from tests.simulation.disk import Disk, Violation, rows_of
from tests.simulation.scenario import Execution, Row, Scenario, draw
from tests.simulation.server import Answer, Server, Token

LONGEST_S = 200_000.0
MOST_STEPS = 100_000
"""An execution that goes on beyond these never ends."""


_OF_A_CALL = frozenset(move for (state, move) in MOVES if state is State.IN_FLIGHT or move is Move.INTENT)


class _Crash(Exception):
    pass


class History:
    """What a seed leads to. `run` raises Violation; `seen` counts what occurred; `trace` tells it, if asked for."""

    def __init__(self, scenario: Scenario, *, trace: Callable[[str], None] | None = None) -> None:
        self.scenario = scenario
        self.chance = Random(~scenario.seed)
        self.server = Server(scenario, self.chance)
        self.disk = Disk(scenario.plan)
        self.calls: list[Call] = []
        self.seen: Counter[str] = Counter()
        self.now_s = 0.0
        self._trace = trace
        self._numbers = itertools.count(1)
        self._queue: list[tuple[float, int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._execution = 0
        self._bounded_calls = 0

    def run(self) -> Counter[str]:
        """All of it. Returns what was seen."""
        try:
            for execution in self.scenario.executions:
                self._execute(execution, self.scenario.delivery)
                self._check()
                if self.chance.random() < 0.5:
                    self.server.next_phase()
            self._end_well()
        except Violation:
            raise
        except Exception as error:
            raise Violation(f"{type(error).__name__}: {error}") from error
        check_order(self.scenario.plan, self.server, self.disk)
        check_pace(self.scenario, self.calls, bounded=self._bounded_calls)
        self.seen.update({f"server: {kind}": count for kind, count in self.server.seen.items()})
        self.seen.update({f"move: {recorded.move}": 1 for _, recorded in self.disk.history})
        return self.seen

    def tell(self, said: str) -> None:
        """A line of the history."""
        if self._trace is not None:
            self._trace(f"{self.now_s:10.3f}  {said}")

    def _check(self) -> None:
        check_rows(self.scenario, self.server, self.disk)

    # Between executions

    def _end_well(self) -> None:
        """The troubles end, and whoever runs the job does as the messages say: then nothing is left unsent."""
        self.tell("--- the troubles end ---")
        self.server.calm = True
        self._bounded_calls = len(self.calls)
        patient = self.scenario.delivery.model_copy(
            update={"canary_calls": 10_000, "max_attempts": 10, "give_up_after_s": 900.0}
        )
        for _ in range(4):
            self._decide(1.0, abandon=False)
            self._execute(Execution(pause_s=20.0), patient, bounded=False)
            self._check()
            if not self.disk.in_state(State.PLANNED):
                break
        refused = any if self.scenario.delivery.on_400 == "reject" else all
        for part in self.disk.in_state(State.PLANNED):
            if not refused(row in self.scenario.plan.bad for row in rows_of(part)):
                raise Violation(f"{part} is left unsent, though all is well")
            self._record([self._abandonment(part)])
        if self.disk.in_state(State.PLANNED):
            raise Violation("something is left unsent after it was abandoned")
        calls = len(self.calls)
        self._execute(Execution(pause_s=20.0), patient, bounded=False)
        if len(self.calls) > calls:
            raise Violation("I9: a rerun after completion sent something")
        self._check()

    def _record(self, moves: list[Recorded]) -> None:
        for move in moves:
            self.tell(f"    {move.part} {move.move}")
        self.disk.write(moves, self.now_s)

    def _move(self, part: Part, move: Move, into: tuple[Part, ...] = ()) -> Recorded:
        entry = self.disk.entries.get(part)
        return Recorded(load=1, part=part, move=move, attempt=entry.attempts if entry else 0, into=into)

    def _abandonment(self, part: Part) -> Recorded:
        entry = self.disk.entries.get(part)
        return self._move(part, Move.DECIDED_DOUBT if entry and entry.marked else Move.DECIDED_ABANDON)

    def _decide(self, share: float, *, abandon: bool = True) -> None:
        """What `resolve` journals, for some of the parts that a decision can concern."""
        chance = self.chance
        for part in self.disk.in_state(State.IN_DOUBT):
            if chance.random() >= share:
                continue
            rows = set(rows_of(part))
            moves = [Move.DECIDED_DELIVERED, Move.DECIDED_RESEND]
            if not any(self.server.applied[row] for row in rows) and not rows & self._under_way():
                moves.append(Move.DECIDED_NOT_DELIVERED)
            move = chance.choice(moves)
            self.seen[f"decided: {move}"] += 1
            self._record([self._move(part, move)])
        if not abandon or chance.random() < 0.5:
            return
        for part in self.disk.in_state(State.PLANNED):
            if chance.random() >= share * 0.2:
                continue
            if part.interactions > 1 and chance.random() < 0.5:
                cut = chance.randrange(1, part.interactions)
                into = (
                    Part(part.request, part.first, cut),
                    Part(part.request, part.first + cut, part.interactions - cut),
                )
                abandoned = replace(self._abandonment(part), part=into[0])
                self._record([self._move(part, Move.CUT, into), abandoned])
            else:
                self._record([self._abandonment(part)])
            self.seen["decided: abandoned"] += 1

    def _under_way(self) -> set[Row]:
        """Rows that the network still holds, and the server may apply later."""
        return {
            row
            for _, _, execution, _, arguments in self._queue
            if execution == 0
            for argument in arguments
            if isinstance(argument, Part)
            for row in rows_of(argument)
        }

    # One execution

    def _execute(self, execution: Execution, delivery: Delivery, *, bounded: bool = True) -> None:
        self._execution += 1
        self.now_s += execution.pause_s
        if execution.decides:
            self._decide(execution.decides)
        self._run_the_network()
        self.tell(f"=== execution {self._execution}: {execution}")
        self.recover(resend=delivery.in_doubt == "resend" and execution.resumes_lost)
        hours = self._hours() if bounded else Hours()
        process = Process(self, execution, delivery, hours, bounded=bounded)
        try:
            process.run()
        except _Crash:
            process.die()

    def recover(self, *, resend: bool) -> None:
        """As the journal begins an execution: what a dead one left in flight is in doubt."""
        lost = self.disk.in_state(State.IN_FLIGHT)
        if len(lost) > self.scenario.budget.concurrency:
            raise Violation(f"I6: a crash left {len(lost)} requests in doubt")
        self.seen["lost in a crash"] += len(lost)
        moves = [self._move(part, Move.LOST) for part in lost]
        if resend:
            moves += [self._move(part, Move.DECIDED_RESEND) for part in lost]
        self._record(moves)

    def _hours(self) -> Hours:
        scenario = self.scenario
        closes_at_s = opens_at_s = math.inf
        if scenario.window is not None:
            opens, closes = scenario.window
            day, at = divmod(self.now_s / scenario.day_s, 1)
            if at >= closes:
                day += 1
            if not opens <= at < closes:
                self.now_s = (day + opens) * scenario.day_s + 1e-6
            closes_at_s = (day + closes) * scenario.day_s - 1e-6
            opens_at_s = (day + 1 + opens) * scenario.day_s
        day = self.now_s // scenario.day_s
        # A call was made between its intent and its outcome: it counts for the days of both.
        made = {
            (recorded.part, recorded.attempt)
            for at_s, recorded in self.disk.history
            if at_s // scenario.day_s == day and recorded.move in _OF_A_CALL
        }
        return Hours(
            closes_at_s=closes_at_s,
            opens_at_s=opens_at_s,
            calls_today=None if scenario.calls_per_day is None else max(0, scenario.calls_per_day - len(made)),
            calls_per_day=scenario.calls_per_day or 0,
            day_ends_at_s=(day + 1) * scenario.day_s,
            day_s=scenario.day_s,
        )

    def not_before_s(self) -> float:
        """When the first request may start: a second after the last durable move. A send comes after its intent, and
        where no outcome of it is durable it has just been recorded as lost."""
        return self.disk.history[-1][0] + 1.0 if self.disk.history else -math.inf

    # The network, which outlives a process

    def later(self, at_s: float, execution: int, do: Callable[..., None], *arguments: Any) -> None:
        """Have it done at this moment; of an execution (0: of the network) that is still alive by then."""
        heapq.heappush(self._queue, (at_s, next(self._numbers), execution, do, arguments))

    def _run_the_network(self) -> None:
        """What happens between executions."""
        while self._queue and self._queue[0][0] <= self.now_s:
            at_s, _, execution, do, arguments = heapq.heappop(self._queue)
            if execution == 0:
                now_s, self.now_s = self.now_s, at_s
                do(*arguments)
                self.now_s = now_s

    def arrive(self, part: Part, token: Token, process: "Process", call: int) -> None:
        """A request reaches the server."""
        answer: Answer = self.server.call(part, token, self.now_s)
        if answer.applies:
            self.server.apply(answer.applies, self.now_s)
        if answer.applies_later:
            self.seen["applied after the reply was given up"] += 1
            self.later(self.now_s + answer.after_s + self.chance.expovariate(1 / 5.0), 0, self.apply_late, part)
        self.tell(f"    server: {_said(answer)}, applies {len(answer.applies)} of {part}")
        event: d.Event
        if answer.stale:
            event = d.NotSent(part, "closed_before_sending")
        elif answer.verdict is None:
            event = d.Unanswered(part, "closed", None)
        else:
            event = d.Replied(part, answer.verdict)
        self.later(self.now_s + answer.after_s, process.number, process.answered, call, event)

    def apply_late(self, part: Part) -> None:
        """A request without a reply comes to be applied after all."""
        self.tell(f"    server: applies {part} late")
        self.server.apply(list(rows_of(part)), self.now_s)

    def drop(self, execution: int) -> None:
        """The process is dead: what it had not sent off yet is lost, or is not."""
        kept = [entry for entry in self._queue if entry[2] == 0]
        lost = [entry for entry in kept if entry[3] == self.arrive and self.chance.random() < 0.5]
        self._queue = [entry for entry in kept if entry not in lost]
        heapq.heapify(self._queue)


def _said(answer: Answer) -> str:
    if answer.verdict is None:
        return "stale connection" if answer.stale else "no whole reply"
    verdict = answer.verdict
    each = ",".join(str(each.http_status) for each in verdict.each)
    return f"{verdict.fate} ({verdict.http_status}{': ' + each if each else ''})"


class Process:
    """One execution while it lives: the dispatch, and what `deliver` would do for it."""

    def __init__(
        self, history: History, execution: Execution, delivery: Delivery, hours: Hours, *, bounded: bool
    ) -> None:
        self._world = history
        self._execution = execution
        self._delivery = delivery
        self._hours = hours
        scenario = history.scenario
        self._budget: Budget = scenario.budget
        self.number = history._execution
        self._chance = history.chance
        self._limit = execution.limit if bounded else None
        refusals = refusals_in_a_row(history.disk)
        self._trusted = refusals is not None and refusals < delivery.canary_calls
        self._most_refusals = self._bound_refusals()
        self.dispatch = Dispatch(
            load=1,
            budget=self._budget,
            delivery=delivery,
            jitter=self._chance.random,
            not_before_s=max(history.now_s, history.not_before_s()),
            proven=self._trusted,
            hours=hours,
            limit=self._limit,
        )
        self._buckets = [list(pieces) for pieces in scenario.plan.buckets]
        self._rest: dict[int, list[list[int]]] = {}
        self._steps = 0
        self._frozen_until_s = -math.inf
        self._began_s = history.now_s
        # The journal's writer
        self._handed: list[tuple[float, list[Recorded]]] = []
        self._writing: list[tuple[float, list[Recorded]]] = []
        # Connections and calls
        self._held: set[Part] = set()
        self._connecting: dict[Part, int] = {}
        self._air: dict[Part, int] = {}
        self._tries: Counter[Part] = Counter()
        self._sent: set[Row] = set()
        self._token: Token | None = None
        self._asking = False
        self._token_spent = True  # there is a reason to ask for one
        # What came back
        self._refusals = 0
        self._refused = False  # something stands as refused, and is not believed
        self._doubts = 0
        self._failures = 0
        self._failing_since_s = math.inf
        self._useful = False  # some answer was, in this execution
        self._quiet_until_s = -math.inf
        self._acknowledged_now = False
        self._blamed: set[ExitCode] = set()

    # The loop

    def run(self) -> None:
        """Until nothing is left to do; raises _Crash where the scenario says so."""
        world, dispatch = self._world, self.dispatch
        self._later(self._execution.signal_at_s, self._signalled)
        for at_s, lasts_s in self._execution.freezes:
            self._later(at_s, self._freeze, lasts_s)
        self.handle(d.Tick())
        idle_ticks = 0
        while not (dispatch.idle and not self._handed and not self._writing):
            queue = world._queue
            due_s = queue[0][0] if queue else math.inf
            wake_s = dispatch.wake_at_s
            if wake_s < math.inf:
                late_s = self._chance.random() * 0.0015
                wake_s = max(wake_s, world.now_s, self._frozen_until_s) + late_s
            if due_s == wake_s == math.inf or not (queue or wake_s < math.inf):
                raise Violation("nothing is under way, and nothing will ever happen")
            if wake_s < due_s:
                world.now_s = max(world.now_s, wake_s)
                idle_ticks = idle_ticks + 1 if not self.handle(d.Tick()) else 0
                if idle_ticks > 20:
                    raise Violation("the dispatch asks to be woken at once, for ever")
                continue
            at_s, number, execution, do, arguments = heapq.heappop(queue)
            if execution not in (0, self.number):
                continue
            if execution and at_s < self._frozen_until_s:
                heapq.heappush(queue, (self._frozen_until_s, number, execution, do, arguments))
                continue
            world.now_s = max(world.now_s, at_s)
            do(*arguments)
            idle_ticks = 0
            if world.now_s - self._began_s > LONGEST_S:
                raise Violation(f"the execution goes on for more than {LONGEST_S:g} s")
        self._ended()

    def _ended(self) -> None:
        world, stopped = self._world, self.dispatch.stopped
        if self._held:
            raise Violation(f"connections are still held at the end: {sorted(self._held)}")
        if world.disk.in_state(State.IN_FLIGHT):
            raise Violation("something is still in flight at the end of an execution")
        if self._refused and not self._trusted and stopped is not None and "--limit" in stopped.reason:
            raise Violation("the limit was reached with refusals alone, and nobody is told")
        if stopped is None:
            left = world.disk.in_state(State.PLANNED)
            if left:
                raise Violation(f"the execution ended as complete, and {left} are not sent")
            world.seen["complete"] += 1
        else:
            world.tell(f"--- stopped ({int(stopped.code)}): {stopped.reason}")
            world.seen[f"stop: {_kind(stopped.reason)}"] += 1
            if stopped.code in (ExitCode.CREDENTIALS_REFUSED, ExitCode.UNUSABLE) and stopped.code not in self._blamed:
                raise Violation(f"stopped with {int(stopped.code)} for no such reason: {stopped.reason}")

    def die(self) -> None:
        """A crash: of what was being written, a first part is durable."""
        world = self._world
        survives = self._chance.randint(0, len(self._writing))
        world.tell(f"*** crash; {survives} of {len(self._writing)} + {len(self._handed)} commits are durable")
        for stamp_s, moves in self._writing[:survives]:
            world.disk.write(moves, stamp_s)
        world.seen["crash"] += 1
        world.seen["commits lost in a crash"] += len(self._writing) - survives + len(self._handed)
        world.drop(self.number)

    def _later(self, after_s: float, do: Callable[..., None], *arguments: Any) -> None:
        if after_s < math.inf:
            self._world.later(self._world.now_s + after_s, self.number, do, *arguments)

    def _step(self) -> None:
        self._steps += 1
        if self._steps >= self._execution.crash_at_step:
            raise _Crash
        if self._steps > MOST_STEPS:
            raise Violation(f"the execution takes more than {MOST_STEPS} steps")

    def handle(self, event: d.Event) -> list[d.Command]:
        """Tell the dispatch, and carry out what it says."""
        self._step()
        if self._world._trace and not isinstance(event, d.Tick):
            self._world.tell(f"{_event(event)}")
        self._acknowledged_now = isinstance(event, d.Replied) and _acknowledges(event.verdict)
        commands = self.dispatch.handle(event, self._world.now_s)
        if self.dispatch.in_the_air > self._budget.concurrency:
            raise Violation(f"{self.dispatch.in_the_air} requests are under way at once")
        for command in commands:
            self._step()
            self._carry_out(command)
        return commands

    def _carry_out(self, command: d.Command) -> None:
        match command:
            case d.Connect(part):
                self._connect(part)
            case d.Commit(moves):
                self._commit(list(moves))
            case d.Send(part, attempt):
                self._send(part, attempt)
            case d.Release(part):
                self._world.tell(f"  release {part}")
                self._connecting.pop(part, None)
                if part not in self._held:
                    raise Violation(f"the connection of {part} is given back, and was not held")
                self._held.discard(part)
            case d.Fetch(lane):
                self._later(self._chance.expovariate(1 / 0.01), self._fetch, lane)
            case d.RefreshToken():
                self._refresh()

    # Work

    def _fetch(self, lane: int | None) -> None:
        disk, plan = self._world.disk, self._world.scenario.plan
        if lane is not None:
            pieces = self._rest[lane]
        elif self._buckets:
            pieces = self._buckets.pop(0)
            if len(pieces) > 1:
                self._rest[plan.requests[pieces[0][0]].lane] = pieces
        else:
            self.handle(d.Fetched(None, [], frozenset(), exhausted=True))
            return
        ready = []
        for request in pieces.pop(0):
            planned = plan.requests[request]
            whole = Part(request, 0, len(planned.customers))
            ready += [
                d.Ready(planned.lane, part, attempts, marked)
                for part, attempts, marked in unfinished(whole, disk.standings(request))
            ]
        more: frozenset[int] = frozenset()
        if pieces:
            more = frozenset({lane if lane is not None else plan.requests[pieces[0][0]].lane})
        self.handle(d.Fetched(lane, ready, more, exhausted=False))

    # Connections and calls

    def _connect(self, part: Part) -> None:
        if part in self._held:
            raise Violation(f"{part} is connected twice")
        self._held.add(part)
        self._world.tell(f"  connect {part}")
        if self._world.now_s < self._quiet_until_s:
            raise Violation(f"{part} starts {self._quiet_until_s - self._world.now_s:.3f} s before Retry-After is over")
        if self._world.now_s - self._failing_since_s >= self._delivery.give_up_after_s:
            raise Violation(f"{part} starts after give_up_after_s")
        if len(self._held) > 1 and not self._useful:
            raise Violation(f"{part} starts beside another before the first answer")
        if len(self._held) > 1 and self._failures >= self._delivery.breaker_failures:
            raise Violation(f"{part} starts beside another after {self._failures} failures in a row")
        if len(self._held) > 1 and (not self._trusted or self._refusals >= self._delivery.canary_calls):
            raise Violation(f"{part} starts beside another after {self._refusals} refusals in a row")
        if self._refusals > self._most_refusals:
            raise Violation(f"{part} starts after {self._refusals} refusals in a row")
        number = next(self._world._numbers)
        self._connecting[part] = number
        self._later(self._chance.choice([0.0, 0.0, self._chance.expovariate(10)]), self._connected, part, number)

    def _connected(self, part: Part, number: int) -> None:
        if self._connecting.get(part) != number:
            return
        del self._connecting[part]
        if self._world.server.reachable():
            self.handle(d.Connected(part))
        else:
            self._world.seen["not connected"] += 1
            self._held.discard(part)
            self._failed()
            self.handle(d.NotSent(part, "refused"))

    def _send(self, part: Part, attempt: int) -> None:
        world = self._world
        world.tell(f"  send {part}, attempt {attempt}")
        entry = world.disk.entries.get(part)
        if entry is None or entry.state is not State.IN_FLIGHT or entry.attempts != attempt:
            raise Violation(f"I7: {part}, attempt {attempt}, is sent without a durable intent")
        if self.dispatch.stopped is not None:
            raise Violation(f"{part} is sent after the stop")
        if part not in self._held or part in self._connecting or part in self._air:
            raise Violation(f"{part} is sent without a connection of its own")
        if len(self._air) >= self._budget.concurrency:
            raise Violation(f"{len(self._air) + 1} requests are in the air")
        if self._token is None:
            raise Violation(f"{part} is sent without a token")
        self._sent.update(rows_of(part))
        if self._limit is not None and len(self._sent) > self._limit:
            raise Violation(f"{len(self._sent)} interactions were sent, not {self._limit}")
        self._tries[part] += 1
        if self._tries[part] > self._delivery.max_attempts + 2:  # one stale connection and one expiry are free
            raise Violation(f"{part} is tried {self._tries[part]} times")
        number = next(world._numbers)
        self._air[part] = number
        world.calls.append((world.now_s, self.number, part))
        world.later(world.now_s + self._chance.expovariate(1 / 0.005), 0, world.arrive, part, self._token, self, number)

    def answered(self, number: int, event: d.NotSent | d.Unanswered | d.Replied) -> None:
        """What the client sees of a call, if it still waits for it."""
        part = event.part
        if self._air.get(part) != number:
            return
        del self._air[part]
        self._held.discard(part)
        self._note(event)
        self.handle(event)

    def _bound_refusals(self) -> int:
        """How many refusals in a row may be met before the next call, or be believed at the end of a load."""
        calls = self._delivery.canary_calls
        if not self._trusted:
            return calls - 1
        scenario = self._world.scenario
        tenant = scenario.tenant
        by_name = tenant.names_rows and tenant.largest == 100
        mixed = any(manner == "mixed" for phase in scenario.phases for manner, _ in phase.manners)
        split = any(entry.state is State.SPLIT for entry in self._world.disk.entries.values())
        if by_name and not mixed and not split:
            request = 1
        else:
            request = 2 * max(len(planned.customers) for planned in scenario.plan.requests.values()) - 1
        return calls + self._budget.concurrency + 2 * request

    def _failed(self) -> None:
        self._failures += 1
        self._failing_since_s = min(self._failing_since_s, self._world.now_s)

    def _note(self, event: d.NotSent | d.Unanswered | d.Replied) -> None:
        if isinstance(event, d.NotSent):
            return
        fates = _fates(event.verdict) if isinstance(event, d.Replied) else {Fate.UNCLEAR}
        if Fate.ACKNOWLEDGED in fates:
            self._trusted = True
            self._refusals = 0
            self._most_refusals = self._bound_refusals()
        elif fates & {Fate.REFUSED, Fate.TOO_LARGE}:
            self._refusals += 1
        if fates & {Fate.ACKNOWLEDGED, Fate.REFUSED, Fate.TOO_LARGE}:
            self._useful = True
            self._doubts = self._failures = 0
            self._failing_since_s = math.inf
        elif fates & {Fate.UNCLEAR, Fate.UNAPPLIED}:
            self._failed()
        if self._failures and Fate.UNCLEAR in fates:
            self._doubts += 1
            most = self._delivery.breaker_failures
            if self._useful:
                most += most + self._budget.concurrency
            if self._doubts > most:
                raise Violation(f"{self._doubts} calls in a row were left in doubt")
        if isinstance(event, d.Replied) and event.verdict.retry_after_s is not None:
            self._quiet_until_s = max(self._quiet_until_s, self._world.now_s + event.verdict.retry_after_s)
        if Fate.UNAUTHORISED in fates:
            self._token_spent = True
            if self._token is not None and self._token.dead and not self._token.accepted:
                self._blamed.add(ExitCode.CREDENTIALS_REFUSED)
        if Fate.FORBIDDEN in fates:
            self._blamed.add(ExitCode.CREDENTIALS_REFUSED)
        if fates & {Fate.MISDIRECTED, Fate.REDIRECTED} or self._refusals:
            self._blamed.add(ExitCode.UNUSABLE)

    def _refresh(self) -> None:
        if self._asking:
            raise Violation("two tokens are asked for at once")
        if not self._token_spent:
            raise Violation("a token is asked for, and the last one was not refused")
        self._asking = True
        self._world.tell("  refresh the token")
        self._later(self._chance.choice([0.01, 0.01, 0.5, 8.0]), self._token_answered)

    def _token_answered(self) -> None:
        self._asking = False
        given = self._world.server.token(self._world.now_s)
        if isinstance(given, Token):
            self._token = given
            self._token_spent = False
            self._world.seen["token"] += 1
            self.handle(d.TokenGranted())
        elif given == "fails":
            self._world.seen["token failed"] += 1
            self._failing_since_s = min(self._failing_since_s, self._world.now_s)
            self.handle(d.TokenFailed("down"))
        else:
            self._blamed.add(ExitCode.CREDENTIALS_REFUSED)
            self.handle(d.TokenRefused(ExitCode.CREDENTIALS_REFUSED, "no"))

    # The disk

    def _commit(self, moves: list[Recorded]) -> None:
        for move in moves:
            self._world.tell(f"  commit {move.part} {move.move}{' into ' if move.into else ''}{_parts(move.into)}")
        self._watch(moves)
        if not self._handed and not self._writing:
            self._later(0.0, self._write)
        self._handed.append((self._world.now_s, moves))

    def _watch(self, moves: list[Recorded]) -> None:
        kinds = {move.move for move in moves}
        self._refused |= any(move.move is Move.UNAPPLIED and move.cause == "refused" for move in moves)
        if Move.REFUSED in kinds and not self._acknowledged_now:
            raise Violation("a refusal is believed without an acknowledgement in the same reply")
        if Move.BELIEVED in kinds and not self._acknowledged_now:
            if not self._trusted or self._refusals > self._most_refusals:
                raise Violation(f"{self._refusals} refusals in a row are believed without an acknowledgement")
            if self._held:
                raise Violation("refusals are believed before the end of the load")

    def _write(self) -> None:
        self._writing, self._handed = self._handed, []
        mean_s = self._world.scenario.commit_s
        self._later(self._chance.expovariate(1 / mean_s) if mean_s else 0.0, self._durable)

    def _durable(self) -> None:
        written, self._writing = self._writing, []
        parts: list[Part] = []
        for stamp_s, moves in written:
            self._world.disk.write(moves, stamp_s)
            parts += [move.part for move in moves if move.move is Move.INTENT]
        if self._handed:
            self._write()
        if parts:
            self.handle(d.Committed(parts))

    # Signals and time

    def _signalled(self) -> None:
        self._world.seen["signal"] += 1
        self.handle(d.StopRequested(ExitCode.STOPPED_EARLY, "Stopped by a signal."))
        self._later(self._delivery.shutdown_grace_s, self._give_up_waiting)

    def _give_up_waiting(self) -> None:
        for part in sorted(self._air):
            self._world.seen["reply not awaited"] += 1
            self.answered(self._air[part], d.Unanswered(part, "stopped", None))

    def _freeze(self, lasts_s: float) -> None:
        self._world.seen["process stood still"] += 1
        self._world.tell(f"--- the process stands still for {lasts_s:g} s")
        self._frozen_until_s = self._world.now_s + lasts_s


def _fates(verdict: Verdict) -> set[Fate]:
    return {each.fate for each in verdict.each} or {verdict.fate}


def _acknowledges(verdict: Verdict) -> bool:
    return Fate.ACKNOWLEDGED in _fates(verdict)


def _kind(reason: str) -> str:
    """The stop's reason without its figures."""
    return " ".join(word for word in reason.split() if not any(letter.isdigit() for letter in word))[:60]


def _event(event: d.Event) -> str:
    match event:
        case d.Fetched(lane, ready, more, exhausted):
            parts = ", ".join(f"{each.lane}:{each.part}{'!' if each.marked else ''}" for each in ready)
            return f"fetched ({lane}): {parts or 'nothing'}{', more follows' if more else ''}{' (last)' * exhausted}"
        case d.Replied(part, verdict):
            return f"reply to {part}: {verdict.fate} {verdict.http_status}"
        case d.Committed(parts):
            return f"durable: {_parts(parts)}"
    return f"{type(event).__name__} {' '.join(str(value) for value in event)}"


def _parts(parts: Any) -> str:
    return ", ".join(str(part) for part in parts)


def play(seed: int, trace: Callable[[str], None] | None = None) -> Counter[str]:
    """The history of a seed. Raises Violation."""
    return History(draw(seed), trace=trace).run()
