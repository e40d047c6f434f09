"""An HTTP proxy on loopback that tunnels and forwards, and remembers what it was told.

A behaviour for `misbehaving.Peer`: plain sockets, and nothing of `backfill`.
"""

import contextlib
import http.client
import re
import socket
import threading
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tests.adapters.misbehaving import Link

ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


@dataclass
class Proxying:
    """`heads`: of each request to the proxy itself, in the order of their arrival. `answer`: what it says to CONNECT;
    it opens a tunnel only after 200. `credentials`: what Proxy-Authorization must be.
    """

    answer: bytes = ESTABLISHED
    credentials: str | None = None
    heads: list[str] = field(default_factory=list)
    upstreams: list[socket.socket] = field(default_factory=list)

    def __call__(self, link: Link) -> None:
        start = 0
        while (end := link.read_head(start)) > start and link.received[start:end].endswith(b"\r\n\r\n"):
            head = bytes(link.received[start:end]).decode("latin-1")
            self.heads.append(head)
            if self.credentials and f"\r\nproxy-authorization: {self.credentials}\r\n" not in head:
                link.send(b"HTTP/1.1 407 X\r\nproxy-authenticate: Basic realm=x\r\ncontent-length: 4\r\n\r\nwho?")
                return
            if head.startswith("CONNECT "):
                link.send(self.answer)
                if self.answer.startswith(b"HTTP/1.1 200"):
                    self._tunnel(link, head.split(" ")[1])
                else:
                    link.read_rest()
                return
            start = self._forward(link, head, start)

    def drop(self) -> None:
        """Ends all tunnels at once, towards the target."""
        for upstream in self.upstreams:
            with contextlib.suppress(OSError):
                upstream.shutdown(socket.SHUT_RDWR)

    def _tunnel(self, link: Link, authority: str) -> None:
        host, _, port = authority.rpartition(":")
        with socket.create_connection((host.strip("[]"), int(port)), timeout=5) as upstream:
            self.upstreams.append(upstream)

            def down() -> None:
                with contextlib.suppress(OSError):
                    while data := upstream.recv(1 << 16):
                        link.send(data)
                with contextlib.suppress(OSError):
                    link.end_sending()

            thread = threading.Thread(target=down)
            thread.start()
            with contextlib.suppress(OSError):
                while data := link.read_some():
                    upstream.sendall(data)
                upstream.shutdown(socket.SHUT_WR)
            thread.join(5)

    @staticmethod
    def _forward(link: Link, head: str, start: int) -> int:
        end = link.read_request(start)
        method, url, _ = head.split(" ", 2)
        target = urlsplit(url)
        fields = dict(re.findall(r"\r\n([^:]+): ([^\r]*)", head))
        kept = {name: value for name, value in fields.items() if name.lower() != "proxy-authorization"}
        upstream = http.client.HTTPConnection(target.hostname or "", target.port, timeout=5)
        body = bytes(link.received[start:end]).partition(b"\r\n\r\n")[2]
        try:
            upstream.request(method, target._replace(scheme="", netloc="").geturl(), body, kept)
            reply = upstream.getresponse()
            content = reply.read()
        except OSError:
            link.send(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n")
            return end
        finally:
            upstream.close()
        link.send(
            b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
            % (reply.status, len(content), content)
        )
        return end
