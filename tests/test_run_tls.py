"""The real command against servers that must not be trusted: not a byte of the application leaves, and it says why.

The servers are the test's own, and remember each byte that came through TLS. Redirects stand here too: they are the
other way in which a server may try to send credentials and customers elsewhere.
"""

import re
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from tests.adapters.misbehaving import OK, Link, Peer, sends_and_closes
from tests.command import SECRET, Ended, Job, expect, visits

SOON_S = 30.0
"""A cold start on a busy machine, and not `max_attempts` waits, let alone `give_up_after_s`."""

TOKEN = "granted-TOKEN-0815"
TOKEN_REPLY = b'{"access_token":"%s","token_type":"bearer"}' % TOKEN.encode()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def mxo(link: Link) -> None:
    """Grants a token, and acknowledges whatever else it is asked."""
    start = 0
    while (end := link.read_request(start)) != start:
        if link.received[start:end].startswith(b"POST /one/oauth2token"):
            link.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(TOKEN_REPLY), TOKEN_REPLY))
        else:
            link.send(OK)
        start = end


def tls(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


def bundle(folder: Path, authority: trustme.CA) -> str:
    path = folder / "authority.pem"
    folder.mkdir(exist_ok=True)
    authority.cert_pem.write_to_path(path)
    return str(path)


def deliver(job: Job, **options: object) -> Ended:
    """Two rows; a machine with a proxy of its own must not change the tests."""
    direct = dict.fromkeys(("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "SSL_CERT_FILE"), "")
    environment = direct | dict(options.pop("environment", {}))  # type: ignore[call-overload]
    return job.run(job.export("export.csv", visits(2)), environment=environment, **options)


def old(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")


NOW = datetime.now(UTC)
DAY = timedelta(days=1)
Issue = Callable[[trustme.CA], trustme.LeafCert]

UNTRUSTED: dict[str, tuple[Issue, str]] = {
    "expired": (lambda ca: ca.issue_cert("localhost", not_before=NOW - 9 * DAY, not_after=NOW - DAY), "has expired"),
    "not yet valid": (
        lambda ca: ca.issue_cert("localhost", not_before=NOW + DAY, not_after=NOW + 9 * DAY),
        "is not yet valid",
    ),
    "another host": (lambda ca: ca.issue_cert("mxo.example"), "Hostname mismatch"),
    "another authority": (lambda _: trustme.CA().issue_cert("localhost"), "unable to get local issuer certificate"),
}


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
@pytest.mark.parametrize(
    ("why", "given"), [*((why, "client") for why in (*UNTRUSTED, "self-signed", "too old")), ("expired", "token")]
)
def test_nothing_is_said_to_a_server_that_cannot_be_trusted(
    tmp_path: Path, authority: trustme.CA, why: str, given: str
) -> None:
    """Neither credentials nor customers: no byte comes through TLS, the run stops at once (78) and names the reason."""
    if why == "self-signed":
        context, words = _self_signed(tmp_path), "self-signed certificate"
    elif why == "too old":
        context, words = tls(authority.issue_cert("localhost")), "Check the address"
        old(context)
    else:
        issue, words = UNTRUSTED[why]
        context = tls(issue(authority))
    with Peer(mxo, tls=context) as peer:
        job = Job(
            tmp_path / "job",
            f"https://localhost:{peer.port}",
            {"api": {"ca_bundle": bundle(tmp_path / "ca", authority)}},
        )
        credentials = {"BACKFILL_TOKEN": SECRET, "BACKFILL_CLIENT_ID": None, "BACKFILL_CLIENT_SECRET": None}
        ended = deliver(job, environment=credentials if given == "token" else {})
    expect(ended, 78, words, f"localhost:{peer.port}", "api.ca_bundle")
    assert ended.seconds < SOON_S
    assert peer.links == []
    assert peer.received == b""
    assert peer.handshakes_failed > 0
    assert job.outcomes() == {"unsent": 2}


def _self_signed(folder: Path) -> ssl.SSLContext:
    """What an authority of its own shows: its very certificate."""
    alone = trustme.CA()
    path = folder / "alone.pem"
    path.write_bytes(alone.private_key_pem.bytes() + alone.cert_pem.bytes())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


def test_the_authorities_of_the_machine_know_no_stranger(tmp_path: Path, authority: trustme.CA) -> None:
    """Without api.ca_bundle a private authority is none."""
    with Peer(mxo, tls=tls(authority.issue_cert("localhost"))) as peer:
        ended = deliver(Job(tmp_path, f"https://localhost:{peer.port}"))
    expect(ended, 78, "unable to get local issuer certificate", "api.ca_bundle")
    assert peer.links == []


@pytest.mark.parametrize("how", ["api.ca_bundle", "SSL_CERT_FILE"])
def test_an_authority_of_ones_own_serves_token_and_calls(tmp_path: Path, authority: trustme.CA, how: str) -> None:
    """Two servers with certificates of a private authority: one gives the token, the other takes the rows."""
    path = bundle(tmp_path / "ca", authority)
    certificate = tls(authority.issue_cert("localhost"))
    with Peer(mxo, tls=certificate) as issuer, Peer(mxo, tls=certificate) as tenant:
        api: dict[str, object] = {"token_url": f"https://localhost:{issuer.port}/one/oauth2token"}
        if how == "api.ca_bundle":
            api["ca_bundle"] = path
        job = Job(tmp_path / "job", f"https://localhost:{tenant.port}", {"api": api})
        ended = deliver(job, environment={"SSL_CERT_FILE": path} if how == "SSL_CERT_FILE" else {})
    expect(ended, 0)
    assert issuer.received.startswith(b"POST /one/oauth2token ")
    assert tenant.received.startswith(b"PUT ")
    assert TOKEN.encode() in tenant.received
    assert job.outcomes() == {"delivered": 2}


def test_a_token_endpoint_that_cannot_be_trusted_keeps_the_tenant_from_hearing_anything(
    tmp_path: Path, authority: trustme.CA
) -> None:
    """The token is asked for first, and names its own endpoint."""
    stranger = tls(trustme.CA().issue_cert("localhost"))
    with Peer(mxo, tls=stranger) as issuer, Peer(mxo, tls=tls(authority.issue_cert("localhost"))) as tenant:
        api = {
            "ca_bundle": bundle(tmp_path / "ca", authority),
            "token_url": f"https://localhost:{issuer.port}/one/oauth2token",
        }
        ended = deliver(Job(tmp_path / "job", f"https://localhost:{tenant.port}", {"api": api}))
    expect(ended, 78, f"token endpoint https://localhost:{issuer.port}/one/oauth2token", "issuer certificate")
    assert issuer.received == tenant.received == b""


def test_a_server_trusted_once_is_tried_again(tmp_path: Path, authority: trustme.CA) -> None:
    """One bad machine among several behind an address does not stop a night: the next connection may be a good one."""
    good, bad = authority.issue_cert("localhost"), trustme.CA().issue_cert("localhost")
    context = tls(good)
    shown: list[str] = []

    def choose(socket: ssl.SSLObject | ssl.SSLSocket, _: str | None, __: ssl.SSLContext) -> None:
        shown.append("bad" if len(shown) == 1 else "good")
        socket.context = tls(bad if shown[-1] == "bad" else good)

    context.sni_callback = choose

    def once(link: Link) -> None:
        """One reply, then the end: each request needs a connection of its own."""
        end = link.read_request()
        grants = link.received[:end].startswith(b"POST")
        body = TOKEN_REPLY if grants else b'{"statusCode":200}'
        link.send(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))

    with Peer(once, tls=context) as peer:
        job = Job(
            tmp_path / "job",
            f"https://localhost:{peer.port}",
            {"api": {"ca_bundle": bundle(tmp_path / "ca", authority)}},
        )
        ended = deliver(job)
    expect(ended, 0)
    assert shown[:3] == ["good", "bad", "good"]
    assert job.outcomes() == {"delivered": 2}


@pytest.mark.parametrize(
    "content", [b"", b"no certificate", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_a_bundle_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    """78 with the file's name, and no connection."""
    wrong = tmp_path / "wrong.pem"
    wrong.write_bytes(content)
    with Peer(mxo) as peer:
        ended = deliver(Job(tmp_path / "job", f"https://localhost:{peer.port}", {"api": {"ca_bundle": str(wrong)}}))
    expect(ended, 78, "api.ca_bundle", str(wrong), "PEM")
    assert peer.links == []


@pytest.mark.parametrize(
    ("what", "status"), [("token", 302), ("token", 307), ("call", 301), ("call", 302), ("call", 307)]
)
def test_a_redirect_is_never_followed(tmp_path: Path, status: int, what: str) -> None:
    """The place that it names sees no connection, be it the token endpoint that redirects or the API."""
    with Peer(mxo) as elsewhere:
        location = f"http://127.0.0.1:{elsewhere.port}/one/oauth2token"
        away = sends_and_closes(
            b"HTTP/1.1 %d Moved\r\nlocation: %s\r\ncontent-length: 0\r\n\r\n" % (status, location.encode())
        )
        with Peer(mxo) as good, Peer(away) as redirects:
            token_url = f"http://127.0.0.1:{(redirects if what == 'token' else good).port}/one/oauth2token"
            tenant = good if what == "token" else redirects
            job = Job(tmp_path, f"http://127.0.0.1:{tenant.port}", {"api": {"token_url": token_url}})
            ended = deliver(job)
    expect(ended, 78, str(status))
    assert re.search(r"Check api\.(token|base)_url", ended.said)
    assert elsewhere.links == []
    assert len(redirects.links) == 1
    doubtful = what == "call" and status in (302, 303)
    assert job.outcomes() == ({"in_doubt": 2} if doubtful else {"unsent": 2})
