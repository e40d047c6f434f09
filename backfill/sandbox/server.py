"""The sandbox as a process: binds loopback, says where it listens, ends when it is told to.

Listens on 127.0.0.1 only. Never runs inside the process of a client: a client that dies must not take the truth
about what was applied with it.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import uvicorn

from backfill.sandbox.app import Sandbox
from backfill.sandbox.connection import Connection
from backfill.sandbox.log import Log
from backfill.sandbox.misbehaviour import Misbehaviour, parse_all
from backfill.sandbox.tokens import Tokens
from backfill.sandbox.wire import parse as parse_wire

HOST = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a sandbox behaves. What is None is not checked, or does not end."""

    log: Path
    """The folder of `applied.jsonl` and `requests.jsonl`; made if it is missing, appended to if not."""
    port: int = 0
    """0 takes a free one."""
    site_key: str | None = None
    client_id: str | None = None
    client_secret: str | None = None
    token: str | None = None
    """A bearer token that is good without having been asked for."""
    token_lifetime_s: float = 3600.0
    token_uses: int | None = None
    """After so many calls a token is refused, whatever was said about its life."""
    misbehave: tuple[str, ...] = ()
    """Rules; the grammar stands in `backfill.sandbox.misbehaviour`."""
    wire: tuple[str, ...] = ()
    """The form that is demanded; the words stand in `backfill.sandbox.wire`."""
    seed: int = 0
    keep_alive_s: int = 5
    """An idle connection is closed after so long."""
    json: bool = False
    """Say where it listens as one JSON object instead of a sentence."""
    exit_with_parent: bool = False
    """End when standard input ends, so that a killed parent leaves no orphan."""


def serve(settings: Settings) -> None:
    """Serves until SIGTERM, SIGINT or (`exit_with_parent`) the end of standard input.

    Prints one line on stdout once it listens: `{"base_url": "http://127.0.0.1:PORT", "pid": ..., "log": "..."}`.
    Raises: ValueError for a rule or a form that cannot be used; OSError where the port is taken or the folder not
    writable.
    """
    misbehaviour = Misbehaviour(parse_all(settings.misbehave), seed=settings.seed)
    wire = parse_wire(settings.wire)
    with _listening_on(settings.port) as sock, Log(settings.log) as log:
        app = Sandbox(
            site_key=settings.site_key,
            tokens=Tokens(
                client_id=settings.client_id,
                client_secret=settings.client_secret,
                given=settings.token,
                lifetime_s=settings.token_lifetime_s,
                uses=settings.token_uses,
            ),
            misbehaviour=misbehaviour,
            log=log,
            wire=wire,
        )
        config = uvicorn.Config(
            cast("Any", app),
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=settings.keep_alive_s,
            # What is being held when the end comes is cut off, not waited for.
            timeout_graceful_shutdown=0,
        )
        server = _Server(config)
        base_url = f"http://{HOST}:{sock.getsockname()[1]}"
        server.announcement = (
            json.dumps({"base_url": base_url, "pid": os.getpid(), "log": str(settings.log)})
            if settings.json
            else f"The sandbox listens on {base_url} and remembers what it applies in {settings.log}. Ctrl-C ends it."
        )
        if settings.exit_with_parent:
            threading.Thread(target=_end_with_stdin, args=(server,), daemon=True).start()
        server.run(sockets=[sock])


class _Server(uvicorn.Server):
    """uvicorn's server, which says that it listens, and ends quietly on a signal instead of raising it again."""

    announcement = ""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        sys.stdout.write(self.announcement + "\n")
        sys.stdout.flush()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        def stop(*_: object) -> None:
            self.should_exit = True

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _end_with_stdin(server: uvicorn.Server) -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    server.should_exit = True


def _listening_on(port: int) -> socket.socket:
    # The protocol is named because asyncio turns Nagle's delay off only where it is; head and body of a reply are two
    # writes, and the second would wait 40 ms for the client's delayed acknowledgement of the first.
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    # A sandbox started again must not wait for the connections of the last one to be forgotten.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((HOST, port))
    except OSError as error:
        sock.close()
        raise OSError(
            error.errno,
            f"Port {port} on {HOST} cannot be used ({error.strerror}). Choose another --port, or 0 for a free one.",
        ) from None
    return sock
