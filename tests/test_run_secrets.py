"""The real command beside servers that repeat whatever they hear, and beside bugs that quote it.

Secrets may stand nowhere. Customers' values may stand in what is staged, in the ledger and in the sandbox's own log,
which are the owner's alone. Every secret and every value made here is recognisable, in each spelling used.
"""

import json
import os
import re
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.adapters.misbehaving import OK, Behaviour, Link, Peer
from tests.command import CLIENT_ID, PRIVATE, SECRET, Ended, Job, serving, until, visits

TOKEN = "granted-TOKEN-0815-4711"
GIVEN = "given-TOKEN-4242-1234"
TID = "tid-PRIVATE-77"
BAD, GOOD = "mark-PRIVATE-bad", "mark-good"

Spell = Callable[[str], str]
SPELLINGS: dict[str, Spell] = {
    "plain": str,
    "capitals": str.upper,
    "percent": lambda text: "".join(f"%{ord(character):02x}" for character in text),
    "escaped": lambda text: "".join(f"\\u{ord(character):04x}" for character in text),
    "base64": lambda text: b64encode(text.encode()).decode(),
    "shortened": lambda text: text[:14] + "...",
    "ANSI": lambda text: f"\x1b]0;{text}\x07\x1b[2J\x9b31m\u202e\r\n{text}",
    "late": lambda text: "." * 280 + text,
}


def reply(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d Said\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
        status,
        len(body),
        body,
    )


def echo(status: int, heard: str, spelling: str) -> bytes:
    """A refusal that repeats what was heard, in this spelling where it applies to credentials only, else all."""
    return reply(status, json.dumps({"message": f"bad: {SPELLINGS[spelling](heard)}"}).encode())


def heard(request: bytes) -> dict[str, str]:
    """What a server can repeat of a request: its credentials, and the values of its first interaction."""
    head, _, body = request.partition(b"\r\n\r\n")
    found = {"credentials": re.search(rb"(?i)\r\nauthorization: \w+ ([^\r]+)", head)[1].decode()}  # type: ignore[index]
    if b"tid=" in head:
        found["tid"] = re.search(rb"tid=([^ &]+)", head)[1].decode()  # type: ignore[index]
    with_values = json.loads(body) if body.startswith(b"[") else []
    for each in with_values[:1]:
        found |= {"key": each["customerKey"], "mark": each["properties"][0]["value"]}
    return found


def requests(link: Link) -> Iterator[bytes]:
    start = 0
    while (end := link.read_request(start)) != start:
        yield bytes(link.received[start:end])
        start = end


def granting(answer: Callable[[bytes], bytes]) -> Behaviour:
    """Grants a token; `answer` has the other requests."""

    def behave(link: Link) -> None:
        for request in requests(link):
            grant = json.dumps({"access_token": TOKEN}).encode()
            link.send(reply(200, grant) if request.startswith(b"POST") else answer(request))

    return behave


SECRETS = [SECRET, TOKEN, GIVEN]
KEPT_OF_CUSTOMERS = ("staged", "ledger", "sandbox")


def told(text: str) -> list[str]:
    """Spellings of secrets in a text, and pieces of eight characters of them."""
    basic = b64encode(f"{CLIENT_ID}:{SECRET}".encode()).decode()
    known = {spell(secret) for secret in SECRETS for name, spell in SPELLINGS.items() if name not in ("late", "ANSI")}
    pieces = {secret[at : at + 8] for secret in SECRETS for at in range(len(secret) - 7)} | {basic, basic[20:40]}
    return [each for each in known | pieces if each.lower() in text.lower()]


def _kept(job: Job) -> Iterator[tuple[Path, bytes]]:
    for path in job.state.rglob("*"):
        if path.is_file():
            yield path.relative_to(job.state), path.read_bytes()


def nothing_told(job: Job, ended: Ended) -> None:
    """Neither by the command nor by a byte of its state; and nothing that moves a cursor."""
    assert told(ended.said) == [], ended.said
    assert "PRIVATE" not in ended.said.upper(), ended.said
    assert all(character.isprintable() or character == "\n" for character in ended.said), repr(ended.said)
    for path, content in _kept(job):
        assert told(content.decode("latin-1")) == [], path
        if path.parts[0] not in KEPT_OF_CUSTOMERS:
            assert b"PRIVATE" not in content.upper(), path


