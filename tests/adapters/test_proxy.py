"""The transport behind proxies: what it says is held against what proxy and target received."""

import asyncio
import contextlib
import gc
import random
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import httpx
import pytest
import trustme

from backfill.adapters.transport import NoReply, NotSent, Origin, Transport
from backfill.core.http1 import RawReply, request_head
from backfill.core.proxy import Proxies
from tests.adapters.misbehaving import OK, OK_BODY, Behaviour, Link, Peer, answers, answers_once_then
from tests.adapters.proxies import ESTABLISHED, Proxying

BODY = b'[{"interaction":"api://shop/checkout"}]' * 800
PASSWORD, BASIC = "hunter2", "Basic dXNlcjpodW50ZXIy"
HEAD = request_head("PUT", "/interactions/offline?sk=1", [("host", "peer"), ("authorization", "Bearer tok-3n")])

T = TypeVar("T")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def serves(authority: trustme.CA, name: str = "localhost") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


def named(port: int, **more: str) -> Proxies:
    url = f"http://user:{PASSWORD}@127.0.0.1:{port}"
    return Proxies.named_in({"HTTPS_PROXY": url, "HTTP_PROXY": url} | more)


def run(
    work: Callable[[Transport], Awaitable[T]],
    proxies: Proxies,
    authority: trustme.CA | None = None,
    **settings: float,
) -> T:
    """Runs `work`, and sees that nothing stays open behind it and that asyncio has nothing to complain about."""
    complaints: list[dict[str, Any]] = []

    async def main() -> T:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        context = ssl.create_default_context()
        if authority is not None:
            authority.configure_trust(context)
        transport = Transport(ssl_context=context, proxies=proxies, timeout_s=3.0, **settings)  # type: ignore[arg-type]
        try:
            return await work(transport)
        finally:
            await transport.aclose()
            assert not transport._open
            gc.collect()

    result = asyncio.run(main())
    gc.collect()
    assert complaints == []
    return result


async def attempt(transport: Transport, origin: Origin, body: bytes = BODY) -> RawReply | NotSent | NoReply:
    outcome: RawReply | NotSent | NoReply
    try:
        connection = await transport.acquire(origin)
        outcome = await transport.exchange(connection, HEAD, body)
    except (NotSent, NoReply) as error:
        outcome = error
    assert PASSWORD not in str(outcome)
    return outcome


def not_sent(outcome: object, cause: str, *words: str) -> None:
    assert isinstance(outcome, NotSent), outcome
    assert outcome.cause == cause, outcome
    for word in words:
        assert word in str(outcome), outcome


# ------------------------------------------------------------------------------------------------ tunnels


def test_a_tunnel_carries_requests_and_shows_the_proxy_nothing(authority: trustme.CA) -> None:
    """One CONNECT for a kept connection; its credentials stay with the proxy, and the request with the target."""

    async def work(transport: Transport) -> None:
        for _ in range(3):
            reply = await attempt(transport, Origin("https", "localhost", peer.port))
            assert isinstance(reply, RawReply), reply
            assert (reply.status_code, reply.body) == (200, OK_BODY)

    with Peer(answers(), tls=serves(authority)) as peer, Peer(proxying := Proxying(credentials=BASIC)) as proxy:
        run(work, named(proxy.port), authority)
    target = f"localhost:{peer.port}"
    assert proxying.heads == [f"CONNECT {target} HTTP/1.1\r\nhost: {target}\r\nproxy-authorization: {BASIC}\r\n\r\n"]
    assert [bytes(link.received).count(b"PUT ") for link in peer.links] == [3]
    assert b"proxy-authorization" not in peer.received.lower()
    assert b"tok-3n" in peer.received
    assert b"tok-3n" not in proxy.received
    assert BODY[:20] not in proxy.received


