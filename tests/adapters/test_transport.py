"""The transport against peers that break the rules: what it says is held against what they received."""

import asyncio
import contextlib
import gc
import random
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import httpx
import pytest
import trustme

from backfill.adapters.transport import (
    Connection,
    NoReply,
    NotSent,
    Origin,
    Transport,
)
from backfill.core.http1 import RawReply, RequestHead, request_head
from tests.adapters.misbehaving import (
    OK,
    OK_BODY,
    Behaviour,
    Link,
    Peer,
    answers,
    answers_once_then,
    sends_and_closes,
)

BODY = b'[{"interaction":"api://shop/checkout"}]' * 800  # some 30 KB, as in delivery
LONG_BODY = b"x" * (8 << 20)  # more than two socket buffers hold

T = TypeVar("T")


def origin_of(peer: Peer) -> Origin:
    return Origin("http", "127.0.0.1", peer.port)


def head(method: str = "PUT", *more: tuple[str, str]) -> RequestHead:
    return request_head(method, "/interactions/offline?sk=1", [("host", "peer"), *more])


def run(work: Callable[[Transport], Awaitable[T]], **settings: float) -> T:
    """Run `work` with a transport, and see that nothing stays open behind it."""

    async def main() -> T:
        transport = Transport(timeout_s=settings.pop("timeout_s", 3.0), **settings)  # type: ignore[arg-type]
        try:
            return await work(transport)
        finally:
            await transport.aclose()
            assert not transport._open

    return asyncio.run(main())


async def attempt(
    transport: Transport, origin: Origin, body: bytes = BODY, method: str = "PUT"
) -> RawReply | NotSent | NoReply:
    try:
        connection = await transport.acquire(origin)
        return await transport.exchange(connection, head(method), body)
    except (NotSent, NoReply) as exc:
        return exc


def once(behave: Behaviour, body: bytes = BODY, method: str = "PUT", **settings: float) -> tuple[Peer, object]:
    """One attempt against a new peer. Also sees that it was one: one connection, at most one request on it."""
    with Peer(behave) as peer:
        outcome = run(lambda transport: attempt(transport, origin_of(peer), body, method), **settings)
        time.sleep(0.02)  # a second attempt would be accepted by now
    assert len(peer.links) <= 1
    assert peer.received.count(b" HTTP/1.1\r\n") <= 1
    if isinstance(outcome, NotSent):
        assert peer.received == b""
    return peer, outcome


def causes(outcome: object) -> tuple[str, int | None]:
    assert isinstance(outcome, NoReply), outcome
    return outcome.cause, outcome.status_code


# ------------------------------------------------------------------------------------------------ no connection


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def test_a_refused_port_is_not_sent() -> None:
    """Nobody listens: no byte can have left."""
    outcome = run(lambda transport: attempt(transport, Origin("http", "127.0.0.1", free_port())))
    assert isinstance(outcome, NotSent)
    assert outcome.cause == "refused"


def test_a_host_with_several_addresses_that_all_refuse_is_refused() -> None:
    """asyncio joins the errors of several addresses into one text; the word for it stays the same."""
    outcome = run(lambda transport: attempt(transport, Origin("http", "localhost", free_port())))
    assert isinstance(outcome, NotSent)
    assert outcome.cause == "refused"


@pytest.mark.parametrize("host", ["nonexistent.invalid", "a" * 70 + ".invalid"])
def test_an_unknown_host_is_not_sent(host: str) -> None:
    """A name that cannot be resolved, or is none, ends before a socket exists."""
    outcome = run(lambda transport: attempt(transport, Origin("http", host, 80)))
    assert isinstance(outcome, NotSent)
    assert outcome.cause == "dns"


