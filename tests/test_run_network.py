"""The network at its worst, by the real command: names, connections, resets, silence, IPv6, keep-alive.

Held against what the server received, and against a front between both that knows what it dropped.
"""

import contextlib
import socket
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from backfill.verify import verify
from tests.adapters.misbehaving import Link, Peer
from tests.command import ROOT, SECRET, Job, Server, agree, expect, serving, visits
from tests.front import DOUBTFUL, Front, Passing, Trouble, drip, unplug

TOKEN = "whole-TOKEN-0815"
GIVEN_TOKEN = {"BACKFILL_TOKEN": TOKEN, "BACKFILL_CLIENT_ID": None, "BACKFILL_CLIENT_SECRET": None}
IMPATIENT: dict[str, dict[str, object]] = {"api": {"connect_timeout_s": 0.3}, "delivery": {"max_attempts": 2}}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "log", token=TOKEN) as server:
        yield server


def front_of(job_folder: Path, server: Server, front: Front, **config: dict[str, object]) -> tuple[Peer, Job]:
    peer = Peer(front)
    return peer, Job(job_folder, f"http://127.0.0.1:{peer.port}", config)


# ------------------------------------------------------------------------------------------------ no connection


@contextlib.contextmanager
def hanging(port: int = 0, host: str = "127.0.0.1", family: socket.AddressFamily = socket.AF_INET) -> Iterator[int]:
    """A port whose backlog is full: no connection to it is ever refused or made."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(family))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(0)
        for _ in range(8):
            filler = stack.enter_context(socket.socket(family))
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@contextlib.contextmanager
def refusing() -> Iterator[int]:
    """Bound and not listening: connections are refused, and nobody else gets the port."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def journaled(job: Job) -> int:
    """How many moves of requests the journal has."""
    with contextlib.closing(sqlite3.connect(job.state / "journal.db")) as journal:
        return int(journal.execute("SELECT count(*) FROM move").fetchone()[0])


@pytest.mark.parametrize("given", [{}, GIVEN_TOKEN], ids=["asking for a token", "with a token"])
@pytest.mark.parametrize("how", ["refused", "hanging"])
def test_a_server_that_cannot_be_reached_is_told_in_a_sentence(
    tmp_path: Path, how: str, given: dict[str, str | None]
) -> None:
    """Host and port, what happened, what to look at; 75, nothing journaled; the rerun completes."""
    with refusing() if how == "refused" else hanging() as port:
        job = Job(tmp_path / "job", f"http://127.0.0.1:{port}", IMPATIENT)
        job.export("a.csv", visits(120))
        what = "refused the connection" if how == "refused" else "could not be reached within 0.3 s"
        ended = job.run("a.csv", environment=given)
        where = "No connection to api.base_url" if given else f"http://127.0.0.1:{port}/one/oauth2token could not be"
        expect(ended, 75, where, f"127.0.0.1:{port} {what}. Check the address and the network", "HTTPS_PROXY")
        assert journaled(job) == 0
        assert job.outcomes() == {"unsent": 120}
    with serving(tmp_path / "log", port=port, token=TOKEN) as server:
        expect(job.run("a.csv", environment=given), 0)
        assert agree(job, server) == {"delivered": 120}


def names(folder: Path, **addresses: list[str]) -> dict[str, str]:
    """An environment in which NAME.localhost has these addresses, and any other name of .localhost none."""
    folder.mkdir(exist_ok=True)
    table = {f"{name}.localhost": listed for name, listed in addresses.items()}
    (folder / "sitecustomize.py").write_text(
        "import socket\n"
        f"table = {table!r}\n"
        "asked = socket.getaddrinfo\n"
        "def answer(host, port, *more, **options):\n"
        "    name = host.decode() if isinstance(host, bytes) else host\n"
        "    if not str(name).endswith('.localhost'):\n"
        "        return asked(host, port, *more, **options)\n"
        "    if name not in table:\n"
        "        raise socket.gaierror(socket.EAI_NONAME, 'Name or service not known')\n"
        "    return [found for address in table[name] for found in asked(address, port, *more, **options)]\n"
        "socket.getaddrinfo = answer\n"
    )
    return {"PYTHONPATH": f"{folder}:{ROOT}"}


def test_a_name_that_is_unknown_at_first_costs_nothing(tmp_path: Path, server: Server) -> None:
    """75 naming the host, nothing journaled; once the name is known, the rerun completes."""
    port = server.base_url.rpartition(":")[2]
    job = Job(tmp_path / "job", f"http://mxo.localhost:{port}", IMPATIENT)
    job.export("a.csv", visits(120))
    ended = job.run("a.csv", environment=names(tmp_path / "unknown"))
    expect(ended, 75, "The host name 'mxo.localhost' could not be resolved. Check the address and the network")
    assert journaled(job) == 0
    expect(job.run("a.csv", environment=names(tmp_path / "known", mxo=["127.0.0.1"])), 0)
    assert agree(job, server) == {"delivered": 120}


