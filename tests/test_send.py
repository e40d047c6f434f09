"""`backfill send` as a user types it, against a real sandbox: each call, each form, each way in which it can end."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backfill.core.calls import CALLS
from tests.adapters.misbehaving import Link, Peer
from tests.adapters.proxies import Proxying
from tests.command import (
    CLIENT_ID,
    PRIVATE,
    ROOT,
    SECRET,
    SITE_KEY,
    Ended,
    Job,
    Server,
    discreet,
    expect,
    serving,
    until,
)

KEYS = {
    "call",
    "interactions",
    "outcome",
    "exit_code",
    "reason",
    "sent_at",
    "duration_s",
    "user_agent_name",
    "http_status",
    "statusCode",
    "tid",
    "trackers",
    "captures",
    "optimizations",
    "results",
}
AT = "2024-05-06T07:08:09.123Z"
AT_MS = 1_714_979_289_123
WHO = ("--url", "api://shop/visit", "--customer-key", f"{PRIVATE}-1")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A sandbox that is well, for all that changes nothing in it but its log."""
    with serving(tmp_path_factory.mktemp("well") / "log") as one:
        yield one


@pytest.fixture
def job(server: Server, tmp_path: Path) -> Job:
    return Job(tmp_path / "job", server.base_url)


def send(job: Job, call: str, *words: str | Path, **options: Any) -> Ended:
    return job.run("--call", call, *words, command="send", **options)


def written(job: Job, document: object) -> Path:
    path = job.folder / "interactions.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


# ------------------------------------------------------------------------------------------------------ the four calls


@pytest.mark.parametrize("call", CALLS)
def test_each_call_sends_every_element_of_the_reference(job: Job, server: Server, call: str) -> None:
    """url, key and its name, properties and device arrive as typed, tid and site key in the query, under its method
    and path; a time only where the call has one.
    """
    before = len(server.applied())
    time_words = ("--timestamp", AT) if CALLS[call].historic else ()
    words = ("--customer-key-name", "email", "--tid", "t 1&é", "--property", "a=b=c", "--property", "n=")
    ended = send(job, call, *WHO, *words, "--device", "ck=1234", *time_words)
    expect(ended, 0, "Delivered", "1 interaction", "HTTP 200, statusCode 200", "t 1&é")
    (line,) = server.applied()[before:]
    assert (line["call"], line["sk"], line["tid"]) == (call, SITE_KEY, "t 1&é")
    assert line["interactions"] == [
        ({"timestamp": AT_MS} if CALLS[call].historic else {})
        | {
            "url": "api://shop/visit",
            "customerKey": f"{PRIVATE}-1",
            "customerKeyName": "email",
            "properties": [{"name": "a", "value": "b=c"}, {"name": "n", "value": ""}],
            "device": [{"name": "ck", "value": "1234"}],
        }
    ]
    made = server.calls()[-1]
    assert (made["method"], made["path"]) == (CALLS[call].method, CALLS[call].path)


@pytest.mark.parametrize("call", CALLS)
def test_the_reply_is_told_as_it_came(job: Job, call: str) -> None:
    """Readable and as one object with all keys: trackers and captures unless offline, optimizations of POST."""
    time_words = ("--timestamp", str(AT_MS)) if CALLS[call].historic else ()
    told = send(job, call, *WHO, *time_words, "--json").object()
    assert told.keys() == KEYS
    assert (told["call"], told["interactions"], told["outcome"], told["exit_code"]) == (call, 1, "delivered", 0)
    assert (told["statusCode"], told["http_status"], told["reason"], told["results"]) == (200, 200, None, [])
    assert len(told["tid"]) == 36
    assert (told["trackers"] is not None) == (told["captures"] is not None) == (not CALLS[call].historic)
    assert (told["optimizations"] is not None) == CALLS[call].optimizations
    text = send(job, call, *WHO, *time_words)
    for name in ("trackers", "captures", "optimizations"):
        assert (f"{name.capitalize()} (1)" in text.out) == (told[name] is not None)
        assert told[name] is None or json.dumps(told[name][0]) in text.out


