"""One call of the API by hand: at most one token is asked for, one attempt is made, and the reply is told.

Belongs to no job: nothing is journaled, so nothing here remembers what was sent, and nothing is ever sent again.
"""

import asyncio
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime

import httpx

from backfill.adapters import transport as http
from backfill.adapters.interaction_api import Credentials, InteractionApi
from backfill.core import answer, reply
from backfill.core.answer import Answer
from backfill.core.calls import CALLS
from backfill.core.config import RunConfig
from backfill.core.errors import ExitCode
from backfill.core.events import TokenFailed, TokenRefused
from backfill.core.http1 import RawReply, RequestHead, request_head
from backfill.core.interaction import Request
from backfill.core.limits import MAX_REPLY_BYTES
from backfill.core.proxy import Proxies
from backfill.core.stop import Stop
from backfill.deliver import tls_context


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What shall be sent, and whereto; `connect_to` and `proxies` as in `run.Order`."""

    request: Request
    config: RunConfig
    credentials: Credentials
    connect_to: str | None = None
    proxies: Proxies = field(default_factory=Proxies)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What came of it. `name` stands in the call's User-Agent; `sent_at` is None if no byte of it left."""

    answer: Answer
    name: str
    sent_at: datetime | None
    duration_s: float


def send(order: Order, *, stop: Stop) -> Sent:
    """Make the call, once.

    A stop before the first byte ends it; a later one leaves the reply `delivery.shutdown_grace_s` to come, a second
    stop none. Raises: ConfigurationError where credentials, proxy or CA bundle cannot be used.
    """
    order.credentials.require()
    order.proxies.require(order.connect_to or order.config.api.base_url, order.config.api.token_url)
    began_s = time.monotonic()
    sending = _Sending(order, stop)
    made = asyncio.run(sending.run())
    return Sent(answer=made, name=sending.name, sent_at=sending.sent_at, duration_s=time.monotonic() - began_s)


class _Sending:
    def __init__(self, order: Order, stop: Stop) -> None:
        self._order = order
        self._stop = stop
        self._config = order.config
        self.name = uuid.uuid4().hex[:12]
        self.sent_at: datetime | None = None

    async def run(self) -> Answer:
        self._loop = asyncio.get_running_loop()
        self._work = asyncio.ensure_future(self._go())
        self._stop.tell(self._told_to_stop)
        if self._stop.requested:
            self._stopped()
        try:
            return await self._work
        except asyncio.CancelledError:
            return answer.without_token(ExitCode.STOPPED_EARLY, "Stopped by a signal before anything was sent.")
        finally:
            self._stop.tell(None)

    def _told_to_stop(self) -> None:
        """Called from a signal handler."""
        self._loop.call_soon_threadsafe(self._stopped)

    def _stopped(self) -> None:
        at_once = self.sent_at is None or self._stop.requests > 1
        self._loop.call_later(0 if at_once else self._config.delivery.shutdown_grace_s, self._work.cancel)

    async def _go(self) -> Answer:
        config, request = self._config.api, self._order.request
        url = httpx.URL(self._order.connect_to or config.base_url)
        async with self._transport() as transport:
            timeout = httpx.Timeout(config.timeout_s, connect=config.connect_timeout_s)
            api = InteractionApi(
                # Not entered: it would close the transport, which is ours.
                client=httpx.AsyncClient(transport=transport, timeout=timeout, trust_env=False),
                base_url=url,
                site_key=config.site_key,
                call=CALLS[request.call],
                token_url=config.token_url,
                credentials=self._order.credentials,
            )
            match await api.refresh_token():
                case TokenRefused(code, reason):
                    return answer.without_token(code, reason)
                case TokenFailed(reason):
                    return answer.without_token(ExitCode.STOPPED_EARLY, f"No token: {reason.rstrip('.')}.")
        head = request_head(*api.address_by_hand(name=self.name, tid=request.tid))
        # A new transport, so a new connection: the token's may have been closed by now, and nothing is tried twice.
        async with self._transport() as transport:
            return await self._attempt(transport, http.Origin.of(url), head, api)

    def _transport(self) -> http.Transport:
        config = self._config.api
        return http.Transport(
            ssl_context=tls_context(self._config),
            connect_timeout_s=config.connect_timeout_s,
            timeout_s=config.timeout_s,
            max_reply_bytes=MAX_REPLY_BYTES,
            proxies=self._order.proxies,
        )

    async def _attempt(
        self, transport: http.Transport, origin: http.Origin, head: RequestHead, api: InteractionApi
    ) -> Answer:
        try:
            connection = await transport.acquire(origin)
            self.sent_at = datetime.now(UTC)
            raw = await transport.exchange(connection, head, self._order.request.body)
        except http.NotSent as error:
            self.sent_at = None
            return answer.without_connection(error.cause, str(error))
        except http.NoReply as error:
            return answer.without_reply(str(error), error.status_code)
        except asyncio.CancelledError:
            if self.sent_at is None:
                raise
            return answer.without_reply("a signal ended the wait for it.")
        return self._read(raw, api)

    def _read(self, raw: RawReply, api: InteractionApi) -> Answer:
        request = self._order.request
        verdict = reply.read(
            raw.status_code,
            {name.decode("latin-1"): value.decode("latin-1") for name, value in raw.headers},
            raw.body,
            interactions=request.interactions,
            wire=self._config.wire,
            unapplied_statuses=self._config.delivery.unapplied_statuses,
            now=datetime.now(UTC),
        )
        known = reply.discreet(verdict, sent=request.body, tid=request.tid, secrets=api.secrets)
        return answer.of_reply(known, raw.status_code, answer.returned(raw.body, secrets=api.secrets))
