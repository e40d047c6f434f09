"""The storm: SIGKILL a real job at chosen and at random instants, run it again and again, then hold its ledger
against the server.

    python -m tests.storm --kills 300 [--seed 1] [--misbehave RULE]...

The server is a sandbox in a process of its own, with its own log; it outlives every kill. Each round adds an export and
has weather of its own: a server that loses replies, a busy one, a fair one. Some kills are carried out by the server
itself, at the instant it has the head or the body of a request, has applied it or has replied (tests/instants.py);
some meet a job whose journal is slow (tests/slowed.py). Exits 1 when an invariant is broken.
"""

import argparse
import contextlib
import csv
import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from tests.account import Findings, Row, Truth, check, server_log
from tests.instants import Instant, Order

BUDGET = 100.0
CONCURRENCY = 8
SLOW_MS = (5.0, 40.0)
"""How long each commit of a slow journal waits before SQLite gets it: far longer than a request needs to arrive."""

GIVE_UP_S = 180.0


class Weather(NamedTuple):
    """How the server behaves for a round. `latency_ms` keeps several requests in the air, so that a kill meets some."""

    name: str
    rules: tuple[str, ...]
    token_uses: int | None = None


LOSING = Weather(
    "losing",
    (
        *("drop=before,every=97", "drop=read,every=83", "drop=after,every=41", "body=cut,every=89"),
        *("reset=before,every=107", "reset=read,every=53", "reset=after,every=73"),
        *(
            "status=500,every=79",
            "status=502,every=71,applied=yes",
            "status=504,every=101",
            "status=500,every=67,applied=yes",
        ),
        "latency_ms=40",
    ),
    token_uses=60,
)
BUSY = Weather(
    "busy",
    (
        *("status=429,retry_after=0,every=37", "status=429,retry_after=1,every=113", "status=503,every=59"),
        *("hold_s=0.2,every=11", "latency_ms=400,every=13", "latency_ms=20", "status=503,on=token,every=3"),
    ),
    token_uses=25,
)
FAIR = Weather("fair", ("latency_ms=30",))
WEATHER = (LOSING, BUSY, FAIR)


class Kill(NamedTuple):
    """A way to kill. `at`: a phase of the execution, or an instant of a request as the server sees it."""

    at: str
    slow: bool = False

    def __str__(self) -> str:
        return self.at + (", slow journal" if self.slow else "")


INSTANTS: tuple[Instant, ...] = ("head", "body", "applied", "replied")
PHASES = ("spooling", "arranging", "settling")
"""Those that show by the files they write. The fourth, delivering, shows at the server."""
PLANS = (
    (Kill("spooling"), Kill("arranging"), Kill("head"), Kill("delivering"), Kill("applied"), Kill("settling")),
    (
        *(Kill("spooling", slow=True), Kill("head", slow=True), Kill("body"), Kill("delivering", slow=True)),
        *(Kill("body", slow=True), Kill("replied"), Kill("settling", slow=True)),
    ),
)
"""The kills of a round, by turns: in the order of the journey, since a load that is delivered cannot be arranged."""


def write_export(path: Path, number: int, rows: int, seed: int, earlier: Sequence[Row] = ()) -> list[Row]:
    """An export with a few invalid rows, a few duplicates, a few busy customers, and some customers with a `tid`.

    `earlier`: valid rows of exports before it, some of which it has again.
    """
    chance = random.Random(f"{seed}-{number}")
    begin = datetime(2024, 1, 1, tzinfo=UTC)
    written: list[Row] = []
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["n", "timestamp", "customer_key", "url", "tid"])
        for index in range(rows):
            if written and chance.random() < 0.005 and written[-1].valid:
                row = written[-1]  # the same interaction again
            elif earlier and chance.random() < 0.02:
                row = chance.choice(earlier)
            else:
                moment = begin + timedelta(seconds=chance.randrange(10**7), milliseconds=chance.randrange(1000))
                valid = chance.random() >= 0.005
                who = chance.randrange(5) if chance.random() < 0.15 else chance.randrange(4000)
                customer = f"{who:06}" if valid else ""
                row = Row(number * 10**7 + index, customer, moment.isoformat(timespec="milliseconds"), valid)
            written.append(row)
            # A request ends where the tid changes, so each of these customers costs a call of its own.
            tid = f"tid-{row.customer}" if row.valid and int(row.customer) % 131 == 7 else ""
            writer.writerow([row.n, row.timestamp, row.customer, "api://shop/visit", tid])
    return written


