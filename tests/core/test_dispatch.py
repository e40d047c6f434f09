"""The decisions of delivery, in virtual time."""

import contextlib
import itertools
import random
from collections.abc import Callable

import pytest

from backfill.core import events as d
from backfill.core.budget import Hours
from backfill.core.config import Budget, Delivery
from backfill.core.errors import ExitCode
from backfill.core.lifecycle import Move, Part, State
from backfill.core.reply import Fate, Verdict
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


@pytest.mark.parametrize("delivery", [Delivery(max_attempts=2), Delivery(max_attempts=9, give_up_after_s=5)])
def test_the_last_reason_for_no_connection_is_told(delivery: Delivery) -> None:
    """Out of attempts or out of time: the message says in sentences why there was no connection."""
    why = "mxo:443 refused the connection. Check the network."
    world = World({1: [10]}, connect=lambda part: d.NotSent(part, "refused", why), delivery=delivery)
    stopped = world.run().stopped
    assert stopped is not None
    assert f"No connection to api.base_url: {why}" in stopped.reason


def test_a_proxy_that_refuses_its_credentials_stops_the_job() -> None:
    """Asked once and not again, which could lock the account; nothing is journaled, 77."""
    tries = itertools.count()

    def connect(part: Part) -> d.Event:
        next(tries)
        return d.NotSent(part, "proxy_credentials", "The proxy wants a password.")

    world = World({1: [10]}, connect=connect)
    stopped = world.run().stopped
    assert stopped is not None
    assert stopped.code is ExitCode.CREDENTIALS_REFUSED
    assert "The proxy wants a password." in stopped.reason
    assert (next(tries), world.moves) == (1, [])


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


# Refusals and the canary


def stopped_with(world: World) -> ExitCode | None:
    """Runs it; why it stopped."""
    stopped = world.run().stopped
    return None if stopped is None else stopped.code


@pytest.mark.parametrize("at", range(1, 15))
def test_a_kill_in_the_middle_of_a_bisection_goes_on_where_it_was(at: int) -> None:
    """What was learned is kept: both executions together cost one call more at the most."""

    class Killed(Exception):
        pass

    calls = itertools.count(1)
    honest = bad_positions(61)

    def server(part: Part) -> Answer:
        if next(calls) == at:
            raise Killed
        return honest(part)

    world = World({1: [100]}, server=server)
    with contextlib.suppress(Killed):
        world.run()
    again = world.again(honest, proven=True)
    again.run()
    assert len(world.calls) + len(again.calls) <= 16  # a refusal that was not believed yet is asked for again
    doubted = again.interactions(State.IN_DOUBT)
    assert again.interactions(State.DELIVERED) | doubted >= {(1, row) for row in range(100) if row != 61}
    assert again.interactions(State.REJECTED) <= {(1, 61)}


@pytest.mark.parametrize("code", [400, 413])
def test_a_wrong_configuration_costs_20_calls_and_rejects_nothing(code: int) -> None:
    """As often as it is run; and when it is mended, everything is delivered."""
    world = World({lane: [100] * 5 for lane in range(40)}, server=status(code), proven=False)
    assert stopped_with(world) is ExitCode.UNUSABLE
    assert len(world.calls) == 20
    again = world.again(status(code), proven=False)
    assert stopped_with(again) is ExitCode.UNUSABLE
    assert len(again.calls) == 20
    assert again.interactions(State.REJECTED) == again.interactions(State.IN_DOUBT) == set()
    mended = again.again(ok, proven=False)
    assert stopped_with(mended) is None
    assert len(mended.interactions(State.DELIVERED)) == 40 * 5 * 100


def test_a_wrong_configuration_of_a_small_load_is_told_at_its_end() -> None:
    """Fewer calls than the canary's are no reason to believe refusals that nothing stands beside."""
    world = World({1: [3], 2: [2]}, server=status(400), proven=False)
    assert stopped_with(world) is ExitCode.UNUSABLE
    assert world.interactions(State.REJECTED) == set()