def test_a_full_backlog_is_a_connect_timeout() -> None:
    """A host that never completes the handshake ends after connect_timeout_s, with nothing sent."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        time.sleep(0.05)
        started = time.monotonic()
        origin = Origin("http", "127.0.0.1", listener.getsockname()[1])
        outcome = run(lambda transport: attempt(transport, origin), connect_timeout_s=0.2)
    assert isinstance(outcome, NotSent)
    assert outcome.cause == "connect_timeout"
    assert time.monotonic() - started < 2


def test_an_ipv6_literal_is_reached() -> None:
    """An address in brackets is an address, in the URL and in the Host header."""
    try:
        peer = Peer(answers(), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6")

    async def work(transport: Transport) -> int:
        async with httpx.AsyncClient(transport=transport) as client:
            return (await client.put(f"http://[::1]:{peer.port}/", content=BODY)).status_code

    with peer:
        assert run(work) == 200
    assert b"Host: [::1]:%d\r\n" % peer.port in peer.received


def test_a_closed_transport_connects_no_more() -> None:
    """After aclose nothing leaves."""

    async def work(transport: Transport) -> object:
        await transport.aclose()
        return await attempt(transport, origin_of(peer))

    with Peer(answers()) as peer:
        outcome = run(work)
    assert isinstance(outcome, NotSent)
    assert outcome.cause == "cancelled"
    assert not peer.links


# ------------------------------------------------------------------------------------------------ broken exchanges


def reads(share: float, then: Behaviour) -> Behaviour:
    def behave(link: Link) -> None:
        link.read_request(share=share)
        then(link)

    return behave


def close(link: Link) -> None:
    link.socket.close()


def wait(link: Link) -> None:
    link.read_rest()


@pytest.mark.parametrize("body", [BODY, LONG_BODY], ids=["30 KB", "8 MB"])
@pytest.mark.parametrize("then", [close, Link.reset], ids=["close", "reset"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0], ids=["head", "half the body", "whole body"])
def test_a_peer_that_ends_after_reading_leaves_a_doubt(share: float, then: Behaviour, body: bytes) -> None:
    """However much of the request was read: bytes left, no reply came, and nothing is sent again."""
    peer, outcome = once(reads(share, then), body)
    cause, status = causes(outcome)
    assert cause in ("closed", "reset")
    if share == 1.0:
        assert cause == ("closed" if then is close else "reset")
        assert peer.received.endswith(body)
    assert status is None
    assert peer.received.startswith(b"PUT /interactions/offline?sk=1 HTTP/1.1\r\n")


def test_a_peer_that_applies_and_closes_leaves_a_doubt() -> None:
    """The worst case: everything was applied, and only the reply is missing."""
    applied = []

    def behave(link: Link) -> None:
        end = link.read_request()
        applied.append(bytes(link.received[:end]))

    _, outcome = once(behave)
    assert causes(outcome) == ("closed", None)
    assert len(applied) == 1


@pytest.mark.parametrize("trial", range(20))
def test_a_peer_that_accepts_and_closes_gets_no_second_try(trial: int) -> None:
    """Whichever of the two errors it is depends on who is first; `once` checks it against what arrived."""
    _, outcome = once(close if trial % 2 else Link.reset)
    assert isinstance(outcome, NotSent | NoReply)
    assert outcome.cause in ("closed_before_sending", "closed", "reset")


SILENCE = b""
ENDLESS = b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (3 << 20)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        pytest.param(SILENCE, ("closed", None), id="nothing"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-le", ("closed", None), id="half a head"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n", ("closed", None), id="only 100"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}", ("closed", 200), id="cut content-length"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", ("closed", 200), id="cut chunks"
        ),
        pytest.param(b"SSH-2.0-OpenSSH_9.6\r\n\r\n", ("malformed", None), id="another protocol"),
        pytest.param(b"\x15\x03\x01\x00\x02\x02\x46" + b"\0" * 40, ("malformed", None), id="TLS alert"),
        pytest.param(b"HTTP/1.1 2OO OK\r\n\r\n", ("malformed", None), id="letters for a status"),
        pytest.param(b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", ("malformed", None), id="no colon"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}\n",
            ("malformed", None),
            id="two lengths",
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\n{}", ("malformed", None), id="negative length"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nhello", ("malformed", 200), id="broken chunk"
        ),
        pytest.param(ENDLESS, ("too_large", 200), id="endless body"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\ncontent-length: 9000000\r\n\r\n{}", ("too_large", 200), id="long body announced"
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\nx: " + b"y" * (1 << 20), ("too_large", None), id="endless head"),
    ],
)
def test_a_reply_that_is_no_whole_reply_leaves_a_doubt(reply: bytes, expected: tuple[str, int | None]) -> None:
    """Cut short, rubbish, endless: the error says which, and the status as far as it is known."""
    _, outcome = once(sends_and_closes(reply))
    assert causes(outcome) == expected


def test_a_silent_peer_is_timed_out() -> None:
    """A request without any reply ends after timeout_s."""
    _, outcome = once(reads(1.0, wait), timeout_s=0.1)
    assert causes(outcome) == ("timeout", None)


def test_a_peer_that_reads_nothing_is_timed_out() -> None:
    """A request stuck in our own buffer ends after timeout_s too."""
    enough = threading.Event()

    def behave(_: Link) -> None:
        enough.wait(0.3)

    _, outcome = once(behave, LONG_BODY, timeout_s=0.1)
    assert causes(outcome) == ("timeout", None)


def trickles(reply: bytes, pause_s: float) -> Behaviour:
    def behave(link: Link) -> None:
        link.read_request()
        link.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(len(reply)):
            link.send(reply[at : at + 1])
            time.sleep(pause_s)
        link.read_rest()

    return behave


def test_a_trickled_reply_is_whole_in_the_end() -> None:
    """One byte at a time is slow, not wrong."""
    _, outcome = once(trickles(OK, 0.0005))
    assert isinstance(outcome, RawReply)
    assert (outcome.status_code, outcome.body) == (200, OK_BODY)


def test_a_trickled_reply_does_not_outlive_the_timeout() -> None:
    """Each byte comes in time, the reply does not: timeout_s is for the whole exchange."""
    _, outcome = once(trickles(OK.replace(b"length: 18", b"length: 9000"), 0.002), timeout_s=0.5)
    assert causes(outcome) == ("timeout", 200)


def test_a_reset_is_no_end_of_a_body() -> None:
    """A body without a length ends with the connection, but not with its reset: it may be cut short."""

    def behave(link: Link) -> None:
        link.read_request()
        link.send(b"HTTP/1.1 200 OK\r\n\r\n" + OK_BODY)
        time.sleep(0.05)
        link.reset()

    _, outcome = once(behave)
    assert causes(outcome) == ("reset", 200)


# ------------------------------------------------------------------------------------------------ whole replies


@pytest.mark.parametrize(
    ("reply", "status", "body"),
    [
        pytest.param(OK, 200, OK_BODY, id="content-length"),
        pytest.param(b"HTTP/1.1 200\r\ncontent-length: 2\r\n\r\n{}", 200, b"{}", id="no reason phrase"),
        pytest.param(b"HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n", 500, b"", id="empty body"),
        pytest.param(b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", id="204"),
        pytest.param(b"HTTP/1.1 304 X\r\ncontent-length: 9\r\n\r\n", 304, b"", id="304 with a length"),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n{}", 200, b"{}", id="until the end"),
        pytest.param(b"HTTP/1.0 200 OK\r\n\r\n{}", 200, b"{}", id="HTTP/1.0"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" + OK, 200, OK_BODY, id="100-continue"),
        pytest.param(b"HTTP/1.1 103 X\r\nlink: </a>\r\n\r\n" * 3 + OK, 200, OK_BODY, id="early hints"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\nt: v\r\n\r\n",
            200,
            b"hello",
            id="chunked",
        ),
        pytest.param(
            b"HTTP/1.1 307 X\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n",
            307,
            b"",
            id="redirect, not followed",
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 60_000 + b"\r\n" + OK[17:], 200, OK_BODY, id="long head"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\n\x1f\x8b",
            200,
            b"\x1f\x8b",
            id="encoded, not decoded",
        ),
    ],
)
def test_a_whole_reply_is_read(reply: bytes, status: int, body: bytes) -> None:
    """Every framing that HTTP/1.1 allows."""
    peer, outcome = once(sends_and_closes(reply))
    assert isinstance(outcome, RawReply)
    assert (outcome.status_code, outcome.body) == (status, body)
    assert peer.received.endswith(b"content-length: %d\r\n\r\n%s" % (len(BODY), BODY))


def test_a_reply_to_head_has_no_body() -> None:
    """Its content-length tells of a body that does not come."""
    _, outcome = once(sends_and_closes(b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n"), b"", "HEAD")
    assert isinstance(outcome, RawReply)
    assert outcome.body == b""


@pytest.mark.parametrize("then", [close, Link.reset, wait], ids=["close", "reset", "stay"])
def test_a_refusal_that_overtakes_the_request_counts(then: Behaviour) -> None:
    """A 413 sent after the headers is the reply, though our body could not be sent; the connection is used up."""
    reply = b"HTTP/1.1 413 X\r\ncontent-length: 5\r\n\r\nlarge"

    def behave(link: Link) -> None:
        link.read_head()
        link.send(reply)
        if then is wait:
            answered.wait(5)  # the rest of the body stays where it is: in both kernels and in our buffer
        then(link)

    async def work(transport: Transport) -> tuple[object, object]:
        outcome = await attempt(transport, origin_of(peer), LONG_BODY)
        answered.set()
        return outcome, transport.acquire_idle(origin_of(peer))

    for _ in range(10):
        answered = threading.Event()
        with Peer(behave) as peer:
            outcome, idle = run(work)
        assert isinstance(outcome, RawReply)
        assert (outcome.status_code, outcome.body) == (413, b"large")
        assert idle is None
        assert len(peer.links) == 1


def test_a_refusal_in_the_kernel_survives_the_failing_write() -> None:
    """The loop may write first and learn of the reset there; the reply that came before it is still read."""

    def behave(link: Link) -> None:
        link.read_head()
        go.wait(5)
        link.send(b"HTTP/1.1 413 X\r\ncontent-length: 5\r\n\r\nlarge")
        link.reset()
        done.set()

    async def work(transport: Transport) -> RawReply:
        connection = await transport.acquire(origin_of(peer))
        waiter = connection.send(head(), LONG_BODY, 3.0, 1 << 20)
        go.set()
        done.wait(5)  # the loop stands still meanwhile: reply and reset are both in the kernel
        assert connection._socket is not None
        connection._socket._write_ready()  # type: ignore[attr-defined]  # as if the selector named the write first
        return await waiter

    go, done = threading.Event(), threading.Event()
    with Peer(behave) as peer:
        reply = run(work)
    assert reply.status_code == 413


# ------------------------------------------------------------------------------------------------ kept-alive


async def twice(transport: Transport, origin: Origin, pause_s: float = 0.05) -> object:
    first = await attempt(transport, origin)
    assert isinstance(first, RawReply), first
    await asyncio.sleep(pause_s)
    return await attempt(transport, origin)


def test_a_connection_is_used_again() -> None:
    """Two requests, one connection."""
    with Peer(answers()) as peer:
        assert isinstance(run(lambda transport: twice(transport, origin_of(peer))), RawReply)
    assert len(peer.links) == 1
    assert peer.received.count(b"PUT ") == 2


@pytest.mark.parametrize("then", [close, Link.reset, Link.end_sending], ids=["close", "reset", "half-close"])
def test_a_connection_dropped_between_two_requests_is_not_used(then: Behaviour) -> None:
    """The second request finds the end and goes out once, on a new connection."""
    with Peer(answers_once_then(then)) as peer:
        assert isinstance(run(lambda transport: twice(transport, origin_of(peer))), RawReply)
    assert [bytes(link.received).count(b"PUT ") for link in peer.links] == [1, 1]


def unsolicited(link: Link) -> None:
    link.send(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
    link.read_rest()


@pytest.mark.parametrize("loop_reads", [True, False], ids=["seen by the loop", "still in the kernel"])
@pytest.mark.parametrize(
    "then",
    [close, Link.reset, lambda link: (link.end_sending(), link.read_rest()), unsolicited],
    ids=["close", "reset", "half-close", "408"],
)
def test_an_end_after_acquire_is_seen_before_sending(then: Behaviour, loop_reads: bool) -> None:
    """Between acquire and exchange lies the journal's commit: the peer's end within it costs no doubt."""

    def behave(link: Link) -> None:
        link.read_request()
        link.send(OK)
        go.wait(5)
        then(link)

    async def work(transport: Transport) -> object:
        assert isinstance(await attempt(transport, origin_of(peer)), RawReply)
        connection = transport.acquire_idle(origin_of(peer))
        assert connection is not None
        go.set()
        if loop_reads:
            await asyncio.sleep(0.05)
        else:
            time.sleep(0.05)  # noqa: ASYNC251 - the loop must not see what the kernel has
        try:
            return await transport.exchange(connection, head(), BODY)
        except (NotSent, NoReply) as exc:
            return exc

    go = threading.Event()
    with Peer(behave) as peer:
        outcome = run(work)
    assert isinstance(outcome, NotSent)
    assert outcome.cause == "closed_before_sending"
    assert len(peer.links) == 1
    assert peer.received.count(b"PUT ") == 1


def test_a_first_send_that_the_kernel_refuses_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reset that comes after the last look: asyncio closes within the very call of write, and no byte left."""

    def behave(link: Link) -> None:
        link.read_request()
        link.send(OK)
        go.wait(5)
        link.reset()
        done.set()

    async def work(transport: Transport) -> object:
        assert isinstance(await attempt(transport, origin_of(peer)), RawReply)
        monkeypatch.setattr(Connection, "_pending", lambda _: None)
        go.set()
        done.wait(5)
        return await attempt(transport, origin_of(peer))

    go, done = threading.Event(), threading.Event()
    with Peer(behave) as peer:
        outcome = run(work)
    assert isinstance(outcome, NotSent)
    assert "first byte" in str(outcome)
    assert peer.received.count(b"PUT ") == 1


