"""Misbehaviour over real sockets: each kind does what it says, and the log tells the truth about it."""

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx
import pytest

from tests.sandbox.process import Running, interaction, sandbox

TOKEN = "given-token"

RULES = {
    "busy": "status=429,retry_after=2",
    "later": "status=503,retry_after=date:60",
    "broken": "status=500,applied=yes",
    "moved": "status=307,location=https://elsewhere.example/",
    "unread-after": "drop=read",
    "lost-reply": "drop=after",
    "reset-read": "reset=read",
    "reset-after": "reset=after",
    "html": "body=html",
    "empty": "body=empty",
    "bare": "body=bare",
    "cut": "body=cut",
    "endless": "body=endless",
    "mismatch": "body=mismatch",
    "mismatch-400": "body=mismatch,status=400",
    "mismatch-applied": "body=mismatch,applied=yes",
    "html-unapplied": "body=html,applied=no",
    "slow": "latency_ms=300",
    "held": "hold_s=0.3",
    "refused": "status=400",
}


@pytest.fixture(scope="module", params=["any", "h11"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A sandbox with every kind of trouble, each for interactions whose property `trouble` names it."""
    rules = [f"{rule},when=property:trouble={name}" for name, rule in RULES.items()]
    rules += ["status=400,when=key_contains:bad", "status=413,when=bytes_over:5000"]
    with sandbox(tmp_path_factory.mktemp("log"), *rules, parser=request.param, token=TOKEN) as one:
        yield one


def asking_for(trouble: str) -> list[dict[str, object]]:
    return [interaction(), interaction(properties=[{"name": "trouble", "value": trouble}])]


def applied_since(running: Running, before: int) -> int:
    return len(running.applied()) - before


@pytest.mark.parametrize(
    ("trouble", "status", "applied"),
    [("busy", 429, 0), ("later", 503, 0), ("broken", 500, 1), ("moved", 307, 0), ("refused", 400, 0)],
)
def test_a_status(running: Running, trouble: str, status: int, applied: int) -> None:
    """status answers so and applies nothing, unless told to apply all the same."""
    before = len(running.applied())
    reply = running.send(asking_for(trouble))
    assert (reply.status_code, reply.json()["statusCode"]) == (status, status)
    assert applied_since(running, before) == applied
    told = running.requests()[-1]
    assert told["rule"] == f"{RULES[trouble]},when=property:trouble={trouble}"
    assert (told["status"], told["applied"]) == (status, bool(applied))


def test_headers_of_a_status(running: Running) -> None:
    """retry_after in seconds and as a date, and location, come as headers."""
    assert running.send(asking_for("busy")).headers["retry-after"] == "2"
    date = parsedate_to_datetime(running.send(asking_for("later")).headers["retry-after"])
    assert 50 < date.timestamp() - time.time() < 70
    assert running.send(asking_for("moved")).headers["location"] == "https://elsewhere.example/"


def test_a_refusal_for_one_interaction_names_it(running: Running) -> None:
    """With `when`, the whole request is refused for one interaction, and the message says which."""
    assert "interaction 2" in running.send(asking_for("refused")).json()["message"]
    reply = running.send([interaction(), interaction(), interaction(customerKey="a-bad-one")])
    assert reply.status_code == 400
    assert "interaction 3" in reply.json()["message"]
    assert running.send([interaction()]).status_code == 200


def test_a_body_too_large(running: Running) -> None:
    """bytes_over looks at the size of the body alone."""
    many = [interaction(customerKey=str(number)) for number in range(100)]
    assert running.send(many).status_code == 413
    assert running.send(many[:10]).status_code == 200


@pytest.mark.parametrize(
    ("trouble", "applied", "how"),
    [("unread-after", 0, "end"), ("lost-reply", 1, "end"), ("reset-read", 0, "reset"), ("reset-after", 1, "reset")],
)
def test_a_connection_ends_without_a_reply(running: Running, trouble: str, applied: int, how: str) -> None:
    """drop closes the socket, reset resets it; not one byte of a reply is sent, and `after` has applied."""
    before, seen = len(running.applied()), len(running.requests())
    with running.raw(json.dumps(asking_for(trouble)).encode(), token=TOKEN) as sock:
        if how == "end":
            assert sock.recv(1) == b""
        else:
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
    assert applied_since(running, before) == applied
    told = running.wait_for_requests(seen + 1)[-1]
    assert (told["status"], told["applied"], told["interactions"]) == (None, bool(applied), 2)


@pytest.mark.parametrize("rule", ["drop=before", "reset=before"])
def test_a_connection_ends_before_its_body(tmp_path: Path, rule: str) -> None:
    """drop=before and reset=before end the connection at the head: no body is waited for, nothing is applied."""
    with sandbox(tmp_path, rule, token=TOKEN) as running:
        with running.raw(announced=100, token=TOKEN) as sock, contextlib.ExitStack() as stack:
            if rule.startswith("reset"):
                stack.enter_context(pytest.raises(ConnectionResetError))
            assert sock.recv(1) == b""
        told = running.requests()[-1]
        assert (told["status"], told["sha256"], told["applied"], told["rule"]) == (None, None, False, rule)
        with pytest.raises(httpx.TransportError):
            running.send([interaction()])
        assert running.applied() == []


@pytest.mark.parametrize(
    ("trouble", "text", "applied"),
    [("html", "<!doctype html>", 1), ("empty", "", 1), ("bare", "{}", 1), ("html-unapplied", "<!doctype html>", 0)],
)
def test_a_body_that_is_no_acknowledgement(running: Running, trouble: str, text: str, applied: int) -> None:
    """HTTP 200 with a body that does not acknowledge; it is applied unless told otherwise."""
    before = len(running.applied())
    reply = running.send(asking_for(trouble))
    assert reply.status_code == 200
    assert reply.text[: len(text) or 1] == text
    assert applied_since(running, before) == applied


@pytest.mark.parametrize(
    ("trouble", "inside", "applied"), [("mismatch", 500, 0), ("mismatch-400", 400, 0), ("mismatch-applied", 500, 1)]
)
def test_a_body_that_contradicts_its_status(running: Running, trouble: str, inside: int, applied: int) -> None:
    """HTTP 200 whose body says another statusCode."""
    before = len(running.applied())
    reply = running.send(asking_for(trouble))
    assert (reply.status_code, reply.json()["statusCode"]) == (200, inside)
    assert applied_since(running, before) == applied


def test_a_body_cut_short(running: Running) -> None:
    """body=cut announces more than it sends, then closes."""
    before = len(running.applied())
    with pytest.raises(httpx.RemoteProtocolError, match=r"incomplete|without sending complete"):
        running.send(asking_for("cut"))
    assert applied_since(running, before) == 1
    assert running.requests()[-1]["status"] is None


def test_a_body_without_end(running: Running) -> None:
    """body=endless goes on for as long as the client reads, and stops when it leaves."""
    read = 0
    with running.client.stream(
        "PUT", "/one/oauth2/rt/api/2.0/interactions/offline", json=asking_for("endless")
    ) as reply:
        for part in reply.iter_raw():
            read += len(part)
            if read > 2_000_000:
                break
    assert read > 2_000_000
    assert running.send([interaction()]).status_code == 200


def test_latency_comes_after_applying_and_before_the_reply(running: Running) -> None:
    """During latency_ms the interactions are applied already; the log has them before a byte of the reply is sent."""
    before = len(running.applied())
    with running.raw(json.dumps(asking_for("slow")).encode(), token=TOKEN) as sock:
        started_s = time.monotonic()
        sock.settimeout(0.15)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        assert applied_since(running, before) == 1
        sock.settimeout(5)
        assert sock.recv(12) == b"HTTP/1.1 200"
        assert time.monotonic() - started_s > 0.25


def test_a_hold_comes_before_applying_and_outlives_the_client(running: Running) -> None:
    """During hold_s nothing is applied; it is applied afterwards though the client has long gone."""
    before = len(running.applied())
    with running.raw(json.dumps(asking_for("held")).encode(), token=TOKEN) as sock:
        sock.settimeout(0.1)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        assert applied_since(running, before) == 0
    deadline_s = time.monotonic() + 3
    while not applied_since(running, before) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert applied_since(running, before) == 1


def test_a_client_that_leaves_within_its_body_is_noted(running: Running) -> None:
    """Half a body is applied to nothing, and the log says that a request was begun."""
    before, seen = len(running.applied()), len(running.requests())
    with running.raw(b'[{"url"', announced=500, token=TOKEN) as sock:
        sock.shutdown(socket.SHUT_WR)
    told = running.wait_for_requests(seen + 1)
    assert len(told) == seen + 1
    assert (told[-1]["status"], told[-1]["sha256"], told[-1]["applied"]) == (None, None, False)
    assert applied_since(running, before) == 0


def test_the_log_stands_before_the_reply(running: Running) -> None:
    """Whoever has read a reply finds its request in both files, a hundred times out of a hundred."""
    for number in range(100):
        assert running.send([interaction(customerKey=f"k{number}")]).status_code == 200
        assert running.applied()[-1]["interactions"][0]["customerKey"] == f"k{number}"
        assert running.requests()[-1]["applied"]


def test_rules_count_calls_and_leave_tokens_alone(tmp_path: Path) -> None:
    """every and until count calls, not requests for tokens; the first rule that applies decides."""
    rules = ("status=401,until=1", "status=503,every=3", "status=500,every=2", "on=token,status=502,until=1")
    with sandbox(tmp_path, *rules, token=TOKEN) as running:
        url = f"{running.base_url}/one/oauth2token"
        asked = [httpx.post(url, data={"grant_type": "client_credentials"}, auth=("a", "b")) for _ in range(2)]
        assert [reply.status_code for reply in asked] == [502, 200]
        codes = [running.send([interaction()]).status_code for _ in range(7)]
        assert codes == [401, 500, 503, 500, 200, 503, 200]
