"""The table of moves, walked exhaustively."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backfill.core.lifecycle import FINAL, MOVES, IllegalMove, Move, Part, Standing, State, after, halves, unfinished


def standing(part: Part, state: State) -> Standing:
    return Standing(part, state, 1, None, None, None, None, False, None, None, None)


@pytest.mark.parametrize(("state", "move"), list(itertools.product(State, Move)))
def test_every_pair_is_either_in_the_table_or_refused(state: State, move: Move) -> None:
    """No move happens that the table does not name."""
    if (state, move) in MOVES:
        assert after(state, move) is MOVES[state, move]
    else:
        with pytest.raises(IllegalMove):
            after(state, move)


def test_final_states_have_no_way_out() -> None:
    """What is final stays so."""
    assert not [pair for pair in MOVES if pair[0] in FINAL]


def test_every_state_can_be_reached() -> None:
    """The table holds no state that a request never takes."""
    reached = {State.PLANNED}
    for _ in State:
        reached |= {made for (before, _), made in MOVES.items() if before in reached}
    assert reached == set(State)


def test_only_an_intent_leads_into_flight() -> None:
    """I7: nothing is in flight that had no intent."""
    assert [pair for pair, made in MOVES.items() if made is State.IN_FLIGHT] == [(State.PLANNED, Move.INTENT)]


def test_doubt_ends_by_a_decision_only() -> None:
    """No event of delivery takes a request out of doubt."""
    out = {move for (before, move) in MOVES if before is State.IN_DOUBT}
    assert all(move.value.startswith("decided_") for move in out)


def test_a_move_leads_to_one_state_whatever_the_state_before() -> None:
    """The journal writes the state by the move alone; that is only right while this holds."""
    targets: dict[Move, set[State]] = {}
    for (_, move), made in MOVES.items():
        targets.setdefault(move, set()).add(made)
    assert all(len(states) == 1 for states in targets.values())


@given(st.integers(0, 50), st.integers(2, 100))
def test_halves_tile_the_part(first: int, interactions: int) -> None:
    """A split loses no interaction and doubles none; the left half comes first."""
    left, right = halves(Part(7, first, interactions))
    assert (left.first, left.interactions) == (first, interactions // 2)
    assert right.first == left.first + left.interactions
    assert left.interactions + right.interactions == interactions
    assert left.interactions >= 1
    assert right.interactions >= 1


def test_unfinished_of_an_unknown_request_is_the_whole() -> None:
    """A request that never left `planned` has no standing."""
    assert unfinished(Part(3, 0, 100), []) == [(Part(3, 0, 100), 0, False)]


def test_unfinished_of_a_split_request_is_its_planned_parts_in_order() -> None:
    """After a crash in the middle of a bisection only the parts without a fate are left, left ones first."""
    whole = Part(3, 0, 100)
    standings = [
        standing(whole, State.SPLIT),
        standing(Part(3, 50, 50), State.PLANNED),
        standing(Part(3, 0, 50), State.SPLIT),
        standing(Part(3, 0, 25), State.DELIVERED),
        standing(Part(3, 25, 25), State.PLANNED),
    ]
    assert [part for part, _, _ in unfinished(whole, standings)] == [Part(3, 25, 25), Part(3, 50, 50)]
