"""Servers that break HTTP on purpose, and remember every byte that reached them.

Plain threads and blocking sockets, no HTTP library and nothing of `backfill`: what the transport claims is held
against what its peer saw.
"""

import contextlib
import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

OK_BODY = b'{"statusCode":200}'
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(OK_BODY), OK_BODY)

_PATIENCE_S = 5.0
"""A behaviour that waits for bytes gives up after this long, so that a test fails instead of hanging."""


class Link:
    """One accepted connection, as the peer sees it. `received` holds every byte of the application that came."""

    def __init__(self, number: int, sock: socket.socket) -> None:
        self.number = number
        self.socket = sock
        self.received = bytearray()
        self.ended = threading.Event()

    def read_some(self) -> bytes:
        """The next bytes; b"" when the client ended or reset the connection."""
        try:
            data = self.socket.recv(1 << 16)
        except TimeoutError:
            raise
        except OSError:
            data = b""
        self.received += data
        return data

    def read_until(self, count: int) -> None:
        """Read until `received` is `count` bytes long, and not a byte further."""
        while (missing := count - len(self.received)) > 0:
            data = self.socket.recv(missing)
            if not data:
                return
            self.received += data

    def read_head(self, start: int = 0) -> int:
        """Read the head of the request that begins at `start`, byte by byte; answers where it ends."""
        while (end := self.received.find(b"\r\n\r\n", start)) < 0:
            before = len(self.received)
            self.read_until(before + 1)
            if len(self.received) == before:
                return before
        return end + 4

    def read_request(self, start: int = 0, share: float = 1.0) -> int:
        """Read one request from `start`, or a share of its body; answers where it ends."""
        end = self.read_head(start)
        length = re.search(rb"\r\ncontent-length: ([0-9]+)", self.received[start:end], re.IGNORECASE)
        end += int(int(length[1]) * share) if length else 0
        self.read_until(end)
        return end

    def read_rest(self) -> None:
        """Read until the client ends the connection."""
        while self.read_some():
            pass

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def end_sending(self) -> None:
        """The client sees our end, while we still see everything that it sends."""
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


Behaviour = Callable[[Link], None]


class Peer:
    """A server on loopback; each connection gets a thread that runs `behave` and then closes it."""

    def __init__(
        self, behave: Behaviour, *, tls: ssl.SSLContext | None = None, family: socket.AddressFamily = socket.AF_INET
    ) -> None:
        self.links: list[Link] = []
        self.handshakes_failed = 0
        self._behave = behave
        self._tls = tls
        self._listener = socket.create_server(("::1" if family is socket.AF_INET6 else "127.0.0.1", 0), family=family)
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.settle()

    def settle(self) -> None:
        """Accept nothing more, and wait until each behaviour came to its end: `links` is then the whole truth."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for thread in tuple(self._threads):
            thread.join(2 * _PATIENCE_S)
            assert not thread.is_alive(), "a behaviour of the peer hangs"
        self._threads.clear()
        self._listener.close()

    @property
    def received(self) -> bytes:
        """All bytes of the application from all connections."""
        return b"".join(bytes(link.received) for link in self.links)

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                break
            thread = threading.Thread(target=self._run, args=(accepted,))
            self._threads.append(thread)
            thread.start()

    def _run(self, accepted: socket.socket) -> None:
        accepted.settimeout(_PATIENCE_S)
        if self._tls is not None:
            try:
                accepted = self._tls.wrap_socket(accepted, server_side=True)
            except OSError:
                self.handshakes_failed += 1
                accepted.close()
                return
        link = Link(len(self.links), accepted)
        self.links.append(link)
        try:
            with contextlib.suppress(OSError):
                self._behave(link)
        finally:
            with contextlib.suppress(OSError):
                link.socket.close()
            link.ended.set()


# ------------------------------------------------------------------------------------------------ behaviours


def answers(reply: bytes = OK) -> Behaviour:
    """Answers each request of a connection with `reply`, as a well-behaved server does."""

    def behave(link: Link) -> None:
        end = 0
        while True:
            start = end
            end = link.read_request(start)
            if end == start:
                return
            link.send(reply)

    return behave


def answers_once_then(what: Behaviour, reply: bytes = OK) -> Behaviour:
    """Answers the first request of each connection, then does `what`."""

    def behave(link: Link) -> None:
        link.read_request()
        link.send(reply)
        what(link)

    return behave


def sends_and_closes(reply: bytes) -> Behaviour:
    """Reads one request, sends `reply`, ends the connection."""

    def behave(link: Link) -> None:
        link.read_request()
        link.send(reply)
        link.end_sending()
        link.read_rest()

    return behave
