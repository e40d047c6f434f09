"""The decisions of delivery, in virtual time."""

import itertools
from collections.abc import Callable

import pytest

from backfill.core import dispatch as d
from backfill.core.config import Budget, Delivery
from backfill.core.errors import ExitCode
from backfill.core.lifecycle import Move, Part, State
from tests.core.test_budget import most_in_a_second
from tests.core.world import Answer, World, ok, silence, status


def in_turn(*answers: Callable[[Part], Answer]) -> Callable[[Part], Answer]:
    """The first call meets the first answer, and so on; the last one stays."""
    left = list(answers)
    return lambda part: (left.pop(0) if len(left) > 1 else left[0])(part)


def bad_positions(*bad: int) -> Callable[[Part], Answer]:
    """A server that refuses whatever holds one of these positions."""
    return lambda part: (
        status(400)(part)
        if any(part.first <= position < part.first + part.interactions for position in bad)
        else ok(part)
    )


def test_everything_is_delivered_once() -> None:
    """With a server that always acknowledges, each request is one call."""
    world = World({lane: [100] * 5 for lane in range(40)})
    dispatch = world.run()
    assert dispatch.stopped is None
    assert len(world.calls) == dispatch.sent == 200
    assert set(world.states.values()) == {State.DELIVERED}
    assert set(world.applied.values()) == {1}


def test_a_lane_has_one_request_in_the_air() -> None:
    """Requests of a lane arrive in their order, whatever the others do."""
    world = World({1: [10] * 20, 2: [10] * 20})
    world.run()
    for lane in (1, 2):
        requests = [part.request for _, part, _ in world.calls if world.lane_of[part.request] == lane]
        assert requests == sorted(requests)


def test_concurrency_is_never_exceeded() -> None:
    """No more requests are in the air than the tenant allows."""
    in_the_air = 0
    most = 0

    def server(part: Part) -> Answer:
        nonlocal in_the_air, most
        in_the_air += 1
        most = max(most, in_the_air)

        def came_back(part: Part) -> d.Event:
            return status(200)(part).event(part)

        return Answer(True, came_back, 0.5)

    class Counting(World):
        def _handle(self, event: d.Event) -> None:
            nonlocal in_the_air
            in_the_air -= isinstance(event, d.Replied)
            super()._handle(event)

    Counting({lane: [1] * 3 for lane in range(30)}, server=server, budget=Budget(concurrency=7)).run()
    assert most == 7


@pytest.mark.parametrize("commit_s", [0.0, 0.004, 0.3])
def test_sends_keep_the_budget_whatever_the_disk_does(commit_s: float) -> None:
    """I8: a slow commit cannot bunch starts."""
    world = World(
        {lane: [100] * 10 for lane in range(40)},
        budget=Budget(requests_per_second=50, concurrency=32),
        commit_s=commit_s,
    )
    world.run()
    starts = [at_s for at_s, _, _ in world.calls]
    assert len(starts) == 400
    assert most_in_a_second(starts) <= 50


def test_a_process_that_was_stopped_does_not_bunch_its_starts() -> None:
    """Time that jumps (SIGSTOP, a slow machine) is lost, not caught up."""

    class Jumping(World):
        def _handle(self, event: d.Event) -> None:
            if len(self.calls) == 20 and self.now_s < 100:
                self.now_s += 100
            super()._handle(event)

    world = Jumping({lane: [1] * 10 for lane in range(20)}, budget=Budget(requests_per_second=20))
    world.run()
    assert len(world.calls) == 200
    assert most_in_a_second([at_s for at_s, _, _ in world.calls]) <= 20


def test_the_budget_is_used() -> None:
    """At 50 ms a reply, 16 connections use all of 200 requests/s."""
    world = World({lane: [1] * 100 for lane in range(32)}, budget=Budget(requests_per_second=200))
    world.run()
    assert len(world.calls) / world.now_s >= 0.98 * 200


def test_a_lone_bad_row_among_100_costs_15_calls_at_most() -> None:
    """Bisection finds it, rejects it, and delivers the other 99 in order."""
    for bad in range(100):
        world = World({1: [100]}, server=bad_positions(bad))
        world.run()
        assert len(world.calls) <= 15
        assert world.interactions(State.REJECTED) == {(1, bad)}
        assert world.interactions(State.DELIVERED) == {(1, position) for position in range(100)} - {(1, bad)}
        assert world.order == sorted(world.order)


def test_a_hopeless_request_costs_199_calls() -> None:
    """Every row of it is asked for alone at last."""
    world = World({1: [100]}, server=status(400))
    world.run()
    assert len(world.calls) == 199
    assert len(world.interactions(State.REJECTED)) == 100


