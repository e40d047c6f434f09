"""One execution of a job: recover, finish what is unfinished, stage what is new, deliver, settle.

Joins the stations and keeps their order; what each of them does it leaves to them. What must never happen here:
anything sent before every named export is known to be new or unchanged.
"""

import hashlib
import json
import math
import os
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from backfill import stage
from backfill.adapters import staging
from backfill.adapters.interaction_api import Credentials
from backfill.adapters.journal import Journal
from backfill.adapters.state import Export, JobFile, Load, StateDirectory, Tenant
from backfill.backlog import Backlog, planned
from backfill.core.account import CustomerKeys
from backfill.core.budget import Hours
from backfill.core.config import RunConfig
from backfill.core.errors import (
    BackfillError,
    ConfigurationError,
    ExitCode,
    StoppedEarly,
    StorageError,
    Unusable,
)
from backfill.core.events import Stopped
from backfill.core.freeze import differences, frozen
from backfill.core.limits import MAX_INTERACTIONS
from backfill.core.summary import ExportCounts, Progress, Summary, exit_code
from backfill.core.window import closes_at as window_closes_at
from backfill.core.window import day_begins_at, takes_s
from backfill.core.window import opens_at as window_opens_at
from backfill.core.window import parse as parse_window
from backfill.deliver import Stop, deliver
from backfill.intake import must_be_unchanged, take_in
from backfill.settle import LoadOnDisk, settle

__all__ = ["Order", "Stop", "execute"]

STATUS_EVERY_S = 1.0
"""`status` shows a running job as it was at most this long ago."""

LAST_REQUEST = 2**62
"""Beyond every request number: for asking about a whole load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the user asked for.

    `exports`: files, directories and globs as given. `limit`: interactions to send at the most, a trial.
    `require_state`: refuse to begin a job anew, as a retry on another machine would. `connect_to`: where the calls
    really go, when that is not `config.api.base_url` (the sandbox has a new port each time, the tenant it stands for
    stays the same).
    """

    config: RunConfig
    exports: tuple[Path, ...]
    state: Path
    credentials: Credentials
    limit: int | None = None
    require_state: bool = False
    connect_to: str | None = None


def execute(order: Order, *, report: Callable[[Progress], None], stop: Stop) -> Summary:
    """Carry out an order and account for it.

    Raises: BackfillError where the job cannot be worked on at all; what stops a delivery stands in the summary.
    """
    state = StateDirectory(order.state)
    if not order.exports and not state.exists():
        raise Unusable(_nothing_to_go_on_with(order.state))
    if order.require_state and not state.exists():
        raise Unusable(
            f"{order.state} holds no job, and --require-state forbids to begin one: rows that were sent from elsewhere "
            "would be sent again. Bring the state directory here, or name the right --state."
        )
    with state.lock("run"):
        return _Execution(order, state, report, stop).run()


