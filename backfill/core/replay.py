"""The journal's history played again: what must have become of each part, and so of each row, from its moves alone.

`verify` holds the result against the tables and files that were kept along the way. Knows neither of those, and
shares nothing with their makers but the table of moves.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import polars as pl

from backfill.core.lifecycle import MOVES, STATE_OF_PARTS, Move, Part, Recorded, State


class Fate(NamedTuple):
    """What the moves of a part add up to; the fields are those of a Standing. Times are epoch milliseconds, UTC."""

    state: State = State.PLANNED
    attempts: int = 0
    http_status: int | None = None
    cause: str | None = None
    reason: str | None = None
    tid: str | None = None
    sent_at_ms: int | None = None
    settled_at_ms: int | None = None
    execution: int | None = None
    maybe_duplicate: bool = False


class Replay(NamedTuple):
    """The fate of every part that ever moved or came out of a split, and what is wrong with the history."""

    fates: dict[Part, Fate]
    faults: list[str]

    def leaves(self) -> list[tuple[Part, Fate]]:
        """The parts that answer for rows, by request and position: all but the divided ones."""
        return sorted(
            ((part, fate) for part, fate in self.fates.items() if fate.state is not State.SPLIT),
            key=lambda leaf: leaf[0],
        )


def replay(moves: Iterable[tuple[Recorded, int, int]], sizes: Mapping[int, int]) -> Replay:
    """Plays the moves of one load, each with its execution and its time (epoch ms), as the journal took them.

    A part moves only along MOVES, and it is either a whole request, as large as `sizes` (interactions by request,
    as staged) says, or came out of a split. Whatever breaks a rule is reported and then left out.
    """
    fates: dict[Part, Fate] = {}
    faults: list[str] = []
    for recorded, execution, at_ms in moves:
        part, move = recorded.part, recorded.move
        fate = fates.get(part)
        if fate is None:
            if sizes.get(part.request) != part.interactions or part.first != 0:
                faults.append(f"request {part} was {move}, but neither staging nor a split made it")
                continue
            fate = Fate()
        state = MOVES.get((fate.state, move))
        if state is None:
            faults.append(f"request {part} was {move} while it was {fate.state}")
            continue
        if move is Move.INTENT:
            if recorded.attempt != fate.attempts + 1:
                faults.append(f"request {part} has attempt {recorded.attempt} after attempt {fate.attempts}")
            # What was known of the attempt before no longer counts, but that it may have been applied does.
            fates[part] = Fate(
                state,
                recorded.attempt,
                tid=fate.tid,
                sent_at_ms=at_ms,
                execution=execution,
                maybe_duplicate=fate.maybe_duplicate,
            )
            continue
        fates[part] = Fate(
            state,
            fate.attempts,
            fate.http_status if recorded.http_status is None else recorded.http_status,
            fate.cause if recorded.cause is None else recorded.cause,
            fate.reason if recorded.reason is None else recorded.reason,
            fate.tid if recorded.tid is None else recorded.tid,
            fate.sent_at_ms,
            None if state is State.PLANNED else at_ms,
            execution,
            move is Move.DECIDED_RESEND or (fate.maybe_duplicate and move is not Move.DECIDED_NOT_DELIVERED),
        )
        if state is State.SPLIT:
            fault = _tiling_fault(part, recorded.into)
            if fault:
                faults.append(f"request {part} was divided, and {fault}")
            born = Fate(STATE_OF_PARTS[move], fate.attempts, maybe_duplicate=fate.maybe_duplicate)
            if born.state is State.IN_FLIGHT:
                born = born._replace(sent_at_ms=fate.sent_at_ms, execution=fate.execution)
            for child in recorded.into:
                fates.setdefault(child, born)
    return Replay(fates, faults)


def untiled(leaves: Iterable[Part], sizes: Mapping[int, int]) -> list[str]:
    """What is wrong where leaves do not cover their request from its first position to its last, each once.

    Requests without leaves never left `planned` and are not looked at.
    """
    faults = []
    for request, group in groupby(sorted(leaves), key=lambda part: part.request):
        if request not in sizes:
            faults.append(f"request {request} is not staged")
            continue
        whole = Part(request, 0, sizes[request])
        fault = _tiling_fault(whole, list(group))
        if fault:
            faults.append(f"request {whole}: {fault}")
    return faults


def _tiling_fault(whole: Part, parts: Sequence[Part]) -> str | None:
    end = whole.first
    for part in parts:
        if part.request != whole.request or part.interactions < 1:
            return f"{part} is no part of it"
        if part.first < end:
            return f"position {part.first} is in two parts"
        if part.first > end:
            return f"position {end} is in no part"
        end = part.first + part.interactions
    if end != whole.first + whole.interactions:
        return f"its parts end at position {end} instead of {whole.first + whole.interactions}"
    return None


def replayed_lines(
    rows: pl.DataFrame,
    played: Replay,
    *,
    load: int,
    exports: Sequence[str],
    exports_by_load: Mapping[int, Sequence[str]] | None = None,
) -> pl.DataFrame:
    """What the ledger must say of the staged rows of a piece, given the history of its requests.

    `exports_by_load`: those of all loads, for the rows that repeat an interaction of another one.
    Every part is spread out to its positions and met with the rows one by one, unlike the ledger's own range join.
    Shape: (rows, 19), as the ledger.
    """
    leaves = played.leaves()
    said = pl.concat_list(pl.when(pl.col("cause") != "acknowledged").then("cause"), "reason").list.drop_nulls()
    spread = (
        pl.DataFrame(
            {
                "request": [part.request for part, _ in leaves],
                "first": [part.first for part, _ in leaves],
                "interactions": [part.interactions for part, _ in leaves],
                "outcome": [_OUTCOMES[fate.state] for _, fate in leaves],
                "attempts": [fate.attempts for _, fate in leaves],
                "http_status": [fate.http_status for _, fate in leaves],
                "cause": [fate.cause for _, fate in leaves],
                "reason": [fate.reason for _, fate in leaves],
                "reply_tid": [fate.tid for _, fate in leaves],
                "sent_at": [fate.sent_at_ms for _, fate in leaves],
                "settled_at": [fate.settled_at_ms for _, fate in leaves],
                "execution": [fate.execution for _, fate in leaves],
                "maybe_duplicate": [fate.maybe_duplicate for _, fate in leaves],
            },
            schema={
                "request": pl.Int64(),
                "first": pl.Int16(),
                "interactions": pl.Int16(),
                "outcome": pl.String(),
                "attempts": pl.Int32(),
                "http_status": pl.Int16(),
                "cause": pl.String(),
                "reason": pl.String(),
                "reply_tid": pl.String(),
                "sent_at": pl.Datetime("ms", "UTC"),
                "settled_at": pl.Datetime("ms", "UTC"),
                "execution": pl.Int32(),
                "maybe_duplicate": pl.Boolean(),
            },
        )
        .with_columns(
            position=pl.int_ranges("first", pl.col("first") + pl.col("interactions"), dtype=pl.Int16),
            reasons=said,
        )
        .explode("position")
    )
    paths = dict(enumerate(exports))
    originals = [
        (number, nth, path)
        for number, known in {**(exports_by_load or {}), load: exports}.items()
        for nth, path in enumerate(known)
    ]
    original = pl.DataFrame(
        originals,
        schema={"of_load": pl.UInt32(), "duplicate_of_export": pl.UInt32(), "original": pl.String()},
        orient="row",
    )
    rows = rows.with_columns(pl.col("duplicate_of_load").fill_null(load).alias("of_load")).join(
        original, on=["of_load", "duplicate_of_export"], how="left", maintain_order="left"
    )
    sent = pl.col("request").is_not_null()
    return rows.join(spread, on=["request", "position"], how="left").select(
        _named("export", paths),
        "row",
        "line",
        "customer_key",
        "customer_key_name",
        "timestamp",
        pl.coalesce("outcome", pl.when(sent).then(pl.lit("unsent")).otherwise(pl.lit("duplicate"))),
        pl.coalesce("reasons", pl.lit([], dtype=pl.List(pl.String))),
        pl.when(pl.col("duplicate_of_export").is_not_null())
        .then(pl.format("{}:{}", pl.col("original").fill_null("?"), "duplicate_of_row"))
        .alias("duplicate_of"),
        pl.lit(load, pl.Int32).alias("load"),
        "request",
        "position",
        pl.col("attempts").fill_null(0),
        "http_status",
        pl.coalesce("tid", "reply_tid"),
        pl.col("maybe_duplicate").fill_null(value=False),
        "sent_at",
        "settled_at",
        "execution",
    )


_OUTCOMES = {
    State.PLANNED: "unsent",
    State.IN_FLIGHT: "in_doubt",
    State.DELIVERED: "delivered",
    State.REJECTED: "rejected",
    State.IN_DOUBT: "in_doubt",
    State.ABANDONED: "abandoned",
}
# Not taken from `account`: a wrong entry there must not be wrong here in the same way.


def _named(column: str, paths: Mapping[int, str]) -> pl.Expr:
    return pl.col(column).replace_strict(paths, return_dtype=pl.String)
