"""What a person decides about rows in doubt, or about rows that shall never be sent, as moves of the lifecycle.

Values in, moves out: which parts a choice concerns, and what a decision does to them. Never looks at a row, and sends
nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby

from backfill.core.lifecycle import Move, Part, Recorded, Standing, State


class Decision(StrEnum):
    """What shall become of the rows concerned."""

    DELIVERED = "delivered"  # rows in doubt are taken as delivered
    NOT_DELIVERED = "not_delivered"  # the vendor confirmed that they never arrived: sent again, unmarked
    RESEND = "resend"  # rows in doubt are sent again, marked: they may arrive twice
    ABANDON = "abandon"  # unsent rows are never sent


CAUSES = ("crash", "no_reply", "server_error", "unrecognised", "redirect", "refused_after_doubt")
"""Why a request can be in doubt, as the journal has it."""

ASSUMED = "assumed"
"""The cause of rows that are delivered because someone said so."""

_MOVES = {
    Decision.DELIVERED: Move.DECIDED_DELIVERED,
    Decision.NOT_DELIVERED: Move.DECIDED_NOT_DELIVERED,
    Decision.RESEND: Move.DECIDED_RESEND,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which parts are meant. What is empty or None chooses all; times are inclusive epoch milliseconds of `sent_at`."""

    loads: frozenset[int] = frozenset()
    requests: frozenset[tuple[int, int]] = frozenset()
    """(load, request) each."""
    causes: frozenset[str] = frozenset()
    since_ms: int | None = None
    until_ms: int | None = None

    def takes_load(self, load: int) -> bool:
        return (not self.loads or load in self.loads) and (
            not self.requests or any(load == known for known, _ in self.requests)
        )

    def takes(self, load: int, request: int, standing: Standing | None) -> bool:
        """Whether a part is meant; `standing` is None for a request that never left `planned`."""
        if not self.takes_load(load) or (self.requests and (load, request) not in self.requests):
            return False
        if self.causes and (standing is None or cause(standing) not in self.causes):
            return False
        if self.since_ms is None and self.until_ms is None:
            return True
        sent_at_ms = None if standing is None else standing.sent_at_ms
        return (
            sent_at_ms is not None
            and (self.since_ms is None or sent_at_ms >= self.since_ms)
            and (self.until_ms is None or sent_at_ms <= self.until_ms)
        )


def cause(standing: Standing) -> str | None:
    """Why a part stands as it does. One in flight is looked at by no living execution: its own has crashed."""
    return "crash" if standing.state is State.IN_FLIGHT else standing.cause


def in_doubt(standing: Standing) -> bool:
    return standing.state in (State.IN_DOUBT, State.IN_FLIGHT)


def decided(decision: Decision, load: int, part: Part, *, attempts: int) -> Recorded:
    """The move that a decision about a part in doubt makes."""
    why = ASSUMED if decision is Decision.DELIVERED else None
    return Recorded(load=load, part=part, move=_MOVES[decision], attempt=attempts, cause=why)


def abandoned(load: int, part: Part, *, attempts: int, marked: bool, positions: Sequence[int]) -> list[Recorded]:
    """The moves that abandon these positions of a planned part, which is cut where only some of it are meant.

    `positions` ascend and lie in the part. `marked`: its rows may have been applied already, so they become doubt
    again instead of abandoned.
    """
    move = Move.DECIDED_DOUBT if marked else Move.DECIDED_ABANDON
    # A reason that stood for the last reply would otherwise seem to be why it is in doubt.
    why = "abandoned" if marked else None
    wanted = set(positions)
    pieces = [
        (chosen, list(run))
        for chosen, run in groupby(range(part.first, part.first + part.interactions), wanted.__contains__)
    ]
    moves: list[Recorded] = []
    parts = tuple(Part(part.request, run[0], len(run)) for _, run in pieces)
    if len(parts) > 1:
        moves.append(Recorded(load=load, part=part, move=Move.CUT, attempt=attempts, into=parts))
    moves += [
        Recorded(load=load, part=piece, move=move, attempt=attempts, cause=why)
        for piece, (chosen, _) in zip(parts, pieces, strict=True)
        if chosen
    ]
    return moves