def test_without_looking_the_same_end_would_cost_a_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The look before sending is what saves it: without it the peer receives the request and never answers."""

    def behave(link: Link) -> None:
        link.read_request()
        link.send(OK)
        go.wait(5)
        link.end_sending()
        done.set()
        link.read_rest()

    async def work(transport: Transport) -> object:
        assert isinstance(await attempt(transport, origin_of(peer)), RawReply)
        monkeypatch.setattr(Connection, "_pending", lambda _: None)
        go.set()
        done.wait(5)
        return await attempt(transport, origin_of(peer))

    go, done = threading.Event(), threading.Event()
    with Peer(behave) as peer:
        outcome = run(work)
    assert causes(outcome) == ("closed", None)
    assert peer.received.count(b"PUT ") == 2


@pytest.mark.parametrize("then", [close, Link.reset], ids=["close", "reset"])
def test_a_connection_dropped_during_the_second_request_leaves_a_doubt(then: Behaviour) -> None:
    """The second request was read to its end: no retry on a new connection, whatever the pool thinks."""

    def behave(link: Link) -> None:
        end = link.read_request()
        link.send(OK)
        link.read_request(end)
        then(link)

    with Peer(behave) as peer:
        outcome = run(lambda transport: twice(transport, origin_of(peer), 0))
    assert isinstance(outcome, NoReply)
    assert outcome.cause in ("closed", "reset")
    assert len(peer.links) == 1
    assert peer.received.count(b"PUT ") == 2


def test_closing_just_as_we_send_costs_no_false_doubt() -> None:
    """Many races for the end of an idle connection: a doubt only where the peer really got the request.

    The peer ends its side around the moment of our send, and goes on reading; so it knows what came.
    """
    trials = 150
    chance = random.Random(7)
    ended_at_s: dict[int, float] = {}
    delays_s = [chance.uniform(0, 0.004) for _ in range(trials)]
    go = [threading.Event() for _ in range(trials)]

    def behave(link: Link) -> None:
        link.read_request()
        link.send(OK)
        go[link.number].wait(5)
        time.sleep(delays_s[link.number])
        link.end_sending()
        ended_at_s[link.number] = time.monotonic()
        link.read_rest()

    async def work(transport: Transport) -> list[tuple[float, object]]:
        outcomes: list[tuple[float, object]] = []
        for number in range(trials):
            assert isinstance(await attempt(transport, origin_of(peer)), RawReply)
            connection = transport.acquire_idle(origin_of(peer))
            assert connection is not None
            go[number].set()
            await asyncio.sleep(chance.uniform(0, 0.004))
            sent_at_s = time.monotonic()
            try:
                outcomes.append((sent_at_s, await transport.exchange(connection, head(), BODY)))
            except (NotSent, NoReply) as exc:
                outcomes.append((sent_at_s, exc))
        return outcomes

    with Peer(behave) as peer:
        outcomes = run(work)
    assert len(peer.links) == trials
    not_sent = false_doubts = needless_doubts = 0
    for number, (sent_at_s, outcome) in enumerate(outcomes):
        requests = bytes(peer.links[number].received).count(b"PUT ")
        if isinstance(outcome, NotSent):
            not_sent += 1
            assert requests == 1
        else:
            assert causes(outcome) == ("closed", None)
            false_doubts += requests == 1
            needless_doubts += ended_at_s[number] + 0.002 < sent_at_s
    assert (false_doubts, needless_doubts) == (0, 0)
    assert 0 < not_sent < trials, "the race was none"


@pytest.mark.parametrize(
    "field",
    [b"connection: close", b"Connection: keep-alive, Close", b"keep-alive: timeout=1", b"Keep-Alive: max=5, timeout=0"],
)
@pytest.mark.parametrize("framing", [b"content-length: 2\r\n\r\n{}", b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n"])
def test_a_reply_that_ends_the_connection_is_heeded(field: bytes, framing: bytes) -> None:
    """`Connection: close`, and a keep-alive too short to be used with a second's margin."""
    with Peer(answers(b"HTTP/1.1 200 OK\r\n" + field + b"\r\n" + framing)) as peer:
        assert isinstance(run(lambda transport: twice(transport, origin_of(peer), 0)), RawReply)
    assert len(peer.links) == 2


