"""The states of a request and the only moves between them.

A request never changes its contents; a part of it (after a split) is the same request with a narrower range of
positions. Nothing here knows time, the journal or the network: `dispatch` proposes moves, the journal
records them, and both ask this table.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class State(StrEnum):
    PLANNED = "planned"
    IN_FLIGHT = "in_flight"
    DELIVERED = "delivered"
    REJECTED = "rejected"
    SPLIT = "split"
    IN_DOUBT = "in_doubt"
    ABANDONED = "abandoned"


class Move(StrEnum):
    """What happened to a request."""

    INTENT = "intent"  # durably written, before the first byte
    ACKNOWLEDGED = "acknowledged"
    UNAPPLIED = "unapplied"  # provably changed nothing: to be sent again, or a refusal that is not believed yet
    REFUSED = "refused"  # the API says that the interactions themselves are wrong
    BELIEVED = "believed"  # as refused, of a refusal that stood as unapplied until an acknowledgement came
    DIVIDED = "divided"  # replaced by its parts, which are planned
    SORTED = "sorted"  # replaced by its parts, which are in flight: one reply gave them several fates
    CUT = "cut"  # as divided, before it was ever sent: a limit or a decision needs a part of it
    UNCLEAR = "unclear"  # a byte left, and no reply says what became of it
    LOST = "lost"  # the execution died with the request in flight
    DECIDED_DELIVERED = "decided_delivered"
    DECIDED_NOT_DELIVERED = "decided_not_delivered"
    DECIDED_RESEND = "decided_resend"  # sent again although it may have been applied: marked from now on
    DECIDED_ABANDON = "decided_abandon"
    DECIDED_DOUBT = "decided_doubt"  # abandoned, but it had been in doubt: so it may have been applied


MOVES: dict[tuple[State, Move], State] = {
    (State.PLANNED, Move.INTENT): State.IN_FLIGHT,
    (State.IN_FLIGHT, Move.ACKNOWLEDGED): State.DELIVERED,
    (State.IN_FLIGHT, Move.UNAPPLIED): State.PLANNED,
    (State.IN_FLIGHT, Move.REFUSED): State.REJECTED,
    (State.PLANNED, Move.BELIEVED): State.REJECTED,
    (State.IN_FLIGHT, Move.DIVIDED): State.SPLIT,
    (State.IN_FLIGHT, Move.SORTED): State.SPLIT,
    (State.PLANNED, Move.CUT): State.SPLIT,
    (State.IN_FLIGHT, Move.UNCLEAR): State.IN_DOUBT,
    (State.IN_FLIGHT, Move.LOST): State.IN_DOUBT,
    (State.IN_DOUBT, Move.DECIDED_DELIVERED): State.DELIVERED,
    (State.IN_DOUBT, Move.DECIDED_NOT_DELIVERED): State.PLANNED,
    (State.IN_DOUBT, Move.DECIDED_RESEND): State.PLANNED,
    (State.PLANNED, Move.DECIDED_ABANDON): State.ABANDONED,
    (State.PLANNED, Move.DECIDED_DOUBT): State.IN_DOUBT,
}

STATE_OF_PARTS = {Move.DIVIDED: State.PLANNED, Move.SORTED: State.IN_FLIGHT, Move.CUT: State.PLANNED}
"""In which state the parts of a request begin that was replaced by this move."""

FINAL = frozenset({State.DELIVERED, State.REJECTED, State.SPLIT, State.ABANDONED})


class IllegalMove(Exception):
    """A bug: something proposed a move that the table does not hold."""


def after(state: State, move: Move) -> State:
    """The state that `move` leads to. Raises IllegalMove for every pair that `MOVES` does not name."""
    try:
        return MOVES[state, move]
    except KeyError:
        raise IllegalMove(f"a request that is {state} cannot be {move}") from None


class Part(NamedTuple):
    """A request, or what a split left of it: so many interactions of `request`, from position `first` on.

    `request` is unique in its load and grows along a lane; positions count from 0. A planned request is the
    part (request, 0, all of it).
    """

    request: int
    first: int
    interactions: int

    def __str__(self) -> str:
        return f"{self.request}[{self.first}:{self.first + self.interactions}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One move of one part, as the journal keeps it.

    `attempt` counts the tries of this part from 1. `cause` is a short machine word (`acknowledged`, `no_reply`,
    `server_error`, `unrecognised`, `redirect`, `crash`, ...); `reason` a sentence without customers' values.
    """

    load: int
    part: Part
    move: Move
    attempt: int
    http_status: int | None = None
    cause: str | None = None
    reason: str | None = None
    tid: str | None = None
    into: tuple[Part, ...] = ()
    """The parts that replace a divided one, in order."""


class Standing(NamedTuple):
    """How a part stands: the sum of its moves. Times are epoch milliseconds, UTC."""

    part: Part
    state: State
    attempts: int
    http_status: int | None
    cause: str | None
    reason: str | None
    tid: str | None
    maybe_duplicate: bool
    sent_at_ms: int | None
    settled_at_ms: int | None
    execution: int | None


def halves(part: Part) -> tuple[Part, Part]:
    """The two parts that replace a refused part of at least two interactions; the left one goes first."""
    left = part.interactions // 2
    return (
        Part(part.request, part.first, left),
        Part(part.request, part.first + left, part.interactions - left),
    )


def unfinished(whole: Part, standings: list[Standing]) -> list[tuple[Part, int, bool]]:
    """What is left to send of a planned request, in order, given all standings of its parts.

    Gives (part, attempts so far, whether it may have been applied already). An empty list of standings means that the
    request never left `planned`.
    """
    if not standings:
        return [(whole, 0, False)]
    return sorted(
        (standing.part, standing.attempts, standing.maybe_duplicate)
        for standing in standings
        if standing.state is State.PLANNED
    )
