"""A sandbox that kills its client at a chosen instant: it has the head of a request, its body, has applied it, replied.

    python -m tests.instants ORDER sandbox --json ...     the sandbox's command line; kills whom the file ORDER names

The sandbox itself sends the SIGKILL, in the very call in which the instant comes, so nobody has to poll for it and be
late. After the kill it goes on as it would have: what a dead client has sent may still be applied. The other side is
`Order`. Nothing here changes what the sandbox answers, applies or logs.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from backfill.sandbox import server
from backfill.sandbox.app import TOKEN_PATH, Sandbox
from backfill.sandbox.connection import Connection
from backfill.sandbox.log import Received

Instant = Literal["head", "body", "applied", "replied"]


@dataclass(frozen=True, kw_only=True)
class Order:
    """Kill this process when the sandbox has seen `nth` such instants since the order was given."""

    pid: int
    instant: Instant
    nth: int = 1
    delay_s: float = 0.0
    """Not at the instant, but so long after it."""
    cut: bool = False
    """With `head`: what follows the head never arrives, as when the machine is gone and not only the process."""

    def give(self, path: Path) -> None:
        """Whole or not at all; must be taken back (`path` removed) before the process is reaped."""
        new = path.with_suffix(".new")
        new.write_text(json.dumps(asdict(self)))
        new.rename(path)


class _Executioner:
    """Carries out the order that stands in a file, once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: Order | None = None
        self._seen = 0

    def came(self, instant: Instant) -> Order | None:
        """Called at each instant; the order if it was this one's turn."""
        order = self._order()
        if order is None or order.instant != instant:
            return None
        if order != self._known:
            self._known, self._seen = order, 0
        self._seen += 1
        if self._seen != order.nth:
            return None
        if order.delay_s:
            asyncio.get_running_loop().call_later(order.delay_s, self._kill, order)
        else:
            self._kill(order)
        return order

    def _kill(self, order: Order) -> None:
        if order.delay_s and self._order() != order:
            return  # it ended meanwhile; its number may be another's by now
        os.kill(order.pid, signal.SIGKILL)

    def _order(self) -> Order | None:
        try:
            return Order(**json.loads(self._path.read_text()))
        except FileNotFoundError:
            return None


def watch(path: Path) -> None:
    """From now on the sandbox of this process carries out the orders in this file."""
    executioner = _Executioner(path)

    class WatchedConnection(Connection):
        def data_received(self, data: bytes) -> None:
            # The client waits for each reply, so bytes that begin like a call begin one; its body is JSON.
            order = executioner.came("head") if data.startswith(b"PUT ") else None
            if order is None or not order.cut:
                super().data_received(data)
                return
            end = data.find(b"\r\n\r\n") + 4
            assert end >= 4, "the client wrote its head in pieces"
            super().data_received(data[:end])
            self.transport.abort()

    class WatchedSandbox(Sandbox):
        async def __call__(
            self,
            scope: dict[str, Any],
            receive: Callable[[], Awaitable[dict[str, Any]]],
            send: Callable[[dict[str, Any]], Awaitable[None]],
        ) -> None:
            await super().__call__(scope, receive, send)
            if scope["path"] != TOKEN_PATH:
                executioner.came("replied")

        def _checked(self, request: Received, headers: Mapping[bytes, bytes], query: bytes, body: bytes) -> Any:
            outcome = super()._checked(request, headers, query, body)
            executioner.came("body")
            return outcome

        def _apply(self, request: Received, work: Any) -> None:
            super()._apply(request, work)
            executioner.came("applied")

    server.Connection = WatchedConnection  # type: ignore[attr-defined]
    server.Sandbox = WatchedSandbox  # type: ignore[attr-defined]


if __name__ == "__main__":
    from backfill.cli import main

    watch(Path(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