def test_a_request_that_ends_the_connection_is_heeded() -> None:
    """Whoever asks with `Connection: close` finds no connection kept."""

    async def work(transport: Transport) -> Connection | None:
        connection = await transport.acquire(origin_of(peer))
        await transport.exchange(connection, head("PUT", ("connection", "close")), BODY)
        return transport.acquire_idle(origin_of(peer))

    with Peer(answers()) as peer:
        assert run(work) is None


@pytest.mark.parametrize("reply", [OK, b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"])
def test_bytes_beyond_the_reply_end_the_connection(reply: bytes) -> None:
    """The reply is whole and counts, but what else would be taken for the reply of the next request."""
    with Peer(answers(reply + OK)) as peer:
        assert isinstance(run(lambda transport: twice(transport, origin_of(peer), 0)), RawReply)
    assert len(peer.links) == 2


def test_idle_connections_are_closed_in_time() -> None:
    """After idle_s a connection is not handed out, and soon after the peer sees it closed."""

    async def work(transport: Transport) -> None:
        assert isinstance(await attempt(transport, origin_of(peer)), RawReply)
        await asyncio.sleep(0.12)
        assert transport.acquire_idle(origin_of(peer)) is None
        assert isinstance(await attempt(transport, origin_of(peer)), RawReply)
        await asyncio.sleep(0.25)
        assert peer.links[1].ended.wait(1)

    with Peer(answers()) as peer:
        run(work, idle_s=0.1)
    assert len(peer.links) == 2


def test_an_announced_keep_alive_overrules_idle_s() -> None:
    """The peer says how long it keeps an idle connection; less a second, we believe it."""
    reply = OK.replace(b"\r\n\r\n", b"\r\nkeep-alive: timeout=9\r\n\r\n", 1)
    with Peer(answers(reply)) as peer:
        assert isinstance(run(lambda transport: twice(transport, origin_of(peer), 0.25), idle_s=0.1), RawReply)
    assert len(peer.links) == 1


def test_a_connection_held_back_too_long_is_not_trusted() -> None:
    """Acquired in time, but then the journal took long: the peer may be about to close, so nothing is sent."""

    async def work(transport: Transport) -> object:
        assert isinstance(await attempt(transport, origin_of(peer)), RawReply)
        connection = transport.acquire_idle(origin_of(peer))
        assert connection is not None
        await asyncio.sleep(0.8)
        assert not connection.usable
        try:
            return await transport.exchange(connection, head(), BODY)
        except NotSent as exc:
            return exc

    with Peer(answers()) as peer:
        outcome = run(work, idle_s=0.1)
    assert isinstance(outcome, NotSent)
    assert peer.received.count(b"PUT ") == 1


def test_the_most_recently_used_connection_comes_first() -> None:
    """Reusing the youngest leaves the old ones to expire, instead of keeping all of them half old."""

    async def work(transport: Transport) -> None:
        first, second = await transport.acquire(origin_of(peer)), await transport.acquire(origin_of(peer))
        for connection in (second, first):
            await transport.exchange(connection, head(), BODY)
        assert transport.acquire_idle(origin_of(peer)) is first
        assert transport.acquire_idle(origin_of(peer)) is second
        assert transport.acquire_idle(origin_of(peer)) is None

    with Peer(answers()) as peer:
        run(work)


def test_a_released_connection_serves_the_next() -> None:
    """Acquired for nothing, given back unused, and none the younger for it."""

    async def work(transport: Transport) -> None:
        connection = await transport.acquire(origin_of(peer))
        transport.release(connection)
        assert await transport.acquire(origin_of(peer)) is connection
        await transport.exchange(connection, head(), BODY)
        before_s = connection.stale_at
        again = transport.acquire_idle(origin_of(peer))
        assert again is connection
        await asyncio.sleep(0.01)
        transport.release(connection)
        assert connection.stale_at == pytest.approx(before_s)

    with Peer(answers()) as peer:
        run(work)
    assert len(peer.links) == 1


# ------------------------------------------------------------------------------------------------ callers


def test_a_connection_carries_one_exchange_at_a_time() -> None:
    """A caller's mistake is an error before anything is sent, not two requests on one wire."""

    async def work(transport: Transport) -> None:
        connection = await transport.acquire(origin_of(peer))
        under_way = asyncio.create_task(transport.exchange(connection, head(), BODY))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError):
            await transport.exchange(connection, head(), BODY)
        await under_way
        with pytest.raises(RuntimeError):
            await transport.exchange(connection, head(), BODY)  # it belongs to the pool now

    with Peer(answers()) as peer:
        run(work)
    assert peer.received.count(b"PUT ") == 1


def test_a_cancelled_exchange_closes_its_connection() -> None:
    """Its reply would be taken for that of the next request."""

    async def work(transport: Transport) -> None:
        connection = await transport.acquire(origin_of(peer))
        task = asyncio.create_task(transport.exchange(connection, head(), BODY))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert transport.acquire_idle(origin_of(peer)) is None
        await asyncio.sleep(0.05)
        assert peer.links[0].ended.wait(1)

    with Peer(reads(1.0, wait)) as peer:
        run(work)
    assert peer.received.count(b"PUT ") == 1


def test_a_cancellation_that_comes_with_the_reply_harms_nobody_else() -> None:
    """The reply was whole, the connection may already be another caller's: it is left to that one."""

    def behave(link: Link) -> None:
        end = link.read_request()
        link.send(OK)
        link.read_request(end)
        time.sleep(0.05)
        link.send(OK)
        link.read_rest()

    async def work(transport: Transport) -> None:
        connection = await transport.acquire(origin_of(peer))
        task = asyncio.create_task(transport.exchange(connection, head(), BODY))
        await asyncio.sleep(0)
        while connection.checked_out:  # noqa: ASYNC110 - each turn of the loop counts here
            await asyncio.sleep(0)
        # The reply was read in the last turn of the loop, the task has not run yet.
        other = transport.acquire_idle(origin_of(peer))
        task.cancel()
        assert other is connection
        reply = await transport.exchange(other, head(), BODY)
        assert reply.status_code == 200
        with contextlib.suppress(asyncio.CancelledError):
            await task

    with Peer(behave) as peer:
        run(work)
    assert len(peer.links) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the same sockets
def test_a_cancelled_connect_leaves_nothing_open() -> None:
    """Whichever turn of the loop it is stopped in, nothing is sent and nothing stays behind (`run` looks)."""

    async def work(transport: Transport) -> None:
        for turns in range(8):
            task = asyncio.create_task(transport.acquire(origin_of(peer)))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        del task
        gc.collect()  # see `_connect`: asyncio leaves some of these sockets to it

    with Peer(wait) as peer:
        run(work)
    assert peer.received == b""


def test_closing_the_transport_ends_exchanges_under_way() -> None:
    """Their bytes left, so it is a doubt."""

    async def work(transport: Transport) -> object:
        task = asyncio.create_task(attempt(transport, origin_of(peer)))
        await asyncio.sleep(0.05)
        await transport.aclose()
        return await task

    with Peer(reads(1.0, wait)) as peer:
        assert causes(run(work)) == ("closed", None)


def test_many_exchanges_side_by_side_keep_apart() -> None:
    """Every caller gets the reply to its own request."""

    def echo(link: Link) -> None:
        end = 0
        while True:
            start, body_start = end, link.read_head(end)
            end = link.read_request(start)
            if end == start:
                return
            body = bytes(link.received[body_start:end])
            link.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))

    async def work(transport: Transport) -> None:
        async def caller(number: int) -> None:
            for turn in range(10):
                body = b"%d/%d " % (number, turn) * 500
                outcome = await attempt(transport, origin_of(peer), body)
                assert isinstance(outcome, RawReply)
                assert outcome.body == body

        await asyncio.gather(*(caller(number) for number in range(16)))

    with Peer(echo) as peer:
        run(work)
    assert len(peer.links) == 16


