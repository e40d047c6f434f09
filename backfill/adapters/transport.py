"""HTTP/1.1 over our own sockets: one attempt on the wire per call, and a plain word on whether a byte left.

Never retries, never follows a redirect, never sends a request on a second connection, never decodes a body.

The two errors are the whole point. `NotSent`: not one byte of the request was handed to a socket, so sending it
again is safe. `NoReply`: at least one byte may have left and no whole reply came back, so only a person (or the
vendor) can tell whether it was applied. Where we cannot be certain, it is `NoReply`.

httpx sits on pools that may send a request again, or report the same error before and after the first byte, so
an exception's class proves nothing there. Built on asyncio protocols and not on streams: a future per exchange,
one timer, one write, no task.
"""

import asyncio
import contextlib
import errno
import re
import socket
import ssl
from collections.abc import Iterable
from typing import Literal, NamedTuple, Self

import h11
import httpx

NotSentCause = Literal["dns", "refused", "unreachable", "tls", "connect_timeout", "closed_before_sending", "cancelled"]
NoReplyCause = Literal["closed", "reset", "timeout", "malformed", "too_large"]

_MAX_HEAD_BYTES = 64 << 10
"""A reply's head may be this long: what the common servers and proxies allow at most."""

_MAX_KEEP_ALIVE_S = 60.0
"""Never keep an idle connection longer, whatever is announced: firewalls in between forget it in silence."""

_KEEP_ALIVE_MARGIN_S = 1.0
"""Taken off an announced keep-alive, so that our clock is never the last to know."""

_LATE_S = 0.5
"""An idle connection may be handed out in time and then wait for the journal: half the margin, then it is stale."""

_EYEBALLS_S = 0.25
"""RFC 8305's delay before the next address of a host is tried beside the first."""

_LOOP_TURNS = 8
"""Turns of the event loop for reading what TLS has pending before a send; session tickets take two."""


class NotSent(httpx.TransportError):
    """No byte of the request was handed to a socket. Sending it again is safe.

    cause: "dns", "refused", "unreachable" (or any other failure to open a socket), "tls", "connect_timeout",
    "closed_before_sending" (the peer's end was seen, or the kernel refused the first send), "cancelled" (the
    transport was closed).
    """

    def __init__(self, message: str, *, cause: NotSentCause) -> None:
        super().__init__(message)
        self.cause: NotSentCause = cause


class NoReply(httpx.TransportError):
    """At least one byte may have left, and there is no whole reply. The request may have been applied.

    cause: "closed" (the peer ended the connection), "reset", "timeout", "malformed", "too_large".
    status_code: the reply's, if its head was read.
    """

    def __init__(self, message: str, *, cause: NoReplyCause, status_code: int | None = None) -> None:
        super().__init__(message)
        self.cause: NoReplyCause = cause
        self.status_code = status_code