def test_a_refused_request_is_rejected_whole_where_declared() -> None:
    """`on_400 = "reject"` costs one call."""
    world = World({1: [100, 100]}, server=in_turn(status(400), ok), delivery=Delivery(on_400="reject"))
    world.run()
    assert world.states == {Part(1, 0, 100): State.REJECTED, Part(2, 0, 100): State.DELIVERED}


def test_a_request_that_is_too_large_is_split_even_where_400_rejects() -> None:
    """413 speaks of the size, not of the rows."""
    world = World(
        {1: [100]},
        server=lambda part: status(413)(part) if part.interactions > 30 else ok(part),
        delivery=Delivery(on_400="reject"),
    )
    world.run()
    assert len(world.interactions(State.DELIVERED)) == 100


@pytest.mark.parametrize("applies", [True, False])
def test_a_request_without_a_reply_is_held_in_doubt(applies: bool) -> None:
    """It is never sent again by itself, and its lane goes on."""
    world = World({1: [10, 10]}, server=in_turn(silence(applies=applies), ok))
    dispatch = world.run()
    assert dispatch.stopped is None
    assert world.states == {Part(1, 0, 10): State.IN_DOUBT, Part(2, 0, 10): State.DELIVERED}
    assert max(world.applied.values()) == 1


def test_a_500_leaves_doubt() -> None:
    """An internal error says nothing about what was applied before it."""
    world = World({1: [10]}, server=status(500, applies=True))
    world.run()
    assert world.states == {Part(1, 0, 10): State.IN_DOUBT}
    assert world.moves[-1].cause == "unclear"


def test_a_429_is_sent_again_after_the_wait_that_it_asks_for() -> None:
    """Retry-After holds back all lanes: it speaks of the tenant."""
    world = World({1: [10], 2: [10]}, server=in_turn(status(429, retry_after_s=7), ok))
    world.run()
    assert set(world.states.values()) == {State.DELIVERED}
    assert all(at_s >= 7 for at_s, _, _ in world.calls[2:])
    assert [attempt for _, part, attempt in world.calls if part == world.calls[0][1]] == [1, 2]


def test_a_retry_after_beyond_our_patience_stops_the_job() -> None:
    """The scheduler is told when to come again."""
    dispatch = World({1: [10]}, server=status(429, retry_after_s=3600)).run()
    assert dispatch.stopped is not None
    assert dispatch.stopped.code is ExitCode.STOPPED_EARLY
    assert dispatch.stopped.resume_after_s == 3600


def test_a_request_out_of_attempts_stops_the_job() -> None:
    """It stays planned: nothing is lost, and nothing is skipped."""
    world = World({1: [10]}, server=status(429), delivery=Delivery(max_attempts=4))
    dispatch = world.run()
    assert dispatch.stopped is not None
    assert dispatch.stopped.code is ExitCode.STOPPED_EARLY
    assert len(world.calls) == 4
    assert world.states == {Part(1, 0, 10): State.PLANNED}


def test_a_server_that_cannot_be_reached_leaves_no_journal_entry() -> None:
    """No byte left, so nothing is in doubt and nothing is journaled; the job stops in the end."""
    world = World({1: [10]}, connect=lambda part: d.NotSent(part, "refused"), delivery=Delivery(max_attempts=5))
    dispatch = world.run()
    assert dispatch.stopped is not None
    assert dispatch.stopped.code is ExitCode.STOPPED_EARLY
    assert (world.moves, world.calls) == ([], [])


def test_nothing_acknowledged_for_long_stops_the_job() -> None:
    """`give_up_after_s` counts from the first failure after the last acknowledgement."""
    world = World(
        {1: [10]}, server=status(429), delivery=Delivery(max_attempts=10_000, give_up_after_s=300), jitter=lambda: 0.9
    )
    dispatch = world.run()
    assert dispatch.stopped is not None
    assert 300 <= world.now_s < 301


def test_a_stale_connection_is_replaced_at_once() -> None:
    """A kept-alive connection that the server closed is no failure of the server."""
    tries = itertools.count()

    def connect(part: Part) -> d.Event:
        return d.Connected(part) if next(tries) else d.NotSent(part, "closed_before_sending")

    world = World({1: [10]}, connect=connect)
    world.run()
    assert world.states == {Part(1, 0, 10): State.DELIVERED}
    assert world.now_s < 0.2


@pytest.mark.parametrize(("code", "exit_code"), [(403, ExitCode.CREDENTIALS_REFUSED), (404, ExitCode.UNUSABLE)])
def test_a_reply_that_blames_the_configuration_stops_the_job(code: int, exit_code: ExitCode) -> None:
    """Nothing was applied, so the request stays planned."""
    world = World({lane: [10] * 9 for lane in range(3)}, server=status(code))
    dispatch = world.run()
    assert dispatch.stopped is not None
    assert dispatch.stopped.code is exit_code
    assert set(world.states.values()) == {State.PLANNED}
    assert len(world.calls) <= 16


