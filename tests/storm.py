"""The storm: SIGKILL a real job at random instants, run it again and again, then hold its ledger against the server.

    python -m tests.storm --kills 300 [--seed 1] [--misbehave RULE]...

The server is a sandbox in a process of its own, with its own log; it outlives every kill. Each round adds an export,
and is killed while spooling, arranging, delivering and settling. Exits 1 when an invariant is broken.
"""

import argparse
import contextlib
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.account import Findings, Row, Truth, check, server_log

PHASES = ("spooling", "arranging", "delivering", "delivering", "delivering", "settling")
BUDGET = 300.0
CONCURRENCY = 8
TROUBLE = ("drop=after,every=41", "reset=read,every=53", "status=503,every=29", "status=500,applied=yes,every=67")
"""What a bad day looks like: lost replies, resets, a busy server, errors after applying."""

GIVE_UP_S = 120.0


def write_export(path: Path, number: int, rows: int, seed: int) -> list[Row]:
    """An export with a few invalid rows and a few duplicates. Returns what is in it."""
    chance = random.Random(f"{seed}-{number}")
    begin = datetime(2024, 1, 1, tzinfo=UTC)
    written: list[Row] = []
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["n", "timestamp", "customer_key", "url"])
        for index in range(rows):
            if written and chance.random() < 0.005 and written[-1].valid:
                row = written[-1]  # the same interaction again
            else:
                moment = begin + timedelta(seconds=chance.randrange(10**7), milliseconds=chance.randrange(1000))
                valid = chance.random() >= 0.005
                customer = f"{int(chance.paretovariate(0.9)) % 4000:06}" if valid else ""
                row = Row(number * 10**7 + index, customer, moment.isoformat(timespec="milliseconds"), valid)
            written.append(row)
            writer.writerow([row.n, row.timestamp, row.customer, "api://shop/visit"])
    return written


@contextlib.contextmanager
def sandbox(log: Path, *misbehave: str) -> Iterator[str]:
    """A sandbox in a process of its own; yields its base URL."""
    command = [sys.executable, "-m", "backfill", "sandbox", "--json", "--port", "0", "--log", str(log)]
    for rule in misbehave:
        command += ["--misbehave", rule]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["base_url"]
    finally:
        process.terminate()
        process.wait(10)