class Origin(NamedTuple):
    """Where connections go: scheme "http" or "https", host as ASCII without brackets, port."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: httpx.URL) -> Self:
        """Raises: httpx.UnsupportedProtocol for a scheme other than http and https, or without a host."""
        if url.scheme not in ("http", "https") or not url.host:
            raise httpx.UnsupportedProtocol(f"An address of http:// or https:// is needed, not {url.scheme!r}.")
        return cls(url.scheme, url.raw_host.decode("ascii"), url.port or (443 if url.scheme == "https" else 80))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class RawReply(NamedTuple):
    """A whole reply. Header names are in lower case; the body is as it came, after undoing `chunked`."""

    status_code: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


# ------------------------------------------------------------------------------------------------ request heads

_TOKEN = rb"[-!#$%&'*+.^_`|~0-9A-Za-z]++"
_METHOD_OR_NAME = re.compile(_TOKEN)
_TARGET = re.compile(rb"[\x21-\x7e]++")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*+")
_FRAMING = frozenset((b"content-length", b"transfer-encoding"))


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
        if lower in _FRAMING:
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


def _request_bytes(head: RequestHead, body: bytes) -> bytes:
    """Head and body as one, so that they leave in one write."""
    if not body and head.method in _BODILESS_METHODS:
        return head.prefix + b"\r\n"
    return b"%scontent-length: %d\r\n\r\n%s" % (head.prefix, len(body), body)


# ------------------------------------------------------------------------------------------------ reading replies

_COMMON_HEAD = re.compile(
    rb"HTTP/1\.1 ([2-5][0-9][0-9])(?: [\t\x20-\x7e\x80-\xff]*+)?+\r\n"
    rb"((?:" + _TOKEN + rb":[\t\x20-\x7e\x80-\xff]*+\r\n)++)\r\n"
)
_FIELD = re.compile(rb"(" + _TOKEN + rb"):[\t ]*+([\t\x20-\x7e\x80-\xff]*+)\r\n")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_KEEP_ALIVE_TIMEOUT = re.compile(rb"(?:^|[,\s])timeout\s*=\s*\"?([0-9]{1,9})", re.IGNORECASE)
_BODILESS_STATUSES = frozenset((204, 304))


class ReplyReader:
    """Reads one reply out of whatever pieces it arrives in.

    The common reply (HTTP/1.1, its head in one piece, one plain content-length) is read here, in some 5 µs;
    everything else, and everything doubtful, goes to h11, which takes 60. The tests hold the two against each
    other: what is read here, h11 reads to the same.
    """

    __slots__ = ("_body", "_body_bytes", "_h11", "_head", "_limit", "_method", "_missing", "keep_for_s")

    def __init__(self, method: bytes, limit: int) -> None:
        self._method = method
        self._limit = limit
        self._head: tuple[int, list[tuple[bytes, bytes]]] | None = None
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._missing = -1
        self._h11: h11.Connection | None = None
        self.keep_for_s: float | None = None
        """After the reply: None = the connection ends here, -1 = it may be kept, else seconds announced."""

    def feed(self, data: bytes) -> RawReply | None:
        """The reply, as soon as it is whole. Raises: NoReply (malformed, too_large)."""
        if self._h11 is not None:
            return self._feed_h11(data)
        if self._head is None:
            return self._begin(data)
        return self._go_on(data)

    def end(self) -> RawReply | None:
        """The peer will send nothing more: a body without a length is whole now. Raises: NoReply (closed)."""
        if self._h11 is not None:
            with contextlib.suppress(h11.RemoteProtocolError):
                self._h11.receive_data(b"")
                if (reply := self._next_events(self._h11)) is not None:
                    return reply
        raise NoReply(
            "The connection was closed after the request was sent and before its reply was whole.",
            cause="closed",
            status_code=self.status_code,
        )

    @property
    def status_code(self) -> int | None:
        return self._head[0] if self._head is not None else None

    def _begin(self, data: bytes) -> RawReply | None:
        common = _COMMON_HEAD.match(data)
        if common is None or common.end() > _MAX_HEAD_BYTES or self._method == b"HEAD":
            return self._leave_to_h11(data)
        status = int(common[1])
        length: bytes | None = None
        closes = False
        announced: bytes | None = None
        headers = []
        for raw_name, raw_value in _FIELD.findall(common[2]):
            name, value = raw_name.lower(), raw_value.rstrip(b" \t")
            headers.append((name, value))
            if name == b"content-length":
                if length is not None or not _LENGTH.fullmatch(value):
                    return self._leave_to_h11(data)
                length = value
            elif name == b"transfer-encoding":
                return self._leave_to_h11(data)
            elif name == b"connection":
                closes = closes or b"close" in value.lower()
            elif name == b"keep-alive":
                announced = value
        if length is None or status in _BODILESS_STATUSES:
            return self._leave_to_h11(data)
        self._head = (status, headers)
        self._missing = int(length)
        if self._missing > self._limit:
            raise self._too_large()
        self.keep_for_s = None if closes else _announced_s(announced)
        return self._go_on(data[common.end() :])

    def _go_on(self, data: bytes) -> RawReply | None:
        if len(data) > self._missing:
            # Bytes beyond the reply that nobody asked for: the reply is whole, the connection is not to be trusted.
            data = data[: self._missing]
            self.keep_for_s = None
        self._missing -= len(data)
        self._body.append(data)
        if self._missing:
            return None
        assert self._head is not None
        return RawReply(self._head[0], self._head[1], b"".join(self._body))

    def _leave_to_h11(self, data: bytes) -> RawReply | None:
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD_BYTES)
        # h11 wants to know the request in order to read its reply; what it would have sent is thrown away.
        self._h11.send(h11.Request(method=self._method, target="/", headers=[("host", "-")]))
        self._h11.send(h11.EndOfMessage())
        return self._feed_h11(data)

    def _feed_h11(self, data: bytes) -> RawReply | None:
        assert self._h11 is not None
        if not data:
            return None
        try:
            self._h11.receive_data(data)
            return self._next_events(self._h11)
        except h11.RemoteProtocolError as exc:
            if exc.error_status_hint == 431:
                raise self._too_large() from exc
            raise NoReply(
                "What came back after the request was sent is no HTTP reply.",
                cause="malformed",
                status_code=self.status_code,
            ) from exc

    def _next_events(self, connection: h11.Connection) -> RawReply | None:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Response):
                self._head = (event.status_code, [(bytes(name), bytes(value)) for name, value in event.headers])
            elif isinstance(event, h11.Data):
                self._body.append(bytes(event.data))
                self._body_bytes += len(event.data)
                if self._body_bytes > self._limit:
                    raise self._too_large()
            elif isinstance(event, h11.EndOfMessage):
                assert self._head is not None
                reusable = connection.our_state is h11.DONE and connection.their_state is h11.DONE
                if reusable and not connection.trailing_data[0]:
                    announced = [value for name, value in self._head[1] if name == b"keep-alive"]
                    self.keep_for_s = _announced_s(announced[-1] if announced else None)
                return RawReply(self._head[0], self._head[1], b"".join(self._body))
            elif event is h11.NEED_DATA or event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                return None
            # h11.InformationalResponse: 1xx says that a reply will come; it is none.

    def _too_large(self) -> NoReply:
        return NoReply(
            f"The reply is longer than {self._limit:,} bytes, or its headers than {_MAX_HEAD_BYTES:,}; it was not "
            "read on.",
            cause="too_large",
            status_code=self.status_code,
        )


def _announced_s(keep_alive: bytes | None) -> float:
    """Seconds that `Keep-Alive: timeout=N` announces; -1 where it announces none."""
    found = _KEEP_ALIVE_TIMEOUT.search(keep_alive) if keep_alive else None
    return float(found[1]) if found else -1.0


# ------------------------------------------------------------------------------------------------ connections


class Connection(asyncio.Protocol):
    """One connection, checked out of the pool for one exchange. Its methods are for `Transport` alone.

    Belongs to the pool, or to one caller, or to nobody any more; `Transport` hands it from one to the other.
    """

    __slots__ = (
        "_checked_out",
        "_ended",
        "_first_send_tells",
        "_last",
        "_loop",
        "_peek",
        "_pool",
        "_reader",
        "_socket",
        "_stale_at",
        "_timer",
        "_waiter",
        "origin",
    )

    def __init__(self, pool: "Transport", origin: Origin, loop: asyncio.AbstractEventLoop) -> None:
        self.origin = origin
        self._pool = pool
        self._loop = loop
        self._socket: asyncio.Transport | None = None
        self._peek: socket.socket | None = None
        self._first_send_tells = False
        self._ended = False
        self._last = False
        self._checked_out = True
        self._stale_at = float("inf")  # a connection never used before is nobody's idle connection
        self._reader: ReplyReader | None = None
        self._waiter: asyncio.Future[RawReply] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def secure(self) -> bool:
        return self.origin.scheme == "https"

    # -- what asyncio reports

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._socket = transport
        self._pool._opened(self)

    def data_received(self, data: bytes) -> None:
        if self._reader is None:
            # Nothing was asked: a 408 before the close, or bytes beyond the last reply. Not to be used again.
            self.abort()
            return
        try:
            reply = self._reader.feed(data)
        except NoReply as exc:
            self._fail(exc)
        else:
            if reply is not None:
                self._succeed(reply)

    def eof_received(self) -> None:
        self._ended = True
        if self._reader is None:
            self.abort()
            return
        try:
            reply = self._reader.end()
        except NoReply as exc:
            self._fail(exc)
        else:
            if reply is not None:
                self._succeed(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        if self._reader is not None and not self.secure:
            self._read_what_is_left()
        if self._reader is not None:
            cause: NoReplyCause = "closed" if exc is None else "reset"
            self._fail(
                NoReply(
                    f"{self.origin} {'closed' if exc is None else 'reset'} the connection after the request was "
                    "sent and before its reply was whole.",
                    cause=cause,
                    status_code=self._reader.status_code,
                )
            )
        if self._peek is not None:
            self._peek.close()
            self._peek = None
        self._pool._closed(self)

    def _read_what_is_left(self) -> None:
        """A refusal such as 413 may stand in the kernel when our write fails: asyncio stops reading at that point.

        Whatever the peer sent before its reset is here by now. Its end is not looked at: after a reset the
        kernel reports one for a body that was cut short, too.
        """
        while self._reader is not None and self._peek is not None:
            try:
                data = self._peek.recv(1 << 16)
            except OSError:
                return
            if not data:
                return
            self.data_received(data)

    # -- what Transport asks

    def attach(self) -> None:
        """Make ready for the first exchange. Raises: OSError when the process has no file descriptor left."""
        assert self._socket is not None
        # A descriptor of our own for peeking: asyncio's socket object offers no recv.
        self._peek = self._socket.get_extra_info("socket").dup()
        # CPython 3.11 to 3.14: `write` on an empty buffer sends at once, and closes the transport within the call
        # if the kernel refused. Other loops (uvloop) and TLS promise no such thing.
        self._first_send_tells = not self.secure and isinstance(self._loop, asyncio.SelectorEventLoop)

    def check_out(self) -> bool:
        """Whether the connection can still be used; it then belongs to the caller."""
        if not self.usable or not self._looks_alive():
            self.abort()
            return False
        self._stale_at += _LATE_S
        self._checked_out = True
        return True

    def check_in(self, stale_at: float) -> None:
        """Back to the pool, where it may be taken until `stale_at` (on the loop's clock)."""
        self._checked_out = False
        self._stale_at = stale_at

    @property
    def stale_at(self) -> float:
        return self._stale_at

    @property
    def checked_out(self) -> bool:
        return self._checked_out

    @property
    def usable(self) -> bool:
        return not self._ended and self._loop.time() < self._stale_at

    def send(self, head: RequestHead, body: bytes, timeout_s: float, limit: int) -> asyncio.Future[RawReply]:
        """Hand the request over; the future gives its reply. Raises: NotSent, then the connection is closed."""
        if self._reader is not None or not self._checked_out:
            raise RuntimeError("A connection carries one exchange at a time, and only while it is checked out.")
        data = _request_bytes(head, body)
        out = self._socket
        if out is None or self._ended or out.is_closing() or not self._looks_alive():
            raise self._refuse("had closed the connection before the request was sent")
        if self._loop.time() >= self._stale_at:
            raise self._refuse("may have closed the connection, which was idle for too long to be trusted")
        empty = not out.get_write_buffer_size()
        out.write(data)
        if self._first_send_tells and empty and out.is_closing():
            raise self._refuse("had closed the connection: the first byte could not be sent")
        self._reader = ReplyReader(head.method, limit)
        self._waiter = self._loop.create_future()
        self._timer = self._loop.call_later(timeout_s, self._time_out, timeout_s)
        self._last = head.closes
        return self._waiter

    async def let_loop_read(self) -> None:
        """With TLS, pending bytes may be session tickets or the peer's farewell: only the loop can read which."""
        for _ in range(_LOOP_TURNS):
            if self._ended or not self._pending():
                return
            await asyncio.sleep(0)

    def abort(self) -> None:
        """Close at once, without sending what is still buffered."""
        self._ended = True
        if self._socket is not None:
            self._socket.abort()

    def give_up(self, waiter: "asyncio.Future[RawReply]") -> None:
        """The caller stopped waiting. If its reply is not there yet, the connection is of no use to anybody."""
        if self._waiter is waiter:
            self._finish()
            self.abort()

    def _looks_alive(self) -> bool:
        """No end and no bytes that nobody asked for. With TLS, bytes may be session tickets: see `let_loop_read`."""
        pending = self._pending()
        return pending is None or (self.secure and pending != b"")

    def _pending(self) -> bytes | None:
        """What the kernel holds: None = nothing, as it must be before a request; b"" = the peer's end; else a byte."""
        if self._peek is None:
            return b""
        try:
            return self._peek.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def _refuse(self, what: str) -> NotSent:
        self.abort()
        return NotSent(f"{self.origin} {what}.", cause="closed_before_sending")

    def _time_out(self, timeout_s: float) -> None:
        assert self._reader is not None
        self._fail(
            NoReply(
                f"{self.origin} gave no whole reply within {timeout_s:g} s.",
                cause="timeout",
                status_code=self._reader.status_code,
            )
        )

    def _succeed(self, reply: RawReply) -> None:
        assert self._reader is not None
        assert self._socket is not None
        keep_for_s = self._reader.keep_for_s
        waiter = self._finish()
        if keep_for_s is None or self._last or self._ended or self._socket.get_write_buffer_size():
            # Also when the reply overtook the request: the rest of it must not stand before the next one.
            self.abort()
        else:
            self._pool._take_back(self, keep_for_s)
        if not waiter.done():
            waiter.set_result(reply)

    def _fail(self, exc: NoReply) -> None:
        waiter = self._finish()
        self.abort()
        if not waiter.done():
            waiter.set_exception(exc)

    def _finish(self) -> "asyncio.Future[RawReply]":
        waiter, timer = self._waiter, self._timer
        assert waiter is not None
        assert timer is not None
        timer.cancel()
        self._reader = self._waiter = self._timer = None
        return waiter


# ------------------------------------------------------------------------------------------------ the transport


class Transport(httpx.AsyncBaseTransport):
    """A pool of kept-alive connections, most recently used first, for one event loop.

    The hot path: `acquire_idle` or `acquire`, then journal the intent, then `exchange`; or `release` if it comes
    to no exchange. The number of connections is the caller's concurrency; nothing here bounds it.
    `httpx.AsyncClient(transport=Transport())` works too; its timeouts then apply (connect, and read for the
    whole exchange).
    """

    def __init__(
        self,
        *,
        ssl_context: ssl.SSLContext | None = None,
        connect_timeout_s: float = 10.0,
        timeout_s: float = 60.0,
        idle_s: float = 4.0,
        max_reply_bytes: int = 1 << 20,
    ) -> None:
        """connect_timeout_s covers DNS, TCP and TLS together; timeout_s the whole exchange, however slow it drips.

        idle_s: 4, since many servers close after 5 (uvicorn, Node, Apache).
        ssl_context: default, the system's authorities. Raises: ValueError for one that verifies nothing.
        """
        if ssl_context is not None and (
            ssl_context.verify_mode is not ssl.CERT_REQUIRED or not ssl_context.check_hostname
        ):
            raise ValueError("The TLS context must verify the peer's certificate and its name.")
        self._ssl_context = ssl_context
        self._connect_timeout_s = connect_timeout_s
        self._timeout_s = timeout_s
        self._idle_s = idle_s
        self._max_reply_bytes = max_reply_bytes
        self._idle: dict[Origin, list[Connection]] = {}
        self._open: set[Connection] = set()
        self._reaper: asyncio.TimerHandle | None = None
        self._shut = False

    # -- for the hot path

    def acquire_idle(self, origin: Origin) -> Connection | None:
        """An idle connection that shows no sign of its end, or None. The caller owes it an `exchange` or `release`."""
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            if connection.check_out():
                return connection
        return None

    async def acquire(self, to: httpx.URL | Origin) -> Connection:
        """An idle connection, or a new one. Raises: NotSent."""
        origin = Origin.of(to) if isinstance(to, httpx.URL) else to
        return self.acquire_idle(origin) or await self._connect(origin, self._connect_timeout_s)

    async def exchange(
        self, connection: Connection, head: RequestHead, body: bytes, timeout_s: float | None = None
    ) -> RawReply:
        """One attempt: send, and read the reply. The connection returns to the pool or is closed, in every case.

        Raises: NotSent (the peer's end was seen before the first byte), NoReply.
        A cancelled exchange closes its connection; take it as sent.
        """
        if connection.secure:
            try:
                await connection.let_loop_read()
            except asyncio.CancelledError:
                connection.abort()
                raise
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        waiter = connection.send(head, body, limit_s, self._max_reply_bytes)
        try:
            return await waiter
        except asyncio.CancelledError:
            connection.give_up(waiter)
            raise

    def release(self, connection: Connection) -> None:
        """Give back a connection that carried nothing."""
        if not connection.checked_out:
            return
        now_s = asyncio.get_running_loop().time()
        self._keep(connection, min(connection.stale_at - _LATE_S, now_s + self._idle_s))

    # -- for httpx.AsyncClient

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        origin = Origin.of(request.url)
        headers = [
            (name, value)
            for name, value in request.headers.raw
            if name.lower() not in _FRAMING and name.lower() != b"accept-encoding"
        ]
        headers.append((b"accept-encoding", b"identity"))
        head = request_head(request.method, request.url.raw_path, headers)
        body = await request.aread()
        timeouts = request.extensions.get("timeout", {})
        connect_timeout_s = timeouts.get("connect") or self._connect_timeout_s
        connection = self.acquire_idle(origin) or await self._connect(origin, connect_timeout_s)
        reply = await self.exchange(connection, head, body, timeouts.get("read"))
        return httpx.Response(
            reply.status_code,
            headers=reply.headers,
            stream=httpx.ByteStream(reply.body),
            extensions={"http_version": b"HTTP/1.1"},
        )

    async def aclose(self) -> None:
        """Close every connection; exchanges under way end in NoReply."""
        self._shut = True
        if self._reaper is not None:
            self._reaper.cancel()
            self._reaper = None
        self._idle.clear()
        for connection in tuple(self._open):
            connection.abort()
        for _ in range(_LOOP_TURNS):  # asyncio closes the sockets on its next turns
            if not self._open:
                break
            await asyncio.sleep(0)

    # -- the pool

    async def _connect(self, origin: Origin, timeout_s: float) -> Connection:
        self._must_be_open()
        loop = asyncio.get_running_loop()
        secure = origin.scheme == "https"
        if secure and self._ssl_context is None:
            self._ssl_context = ssl.create_default_context()
            self._ssl_context.set_alpn_protocols(["http/1.1"])
        try:
            async with asyncio.timeout(timeout_s):
                _, connection = await loop.create_connection(
                    lambda: Connection(self, origin, loop),
                    origin.host,
                    origin.port,
                    ssl=self._ssl_context if secure else None,
                    server_hostname=origin.host if secure else None,
                    ssl_handshake_timeout=timeout_s + 1 if secure else None,  # so that ours is the one that rings
                    # Cancelled in the very moment of success, asyncio's race (3.11 to 3.13) leaves its socket to the
                    # garbage collector; without the race, a host with a dead IPv6 address would never be reached.
                    happy_eyeballs_delay=_EYEBALLS_S,
                )
        except TimeoutError as exc:
            raise NotSent(f"{origin} could not be reached within {timeout_s:g} s.", cause="connect_timeout") from exc
        except (OSError, UnicodeError) as exc:
            raise _not_connected(origin, exc, secure) from exc
        self._must_be_open()
        if not connection.usable:
            raise NotSent(f"{origin} closed the connection at once.", cause="closed_before_sending")
        try:
            connection.attach()
        except OSError as exc:
            connection.abort()
            raise _not_connected(origin, exc, secure=False) from exc
        return connection

    def _must_be_open(self) -> None:
        if self._shut:
            raise NotSent("The transport is closed.", cause="cancelled")

    def _opened(self, connection: Connection) -> None:
        self._open.add(connection)
        if self._shut:
            connection.abort()

    def _closed(self, connection: Connection) -> None:
        self._open.discard(connection)

    def _take_back(self, connection: Connection, announced_s: float) -> None:
        """After an exchange: keep the connection for as long as the peer announced, or for `idle_s`."""
        keep_for_s = self._idle_s
        if announced_s >= 0:
            keep_for_s = min(announced_s - _KEEP_ALIVE_MARGIN_S, _MAX_KEEP_ALIVE_S)
        self._keep(connection, asyncio.get_running_loop().time() + keep_for_s)

    def _keep(self, connection: Connection, stale_at: float) -> None:
        loop = asyncio.get_running_loop()
        if self._shut or stale_at <= loop.time():
            connection.abort()
            return
        connection.check_in(stale_at)
        self._idle.setdefault(connection.origin, []).append(connection)
        if self._reaper is None:
            self._reaper = loop.call_later(self._idle_s, self._reap)

    def _reap(self) -> None:
        """Close what nobody took in time; one timer for all, so that the hot path pays nothing for it."""
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        for origin, idle in tuple(self._idle.items()):
            kept = []
            for connection in idle:
                if connection.stale_at > now_s and connection.usable:
                    kept.append(connection)
                else:
                    connection.abort()
            self._idle[origin] = kept
        self._reaper = loop.call_later(self._idle_s, self._reap) if any(self._idle.values()) else None


def _not_connected(origin: Origin, exc: OSError | UnicodeError, secure: bool) -> NotSent:
    """Say in one word and one sentence why there is no connection."""
    if isinstance(exc, socket.gaierror | UnicodeError):
        return NotSent(f"The host name {origin.host!r} could not be resolved.", cause="dns")
    if isinstance(exc, ssl.SSLError):
        reason = getattr(exc, "verify_message", None) or exc.reason or "the handshake failed"
        return NotSent(f"{origin} offers no TLS that can be trusted: {reason}.", cause="tls")
    # Several addresses tried: asyncio keeps only the texts, "Multiple exceptions: [Errno 111] ..., [Errno 101] ..."
    numbers = {exc.errno} if exc.errno else {int(number) for number in re.findall(r"\[Errno (\d+)\]", str(exc))}
    if numbers == {errno.ECONNREFUSED}:
        return NotSent(f"{origin} refused the connection.", cause="refused")
    if numbers <= {errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED, errno.ENOTCONN}:
        if secure:
            return NotSent(f"{origin} ended the connection during the TLS handshake.", cause="tls")
        return NotSent(f"{origin} closed the connection at once.", cause="closed_before_sending")
    if numbers == {errno.ETIMEDOUT}:
        return NotSent(f"{origin} could not be reached in time.", cause="connect_timeout")
    names = ", ".join(sorted(errno.errorcode.get(number, str(number)) for number in numbers))
    return NotSent(f"{origin} could not be reached ({names or type(exc).__name__}).", cause="unreachable")
