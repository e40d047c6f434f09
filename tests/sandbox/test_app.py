"""The sandbox over real HTTP: what the reference demands is checked, what is applied is remembered."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from backfill.sandbox.server import Settings, serve
from tests.sandbox.process import BASE, BULK, HEADERS, SITE_KEY, Running, interaction, sandbox

TOKEN = "given-token"


@pytest.fixture(scope="module", params=["any", "h11"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One well-behaved sandbox that knows one client and one site key, with each of uvicorn's parsers."""
    with sandbox(
        tmp_path_factory.mktemp("log"),
        parser=request.param,
        token=TOKEN,
        site_key=SITE_KEY,
        client_id="client",
        client_secret="s:e/c ret",
    ) as one:
        yield one


def refused(running: Running, reply: httpx.Response, status: int, *words: str) -> None:
    """Asserts a refusal of the reference's form that names `words`, with nothing applied."""
    assert reply.status_code == status, reply.text
    document = reply.json()
    assert document["statusCode"] == status
    for word in words:
        assert word in document["message"]
    last = running.requests()[-1]
    assert (last["status"], last["applied"]) == (status, False)


def test_a_request_is_applied_and_acknowledged(running: Running) -> None:
    """A request that keeps to the reference gets statusCode 200 and its tid, and stands in the log as received."""
    body = (
        b'[{"url":"api://caf\xc3\xa9/1","customerKey":"007","timestamp":1718000000000,\n'
        b' "properties":[{"name":"amount","value":12.50},{"name":"note","value":"a\\nb"}]}]'
    )
    reply = running.client.put(BULK, content=body, params={"tid": "t-1"}, headers={"user-agent": "tester/1"})
    assert reply.status_code == 200
    assert reply.json() == {"statusCode": 200, "tid": "t-1"}
    line = running.applied()[-1]
    assert line["interactions"] == json.loads(body)
    assert (line["call"], line["sk"], line["tid"]) == ("interactions-offline", SITE_KEY, "t-1")
    assert line["user_agent"] == "tester/1"
    told = running.requests()[-1]
    assert told["sha256"] == sha256(body).hexdigest()
    assert (told["status"], told["applied"], told["interactions"]) == (200, True, 1)
    assert told["at"] <= line["at"] <= told["answered_at"]


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize(
    ("method", "path", "offline", "many"),
    [
        ("POST", "interaction", False, False),
        ("PUT", "interaction", False, False),
        ("PUT", "interaction/offline", True, False),
        ("PUT", "interactions/offline", True, True),
    ],
)
def test_the_four_calls(running: Running, method: str, path: str, slash: str, offline: bool, many: bool) -> None:
    """Each call of the reference is taken, with and without a trailing slash; only POST returns optimizations, only
    what happens now has trackers and captures.
    """
    one = interaction(timestamp=1 if offline else None)
    reply = running.client.request(method, f"{BASE}/{path}{slash}", json=[one] if many else one)
    assert reply.status_code == 200, reply.text
    assert reply.json().keys() == (
        {"statusCode", "tid"}
        | (set() if offline else {"trackers", "captures"})
        | ({"optimizations"} if method == "POST" else set())
    )
    assert method != "POST" or len(reply.json()["optimizations"][0]["actions"]) > 1, "a collection of actions"
    assert running.applied()[-1]["interactions"] == [one]


def test_a_bulk_body_may_be_an_object_holding_the_array(running: Running) -> None:
    """{"interactions": [...]} is taken like the bare array, and logged as the array."""
    assert running.send({"interactions": [interaction(), interaction(customerKey="2")]}).status_code == 200
    assert [one["customerKey"] for one in running.applied()[-1]["interactions"]] == ["0004711", "2"]


GOOD: list[dict[str, object]] = [
    {"url": None, "uri": "api://shop/x"},
    {"timestamp": "2024-05-06T07:08:09Z"},
    {"timestamp": "2024-05-06T07:08:09.123+02:00"},
    {"timestamp": -1},
    {"customerKey": None},
    {"customerKeyName": "email"},
    {"properties": []},
    {"properties": [{"name": "a", "value": True}, {"name": "b", "value": 1}, {"name": "c", "value": ""}]},
    {"device": [{"name": "ck", "value": "1234"}]},
    {"device": {"ck": "1234"}},
]

