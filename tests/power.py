"""Power cuts: the disk under a real job loses its power at random instants; then the job is run again.

    python -m tests.power --cuts 60 [--seed 1]

Needs root and Linux with loop devices (exit code 77 and the reason where that is missing). The state directory lies on
a disk of its own (tests/power_disk.py); the server, its log and the exports do not. After each cut the job must stop by
itself with 74, what the disk held is mounted again, and the same command goes on. One that ended well must have nothing
left to do. At the end the ledger is held against the server's log. Exits 1 when a promise is broken.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.account import AGENT, Row, Truth, check
from tests.command import BEGIN, CLIENT_ID, SECRET, SITE_KEY, Server, Visit, serving, write_csv
from tests.power_disk import Cut, Disk, Unavailable, disk
from tests.undurable import VARIANTS

UNAVAILABLE = 77
BUDGET = 300.0
CONCURRENCY = 8
PHASES = ("starting", "spooling", "arranging", "delivering", "settling", "finished")
ROWS = 16_000
"""Eight lanes, so that as many requests are in the air as the budget allows."""

TROUBLE = ("latency_ms=10", "drop=after,every=97")
"""Replies that take their time, so that a cut finds some under way; some never come, which is doubt without a cut.
Nothing that slows the job down: the storm sees to that."""

GIVE_UP_S = 120.0
STOPS_WITHIN_S = 20.0
ENDED_WELL = (0, 3)
STORAGE_FAILED = 74


class Lost(Exception):
    """The job cannot go on after a cut: nothing more can be learned from it."""


@dataclass
class Report:
    """What came of it all. `late`: calls that reached the server after the first failed commit of their execution;
    `unbacked`: those of them whose intent was not durable by then."""

    cuts: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    codes: Counter[int] = field(default_factory=Counter)
    slowest_stop_s: float = 0.0
    rows: int = 0
    applied: int = 0
    in_doubt: int = 0
    doubted_by_cuts: int = 0
    failed_commits: int = 0
    late: int = 0
    unbacked: int = 0
    violations: list[str] = field(default_factory=list)


class Power:
    """One job whose state lies on a disk that loses its power. `variant`: of tests.undurable."""

    def __init__(self, folder: Path, disk: Disk, server: Server, *, seed: int, rows: int, variant: str) -> None:
        self.report = Report()
        self._folder = folder
        self._disk = disk
        self._state = disk.mount / "state"
        self._server = server
        self._exports = folder / "exports"
        self._exports.mkdir()
        self._note = folder / "failed-commits"
        self._note.touch()
        self._variant = variant
        self._rows = rows
        self._seed = seed
        self._chance = random.Random(seed)
        self._truth: dict[str, list[Visit]] = {}
        self._durations_s: dict[str, float] = {}
        self._runs: list[float] = []
        self._last_code = 0
        (folder / "backfill.toml").write_text(
            f'[api]\nbase_url = "{server.base_url}"\nsite_key = "{SITE_KEY}"\n'
            f"[budget]\nrequests_per_second = {BUDGET:g}\nconcurrency = {CONCURRENCY}\n"
            "[delivery]\nbackoff_base_s = 0.05\nmax_attempts = 50\nmax_in_doubt = 10000000\n"
            '[rows]\nmax_rejected = "2%"\n'
        )

    # One execution

    def _start(self) -> "subprocess.Popen[bytes]":
        self._runs.append(time.time())
        words = ["run", "--config", str(self._folder / "backfill.toml"), "--state", str(self._state)]
        with (self._folder / "stderr.log").open("wb") as err:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.undurable", self._variant, str(self._note), *words, str(self._exports)],
                env=os.environ | {"BACKFILL_CLIENT_ID": CLIENT_ID, "BACKFILL_CLIENT_SECRET": SECRET},
                stdout=subprocess.DEVNULL,
                stderr=err,
            )

    def _said(self) -> str:
        return (self._folder / "stderr.log").read_text()[-2000:]

    def _ended(self, process: "subprocess.Popen[bytes]", within_s: float) -> int:
        try:
            code = process.wait(within_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            code = process.wait()
            self._violated(f"a job went on for {within_s:g} s after the cut")
        if "Traceback" in self._said():
            self._violated(f"a traceback: {self._said()}")
        return code

    def _violated(self, what: str) -> None:
        self.report.violations.append(what)

    def _command(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "backfill", *words, "--state", str(self._state)],
            capture_output=True,
            text=True,
            check=False,
        )

    def finish(self) -> int:
        """Run to the end. Returns the calls that this took."""
        before = len(self._server.calls())
        code = self._ended(self._start(), GIVE_UP_S)
        if code not in ENDED_WELL:
            self._violated(f"a run after the cuts ended with {code}: {self._said()}")
            raise Lost
        return len(self._server.calls()) - before

    # The cuts

    def rehearse(self) -> None:
        """An export without a cut, to see how long each phase takes on this machine."""
        self._add_export()
        process = self._start()
        marks = [self._mark(phase) for phase in PHASES[:-1]]
        seen_s = {}
        for phase, mark in zip(PHASES, marks, strict=False):
            before = mark()
            while mark() == before and process.poll() is None:
                time.sleep(0.0005)
            seen_s[phase] = time.monotonic()
        code = self._ended(process, GIVE_UP_S)
        if code not in ENDED_WELL:
            raise RuntimeError(f"a run without any cut ended with {code}: {self._said()}")
        seen_s["finished"] = time.monotonic()
        self._durations_s = {phase: max(0.0, seen_s[later] - seen_s[phase]) for phase, later in pairwise(PHASES)} | {
            "finished": 0.05
        }

    def cut_in(self, phase: str) -> None:
        """Start an execution and cut the power at a random instant of a phase; then plug the disk in again."""
        if phase in ("starting", "spooling", "arranging") or self._ended_well:
            self._add_export()
        later = PHASES[PHASES.index(phase) :]
        marks = {each: self._mark(each) for each in later}
        known = {each: mark() for each, mark in marks.items()}
        process = self._start()
        marks["finished"] = process.poll
        deadline_s = time.monotonic() + GIVE_UP_S
        while marks[phase]() == known[phase] and process.poll() is None:
            assert time.monotonic() < deadline_s, f"{phase} was not reached"
            time.sleep(0.0005)
        known |= {each: marks[each]() for each in later[1:] if each != "finished"}
        # Most of the last phase is the process leaving: what it writes comes in the first moments.
        share = self._chance.random() ** (3 if phase == "settling" else 1)
        time.sleep(share * self._durations_s[phase])
        reached = [each for each in later[1:] if marks[each]() != known[each]]
        how = self._chance.choice(list(Cut))
        at_s = self._disk.cut(how, process)
        self.report.cuts[reached[-1] if reached else phase] += 1
        self.report.kinds[how.name] += 1
        self._after_the_cut(process, at_s)

    def _mark(self, phase: str) -> Callable[[], object]:
        """What changes when an execution comes to this phase: files that appear, and the server's log."""
        return {
            "starting": lambda: _content(self._state / "lock"),
            "spooling": lambda: set((self._state / "staged").glob("*")),
            "arranging": lambda: set((self._state / "staged").glob("*/manifest.json")),
            "delivering": lambda: _size(self._server.log / "requests.jsonl"),
            "settling": lambda: {(path, _changed(path)) for path in (self._state / "ledger").glob("*/*")},
            "finished": lambda: None,
        }[phase]

    def _add_export(self) -> None:
        path = self._exports / f"export-{len(self._truth):03}.csv"
        self._truth[str(path)] = rows = _some_visits(self._chance, len(self._truth) * 10**7, self._rows)
        write_csv(path, rows)

    @property
    def _ended_well(self) -> bool:
        return self._last_code in ENDED_WELL

    def _after_the_cut(self, process: "subprocess.Popen[bytes]", at_s: float) -> None:
        code = self._last_code = self._ended(process, STOPS_WITHIN_S)
        self.report.codes[code] += 1
        self.report.slowest_stop_s = max(self.report.slowest_stop_s, time.time() - at_s)
        if code not in (STORAGE_FAILED, *ENDED_WELL):
            self._violated(f"a job without a disk ended with {code}: {self._said()}")
        self._disk.replug()
        if (self._state / "job.toml").exists():
            status = self._command("status")
            if status.returncode:
                self._violated(f"`status` after a cut ended with {status.returncode}: {status.stderr[-1000:]}")
        if code in ENDED_WELL:
            self._stays_finished()

    def _stays_finished(self) -> None:
        """A job that said it was complete before the cut is complete after it, and nothing has to be mended."""
        verified = self._command("verify")
        if verified.returncode:
            self._violated(f"a finished job was not on the disk: {(verified.stdout + verified.stderr)[-2000:]}")
        calls = self.finish()
        if calls:
            self._violated(f"I9: a rerun of a job that had finished before the cut made {calls} calls")

    # The account

    def settle_accounts(self) -> None:
        """Run to the end, hold the ledger against the server's log; another run must send nothing."""
        self.finish()
        again = self.finish()
        if again:
            self._violated(f"I9: a run after completion made {again} calls")
        report = self.report
        findings = check(
            self._state,
            self._server.log,
            Truth(
                {
                    path: [Row(row.n, row.customer, row.at.isoformat(), row.valid) for row in rows]
                    for path, rows in self._truth.items()
                }
            ),
            budget=BUDGET,
            concurrency=CONCURRENCY,
            kills=report.cuts.total(),
        )
        report.violations += findings.violations
        report.rows, report.applied, report.in_doubt = findings.rows, findings.applied, findings.doubted_rows
        ((report.doubted_by_cuts,),) = self._journal("SELECT coalesce(sum(count), 0) FROM move WHERE move = 'lost'")
        self._late_calls()
        if report.unbacked or report.late > CONCURRENCY * report.failed_commits:
            self._violated(f"{report.late} calls after a failed commit, {report.unbacked} without a durable intent")
        verified = self._command("verify")
        if verified.returncode:
            self._violated(f"verify disagrees: {verified.stdout[-2000:]}")

    def _late_calls(self) -> None:
        """Calls that arrived between the first failed commit of an execution and the start of the next one."""
        failed = [float(line) for line in self._note.read_text().split()]
        intents: dict[tuple[int, ...], float] = {
            tuple(key): at / 1000
            for *key, at in self._journal(
                "SELECT load, request, first, count, attempt, at FROM move WHERE move = 'intent'"
            )
        }
        calls = []
        for call in self._server.calls():
            agent = AGENT.search(call["user_agent"])
            assert agent is not None
            load, request, first, last, attempt = map(int, agent.groups())
            calls.append((float(call["at"]), (load, request, first, last - first + 1, attempt)))
        for began, ended in zip(self._runs, [*self._runs[1:], time.time()], strict=True):
            first_failed = min((at for at in failed if began <= at < ended), default=None)
            if first_failed is None:
                continue
            self.report.failed_commits += 1
            late = [key for at, key in calls if first_failed < at < ended]
            self.report.late += len(late)
            self.report.unbacked += sum(intents.get(key, ended) > first_failed for key in late)

    def _journal(self, query: str) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(f"file:{self._state / 'journal.db'}?mode=ro", uri=True)) as connection:
            return connection.execute(query).fetchall()