@pytest.mark.parametrize("on_400", ["bisect", "reject"])
def test_a_server_that_turns_to_refusing_everything_rejects_nothing(on_400: str) -> None:
    """It costs some 420 calls at the most, 20 when the job is run again, and nothing once it has recovered."""
    fine = 100
    calls = itertools.count()
    world = World(
        {lane: [100] * 20 for lane in range(40)},
        server=lambda part: (ok if next(calls) < fine else status(400))(part),
        delivery=Delivery.model_validate({"on_400": on_400}),
    )
    assert stopped_with(world) is ExitCode.UNUSABLE
    assert len(world.calls) - fine <= 440
    assert world.interactions(State.REJECTED) == set()
    again = world.again(status(400), proven=False)
    assert stopped_with(again) is ExitCode.UNUSABLE
    assert len(again.calls) == 20
    recovered = again.again(ok, proven=False)
    assert stopped_with(recovered) is None
    assert len(recovered.interactions(State.DELIVERED)) == 40 * 20 * 100
    assert set(recovered.applied.values()) == {1}


def named(refused: Callable[[tuple[int, int]], bool], *, words: bool = False) -> Callable[[Part], Answer]:
    """A server that names the refused rows, and applies the others."""

    def server(part: Part) -> Answer:
        each = tuple(
            Verdict(fate=Fate.REFUSED, http_status=400, cause="refused", words=f"row {position}" if words else None)
            if refused((part.request, position))
            else Verdict(fate=Fate.ACKNOWLEDGED, http_status=200, cause="acknowledged")
            for position in range(part.first, part.first + part.interactions)
        )
        if all(verdict.fate is Fate.ACKNOWLEDGED for verdict in each):
            return ok(part)
        verdict = Verdict(fate=Fate.REFUSED, http_status=400, cause="refused", each=each)
        return Answer(applies=False, event=lambda part: d.Replied(part, verdict))

    return server


@pytest.mark.parametrize("words", [False, True])
def test_rows_refused_by_name_do_not_deceive_the_canary(words: bool) -> None:
    """A server that names every row as refused is stopped after some calls; the rows are not rejected."""
    calls = itertools.count()
    world = World(
        {lane: [100] * 20 for lane in range(40)},
        server=lambda part: (ok if next(calls) < 100 else named(lambda row: True, words=words))(part),
    )
    assert stopped_with(world) is ExitCode.UNUSABLE
    assert len(world.calls) - 100 <= 20 + 16 + 2
    assert world.interactions(State.REJECTED) == set()


def test_one_row_refused_by_name_is_not_split_into_itself() -> None:
    """A request of one interaction whose only result is a refusal."""
    world = World({1: [1, 1]}, server=named(lambda row: row[0] == 1))
    assert stopped_with(world) is None
    assert world.states == {Part(1, 0, 1): State.REJECTED, Part(2, 0, 1): State.DELIVERED}


def test_30_percent_of_bad_rows_never_stop_a_job() -> None:
    """They are rejected, and nothing else is."""
    chance = random.Random(10)
    lanes = {lane: [100] * 4 for lane in range(20)}
    bad = {(request, row) for request in range(1, 81) for row in range(100) if chance.random() < 0.3}

    def server(part: Part) -> Answer:
        rows = {(part.request, row) for row in range(part.first, part.first + part.interactions)}
        return status(400)(part) if rows & bad else ok(part)

    world = World(lanes, server=server, proven=False)
    assert stopped_with(world) is None
    assert world.interactions(State.REJECTED) == bad
    assert len(world.interactions(State.DELIVERED)) == 8000 - len(bad)


def test_three_bad_rows_at_the_end_do_not_jam_a_night() -> None:
    """Nothing was acknowledged beside them, but the job had been before."""
    world = World({1: [3]}, server=status(400), proven=True)
    assert stopped_with(world) is None
    assert world.interactions(State.REJECTED) == {(1, 0), (1, 1), (1, 2)}