@dataclass
class Storm:
    """One job in its own directory. `module`: what is run (a broken variant, for the checker's own test)."""

    folder: Path
    seed: int = 1
    rows: int = 20_000
    module: Sequence[str] = ("backfill",)
    truth: dict[str, list[Row]] = field(default_factory=dict)
    kills: int = 0
    kills_by_phase: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.log = self.folder / "server"
        self.state = self.folder / "state"
        self.exports = self.folder / "exports"
        self.exports.mkdir(parents=True)

    def configure(self, base_url: str) -> None:
        (self.folder / "backfill.toml").write_text(
            f'[api]\nbase_url = "{base_url}"\nsite_key = "ONE-STORM-0001"\n'
            f"[budget]\nrequests_per_second = {BUDGET:g}\nconcurrency = {CONCURRENCY}\n"
            "[delivery]\nbackoff_base_s = 0.05\nmax_attempts = 50\nmax_in_doubt = 10000000\n"
            '[rows]\nmax_rejected = "2%"\n'
        )

    def start(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", *self.module, "run", "--config", str(self.folder / "backfill.toml")]
        command += ["--state", str(self.state), str(self.exports)]
        environment = os.environ | {"BACKFILL_CLIENT_ID": "storm", "BACKFILL_CLIENT_SECRET": "made-up"}
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=(self.folder / "stderr.log").open("ab")
        )

    def round(self, number: int, phases: Sequence[str]) -> None:
        """One more export, killed once in each of these phases, then run to its end."""
        path = self.exports / f"export-{number:03}.csv"
        self.truth[str(path)] = write_export(path, number, self.rows, self.seed)
        for phase in phases:
            self.kill_in(phase)
        self.finish()

    def kill_in(self, phase: str) -> bool:
        """Start an execution and kill it some time into a phase; False if it ended before."""
        reached = self._reached(phase)
        process = self.start()
        deadline = time.monotonic() + GIVE_UP_S
        while not reached():
            if process.poll() is not None:
                return False
            assert time.monotonic() < deadline, f"{phase} was not reached"
            time.sleep(0.0005)
        time.sleep(
            self.chance.random() * {"spooling": 0.05, "arranging": 0.05, "delivering": 0.5, "settling": 0.05}[phase]
        )
        process.send_signal(signal.SIGKILL)
        ended = process.wait()
        if ended != -signal.SIGKILL:
            return False
        self.kills += 1
        self.kills_by_phase[phase] = self.kills_by_phase.get(phase, 0) + 1
        return True

    def _reached(self, phase: str) -> Callable[[], bool]:
        """Whether a new execution has come to this phase or beyond: by the files that appear, and the server's log."""
        marks = (self._runs, self._rows, self._received, self._ledger_files)
        later = marks[("spooling", "arranging", "delivering", "settling").index(phase) :]
        before = [mark() for mark in later]
        return lambda: any(mark() != known for mark, known in zip(later, before, strict=True))

    def _runs(self) -> object:
        return set((self.state / "staged").glob("*/run-*"))

    def _rows(self) -> object:
        return set((self.state / "staged").glob("*/rows-*"))

    def _received(self) -> object:
        log = self.log / "requests.jsonl"
        return log.stat().st_size if log.exists() else 0

    def _ledger_files(self) -> object:
        found = set()
        for path in (self.state / "ledger").glob("*/*"):
            with contextlib.suppress(FileNotFoundError):  # it was renamed meanwhile
                found.add((path.name, path.stat().st_mtime_ns))
        return found

    def finish(self) -> int:
        """Run to the end without a kill."""
        code = self.start().wait(GIVE_UP_S)
        assert code in (0, 3), f"the last run ended with {code}: {(self.folder / 'stderr.log').read_text()[-2000:]}"
        return code

    def findings(self) -> Findings:
        """Hold the ledger against the server; one more run must send nothing (I9)."""
        calls = len(server_log(self.log, "requests"))
        self.finish()
        again = len(server_log(self.log, "requests")) - calls
        findings = check(
            self.state,
            self.log,
            Truth(self.truth),
            budget=BUDGET,
            concurrency=CONCURRENCY,
            kills=self.kills,
        )
        if again:
            findings.violations.append(f"I9: a run after completion made {again} calls")
        verified = subprocess.run(
            [sys.executable, "-m", "backfill", "verify", "--state", str(self.state)], capture_output=True, check=False
        )
        if verified.returncode:
            findings.violations.append(f"verify disagrees: {verified.stdout.decode()[-2000:]}")
        return findings


def storm(
    folder: Path,
    *,
    kills: int,
    seed: int,
    misbehave: Sequence[str] = TROUBLE,
    rows: int = 20_000,
    module: Sequence[str] = ("backfill",),
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Storm, Findings]:
    """Kill a job so many times, then check it."""
    stormy = Storm(folder, seed=seed, rows=rows, module=module)
    with sandbox(stormy.log, *misbehave) as base_url:
        stormy.configure(base_url)
        number = 0
        while stormy.kills < kills:
            number += 1
            stormy.round(number, PHASES[: kills - stormy.kills])
            say(f"round {number}: {stormy.kills} kills {stormy.kills_by_phase}")
        return stormy, stormy.findings()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.storm", description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rows", type=int, default=20_000, help="rows of each export")
    parser.add_argument("--misbehave", action="append", default=None, help="a rule of the sandbox")
    parser.add_argument("--variant", help="a broken variant of tests.broken, which must be caught")
    parser.add_argument("--keep", type=Path, help="work in this new folder and leave it")
    options = parser.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="storm-"))
    began_s = time.monotonic()
    stormy, findings = storm(
        folder.resolve(),
        kills=options.kills,
        seed=options.seed,
        misbehave=TROUBLE if options.misbehave is None else options.misbehave,
        rows=options.rows,
        module=("tests.broken", options.variant) if options.variant else ("backfill",),
        say=print,
    )
    print(
        f"{stormy.kills} kills {stormy.kills_by_phase}, {findings.rows:,} rows, {findings.applied:,} applied, "
        f"{findings.doubted_rows:,} named in doubt, at most {findings.most_in_a_second} calls in a second "
        f"(budget {BUDGET:g}), {time.monotonic() - began_s:.0f} s"
    )
    for violation in findings.violations:
        print(f"VIOLATED {violation}")
    if options.keep is None:
        shutil.rmtree(folder)
    return 1 if findings.violations else 0


if __name__ == "__main__":
    sys.exit(main())
