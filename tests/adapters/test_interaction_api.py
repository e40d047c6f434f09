"""How a call is addressed, held against the reference; and the token, asked of real servers on loopback."""

import asyncio
import base64
import json
import re
import socket
from collections.abc import Iterator
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backfill import __version__
from backfill.adapters.interaction_api import Address, Credentials, InteractionApi
from backfill.adapters.transport import Transport
from backfill.core.calls import CALLS
from backfill.core.errors import ConfigurationError, ExitCode
from backfill.core.events import TokenFailed, TokenGranted, TokenRefused
from backfill.core.lifecycle import Part
from backfill.sandbox import checks
from tests.adapters.misbehaving import Behaviour, Link, Peer, answers, sends_and_closes

CLIENT_ID, SECRET, TOKEN = "client-4711", "hunter2-hunter2", "tok-3n-value"
CLIENT = Credentials(client_id=CLIENT_ID, client_secret=SECRET)
GIVEN = Credentials(token=TOKEN)

Answer = TokenGranted | TokenRefused | TokenFailed


def api(
    client: httpx.AsyncClient | None = None,
    *,
    base_url: str = "https://mxo.example",
    site_key: str = "ONE-1",
    call: str = "interactions-offline",
    token_url: str = "/one/oauth2token",
    credentials: Credentials = GIVEN,
) -> InteractionApi:
    return InteractionApi(
        client=client or httpx.AsyncClient(),
        base_url=httpx.URL(base_url),
        site_key=site_key,
        call=CALLS[call],
        token_url=token_url,
        credentials=credentials,
    )


def address(of: InteractionApi, *, tid: str | None = None) -> Address:
    """The address of request 7's interactions 50 to 74 in load 3, second attempt."""
    return of.address(load=3, part=Part(7, 50, 25), attempt=2, tid=tid)


def ask(
    base_url: str,
    *,
    credentials: Credentials = CLIENT,
    token_url: str = "/one/oauth2token",
    times: int = 1,
    timeout_s: float = 5.0,
) -> tuple[list[Answer], Address]:
    """What asking for a token so many times came to, and how the next call would be addressed."""

    async def run() -> tuple[list[Answer], Address]:
        async with Transport(connect_timeout_s=timeout_s, timeout_s=timeout_s) as transport:
            client = httpx.AsyncClient(transport=transport, timeout=timeout_s, trust_env=False)
            asking = api(client, base_url=base_url, token_url=token_url, credentials=credentials)
            return [await asking.refresh_token() for _ in range(times)], address(asking)

    return asyncio.run(run())


def reply(status: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def token_reply(token: object) -> bytes:
    return reply("200 OK", json.dumps({"access_token": token, "token_type": "bearer"}).encode())


def authorization(of: Address) -> str:
    return dict(of.headers)["Authorization"]


# ---------------------------------------------------------------------------------------------------------- address


@pytest.mark.parametrize("call", CALLS)
def test_the_sandbox_finds_no_fault_in_an_address(call: str) -> None:
    """Route, query and headers are what the reference demands, as the stand-in that was written from it reads them."""
    made = address(api(call=call, site_key="ONE-1"), tid="t-1")
    target = urlsplit(made.target)
    found = checks.route(made.method, target.path)
    assert isinstance(found, checks.Call)
    assert found.name == call
    assert checks.query_fault(target.query.encode(), "ONE-1") is None
    headers = {name.lower().encode(): value.encode() for name, value in made.headers}
    assert checks.headers_fault(headers) is None
    for demanded in (b"content-type", b"datamimetype"):  # the check sees what it is here for
        assert checks.headers_fault({name: value for name, value in headers.items() if name != demanded}) is not None


@given(site_key=st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1), tid=st.text())
def test_site_key_and_tid_reach_the_server_as_they_are(site_key: str, tid: str) -> None:
    """Whatever characters they hold, the query decodes to these two parameters, and the target is plain ASCII."""
    target = address(api(site_key=site_key), tid=tid).target
    assert all("!" <= character <= "~" for character in target)
    assert "#" not in target
    query = urlsplit("https://mxo.example" + target).query
    assert parse_qsl(query, keep_blank_values=True, strict_parsing=True) == [("sk", site_key), ("tid", tid)]


