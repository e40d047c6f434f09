"""Delivers one load: carries out what `core.dispatch` decides, and tells it what came of it.

The only loop that sends. It chooses nothing: which request starts, when, and what follows from a reply is the
dispatch's word. What must never happen here: a byte of a request on a socket before its intent is durable.
"""

import asyncio
import contextlib
import random
import ssl
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

import httpx

from backfill.adapters import transport as http
from backfill.adapters.interaction_api import Credentials, InteractionApi
from backfill.adapters.journal import Journal
from backfill.backlog import Backlog, Body
from backfill.core import events as d
from backfill.core import reply
from backfill.core.budget import Hours, calls_per_second
from backfill.core.calls import CALLS
from backfill.core.config import RunConfig
from backfill.core.dispatch import Dispatch
from backfill.core.errors import ConfigurationError, ExitCode, StorageError
from backfill.core.http1 import request_head
from backfill.core.lifecycle import Move, Part, Recorded
from backfill.core.limits import MAX_REPLY_BYTES
from backfill.core.proxy import Proxies
from backfill.core.stop import Stop as Stop
from backfill.core.summary import Progress

REPORT_EVERY_S = 0.5
"""Often enough for a bar that moves, rarely enough to cost nothing."""


class Delivered(NamedTuple):
    """What came of delivering: why it stopped early (None: it did not), what it cost, and how many interactions were
    let through a limit."""

    stopped: d.Stopped | None
    calls: int
    interactions: int


def deliver(
    *,
    load: int,
    backlog: Backlog,
    rows: int,
    rows_done: int,
    journal: Journal,
    config: RunConfig,
    base_url: str,
    credentials: Credentials,
    proven: bool,
    allowed: Callable[[float], Hours],
    limit: int | None,
    report: Callable[[Progress], None],
    stop: Stop,
    proxies: Proxies,
) -> Delivered:
    """Send what is left of a load to `base_url`, as `proxies` lead there.

    `rows`, `rows_done`: interactions of the load, and how many of them are settled already. `proven`, `limit`: as the
    dispatch has them. `allowed` gives the hours on a monotonic clock that shows so many seconds now.

    Raises: StorageError where journal or staging fail; nothing is sent after that.
    """

    async def run() -> Delivered:
        context = tls_context(config)
        async with http.Transport(
            ssl_context=context,
            connect_timeout_s=config.api.connect_timeout_s,
            timeout_s=config.api.timeout_s,
            max_reply_bytes=MAX_REPLY_BYTES,
            proxies=proxies,
        ) as transport:
            timeout = httpx.Timeout(config.api.timeout_s, connect=config.api.connect_timeout_s)
            # The client is not entered: it would close the transport, which is ours.
            client = httpx.AsyncClient(transport=transport, timeout=timeout, trust_env=False)
            url = httpx.URL(base_url)
            api = InteractionApi(
                client=client,
                base_url=url,
                site_key=config.api.site_key,
                call=CALLS[config.api.call],
                token_url=config.api.token_url,
                credentials=credentials,
            )
            loop = asyncio.get_running_loop()
            delivery = _Delivery(
                load=load,
                dispatch=Dispatch(
                    load=load,
                    budget=config.budget,
                    delivery=config.delivery,
                    jitter=random.random,
                    not_before_s=loop.time() + _rest_of_second_s(journal.last_move_ms()),
                    proven=proven,
                    hours=allowed(loop.time()),
                    limit=limit,
                ),
                backlog=backlog,
                journal=journal,
                api=api,
                transport=transport,
                origin=http.Origin.of(url),
                config=config,
                progress=_Tally(rows_total=rows, rows_done=rows_done),
                report=report,
                stop=stop,
            )
            return await delivery.run()

    return asyncio.run(run())


def tls_context(config: RunConfig) -> ssl.SSLContext | None:
    """Who is trusted beside the system's authorities; None: nobody. Raises: ConfigurationError."""
    if config.api.ca_bundle is None:
        return None
    try:
        return ssl.create_default_context(cafile=config.api.ca_bundle)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"api.ca_bundle {config.api.ca_bundle} cannot be used ({error}). Name a PEM file of certificates."
        ) from error


def _rest_of_second_s(last_move_ms: int | None) -> float:
    """How long until any start before this one is a second ago. A clock that was set back waits a second at most."""
    if last_move_ms is None:
        return 0.0
    return min(1.0, max(0.0, 1.0 - (time.time() - last_move_ms / 1000)))