@contextlib.contextmanager
def sandbox(log: Path, order: Path, port: int, weather: Weather) -> Iterator[str]:
    """A sandbox in a process of its own that carries out orders to kill; yields its base URL."""
    command = [sys.executable, "-m", "tests.instants", str(order)]
    command += ["sandbox", "--json", "--port", str(port), "--log", str(log)]
    for rule in weather.rules:
        command += ["--misbehave", rule]
    if weather.token_uses is not None:
        command += ["--token-uses", str(weather.token_uses)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["base_url"]
    finally:
        process.terminate()
        process.wait(10)
        if process.stdout is not None:
            process.stdout.close()


@dataclass
class Storm:
    """One job in its own directory. `variant`: a mistake of tests.broken, for the checker's own test."""

    folder: Path
    seed: int = 1
    rows: int = 16_000
    variant: str | None = None
    truth: dict[str, list[Row]] = field(default_factory=dict)
    kills: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.log = self.folder / "server"
        self.state = self.folder / "state"
        self.exports = self.folder / "exports"
        self.notes = self.folder / "durable.jsonl"
        self.order = self.folder / "order.json"
        self.exports.mkdir(parents=True)
        self.rounds = 0
        self.port = _free_port()  # the same in all weather, or it were another tenant
        (self.folder / "backfill.toml").write_text(
            f'[api]\nbase_url = "http://127.0.0.1:{self.port}"\nsite_key = "ONE-STORM-0001"\n'
            f"[budget]\nrequests_per_second = {BUDGET:g}\nconcurrency = {CONCURRENCY}\n"
            '[columns]\ntid = "tid"\n'
            "[delivery]\nbackoff_base_s = 0.05\nmax_attempts = 50\nmax_in_doubt = 10000000\n"
            '[rows]\nmax_rejected = "2%"\n'
        )

    def start(self, *, slow: tuple[float, float] | None = None) -> "subprocess.Popen[bytes]":
        module: list[str] = ["backfill"]
        if slow is not None:
            module = ["tests.slowed", *(f"{ms:g}" for ms in slow), str(self.notes), self.variant or "-"]
        elif self.variant is not None:
            module = ["tests.broken", self.variant]
        command = [sys.executable, "-m", *module, "run", "--config", str(self.folder / "backfill.toml")]
        command += ["--state", str(self.state), str(self.exports)]
        environment = os.environ | {"BACKFILL_CLIENT_ID": "storm", "BACKFILL_CLIENT_SECRET": "made-up"}
        with (self.folder / "stderr.log").open("ab") as said:
            return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=said)

    def round(self, weather: Weather, plan: Sequence[Kill], *, slow: tuple[float, float] | None = None) -> None:
        """One more export, killed once in each of these ways, then run to its end, with a slow journal or not."""
        self.rounds += 1
        path = self.exports / f"export-{self.rounds:03}.csv"
        earlier = [row for rows in self.truth.values() for row in rows if row.valid]
        self.truth[str(path)] = write_export(path, self.rounds, self.rows, self.seed, earlier)
        with sandbox(self.log, self.order, self.port, weather):
            for kill in plan:
                self.kill(kill)
            self.finish(slow=slow)

    def kill(self, kill: Kill) -> bool:
        """Start an execution and kill it so; False, and not counted, if it ended before."""
        seen = self._seen(kill.at)  # before it starts, or what it makes in its first moments would count as old
        process = self.start(slow=SLOW_MS if kill.slow else None)
        met = kill
        try:
            if kill.at in INSTANTS:
                instant = next(instant for instant in INSTANTS if instant == kill.at)
                cut = kill.at == "head" and self.chance.random() < 0.5
                Order(pid=process.pid, instant=instant, nth=self.chance.randrange(1, 16), cut=cut).give(self.order)
                _wait_for_end(process)
            elif kill.at == "delivering":
                delay_s = 0.001 + self.chance.random() * 0.4
                Order(pid=process.pid, instant="head", delay_s=delay_s).give(self.order)
                _wait_for_end(process)
            elif not self._kill_in_phase(process, kill.at, seen):
                met = kill._replace(at="delivering")
        except BaseException:
            process.kill()
            raise
        finally:
            self.order.unlink(missing_ok=True)
        if process.wait() != -signal.SIGKILL:
            return False
        self.kills[str(met)] += 1
        return True

    def _kill_in_phase(self, process: "subprocess.Popen[bytes]", phase: str, seen: set[object]) -> bool:
        """Kill it soon after a new file of this phase has appeared; False if it is dead before, whyever."""
        if phase != "settling":
            # A load that is arranged already would be delivered whole: it must not get far without a kill.
            Order(pid=process.pid, instant="head", delay_s=self.chance.random() * 0.2).give(self.order)
        deadline = time.monotonic() + GIVE_UP_S
        while not self._seen(phase) - seen:
            if _has_ended(process):
                return False
            assert time.monotonic() < deadline, f"{phase} was not reached"
            time.sleep(0.001)
        time.sleep(self.chance.random() * {"spooling": 0.04, "arranging": 0.04, "settling": 0.01}[phase])
        if _has_ended(process):
            return False
        os.kill(process.pid, signal.SIGKILL)  # not by `process`, which would reap one that has just ended
        return True

    def _seen(self, phase: str) -> set[object]:
        """The files that only this phase writes."""
        pattern = {"spooling": "staged/*/run-*", "arranging": "staged/*/rows-*", "settling": "ledger/*/*"}.get(phase)
        found: set[object] = set()
        with contextlib.suppress(FileNotFoundError):  # a folder was swept away meanwhile: the next look sees more
            for path in self.state.glob(pattern) if pattern else ():
                with contextlib.suppress(FileNotFoundError):  # it was renamed meanwhile
                    status = path.stat()
                    found.add((path.name, status.st_ino, status.st_mtime_ns))
        return found

    def finish(self, *, slow: tuple[float, float] | None = None) -> int:
        """Run to the end without a kill."""
        process = self.start(slow=slow)
        try:
            code = process.wait(GIVE_UP_S)
        except BaseException:
            process.kill()
            raise
        assert code in (0, 3), f"the last run ended with {code}: {(self.folder / 'stderr.log').read_text()[-2000:]}"
        return code

    def findings(self) -> Findings:
        """Hold the ledger against the server."""
        return check(
            self.state,
            self.log,
            Truth(self.truth),
            budget=BUDGET,
            concurrency=CONCURRENCY,
            kills=self.kills.total(),
            notes=self.notes,
        )

    def run_again(self, findings: Findings) -> None:
        """I9: after completion nothing is unsent, and one more run sends nothing and changes nothing."""
        manifest = self.state / "ledger" / "manifest.json"
        before = manifest.read_bytes()
        unsent = sum(export["outcomes"]["unsent"] for load in json.loads(before)["loads"] for export in load["exports"])
        if unsent:
            findings.violations.append(f"I9: {unsent} rows are unsent, and the last run called itself complete")
        with sandbox(self.log, self.order, self.port, FAIR):
            began_s = time.time()  # what a dead client sent may be logged later, but came earlier
            self.finish()
        again = [line for line in server_log(self.log, "requests") if line["at"] >= began_s]
        if again:
            findings.violations.append(f"I9: a run after completion made {len(again)} calls, e.g. {again[:1]}")
        if manifest.read_bytes() != before:
            findings.violations.append("I9: a run after completion wrote another ledger")

    def verify(self, findings: Findings) -> None:
        """The product's own second opinion must agree."""
        verified = subprocess.run(
            [sys.executable, "-m", "backfill", "verify", "--state", str(self.state)], capture_output=True, check=False
        )
        if verified.returncode:
            findings.violations.append(f"verify disagrees: {verified.stdout.decode()[-2000:]}")