def test_without_a_tid_there_is_no_such_parameter() -> None:
    """Null is absent, not empty."""
    assert parse_qsl(urlsplit(address(api()).target).query) == [("sk", "ONE-1")]


def test_the_user_agent_names_load_request_positions_and_attempt() -> None:
    """So the vendor can find a doubtful call in the server's log. Positions are the first and the last one."""
    assert dict(address(api()).headers)["User-Agent"] == (
        f"backfill/{__version__} (load 3; request 7; positions 50-74; attempt 2)"
    )


@pytest.mark.parametrize("call", CALLS)
def test_a_call_by_hand_differs_in_its_name_alone(call: str) -> None:
    """Same address, same headers; the User-Agent says that no job made it."""
    made, by_hand = address(api(call=call), tid="t"), api(call=call).address_by_hand(name="0123", tid="t")
    assert by_hand[:2] == made[:2]
    assert dict(by_hand.headers) == dict(made.headers) | {"User-Agent": f"backfill/{__version__} (send 0123)"}


@pytest.mark.parametrize(
    ("base_url", "host"),
    [
        ("https://mxo.example", "mxo.example"),
        ("https://mxo.example:8443", "mxo.example:8443"),
        ("http://[::1]:8080", "[::1]:8080"),
        ("https://bücher.example", "xn--bcher-kva.example"),
    ],
)
def test_the_host_header_names_the_tenant(base_url: str, host: str) -> None:
    """As HTTP writes it: brackets for IPv6, the port only where it is not the usual one, ASCII always."""
    assert dict(address(api(base_url=base_url)).headers)["Host"] == host


def test_a_base_url_may_end_in_a_slash() -> None:
    """The path is the reference's, with no empty segment in it."""
    target = address(api(base_url="https://mxo.example/")).target
    assert urlsplit(target).path == "/one/oauth2/rt/api/2.0/interactions/offline"


# ------------------------------------------------------------------------------------------------------- a new token


def test_a_token_is_asked_for_and_carried_from_then_on() -> None:
    """Client credentials: HTTP Basic, a form with the grant type; the next call carries what was granted."""
    with Peer(answers(token_reply("abc.DEF-123"))) as peer:
        answered, then = ask(f"http://127.0.0.1:{peer.port}")
    assert answered == [TokenGranted()]
    assert authorization(then) == "Bearer abc.DEF-123"
    head, _, body = peer.received.partition(b"\r\n\r\n")
    request_line, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    assert request_line == "POST /one/oauth2token HTTP/1.1"
    assert base64.b64decode(headers["authorization"].removeprefix("Basic ")).decode() == f"{CLIENT_ID}:{SECRET}"
    assert headers["content-type"] == "application/x-www-form-urlencoded"
    assert body == b"grant_type=client_credentials"


def test_a_second_token_replaces_the_first() -> None:
    """A refresh is of use only if later calls carry the new one."""
    granted = iter(("first", "second"))

    def behave(link: Link) -> None:
        end = 0
        while (start := end) != (end := link.read_request(start)):
            link.send(token_reply(next(granted)))

    with Peer(behave) as peer:
        answered, then = ask(f"http://127.0.0.1:{peer.port}", times=2)
    assert answered == [TokenGranted(), TokenGranted()]
    assert authorization(then) == "Bearer second"


