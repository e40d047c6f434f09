"""Broken variants of the product, each a mistake that a person would make; the storm's checker must catch them.

python -m tests.broken VARIANT run ...     the command line with one mistake in it
"""

import sqlite3
import sys
from collections.abc import Callable, Sequence

from backfill.adapters.journal import Journal, OnDurable
from backfill.cli import main
from backfill.core import events as d
from backfill.core.dispatch import Dispatch
from backfill.core.lifecycle import Move, Recorded


def no_intent() -> None:
    """The intent is written with the outcome, which is half the commits and looks the same on a good day."""
    commit = Journal.commit
    record = Journal._record
    held: dict[object, Recorded] = {}

    def late(self: Journal, moves: Sequence[Recorded], at_ms: int, on_durable: OnDurable) -> None:
        intents = [move for move in moves if move.move is Move.INTENT]
        others = [move for move in moves if move.move is not Move.INTENT]
        owed = [held.pop(move.part) for move in others if move.part in held]
        held.update({move.part: move for move in intents})
        if others:
            commit(self, [*owed, *others], at_ms, on_durable if not intents else lambda error: None)
        if intents:
            on_durable(None)

    def intents_first(self: Journal, connection: sqlite3.Connection, moves: Sequence[Recorded], at_ms: int) -> None:
        record(self, connection, [move for move in moves if move.move is Move.INTENT], at_ms)
        record(self, connection, [move for move in moves if move.move is not Move.INTENT], at_ms)

    Journal.commit = late  # type: ignore[method-assign]
    Journal._record = intents_first  # type: ignore[method-assign]


def forget_in_flight() -> None:
    """A restart takes what was in flight for planned, as if a crash proved that nothing was sent."""
    begin = Journal.begin

    def forgetful(self: Journal, **known: object) -> int:
        self._ask(lambda connection: connection.execute("UPDATE part SET state = 'planned' WHERE state = 'in_flight'"))
        return begin(self, **known)  # type: ignore[arg-type]

    Journal.begin = forgetful  # type: ignore[method-assign]


def resend() -> None:
    """No reply is taken for not sent, as every HTTP client with automatic retries does."""
    handle = Dispatch.handle

    def hasty(self: Dispatch, event: d.Event, now_s: float) -> list[d.Command]:
        if isinstance(event, d.Unanswered):
            event = d.NotSent(event.part, "retry")
        return handle(self, event, now_s)

    Dispatch.handle = hasty  # type: ignore[method-assign]


VARIANTS: dict[str, Callable[[], None]] = {
    "no_intent": no_intent,
    "forget_in_flight": forget_in_flight,
    "resend": resend,
}

if __name__ == "__main__":
    VARIANTS[sys.argv[1]]()
    sys.exit(main(sys.argv[2:]))