# ------------------------------------------------------------------------------------------------ TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def server_context(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


def client_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def run_tls(work: Callable[[Transport], Awaitable[T]], authority: trustme.CA, **settings: float) -> T:
    async def main() -> T:
        transport = Transport(ssl_context=client_context(authority), timeout_s=3.0, **settings)  # type: ignore[arg-type]
        try:
            return await work(transport)
        finally:
            await transport.aclose()
            assert not transport._open

    return asyncio.run(main())


@pytest.fixture
def strange_authority() -> trustme.CA:
    return trustme.CA()


def test_tls_carries_requests(authority: trustme.CA) -> None:
    """Verified TLS, kept alive; session tickets that wait in the kernel are no reason not to send."""

    async def work(transport: Transport) -> None:
        origin = Origin("https", "localhost", peer.port)
        for _ in range(5):
            connection = await transport.acquire(origin)
            time.sleep(0.02)  # noqa: ASYNC251 - the tickets arrive, and the loop has not read them
            reply = await transport.exchange(connection, head(), BODY)
            assert (reply.status_code, reply.body) == (200, OK_BODY)
            assert transport.acquire_idle(origin) is connection
            await transport.exchange(connection, head(), BODY)
            idle = transport.acquire_idle(origin)
            assert idle is not None
            idle.abort()

    with Peer(answers(), tls=server_context(authority, "localhost")) as peer:
        run_tls(work, authority)
    assert [bytes(link.received).count(b"PUT ") for link in peer.links] == [2] * 5


