"""The journal's history played again."""

import pytest

from backfill.core.lifecycle import MOVES, STATE_OF_PARTS, Move, Part, Recorded, State, halves
from backfill.core.replay import Fate, replay, untiled

WHOLE = Part(7, 0, 4)
SIZES = {7: 4}


def history(*moves: tuple[Part, Move, int]) -> list[tuple[Recorded, int, int]]:
    """Moves a second apart, all by execution 1; a divided part falls into halves."""
    return [
        (
            Recorded(
                load=1,
                part=part,
                move=move,
                attempt=attempt,
                http_status=None if move is Move.INTENT else 200,
                into=halves(part) if move in STATE_OF_PARTS else (),
            ),
            1,
            nth * 1000,
        )
        for nth, (part, move, attempt) in enumerate(moves)
    ]


# The shortest way into each state, as moves of one part at its first attempt.
WAY_TO = {
    State.PLANNED: [],
    State.IN_FLIGHT: [Move.INTENT],
    State.DELIVERED: [Move.INTENT, Move.ACKNOWLEDGED],
    State.REJECTED: [Move.INTENT, Move.REFUSED],
    State.SPLIT: [Move.INTENT, Move.DIVIDED],
    State.IN_DOUBT: [Move.INTENT, Move.UNCLEAR],
    State.ABANDONED: [Move.DECIDED_ABANDON],
}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("move", Move)
def test_only_moves_of_the_table_are_taken(state: State, move: Move) -> None:
    """Every pair of state and move either leads where MOVES says, or is reported and changes nothing."""
    way = [(WHOLE, each, 1) for each in WAY_TO[state]]
    attempt = 2 if move is Move.INTENT and way else 1
    played = replay(history(*way, (WHOLE, move, attempt)), SIZES)
    if (state, move) in MOVES:
        assert played.fates[WHOLE].state is MOVES[state, move]
        assert played.faults == [] or attempt == 2
    else:
        assert played.fates.get(WHOLE, Fate()).state is state
        assert played.faults == [f"request 7[0:4] was {move} while it was {state}"]


def test_an_intent_forgets_the_reply_before_it() -> None:
    """A second attempt starts without the status of the first, and the outcome carries the second's times."""
    played = replay(history((WHOLE, Move.INTENT, 1), (WHOLE, Move.UNAPPLIED, 1), (WHOLE, Move.INTENT, 2)), SIZES)
    assert played.fates[WHOLE] == Fate(State.IN_FLIGHT, 2, sent_at_ms=2000, execution=1)
    assert played.faults == []


def test_halves_of_a_divided_request_are_planned_until_they_move() -> None:
    """A split makes its parts known at once; they answer for the rows, the split request no more."""
    played = replay(history((WHOLE, Move.INTENT, 1), (WHOLE, Move.DIVIDED, 1)), SIZES)
    assert played.leaves() == [(Part(7, 0, 2), Fate(attempts=1)), (Part(7, 2, 2), Fate(attempts=1))]


def test_a_part_that_no_split_made_is_a_fault() -> None:
    """Neither a narrower part nor an unknown request may move by itself, and neither is believed."""
    for part in (Part(7, 0, 2), Part(7, 2, 2), Part(8, 0, 4), Part(7, 0, 5)):
        played = replay(history((part, Move.INTENT, 1)), SIZES)
        assert played.fates == {}
        assert played.faults == [f"request {part} was intent, but neither staging nor a split made it"]


def test_a_skipped_attempt_is_a_fault() -> None:
    """Attempts count 1, 2, 3: a gap means that an intent is missing from the history."""
    played = replay(history((WHOLE, Move.INTENT, 2)), SIZES)
    assert played.faults == ["request 7[0:4] has attempt 2 after attempt 0"]


@pytest.mark.parametrize(
    ("into", "fault"),
    [
        ((), "its parts end at position 0 instead of 4"),
        ((Part(7, 0, 2),), "its parts end at position 2 instead of 4"),
        ((Part(7, 0, 2), Part(7, 1, 3)), "position 1 is in two parts"),
        ((Part(7, 0, 1), Part(7, 2, 2)), "position 1 is in no part"),
        ((Part(7, 0, 2), Part(8, 2, 2)), "8[2:4] is no part of it"),
        ((Part(7, 0, 2), Part(7, 2, 3)), "its parts end at position 5 instead of 4"),
    ],
)
def test_a_split_has_to_cover_its_request(into: tuple[Part, ...], fault: str) -> None:
    """Rows that a split forgets or takes twice are found in the history itself."""
    split = Recorded(load=1, part=WHOLE, move=Move.DIVIDED, attempt=1, http_status=400, into=into)
    played = replay([*history((WHOLE, Move.INTENT, 1)), (split, 1, 1000)], SIZES)
    assert played.faults == [f"request 7[0:4] was divided, and {fault}"]


def test_leaves_have_to_tile_their_request() -> None:
    """The table's leaves are held against the staged sizes; requests without leaves are none of its business."""
    assert untiled([Part(7, 0, 2), Part(7, 2, 2), Part(9, 0, 1)], {7: 4, 8: 3, 9: 1}) == []
    assert untiled([Part(7, 2, 2)], SIZES) == ["request 7[0:4]: position 0 is in no part"]
    assert untiled([Part(5, 0, 1)], SIZES) == ["request 5 is not staged"]