def _some_visits(chance: random.Random, first: int, count: int) -> list[Visit]:
    """Interactions of a few busy and many other customers at random times; some invalid, some twice."""
    rows: list[Visit] = []
    for n in range(first, first + count):
        if rows and chance.random() < 0.005:
            rows.append(rows[-1])
            continue
        who = chance.randrange(5) if chance.random() < 0.1 else chance.randrange(4000)
        customer = f"{who:06}" if chance.random() >= 0.005 else ""
        rows.append(Visit(n, customer, BEGIN + timedelta(seconds=chance.randrange(10**7))))
    return rows


def _content(path: Path) -> bytes | None:
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes()
    return None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _changed(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):  # it was renamed meanwhile
        return path.stat().st_mtime_ns
    return 0


def power(
    folder: Path,
    *,
    cuts: int,
    seed: int,
    rows: int = ROWS,
    variant: str = "none",
    phases: Sequence[str] = PHASES,
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """Cut the power so many times, evenly in these phases, then settle accounts. Raises: Unavailable."""
    # The server first: it must not live in the namespace of the disk, which would then outlive us with it.
    with serving(folder / "server", *TROUBLE) as server, disk(folder) as plugged:
        job = Power(folder, plugged, server, seed=seed, rows=rows, variant=variant)
        job.rehearse()
        with contextlib.suppress(Lost):
            while job.report.cuts.total() < cuts:
                phase = min(phases, key=lambda each: job.report.cuts[each])
                job.cut_in(phase)
                say(f"{job.report.cuts.total()} cuts {dict(job.report.cuts)}")
            job.settle_accounts()
        return job.report


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.power", description=__doc__)
    parser.add_argument("--cuts", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rows", type=int, default=ROWS, help="rows of each export")
    parser.add_argument("--phase", action="append", choices=PHASES, help="cut in this phase only")
    parser.add_argument("--variant", choices=VARIANTS, default="none", help="which sync is forgotten")
    parser.add_argument("--json", action="store_true", help="print the report as one object")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="power-")).resolve()
    began_s = time.monotonic()
    try:
        report = power(
            folder,
            cuts=options.cuts,
            seed=options.seed,
            rows=options.rows,
            variant=options.variant,
            phases=options.phase or PHASES,
            say=(lambda _: None) if options.json else print,
        )
    except Unavailable as error:
        print(f"No power was cut: {error}.")
        return UNAVAILABLE
    finally:
        shutil.rmtree(folder)
    if options.json:
        print(json.dumps(vars(report)))
    else:
        print(
            f"{report.cuts.total()} cuts {dict(report.cuts)} {dict(report.kinds)}; exit codes {dict(report.codes)}, "
            f"at most {report.slowest_stop_s:.2f} s after the cut\n"
            f"{report.rows:,} rows, {report.applied:,} applied, {report.in_doubt:,} named in doubt, "
            f"{report.doubted_by_cuts:,} of them by cuts\n"
            f"{report.failed_commits} failed commits: {report.late} calls in the air arrived after them, "
            f"{report.unbacked} without a durable intent; {time.monotonic() - began_s:.0f} s"
        )
        for violation in report.violations:
            print(f"VIOLATED {violation}")
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