@pytest.mark.parametrize("which", ["unknown authority", "wrong name", "no TLS at all", "closes in the handshake"])
def test_tls_that_cannot_be_trusted_gets_no_byte(
    which: str, authority: trustme.CA, strange_authority: trustme.CA
) -> None:
    """Not one byte of the application reaches a peer that is not who it should be."""
    tls = {
        "unknown authority": server_context(strange_authority, "localhost"),
        "wrong name": server_context(authority, "elsewhere.example"),
    }.get(which)

    def behave(link: Link) -> None:
        if which == "closes in the handshake":
            link.socket.recv(10)
            return
        if which == "no TLS at all":
            link.socket.recv(10)
            link.send(OK)
        link.read_rest()

    with Peer(behave, tls=tls) as peer:
        outcome = run_tls(lambda transport: attempt(transport, Origin("https", "localhost", peer.port)), authority)
    assert isinstance(outcome, NotSent)
    assert outcome.cause == ("tls" if which == "closes in the handshake" else "untrusted")
    assert b"PUT" not in peer.received
    assert BODY[:20] not in peer.received


def test_tls_that_never_answers_is_a_connect_timeout(authority: trustme.CA) -> None:
    """connect_timeout_s covers the handshake."""

    async def work(transport: Transport) -> object:
        return await attempt(transport, Origin("https", "localhost", peer.port))

    with Peer(wait) as peer:
        outcome = run_tls(work, authority, connect_timeout_s=0.2)
    assert isinstance(outcome, NotSent)
    assert outcome.cause == "connect_timeout"