def test_a_refusal_is_believed_before_what_stands_beside_it_is_journaled() -> None:
    """Else a crash between the two would send the row again, after rows that follow it."""
    world = World({1: [1, 1]}, server=lambda part: (status(400) if part.request == 1 else ok)(part))
    world.run()
    moves = [(move.part.request, move.move) for move in world.moves]
    assert moves.index((1, Move.BELIEVED)) < moves.index((2, Move.ACKNOWLEDGED))
    assert (1, Move.UNAPPLIED) in moves


def test_several_fates_are_journaled_in_one_commit() -> None:
    """A crash can never leave a part of a sorted request in flight."""
    verdicts = {
        0: Verdict(fate=Fate.ACKNOWLEDGED, http_status=200, cause="acknowledged"),
        1: Verdict(fate=Fate.ACKNOWLEDGED, http_status=200, cause="acknowledged"),
        2: Verdict(fate=Fate.REFUSED, http_status=400, cause="refused"),
        3: Verdict(fate=Fate.UNAPPLIED, http_status=429, cause="unapplied"),
        4: Verdict(fate=Fate.UNCLEAR, http_status=500, cause="server_error"),
    }
    mixed = Verdict(fate=Fate.UNCLEAR, http_status=500, cause="server_error", each=tuple(verdicts.values()))
    world = World({1: [5]}, server=in_turn(lambda part: Answer(False, lambda part: d.Replied(part, mixed)), ok))
    world.run()
    assert world.states == {
        Part(1, 0, 5): State.SPLIT,
        Part(1, 0, 2): State.DELIVERED,
        Part(1, 2, 1): State.REJECTED,
        Part(1, 3, 1): State.DELIVERED,
        Part(1, 4, 1): State.IN_DOUBT,
    }
    (commit,) = [moves for moves in world.commits if moves[0].move is Move.SORTED]
    assert [move.move for move in commit] == [
        Move.SORTED,
        Move.ACKNOWLEDGED,
        Move.REFUSED,
        Move.UNAPPLIED,
        Move.UNCLEAR,
    ]


# Doubt


def test_resend_waits_then_sends_again_marked() -> None:
    """At least once: the lane waits for it, so the order holds."""
    world = World({1: [10, 10]}, server=in_turn(silence(applies=True), ok), delivery=Delivery(in_doubt="resend"))
    assert stopped_with(world) is None
    assert [part.request for _, part, _ in world.calls] == [1, 1, 2]
    assert world.calls[1][0] - world.calls[0][0] >= 0.5
    assert [move.move for move in world.moves[:3]] == [Move.INTENT, Move.UNCLEAR, Move.DECIDED_RESEND]
    assert len(world.commits[1]) == 2, "a crash between the two would leave the row to be decided by a person"


def test_a_refusal_after_a_doubt_stays_in_doubt() -> None:
    """It speaks of the second attempt; the first may have been applied."""
    world = World({1: [2]}, server=in_turn(silence(applies=True), status(400)), delivery=Delivery(in_doubt="resend"))
    world.run()
    assert world.interactions(State.IN_DOUBT) == {(1, 0), (1, 1)}
    assert world.moves[-1].cause == "refused_after_doubt"


@pytest.mark.parametrize("answer", [status(500), silence(applies=True)])
@pytest.mark.parametrize("in_doubt", ["hold", "resend"])
def test_a_server_that_answers_nothing_usable_puts_a_handful_in_doubt(
    answer: Callable[[Part], Answer], in_doubt: str
) -> None:
    """However large the export is."""
    world = World(
        {lane: [100] * 50 for lane in range(200)},
        server=answer,
        delivery=Delivery.model_validate({"in_doubt": in_doubt, "max_attempts": 100}),
    )
    assert stopped_with(world) is ExitCode.STOPPED_EARLY
    assert len(world.calls) <= 5


