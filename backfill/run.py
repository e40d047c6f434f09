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
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from backfill import stage
from backfill.adapters import staging
from backfill.adapters.exports import Located, located
from backfill.adapters.interaction_api import Credentials
from backfill.adapters.journal import Journal
from backfill.adapters.seen import Seen
from backfill.adapters.state import Export, JobFile, Load, StateDirectory, Tenant
from backfill.backlog import Backlog, planned
from backfill.core.budget import Hours, calls_per_second
from backfill.core.calls import CALLS
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
from backfill.core.proxy import Proxies
from backfill.core.summary import ExportCounts, Progress, Summary, exit_code
from backfill.core.window import closes_at as window_closes_at
from backfill.core.window import day_begins_at, takes_s
from backfill.core.window import opens_at as window_opens_at
from backfill.core.window import parse as parse_window
from backfill.core.wording import nothing_to_go_on_with
from backfill.deliver import Stop, deliver
from backfill.intake import take_in, what_became_of
from backfill.repeats import Repeats, is_remembered
from backfill.settle import loads_on_disk, must_not_be_ahead, require_ledger_key, settle

__all__ = ["Order", "Stop", "execute"]

STATUS_EVERY_S = 1.0
"""`status` shows a running job as it was at most this long ago."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the user asked for.

    `exports`: files, directories and globs as given. `changed`: known ones with other content are taken as new.
    `limit`: interactions to send at the most, a trial.
    `connect_to`: where the calls really go, when that is not `config.api.base_url` (the sandbox has a new port each
    time, the tenant it stands for stays the same). `proxies`: what leads to both, and to where tokens come from.
    `ledger_key`: for a ledger that names customers by "hmac".
    """

    config: RunConfig
    exports: tuple[Located, ...]
    state: Path
    credentials: Credentials
    changed: bool = False
    limit: int | None = None
    connect_to: str | None = None
    proxies: Proxies = field(default_factory=Proxies)
    ledger_key: str | None = field(default=None, repr=False)