@pytest.mark.parametrize("loop_reads", [True, False], ids=["seen by the loop", "still in the kernel"])
@pytest.mark.parametrize("farewell", [True, False], ids=["close_notify", "no close_notify"])
def test_the_end_of_a_tls_connection_is_seen_before_sending(
    authority: trustme.CA,
    farewell: bool,
    loop_reads: bool,
) -> None:
    """The peer's farewell is read before we send, also where only the loop can decipher it."""

    def behave(link: Link) -> None:
        link.read_request()
        link.send(OK)
        go.wait(5)
        if farewell:
            link.socket.settimeout(0.1)
            assert isinstance(link.socket, ssl.SSLSocket)
            link.socket.unwrap()
        else:
            link.socket.shutdown(socket.SHUT_WR)
            link.read_rest()

    async def work(transport: Transport) -> object:
        origin = Origin("https", "localhost", peer.port)
        assert isinstance(await attempt(transport, origin), RawReply)
        connection = transport.acquire_idle(origin)
        assert connection is not None
        go.set()
        if loop_reads:
            await asyncio.sleep(0.05)
        else:
            time.sleep(0.05)  # noqa: ASYNC251 - the loop must not see what the kernel has
        try:
            return await transport.exchange(connection, head(), BODY)
        except (NotSent, NoReply) as exc:
            return exc

    go = threading.Event()
    with Peer(behave, tls=server_context(authority, "localhost")) as peer:
        outcome = run_tls(work, authority)
    assert isinstance(outcome, NotSent)
    assert outcome.cause == "closed_before_sending"
    assert peer.received.count(b"PUT ") == 1


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_broken_tls_exchange_leaves_a_doubt(authority: trustme.CA, share: float) -> None:
    """After the handshake every byte counts as handed over."""
    with Peer(reads(share, close), tls=server_context(authority, "localhost")) as peer:
        outcome = run_tls(lambda transport: attempt(transport, Origin("https", "localhost", peer.port)), authority)
    assert isinstance(outcome, NoReply)
    assert outcome.cause in ("closed", "reset")
    assert len(peer.links) == 1


