"""The Interaction API: how a call is addressed to a tenant, and the OAuth2 token that it carries. Never retries.

Whether a request may be sent is decided in `core.dispatch`, what its reply means in `core.reply`; the bytes go
through a transport that is passed in.

Source: API reference, "Available API Calls", "Interaction Request Elements"; the token endpoint speaks OAuth2 client
credentials with HTTP Basic (RFC 6749, 4.4).
"""

import functools
import json
import operator
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

import httpx

from backfill import __version__
from backfill.core.calls import Call
from backfill.core.errors import ConfigurationError, ExitCode
from backfill.core.events import TokenFailed, TokenGranted, TokenRefused
from backfill.core.lifecycle import Part
from backfill.core.masking import Secrets

_TOKENS_REMEMBERED = 4
"""A reply to a request that carried an earlier token may still come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Client credentials, or a bearer token given instead. No representation shows them."""

    client_id: str | None = field(default=None, repr=False)
    client_secret: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)

    def require(self) -> None:
        """Raises: ConfigurationError where there is nothing to ask a token with."""
        if not self.token and not (self.client_id and self.client_secret):
            raise ConfigurationError(
                "There are no credentials. Set BACKFILL_CLIENT_ID and BACKFILL_CLIENT_SECRET (or the same names with "
                "_FILE), or BACKFILL_TOKEN."
            )


class Address(NamedTuple):
    """A request without its body: `target` is percent-encoded; `headers` include Host."""

    method: str
    target: str
    headers: list[tuple[str, str]]


class InteractionApi:
    """One call of one tenant, and the token that it needs."""

    def __init__(
        self,
        *,
        client: httpx.AsyncClient,
        base_url: httpx.URL,
        site_key: str,
        call: Call,
        token_url: str,
        credentials: Credentials,
    ) -> None:
        """`client` asks for tokens. `token_url`: absolute, or a path on `base_url`."""
        self._client = client
        self._token_url = base_url.join(token_url)
        self._credentials = credentials
        self._token: str | None = None
        self._basic = Secrets(credentials.client_secret, credentials.token, names=[credentials.client_id])
        self._tokens: deque[Secrets] = deque(maxlen=_TOKENS_REMEMBERED)
        self.secrets = self._basic
        """What no reply may be shown with: the credentials, and the tokens they were granted."""
        self._given_token_used = False
        url = base_url.copy_with(path=base_url.path.rstrip("/") + call.path)
        self._method = call.method
        self._target = str(httpx.URL(url, params={"sk": site_key}).raw_path, "ascii")
        self._host = url.netloc.decode("ascii")

    async def refresh_token(self) -> TokenGranted | TokenRefused | TokenFailed:
        """Ask for a token once. A given token is granted once; the second time it has been refused."""
        if self._credentials.token:
            if self._given_token_used:
                return TokenRefused(
                    ExitCode.CREDENTIALS_REFUSED,
                    "The API refuses the token of BACKFILL_TOKEN. Give a new one, or client credentials that can renew "
                    "it, and run again.",
                )
            self._given_token_used = True
            self._token = self._credentials.token
            return TokenGranted()
        try:
            reply = await self._client.post(
                self._token_url,
                data={"grant_type": "client_credentials"},
                auth=httpx.BasicAuth(self._credentials.client_id or "", self._credentials.client_secret or ""),
                headers={"accept": "application/json", "user-agent": f"backfill/{__version__}"},
            )
        except httpx.TransportError as error:
            said = f"the token endpoint {self._token_url} could not be asked: {error}"
            cause = getattr(error, "cause", None)
            if cause == "proxy_credentials":
                return TokenRefused(ExitCode.CREDENTIALS_REFUSED, f"T{said[1:]}")
            if cause == "untrusted":
                return TokenRefused(ExitCode.UNUSABLE, f"T{said[1:]}")
            return TokenFailed(said)
        return self._granted(reply)

    def _granted(self, reply: httpx.Response) -> TokenGranted | TokenRefused | TokenFailed:
        status = reply.status_code
        if 200 <= status < 300:
            token = _access_token(reply.content)
            if token is None:
                return TokenFailed(f"the token endpoint answered HTTP {status} without a usable access_token")
            self._token = token
            self._tokens.append(Secrets(token))
            self.secrets = functools.reduce(operator.or_, self._tokens, self._basic)
            return TokenGranted()
        if status in (400, 401, 403):
            return TokenRefused(
                ExitCode.CREDENTIALS_REFUSED,
                f"The token endpoint {self._token_url} refuses the credentials (HTTP {status}). Check "
                "BACKFILL_CLIENT_ID and BACKFILL_CLIENT_SECRET.",
            )
        if 300 <= status < 500 and status not in (408, 429):
            return TokenRefused(
                ExitCode.UNUSABLE,
                f"The token endpoint {self._token_url} answers HTTP {status}. Check api.token_url and api.base_url.",
            )
        return TokenFailed(f"the token endpoint answered HTTP {status}")

    def address(self, *, load: int, part: Part, attempt: int, tid: str | None) -> Address:
        """The request line and headers of an attempt, with the present token.

        The User-Agent names load, request and attempt, so that the vendor can find a doubtful call.
        """
        positions = f"{part.first}-{part.first + part.interactions - 1}"
        return self._address(tid, f"load {load}; request {part.request}; positions {positions}; attempt {attempt}")

    def address_by_hand(self, *, name: str, tid: str | None) -> Address:
        """The same for a call that belongs to no job: the User-Agent names it by `name`."""
        return self._address(tid, f"send {name}")

    def _address(self, tid: str | None, comment: str) -> Address:
        target = self._target
        if tid is not None:
            target += f"&{httpx.QueryParams({'tid': tid})}"
        return Address(
            self._method,
            target,
            [
                ("Host", self._host),
                ("Authorization", f"Bearer {self._token}"),
                ("Content-Type", "application/json"),
                ("dataMimeType", "application/json"),
                ("Accept", "application/json"),
                ("Accept-Encoding", "identity"),
                ("User-Agent", f"backfill/{__version__} ({comment})"),
            ],
        )


def _access_token(body: bytes) -> str | None:
    """The token of a token reply, if it is one that can stand in a header."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return None
    token = content.get("access_token") if isinstance(content, dict) else None
    if isinstance(token, str) and token and all("!" <= character <= "~" for character in token):
        return token
    return None
