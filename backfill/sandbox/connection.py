"""Below ASGI: lets the application reach the socket's transport, and end a connection without a reply.

uvicorn hands each request a copy of its protocol's `app_state` as `scope["state"]`, ASGI's place for what a server
shares with its application. The protocol here puts the transport and the time of arrival there; nothing else changes.
"""

import asyncio
import socket
import struct
import time
from typing import Any, cast

from uvicorn.protocols.http.auto import AutoHTTPProtocol  # httptools where it is installed, else h11


class Connection(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's HTTP protocol, whose requests carry `transport` and `received_at_s` in `scope["state"]`."""

    app_state: dict[str, Any]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}

    def data_received(self, data: bytes) -> None:
        # Taken here, not in the application: that starts only after other ready connections had their turn.
        self.app_state["received_at_s"] = time.time()
        super().data_received(data)


def transport_of(scope: dict[str, Any]) -> asyncio.Transport:
    """The transport of the connection that a request came in on."""
    return cast("asyncio.Transport", scope["state"]["transport"])


def received_at_s(scope: dict[str, Any]) -> float:
    """When the first bytes of the request were read; epoch seconds."""
    return cast("float", scope["state"]["received_at_s"])


def reset(transport: asyncio.Transport) -> None:
    """Ends the connection with a TCP reset, dropping what was still to be sent."""
    sock = transport.get_extra_info("socket")
    # Lingering for no time turns the close into a reset.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
