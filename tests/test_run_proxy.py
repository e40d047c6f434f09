"""Proxies, by the real command: an https tenant behind a tunnel, a plain one behind a forwarding proxy.

Held against what proxy, front and sandbox received.
"""

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import trustme

from tests.adapters.misbehaving import Peer
from tests.adapters.proxies import Proxying
from tests.command import Job, Server, agree, discreet, expect, serving, visits
from tests.front import Front

TOKEN = "whole-TOKEN-0815"
GIVEN_TOKEN = {"BACKFILL_TOKEN": TOKEN, "BACKFILL_CLIENT_ID": None, "BACKFILL_CLIENT_SECRET": None}
PASSWORD, BASIC = "pr0xy-hunter2", "Basic dXNlcjpwcjB4eS1odW50ZXIy"
NOBODY = "http://127.0.0.1:9"


class Tenant(NamedTuple):
    """A sandbox behind a front that speaks TLS as `localhost`."""

    server: Server
    front: Front
    peer: Peer
    job: Job


@pytest.fixture
def tenant(tmp_path: Path) -> Iterator[Tenant]:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with serving(tmp_path / "log", token=TOKEN) as server:
        front = Front(server.base_url)
        with Peer(front, tls=context) as peer:
            job = Job(
                tmp_path / "job",
                f"https://localhost:{peer.port}",
                {"api": {"ca_bundle": str(tmp_path / "ca.pem")}, "delivery": {"max_attempts": 2}},
            )
            job.export("a.csv", visits(320))
            yield Tenant(server, front, peer, job)


def behind(proxy: Peer, name: str = "HTTPS_PROXY") -> dict[str, str | None]:
    return {name: f"http://user:{PASSWORD}@127.0.0.1:{proxy.port}"}


def kept_to_itself(job: Job, said: str) -> None:
    """The proxy's password stands nowhere."""
    for text in (said.encode(), *(path.read_bytes() for path in job.state.rglob("*") if path.is_file())):
        assert PASSWORD.encode() not in text
        assert BASIC.encode() not in text


def test_everything_goes_through_the_tunnel(tenant: Tenant) -> None:
    """Token and calls, each in TLS with the tenant: delivered once, the proxy saw nothing but CONNECT, its password is
    kept nowhere; NO_PROXY takes the direct way.
    """
    server, _, peer, job = tenant
    with Peer(proxying := Proxying(credentials=BASIC)) as proxy:
        ended = job.run("a.csv", environment=behind(proxy))
        expect(ended, 0)
        tunnels = len(proxying.heads)
        job.export("b.csv", visits(120, first=1000))
        direct = behind(proxy) | {"no_proxy": "example.org, localhost"}
        expect(job.run("b.csv", environment=direct), 0)
    assert agree(job, server) == {"delivered": 440}
    assert len(proxying.heads) == tunnels >= 1
    assert {head.split("\r\n")[0] for head in proxying.heads} == {f"CONNECT localhost:{peer.port} HTTP/1.1"}
    assert b"proxy-authorization" not in peer.received.lower()
    discreet(proxy.received.decode("latin-1"))
    kept_to_itself(job, ended.said)


@pytest.mark.parametrize("given", [{}, GIVEN_TOKEN], ids=["asking for a token", "with a token"])
@pytest.mark.parametrize(
    ("status", "code", "words", "asked"),
    [
        (407, 77, "refuses its user and password (407). Correct them in HTTPS_PROXY", 1),
        (403, 75, "answered 403. Have its operator allow the host", 2),
        (503, 75, "answered 503. It may not reach that host", 2),
    ],
)
def test_a_proxy_that_opens_no_tunnel(
    tenant: Tenant, status: int, code: int, words: str, asked: int, given: dict[str, str | None]
) -> None:
    """Its credentials refused: 77 at once; anything else: tried max_attempts times, 75. Nothing was sent, nobody's
    secret told, and the rerun completes.
    """
    server, front, peer, job = tenant
    with Peer(proxying := Proxying(answer=b"HTTP/1.1 %d X\r\ncontent-length: 0\r\n\r\n" % status)) as proxy:
        ended = job.run("a.csv", environment=behind(proxy) | given)
        expect(ended, code, words, f"The proxy 127.0.0.1:{proxy.port} (HTTPS_PROXY)", "unsent 320")
        assert len(proxying.heads) == asked
    assert (front.seen, server.tokens(), peer.links) == ([], 0, [])
    kept_to_itself(job, ended.said)
    with Peer(Proxying()) as proxy:
        expect(job.run("a.csv", environment=behind(proxy) | given), 0)
    assert agree(job, server) == {"delivered": 320}


def test_a_proxy_of_another_kind_is_refused_before_anything_is_staged(tenant: Tenant) -> None:
    """SOCKS: 78 naming the variable and what to do; with NO_PROXY for the tenant it does not matter."""
    socks: dict[str, str | None] = {"ALL_PROXY": f"socks5://user:{PASSWORD}@127.0.0.1:9"}
    ended = tenant.job.run("a.csv", environment=socks)
    expect(ended, 78, "ALL_PROXY names a proxy that is spoken to by socks5://", "NO_PROXY")
    kept_to_itself(tenant.job, ended.said)
    assert not any((tenant.job.state / "staged").glob("*"))
    expect(tenant.job.run("a.csv", environment=socks | {"NO_PROXY": "localhost"}), 0)
    assert agree(tenant.job, tenant.server) == {"delivered": 320}


def test_a_tunnel_that_breaks_leaves_its_requests_in_doubt(tenant: Tenant) -> None:
    """The proxy drops the tunnel when a request was applied and not answered: exactly that one is in doubt."""
    server, front, _, job = tenant
    with Peer(proxying := Proxying()) as proxy:
        front.before_reply = lambda passing, link: proxying.drop() if passing.number == 2 else None
        expect(job.run("a.csv", environment=behind(proxy)), 4)
        expect(job.run("a.csv", environment=behind(proxy)), 4)
    assert len(front.seen) == 4
    assert set(job.ledger().filter(outcome="in_doubt")["request"].to_list()) == {front.seen[1].request}
    assert agree(job, server) == {"delivered": 220, "in_doubt": 100}


def test_a_plain_tenant_is_asked_for_at_the_forwarding_proxy(tmp_path: Path) -> None:
    """http:// with HTTP_PROXY: each request names its target in full, and none takes the direct way."""
    with serving(tmp_path / "log") as server, Peer(proxying := Proxying(credentials=BASIC)) as proxy:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(220))
        expect(job.run("a.csv", environment=behind(proxy, "HTTP_PROXY")), 0)
        assert agree(job, server) == {"delivered": 220}
    lines = [head.split("\r\n")[0] for head in proxying.heads]
    assert lines[0] == f"POST {server.base_url}/one/oauth2token HTTP/1.1"
    assert [line.split(" ")[0] for line in lines[1:]] == ["PUT"] * 3
    assert all(f" {server.base_url}/" in line for line in lines)


def test_the_embedded_sandbox_is_reached_directly(tmp_path: Path) -> None:
    """--sandbox under proxies that lead nowhere: delivered."""
    job = Job(tmp_path / "job", "https://mxo.invalid")
    job.export("a.csv", visits(120))
    nowhere: dict[str, str | None] = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), NOBODY)
    expect(job.run("--sandbox", "a.csv", environment=nowhere), 0, "delivered 120")