def test_a_redirect_stops_the_job_and_leaves_doubt() -> None:
    """302 does not say whether the request was taken."""
    world = World({1: [10, 10]}, server=status(302))
    dispatch = world.run()
    assert dispatch.stopped is not None
    assert dispatch.stopped.code is ExitCode.UNUSABLE
    assert world.states == {Part(1, 0, 10): State.IN_DOUBT}


def dying_token(uses: int, world: Callable[[], World]) -> Callable[[Part], Answer]:
    """A server whose tokens die after so many uses."""
    counts = itertools.count(1)
    used = {0: 0}

    def server(part: Part) -> Answer:
        generation = world().token_requests
        used[generation] = used.get(generation, 0) + 1
        next(counts)
        return ok(part) if used[generation] <= uses else status(401)(part)

    return server


def test_an_expiry_costs_one_token_request() -> None:
    """Single flight: with 16 requests in the air one refresh serves all."""
    world = World({lane: [1] * 20 for lane in range(16)}, budget=Budget(requests_per_second=10_000))
    world.server = dying_token(30, lambda: world)
    dispatch = world.run()
    assert dispatch.stopped is None
    assert set(world.states.values()) == {State.DELIVERED}
    assert set(world.applied.values()) == {1}
    assert world.token_requests == -(-320 // 30)


def test_a_token_refused_at_its_first_use_stops_the_job() -> None:
    """Asking for one after the other would change nothing."""
    world = World({1: [10]}, server=status(401))
    dispatch = world.run()
    assert dispatch.stopped is not None
    assert dispatch.stopped.code is ExitCode.CREDENTIALS_REFUSED
    assert len(world.calls) == 1
    assert world.states == {Part(1, 0, 10): State.PLANNED}


def test_refused_credentials_stop_the_job_before_any_call() -> None:
    """The token endpoint's word is final."""
    world = World({1: [10]}, tokens=lambda number: d.TokenRefused(ExitCode.CREDENTIALS_REFUSED, "no"))
    dispatch = world.run()
    assert dispatch.stopped is not None
    assert dispatch.stopped.code is ExitCode.CREDENTIALS_REFUSED
    assert world.calls == []


def test_a_token_endpoint_that_is_down_is_asked_again() -> None:
    """With backoff; nothing is sent meanwhile."""
    world = World({1: [10]}, tokens=lambda number: d.TokenGranted() if number > 3 else d.TokenFailed("down"))
    world.run()
    assert world.token_requests == 4
    assert world.states == {Part(1, 0, 10): State.DELIVERED}


def test_a_stop_starts_nothing_new_and_waits_for_what_is_in_flight() -> None:
    """What had an intent but no byte out is planned again; what was sent gets its reply."""
    world = World(
        {lane: [1] * 50 for lane in range(16)},
        server=status(200, applies=True, after_s=0.5),
        budget=Budget(requests_per_second=100),
    )
    dispatch = world.run(stop_at_s=1.0)
    assert dispatch.stopped is not None
    assert max(at_s for at_s, _, _ in world.calls) <= 1.0
    assert State.IN_FLIGHT not in world.states.values()
    assert world.interactions(State.DELIVERED) == set(world.applied)


def test_a_stop_during_a_slow_commit_sends_nothing() -> None:
    """An intent that becomes durable after the signal is taken back."""
    world = World({1: [10]}, commit_s=5.0)
    world.run(stop_at_s=1.0)
    assert world.calls == []
    assert world.states == {Part(1, 0, 10): State.PLANNED}
    assert [move.move for move in world.moves] == [Move.INTENT, Move.UNAPPLIED]


def test_more_of_a_lane_is_fetched_when_it_runs_dry() -> None:
    """A hot customer's lane comes in several pieces; its order holds across them."""

    class InPieces(World):
        def _carry_out(self, command: d.Command) -> None:
            if isinstance(command, d.Fetch):
                piece = 0 if command.lane is None else len({part.request for _, part, _ in self.calls})
                ready = [d.Ready(5, Part(piece + 1, 0, 3), 0)]
                more = frozenset({5} if piece < 3 else ())
                self._later(self.now_s, d.Fetched(command.lane, ready, more, exhausted=command.lane is None))
            else:
                super()._carry_out(command)

    world = InPieces({})
    world.run()
    assert [part.request for _, part, _ in world.calls] == [1, 2, 3, 4]