def test_a_tunnel_leads_to_an_ipv6_address(authority: trustme.CA) -> None:
    """An address of IPv6 stands in brackets in CONNECT, and its certificate is verified like a name's."""
    try:
        peer = Peer(answers(), tls=serves(authority, "::1"), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with peer, Peer(proxying := Proxying()) as proxy:
        outcome = run(lambda t: attempt(t, Origin("https", "::1", peer.port)), named(proxy.port), authority)
    assert isinstance(outcome, RawReply), outcome
    assert proxying.heads[0].startswith(f"CONNECT [::1]:{peer.port} HTTP/1.1\r\nhost: [::1]:{peer.port}\r\n")


@pytest.mark.parametrize("which", ["unknown authority", "wrong name", "the proxy's own name"])
def test_the_target_is_verified_inside_the_tunnel(authority: trustme.CA, which: str) -> None:
    """A proxy that answers in the target's place gets no byte of the request."""
    tls = {
        "unknown authority": lambda: serves(trustme.CA()),
        "wrong name": lambda: serves(authority, "elsewhere.example"),
        "the proxy's own name": lambda: serves(authority, "127.0.0.1"),
    }[which]()
    with Peer(answers(), tls=tls) as peer, Peer(Proxying()) as proxy:
        outcome = run(lambda t: attempt(t, Origin("https", "localhost", peer.port)), named(proxy.port), authority)
    not_sent(outcome, "untrusted", f"localhost:{peer.port} (through the proxy 127.0.0.1:{proxy.port} (HTTPS_PROXY))")
    assert peer.received == b""
    assert BODY[:20] not in proxy.received


REFUSALS = [
    pytest.param(b"HTTP/1.1 407 X\r\n\r\n", "proxy_credentials", "(407). Correct them in HTTPS_PROXY", id="407"),
    pytest.param(b"HTTP/1.1 403 X\r\ncontent-length: 2\r\n\r\nno", "proxy_refused", "answered 403", id="403"),
    pytest.param(b"HTTP/1.0 502 X\r\n\r\n<html>", "proxy_refused", "answered 502", id="502, HTTP/1.0"),
    pytest.param(b"HTTP/1.1 503 X\r\n\r\n", "proxy_refused", "answered 503", id="503"),
    pytest.param(b"HTTP/1.1 504 X\r\ncontent-length: 99999999\r\n\r\n", "proxy_refused", "answered 504", id="504"),
    pytest.param(b"HTTP/1.1 301 X\r\nlocation: /\r\n\r\n", "proxy_refused", "answered 301", id="301"),
    pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n", "proxy_refused", "ended the connection", id="only 100"),
    pytest.param(b"HTTP/1.1 2", "proxy_refused", "ended the connection", id="half a head"),
    pytest.param(b"", "proxy_refused", "ended the connection", id="nothing"),
    pytest.param(b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "proxy_refused", "something else than HTTP", id="no HTTP"),
    pytest.param(b"HTTP/1.1 200 X\r\nx: " + b"y" * (1 << 18), "proxy_refused", "something else", id="endless head"),
    pytest.param(ESTABLISHED + b"more", "proxy_refused", "something else than HTTP", id="bytes after 200"),
]


@pytest.mark.parametrize(("answer", "cause", "words"), REFUSALS)
def test_a_proxy_that_opens_no_tunnel_gets_nothing_but_the_question(
    authority: trustme.CA, answer: bytes, cause: str, words: str
) -> None:
    """Whatever it answers instead: not sent, one word for us and a sentence for a person, and no second question."""

    def behave(link: Link) -> None:
        link.read_head()
        link.send(answer)
        link.end_sending()
        link.read_rest()

    with Peer(behave) as proxy:
        outcome = run(lambda t: attempt(t, Origin("https", "api.invalid", 443)), named(proxy.port), authority)
    not_sent(outcome, cause, words, f"The proxy 127.0.0.1:{proxy.port} (HTTPS_PROXY)")
    assert len(proxy.links) == 1
    assert proxy.received.startswith(b"CONNECT api.invalid:443 HTTP/1.1\r\n")
    assert proxy.received.endswith(b"\r\n\r\n")


def test_credentials_that_are_missing_are_asked_for(authority: trustme.CA) -> None:
    """407 without any: says where to write them."""
    with Peer(Proxying(credentials=BASIC)) as proxy:
        proxies = Proxies.named_in({"ALL_PROXY": f"127.0.0.1:{proxy.port}"})
        outcome = run(lambda t: attempt(t, Origin("https", "api.invalid", 443)), proxies, authority)
    not_sent(outcome, "proxy_credentials", "asks for a user and password (407). Write them into ALL_PROXY")


@pytest.mark.parametrize("stage", ["connecting", "CONNECT", "TLS"])
def test_a_proxy_that_hangs_is_a_connect_timeout(authority: trustme.CA, stage: str) -> None:
    """connect_timeout_s covers the way to the proxy, its answer and TLS; the message says who was waited for."""
    with contextlib.ExitStack() as stack:
        if stage == "connecting":
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
            port = listener.getsockname()[1]
            for _ in range(8):
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(listener.getsockname())
            time.sleep(0.05)
        else:
            silent = Proxying(answer=b"") if stage == "CONNECT" else Proxying()
            port = stack.enter_context(Peer(silent)).port
        target = stack.enter_context(Peer(Link.read_rest)).port  # accepts, and never speaks TLS
        outcome = run(
            lambda t: attempt(t, Origin("https", "localhost", target)), named(port), authority, connect_timeout_s=0.3
        )
        said = {
            "connecting": f"The proxy 127.0.0.1:{port} (HTTPS_PROXY) could not be reached within 0.3 s",
            "CONNECT": f"The proxy 127.0.0.1:{port} (HTTPS_PROXY) opened no tunnel to localhost:{target} within 0.3 s",
            "TLS": f"localhost:{target} (through the proxy 127.0.0.1:{port} (HTTPS_PROXY)) could not be reached",
        }[stage]
        not_sent(outcome, "connect_timeout", said)


@pytest.mark.parametrize(("host", "cause"), [("127.0.0.1", "refused"), ("proxy.invalid", "dns")])
@pytest.mark.parametrize("scheme", ["https", "http"])
def test_a_proxy_that_is_not_there_is_named(scheme: str, host: str, cause: str) -> None:
    """Its variable stands in the message, since that is what is to be corrected."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        proxies = Proxies.named_in({"ALL_PROXY": f"http://u:{PASSWORD}@{host}:{taken.getsockname()[1]}"})
        outcome = run(lambda t: attempt(t, Origin(scheme, "127.0.0.1", 9)), proxies)
    not_sent(outcome, cause, "Check ALL_PROXY and the network", host)


def test_what_needs_no_proxy_goes_there_directly(authority: trustme.CA) -> None:
    """NO_PROXY: the proxy hears nothing of it."""
    with Peer(answers(), tls=serves(authority)) as peer, Peer(Proxying()) as proxy:
        proxies = named(proxy.port, NO_PROXY=f"localhost:{peer.port}")
        outcome = run(lambda t: attempt(t, Origin("https", "localhost", peer.port)), proxies, authority)
    assert isinstance(outcome, RawReply), outcome
    assert not proxy.links


# ------------------------------------------------------------------------------------------------ doubts in a tunnel


def test_a_tunnel_that_breaks_after_the_request_entered_leaves_a_doubt(authority: trustme.CA) -> None:
    """The target has the whole request, the proxy drops the tunnel: no reply, and nothing is sent again."""

    def behave(link: Link) -> None:
        link.read_request()
        proxying.drop()
        link.read_rest()

    with Peer(behave, tls=serves(authority)) as peer, Peer(proxying := Proxying()) as proxy:
        outcome = run(lambda t: attempt(t, Origin("https", "localhost", peer.port)), named(proxy.port), authority)
    assert isinstance(outcome, NoReply), outcome
    assert outcome.cause in ("closed", "reset")
    assert "(through the proxy " in str(outcome)
    assert peer.received.count(b"PUT ") == 1
    assert len(proxying.heads) == 1


@pytest.mark.parametrize("who", ["target", "proxy"])
def test_a_tunnel_that_ended_while_idle_is_not_used(authority: trustme.CA, who: str) -> None:
    """Whoever of the two ends it: the next request goes out once, through a new tunnel."""

    async def work(transport: Transport) -> object:
        origin = Origin("https", "localhost", peer.port)
        assert isinstance(await attempt(transport, origin), RawReply)
        if who == "proxy":
            proxying.drop()
        await asyncio.sleep(0.1)
        return await attempt(transport, origin)

    behave = answers_once_then(lambda link: None) if who == "target" else answers()
    with Peer(behave, tls=serves(authority)) as peer, Peer(proxying := Proxying()) as proxy:
        outcome = run(work, named(proxy.port), authority)
    assert isinstance(outcome, RawReply), outcome
    assert [bytes(link.received).count(b"PUT ") for link in peer.links] == [1, 1]
    assert len(proxying.heads) == 2


@pytest.mark.parametrize("stage", ["CONNECT", "TLS"])
@pytest.mark.parametrize("after_s", [0.0, 0.001, 0.05])
def test_a_cancelled_tunnel_leaves_nothing_open(authority: trustme.CA, stage: str, after_s: float) -> None:
    """At any moment of its opening: the proxy sees the end, and no error is forgotten."""

    async def work(transport: Transport) -> None:
        for _ in range(5):
            opening = asyncio.ensure_future(transport.acquire(Origin("https", "localhost", peer.port)))
            await asyncio.sleep(after_s)
            opening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await opening

    proxying = Proxying(answer=b"" if stage == "CONNECT" else ESTABLISHED)
    with Peer(Link.read_rest) as peer, Peer(proxying) as proxy:
        run(work, named(proxy.port), authority)
        # `settle` waits for every behaviour's end, which comes with the end of its connection.
    assert all(link.ended.is_set() for link in proxy.links)


# ------------------------------------------------------------------------------------------------ forwarding


def test_a_plain_address_is_asked_for_at_the_proxy() -> None:
    """The target in full, credentials for the proxy alone; the connection to it is kept."""

    async def work(transport: Transport) -> None:
        for _ in range(2):
            reply = await attempt(transport, Origin("http", "127.0.0.1", peer.port))
            assert isinstance(reply, RawReply), reply
            assert (reply.status_code, reply.body) == (200, OK_BODY)

    with Peer(answers()) as peer, Peer(proxying := Proxying(credentials=BASIC)) as proxy:
        run(work, named(proxy.port))
    assert len(proxy.links) == 1
    line = f"PUT http://127.0.0.1:{peer.port}/interactions/offline?sk=1 HTTP/1.1\r\nhost: peer\r\n"
    assert len(proxying.heads) == 2
    assert all(head.startswith(line) for head in proxying.heads)
    assert peer.received.count(b"PUT /interactions/offline?sk=1 HTTP/1.1\r\n") == 2
    assert peer.received.count(BODY) == 2
    assert b"proxy-authorization" not in peer.received.lower()


def test_a_forwarding_proxy_s_word_on_its_target_is_a_reply() -> None:
    """502 came back for a request that left: it is read as any 502, and never as not sent."""
    with socket.socket() as taken, Peer(Proxying()) as proxy:
        taken.bind(("127.0.0.1", 0))
        origin = Origin("http", "127.0.0.1", taken.getsockname()[1])
        outcome = run(lambda t: attempt(t, origin), named(proxy.port))
    assert isinstance(outcome, RawReply), outcome
    assert outcome.status_code == 502


@pytest.mark.parametrize("end", [Link.end_sending, Link.reset], ids=["half-close", "reset"])
def test_not_sent_is_never_wrong_at_a_forwarding_proxy(end: Behaviour) -> None:
    """Many races for the end of an idle connection: after `NotSent` the proxy has no byte to pass on."""
    trials = 60
    chance = random.Random(11)
    delays_s = [chance.uniform(0, 0.003) for _ in range(trials)]
    go = [threading.Event() for _ in range(trials)]

    def behave(link: Link) -> None:
        link.read_request()
        link.send(OK)
        go[link.number].wait(5)
        time.sleep(delays_s[link.number])
        if end is Link.reset:
            link.socket.setblocking(False)
            with contextlib.suppress(OSError):  # what came before the reset has come
                link.received += link.socket.recv(1 << 20)
        end(link)
        with contextlib.suppress(OSError):
            link.read_rest()

    async def work(transport: Transport) -> list[object]:
        origin = Origin("http", "127.0.0.1", 9)
        outcomes: list[object] = []
        for number in range(trials):
            assert isinstance(await attempt(transport, origin), RawReply)
            connection = transport.acquire_idle(origin)
            assert connection is not None
            go[number].set()
            await asyncio.sleep(chance.uniform(0, 0.003))
            try:
                outcomes.append(await transport.exchange(connection, HEAD, BODY))
            except (NotSent, NoReply) as error:
                outcomes.append(error)
        return outcomes

    with Peer(behave) as proxy:
        outcomes = run(work, named(proxy.port))
    assert len(proxy.links) == trials
    came = [bytes(link.received).count(b"PUT ") == 2 for link in proxy.links]
    claimed = [isinstance(outcome, NotSent) for outcome in outcomes]
    assert not any(after and safe for after, safe in zip(came, claimed, strict=True))
    assert 0 < sum(claimed) < trials, "the race was none"


def test_an_async_client_goes_the_same_way(authority: trustme.CA) -> None:
    """As the token is asked for: by httpx, over our transport, through the proxy."""

    async def work(transport: Transport) -> int:
        client = httpx.AsyncClient(transport=transport, trust_env=False)
        return (await client.post(f"https://localhost:{peer.port}/token", content=b"x", auth=("a", "b"))).status_code

    with Peer(answers(), tls=serves(authority)) as peer, Peer(proxying := Proxying(credentials=BASIC)) as proxy:
        assert run(work, named(proxy.port), authority) == 200
    assert len(proxying.heads) == 1
    assert b"proxy-authorization" not in peer.received.lower()