def test_a_file_passes_as_it_is(job: Job, server: Server) -> None:
    """Numbers, booleans and a device that is an object stay what they are; null is the same as nothing."""
    document = {
        "url": "api://shop/visit",
        "customerKey": None,
        "properties": [{"name": "n", "value": 12.5}, {"name": "b", "value": True}, {"name": "t", "value": "é\n"}],
        "device": {"ck": {"deep": [1]}},
        "tid": "from-file",
    }
    expect(send(job, "interaction-post", "--file", written(job, document)), 0, "from-file")
    line = server.applied()[-1]
    assert line["tid"] == "from-file"
    assert line["interactions"] == [{name: document[name] for name in ("url", "properties", "device")}]


def test_a_list_goes_in_one_call_up_to_a_hundred(job: Job, server: Server) -> None:
    """A hundred from standard input are one call in their order; 101, none, and a list for another call are refused."""
    many = [{"url": "api://a", "customerKey": f"{PRIVATE}-{n}", "timestamp": n} for n in range(101)]
    before = len(server.calls())
    path = written(job, many[:100])
    ended = send(job, "interactions-offline", "--file", "-", before=lambda: os.dup2(os.open(path, os.O_RDONLY), 0))
    expect(ended, 0, "100 interactions")
    assert [one["timestamp"] for one in server.applied()[-1]["interactions"]] == list(range(100))
    expect(send(job, "interactions-offline", "--file", written(job, many)), 2, "101 interactions", "1 to 100")
    expect(send(job, "interactions-offline", "--file", written(job, [])), 2, "0 interactions")
    expect(send(job, "interaction-offline", "--file", written(job, many[:1])), 2, "--call interactions-offline")
    assert len(server.calls()) - before == 1


def test_the_wire_form_is_the_tenants(job: Job, server: Server) -> None:
    """The address field holds in every call, time and frame in the offline ones."""
    wire = ("--set", "wire.address_field=uri", "--set", "wire.timestamp_format=iso8601")
    expect(send(job, "interaction-put", *WHO, *wire), 0)
    assert server.applied()[-1]["interactions"][0] == {"uri": "api://shop/visit", "customerKey": f"{PRIVATE}-1"}
    framed = ("--set", 'wire.bulk={ key = "interactions" }')
    expect(send(job, "interactions-offline", *WHO, *wire, *framed, "--timestamp", AT), 0)
    assert server.applied()[-1]["interactions"][0]["timestamp"] == AT


# ----------------------------------------------------------------------------------------------- nothing is sent at all


@pytest.mark.parametrize(
    ("call", "words", "said"),
    [
        ("interaction-post", ("--url", "api://a", "--timestamp", AT), "`timestamp` is for offline calls only"),
        ("interaction-put", ("--url", "api://a", "--timestamp", "1"), "`timestamp` is for offline calls only"),
        ("interaction-offline", ("--url", "api://a"), "`timestamp` is missing"),
        ("interactions-offline", ("--url", "api://a", "--timestamp", "2024-05-06T07:08:09"), "no offset"),
        ("interaction-offline", ("--url", "api://a", "--timestamp", "2999-01-01T00:00:00Z"), "future"),
        ("interaction-post", ("--url", "/checkout"), "`url` is no URI"),
        ("interaction-post", ("--url", "api://a", "--customer-key-name", "email"), "without `customerKey`"),
        ("interaction-post", ("--url", "api://a", "--tid", " "), "`tid` is blank"),
        ("interaction-post", (), "--url"),
        ("interaction-post", ("--url", "api://a", "--property", "x"), "NAME=VALUE"),
        ("interaction-post", ("--url", "api://a", "--file", "x.json"), "leave out the options"),
        ("interaction-post", ("--file", "absent.json"), "absent.json cannot be read"),
        ("interactions", ("--url", "api://a"), "interactions-offline"),
    ],
)
def test_an_invalid_interaction_is_refused_before_anything_is_sent(
    job: Job, server: Server, call: str, words: tuple[str, ...], said: str
) -> None:
    """2, with the fault and its element; neither token nor call is made."""
    before = server.count()
    ended = send(job, call, *words, "--json")
    expect(ended, 2)
    told = ended.object()
    assert told["error"]["exit_code"] == 2
    assert said in told["error"]["message"]
    assert server.count() == before


