"""What decisions do to parts, by plain values; their moves are played through the lifecycle by `replay`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backfill.core.lifecycle import Move, Part, Recorded, Standing, State
from backfill.core.replay import Fate, replay, untiled
from backfill.core.resolution import Choice, Decision, abandoned, cause, decided, in_doubt

WHOLE = Part(7, 0, 10)


def standing(state: State = State.IN_DOUBT, why: str | None = "no_reply", sent_at_ms: int | None = 1000) -> Standing:
    return Standing(WHOLE, state, 1, None, why, None, None, False, sent_at_ms, None, 1)


def test_what_is_in_flight_of_a_dead_execution_is_in_doubt_by_its_crash() -> None:
    """Nobody alive looks at a part in flight: the choice is made under the job's lock."""
    flying = standing(State.IN_FLIGHT, None)
    assert in_doubt(flying)
    assert cause(flying) == "crash"
    assert [in_doubt(standing(state)) for state in (State.PLANNED, State.DELIVERED, State.ABANDONED)] == [False] * 3


@pytest.mark.parametrize(
    ("choice", "taken"),
    [
        (Choice(), True),
        (Choice(loads=frozenset({2})), True),
        (Choice(loads=frozenset({1})), False),
        (Choice(requests=frozenset({(2, 7)})), True),
        (Choice(requests=frozenset({(1, 7), (2, 8)})), False),
        (Choice(causes=frozenset({"crash", "no_reply"})), True),
        (Choice(causes=frozenset({"crash"})), False),
        (Choice(since_ms=1000, until_ms=1000), True),
        (Choice(since_ms=1001), False),
        (Choice(until_ms=999), False),
        (Choice(loads=frozenset({2}), causes=frozenset({"crash"})), False),
    ],
)
def test_every_filter_narrows_and_times_are_inclusive(choice: Choice, taken: bool) -> None:
    """A part is meant only if no filter leaves it out."""
    assert choice.takes(2, 7, standing()) is taken


def test_a_request_that_never_moved_has_no_cause_and_no_time() -> None:
    """It is meant by load and number, never by a filter on what happened to it."""
    assert Choice(loads=frozenset({1})).takes(1, 7, None)
    assert not Choice(causes=frozenset({"crash"})).takes(1, 7, None)
    assert not Choice(until_ms=10**15).takes(1, 7, None)


@pytest.mark.parametrize(
    ("decision", "state", "marked"),
    [
        (Decision.DELIVERED, State.DELIVERED, False),
        (Decision.NOT_DELIVERED, State.PLANNED, False),
        (Decision.RESEND, State.PLANNED, True),
    ],
)
def test_a_decision_about_doubt_is_a_move_of_the_lifecycle(decision: Decision, state: State, marked: bool) -> None:
    """Taken as delivered, sent again unmarked, or sent again marked."""
    doubt = [
        Recorded(load=1, part=WHOLE, move=Move.INTENT, attempt=1),
        Recorded(load=1, part=WHOLE, move=Move.UNCLEAR, attempt=1, cause="no_reply"),
    ]
    played = play([*doubt, decided(decision, 1, WHOLE, attempts=1)])
    assert (played[WHOLE].state, played[WHOLE].maybe_duplicate) == (state, marked)
    assert played[WHOLE].cause == ("assumed" if decision is Decision.DELIVERED else "no_reply")


def play(moves: list[Recorded]) -> dict[Part, Fate]:
    """The fates after these moves, which must all be legal and leave every position in one part."""
    played = replay([(move, 1, 5) for move in moves], {WHOLE.request: WHOLE.interactions})
    assert played.faults == []
    assert untiled([part for part, _ in played.leaves()], {WHOLE.request: WHOLE.interactions}) == []
    return dict(played.fates)


@given(st.sets(st.integers(0, 9), min_size=1))
def test_abandoning_takes_exactly_the_positions_that_are_meant(positions: set[int]) -> None:
    """The part is cut where it must be; every other position stays planned, and none is lost."""
    moves = abandoned(1, WHOLE, attempts=0, marked=False, positions=sorted(positions))
    played = replay([(move, 1, 5) for move in moves], {7: 10})
    assert played.faults == []
    found = {
        state: {
            at
            for part, fate in played.leaves()
            if fate.state is state
            for at in range(part.first, part.first + part.interactions)
        }
        for state in (State.ABANDONED, State.PLANNED)
    }
    assert found == {State.ABANDONED: positions, State.PLANNED: set(range(10)) - positions}
    assert sum(move.move is Move.CUT for move in moves) == (len(positions) < 10)


def test_an_abandoned_part_that_may_have_been_applied_is_in_doubt_again() -> None:
    """Whether it arrived nobody knows, so it must not be called abandoned."""
    moves = abandoned(1, WHOLE, attempts=2, marked=True, positions=[0, 1])
    assert [(move.move, move.part) for move in moves] == [
        (Move.CUT, WHOLE),
        (Move.DECIDED_DOUBT, Part(7, 0, 2)),
    ]
    assert moves[1].cause == "abandoned"
