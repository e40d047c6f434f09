"""Delivering to real servers: what reaches them, what the journal knows of it, and how a delivery ends.

The servers are plain sockets that remember every byte; the journal and the staged files are real.
"""

import contextlib
import gc
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import backfill.deliver
from backfill.adapters import staging
from backfill.adapters.interaction_api import Credentials
from backfill.adapters.journal import Journal, OnDurable
from backfill.backlog import Backlog, Body, planned
from backfill.core import reply
from backfill.core.budget import Hours
from backfill.core.config import RunConfig
from backfill.core.errors import ConfigurationError, ExitCode, StorageError
from backfill.core.events import Fetched
from backfill.core.lifecycle import Move, Part, Recorded, State
from backfill.core.proxy import Proxies
from backfill.core.settings import parse
from backfill.core.summary import Progress
from backfill.deliver import Delivered, Stop, deliver
from tests.adapters.misbehaving import OK, Behaviour, Link, Peer, answers
from tests.adapters.staged import StagedLoad, freeze, record

pytestmark = pytest.mark.timeout(60)  # what must not hang is told as a hang, and soon

ALL = (0, 2**62)
Attempt = tuple[Part, int]
"""A part and which attempt at it."""


def config(**sections: dict[str, object]) -> RunConfig:
    """Fast, so that what must not happen would have time to happen."""
    return parse(
        {
            "api": {"base_url": "https://mxo.example", "site_key": "ONE-1"} | sections.get("api", {}),
            "budget": {"requests_per_second": 2000.0, "concurrency": 4} | sections.get("budget", {}),
            "delivery": {"backoff_base_s": 0.01, "backoff_max_s": 0.05} | sections.get("delivery", {}),
        }
    )


@dataclass(frozen=True)
class Job:
    """A staged load and its journal."""

    state: Path
    parts: list[Part]

    @property
    def folder(self) -> Path:
        return self.state / "staged" / "1"

    @contextmanager
    def journal(self, kind: type[Journal] = Journal) -> Iterator[Journal]:
        """One execution."""
        with kind(self.state / "journal.db") as journal:
            journal.begin(command="run", settings={}, pid=1, host="here", at_ms=1)
            yield journal

    def deliver(
        self,
        peer: Peer,
        journal: Journal,
        using: RunConfig | None = None,
        *,
        backlog: type[Backlog] = Backlog,
        stop: Stop | None = None,
        report: Callable[[Progress], None] = lambda _: None,
        credentials: Credentials = Credentials(token="t"),  # noqa: B008  # a frozen value
    ) -> Delivered:
        using = using or config()
        manifest = staging.read_manifest(self.folder)
        try:
            return deliver(
                load=1,
                backlog=backlog(self.folder, 1, using, journal),
                rows=planned(self.folder, manifest).interactions,
                rows_done=journal.settled_interactions(1),
                journal=journal,
                config=using,
                base_url=f"http://127.0.0.1:{peer.port}",
                credentials=credentials,
                proven=True,
                allowed=lambda now_s: Hours(),
                limit=None,
                report=report,
                stop=stop or Stop(),
                proxies=Proxies(),
            )
        finally:
            # A connection cancelled in the very moment of success is left to the garbage collector (see the transport);
            # the peer would wait for its end.
            gc.collect()

    def states(self) -> dict[Part, State]:
        """As the next execution finds them: what was in flight is in doubt."""
        with self.journal() as journal:
            return {standing.part: standing.state for standing in journal.standings(1, *ALL)}

    def intents(self) -> set[Attempt]:
        """The attempts that were durably meant to be made."""
        with Journal(self.state / "journal.db") as journal:
            return {(move.part, move.attempt) for move, *_ in journal.moves(1, *ALL) if move.move is Move.INTENT}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return staged(tmp_path / "state", lanes=20, requests=3)


def staged(state: Path, *, lanes: int, requests: int) -> Job:
    """So many lanes with so many requests each, every lane a piece of its own; of one to four interactions."""
    load = StagedLoad(("june.csv",))
    parts = []
    for lane in range(lanes):
        load.next_piece()
        parts += [load.request(0, 1 + (lane + nth) % 4) for nth in range(requests)]
    freeze(state, [load])
    return Job(state, parts)


_USER_AGENT = re.compile(
    rb"\r\nuser-agent: backfill/[^ ]+ \(load 1; request (\d+); positions (\d+)-(\d+); attempt (\d+)\)\r\n",
    re.IGNORECASE,
)