def test_tokens_may_be_issued_elsewhere() -> None:
    """With an absolute token_url only that server hears of the credentials."""
    with Peer(answers(token_reply("t"))) as issuer, Peer(answers()) as tenant:
        answered, _ = ask(
            f"http://127.0.0.1:{tenant.port}", token_url=f"http://127.0.0.1:{issuer.port}/login?realm=mxo"
        )
    assert answered == [TokenGranted()]
    assert issuer.received.startswith(b"POST /login?realm=mxo HTTP/1.1\r\n")
    assert tenant.links == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>Sign in</html>",
        b"{}",
        b"[]",
        b"null",
        b'"abc"',
        b"\xff\xfe",
        b'{"access_token": ',
        b"[" * 100_000,
        *(json.dumps({"access_token": token}).encode() for token in ("", None, 5, ["a"], "a b", "a\r\nX: y", "töken")),
    ],
)
def test_a_reply_without_a_usable_token_has_failed(body: bytes) -> None:
    """HTML, other JSON, or text that no header can carry: asked again later, and no call is addressed with it."""
    with Peer(answers(reply("200 OK", body))) as peer:
        [answer], then = ask(f"http://127.0.0.1:{peer.port}")
    assert answer == TokenFailed("the token endpoint answered HTTP 200 without a usable access_token")
    assert authorization(then) == "Bearer None"


@pytest.mark.parametrize("status", [400, 401, 403])
def test_refused_credentials_end_the_run(status: int) -> None:
    """77, with the endpoint, the status, and the names of the two secrets."""
    with Peer(answers(reply(f"{status} No"))) as peer:
        [answer], _ = ask(f"http://127.0.0.1:{peer.port}")
    assert isinstance(answer, TokenRefused)
    assert answer.code is ExitCode.CREDENTIALS_REFUSED
    for named in (f"http://127.0.0.1:{peer.port}/one/oauth2token", f"HTTP {status}", "BACKFILL_CLIENT_SECRET"):
        assert named in answer.reason


@pytest.mark.parametrize("status", [404, 405, 410])
def test_an_endpoint_that_is_none_ends_the_run(status: int) -> None:
    """78, with the key to check: the configuration is at fault, not the credentials."""
    with Peer(answers(reply(f"{status} No"))) as peer:
        [answer], _ = ask(f"http://127.0.0.1:{peer.port}")
    assert isinstance(answer, TokenRefused)
    assert answer.code is ExitCode.UNUSABLE
    assert "api.token_url" in answer.reason


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_never_followed(status: int) -> None:
    """78, and the credentials are not carried to where it leads."""
    with Peer(answers(token_reply("trap"))) as elsewhere:
        leads = reply(f"{status} Moved", b"", f"location: http://127.0.0.1:{elsewhere.port}/login")
        with Peer(answers(leads)) as peer:
            [answer], _ = ask(f"http://127.0.0.1:{peer.port}")
    assert isinstance(answer, TokenRefused)
    assert answer.code is ExitCode.UNUSABLE
    assert elsewhere.links == []


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_trouble_of_the_endpoint_has_failed_for_now(status: int) -> None:
    """Neither credentials nor configuration are blamed; asking once is asking once."""
    with Peer(answers(reply(f"{status} Trouble"))) as peer:
        answered, _ = ask(f"http://127.0.0.1:{peer.port}")
    assert answered == [TokenFailed(f"the token endpoint answered HTTP {status}")]
    assert peer.received.count(b"POST ") == 1


def silent(link: Link) -> None:
    link.read_request()
    link.read_rest()