def test_a_file_with_another_element_is_refused_with_the_nearest(job: Job) -> None:
    """Every fault of every interaction at once, by its place, without a value."""
    ended = send(
        job,
        "interactions-offline",
        "--file",
        written(
            job, [{"url": "api://a", "timestamp": 1, "customer_key": f"{PRIVATE}"}, {"url": PRIVATE, "timestamp": 1}]
        ),
    )
    expect(
        ended,
        2,
        "2 of 2",
        "interaction 1: `customer_key` is no element",
        "did you mean `customerKey`",
        "`url` is no URI",
    )
    expect(send(job, "interaction-put", "--file", written(job, '{"url": "api://a",}')), 2, "no JSON (line 1, column 1")


def test_it_leaves_no_state_behind(tmp_path: Path) -> None:
    """With --sandbox and without configuration it works in an empty folder, which stays empty."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "here").mkdir()
    ended = subprocess.run(
        [sys.executable, "-m", "backfill", "send", "--sandbox", "--call", "interaction-post", "--url", "api://a"],
        cwd=tmp_path / "here",
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "tmp")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert '"actions": [{"name": "example-offer"}' in ended.stdout
    assert list((tmp_path / "here").iterdir()) == list((tmp_path / "tmp").iterdir()) == []


def test_the_help_says_that_nothing_is_journaled(job: Job) -> None:
    """And has an example of a call."""
    expect(send(job, "interaction-post", "--help"), 0, "nothing is journaled", "One attempt", "backfill send --call")


# ------------------------------------------------------------------------------------------------------- how it can end


@pytest.mark.parametrize(
    ("rule", "code", "outcome", "said"),
    [
        ("status=400", 3, "rejected", "refused by a misbehaviour"),
        ("status=422", 3, "rejected", "HTTP 422"),
        ("status=413", 3, "rejected", "so large a call"),
        ("status=401", 77, "unsent", "at its first use"),
        ("status=403", 77, "unsent", "lack the permission"),
        ("status=404", 78, "unsent", "does not take this call"),
        ("status=405", 78, "unsent", "does not take this call"),
        ("status=307,location=/x", 78, "unsent", "redirects"),
        ("status=302,location=/x", 78, "in_doubt", "redirects"),
        ("status=408", 75, "unsent", "Not now"),
        ("status=429,retry_after=7", 75, "unsent", "wait 7 s"),
        ("status=503", 75, "unsent", "Not now"),
        ("status=500", 4, "in_doubt", "does not say"),
        ("body=html", 4, "in_doubt", "does not say"),
        ("body=mismatch", 4, "in_doubt", "does not say"),
        ("drop=read", 4, "in_doubt", "No whole reply"),
        ("reset=after", 4, "in_doubt", "No whole reply"),
    ],
)
def test_each_reply_has_its_exit_code_and_one_attempt(
    tmp_path: Path, rule: str, code: int, outcome: str, said: str
) -> None:
    """One call and one token, whatever comes back; the answer says what is known and what to do next."""
    with serving(tmp_path / "log", rule) as server:
        job = Job(tmp_path / "job", server.base_url)
        ended = send(job, "interaction-post", *WHO, "--json")
        told = ended.object()
        assert (ended.code, told["exit_code"], told["outcome"]) == (code, code, outcome)
        assert said in told["reason"]
        assert (len(server.calls()), server.tokens()) == (1, 1)
        assert told["user_agent_name"] in server.calls()[0]["user_agent"]
        discreet(ended.said)


@pytest.mark.parametrize(("rule", "code"), [("status=503", 75), ("status=400", 77), ("status=404", 78)])
def test_without_a_token_nothing_is_sent(tmp_path: Path, rule: str, code: int) -> None:
    """The token endpoint's refusal ends it, after one request."""
    with serving(tmp_path / "log", f"{rule},on=token") as server:
        expect(send(Job(tmp_path / "job", server.base_url), "interaction-put", *WHO), code, "not a byte", "Next")
        assert (len(server.calls()), server.tokens()) == (0, 1)


