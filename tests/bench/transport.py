"""How many requests a second does our transport carry, beside httpx.AsyncClient with its own?

One server process, both clients in turn against it, several rounds each; the best round of each counts, since
the other rounds met a neighbour. Bodies and replies are as in delivery: 30 KB up, some 60 bytes down.
"""

import argparse
import asyncio
import re
import resource
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import httpx

from backfill.adapters.transport import Origin, Transport
from backfill.core.http1 import request_head

_TARGET = "/one/oauth2/rest/v2/interactions/offline?sk=bench"
_REPLY_BODY = b'{"statusCode":200,"tid":"2f0b7e3c-0f5e-4f0f-9f0e-1d6f5f4c1a77"}'
_REPLY = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
    len(_REPLY_BODY),
    _REPLY_BODY,
)
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)


class _Sink(asyncio.Protocol):
    """Reads a request, counts its body down, answers, and so on: as little as a server can do."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.head = b""
        self.missing = -1

    def data_received(self, data: bytes) -> None:
        if self.missing < 0:
            data = self.head + data
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self.head = data
                return
            found = _LENGTH.search(data, 0, end)
            self.missing = (int(found[1]) if found else 0) + end + 4
        self.missing -= len(data)
        if self.missing == 0:
            self.head, self.missing = b"", -1
            self.transport.write(_REPLY)


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(_Sink, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


class Round(NamedTuple):
    """requests_s: requests per second; core_us: µs of this process's CPU per request."""

    requests_s: float
    core_us: float


async def _drive(one: Callable[[], Awaitable[int]], connections: int, seconds: float) -> Round:
    """`connections` callers, each one request after another."""
    done = 0

    async def caller() -> None:
        nonlocal done
        while time.perf_counter() < until:
            status = await one()
            if status != 200:
                raise RuntimeError(f"status {status}")
            done += 1

    until = time.perf_counter() + 0.3
    await asyncio.gather(*(caller() for _ in range(connections)))  # opens the connections
    done = 0
    started, cpu = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    until = started + seconds
    await asyncio.gather(*(caller() for _ in range(connections)))
    took, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    busy = after.ru_utime + after.ru_stime - cpu.ru_utime - cpu.ru_stime
    return Round(done / took, busy / done * 1e6)


async def _ours(base: str, body: bytes, connections: int, seconds: float) -> Round:
    transport = Transport()
    origin = Origin.of(httpx.URL(base))
    head = request_head("PUT", _TARGET, [("host", str(origin)), ("content-type", "application/json")])

    async def one() -> int:
        connection = transport.acquire_idle(origin) or await transport.acquire(origin)
        return (await transport.exchange(connection, head, body)).status_code

    try:
        return await _drive(one, connections, seconds)
    finally:
        await transport.aclose()


async def _client(client: httpx.AsyncClient, body: bytes, connections: int, seconds: float) -> Round:
    async def one() -> int:
        reply = await client.put(_TARGET, content=body, headers={"content-type": "application/json"})
        return reply.status_code

    async with client:
        return await _drive(one, connections, seconds)


async def _httpx(base: str, body: bytes, connections: int, seconds: float) -> Round:
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    return await _client(httpx.AsyncClient(base_url=base, limits=limits, trust_env=False), body, connections, seconds)


async def _ours_in_httpx(base: str, body: bytes, connections: int, seconds: float) -> Round:
    return await _client(httpx.AsyncClient(base_url=base, transport=Transport()), body, connections, seconds)


_CLIENTS = {"httpx": _httpx, "ours": _ours, "ours in AsyncClient": _ours_in_httpx}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench transport", description=__doc__)
    parser.add_argument("--connections", type=int, nargs="+", default=[16, 128])
    parser.add_argument("--seconds", type=float, default=2.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--body-bytes", type=int, default=30_000)
    arguments = parser.parse_args(argv)
    body = b"x" * arguments.body_bytes
    with subprocess.Popen(
        [sys.executable, "-c", "import asyncio, tests.bench.transport as t; asyncio.run(t._serve())"],
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            base = f"http://127.0.0.1:{int(server.stdout.readline())}"
            print(f"{arguments.body_bytes:,} bytes a request, best of {arguments.rounds} rounds")
            print(f"{'connections':>11}  {'client':<20} {'requests/s':>10} {'µs of CPU':>10} {'ratio':>6}")
            for connections in arguments.connections:
                best: dict[str, Round] = {}
                for _ in range(arguments.rounds):
                    for name, client in _CLIENTS.items():
                        measured = asyncio.run(client(base, body, connections, arguments.seconds))
                        best[name] = max(best.get(name, measured), measured)
                for name, measured in best.items():
                    ratio = measured.requests_s / best["httpx"].requests_s
                    figures = f"{measured.requests_s:>10,.0f} {measured.core_us:>10.0f} {ratio:>6.1f}"
                    print(f"{connections:>11}  {name:<20} {figures}")
        finally:
            server.terminate()
