"""HTTP/1.1 over our own sockets: one attempt on the wire per call, and a plain word on whether a byte left.

Never retries, never follows a redirect, never sends a request on a second connection, never decodes a body.

The two errors are the whole point. `NotSent`: not one byte of the request was handed to a socket, so sending it
again is safe. `NoReply`: at least one byte may have left and no whole reply came back, so only a person (or the
vendor) can tell whether it was applied. Where we cannot be certain, it is `NoReply`.

httpx sits on pools that may send a request again, or report the same error before and after the first byte, so
an exception's class proves nothing there. Built on asyncio protocols and not on streams: a future per exchange,
one timer, one write, no task.

Proxies. An https address is reached through a tunnel (CONNECT), and TLS inside it is with the address, never with the
proxy; a http address is asked for at the proxy with its target in full. What the two errors count is bytes of the
request handed to our own kernel, whoever holds the other end. So:

- Whatever fails up to and with TLS inside the tunnel is `NotSent`: CONNECT names the address and carries nothing else.
- From then on a tunnel is like any connection: a request that entered it has left, also if it never came out.
- At a forwarding proxy everything after the connection to it counts as handed over. Its own 502 or 504 is a reply
  like any other, and proves nothing about what it had passed on before.
- "closed_before_sending" may be trusted behind a proxy as well. It rests on what our kernel showed before the first
  write, or on its refusal of that write as a whole, and on no word of the peer: bytes that never left us cannot have
  been passed on.
"""

import asyncio
import errno
import re
import socket
import ssl
from typing import Literal, NamedTuple, Self

import httpx

from backfill.core.http1 import (
    FRAMING,
    BrokenReply,
    RawReply,
    ReplyReader,
    RequestHead,
    forwarded,
    request_bytes,
    request_head,
)
from backfill.core.proxy import Proxies, Proxy, refusal

NotSentCause = Literal[
    "dns",
    "refused",
    "unreachable",
    "tls",
    "untrusted",
    "connect_timeout",
    "proxy_refused",
    "proxy_credentials",
    "closed_before_sending",
    "cancelled",
]
NoReplyCause = Literal["closed", "reset", "timeout", "malformed", "too_large"]

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


_NO_COMMON_TLS = frozenset(
    (
        "NO_PROTOCOLS_AVAILABLE",
        "RECORD_LAYER_FAILURE",
        "TLSV1_ALERT_PROTOCOL_VERSION",
        "UNSUPPORTED_PROTOCOL",
        "WRONG_SSL_VERSION",
        "WRONG_VERSION_NUMBER",
    )
)
"""OpenSSL's reasons that say: this peer speaks no TLS, or none that is new enough."""