BAD: list[tuple[dict[str, object], str]] = [
    ({"url": None}, "`url` is missing"),
    ({"url": "/checkout"}, "`url` is no URI"),
    ({"url": 5}, "`url` is no URI"),
    ({"uri": "api://shop/x"}, "`url` is given twice"),
    ({"timestamp": None}, "`timestamp` is missing"),
    ({"timestamp": 1718000000.5}, "`timestamp` must be"),
    ({"timestamp": True}, "`timestamp` must be"),
    ({"timestamp": "1718000000000"}, "`timestamp` must be"),
    ({"timestamp": "2024-05-06T07:08:09"}, "`timestamp` must be"),
    ({"timestamp": 1_718_000_000_000_000}, "`timestamp` is out of range"),
    ({"customerKey": None, "customerKeyName": "email"}, "`customerKey` is required"),
    ({"customerKey": 4711}, "`customerKey` must be text"),
    ({"customerKey": " "}, "`customerKey` must be text that is not blank"),
    ({"customerKeyName": ""}, "`customerKeyName` must be"),
    ({"properties": {"a": 1}}, "`properties` must be an array"),
    ({"properties": ["a"]}, "`properties` must be an array"),
    ({"properties": [{"name": "a"}]}, "`properties` must be an array"),
    ({"properties": [{"name": "", "value": 1}]}, "`properties` must have names"),
    ({"properties": [{"name": "a", "value": 1, "type": "x"}]}, "`properties` must have names"),
    ({"properties": [{"name": "a", "value": None}]}, "`properties` must have values"),
    ({"properties": [{"name": "a", "value": [1]}]}, "`properties` must have values"),
    ({"device": "phone"}, "`device` must be"),
    ({"device": [{"name": "ck"}]}, "`device` must be"),
    ({"device": ["phone"]}, "`device` must be"),
    ({"customer_key": "4711"}, "elements that are null, or none of"),
]


@pytest.mark.parametrize("elements", GOOD, ids=str)
def test_what_the_reference_allows_is_applied(running: Running, elements: dict[str, object]) -> None:
    """Forms that the reference allows, or that the design must be able to send, are taken."""
    reply = running.send([interaction(**elements)])
    assert reply.status_code == 200, reply.text
    assert running.applied()[-1]["interactions"] == [interaction(**elements)]


@pytest.mark.parametrize(("elements", "words"), BAD, ids=str)
def test_one_bad_interaction_refuses_the_request(running: Running, elements: dict[str, object], words: str) -> None:
    """A bad interaction among good ones makes the request 400, names place and element, and applies nothing."""
    before = len(running.applied())
    reply = running.send([interaction(), interaction(**elements), interaction()])
    refused(running, reply, 400, "interaction 2 of 3", words)
    assert len(running.applied()) == before


def test_a_refusal_shows_no_value_of_the_request(running: Running) -> None:
    """The message of a refusal holds no customer's value, or it would end in the client's journal."""
    reply = running.send([interaction(customerKey="secret-4711", url="secret-place", timestamp="secret-time")])
    refused(running, reply, 400)
    assert "secret" not in reply.text


@pytest.mark.parametrize("path", ["interaction", "interaction/"])
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_calls_that_happen_now_take_no_timestamp(running: Running, method: str, path: str) -> None:
    """POST and PUT register what happens now; a timestamp there is refused."""
    reply = running.client.request(method, f"{BASE}/{path}", json=interaction())
    refused(running, reply, 400, "`timestamp` is for offline calls only")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff[]", "not JSON"),
        (b'[{"url":"api://a","timestamp":NaN}]', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "no interaction"),
        (b"{}", "array of interactions"),
        (b'{"a":[],"b":[]}', "array of interactions"),
        (b'{"url":"api://a","timestamp":1}', "array of interactions"),
        (b'"text"', "array of interactions"),
        (b"[1]", "not a JSON object"),
        (json.dumps([interaction()] * 101).encode(), "at most 100"),
    ],
)
def test_bodies_that_are_no_bulk_request(running: Running, body: bytes, words: str) -> None:
    """A bulk body that is not JSON, empty, of another shape, or of more than 100 interactions is refused."""
    refused(running, running.client.put(BULK, content=body), 400, words)


def test_a_hundred_interactions_are_taken(running: Running) -> None:
    """The reference's limit itself is allowed."""
    assert running.send([interaction()] * 100).status_code == 200
    assert running.requests()[-1]["interactions"] == 100


def test_a_single_call_takes_no_array(running: Running) -> None:
    """interaction/offline is for one interaction."""
    reply = running.client.put(f"{BASE}/interaction/offline", json=[interaction()])
    refused(running, reply, 400, "one JSON object")


@pytest.mark.parametrize("token", ["Bearer other", "Bearer", "Basic Y2xpZW50OnNlY3JldA==", f"Bearer{TOKEN}", ""])
def test_an_unknown_token_is_401(running: Running, token: str) -> None:
    """Without a token that the sandbox knows, nothing is looked at."""
    refused(running, running.send([interaction()], headers={"authorization": token}), 401, "token")