def test_a_context_that_verifies_nothing_is_refused() -> None:
    """There is no way to send rows to whoever answers."""
    context = ssl.create_default_context()
    context.check_hostname = False
    with pytest.raises(ValueError, match="verify"):
        Transport(ssl_context=context)


# ------------------------------------------------------------------------------------------------ under httpx


def test_an_async_client_works_over_it() -> None:
    """The token endpoint and `send` use AsyncClient: form, reply as JSON, no encoding asked for."""

    async def work(transport: Transport) -> httpx.Response:
        async with httpx.AsyncClient(transport=transport, follow_redirects=False) as client:
            return await client.post(f"http://127.0.0.1:{peer.port}/token?a=b c", data={"grant_type": "x"})

    with Peer(answers()) as peer:
        response = run(work)
    assert response.json() == {"statusCode": 200}
    assert peer.received.startswith(b"POST /token?a=b%20c HTTP/1.1\r\n")
    assert peer.received.endswith(b"\r\n\r\ngrant_type=x")
    assert b"accept-encoding: identity\r\n" in peer.received
    assert peer.received.lower().count(b"content-length: 12\r\n") == 1


def test_an_async_client_sees_our_errors() -> None:
    """They are httpx.TransportErrors that name their request, and say the same word."""

    async def work(transport: Transport) -> None:
        async with httpx.AsyncClient(transport=transport, timeout=0.2) as client:
            with pytest.raises(NoReply) as caught:
                await client.get(f"http://127.0.0.1:{peer.port}/")
            assert caught.value.cause == "timeout"
            assert caught.value.request.method == "GET"
            with pytest.raises(NotSent):
                await client.get(f"http://127.0.0.1:{free_port()}/")
            with pytest.raises(httpx.UnsupportedProtocol):
                await client.get("ftp://127.0.0.1/")

    with Peer(reads(1.0, wait)) as peer:
        run(work)
    assert peer.received.count(b"GET ") == 1
    assert b"content-length" not in peer.received