@pytest.mark.parametrize("status", [403, 404, 500, 503])
def test_a_refusal_of_the_whole_call_repeats_nothing(tmp_path: Path, status: int) -> None:
    """Each reply repeats the token and a customer in another spelling; what ends the run is told without them."""
    count = 0

    def answer(request: bytes) -> bytes:
        nonlocal count
        count += 1
        what = heard(request)
        spelling = list(SPELLINGS)[count % len(SPELLINGS)]
        customers = "plain" if spelling == "base64" else spelling
        said = " / ".join([SPELLINGS[customers](what[name]) for name in ("key", "mark", "tid")])
        said = SPELLINGS[spelling](what["credentials"]) + " " + said
        return reply(status, json.dumps({"message": f"bad: {said}"}).encode())

    with Peer(granting(answer)) as peer:
        job = Job(tmp_path, f"http://127.0.0.1:{peer.port}", {"delivery": {"max_attempts": 3, "breaker_failures": 50}})
        export = job.export("e.csv", [visit._replace(tid=TID) for visit in visits(3, mark=lambda _: BAD)])
        ended = job.run(export)
        status_too = job.run(command="status")
        verify_too = job.run(command="verify", environment={"BACKFILL_TOKEN": GIVEN})
    assert count > 0
    assert f"HTTP {status}" in ended.said + "".join(map(str, job.reasons("in_doubt"))), ended.said
    assert ended.code == {403: 77, 404: 78, 500: 4, 503: 75}[status]
    for each in (ended, status_too, verify_too):
        nothing_told(job, each)


def test_reasons_of_rejected_rows_repeat_nothing(tmp_path: Path) -> None:
    """Row by row the API repeats what it was sent, each time in another spelling; the ledger's reasons have none of it,
    and keep the words around it."""
    turn = 0

    def answer(request: bytes) -> bytes:
        nonlocal turn
        if BAD.encode() not in request:
            return OK
        what = heard(request)
        turn += 1
        spelling = list(SPELLINGS)[turn % len(SPELLINGS)]
        name = ("credentials", "key", "mark")[turn // len(SPELLINGS) % 3]
        return echo(400, what[name], "plain" if (spelling, name != "credentials") == ("base64", True) else spelling)

    with Peer(granting(answer)) as peer:
        job = Job(tmp_path, f"http://127.0.0.1:{peer.port}", {"delivery": {"canary_calls": 500}})
        rows = visits(48, mark=lambda place: BAD if place % 2 else GOOD)
        ended = job.run(job.export("e.csv", rows), "--json", "--set", "rows.max_rejected=100")
    assert ended.code == 0, ended.said
    assert job.outcomes() == {"delivered": 24, "rejected": 24}
    nothing_told(job, ended)
    reasons = job.reasons("rejected")
    assert any("bad: ***" in reason for reason in reasons), reasons
    assert all(reason.isprintable() and "PRIVATE" not in reason.upper() for reason in reasons), reasons


@pytest.mark.parametrize("status", [200, 400, 401, 500])
def test_the_token_endpoint_repeats_nothing(tmp_path: Path, status: int) -> None:
    """Its error bodies hold the client's secret in all spellings; what is said of them holds none."""

    def behave(link: Link) -> None:
        for request in requests(link):
            what = heard(request)["credentials"]
            said = " ".join([what, *(spell(SECRET) for spell in SPELLINGS.values())])
            body = json.dumps({"error": "invalid_client", "error_description": said, "access_token": ""}).encode()
            link.send(reply(status, body))

    with Peer(behave) as peer:
        job = Job(tmp_path, f"http://127.0.0.1:{peer.port}", {"delivery": {"max_attempts": 2}})
        ended = job.run(job.export("e.csv", visits(2)), *(["--json"] if status == 401 else []))
    assert ended.code == (77 if status in (400, 401) else 75), ended.said
    assert f"HTTP {status}" in ended.said
    nothing_told(job, ended)


def test_a_given_token_is_told_nowhere(tmp_path: Path) -> None:
    """Refused at once with itself in the body and in a header."""

    def answer(request: bytes) -> bytes:
        said = heard(request)["credentials"]
        body = json.dumps({"message": f"Bearer {said} / {said[4:]} / {quote(said)}"}).encode()
        return reply(401, body).replace(b"\r\n", b"\r\nwww-authenticate: Bearer %s\r\n" % said.encode(), 1)

    given = {"BACKFILL_TOKEN": GIVEN, "BACKFILL_CLIENT_ID": None, "BACKFILL_CLIENT_SECRET": None}
    with Peer(granting(answer)) as peer:
        job = Job(tmp_path, f"http://127.0.0.1:{peer.port}")
        ended = job.run(job.export("e.csv", visits(2)), environment=given)
    assert ended.code == 77, ended.said
    nothing_told(job, ended)


# ------------------------------------------------------------------------------------------------------------- bugs

BUGS = {
    "sending": """
from backfill.adapters.interaction_api import InteractionApi
def broken(self, **known):
    raise RuntimeError(f"{self._credentials.client_secret} {self._token}", known, "PRIVATE")
InteractionApi.address = broken
""",
    "fetching": """
from backfill.backlog import Backlog
fetch = Backlog.fetch
def broken(self, *known):
    try:
        raise KeyError(str(fetch(self, *known)) + "PRIVATE")
    except KeyError as error:
        raise LookupError("PRIVATE") from error
Backlog.fetch = broken
""",
    "reading": """
import polars as pl
from backfill import stage
def broken(*known, **more):
    pl.Series("customer_key", ["PRIVATE-00001"]).cast(pl.Int64)
stage.spool = broken
""",
    "a thread": """
import threading
from backfill import settle
import backfill.run
def broken(*known, **more):
    def work(): raise ValueError("PRIVATE")
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    class Dropped:
        def __del__(self): raise ValueError("PRIVATE")
        def __repr__(self): return "PRIVATE"
    Dropped()
    raise SystemError("PRIVATE")
backfill.run.settle = broken
""",
}


@pytest.mark.parametrize("where", BUGS)
def test_a_bug_tells_its_place_and_no_value(tmp_path: Path, where: str) -> None:
    """The exception quotes secrets and rows, its traceback on stderr does not; with --json there is one object."""
    program = f"import sys\n{BUGS[where]}\nfrom backfill.cli import main\nsys.exit(main())"
    with serving(tmp_path / "server") as server:
        job = Job(tmp_path / "job", server.base_url)
        export = job.export("e.csv", visits(5))
        words = ["run", "--state", str(job.state), "--config", str(job.folder / "backfill.toml"), "--json", str(export)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("BACKFILL_")} | {
            "BACKFILL_CLIENT_ID": CLIENT_ID,
            "BACKFILL_CLIENT_SECRET": SECRET,
            "PYTHONPATH": str(Path(__file__).parent.parent),
            "PYTHONFAULTHANDLER": "1",
        }
        began_s = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", program, *words], env=environment, capture_output=True, text=True, cwd=job.folder
        )
    ended = Ended(done.returncode, done.stdout, done.stderr, time.monotonic() - began_s)
    assert ended.code == 1, ended.said
    assert ended.object()["error"]["exit_code"] == 1
    assert "Traceback" in ended.err
    assert ended.err.count("Traceback") == (3 if where == "a thread" else 1)
    nothing_told(job, Ended(1, ended.out, ended.err.replace(BUGS[where], ""), 0.0))