def test_no_connection_and_no_credentials(tmp_path: Path) -> None:
    """Nobody listens: 75, for a given token too; without credentials: 78 and their names."""
    job = Job(tmp_path / "job", "http://127.0.0.1:9")
    expect(send(job, "interaction-put", *WHO), 75, "Not delivered", "refused the connection")
    token: dict[str, str | None] = {
        "BACKFILL_CLIENT_ID": None,
        "BACKFILL_CLIENT_SECRET": None,
        "BACKFILL_TOKEN": "t-4711",
    }
    expect(send(job, "interaction-put", *WHO, environment=token), 75, "No connection to api.base_url")
    none = dict.fromkeys(token)
    expect(send(job, "interaction-put", *WHO, environment=none), 78, "BACKFILL_CLIENT_ID")


def test_of_several_some_may_be_refused(tmp_path: Path) -> None:
    """A reply row by row is told row by row, and the worst of them is the exit code."""
    with serving(tmp_path / "log", "body=results,when=key_contains:BAD") as server:
        job = Job(tmp_path / "job", server.base_url)
        rows = [{"url": "api://a", "customerKey": key, "timestamp": 1} for key in ("good-1", "BAD-1", "good-2")]
        path = written(job, rows)
        expect(send(job, "interactions-offline", "--file", path), 3, "Mixed", "interaction 2: rejected, 400: refused")
        told = send(job, "interactions-offline", "--file", path, "--json").object()
        assert told["outcome"] == "mixed"
        assert [one["outcome"] for one in told["results"]] == ["delivered", "rejected", "delivered"]


def test_it_goes_through_the_proxy(server: Server, job: Job) -> None:
    """HTTP_PROXY carries token and call; NO_PROXY takes the direct way."""
    with Peer(proxying := Proxying()) as proxy:
        behind: dict[str, str | None] = {"HTTP_PROXY": f"http://127.0.0.1:{proxy.port}"}
        expect(send(job, "interaction-put", *WHO, environment=behind), 0)
        assert [head.split("?")[0].split(" ")[0] for head in proxying.heads] == ["POST", "PUT"]
        expect(send(job, "interaction-put", *WHO, environment={**behind, "NO_PROXY": "127.0.0.1"}), 0)
        assert len(proxying.heads) == 2


GRANTED = b'{"access_token":"t-o-k-e-n-4711"}'


def whole(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


@pytest.mark.parametrize("signals", [1, 2])
def test_a_signal_while_the_reply_is_awaited(tmp_path: Path, signals: int) -> None:
    """After one, the reply is waited for and told (0); after two it is in doubt (4), soon, with its name."""
    called, answered = threading.Event(), threading.Event()

    def behave(link: Link) -> None:
        end = link.read_request()
        if b"oauth2token" in link.received[:end]:
            link.send(whole(GRANTED))
            return
        called.set()
        answered.wait(30)
        link.send(whole(b'{"statusCode":200}'))

    with Peer(behave) as peer:
        job = Job(tmp_path / "job", f"http://127.0.0.1:{peer.port}")
        process = job.start("--call", "interaction-put", *WHO, command="send")
        assert called.wait(30)
        process.send_signal(signal.SIGINT)
        until(lambda: "Stopping" in (job.folder / "stderr.log").read_text(), "the first signal was heard")
        if signals == 1:
            answered.set()
            expect(job.wait(process), 0, "Delivered")
        else:
            process.send_signal(signal.SIGINT)
            expect(job.wait(process), 4, "In doubt", "User-Agent has `send ")
            assert not answered.is_set()
            answered.set()


def test_secrets_in_a_reply_are_masked(tmp_path: Path) -> None:
    """A server that repeats the credentials where its reply has room does not bring them to the screen."""
    body = json.dumps({"statusCode": 200, "tid": SECRET, "optimizations": [{"a": f"x {SECRET}"}, CLIENT_ID]}).encode()

    def behave(link: Link) -> None:
        end = link.read_request()
        link.send(whole(GRANTED if b"oauth2token" in link.received[:end] else body))

    with Peer(behave) as peer:
        ended = send(Job(tmp_path / "job", f"http://127.0.0.1:{peer.port}"), "interaction-post", *WHO)
    expect(ended, 0, "tid      ***", '{"a": "***"}')
    assert SECRET not in ended.said
