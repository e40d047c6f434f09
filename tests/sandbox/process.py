"""A sandbox in a process of its own, for tests that talk to it over real sockets."""

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

BASE = "/one/oauth2/rt/api/2.0"
BULK = f"{BASE}/interactions/offline"
SITE_KEY = "ONE-TEST000000-0001"
HEADERS = {"content-type": "application/json", "dataMimeType": "application/json"}

_START = """
import json, sys
from pathlib import Path
if sys.argv[2] == "h11":
    sys.modules["httptools"] = None  # as on a machine where it is not installed
from backfill.sandbox.server import Settings, serve
settings = json.loads(sys.argv[1])
serve(Settings(**{**settings, "log": Path(settings["log"]), "misbehave": tuple(settings["misbehave"]), "json": True}))
"""


def interaction(**elements: object) -> dict[str, object]:
    """An offline interaction that keeps to the reference; `elements` replace or add, None takes away."""
    whole = {"url": "api://shop/checkout", "customerKey": "0004711", "timestamp": 1_718_000_000_000} | elements
    return {name: value for name, value in whole.items() if value is not None}


@dataclass(frozen=True)
class Running:
    """A sandbox that listens."""

    process: subprocess.Popen[str]
    base_url: str
    folder: Path
    client: httpx.Client

    def token(self) -> str:
        asked = {"grant_type": "client_credentials"}
        reply = httpx.post(f"{self.base_url}/one/oauth2token", data=asked, auth=("client", "secret"))
        assert reply.status_code == 200
        return str(reply.json()["access_token"])

    def send(self, interactions: object, **kwargs: Any) -> httpx.Response:
        """One bulk call by a client whose headers already carry a token."""
        return self.client.put(BULK, json=interactions, **kwargs)

    def applied(self) -> list[dict[str, Any]]:
        return _lines(self.folder / "applied.jsonl")

    def requests(self) -> list[dict[str, Any]]:
        """The calls it received, without those for a token."""
        return [line for line in _lines(self.folder / "requests.jsonl") if line["call"] != "token"]

    def wait_for_requests(self, count: int) -> list[dict[str, Any]]:
        """The calls it received, once there are so many: one that fails is written after its client knows."""
        deadline_s = time.monotonic() + 5
        while len(found := self.requests()) < count and time.monotonic() < deadline_s:
            time.sleep(0.01)
        return found

    def raw(self, body: bytes = b"", *, announced: int | None = None, token: str = "") -> socket.socket:
        """A plain socket on which a bulk call was sent, to see how the connection ends."""
        host, port = self.base_url.removeprefix("http://").split(":")
        sock = socket.create_connection((host, int(port)), timeout=5)
        head = (
            f"PUT {BULK}?sk={SITE_KEY} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n"
            "Content-Type: application/json\r\ndataMimeType: application/json\r\n"
            f"Content-Length: {len(body) if announced is None else announced}\r\n\r\n"
        )
        sock.sendall(head.encode() + body)
        return sock


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@contextlib.contextmanager
def sandbox(
    folder: Path, *misbehave: str, parser: str = "any", complaint: str = "", **settings: object
) -> Iterator[Running]:
    """Starts one and ends it by SIGTERM; its client sends a valid token, site key and headers.

    Asserts that it ends quietly, or with `complaint` on stderr.
    """
    settings = {"log": str(folder), "misbehave": misbehave, **settings}
    process = subprocess.Popen(
        [sys.executable, "-c", _START, json.dumps(settings), parser],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdin is not None
    try:
        listens = json.loads(process.stdout.readline())
        assert listens["pid"] == process.pid
        assert listens["log"] == str(folder)
        limits = httpx.Limits(max_keepalive_connections=0)  # what one test breaks must not reach the next
        with httpx.Client(
            base_url=listens["base_url"], params={"sk": SITE_KEY}, headers=HEADERS, limits=limits
        ) as client:
            running = Running(process, listens["base_url"], folder, client)
            if "token" in settings:
                client.headers["authorization"] = f"Bearer {settings['token']}"
            yield running
    finally:
        process.terminate()
        process.wait(5)
        out, err = process.stdout.read(), process.stderr.read()
        for pipe in (process.stdin, process.stdout, process.stderr):
            pipe.close()
    assert (process.returncode, out) == (0, "")
    assert complaint in err if complaint else err == ""