def execute(order: Order, *, report: Callable[[Progress], None], stop: Stop) -> Summary:
    """Carry out an order and account for it. The caller holds the lock of the state directory.

    Raises: BackfillError where the job cannot be worked on at all; what stops a delivery stands in the summary.
    """
    return _Execution(order, StateDirectory(order.state), report, stop).run()


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
        self._not_taken: tuple[Located, ...] = ()
        tenant = Tenant(
            base_url=self._config.api.base_url, site_key=self._config.api.site_key, call=self._config.api.call
        )
        self._job = state.read_job() or JobFile(tenant=tenant)
        self._must_be(tenant)
        require_ledger_key(order.ledger_key, self._job, self._config.ledger.customer_key)

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
        place = self._state.path / "journal.db"
        nothing_to_do = not self._order.exports and not self._job.loads  # every earlier execution was refused
        if nothing_to_do and not place.exists():
            raise Unusable(nothing_to_go_on_with(self._state.path))
        # It is made before the first load is frozen, so beside a load an empty one is a lost one.
        with Journal(place, must_exist=bool(self._job.loads)) as journal:
            journal.must_be_original()
            self._must_know_what_was_sent(journal)
            if nothing_to_do:
                raise Unusable(nothing_to_go_on_with(self._state.path))
            self._sweep()
            Seen(self._state.path).forget_after(len(self._job.loads))
            journal.begin(
                command="run",
                settings=self._config.model_dump(
                    mode="json", include={"budget": True, "delivery": True, "api": True, "rows": {"max_rejected"}}
                ),
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
        intake = take_in(
            self._order.exports,
            self._job,
            unfinished={load.load for load in unfinished},
            changed=self._order.changed,
        )
        self._warnings += intake.warnings
        self._must_be_known_again(intake.changed)
        if unfinished or intake.new:
            self._order.credentials.require()
            self._order.proxies.require(self._config.api.base_url, self._config.api.token_url)
            self._look_at_the_clock(journal)
        new = self._unfreeze_changed(journal, unfinished, intake.new)
        unfinished = [load for load in unfinished if load in self._job.loads]
        for load in unfinished:
            self._go_through(journal, load.load)
        staged = None
        if new and self._stopped is None:
            try:
                staged = self._stage(journal, new)
            except Unusable:
                # What the others came to must stand in the ledger, and nothing of a load that is not there any more.
                if unfinished or new != intake.new:
                    self._settle(journal, intake.named)
                raise
            if staged is not None:
                self._go_through(journal, staged.load)
        if staged is None:
            self._not_taken = tuple(new)
        return self._settle(journal, intake.named)

    # What is there

    def _must_know_what_was_sent(self, journal: Journal) -> None:
        """A job.toml that was lost, or put back from before the newest load, would have its rows sent again."""
        unknown = len(self._job.loads) + 1
        if not journal.is_unapplied(unknown):
            place = self._state.path / "job.toml"
            raise StorageError(
                f"{place} {'is older than the journal' if place.exists() else 'is missing'}: load {unknown} was sent, "
                "wholly or in part, and nothing tells what is in it. Restore it from a backup; do not begin anew, or "
                "rows would be sent again."
            )
        must_not_be_ahead(loads_on_disk(self._state.path, self._job), journal, self._state.path)

    def _sweep(self) -> None:
        """Remove what an execution left that died before its load was frozen: nothing of it was sent."""
        staged = self._state.path / "staged"
        frozen_loads = {str(load.load) for load in self._job.loads}
        if staged.is_dir():
            for folder in staged.iterdir():
                if folder.name not in frozen_loads:
                    _remove(folder)

    def _must_be_known_again(self, changed: Sequence[Located]) -> None:
        """Of an export that was staged before, only the new rows may be sent: so the others must be told from them."""
        if changed and self._config.rows.duplicates == "send":
            raise ConfigurationError(
                f'{changed[0]} was staged before, and under rows.duplicates = "send" --changed would send all of its '
                'rows again. Set rows.duplicates = "skip", or give the rows that are new a file with a new name.'
            )
        for load in self._job.loads:
            again = sorted({export.path for export in load.exports} & set(map(str, changed)))
            if again and not is_remembered(self._state.path, load.load):
                raise Unusable(
                    f"{again[0]} was staged before in load {load.load}, of which {self._state.path / 'seen'} holds too "
                    "little to tell its rows from new ones, so --changed would send some again. Restore seen from a "
                    "backup, or give the rows that are new a file with a new name."
                )

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
        self, journal: Journal, unfinished: Sequence[Load], new: tuple[Located, ...]
    ) -> tuple[Located, ...]:
        """Compare the frozen keys of unfinished loads. One of which nothing may have been applied is spooled again."""
        for load in unfinished:
            changed = "; ".join(differences(load.config, frozen(self._config)))
            if not changed:
                continue
            hindrance = self._hindrance(journal, load)
            if hindrance is not None:
                raise ConfigurationError(
                    f"Load {load.load} is unfinished and was staged with other settings: {changed}. {hindrance} "
                    "Put the settings back until it is finished, then change them."
                )
            if self._stopped is not None:  # outside the time window: it stays as it is
                continue
            self._warnings.append(
                f"Load {load.load}, of which nothing can have been applied, is staged again: {changed}."
            )
            self._write_job(replace(self._job, loads=self._job.loads[:-1]))
            _remove(self._folder(load.load))
            Seen(self._state.path).forget_after(load.load - 1)
            new = (*(located(export.path) for export in load.exports), *new)
        return new

    def _hindrance(self, journal: Journal, load: Load) -> str | None:
        """Why a load cannot be spooled again with other settings, as a sentence; None if it can."""
        if load is not self._job.loads[-1] or not journal.is_unapplied(load.load):
            return "Rows of it were sent, or decided about, so it keeps those."
        for export in load.exports:
            became = what_became_of(located(export.path), export, surely=True)
            if became is not None:
                return f"It can be staged anew only from its exports as they were, but {export.path}: {became}"
        return None

    # The stations

    def _stage(self, journal: Journal, new: Sequence[Located]) -> Load | None:
        number = len(self._job.loads) + 1
        folder = self._folder(number)
        try:
            spooled = stage.spool(
                new,
                self._config,
                folder,
                load=number,
                first_request=journal.highest_request(number) + 1,
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
            stage.arrange(
                folder,
                self._config,
                repeats=Repeats(self._state.path, load, journal),
                report=self._report,
                stopped=lambda: self._stop.requested,
            )
        except StoppedEarly as error:
            self._stopped = Stopped(code=ExitCode.STOPPED_EARLY, reason=error.message)
            return
        if self._is_finished(journal, load):  # all of it was met before: not even a token is needed
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
            proxies=self._order.proxies,
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

    def _settle(self, journal: Journal, named: Sequence[Located]) -> Summary:
        counts = settle(
            loads_on_disk(self._state.path, self._job, self._order.ledger_key),
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
        unsent = sum(each.outcomes.get("unsent", 0) for each in counts)
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
                per_second=calls_per_second(
                    requests_per_second=budget.requests_per_second,
                    interactions_per_second=budget.interactions_per_second,
                    interactions_per_call=unsent / max(1, remaining_calls),
                ),
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
            return -(-unsent // CALLS[self._config.api.call].most)
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
