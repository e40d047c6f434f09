"""OAuth2 client credentials: hands out bearer tokens and knows which of them still open the door.

Reads no clock (callers pass `now_s`, any monotonic seconds) and writes no token anywhere.
"""

import base64
import binascii
import hmac
import math
import secrets
from dataclasses import dataclass, field
from urllib.parse import unquote_plus


@dataclass(slots=True)
class _Life:
    expires_at_s: float
    uses_left: float


@dataclass(kw_only=True)
class Tokens:
    """The tokens of one sandbox. What is None is not checked, or does not end."""

    client_id: str | None = None
    client_secret: str | None = None
    given: str | None = None
    """A token that opens the door without having been asked for, and never expires."""
    lifetime_s: float = 3600.0
    uses: int | None = None
    _alive: dict[str, _Life] = field(default_factory=dict)

    def knows_client(self, authorization: str) -> bool:
        """Whether an Authorization header carries the client's credentials as HTTP Basic."""
        scheme, _, encoded = authorization.partition(" ")
        if scheme.lower() != "basic":
            return False
        try:
            client_id, colon, secret = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return False
        return bool(colon and client_id and secret) and all(
            wanted is None or _same(found, wanted)
            for found, wanted in ((client_id, self.client_id), (secret, self.client_secret))
        )

    def issue(self, now_s: float) -> tuple[str, int]:
        """A new token and the whole seconds it is said to live. Older tokens stay good."""
        self._alive = {token: life for token, life in self._alive.items() if life.expires_at_s > now_s}
        token = secrets.token_urlsafe(32)
        self._alive[token] = _Life(now_s + self.lifetime_s, math.inf if self.uses is None else self.uses)
        return token, math.ceil(self.lifetime_s)

    def accepts(self, authorization: str, now_s: float) -> bool:
        """Whether an Authorization header carries a token that is still good; counts as one use of it."""
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return False
        token = token.strip()
        if self.given is not None and hmac.compare_digest(token.encode(), self.given.encode()):
            return True
        life = self._alive.get(token)
        if life is None or life.expires_at_s <= now_s or life.uses_left < 1:
            return False
        life.uses_left -= 1
        return True


def _same(found: str, wanted: str) -> bool:
    """RFC 6749 (2.3.1) wants credentials form-encoded before Basic; many clients send them as they are. Both do."""
    return any(hmac.compare_digest(form.encode(), wanted.encode()) for form in (found, unquote_plus(found)))