def test_a_server_that_stops_answering_puts_those_in_the_air_in_doubt_and_a_handful_more() -> None:
    """With 16 in the air: these, then single probes."""
    calls = itertools.count()
    world = World(
        {lane: [100] * 50 for lane in range(200)},
        server=lambda part: (ok if next(calls) < 200 else silence(applies=True))(part),
    )
    assert stopped_with(world) is ExitCode.STOPPED_EARLY
    assert len(world.calls) - 200 <= 16 + 2 * 5


# Waiting and giving up


def test_a_slow_start_sends_one_request_until_the_first_answer() -> None:
    """A server that is down meets one request, not as many as there are connections."""
    world = World({lane: [1] * 9 for lane in range(40)}, server=status(200, applies=True, after_s=10.0))
    world.run()
    assert [at_s for at_s, _, _ in world.calls if at_s < 10.0] == [world.calls[0][0]]
    assert sum(at_s < 11.0 for at_s, _, _ in world.calls) == 17


def test_a_job_that_mostly_repeats_itself_stops() -> None:
    """The retry budget: each call costs licence, whether or not it is let through."""
    calls = itertools.count(1)
    world = World(
        {lane: [1] * 200 for lane in range(16)},
        server=lambda part: (status(429) if next(calls) % 3 else ok)(part),
        delivery=Delivery(max_attempts=100, give_up_after_s=1e6),
        jitter=lambda: 0.01,
    )
    assert stopped_with(world) is ExitCode.STOPPED_EARLY
    assert "retry budget" in str(world.dispatch.stopped)
    assert 500 <= len(world.calls) <= 700


def test_a_request_that_is_never_let_in_stops_the_job() -> None:
    """Else it would cost a token and a call for every request that is acknowledged beside it."""
    world = World(
        {lane: [1] * 200 for lane in range(16)},
        server=lambda part: (status(401) if part.request == 7 else ok)(part),
    )
    assert stopped_with(world) is ExitCode.STOPPED_EARLY
    assert world.token_requests <= 12


def test_a_token_endpoint_that_stays_down_stops_the_job() -> None:
    """As often as a request would be tried."""
    world = World({1: [10]}, tokens=lambda number: d.TokenFailed("down"), delivery=Delivery(max_attempts=4))
    assert stopped_with(world) is ExitCode.STOPPED_EARLY
    assert (world.token_requests, world.calls) == (4, [])


def test_the_rate_follows_what_the_tenant_bears() -> None:
    """Half of the budget for a minute, then all of it again: little is refused, and most of what is borne is used."""
    served: dict[int, int] = {}
    world: World

    def server(part: Part) -> Answer:
        second = int(world.now_s)
        served[second] = served.get(second, 0) + 1
        return ok(part) if served[second] <= (100 if second < 60 else 200) else status(429)(part)

    world = World(
        {lane: [1] * 2000 for lane in range(32)},
        server=server,
        budget=Budget(requests_per_second=200, concurrency=32),
        delivery=Delivery(max_attempts=100),
        jitter=random.Random(1).random,
    )
    world.run(until_s=150.0)
    delivered = [sum(min(served.get(second, 0), limit) for second in span) for span, limit in (
        (range(10, 60), 100),
        (range(110, 150), 200),
    )]  # fmt: skip
    refused = sum(move.cause == "unapplied" for move in world.moves)
    assert delivered[0] / 50 >= 70
    assert delivered[1] / 40 >= 190
    assert refused <= 0.05 * len(world.calls)


# Limits


def test_a_trial_sends_so_many_interactions_and_no_more() -> None:
    """The last request is cut; what it leaves is sent by the next execution."""
    world = World({1: [100, 100, 100]}, limit=150)
    assert stopped_with(world) is ExitCode.STOPPED_EARLY
    assert sum(world.applied.values()) == 150
    assert world.states == {
        Part(1, 0, 100): State.DELIVERED,
        Part(2, 0, 100): State.SPLIT,
        Part(2, 0, 50): State.DELIVERED,
        Part(2, 50, 50): State.PLANNED,
    }
    rest = world.again(ok, proven=True)
    assert stopped_with(rest) is None
    assert [part for _, part, _ in rest.calls] == [Part(2, 50, 50), Part(3, 0, 100)]