class NotSent(httpx.TransportError):
    """No byte of the request was handed to a socket. Sending it again is safe.

    cause: "dns", "refused", "unreachable" (or any other failure to open a socket), "tls", "untrusted" (no TLS that can
    be trusted, and there never was with this peer: no wait mends it), "connect_timeout", "proxy_refused" (no tunnel),
    "proxy_credentials" (none before they are mended), "closed_before_sending" (the peer's end was seen, or the kernel
    refused the first send), "cancelled" (the transport was closed).
    The message says what happened, where, and what to look at.
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


# ------------------------------------------------------------------------------------------------ connections


class Connection(asyncio.Protocol):
    """One connection, checked out of the pool for one exchange. Its methods are for `Transport` alone.

    Belongs to the pool, or to one caller, or to nobody any more; `Transport` hands it from one to the other.
    """

    __slots__ = (
        "_checked_out",
        "_ended",
        "_first_send_tells",
        "_forward",
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
        "peer",
    )

    def __init__(
        self, pool: "Transport", origin: Origin, loop: asyncio.AbstractEventLoop, proxy: Proxy | None = None
    ) -> None:
        """`proxy`: the one between us and `origin`, by tunnel or to pass on each request."""
        self.origin = origin
        self.peer = str(origin) if proxy is None else f"{origin} (through {proxy})"
        self._forward: tuple[bytes, str | None] | None = None
        if proxy is not None and not self.secure:
            self._forward = (f"{origin.scheme}://{origin}".encode("ascii"), proxy.authorization)
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
        except BrokenReply as error:
            self._fail(NoReply(f"{self.peer}: {error}.", cause=error.cause, status_code=error.status_code))
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
        except BrokenReply as error:
            self._fail(NoReply(f"{self.peer}: {error}.", cause=error.cause, status_code=error.status_code))
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
                    f"{self.peer} {'closed' if exc is None else 'reset'} the connection after the request was "
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
        # CPython 3.11 to 3.13: `write` on an empty buffer sends at once, and closes the transport within the call
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
        data = request_bytes(head if self._forward is None else forwarded(head, *self._forward), body)
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
        return NotSent(f"{self.peer} {what}.", cause="closed_before_sending")

    def _time_out(self, timeout_s: float) -> None:
        assert self._reader is not None
        self._fail(
            NoReply(
                f"{self.peer} gave no whole reply within {timeout_s:g} s.",
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
        proxies: Proxies | None = None,
    ) -> None:
        """connect_timeout_s covers DNS, TCP, a proxy's tunnel and TLS together; timeout_s the whole exchange, however
        slow it drips.

        idle_s: 4, since many servers close after 5 (uvicorn, Node, Apache). proxies: default, none.
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
        self._proxies = Proxies() if proxies is None else proxies
        self._idle: dict[Origin, list[Connection]] = {}
        self._trusted: set[Origin] = set()  # with whom TLS was agreed on once
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
            if name.lower() not in FRAMING and name.lower() != b"accept-encoding"
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
        opening = _Opening(self, origin, self._proxies.route(*origin), timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                connection = await opening.connection(self._tls() if origin.scheme == "https" else None)
        except TimeoutError as exc:
            raise opening.timed_out() from exc
        except (OSError, UnicodeError) as exc:
            raise opening.failed(exc) from exc
        if connection.secure:
            self._trusted.add(origin)
        self._must_be_open()
        if not connection.usable:
            raise NotSent(f"{connection.peer} closed the connection at once.", cause="closed_before_sending")
        try:
            connection.attach()
        except OSError as exc:
            connection.abort()
            raise opening.failed(exc) from exc
        return connection

    def _tls(self) -> ssl.SSLContext:
        if self._ssl_context is None:
            self._ssl_context = ssl.create_default_context()
            self._ssl_context.set_alpn_protocols(["http/1.1"])
        return self._ssl_context

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


# ------------------------------------------------------------------------------------------------ opening


class _Opening:
    """The way to a new connection, and a plain word on where it ended. One for each connection."""

    def __init__(self, pool: Transport, origin: Origin, proxy: Proxy | None, timeout_s: float) -> None:
        self._pool = pool
        self._origin = origin
        self._proxy = proxy
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._in_tls = False
        self._asking: Proxy | None = None  # while it owes us an answer to CONNECT

    async def connection(self, context: ssl.SSLContext | None) -> Connection:
        """`context`: for TLS with the origin. Raises: NotSent, OSError, UnicodeError."""
        if self._proxy is not None and context is not None:
            return await self._through_tunnel(self._proxy, context)
        host, port = self._origin[1:] if self._proxy is None else (self._proxy.host, self._proxy.port)
        self._in_tls = context is not None
        _, connection = await self._loop.create_connection(
            self._new,
            host,
            port,
            ssl=context,
            server_hostname=self._origin.host if context else None,
            ssl_handshake_timeout=self._timeout_s + 1 if context else None,  # so that ours is the one that rings
            # Cancelled in the very moment of success, asyncio's race (3.11 to 3.13) leaves its socket to the
            # garbage collector; without the race, a host with a dead IPv6 address would never be reached.
            happy_eyeballs_delay=_EYEBALLS_S,
        )
        return connection

    def _new(self) -> Connection:
        return Connection(self._pool, self._origin, self._loop, self._proxy)

    async def _through_tunnel(self, proxy: Proxy, context: ssl.SSLContext) -> Connection:
        raw, tunnel = await self._loop.create_connection(
            lambda: _Tunnel(proxy, self._origin, self._loop), proxy.host, proxy.port, happy_eyeballs_delay=_EYEBALLS_S
        )
        connection = self._new()
        try:
            self._asking = proxy
            await tunnel.answer
            self._asking = None
            self._in_tls = True
            secure = await self._loop.start_tls(
                raw,
                connection,
                context,
                server_hostname=self._origin.host,
                ssl_handshake_timeout=self._timeout_s + 1,
            )
        except BaseException:  # a cancellation too: nobody else knows of this socket; it goes on up
            raw.abort()
            raise
        assert secure is not None
        connection.connection_made(secure)
        return connection

    # -- what to say

    @property
    def _peer(self) -> str:
        """Who was being waited for."""
        if self._proxy is None:
            return str(self._origin)
        return f"{self._origin} (through {self._proxy})" if self._in_tls else self._proxy.subject

    @property
    def _look_at(self) -> str:
        if self._proxy is not None and not self._in_tls:
            return f"Check {self._proxy.variable} and the network; name the host in NO_PROXY if it needs no proxy."
        return "Check the address and the network; where only a proxy leads out, name it in HTTPS_PROXY."

    def timed_out(self) -> NotSent:
        what = f"{self._peer} could not be reached within {self._timeout_s:g} s."
        if self._asking is not None:
            what = f"{self._peer} opened no tunnel to {self._origin} within {self._timeout_s:g} s."
        return NotSent(f"{what} {self._look_at}", cause="connect_timeout")

    def failed(self, exc: OSError | UnicodeError) -> NotSent:
        """Say in one word and a few sentences why there is no connection."""
        if isinstance(exc, socket.gaierror | UnicodeError):
            host = self._origin.host if self._proxy is None else self._proxy.host
            return NotSent(f"The host name {host!r} could not be resolved. {self._look_at}", cause="dns")
        if isinstance(exc, ssl.SSLError):
            reason = getattr(exc, "verify_message", None) or (exc.reason or "the handshake failed").replace("_", " ")
            lasting = isinstance(exc, ssl.SSLCertVerificationError) or exc.reason in _NO_COMMON_TLS
            known = self._origin in self._pool._trusted  # then it may be one bad machine among several good ones
            return NotSent(
                f"{self._peer} offers no TLS that can be trusted: {reason.rstrip('.')}. Check the address, and name "
                "its authority in api.ca_bundle if this machine does not know it.",
                cause="untrusted" if lasting and not known else "tls",
            )
        # Several addresses tried: asyncio keeps only the texts, "Multiple exceptions: [Errno 111] ..., [Errno 101] ..."
        numbers = {exc.errno} if exc.errno else {int(number) for number in re.findall(r"\[Errno (\d+)\]", str(exc))}
        if numbers == {errno.ECONNREFUSED}:
            return NotSent(f"{self._peer} refused the connection. {self._look_at}", cause="refused")
        if numbers <= {errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED, errno.ENOTCONN}:
            if self._in_tls:
                return NotSent(
                    f"{self._peer} ended the connection during the TLS handshake. {self._look_at}", cause="tls"
                )
            return NotSent(f"{self._peer} closed the connection at once.", cause="closed_before_sending")
        if numbers == {errno.ETIMEDOUT}:
            return NotSent(f"{self._peer} could not be reached in time. {self._look_at}", cause="connect_timeout")
        names = ", ".join(sorted(errno.errorcode.get(number, str(number)) for number in numbers))
        return NotSent(
            f"{self._peer} could not be reached ({names or type(exc).__name__}). {self._look_at}", cause="unreachable"
        )


class _Tunnel(asyncio.Protocol):
    """Asks a proxy for a tunnel. `answer` is done once there is one. Raises: NotSent, through `answer`."""

    def __init__(self, proxy: Proxy, origin: Origin, loop: asyncio.AbstractEventLoop) -> None:
        self._proxy = proxy
        self._authority = str(origin)
        self._reader = ReplyReader(b"CONNECT", 0)  # a page that comes with a refusal is not read
        self.answer: asyncio.Future[None] = loop.create_future()
        # Nobody may be left to hear a refusal; asyncio would then report it as a forgotten error.
        self.answer.add_done_callback(lambda answer: answer.cancelled() or answer.exception())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        headers = [("host", self._authority)]
        if self._proxy.authorization is not None:
            headers.append(("proxy-authorization", self._proxy.authorization))
        transport.write(request_head("CONNECT", self._authority, headers).prefix + b"\r\n")

    def data_received(self, data: bytes) -> None:
        if self.answer.done():
            return
        broken = False
        try:
            self._reader.feed(data)
        except BrokenReply:
            broken = True
        status = self._reader.status_code
        if status is not None and not 200 <= status < 300:
            cause, message = refusal(self._proxy, self._authority, status)
            self.answer.set_exception(NotSent(message, cause=cause))
        elif broken or (status is not None and self._reader.beyond):
            self._no("answered with something else than HTTP")
        elif status is not None:
            self.answer.set_result(None)

    def eof_received(self) -> None:
        self._no("ended the connection")

    def connection_lost(self, exc: Exception | None) -> None:
        self._no("ended the connection")

    def _no(self, what: str) -> None:
        if not self.answer.done():
            self.answer.set_exception(
                NotSent(
                    f"{self._proxy.subject} {what} when asked for a tunnel to {self._authority}. Check "
                    f"{self._proxy.variable}: is there an HTTP proxy?",
                    cause="proxy_refused",
                )
            )
