"""Broken variants of the product, each a mistake that a person would make; the storm's checker must catch them.

python -m tests.broken VARIANT run ...     the command line with one mistake in it
"""

import os
import signal
import sqlite3
import sys
from collections.abc import Callable, Sequence
from typing import Any

import polars as pl

from backfill.adapters import staging
from backfill.adapters.journal import Journal, OnDurable
from backfill.cli import main
from backfill.core import events as d
from backfill.core.arrange import ORIGINALS_SCHEMA
from backfill.core.dispatch import Dispatch
from backfill.core.lifecycle import Move, Recorded
from backfill.core.reply import Fate, Verdict
from backfill.repeats import Repeats


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


def not_awaited() -> None:
    """The intent is written at once, but the request does not wait for it: it is late by one commit, a millisecond."""
    commit = Journal.commit

    def eager(self: Journal, moves: Sequence[Recorded], at_ms: int, on_durable: OnDurable) -> None:
        commit(self, moves, at_ms, lambda error: None)
        on_durable(None)

    Journal.commit = eager  # type: ignore[method-assign]


def deaf() -> None:
    """A commit that failed is taken for durable: only what the disk says of it is not heard."""
    commit = Journal.commit

    def hears_no_error(self: Journal, moves: Sequence[Recorded], at_ms: int, on_durable: OnDurable) -> None:
        commit(self, moves, at_ms, lambda error: on_durable(None))

    Journal.commit = hears_no_error  # type: ignore[method-assign]


def forget_in_flight() -> None:
    """A restart takes what was in flight for planned, as if a crash proved that nothing was sent."""
    begin = Journal.begin

    def forgetful(self: Journal, **known: object) -> int:
        self._ask(lambda connection: connection.execute("UPDATE part SET state = 'planned' WHERE state = 'in_flight'"))
        return begin(self, **known)  # type: ignore[arg-type]

    Journal.begin = forgetful  # type: ignore[method-assign]


def optimism() -> None:
    """No reply is taken for an acknowledgement: the server "will have got it"."""
    handle = Dispatch.handle

    def hopeful(self: Dispatch, event: d.Event, now_s: float) -> list[d.Command]:
        if isinstance(event, d.Unanswered):
            event = d.Replied(event.part, Verdict(fate=Fate.ACKNOWLEDGED, http_status=200, cause="acknowledged"))
        return handle(self, event, now_s)

    Dispatch.handle = hopeful  # type: ignore[method-assign]


def resend() -> None:
    """No reply is taken for not sent, as every HTTP client with automatic retries does."""
    handle = Dispatch.handle

    def hasty(self: Dispatch, event: d.Event, now_s: float) -> list[d.Command]:
        if isinstance(event, d.Unanswered):
            event = d.NotSent(event.part, "retry")
        return handle(self, event, now_s)

    Dispatch.handle = hasty  # type: ignore[method-assign]


def dies_after_remembering() -> None:
    """No mistake: a kill between the moments in which a piece is remembered and in which it is there."""
    remember = Repeats.remember

    def last_act(self: Repeats, *known: Any) -> None:
        remember(self, *known)
        os.kill(os.getpid(), signal.SIGKILL)

    Repeats.remember = last_act  # type: ignore[assignment, method-assign]


def dies_when_arranged() -> None:
    """No mistake: a kill as soon as a piece is there."""
    write_piece = staging.write_piece

    def last_act(*known: Any) -> None:
        write_piece(*known)
        os.kill(os.getpid(), signal.SIGKILL)

    staging.write_piece = last_act  # type: ignore[assignment]


def remembers_late() -> None:
    """A piece is remembered only when it is there: killed in between, it is sent and never known again."""
    Repeats.remember = lambda self, *known: None  # type: ignore[method-assign]
    dies_when_arranged()


def forgetful() -> None:
    """Nobody looks what is remembered: what stands in a later export as well is sent again."""
    nothing = pl.DataFrame(schema=ORIGINALS_SCHEMA)
    Repeats.originals = lambda self, piece, rows, *, across_time: nothing  # type: ignore[method-assign]


VARIANTS: dict[str, Callable[[], None]] = {
    "no_intent": no_intent,
    "not_awaited": not_awaited,
    "deaf": deaf,
    "forget_in_flight": forget_in_flight,
    "optimism": optimism,
    "resend": resend,
    "dies_after_remembering": dies_after_remembering,
    "dies_when_arranged": dies_when_arranged,
    "remembers_late": remembers_late,
    "forgetful": forgetful,
}

if __name__ == "__main__":
    VARIANTS[sys.argv[1]]()
    sys.exit(main(sys.argv[2:]))
