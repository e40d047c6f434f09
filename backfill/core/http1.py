"""HTTP/1.1 messages as values: the bytes of a request, and a reply out of whatever pieces it arrives in.

Owns no socket and knows no connection. Replies are read by h11; a request's head is checked and joined here, once for
many requests, for which h11 would take 30 µs each.
"""

import contextlib
import re
from collections.abc import Iterable
from typing import Literal, NamedTuple

import h11

MAX_HEAD_BYTES = 64 << 10
"""A reply's head may be this long: what the common servers and proxies allow at most."""


class BrokenReply(Exception):
    """What came is no whole reply, and never will be. `status_code`: the reply's, if its head was read."""

    def __init__(
        self, message: str, *, cause: Literal["closed", "malformed", "too_large"], status_code: int | None
    ) -> None:
        super().__init__(message)
        self.cause: Literal["closed", "malformed", "too_large"] = cause
        self.status_code = status_code


class RawReply(NamedTuple):
    """A whole reply. Header names are in lower case; the body is as it came, after undoing `chunked`."""

    status_code: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


_TOKEN = rb"[-!#$%&'*+.^_`|~0-9A-Za-z]++"
_METHOD_OR_NAME = re.compile(_TOKEN)
_TARGET = re.compile(rb"[\x21-\x7e]++")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*+")
FRAMING = frozenset((b"content-length", b"transfer-encoding"))


class RequestHead(NamedTuple):
    """A checked request line with headers, good for any number of bodies; `exchange` adds the content-length."""

    prefix: bytes
    method: bytes
    closes: bool


def request_head(method: str, target: str | bytes, headers: Iterable[tuple[str | bytes, str | bytes]]) -> RequestHead:
    """Check and join once what many requests share; h11 would take 30 µs to do so for each.

    target: path and query as they go on the wire, percent-encoded. headers: with `host`, without
    content-length and transfer-encoding.
    Raises: ValueError for anything that could begin another header or request. Never shows a value: it may be a
    token.
    """
    method_bytes, target_bytes = _as_bytes(method), _as_bytes(target)
    if not _METHOD_OR_NAME.fullmatch(method_bytes):
        raise ValueError("The request method is no HTTP token.")
    if not _TARGET.fullmatch(target_bytes):
        raise ValueError("The request target must be percent-encoded: visible ASCII only, without spaces.")
    lines = [b"%s %s HTTP/1.1" % (method_bytes, target_bytes)]
    hosts = 0
    closes = False
    for raw_name, raw_value in headers:
        name, value = _as_bytes(raw_name), _as_bytes(raw_value)
        lower = name.lower()
        if not _METHOD_OR_NAME.fullmatch(name):
            raise ValueError("The name of a request header is no HTTP token.")
        if not _VALUE.fullmatch(value):
            raise ValueError(f"The value of the request header {name.decode()} holds a control character.")
        if lower in FRAMING:
            raise ValueError(f"{name.decode()} is set by the transport; leave it out.")
        hosts += lower == b"host"
        closes |= lower == b"connection" and b"close" in value.lower()
        lines.append(b"%s: %s" % (name, value))
    if hosts != 1:
        raise ValueError("A request needs exactly one Host header.")
    return RequestHead(b"\r\n".join(lines) + b"\r\n", method_bytes, closes)


def _as_bytes(text: str | bytes) -> bytes:
    return text.encode("latin-1") if isinstance(text, str) else text


_BODILESS_METHODS = frozenset((b"GET", b"HEAD", b"DELETE", b"OPTIONS", b"TRACE"))


def request_bytes(head: RequestHead, body: bytes) -> bytes:
    """Head and body as one, so that they leave in one write."""
    if not body and head.method in _BODILESS_METHODS:
        return head.prefix + b"\r\n"
    return b"%scontent-length: %d\r\n\r\n%s" % (head.prefix, len(body), body)