class _Execution:
    def __init__(self, order: Order, state: StateDirectory, report: Callable[[Progress], None], stop: Stop) -> None:
        self._order = order
        self._config = order.config
        self._state = state
        self._stop = stop
        self._report_on = report
        self._started_s = time.monotonic()
        self._status_at_s = 0.0
        self._progress: Progress | None = None
        self._calls = 0
        self._left_of_limit = order.limit
        self._stopped: Stopped | None = None
        self._warnings: list[str] = []
        self._not_taken: tuple[Path, ...] = ()
        tenant = Tenant(
            base_url=self._config.api.base_url, site_key=self._config.api.site_key, call=self._config.api.call
        )
        self._job = state.read_job() or JobFile(tenant=tenant)
        self._must_be(tenant)

    def _must_be(self, tenant: Tenant) -> None:
        known = self._job.tenant
        for key in ("base_url", "site_key", "call"):
            before, now = getattr(known, key), getattr(tenant, key)
            if before != now:
                raise ConfigurationError(
                    f"{self._state.path} belongs to another tenant: api.{key} is {now!r} now and was {before!r}. "
                    "Choose another --state for this tenant, or put the key back."
                )

    def run(self) -> Summary:
        if not self._order.exports and not self._job.loads:  # every earlier execution was refused
            raise Unusable(_nothing_to_go_on_with(self._state.path))
        self._sweep()
        with Journal(self._state.path / "journal.db") as journal:
            journal.begin(
                command="run",
                settings=self._config.model_dump(mode="json", include={"budget", "delivery", "api"}),
                pid=os.getpid(),
                host=socket.gethostname(),
                at_ms=time.time_ns() // 1_000_000,
                shape=_shape(self._config),
                resend=self._config.delivery.in_doubt == "resend",
            )
            self._execution = journal.execution
            try:
                summary = self._work(journal)
            except BackfillError as error:
                self._end(journal, error.exit_code)
                raise
            self._end(journal, summary.exit_code)
        return summary

    def _end(self, journal: Journal, code: ExitCode) -> None:
        with suppress(StorageError):  # how it ended is a courtesy; the rows are accounted for without it
            journal.end(exit_code=code, at_ms=time.time_ns() // 1_000_000)
            self._write_status(code)

    def _work(self, journal: Journal) -> Summary:
        unfinished = [load for load in self._job.loads if not self._is_finished(journal, load.load)]
        intake = take_in(self._order.exports, self._job, unfinished={load.load for load in unfinished})
        self._warnings += intake.warnings
        new = self._unfreeze_changed(journal, unfinished, intake.new)
        unfinished = [load for load in unfinished if load in self._job.loads]
        if unfinished or new:
            self._order.credentials.require()
            self._look_at_the_clock(journal)
        for load in unfinished:
            self._go_through(journal, load.load)
        if new and self._stopped is None:
            try:
                staged = self._stage(new)
            except Unusable:
                if unfinished:  # what they came to must stand in the ledger, though the new exports are refused
                    self._settle(journal, intake.named)
                raise
            if staged is not None:
                self._go_through(journal, staged.load)
        if self._stopped is not None:
            taken = {export.path for load in self._job.loads for export in load.exports}
            self._not_taken = tuple(path for path in new if str(path) not in taken)
        return self._settle(journal, intake.named)

    # What is there

    def _sweep(self) -> None:
        """Remove what an execution left that died before its load was frozen: nothing of it was sent."""
        staged = self._state.path / "staged"
        frozen_loads = {str(load.load) for load in self._job.loads}
        if staged.is_dir():
            for folder in staged.iterdir():
                if folder.name not in frozen_loads:
                    _remove(folder)

    def _is_finished(self, journal: Journal, load: int) -> bool:
        folder = self._folder(load)
        if not self._is_arranged(folder):
            return False
        manifest = staging.read_manifest(folder)
        return journal.settled_interactions(load) >= planned(folder, manifest).interactions

    @staticmethod
    def _is_arranged(folder: Path) -> bool:
        return all(staging.is_arranged(folder, piece.piece) for piece in staging.read_manifest(folder).pieces)

    def _unfreeze_changed(
        self, journal: Journal, unfinished: Sequence[Load], new: tuple[Path, ...]
    ) -> tuple[Path, ...]:
        """Compare the frozen keys of unfinished loads. A load that nothing was sent of is spooled again."""
        for load in unfinished:
            changed = differences(load.config, frozen(self._config))
            if not changed:
                continue
            paths = [Path(export.path) for export in load.exports]
            untouched = journal.newest_move(load.load, 0, LAST_REQUEST) == 0
            if not untouched or load is not self._job.loads[-1] or not all(path.exists() for path in paths):
                raise ConfigurationError(
                    f"Load {load.load} is unfinished and was staged with other settings: {'; '.join(changed)}. "
                    "Put them back until it is finished, then change them."
                )
            for path, export in zip(paths, load.exports, strict=True):
                must_be_unchanged(path, export, surely=True)
            self._warnings.append(
                f"Load {load.load}, of which nothing was sent, is staged again: {'; '.join(changed)}."
            )
            self._write_job(replace(self._job, loads=self._job.loads[:-1]))
            _remove(self._folder(load.load))
            new = (*paths, *new)
        return new

    # The stations

    def _stage(self, new: Sequence[Path]) -> Load | None:
        number = len(self._job.loads) + 1
        folder = self._folder(number)
        try:
            spooled = stage.spool(
                new,
                self._config,
                folder,
                load=number,
                now=datetime.now(UTC),
                report=self._report,
                stopped=lambda: self._stop.requested,
            )
        except StoppedEarly as error:
            self._stopped = Stopped(code=ExitCode.STOPPED_EARLY, reason=error.message)
            return None
        load = Load(load=number, config=frozen(self._config), exports=_fingerprints(spooled))
        self._write_job(replace(self._job, loads=(*self._job.loads, load)))  # the freeze
        return load

    def _go_through(self, journal: Journal, load: int) -> None:
        """Arrange and deliver a load, as far as nothing stops it."""
        if self._stopped is not None:
            return
        folder = self._folder(load)
        try:
            stage.arrange(folder, self._config, report=self._report, stopped=lambda: self._stop.requested)
        except StoppedEarly as error:
            self._stopped = Stopped(code=ExitCode.STOPPED_EARLY, reason=error.message)
            return
        allowed = self._look_at_the_clock(journal)
        if allowed is None:
            return
        manifest = staging.read_manifest(folder)
        delivered = deliver(
            load=load,
            backlog=Backlog(folder, load, self._config, journal),
            rows=planned(folder, manifest).interactions,
            rows_done=journal.settled_interactions(load),
            journal=journal,
            config=self._config,
            base_url=self._order.connect_to or self._config.api.base_url,
            credentials=self._order.credentials,
            proven=journal.acknowledged_as(_shape(self._config))
            and journal.refusals_in_a_row() < self._config.delivery.canary_calls,
            allowed=allowed,
            limit=self._left_of_limit,
            report=self._report,
            stop=self._stop,
        )
        self._calls += delivered.calls
        if self._left_of_limit is not None:
            self._left_of_limit -= delivered.interactions
        self._stopped = delivered.stopped

    def _look_at_the_clock(self, journal: Journal) -> Callable[[float], Hours] | None:
        """How long and how much may be sent, as `deliver` asks for it. Outside the window: None, and stopped."""
        budget = self._config.budget
        now = datetime.now(ZoneInfo(budget.window_zone))
        closes_at = opens_at = None
        if budget.window is not None:
            window = parse_window(budget.window)
            closes_at, opens_at = window_closes_at(now, window), window_opens_at(now, window)
            if closes_at is None:
                self._stopped = Stopped(
                    code=ExitCode.STOPPED_EARLY,
                    reason=f"It is {now:%H:%M} in {budget.window_zone}, outside the time window {budget.window} "
                    "(budget.window).",
                    resume_after_s=(opens_at - now).total_seconds(),
                )
                return None
        midnight_ms = int(day_begins_at(now).timestamp() * 1000)
        made = 0 if budget.requests_per_day is None else journal.calls_since(midnight_ms)
        until_s = {
            name: math.inf if at is None else (at - now).total_seconds()
            for name, at in {"closes": closes_at, "opens": opens_at, "day ends": day_begins_at(now, 1)}.items()
        }
        return lambda now_s: Hours(
            closes_at_s=now_s + until_s["closes"],
            opens_at_s=now_s + until_s["opens"],
            calls_today=None if budget.requests_per_day is None else max(0, budget.requests_per_day - made),
            calls_per_day=budget.requests_per_day or 0,
            day_ends_at_s=now_s + until_s["day ends"],
        )

    def _settle(self, journal: Journal, named: Sequence[Path]) -> Summary:
        counts = settle(
            [
                LoadOnDisk(load=load.load, folder=self._folder(load.load), customer_keys=_customer_keys(load))
                for load in self._job.loads
            ],
            journal,
            self._state.path,
            report=self._report,
        )
        names = {str(path) for path in named}
        described = tuple(each for each in counts if not self._order.exports or each.export in names)
        self._warn_of_doubt_elsewhere(counts, described)
        resume_after_s = self._stopped.resume_after_s if self._stopped else None
        budget = self._config.budget
        remaining_calls = sum(self._remaining_calls(load.load, counts) for load in self._job.loads)
        return Summary(
            exports=described,
            exit_code=exit_code(
                described,
                max_rejected=self._config.rows.max_rejected,
                max_in_doubt=self._config.delivery.max_in_doubt,
                stopped=self._stopped.code if self._stopped else ExitCode.COMPLETE,
            ),
            ledger=str(self._state.path / "ledger"),
            state=str(self._state.path),
            execution=self._execution,
            requests=self._calls,
            duration_s=time.monotonic() - self._started_s,
            stopped=self._stopped.reason if self._stopped else None,
            resume_after=None
            if resume_after_s is None
            else (datetime.now(UTC) + timedelta(seconds=resume_after_s)).isoformat(timespec="seconds"),
            remaining_calls=remaining_calls,
            remaining_s=takes_s(
                remaining_calls,
                per_second=budget.requests_per_second,
                per_day=budget.requests_per_day,
                window=None if budget.window is None else parse_window(budget.window),
            ),
            not_taken=tuple(str(path) for path in self._not_taken),
            warnings=tuple(self._warnings),
        )

    def _remaining_calls(self, load: int, counts: Sequence[ExportCounts]) -> int:
        """About how many calls the unsent rows of a load take: as many to a call as in the whole load."""
        unsent = sum(each.outcomes.get("unsent", 0) for each in counts if each.load == load)
        folder = self._folder(load)
        if not unsent or not self._is_arranged(folder):
            return -(-unsent // MAX_INTERACTIONS)
        plan = planned(folder, staging.read_manifest(folder))
        return math.ceil(unsent * plan.requests / plan.interactions)

    def _warn_of_doubt_elsewhere(self, counts: Sequence[ExportCounts], described: Sequence[ExportCounts]) -> None:
        elsewhere = sum(each.outcomes.get("in_doubt", 0) for each in counts if each not in described)
        if elsewhere:
            self._warnings.append(f"{elsewhere:,} rows of other exports are in doubt.")

    # Small things

    def _folder(self, load: int) -> Path:
        return self._state.path / "staged" / str(load)

    def _write_job(self, job: JobFile) -> None:
        self._state.write_job(job)
        self._job = job

    def _report(self, progress: Progress) -> None:
        self._report_on(progress)
        self._progress = progress
        if time.monotonic() - self._status_at_s >= STATUS_EVERY_S:
            with suppress(StorageError):  # news only; a full disk is noticed where it matters
                self._write_status(None)

    def _write_status(self, code: ExitCode | None) -> None:
        self._status_at_s = time.monotonic()
        progress = self._progress._asdict() if self._progress else {"phase": "starting"}
        self._state.write_status(
            {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "execution": self._execution,
                "running_s": round(time.monotonic() - self._started_s, 1),
                "updated_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "exit_code": None if code is None else int(code),
                "stopped": self._stopped.reason if self._stopped else None,
                **progress,
            }
        )


def _shape(config: RunConfig) -> str:
    """One word for all that the API's answers depend on: after a change of it nothing is proven any more."""
    parts = config.model_dump(
        mode="json", include={"api": {"base_url", "site_key", "call"}, "wire": True, "columns": True}
    )
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _nothing_to_go_on_with(state: Path) -> str:
    return f"{state} holds no job yet, so there is nothing to go on with. Name the exports to send."


def _customer_keys(load: Load) -> CustomerKeys:
    return "omit" if load.config["ledger"]["customer_key"] == "omit" else "plain"


def _fingerprints(spooled: staging.Manifest) -> tuple[Export, ...]:
    return tuple(
        Export(path=each.path, size=each.size, mtime_ns=each.mtime_ns, sha256=each.sha256, rows=each.rows)
        for each in spooled.exports
    )


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise StorageError(f"{folder} cannot be removed ({error.strerror}). Remove it, then run again.") from error