def _free_port() -> int:
    """Below those that the system hands to clients, one of which might take it while the server is started again."""
    while True:
        port = random.SystemRandom().randrange(20_000, 30_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def _has_ended(process: "subprocess.Popen[bytes]") -> bool:
    """Without reaping it: its number must stay its own as long as an order names it."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _wait_for_end(process: "subprocess.Popen[bytes]") -> None:
    """As `_has_ended`."""
    descriptor = os.pidfd_open(process.pid)
    try:
        ended, _, _ = select.select([descriptor], [], [], GIVE_UP_S)
    finally:
        os.close(descriptor)
    assert ended, "the execution neither ended nor came to the instant at which it was to be killed"


def storm(
    folder: Path,
    *,
    kills: int,
    seed: int,
    weather: Sequence[Weather] = WEATHER,
    plans: Sequence[Sequence[Kill]] = PLANS,
    rows: int = 16_000,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Storm, Findings]:
    """Kill a job so many times, then check it."""
    stormy = Storm(folder, seed=seed, rows=rows)
    while (missing := kills - stormy.kills.total()) > 0:
        turn = stormy.rounds
        sky = weather[turn % len(weather)]
        stormy.round(sky, plans[turn % len(plans)][:missing])
        say(f"round {stormy.rounds} ({sky.name}): {stormy.kills.total()} kills {dict(stormy.kills)}")
    findings = stormy.findings()
    stormy.run_again(findings)
    stormy.verify(findings)
    return stormy, findings


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.storm", description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rows", type=int, default=16_000, help="rows of each export")
    parser.add_argument("--misbehave", action="append", default=None, help="a rule of the sandbox, instead of weather")
    parser.add_argument("--keep", type=Path, help="work in this new folder and leave it")
    options = parser.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="storm-"))
    began_s = time.monotonic()
    stormy, findings = storm(
        folder.resolve(),
        kills=options.kills,
        seed=options.seed,
        weather=WEATHER if options.misbehave is None else (Weather("given", tuple(options.misbehave)),),
        rows=options.rows,
        say=lambda line: print(line, flush=True),
    )
    for kind, count in sorted(stormy.kills.items()):
        print(f"{count:5} kills  {kind}")
    print(
        f"{stormy.kills.total()} kills, {findings.rows:,} rows, {findings.applied:,} applied, "
        f"{findings.doubted_rows:,} named in doubt (at most {findings.most_lost_at_once} requests by one crash; "
        f"{findings.needless_doubts} requests needlessly), {findings.proven_durable:,} calls held against the instant "
        f"their intent was durable, at most {findings.most_in_a_second} calls in a second (budget {BUDGET:g}), "
        f"{time.monotonic() - began_s:.0f} s"
    )
    for violation in findings.violations:
        print(f"VIOLATED {violation}")
    if options.keep is None and not findings.violations:
        shutil.rmtree(folder)
    elif findings.violations:
        print(f"Left for a look: {folder}")
    return 1 if findings.violations else 0


if __name__ == "__main__":
    sys.exit(main())
