"""Stands between a job and the sandbox: passes requests on, and has trouble with some of them.

The network at its worst, as the job sees it; the sandbox's log says what came through. A behaviour for
`misbehaving.Peer`: plain sockets, and nothing of `backfill`.
"""

import contextlib
import http.client
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urlsplit

from tests.account import AGENT
from tests.adapters.misbehaving import Link


class Passing(NamedTuple):
    """A request of the job while it passes. `number`: counted from 1, without those for a token."""

    number: int
    request: int
    """As the job numbers it in its User-Agent; 0 before its head was read."""


class Trouble(NamedTuple):
    """What happens to a request at the front: how much of it is read, whether the sandbox gets it, and what the job
    sees instead of, or of, the reply."""

    share: float
    passed_on: bool
    then: Callable[[Link, bytes], None]


def _reset(link: Link, _: bytes) -> None:
    link.reset()


def _close(link: Link, _: bytes) -> None:
    link.socket.close()


def _half_close(link: Link, _: bytes) -> None:
    link.end_sending()
    link.read_rest()


def _half_a_reply(then: Callable[[Link, bytes], None]) -> Callable[[Link, bytes], None]:
    def reply(link: Link, whole: bytes) -> None:
        link.send(whole[: len(whole) // 2])
        time.sleep(0.02)
        then(link, whole)

    return reply


def _endless_drip(link: Link, _: bytes) -> None:
    link.send(b"HTTP/1.1 200 OK\r\ncontent-length: 90000\r\n\r\n")
    while not link.ended.is_set():
        link.send(b" ")
        time.sleep(0.01)


def drip(link: Link, whole: bytes) -> None:
    """The whole reply, a byte at a time."""
    link.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for at in range(len(whole)):
        link.send(whole[at : at + 1])
        time.sleep(0.0005)


DOUBTFUL: Mapping[str, Trouble] = {
    "reset, head read": Trouble(0.0, False, _reset),
    "closed, head read": Trouble(0.0, False, _close),
    "reset, half the body read": Trouble(0.5, False, _reset),
    "reset, all read": Trouble(1.0, False, _reset),
    "closed, all read": Trouble(1.0, False, _close),
    "half-closed, all read": Trouble(1.0, False, _half_close),
    "reset, applied": Trouble(1.0, True, _reset),
    "closed, applied": Trouble(1.0, True, _close),
    "half-closed, applied": Trouble(1.0, True, _half_close),
    "reset in the reply": Trouble(1.0, True, _half_a_reply(_reset)),
    "closed in the reply": Trouble(1.0, True, _half_a_reply(_close)),
    "half-closed in the reply": Trouble(1.0, True, _half_a_reply(_half_close)),
    "endless drip": Trouble(1.0, True, _endless_drip),
}
"""Trouble after which nobody who sees only the job's side can know what became of the request."""


@dataclass
class Front:
    """`troubles`: by the number of the request. `on_arrival` is called with each request once its head was read,
    `before_reply` when the sandbox has answered. `keep_alive_s`: idle for longer, a connection is forgotten without a
    word, so that the next request on it meets a reset; `fields` are sent with each reply. `read_pause_s`: between
    pieces of a body. `seen`: the requests in the order of their heads.
    """

    base_url: str
    troubles: Mapping[int, Trouble] = field(default_factory=dict)
    on_arrival: Callable[[Passing, Link], None] = lambda passing, link: None
    before_reply: Callable[[Passing, Link], None] = lambda passing, link: None
    keep_alive_s: float = float("inf")
    fields: bytes = b""
    read_pause_s: float = 0.0
    seen: list[Passing] = field(default_factory=list)
    forgotten: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, link: Link) -> None:
        end = 0
        while True:
            start = end
            idle_since_s = time.monotonic()
            end = self._head(link, start, idle_since_s)
            if end == start:
                return
            head = bytes(link.received[start:end])
            passing = self._passing(head)
            trouble = self.troubles.get(passing.number) if passing.number else None
            if passing.number:
                self.on_arrival(passing, link)
            if self.read_pause_s and passing.number:
                self._read_slowly(link, end)
            share = 1.0 if trouble is None else trouble.share
            end = link.read_request(start, share)
            if trouble is not None and not trouble.passed_on:
                trouble.then(link, b"")
                return
            reply = self._pass_on(bytes(link.received[start:end]))
            if trouble is not None:
                trouble.then(link, reply)
                if trouble.then is not drip:
                    return
                continue
            if passing.number:
                self.before_reply(passing, link)
            link.send(reply)

    def _head(self, link: Link, start: int, idle_since_s: float) -> int:
        if not start or self.keep_alive_s == float("inf"):
            return link.read_head(start)
        link.read_until(start + 1)
        if len(link.received) > start and time.monotonic() - idle_since_s > self.keep_alive_s:
            with self._lock:
                self.forgotten += 1
            link.reset()
            return start
        return link.read_head(start) if len(link.received) > start else start

    def _read_slowly(self, link: Link, body_at: int) -> None:
        """Takes a body in small pieces, with pauses."""
        length = re.search(rb"\r\ncontent-length: ([0-9]+)", link.received[:body_at], re.IGNORECASE)
        for at in range(0, int(length[1]) if length else 0, 1 << 16):
            link.read_until(body_at + at)
            time.sleep(self.read_pause_s)

    def _passing(self, head: bytes) -> Passing:
        agent = AGENT.search(head.decode("latin-1"))
        if agent is None or head.startswith(b"POST /one/oauth2token"):
            return Passing(0, 0)
        with self._lock:
            passing = Passing(len(self.seen) + 1, int(agent[2]))
            self.seen.append(passing)
        return passing

    def _pass_on(self, request: bytes) -> bytes:
        target = urlsplit(self.base_url)
        with socket.create_connection((target.hostname, target.port), timeout=10) as upstream:
            # Else the sandbox waits for more on a connection that has none.
            upstream.sendall(request.replace(b"\r\n", b"\r\nconnection: close\r\n", 1))
            reply = http.client.HTTPResponse(upstream)
            reply.begin()
            content = reply.read()
        kind = (reply.getheader("content-type") or "").encode()
        return b"HTTP/1.1 %d X\r\ncontent-type: %s\r\n%scontent-length: %d\r\n\r\n%s" % (
            *(reply.status, kind, self.fields),
            *(len(content), content),
        )


def unplug(sockets: list[socket.socket]) -> None:
    """Resets all of them, one right after the other."""
    for sock in sockets:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    for sock in sockets:
        with contextlib.suppress(OSError):
            sock.close()