@pytest.mark.parametrize(
    ("behave", "words"),
    [
        (silent, r"gave no whole reply within 0\.3 s"),
        (lambda link: link.reset(), "had closed the connection|reset the connection|closed the connection at once"),
        (sends_and_closes(b""), "the connection was closed after the request was sent"),
        (sends_and_closes(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"), "is no HTTP reply"),
    ],
    ids=["slow", "reset", "closed", "no HTTP"],
)
def test_an_endpoint_that_gives_no_reply_has_failed_for_now(behave: Behaviour, words: str) -> None:
    """Slow, reset, closed or speaking something else: the sentence says which."""
    with Peer(behave) as peer:
        base_url = f"http://127.0.0.1:{peer.port}"
        [answer], _ = ask(base_url, timeout_s=0.3)
    failed = f"the token endpoint {base_url}/one/oauth2token could not be asked"
    assert isinstance(answer, TokenFailed)
    assert answer.reason.startswith(f"{failed}: ")
    assert re.search(words, answer.reason), answer


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that nobody listens on and nobody else is given meanwhile."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


def test_an_endpoint_that_is_not_there_has_failed_for_now(closed_port: int) -> None:
    """A refused connection is trouble, not an answer."""
    endpoint = f"http://127.0.0.1:{closed_port}/one/oauth2token"
    [answer], _ = ask(f"http://127.0.0.1:{closed_port}")
    assert isinstance(answer, TokenFailed)
    refused = f"127.0.0.1:{closed_port} refused the connection."
    assert answer.reason.startswith(f"the token endpoint {endpoint} could not be asked: {refused}")


# ----------------------------------------------------------------------------------------------------- a given token


def test_a_given_token_is_granted_once_and_asks_nobody() -> None:
    """When it is asked for again, the API has refused it: 77, since nobody here can renew it."""
    with Peer(answers()) as peer:
        (first, second, third), then = ask(f"http://127.0.0.1:{peer.port}", credentials=GIVEN, times=3)
    assert first == TokenGranted()
    assert authorization(then) == f"Bearer {TOKEN}"
    assert isinstance(second, TokenRefused)
    assert second.code is ExitCode.CREDENTIALS_REFUSED
    assert "BACKFILL_TOKEN" in second.reason
    assert third == second
    assert peer.links == []


def test_a_given_token_goes_before_client_credentials() -> None:
    """Both set: the token is used, and no endpoint is needed."""
    both = Credentials(client_id=CLIENT_ID, client_secret=SECRET, token=TOKEN)
    with Peer(answers()) as peer:
        answered, then = ask(f"http://127.0.0.1:{peer.port}", credentials=both)
    assert (answered, authorization(then)) == ([TokenGranted()], f"Bearer {TOKEN}")
    assert peer.links == []


# ----------------------------------------------------------------------------------------------------------- secrets


@pytest.mark.parametrize(
    "credentials",
    [Credentials(), Credentials(client_id=CLIENT_ID), Credentials(client_secret=SECRET), Credentials(token="")],
    ids=["none", "no secret", "no id", "empty token"],
)
def test_missing_credentials_are_named_without_values(credentials: Credentials) -> None:
    """78 with the names to set; what is there already is not repeated."""
    with pytest.raises(ConfigurationError, match="BACKFILL_CLIENT_ID and BACKFILL_CLIENT_SECRET") as caught:
        credentials.require()
    assert CLIENT_ID not in caught.value.message
    assert SECRET not in caught.value.message


@pytest.mark.parametrize("credentials", [CLIENT, GIVEN])
def test_whole_credentials_are_enough(credentials: Credentials) -> None:
    """Id and secret, or a token."""
    credentials.require()


def test_no_representation_shows_a_secret() -> None:
    """Credentials end in logs and tracebacks by their repr."""
    shown = repr(Credentials(client_id=CLIENT_ID, client_secret=SECRET, token=TOKEN)) + repr(api(credentials=CLIENT))
    assert not [secret for secret in (CLIENT_ID, SECRET, TOKEN) if secret in shown]


BASIC = base64.b64encode(f"{CLIENT_ID}:{SECRET}".encode()).decode()


@pytest.mark.parametrize("status", ["200 OK", "302 Found", "401 No", "404 No", "500 Trouble"])
def test_no_answer_repeats_a_secret(status: str) -> None:
    """Even where the endpoint sends them back in its reason phrase, headers and body."""
    echo = f"{CLIENT_ID} {SECRET} {BASIC}"
    with Peer(answers(reply(f"{status} {echo}", echo.encode(), f"location: /{SECRET}", f"x-echo: {echo}"))) as peer:
        answered, _ = ask(f"http://127.0.0.1:{peer.port}")
    assert BASIC.encode() in peer.received
    assert not [secret for secret in (CLIENT_ID, SECRET, BASIC) if secret in repr(answered)]