def test_a_dead_ipv6_address_does_not_hide_a_live_ipv4_one(tmp_path: Path, server: Server) -> None:
    """A name with both, the first of which never answers: every connection is made beside it, well within its time."""
    port = int(server.base_url.rpartition(":")[2])
    try:
        dead = hanging(port, "::1", socket.AF_INET6)
        dead.__enter__()
    except OSError:
        pytest.skip("this machine has no IPv6")
    try:
        job = Job(tmp_path / "job", f"http://both.localhost:{port}", {"api": {"connect_timeout_s": 20}})
        job.export("a.csv", visits(220))
        ended = job.run("a.csv", environment=names(tmp_path / "names", both=["::1", "127.0.0.1"]))
    finally:
        dead.__exit__(None, None, None)
    expect(ended, 0)
    assert ended.seconds < 20
    assert agree(job, server) == {"delivered": 220}


def test_an_ipv6_address_is_a_base_url(tmp_path: Path, server: Server) -> None:
    """http://[::1]:PORT: delivered, and a rerun sends nothing."""
    try:
        peer = Peer(front := Front(server.base_url), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with peer:
        job = Job(tmp_path / "job", f"http://[::1]:{peer.port}")
        job.export("a.csv", visits(220))
        expect(job.run("a.csv"), 0)
        expect(job.run("a.csv"), 0)
    assert [passing.number for passing in front.seen] == [1, 2, 3]
    assert agree(job, server) == {"delivered": 220}


# ------------------------------------------------------------------------------------------------ broken exchanges


def test_trouble_at_each_stage_leaves_exactly_its_own_request_in_doubt(tmp_path: Path, server: Server) -> None:
    """Resets, ends and half-closes from the head on to the reply: the ledger names the requests that the front broke,
    and no other; a slow reply is a reply; the rerun sends nothing.
    """
    troubles = {2 * place: trouble for place, trouble in enumerate(DOUBTFUL.values(), start=1)}
    troubles[2 * len(DOUBTFUL) + 2] = Trouble(1.0, True, drip)
    requests = max(troubles) + 1
    front = Front(server.base_url, troubles)
    peer, job = front_of(tmp_path / "job", server, front, api={"timeout_s": 2})
    with peer:
        job.export("a.csv", visits(100 * requests))
        expect(job.run("a.csv"), 4)
        expect(job.run("a.csv"), 4)
    assert len(front.seen) == requests
    broken = {passing.request for passing in front.seen if troubles.get(passing.number) in DOUBTFUL.values()}
    doubted = job.ledger().filter(outcome="in_doubt")
    assert set(doubted["request"].to_list()) == broken
    assert agree(job, server, attempts_seen=False) == {
        "delivered": 100 * (requests - len(DOUBTFUL)),
        "in_doubt": 100 * len(DOUBTFUL),
    }
    passed_on = sum(trouble.passed_on for trouble in DOUBTFUL.values()) + requests - len(DOUBTFUL)
    assert len(server.calls()) == passed_on


def test_a_server_that_reads_slowly_gets_everything(tmp_path: Path, server: Server) -> None:
    """Bodies of megabytes, taken in small pieces: delivered, each once."""
    front = Front(server.base_url, read_pause_s=0.005)
    peer, job = front_of(tmp_path / "job", server, front)
    with peer:
        job.export("a.csv", visits(200, mark=lambda place: f"{place}" + "x" * 30_000))
        expect(job.run("a.csv"), 0)
    assert len(front.seen) == 2
    assert agree(job, server) == {"delivered": 200}


# ------------------------------------------------------------------------------------------------ 100 at once


class Plug:
    """Holds back every request from the `first` on, half of them already applied; drops all when there are `most`."""

    def __init__(self, first: int, most: int) -> None:
        self._first, self._most = first, most
        self._lock = threading.Lock()
        self.held: dict[int, Link] = {}
        self.pulled = threading.Event()

    def arrived(self, passing: Passing, link: Link) -> None:
        if passing.number % 2:
            self._hold(passing, link)

    def answered(self, passing: Passing, link: Link) -> None:
        if not passing.number % 2:
            self._hold(passing, link)

    def _hold(self, passing: Passing, link: Link) -> None:
        if passing.number < self._first or self.pulled.is_set():
            return
        with self._lock:
            self.held[passing.request] = link
            full = len(self.held) == self._most
        if full:
            self.pulled.set()
            unplug([held.socket for held in self.held.values()])
        self.pulled.wait(30)
        raise ConnectionResetError


def test_100_connections_dropped_at_once_leave_100_doubts(tmp_path: Path, server: Server) -> None:
    """100 requests in the air, all connections reset together: nothing is lost, in doubt are those 100 and no other,
    whether applied or not; the rerun completes and sends none of them again.
    """
    plug = Plug(first=51, most=100)
    front = Front(server.base_url, on_arrival=plug.arrived, before_reply=plug.answered)
    peer, job = front_of(
        tmp_path / "job",
        server,
        front,
        budget={"requests_per_second": 2000, "concurrency": 100},
        delivery={"breaker_failures": 10, "max_attempts": 100},
    )
    # 100 lanes take 200,000 rows, and each has one request in the air; four of five are duplicates, to be quick.
    sent, rows = 40_000, 200_000
    with peer:
        job.export("a.csv", visits(sent, customers=20_000) * (rows // sent))
        expect(job.run("a.csv", "--limit", "25000"), 75, "--limit")
        first = len(front.seen)
        doubted = set(job.ledger().filter(outcome="in_doubt")["request"].to_list())
        assert len(plug.held) == 100
        assert doubted == set(plug.held)
        expect(job.run("a.csv"), 4)
        second = len(front.seen)
        expect(job.run("a.csv"), 4)
    assert first < second == len(front.seen)
    ledger = job.ledger()
    assert set(ledger.filter(outcome="in_doubt")["request"].to_list()) == doubted
    outcomes = job.outcomes()
    assert outcomes.keys() == {"delivered", "in_doubt", "duplicate"}
    assert (outcomes["delivered"] + outcomes["in_doubt"], sum(outcomes.values())) == (sent, rows)
    # The first row of an interaction is the one that is sent, and it stands at the place that is its event id.
    rows_of = {outcome: set(part["row"].to_list()) for (outcome,), part in ledger.group_by("outcome")}
    applied = Counter(int(each["properties"][1]["value"]) for call in server.applied() for each in call["interactions"])
    assert set(applied.values()) == {1}
    assert rows_of["delivered"] <= applied.keys() <= rows_of["delivered"] | rows_of["in_doubt"]
    assert 0 < len(rows_of["in_doubt"] & applied.keys()) < len(rows_of["in_doubt"])
    assert verify(job.state).ok


# ------------------------------------------------------------------------------------------------ keep-alive


def without_the_rules(folder: Path) -> dict[str, str]:
    """An environment in which the transport keeps idle connections for a minute, whatever was announced."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "from backfill.adapters import transport\n"
        "kept = transport.Transport._take_back\n"
        "transport.Transport._take_back = lambda self, connection, announced_s: kept(self, connection, 60.0)\n"
    )
    return {"PYTHONPATH": f"{folder}:{ROOT}"}


def test_a_forgotten_connection_costs_a_doubt_only_without_our_rules(tmp_path: Path, server: Server) -> None:
    """A server announces 2 s and forgets the connection soon after, without a word: 0 false doubts of 5 requests; with
    connections kept for a minute, every request on a kept one.
    """
    ended = {}
    with contextlib.ExitStack() as stack:
        for name, environment in (("rules", {}), ("none", without_the_rules(tmp_path / "none"))):
            front = Front(server.base_url, keep_alive_s=1.3, fields=b"keep-alive: timeout=2\r\n")
            peer = stack.enter_context(Peer(front))
            job = Job(tmp_path / name / "job", f"http://127.0.0.1:{peer.port}", budget=0.66)
            job.export("a.csv", visits(500))
            ended[name] = (job, job.start("a.csv", environment=environment), front)
        for name, code, doubts in (("rules", 0, 0), ("none", 4, 2)):
            job, process, front = ended[name]
            expect(job.wait(process), code)
            assert front.forgotten == doubts, name
            assert job.outcomes().get("in_doubt", 0) == 100 * doubts, name


def test_no_secret_is_told_about_a_dead_connection(tmp_path: Path) -> None:
    """What is said of a server that cannot be reached has neither token nor secret."""
    with refusing() as port:
        job = Job(tmp_path / "job", f"http://127.0.0.1:{port}", IMPATIENT)
        job.export("a.csv", visits(20))
        ended = job.run("a.csv", environment=GIVEN_TOKEN)
    expect(ended, 75)
    assert TOKEN not in ended.said
    assert SECRET not in ended.said