def received(of: Peer | Link) -> list[Attempt]:
    """The attempts that a server saw, by what the calls said of themselves."""
    found = [tuple(map(int, match)) for match in _USER_AGENT.findall(bytes(of.received))]
    return [(Part(request, first, last - first + 1), attempt) for request, first, last, attempt in found]


def after(count: int, what: Callable[[], None]) -> Behaviour:
    """Answers well; does `what` once, when call number `count` has arrived and before it is answered."""
    arrived: list[int] = []
    lock = threading.Lock()

    def behave(link: Link) -> None:
        end = 0
        while (start := end) != (end := link.read_request(start)):
            with lock:
                arrived.append(end)
                if len(arrived) == count:
                    what()
            link.send(OK)

    return behave


def holds(arrived: Callable[[], None], release: threading.Event) -> Behaviour:
    """Tells of each call that arrives, and answers it only after `release`."""

    def behave(link: Link) -> None:
        end = 0
        while (start := end) != (end := link.read_request(start)):
            arrived()
            if not release.wait(4):
                return
            link.send(OK)

    return behave


# ------------------------------------------------------------------------------------------------------- all is well


def test_every_request_is_sent_once_and_journaled(job: Job) -> None:
    """The server saw each planned request once, in the order of its lane; all are delivered, and the progress ends
    with all rows."""
    told: list[Progress] = []
    with Peer(answers()) as peer, job.journal() as journal:
        delivered = job.deliver(peer, journal, report=told.append)
    assert delivered == Delivered(None, 60, 0)
    assert sorted(received(peer)) == [(part, 1) for part in job.parts]
    assert job.states() == dict.fromkeys(job.parts, State.DELIVERED)
    rows = sum(part.interactions for part in job.parts)
    assert (told[-1].rows_done, told[-1].rows_total, told[-1].requests) == (rows, rows, 60)


def test_a_finished_load_sends_nothing(job: Job) -> None:
    """A second delivery ends at once; it does not even connect."""
    with Peer(answers()) as peer, job.journal() as journal:
        job.deliver(peer, journal)
        links = len(peer.links)
        assert job.deliver(peer, journal) == Delivered(None, 0, 0)
    assert len(peer.links) == links
    assert len(received(peer)) == 60


def test_the_first_request_waits_for_the_last_second(tmp_path: Path) -> None:
    """Requests in any second stay within the budget across restarts, too: a second after the last intent is waited."""
    job = staged(tmp_path / "state", lanes=1, requests=2)
    arrived_s: list[float] = []
    with Peer(after(1, lambda: arrived_s.append(time.time()))) as peer, job.journal() as journal:
        last_ms = time.time_ns() // 1_000_000
        intent = Recorded(load=2, part=Part(1, 0, 1), move=Move.INTENT, attempt=1)
        record(journal, [intent], at_ms=last_ms)
        job.deliver(peer, journal)
    assert arrived_s[0] - last_ms / 1000 >= 1.0


# ------------------------------------------------------------------------------------------------ the journal fails


def fail_from_move(journal: Journal, number: int, kind: str) -> None:
    """From its `number`-th move of this kind on, SQLite refuses to write, as it does on a full disk."""
    journal._ask(
        lambda connection: connection.execute(
            f"CREATE TRIGGER full BEFORE INSERT ON move WHEN NEW.move = '{kind}' AND "
            f"(SELECT count(*) FROM move WHERE move = '{kind}') >= {number - 1} "
            "BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
        )
    )


def mend(job: Job) -> None:
    with Journal(job.state / "journal.db") as journal:
        journal._ask(lambda connection: connection.execute("DROP TRIGGER full"))


@pytest.mark.parametrize("number", [1, 2, 25])
@pytest.mark.parametrize("kind", ["intent", "acknowledged"])
def test_when_the_journal_fails_no_further_request_starts(job: Job, kind: str, number: int) -> None:
    """Whichever write it is: StorageError; nothing reached the server without a durable intent; and what it saw is
    delivered or in doubt afterwards, everything else still planned."""
    with Peer(answers()) as peer, job.journal() as journal:
        fail_from_move(journal, number, kind)
        with pytest.raises(StorageError, match=r"journal\.db"):
            job.deliver(peer, journal)
        peer.settle()
    seen = received(peer)
    assert len(seen) == len(set(seen))
    assert set(seen) <= job.intents()
    assert len(seen) < number + 2 * 4  # at most what was in the air, of 60
    mend(job)
    states = job.states()
    assert {part for part, _ in seen} <= states.keys()
    assert set(states.values()) <= {State.DELIVERED, State.IN_DOUBT}
    if kind == "intent" and number == 1:
        assert seen == []
    if number == 25:  # and the next execution sends the rest, no part twice
        with Peer(answers()) as peer, job.journal() as journal:
            job.deliver(peer, journal)
        assert not {part for part, _ in received(peer)} & states.keys()
        assert set(job.states()) == set(job.parts)


