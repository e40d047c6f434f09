"""Resolving: a person's decision about rows in doubt, or about rows that shall never be sent, goes into the journal.

Reads staging, writes journal and ledger. Never sends anything: the next execution does what was decided.
"""

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import polars as pl

from backfill import stage
from backfill.adapters import staging
from backfill.adapters.journal import Journal
from backfill.adapters.state import JobFile, Load, StateDirectory
from backfill.core.account import sent_lines
from backfill.core.arrange import Piece
from backfill.core.config import RunConfig
from backfill.core.errors import ExitCode, StorageError, Unusable, UsageError
from backfill.core.lifecycle import Part, Recorded, Standing, unfinished
from backfill.core.resolution import Choice, Decision, abandoned, cause, decided, in_doubt
from backfill.core.settings import parse
from backfill.core.summary import ExportCounts, Progress
from backfill.repeats import Repeats
from backfill.settle import loads_on_disk, require_ledger_key, settle

__all__ = ["Matter", "Order", "Resolved", "resolve"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the user asked for. Without a decision, only how things stand is told.

    `exports`: names that `named` makes paths of. `note`: kept in the journal. `ledger_key`: for a ledger that names
    customers by "hmac".
    """

    state: Path
    choice: Choice = field(default_factory=Choice)
    exports: tuple[str, ...] = ()
    decision: Decision | None = None
    note: str | None = None
    ledger_key: str | None = field(default=None, repr=False)


@dataclass(slots=True)
class Matter:
    """What a decision concerns: requests (or parts of them), and their rows by export and by cause.

    `beside`: rows of other exports than were named, which share a request with those and so its fate.
    """

    requests: int = 0
    rows: int = 0
    beside: int = 0
    by_export: dict[str, int] = field(default_factory=dict)
    by_cause: dict[str, int] = field(default_factory=dict)
    sent_from_ms: int | None = None
    sent_until_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """What was decided (or would be), and the account after it."""

    decision: Decision | None
    carried_out: bool
    matter: Matter
    unsent: int
    """Rows in the choice that no execution has sent yet: what --abandon would take."""
    exports: tuple[ExportCounts, ...]


class _Found(NamedTuple):
    """What of one piece is concerned: ledger lines as they stand, and the moves that the decision makes."""

    lines: pl.DataFrame
    parts: int
    moves: list[Recorded]
    beside: int


def resolve(
    order: Order,
    *,
    confirm: Callable[[Matter], bool],
    rows: Callable[[pl.DataFrame], object] | None,
    report: Callable[[Progress], None],
) -> Resolved:
    """Shows what a choice concerns, and decides it if `confirm` agrees.

    `rows` gets the lines concerned, piece by piece, as the ledger has them but with customers' keys in plain.
    Raises: JobHeld, Unusable, UsageError for a load or export that the job does not have, StorageError.
    """
    state = StateDirectory(order.state)
    with state.lock("resolve"):
        job = state.read_job()
        if job is None or not job.loads:
            raise Unusable(f"{order.state} holds no rows yet, so there is nothing to decide.")
        if order.decision is not None:
            require_ledger_key(order.ledger_key, job)
        return _Resolving(order, job).run(confirm, rows, report)


def named(names: Sequence[str], job: JobFile) -> frozenset[str]:
    """The exports meant by `names`: whole paths as in the ledger, or file names where only one export has it.

    Raises: UsageError, naming what there is.
    """
    known = list(dict.fromkeys(export.path for load in job.loads for export in load.exports))
    chosen = set()
    for name in names:
        found = [path for path in known if path == name] or [
            path for path in known if Path(path).name == name or Path(path) == Path(name).absolute()
        ]
        if len(found) != 1:
            problem = "names more than one export" if found else "is no export of this job"
            raise UsageError(f"--export {name} {problem}. There are: {', '.join((found or known)[:5])}.")
        chosen.add(found[0])
    return frozenset(chosen)


class _Resolving:
    def __init__(self, order: Order, job: JobFile) -> None:
        self._order = order
        self._job = job
        self._exports = named(order.exports, job)
        self._check_loads()

    def _check_loads(self) -> None:
        choice, known = self._order.choice, {load.load for load in self._job.loads}
        for number in sorted(choice.loads | {load for load, _ in choice.requests}):
            if number not in known:
                raise UsageError(f"There is no load {number} in this job; it has loads 1 to {len(known)}.")

    def run(
        self,
        confirm: Callable[[Matter], bool],
        rows: Callable[[pl.DataFrame], object] | None,
        report: Callable[[Progress], None],
    ) -> Resolved:
        order = self._order
        with Journal.existing(order.state / "journal.db") as journal:
            journal.must_be_original()
            if order.decision is Decision.ABANDON:
                self._arrange(journal, report)
            matter, unsent = Matter(), 0
            for load, piece in self._pieces():
                found = self._find(journal, load, piece, order.decision or Decision.DELIVERED)
                if found is not None:
                    _add(matter, found)
                    if rows is not None:
                        rows(found.lines)
                if order.decision is None:
                    waiting = self._find(journal, load, piece, Decision.ABANDON)
                    unsent += 0 if waiting is None else waiting.lines.height
            carried_out = order.decision is not None and matter.rows > 0 and confirm(matter)
            exports: tuple[ExportCounts, ...] = ()
            if carried_out:
                exports = self._carry_out(journal, report)
        return Resolved(decision=order.decision, carried_out=carried_out, matter=matter, unsent=unsent, exports=exports)

    def _carry_out(self, journal: Journal, report: Callable[[Progress], None]) -> tuple[ExportCounts, ...]:
        order = self._order
        assert order.decision is not None
        journal.begin(
            command="resolve",
            settings={"decision": order.decision, "choice": _written(order.choice), "exports": sorted(self._exports)},
            pid=os.getpid(),
            host=socket.gethostname(),
            at_ms=_now_ms(),
            note=order.note,
        )
        for load, piece in self._pieces():
            found = self._find(journal, load, piece, order.decision)
            if found is not None:
                _commit(journal, found.moves)
        counts = settle(loads_on_disk(order.state, self._job, order.ledger_key), journal, order.state, report=report)
        journal.end(exit_code=ExitCode.COMPLETE, at_ms=_now_ms())
        return counts

    def _arrange(self, journal: Journal, report: Callable[[Progress], None]) -> None:
        """Rows that shall never be sent may belong to a load that was never wholly arranged: it has no requests yet."""
        for load in self._job.loads:
            if self._order.choice.takes_load(load.load):
                stage.arrange(
                    self._folder(load),
                    _config(self._job, load),
                    repeats=Repeats(self._order.state, load.load, journal),
                    report=report,
                    stopped=lambda: False,
                )

    def _pieces(self) -> Iterator[tuple[Load, Piece]]:
        for load in self._job.loads:
            if self._order.choice.takes_load(load.load):
                folder = self._folder(load)
                for piece in staging.read_manifest(folder).pieces:
                    if staging.is_arranged(folder, piece.piece):
                        yield load, piece

    def _find(self, journal: Journal, load: Load, piece: Piece, decision: Decision) -> _Found | None:
        standings = journal.standings(load.load, piece.first_request, piece.first_request + piece.rows - 1)
        abandons = decision is Decision.ABANDON
        meant = self._unsent(load, piece, standings) if abandons else self._in_doubt(load, standings)
        if not meant:
            return None
        rows = staging.rows(self._folder(load), piece.piece)
        rows = rows.filter(pl.col("request").is_in([part.request for part in meant]))
        exports = [export.path for export in load.exports]
        told = [each._replace(cause=cause(each)) for each in standings]
        lines = _in_parts(sent_lines(rows, told, load=load.load, exports=exports), list(meant))
        chosen = pl.col("export").is_in(list(self._exports)) if self._exports else pl.lit(value=True)
        # A request in doubt has one fate, so all of those that hold a row of the exports.
        lines = lines.filter(chosen) if abandons else lines.filter(chosen.any().over("part"))
        positions = dict(lines.group_by("part").agg(pl.col("position").sort()).iter_rows())
        moves: list[Recorded] = []
        for number, (part, (attempts, marked)) in enumerate(meant.items()):
            if number not in positions:
                continue
            if abandons:
                moves += abandoned(load.load, part, attempts=attempts, marked=marked, positions=positions[number])
            else:
                moves.append(decided(decision, load.load, part, attempts=attempts))
        return _Found(lines.drop("part"), len(positions), moves, lines.filter(~chosen).height)

    def _in_doubt(self, load: Load, standings: Sequence[Standing]) -> "dict[Part, tuple[int, bool]]":
        """The parts in doubt that are meant, each with its attempts and its mark."""
        return {
            each.part: (each.attempts, each.maybe_duplicate)
            for each in standings
            if in_doubt(each) and self._order.choice.takes(load.load, each.part.request, each)
        }

    def _unsent(self, load: Load, piece: Piece, standings: Sequence[Standing]) -> "dict[Part, tuple[int, bool]]":
        """The planned parts that are meant, each with its attempts and its mark."""
        by_request: dict[int, dict[Part, Standing]] = {}
        for standing in standings:
            by_request.setdefault(standing.part.request, {})[standing.part] = standing
        index = staging.request_index(self._folder(load), piece.piece)
        meant = {}
        for request, count in zip(index["request"].to_list(), index["count"].to_list(), strict=True):
            known = by_request.get(request, {})
            for part, attempts, marked in unfinished(Part(request, 0, count), list(known.values())):
                if self._order.choice.takes(load.load, request, known.get(part)):
                    meant[part] = (attempts, marked)
        return meant

    def _folder(self, load: Load) -> Path:
        return self._order.state / "staged" / str(load.load)


def _config(job: JobFile, load: Load) -> RunConfig:
    """The configuration under which a load was frozen; what a load does not keep stands at its default."""
    tenant = {"base_url": job.tenant.base_url, "site_key": job.tenant.site_key, "call": job.tenant.call}
    return parse({**load.config, "api": tenant})


def _in_parts(lines: pl.DataFrame, parts: Sequence[Part]) -> pl.DataFrame:
    """The lines that lie in these parts, each with the number of its own as `part`."""
    spans = pl.DataFrame(
        {
            "part": range(len(parts)),
            "request": [part.request for part in parts],
            "first": [part.first for part in parts],
            "end": [part.first + part.interactions for part in parts],
        },
        schema={"part": pl.Int64, "request": pl.Int64, "first": pl.Int16, "end": pl.Int16},
    )
    inside = (pl.col("position") >= pl.col("first")) & (pl.col("position") < pl.col("end"))
    return lines.join(spans, on="request", maintain_order="left").filter(inside).drop("first", "end")


def _add(matter: Matter, found: _Found) -> None:
    matter.requests += found.parts
    matter.rows += found.lines.height
    matter.beside += found.beside
    for export, count in found.lines["export"].value_counts().iter_rows():
        matter.by_export[export] = matter.by_export.get(export, 0) + count
    causes = found.lines.select(pl.col("reasons").list.first().fill_null("not sent yet")).to_series()
    for why, count in causes.value_counts().iter_rows():
        matter.by_cause[why] = matter.by_cause.get(why, 0) + count
    sent = found.lines["sent_at"].cast(pl.Int64).drop_nulls()
    if len(sent):
        first, last = int(sent.min()), int(sent.max())  # type: ignore[arg-type] # not empty
        matter.sent_from_ms = first if matter.sent_from_ms is None else min(first, matter.sent_from_ms)
        matter.sent_until_ms = last if matter.sent_until_ms is None else max(last, matter.sent_until_ms)


def _commit(journal: Journal, moves: Sequence[Recorded]) -> None:
    """Waits until the moves are durable. Raises: StorageError."""
    durable: Future[StorageError | None] = Future()
    journal.commit(moves, _now_ms(), durable.set_result)
    error = durable.result()
    if error is not None:
        raise error


def _written(choice: Choice) -> Mapping[str, object]:
    return {
        "loads": sorted(choice.loads),
        "requests": sorted(choice.requests),
        "causes": sorted(choice.causes),
        "since_ms": choice.since_ms,
        "until_ms": choice.until_ms,
    }


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