def test_a_missing_site_key_is_400_and_another_one_403(running: Running) -> None:
    """A missing `sk` is bad input; one of another Space lacks permission."""
    url = f"{running.base_url}{BULK}"
    headers = {**HEADERS, "authorization": f"Bearer {TOKEN}"}
    refused(running, httpx.put(url, json=[interaction()], headers=headers), 400, "`sk`")
    refused(running, httpx.put(f"{url}?sk=", json=[interaction()], headers=headers), 400, "`sk`")
    refused(running, httpx.put(f"{url}?sk=ONE-OTHER", json=[interaction()], headers=headers), 403, "Space")


@pytest.mark.parametrize("tids", [[""], [" "], ["a", "b"]])
def test_a_tid_is_given_once_and_not_blank(running: Running, tids: list[str]) -> None:
    """Without one the reply assigns a new one; with one it names that; anything else is bad input."""
    assert len(running.send([interaction()]).json()["tid"]) == 36
    assert running.send([interaction()], params={"sk": SITE_KEY, "tid": "t-9"}).json()["tid"] == "t-9"
    refused(running, running.send([interaction()], params={"tid": tids}), 400, "`tid`")


@pytest.mark.parametrize("header", ["Content-Type", "dataMimeType"])
@pytest.mark.parametrize("value", [None, "", "text/plain"])
def test_both_headers_must_say_json(running: Running, header: str, value: str | None) -> None:
    """Content-Type and dataMimeType are required, and must be application/json."""
    headers = {**HEADERS, "authorization": f"Bearer {TOKEN}"}
    headers = {name: text for name, text in headers.items() if name.lower() != header.lower()}
    if value is not None:
        headers[header] = value
    url = f"{running.base_url}{BULK}?sk={SITE_KEY}"
    refused(running, httpx.put(url, content=json.dumps([interaction()]), headers=headers), 400, f"header {header}")


def test_a_content_type_may_name_its_charset(running: Running) -> None:
    """application/json; charset=utf-8 is JSON too."""
    reply = running.send([interaction()], headers={"content-type": "application/json; charset=utf-8"})
    assert reply.status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "interaction", "POST, PUT"),
        ("DELETE", "interaction", "POST, PUT"),
        ("POST", "interaction/offline", "PUT"),
        ("POST", "interactions/offline", "PUT"),
    ],
)
def test_a_wrong_method_is_405(running: Running, method: str, path: str, allow: str) -> None:
    """A known path with another method says which it knows."""
    reply = running.client.request(method, f"{BASE}/{path}")
    refused(running, reply, 405)
    assert reply.headers["allow"] == allow


@pytest.mark.parametrize("path", ["/", "/one/oauth2/rt/api/2.0/interactions", f"{BULK}//", "/one/oauth2/rt/api/2.0"])
def test_an_unknown_path_is_404(running: Running, path: str) -> None:
    """Nothing but the four calls is served."""
    refused(running, running.client.put(path, json=[interaction()]), 404)


def ask(running: Running, **kwargs: Any) -> httpx.Response:
    asked: dict[str, Any] = {"data": {"grant_type": "client_credentials"}, "auth": ("client", "s:e/c ret")}
    return httpx.post(f"{running.base_url}/one/oauth2token", **(asked | kwargs))


def test_a_token_is_given_for_the_right_credentials_and_opens_the_door(running: Running) -> None:
    """Client credentials by HTTP Basic get a bearer token that the calls take; the log never holds it."""
    reply = ask(running)
    assert reply.status_code == 200
    document = reply.json()
    assert document.keys() == {"access_token", "token_type", "expires_in"}
    assert (document["token_type"], document["expires_in"]) == ("bearer", 3600)
    bearer = {"authorization": f"Bearer {document['access_token']}"}
    assert running.send([interaction()], headers=bearer).status_code == 200
    for file in running.folder.iterdir():
        assert document["access_token"] not in file.read_text(encoding="utf-8")


def test_form_encoded_credentials_are_right_too(running: Running) -> None:
    """RFC 6749 form-encodes the credentials before Basic."""
    assert ask(running, auth=("client", "s%3Ae%2Fc+ret")).status_code == 200


@pytest.mark.parametrize("auth", [("client", "wrong"), ("other", "s:e/c ret"), ("client", ""), None])
def test_wrong_credentials_are_401(running: Running, auth: tuple[str, str] | None) -> None:
    """Wrong or missing credentials get no token."""
    reply = ask(running, auth=auth)
    assert reply.status_code == 401
    assert reply.json()["error"] == "invalid_client"


def test_a_token_must_be_asked_for_properly(running: Running) -> None:
    """Another grant, no form, or another method gets no token."""
    assert ask(running, data={"grant_type": "password"}).json() == {"error": "unsupported_grant_type"}
    assert ask(running, data=None, json={"grant_type": "client_credentials"}).json()["error"] == "invalid_request"
    assert httpx.get(f"{running.base_url}/one/oauth2token").status_code == 405