# ------------------------------------------------------------------------------------------------------- the process


def test_no_process_shows_a_secret(tmp_path: Path) -> None:
    """Not in its words nor, of the embedded sandbox, in its environment; and no temporary file is left behind."""
    files = tmp_path / "files"
    files.mkdir()
    (files / "token").write_text(GIVEN)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    job = Job(tmp_path / "job", "https://mxo.example", {"budget": {"requests_per_second": 2}}, budget=1)
    export = job.export("e.csv", visits(1_000, customers=1_000))
    environment = {
        "BACKFILL_CLIENT_ID": None,
        "BACKFILL_CLIENT_SECRET": None,
        "BACKFILL_TOKEN_FILE": str(files / "token"),
        "TMPDIR": str(temporary),
    }
    process = job.start(export, "--sandbox", environment=environment)
    try:
        applied = job.state / "sandbox" / "applied.jsonl"
        until(lambda: applied.exists() and applied.stat().st_size > 0, "something is applied")
        children = [
            int(line.split()[0])
            for path in Path("/proc").glob("[0-9]*/stat")
            if (line := _read(path)) and line.rpartition(")")[2].split()[1] == str(process.pid)
        ]
        assert len(children) == 1
        for pid in (process.pid, *children):
            assert told(_read(Path(f"/proc/{pid}/cmdline"))) == []
        inherited = _read(Path(f"/proc/{children[0]}/environ"))
        assert "TMPDIR=" in inherited  # it can be read
        assert "BACKFILL_" not in inherited
    finally:
        process.terminate()
        ended = job.wait(process)
    assert ended.code == 75, ended.said
    nothing_told(job, ended)
    assert list(temporary.iterdir()) == []


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def test_a_secret_in_the_wrong_place_is_not_repeated(tmp_path: Path) -> None:
    """In the configuration, or under a name that nearly is one: 78 or 2, and the value stays untold."""
    job = Job(tmp_path, "https://mxo.example", {"api": {"client_secret": SECRET}, "token": {"value": TOKEN}})
    export = job.export("e.csv", visits(1))
    for ended in (
        job.run(export, environment={"BACKFILL_CLIENT_SECERT": GIVEN}),
        job.run(export, "--set", f"api.token={GIVEN}", "--json"),
        job.run(export, "--client-secret", SECRET),
        job.run(export, f"--client-secret={SECRET}"),
        job.run(export, f"--token={GIVEN}", "--json"),
    ):
        assert ended.code in (2, 78), ended.said
        assert told(ended.said) == [], ended.said
        assert PRIVATE not in ended.said