@dataclass(slots=True)
class _Tally:
    """What the progress line shows."""

    rows_total: int
    rows_done: int
    in_doubt: int = 0
    rejected: int = 0

    def count(self, move: Move, interactions: int) -> None:
        match move:
            case Move.ACKNOWLEDGED:
                self.rows_done += interactions
            case Move.UNCLEAR:
                self.rows_done += interactions
                self.in_doubt += interactions
            case Move.REFUSED | Move.BELIEVED:
                self.rows_done += interactions
                self.rejected += interactions
            case Move.DECIDED_RESEND:
                self.rows_done -= interactions
                self.in_doubt -= interactions


class _Delivery:
    def __init__(
        self,
        *,
        load: int,
        dispatch: Dispatch,
        backlog: Backlog,
        journal: Journal,
        api: InteractionApi,
        transport: http.Transport,
        origin: http.Origin,
        config: RunConfig,
        progress: _Tally,
        report: Callable[[Progress], None],
        stop: Stop,
    ) -> None:
        self._load = load
        self._dispatch = dispatch
        self._backlog = backlog
        self._journal = journal
        self._api = api
        self._transport = transport
        self._origin = origin
        self._config = config
        self._tally = progress
        self._report = report
        self._stop = stop
        self._loop = asyncio.get_running_loop()
        self._events: deque[d.Event] = deque()
        self._handling = False
        self._moves: list[Recorded] = []
        self._uncommitted = 0
        self._bodies: dict[Part, Body] = {}
        self._connections: dict[Part, http.Connection] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._connecting: dict[Part, asyncio.Task[None]] = {}
        self._sending: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._wake_s = float("inf")
        self._done = asyncio.Event()
        self._failure: BaseException | None = None
        self._damage: StorageError | None = None

    async def run(self) -> Delivered:
        self._loop.set_exception_handler(
            lambda _, context: self._fail(context.get("exception") or RuntimeError(context["message"]))
        )
        self._stop.tell(self._told_to_stop)
        self._spawn(self._report_now_and_then())
        try:
            if self._stop.requested:
                self._signalled()
            self._take(d.Tick())
            await self._done.wait()
        finally:
            self._stop.tell(None)
            if self._timer is not None:
                self._timer.cancel()
            for task in self._tasks:
                task.cancel()
            # Cancelled attempts must close their connections before the loop ends; what they say is not news any more.
            await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._failure is not None:
            raise self._failure
        if self._damage is not None:
            raise self._damage
        self._report(self._progress(None))
        return Delivered(self._dispatch.stopped, self._dispatch.sent, self._dispatch.admitted)

    # Events in, commands out

    def _take(self, event: d.Event) -> None:
        """Hand an event to the dispatch and carry out what it says; events that arise from that follow in order."""
        self._events.append(event)
        if self._handling or self._failure is not None:
            return
        self._handling = True
        try:
            while self._events:
                for command in self._dispatch.handle(self._events.popleft(), self._loop.time()):
                    self._carry_out(command)
        finally:
            self._handling = False
        self._look_ahead()

    def _look_ahead(self) -> None:
        if self._dispatch.idle and not self._uncommitted and not self._moves:
            self._done.set()
            return
        wake_s = self._dispatch.wake_at_s
        if wake_s != self._wake_s or self._timer is None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._wake_s = wake_s
            if wake_s != float("inf"):
                self._timer = self._loop.call_at(wake_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._take(d.Tick())

    def _carry_out(self, command: d.Command) -> None:
        match command:
            case d.Connect(part):
                self._connect(part)
            case d.Commit(moves):
                if not self._moves:
                    self._loop.call_soon(self._commit)
                self._moves += moves
                for move in moves:
                    self._tally.count(move.move, move.part.interactions)
            case d.Send(part, attempt):
                self._sending.add(self._spawn(self._attempt(part, attempt)))
            case d.Release(part):
                self._release(part)
            case d.Fetch(lane):
                self._spawn(self._fetch(lane))
            case d.RefreshToken():
                self._spawn(self._refresh_token())

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._sending.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """The journal is gone, or this is a bug: nothing can be promised any more."""
        self._failure = self._failure or error
        self._done.set()

    def _staging_failed(self, error: StorageError) -> None:
        """Nothing new can be sent, but what is in the air is waited for: the journal can take its answers."""
        self._damage = self._damage or error
        self._take(d.StopRequested(error.exit_code, error.message))
        self._loop.call_later(self._config.delivery.shutdown_grace_s, self._give_up_waiting)

    # The commands

    def _connect(self, part: Part) -> None:
        body = self._backlog.cached_body(part)
        connection = self._transport.acquire_idle(self._origin) if body is not None else None
        if body is not None and connection is not None:
            self._bodies[part] = body
            self._connections[part] = connection
            self._events.append(d.Connected(part))
        else:
            self._connecting[part] = self._spawn(self._open(part, body))

    async def _open(self, part: Part, body: Body | None) -> None:
        try:
            self._bodies[part] = await asyncio.to_thread(self._backlog.body, part) if body is None else body
            self._connections[part] = await self._transport.acquire(self._origin)
        except http.NotSent as error:
            self._bodies.pop(part, None)
            self._take(d.NotSent(part, error.cause, str(error)))
        except StorageError as error:
            self._staging_failed(error)
        else:
            self._take(d.Connected(part))
        finally:
            if self._connecting.get(part) is asyncio.current_task():  # not the next try's, begun by the event above
                del self._connecting[part]

    def _release(self, part: Part) -> None:
        self._bodies.pop(part, None)
        connecting = self._connecting.pop(part, None)
        if connecting is not None:
            connecting.cancel()
        connection = self._connections.pop(part, None)
        if connection is not None:
            self._transport.release(connection)

    def _commit(self) -> None:
        moves, self._moves = self._moves, []
        intents = [move.part for move in moves if move.move is Move.INTENT]
        self._uncommitted += 1

        def on_durable(error: StorageError | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the execution ended on an error before
                self._loop.call_soon_threadsafe(self._durable, intents, error)

        self._journal.commit(moves, time.time_ns() // 1_000_000, on_durable)

    def _durable(self, intents: list[Part], error: StorageError | None) -> None:
        self._uncommitted -= 1
        if error is not None:
            self._fail(error)
        elif intents:
            self._take(d.Committed(intents))
        else:
            self._look_ahead()

    async def _attempt(self, part: Part, attempt: int) -> None:
        body, connection = self._bodies.pop(part), self._connections.pop(part)
        address = self._api.address(load=self._load, part=part, attempt=attempt, tid=body.tid)
        head = request_head(*address)
        try:
            raw = await self._transport.exchange(connection, head, body.content)
        except http.NotSent as error:
            self._take(d.NotSent(part, error.cause, str(error)))
        except http.NoReply as error:
            self._take(d.Unanswered(part, f"no whole reply: {error.cause}", error.status_code))
        except asyncio.CancelledError:
            self._take(d.Unanswered(part, "no reply awaited any longer: stopped", None))
            raise
        else:
            verdict = reply.read(
                raw.status_code,
                {name.decode("latin-1"): value.decode("latin-1") for name, value in raw.headers},
                raw.body,
                interactions=part.interactions,
                wire=self._config.wire,
                unapplied_statuses=self._config.delivery.unapplied_statuses,
                now=datetime.now(UTC),
            )
            known = reply.discreet(verdict, sent=body.content, tid=body.tid, secrets=self._api.secrets)
            self._take(d.Replied(part, known))

    async def _fetch(self, lane: int | None) -> None:
        try:
            self._take(await asyncio.to_thread(self._backlog.fetch, lane))
        except StorageError as error:
            self._staging_failed(error)
            self._take(d.Fetched(lane, [], frozenset(), exhausted=True))

    async def _refresh_token(self) -> None:
        self._take(await self._api.refresh_token())

    # Stopping and telling

    def _told_to_stop(self) -> None:
        """Called from a signal handler."""
        self._loop.call_soon_threadsafe(self._signalled)

    def _signalled(self) -> None:
        # Both signals may have come before this is called, so the dispatch is told in any case.
        self._take(d.StopRequested(ExitCode.STOPPED_EARLY, "Stopped by a signal."))
        # Not in this turn of the loop: an attempt cancelled before its first step never says what became of it.
        grace_s = 0.0 if self._stop.requests > 1 else self._config.delivery.shutdown_grace_s
        self._loop.call_later(grace_s, self._give_up_waiting)

    def _give_up_waiting(self) -> None:
        """The grace is over: whoever has not answered by now leaves its request in doubt."""
        for task in self._sending:
            task.cancel()

    async def _report_now_and_then(self) -> None:
        calls = self._dispatch.sent
        at_s = self._loop.time()
        budget = self._config.budget
        single = not CALLS[self._config.api.call].many
        most_per_second = calls_per_second(
            requests_per_second=budget.requests_per_second,
            # How many are in a call of many differs from call to call; that share is of its requests.
            interactions_per_second=budget.interactions_per_second if single else None,
            interactions_per_call=1,
        )
        while True:
            await asyncio.sleep(REPORT_EVERY_S)
            now_s = self._loop.time()
            pace = (self._dispatch.sent - calls) / (now_s - at_s)
            calls, at_s = self._dispatch.sent, now_s
            self._report(self._progress(pace / most_per_second))

    def _progress(self, budget_share: float | None) -> Progress:
        return Progress(
            phase="delivering",
            rows_done=self._tally.rows_done,
            rows_total=self._tally.rows_total,
            requests=self._dispatch.sent,
            in_doubt=self._tally.in_doubt,
            rejected=self._tally.rejected,
            budget_share=budget_share,
        )
