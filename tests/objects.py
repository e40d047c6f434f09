"""A real S3 server (moto) on loopback, whose requests are written down and can be held or answered wrongly.

Runs in a thread of the tests; the command under test comes to it over a socket, from a process of its own.
"""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

BUCKET = "exports-of-june"
SECRET_KEY = "store-SECRET-4711"
"""Of the store's credentials: nothing may show it."""


@dataclass
class Store:
    """What runs, and what was asked of it: `asked` has method and path, as they came."""

    url: str = ""
    asked: list[tuple[str, str]] = field(default_factory=list)
    before: Callable[[str, str], int | None] = lambda method, path: None
    """Called with method and path before an answer; a number is a status to answer instead."""

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": "store-client",
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
        }

    def put(self, key: str, content: bytes, bucket: str = BUCKET) -> str:
        """Puts an object; answers its address."""
        self._client().put_object(Bucket=bucket, Key=key, Body=content)
        return f"s3://{bucket}/{key}"

    def delete(self, key: str) -> None:
        self._client().delete_object(Bucket=BUCKET, Key=key)

    def fetched(self) -> list[str]:
        """The keys whose content was asked for, in their order."""
        return [
            path.removeprefix(f"/{BUCKET}/") for method, path in self.asked if method == "GET" and self._is_key(path)
        ]

    def make_bucket(self) -> None:
        self._client().create_bucket(Bucket=BUCKET)

    @staticmethod
    def _is_key(path: str) -> bool:
        return path.strip("/") != BUCKET

    def _client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id="store-client",
            aws_secret_access_key=SECRET_KEY,
        )


class _Silent(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002  # its name
        """Says nothing: what was asked stands in `asked`."""


@contextlib.contextmanager
def store() -> Iterator[Store]:
    """A server with one empty bucket, on a port of its own."""
    made = Store()
    moto = DomainDispatcherApplication(create_backend_app)

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if environ.get("HTTP_USER_AGENT", "").startswith("Boto"):  # the tests themselves
            return moto(environ, start_response)  # type: ignore[no-any-return]
        made.asked.append((method, path))
        status = made.before(method, path)
        if status is None:
            return moto(environ, start_response)  # type: ignore[no-any-return]
        start_response(f"{status} Made up", [("Content-Length", "0")])
        return []

    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=_Silent)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_port}"
    try:
        made.make_bucket()
        yield made
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()