def test_a_limit_that_is_not_reached_changes_nothing() -> None:
    """Nor does one that all of the load just fills."""
    world = World({1: [100], 2: [50]}, limit=150)
    assert stopped_with(world) is None
    assert set(world.states.values()) == {State.DELIVERED}


def test_what_a_limit_let_through_is_tried_again_and_split() -> None:
    """Retries and parts count once."""
    world = World({1: [8, 8]}, server=in_turn(status(429), status(400), ok), limit=8)
    assert stopped_with(world) is ExitCode.STOPPED_EARLY
    assert world.interactions(State.DELIVERED) == {(1, row) for row in range(8)}


def test_a_trial_that_is_refused_says_so() -> None:
    """A trial is how people find a wrong configuration: it ends with 78, not as if all had gone well."""
    world = World({1: [100]}, server=status(400), limit=4, proven=False)
    assert stopped_with(world) is ExitCode.UNUSABLE
    assert world.interactions(State.REJECTED) == set()


def test_every_call_counts_for_the_day() -> None:
    """A 401 and the calls of a bisection too; the scheduler is told when the next day begins."""
    world = World(
        {1: [4, 4, 4]},
        server=in_turn(status(400), ok, status(401), ok, status(400), ok),
        hours=Hours(calls_today=5, calls_per_day=5, day_ends_at_s=1000.0),
    )
    dispatch = world.run()
    assert len(world.calls) == 5
    assert dispatch.stopped is not None
    assert dispatch.stopped.code is ExitCode.STOPPED_EARLY
    assert dispatch.stopped.resume_after_s == pytest.approx(1000.0 - world.now_s)


def test_a_job_that_runs_over_midnight_gets_the_new_day() -> None:
    """Without a stop between the two."""
    world = World(
        {lane: [1] * 10 for lane in range(2)},
        budget=Budget(requests_per_second=10),
        hours=Hours(calls_today=12, calls_per_day=10, day_ends_at_s=1.0),
    )
    assert stopped_with(world) is None
    assert len(world.calls) == 20


def test_nothing_is_sent_after_the_window_and_the_scheduler_is_told() -> None:
    """What is in the air is waited for."""
    world = World(
        {lane: [1] * 100 for lane in range(4)},
        server=status(200, applies=True, after_s=0.3),
        budget=Budget(requests_per_second=20),
        hours=Hours(closes_at_s=2.0, opens_at_s=50.0),
    )
    dispatch = world.run()
    assert dispatch.stopped is not None
    assert dispatch.stopped.code is ExitCode.STOPPED_EARLY
    assert dispatch.stopped.resume_after_s == pytest.approx(48.0)
    assert max(at_s for at_s, _, _ in world.calls) < 2.0
    assert set(world.interactions(State.DELIVERED)) == set(world.applied)


def test_no_intent_is_journaled_while_there_is_no_token() -> None:
    """It could not be sent, and a crash would leave it in doubt."""

    class Slow(World):
        def _carry_out(self, command: d.Command) -> None:
            if isinstance(command, d.Connect) and self.calls:
                self._later(self.now_s + 0.06 * command.part.request, d.Connected(command.part))
            else:
                super()._carry_out(command)

    world = Slow(
        {lane: [1] for lane in range(8)},
        server=in_turn(ok, status(401), ok),
        tokens=lambda number: d.TokenFailed("down") if number == 2 else d.TokenGranted(),
    )
    assert stopped_with(world) is None
    assert set(world.states.values()) == {State.DELIVERED}
    assert world.token_requests == 3
    assert sum(move.move is Move.INTENT for move in world.moves) == len(world.calls) == 9