def test_the_files_of_the_log_are_the_owners_alone(tmp_path: Path) -> None:
    """The log holds customers' values: folder 0700, files 0600."""
    with sandbox(tmp_path / "log", token=TOKEN):
        assert (tmp_path / "log").stat().st_mode & 0o777 == 0o700
        files = list((tmp_path / "log").iterdir())
        assert {file.name for file in files} == {"applied.jsonl", "requests.jsonl"}
        assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


def test_tokens_end_with_their_time(tmp_path: Path) -> None:
    """A token is refused once its life is over; a new one is taken."""
    with sandbox(tmp_path, token_lifetime_s=0.3) as running:
        bearer = {"authorization": f"Bearer {running.token()}"}
        assert running.send([interaction()], headers=bearer).status_code == 200
        time.sleep(0.35)
        assert running.send([interaction()], headers=bearer).status_code == 401
        bearer = {"authorization": f"Bearer {running.token()}"}
        assert running.send([interaction()], headers=bearer).status_code == 200


def test_tokens_end_with_their_uses(tmp_path: Path) -> None:
    """A token is refused after so many calls, whatever its life."""
    with sandbox(tmp_path, token_uses=2) as running:
        bearer = {"authorization": f"Bearer {running.token()}"}
        codes = [running.send([interaction()], headers=bearer).status_code for _ in range(3)]
        assert codes == [200, 200, 401]


def test_any_client_and_site_key_unless_told_one(tmp_path: Path) -> None:
    """A sandbox that was told nothing takes any credentials and any site key, but still wants both."""
    with sandbox(tmp_path) as running:
        assert ask(running, auth=("any", "one")).status_code == 200
        assert ask(running, auth=("any", "")).status_code == 401
        bearer = {"authorization": f"Bearer {running.token()}"}
        assert running.send([interaction()], params={"sk": "ONE-WHATEVER"}, headers=bearer).status_code == 200


def test_a_sandbox_started_again_goes_on_below(tmp_path: Path) -> None:
    """The log of an earlier sandbox is kept."""
    for _ in range(2):
        with sandbox(tmp_path, token=TOKEN) as running:
            assert running.send([interaction()]).status_code == 200
    assert len(running.applied()) == 2


def test_it_ends_quietly_on_a_signal_even_while_holding(tmp_path: Path) -> None:
    """SIGTERM ends it within a second with code 0 and no word, though a request is being held."""
    with sandbox(tmp_path, "hold_s=60", token=TOKEN) as running:
        held = running.raw(json.dumps([interaction()]).encode(), token=TOKEN)
        held.settimeout(0.3)
        with pytest.raises(TimeoutError):
            held.recv(1)
        running.process.terminate()
        assert running.process.wait(1) == 0
        assert running.applied() == []
        assert running.requests()[-1]["status"] is None
        held.close()


def test_it_ends_with_its_parent_when_told_so(tmp_path: Path) -> None:
    """With exit_with_parent, the end of standard input ends it; without, it stays."""
    with sandbox(tmp_path / "a", exit_with_parent=True) as running:
        assert running.process.stdin is not None
        running.process.stdin.close()
        assert running.process.wait(2) == 0
    with sandbox(tmp_path / "b") as running:
        assert running.process.stdin is not None
        running.process.stdin.close()
        with pytest.raises(subprocess.TimeoutExpired):
            running.process.wait(0.5)


def test_a_port_that_is_taken_is_named(running: Running, tmp_path: Path) -> None:
    """A taken port, and a rule that cannot be used, are errors that say so before anything is written."""
    port = int(running.base_url.rpartition(":")[2])
    with pytest.raises(OSError, match=f"Port {port} on 127.0.0.1 cannot be used"):
        serve(Settings(log=tmp_path / "log", port=port))
    with pytest.raises(ValueError, match="`drp` is no word of a rule"):
        serve(Settings(log=tmp_path / "log", misbehave=("drp=after",)))
    assert not (tmp_path / "log").exists()


def test_it_says_where_it_listens_in_a_sentence(tmp_path: Path) -> None:
    """Without json the line is for a person; SIGINT ends it like SIGTERM."""
    start = "import sys; from pathlib import Path; from backfill.sandbox.server import Settings, serve"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{start}; serve(Settings(log=Path(sys.argv[1])))", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("The sandbox listens on http://127.0.0.1:")
    assert str(tmp_path) in line
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=2) == ("", "")
    assert process.returncode == 0


def test_a_full_disk_is_an_honest_500(tmp_path: Path) -> None:
    """What could not be written to the log is not acknowledged, and the reason is told on stderr."""
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "applied.jsonl").symlink_to("/dev/full")
    with sandbox(tmp_path / "log", token=TOKEN, complaint="No space left on device") as running:
        reply = running.send([interaction()])
        assert reply.status_code == 500
        assert "statusCode" not in reply.text