def forwarded(head: RequestHead, origin: bytes, authorization: str | None) -> RequestHead:
    """The same request for a proxy that is to pass it on: the target in full, and what the proxy alone may read."""
    method = len(head.method) + 1
    prefix = head.prefix[:method] + origin + head.prefix[method:]
    if authorization is not None:
        prefix += b"proxy-authorization: %s\r\n" % authorization.encode("ascii")
    return head._replace(prefix=prefix)


_KEEP_ALIVE_TIMEOUT = re.compile(rb"(?:^|[,\s])timeout\s*=\s*\"?([0-9]{1,9})", re.IGNORECASE)


class ReplyReader:
    """Reads one reply. `keep_for_s`, once it is whole: None = the connection ends here, -1 = it may be kept, else for
    how many seconds the server announces to keep it.
    """

    __slots__ = ("_body", "_body_bytes", "_connection", "_head", "_limit", "keep_for_s")

    def __init__(self, method: bytes, limit: int) -> None:
        """`limit`: bytes of body that are read at the most."""
        self._limit = limit
        self._head: tuple[int, list[tuple[bytes, bytes]]] | None = None
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
        # h11 wants to know the request in order to read its reply; what it would have sent is thrown away.
        self._connection.send(h11.Request(method=method, target="/", headers=_ANY_HOST))
        self._connection.send(h11.EndOfMessage())
        self.keep_for_s: float | None = None

    def feed(self, data: bytes) -> RawReply | None:
        """The reply, as soon as it is whole. Raises: BrokenReply (malformed, too_large)."""
        if not data:
            return None
        try:
            self._connection.receive_data(data)
            return self._next_events()
        except h11.RemoteProtocolError as error:
            if error.error_status_hint == 431:
                raise self._too_large() from error
            raise BrokenReply(
                "what came back after the request was sent is no HTTP reply",
                cause="malformed",
                status_code=self.status_code,
            ) from error

    def end(self) -> RawReply | None:
        """The peer will send nothing more: a body without a length is whole now. Raises: BrokenReply (closed)."""
        with contextlib.suppress(h11.RemoteProtocolError):
            self._connection.receive_data(b"")
            if (reply := self._next_events()) is not None:
                return reply
        raise BrokenReply(
            "the connection was closed after the request was sent and before its reply was whole",
            cause="closed",
            status_code=self.status_code,
        )

    @property
    def status_code(self) -> int | None:
        return self._head[0] if self._head is not None else None

    @property
    def beyond(self) -> bool:
        """Bytes came that belong to no reply."""
        return bool(self._connection.trailing_data[0])

    def _next_events(self) -> RawReply | None:
        connection = self._connection
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Response):
                self._head = (event.status_code, [(bytes(name), bytes(value)) for name, value in event.headers])
                if any(name == b"content-length" and int(value) > self._limit for name, value in self._head[1]):
                    raise self._too_large()
            elif isinstance(event, h11.Data):
                self._body.append(bytes(event.data))
                self._body_bytes += len(event.data)
                if self._body_bytes > self._limit:
                    raise self._too_large()
            elif isinstance(event, h11.EndOfMessage):
                assert self._head is not None
                reusable = connection.our_state is h11.DONE and connection.their_state is h11.DONE
                # Bytes beyond the reply that nobody asked for: the connection is not to be trusted.
                if reusable and not self.beyond:
                    self.keep_for_s = _announced_s(self._head[1])
                return RawReply(self._head[0], self._head[1], b"".join(self._body))
            elif event is h11.NEED_DATA or event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                return None
            # h11.InformationalResponse: 1xx says that a reply will come; it is none.

    def _too_large(self) -> BrokenReply:
        return BrokenReply(
            f"the reply is longer than {self._limit:,} bytes, or its head than {MAX_HEAD_BYTES:,}; it was not read on",
            cause="too_large",
            status_code=self.status_code,
        )


_ANY_HOST = [("host", "-")]


def _announced_s(headers: Iterable[tuple[bytes, bytes]]) -> float:
    """Seconds that `Keep-Alive: timeout=N` announces; -1 where it announces none."""
    announced = [value for name, value in headers if name == b"keep-alive"]
    found = _KEEP_ALIVE_TIMEOUT.search(announced[-1]) if announced else None
    return float(found[1]) if found else -1.0