class _Lying(Journal):
    """Calls a move durable that it never wrote."""

    def commit(self, moves: Sequence[Recorded], at_ms: int, on_durable: OnDurable) -> None:
        super().commit(moves, at_ms, lambda _: on_durable(None))


def test_the_check_sees_a_journal_that_lies(job: Job) -> None:
    """Negative control: with intents that are durable in name only, the server does see calls without one."""
    with Peer(answers()) as peer, job.journal(_Lying) as journal:
        fail_from_move(journal, 2, "intent")
        with contextlib.suppress(StorageError):  # it lies about commits; a question it can still not answer
            job.deliver(peer, journal)
    assert not set(received(peer)) <= job.intents()


_ON_A_FULL_DISK = """
import resource, sys
from pathlib import Path
from tests.test_deliver import Job, Peer, StorageError, OK
from tests import test_deliver as t

class There:
    port = int(sys.argv[2])

job = Job(Path(sys.argv[1]), [])
with job.journal() as journal:
    limit = (job.state / "journal.db-wal").stat().st_size + int(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        job.deliver(There, journal)
    except StorageError as error:
        print(error.message)
        sys.exit(int(error.exit_code))
"""


@pytest.mark.parametrize("spare_bytes", [0, 60_000])
def test_on_a_disk_that_is_full_no_further_request_starts(job: Job, spare_bytes: int) -> None:
    """The kernel refuses the write, as it does on a full disk: 74, naming the journal; the same promises hold."""
    with Peer(answers()) as peer:
        done = subprocess.run(
            [sys.executable, "-c", _ON_A_FULL_DISK, str(job.state), str(peer.port), str(spare_bytes)],
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        peer.settle()
    assert done.returncode == ExitCode.STORAGE_FAILED, done.stderr
    assert "journal.db" in done.stdout
    seen = received(peer)
    assert set(seen) <= job.intents()
    assert len(seen) < 60
    assert bool(seen) == (spare_bytes > 0)
    assert {part for part, _ in seen} <= job.states().keys()


# ------------------------------------------------------------------------------------------------- staging is damaged


def vanish(path: Path) -> None:
    path.unlink()


def lose_content(path: Path) -> None:
    with path.open("r+b") as file:  # in place and as long as before, as a dying disk does it
        file.write(bytes(path.stat().st_size))


@pytest.mark.parametrize("damage", [vanish, lose_content])
def test_damaged_staging_ends_the_delivery(job: Job, damage: Callable[[Path], None]) -> None:
    """In the middle of a load: StorageError that names the file; what the server saw is settled or in doubt, nothing
    else was touched."""
    path = job.folder / "requests-00016.parquet"
    with Peer(after(5, lambda: damage(path))) as peer, job.journal() as journal:
        with pytest.raises(StorageError, match=rf"{path.name} is (missing|damaged)"):
            job.deliver(peer, journal)
        peer.settle()
    seen = received(peer)
    assert len(seen) >= 5
    assert set(seen) <= job.intents()
    states = job.states()
    assert {states.pop(part) for part, _ in seen} <= {State.DELIVERED, State.IN_DOUBT}
    assert set(states.values()) <= {State.PLANNED}, "an intent that was taken back"


def test_damage_leaves_a_call_that_has_no_answer_yet_in_doubt(job: Job) -> None:
    """One call is still out when the file is gone: its connection is closed, and the next execution calls it doubt."""
    out = threading.Event()
    held: list[Attempt] = []

    def behave(link: Link) -> None:
        end = 0
        while (start := end) != (end := link.read_request(start)):
            if not out.is_set():
                out.set()
                held.extend(received(link))
                (job.folder / "requests-00012.parquet").unlink()
                link.read_rest()  # until the client ends the connection
                return
            link.send(OK)

    with Peer(behave) as peer, job.journal() as journal:
        with pytest.raises(StorageError, match=r"requests-00012\.parquet is missing"):
            job.deliver(peer, journal)
        peer.settle()
    [(part, _)] = held
    states = job.states()
    assert states[part] is State.IN_DOUBT
    assert {part for part, _ in received(peer)} <= states.keys()


# -------------------------------------------------------------------------------------------------------------- bugs


class _Bug(Exception):
    pass


class _BadBodies(Backlog):
    def body(self, part: Part) -> Body:
        raise _Bug("body")


class _BadFetch(Backlog):
    def fetch(self, lane: int | None) -> Fetched:
        raise _Bug("fetch")


@pytest.mark.parametrize("backlog", [_BadBodies, _BadFetch])
def test_a_bug_in_a_task_ends_the_delivery(job: Job, backlog: type[Backlog]) -> None:
    """The exception itself comes out, not a hang and not a StorageError that would blame the disk."""
    with Peer(answers()) as peer, job.journal() as journal, pytest.raises(_Bug):
        job.deliver(peer, journal, backlog=backlog)


def test_a_bug_after_the_reply_ends_the_delivery(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the reply cannot be read for a bug of ours, the call is in doubt: it was sent, nobody knows its fate."""

    def broken(*_: object, **__: object) -> reply.Verdict:
        raise _Bug("reply")

    monkeypatch.setattr(reply, "read", broken)
    with Peer(answers()) as peer, job.journal() as journal, pytest.raises(_Bug):
        job.deliver(peer, journal)
    states = job.states()
    assert {part for part, _ in received(peer)} <= states.keys()
    assert set(states.values()) == {State.IN_DOUBT}


def test_a_bug_in_a_timer_ends_the_delivery(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody awaits a timer, so asyncio would only log it."""

    def broken(self: object) -> None:
        raise _Bug("tick")

    monkeypatch.setattr(backfill.deliver._Delivery, "_tick", broken)
    with Peer(answers()) as peer, job.journal() as journal, pytest.raises(_Bug):
        job.deliver(peer, journal, config(budget={"requests_per_second": 5.0}))


# ---------------------------------------------------------------------------------------------------------- stopping


def test_a_stop_waits_for_what_is_in_flight(job: Job) -> None:
    """Nothing new starts, the answers that are still due are taken: delivered, not in doubt. The rest stays planned."""
    stop, release = Stop(), threading.Event()

    def arrived() -> None:
        if not stop.requested:
            stop.request()
        threading.Timer(0.5, release.set).start()  # long enough for 1,000 more calls

    with Peer(holds(arrived, release)) as peer, job.journal() as journal:
        delivered = job.deliver(peer, journal, stop=stop)
    assert delivered.stopped is not None
    assert (delivered.stopped.code, delivered.stopped.reason) == (ExitCode.STOPPED_EARLY, "Stopped by a signal.")
    seen = received(peer)
    assert delivered.calls == len(seen)
    assert 1 <= len(seen) <= 4
    states = job.states()
    assert {part for part, state in states.items() if state is State.DELIVERED} == {part for part, _ in seen}
    assert set(states.values()) <= {State.DELIVERED, State.PLANNED}


@pytest.mark.parametrize("between_s", [0.0, 0.2])
def test_a_second_stop_ends_at_once(job: Job, between_s: float) -> None:
    """Whoever has not answered by then leaves its call in doubt; the grace of the first stop is not waited out. A
    shell may pass on one Ctrl-C twice, so both can come in the same instant."""
    stop, never = Stop(), threading.Event()

    def arrived() -> None:
        if not stop.requested:
            stop.request()
            time.sleep(between_s)
            stop.request()

    began_s = time.monotonic()
    with Peer(holds(arrived, never)) as peer, job.journal() as journal:
        delivered = job.deliver(peer, journal, config(delivery={"shutdown_grace_s": 30.0}), stop=stop)
        took_s = time.monotonic() - began_s
        never.set()
    assert took_s < 2
    assert delivered.stopped is not None
    assert delivered.stopped.code is ExitCode.STOPPED_EARLY
    seen = {part for part, _ in received(peer)}
    assert seen
    with Journal(job.state / "journal.db") as journal:
        doubtful = {standing.part: standing for standing in journal.standings(1, *ALL)}
    assert {part for part, standing in doubtful.items() if standing.state is State.IN_DOUBT} >= seen
    assert all(doubtful[part].cause == "no_reply" for part in seen)
    assert not [part for part, standing in doubtful.items() if standing.state is State.IN_FLIGHT]


class _Interrupted(Journal):
    """Two signals come just as an intent has become durable, before the loop has heard of that."""

    stop = Stop()

    def commit(self, moves: Sequence[Recorded], at_ms: int, on_durable: OnDurable) -> None:
        done = threading.Event()

        def told(error: StorageError | None) -> None:
            on_durable(error)
            if not self.stop.requested:
                self.stop.request()
                self.stop.request()
            done.set()

        super().commit(moves, at_ms, told)
        assert done.wait(10)


def test_two_stops_just_before_a_send(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attempt that is about to begin is told to end before its first step: that, too, comes to an end."""
    stop = Stop()
    monkeypatch.setattr(_Interrupted, "stop", stop)
    with Peer(answers()) as peer, job.journal(_Interrupted) as journal:
        delivered = job.deliver(peer, journal, stop=stop)
    assert delivered.stopped is not None
    assert len(received(peer)) <= 4
    with Journal(job.state / "journal.db") as journal:
        assert not [each for each in journal.standings(1, *ALL) if each.state is State.IN_FLIGHT]


def test_the_grace_of_a_stop_ends(job: Job) -> None:
    """A server that never answers cannot hold an execution that was told to stop."""
    stop, never = Stop(), threading.Event()

    def arrived() -> None:
        if not stop.requested:
            stop.request()

    with Peer(holds(arrived, never)) as peer, job.journal() as journal:
        began_s = time.monotonic()
        job.deliver(peer, journal, config(delivery={"shutdown_grace_s": 0.3}), stop=stop)
        took_s = time.monotonic() - began_s
        never.set()
    assert 0.3 <= took_s < 2.5
    states = job.states()
    assert all(states[part] is State.IN_DOUBT for part, _ in received(peer))


def test_a_stop_before_the_start_sends_nothing(job: Job) -> None:
    """The signal that came while the load was staged counts."""
    stop = Stop()
    stop.request()
    with Peer(answers()) as peer, job.journal() as journal:
        delivered = job.deliver(peer, journal, stop=stop)
    assert (delivered.calls, delivered.stopped is not None, peer.links) == (0, True, [])
    assert job.states() == {}


def test_a_stop_does_not_wait_for_a_token(job: Job) -> None:
    """A silent token endpoint holds nothing up: nothing is in the air, so the end is now."""
    stop, never = Stop(), threading.Event()
    with Peer(holds(stop.request, never)) as peer, job.journal() as journal:
        began_s = time.monotonic()
        delivered = job.deliver(peer, journal, stop=stop, credentials=Credentials(client_id="c", client_secret="s"))
        took_s = time.monotonic() - began_s
        never.set()
    assert took_s < 2
    assert (delivered.calls, received(peer), job.states()) == (0, [], {})


def test_a_stop_ends_the_waiting_for_a_server_that_refuses(tmp_path: Path) -> None:
    """In the middle of a long backoff with nothing in the air: the end is now, and the request is planned again."""
    job = staged(tmp_path / "state", lanes=1, requests=1)
    stop = Stop()
    busy = b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n"

    def behave(link: Link) -> None:
        link.read_request()
        link.send(busy)
        threading.Timer(0.2, stop.request).start()
        link.read_rest()

    with Peer(behave) as peer, job.journal() as journal:
        began_s = time.monotonic()
        job.deliver(peer, journal, config(delivery={"backoff_base_s": 500.0, "backoff_max_s": 500.0}), stop=stop)
        took_s = time.monotonic() - began_s
    assert took_s < 2
    assert job.states() == {job.parts[0]: State.PLANNED}


# ----------------------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize("content", [None, "no certificate\n"])
def test_a_ca_bundle_that_cannot_be_used_is_told(job: Job, tmp_path: Path, content: str | None) -> None:
    """Missing or no PEM: 78 with the key and the file, before anything is sent."""
    bundle = tmp_path / "ca.pem"
    if content is not None:
        bundle.write_text(content)
    with (
        Peer(answers()) as peer,
        job.journal() as journal,
        pytest.raises(
            ConfigurationError,
            match=r"api\.ca_bundle .*ca\.pem cannot be used \(.*\)\. Name a PEM file of certificates",
        ),
    ):
        job.deliver(peer, journal, config(api={"ca_bundle": str(bundle)}))
    assert peer.links == []
