"""The API itself, as a plain ASGI application: routes, checks in their order, trouble where a rule asks for it.

One request goes: head → body → checks → hold → applied to the log → latency → reply. What counts as applied is on
disk before the first byte of a reply. Never serves anything but the four calls and the token endpoint.
"""

import asyncio
import hashlib
import json
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from typing import Any
from urllib.parse import parse_qsl

from backfill.sandbox.checks import (
    Accepted,
    Call,
    Fault,
    headers_fault,
    parameter,
    query_fault,
    route,
)
from backfill.sandbox.connection import received_at_s, reset, transport_of
from backfill.sandbox.handed_back import handed_back
from backfill.sandbox.log import Log, Received
from backfill.sandbox.misbehaviour import Answer, Hangup, Misbehaviour, Rubbish, Verdict
from backfill.sandbox.tokens import Tokens
from backfill.sandbox.wire import accepted as accepted_as

TOKEN_PATH = "/one/oauth2token"  # noqa: S105 - a path

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

_JSON = (b"content-type", b"application/json")
_HTML = b"<!doctype html><html><body><h1>Welcome</h1><p>Please sign in to this network.</p></body></html>"


@dataclass(slots=True)
class Reply:
    """What is sent back."""

    status: int
    body: bytes
    headers: list[tuple[bytes, bytes]] = field(default_factory=lambda: [_JSON])
    shape: str = "whole"
    """Or "cut" (half of the announced body, then the end), or "endless"."""


class _ClientGone(Exception):
    """The peer ended the connection before its request was complete."""


class Sandbox:
    """The ASGI application; one per process."""

    def __init__(
        self,
        *,
        site_key: str | None,
        tokens: Tokens,
        misbehaviour: Misbehaviour,
        log: Log,
        wire: Mapping[str, str] | None = None,
    ) -> None:
        """`wire`: the form that is demanded, as `sandbox.wire` reads it."""
        self._site_key = site_key
        self._wire = wire or {}
        self._tokens = tokens
        self._misbehaviour = misbehaviour
        self._log = log

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        request = Received(
            at_s=received_at_s(scope),
            method=scope["method"],
            path=scope["path"],
            user_agent=headers.get(b"user-agent", b"").decode("latin-1"),
        )
        transport = transport_of(scope)
        try:
            ending = await self._handle(request, headers, scope["query_string"], receive)
        except _ClientGone:
            self._log.received(request, time.time())
            return
        except asyncio.CancelledError:
            # The sandbox ends. A reply made up now would say something about a request that is still being held.
            self._log.received(request, time.time())
            transport.abort()
            raise
        except Exception:
            # A full disk, or a bug of ours. uvicorn answers 500, which says the truth; its own log is switched off.
            traceback.print_exc()
            raise
        if isinstance(ending, Reply):
            if ending.shape == "whole":
                request.status = ending.status
            self._log.received(request, time.time())
            await _send(ending, transport, receive, send)
        else:
            self._log.received(request, time.time())
            if ending.reset:
                reset(transport)
            else:
                transport.close()
            await _gone(receive)

    async def _handle(
        self, request: Received, headers: Mapping[bytes, bytes], query: bytes, receive: Receive
    ) -> Reply | Hangup:
        token = request.path.removesuffix("/") == TOKEN_PATH
        request.call = "token" if token else None
        fired = self._misbehaviour.at_head("token" if token else "calls")
        verdict = self._misbehaviour.verdict(fired)
        if isinstance(verdict.trouble, Hangup) and verdict.trouble.moment == "before":
            await _wait(verdict.hold_s)
            request.rule = verdict.rule
            return verdict.trouble

        # Read to its end in any case: the log shall say what arrived, and no reply shall overtake a body.
        body = await _body_of(receive)
        request.sha256 = hashlib.sha256(body).hexdigest()
        if token:
            outcome: Reply | _Work = self._token(request.method, headers, body)
        else:
            outcome = self._checked(request, headers, query, body)
            interactions = outcome.accepted.interactions if isinstance(outcome, _Work) else ()
            verdict = self._misbehaviour.verdict(self._misbehaviour.at_body(fired, interactions, len(body)))
        request.rule = verdict.rule

        await _wait(verdict.hold_s)
        if isinstance(outcome, _Work):
            if isinstance(verdict.trouble, Rubbish) and verdict.trouble.refused is not None:
                outcome = _with_results(outcome, verdict.trouble)
            if _applies(verdict) and outcome.accepted.interactions:
                self._apply(request, outcome)
            outcome = outcome.reply
        await _wait(verdict.latency_s)
        return _troubled(outcome, verdict)

    def _token(self, method: str, headers: Mapping[bytes, bytes], body: bytes) -> Reply:
        if method != "POST":
            return _refusal(Fault(405, "Method not allowed: a token is asked for by POST.", allow="POST"))
        now_s = time.monotonic()
        if not self._tokens.knows_client(headers.get(b"authorization", b"").decode("latin-1")):
            reply = _json(401, {"error": "invalid_client", "error_description": "The client's credentials are wrong."})
            reply.headers.append((b"www-authenticate", b'Basic realm="sandbox"'))
            return reply
        content_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        form = dict(parse_qsl(body.decode("latin-1")))
        if content_type != b"application/x-www-form-urlencoded" or "grant_type" not in form:
            return _json(400, {"error": "invalid_request", "error_description": "Send grant_type as a form."})
        if form["grant_type"] != "client_credentials":
            return _json(400, {"error": "unsupported_grant_type"})
        token, expires_in_s = self._tokens.issue(now_s)
        reply = _json(200, {"access_token": token, "token_type": "bearer", "expires_in": expires_in_s})
        reply.headers.append((b"cache-control", b"no-store"))
        return reply

    def _checked(self, request: Received, headers: Mapping[bytes, bytes], query: bytes, body: bytes) -> "Reply | _Work":
        call = route(request.method, request.path)
        if isinstance(call, Fault):
            return _refusal(call)
        request.call = call.name
        if not self._tokens.accepts(headers.get(b"authorization", b"").decode("latin-1"), time.monotonic()):
            reply = _refusal(Fault(401, "Invalid OAuth 2.0 token: it is missing, unknown or no longer good."))
            reply.headers.append((b"www-authenticate", b'Bearer error="invalid_token"'))
            return reply
        fault = query_fault(query, self._site_key) or headers_fault(headers)
        if fault is not None:
            return _refusal(fault)
        accepted = accepted_as(call, body, self._wire)
        if isinstance(accepted, Fault):
            return _refusal(accepted)
        request.interactions = len(accepted.interactions)
        tid = parameter(query, "tid")
        document = {"statusCode": 200, "tid": tid or str(uuid.uuid4())} | handed_back(call)
        if self._wire.get("acknowledged_by") == "http_status":
            del document["statusCode"]
        return _Work(call, parameter(query, "sk") or "", tid, accepted, _json(200, document))

    def _apply(self, request: Received, work: "_Work") -> None:
        self._log.applied(
            at_s=time.time(),
            call=work.call.name,
            sk=work.sk,
            tid=work.tid,
            user_agent=request.user_agent,
            interactions=work.accepted.text,
            positions=work.positions,
        )
        request.applied = True


@dataclass(frozen=True, slots=True)
class _Work:
    """A request that passed every check: what to apply, and the reply to it."""

    call: Call
    sk: str
    tid: str | None
    accepted: Accepted
    reply: Reply
    positions: Sequence[int] | None = None
    """Where in the request the accepted ones stood, from 0, if not all were."""


def _applies(verdict: Verdict) -> bool:
    match verdict.trouble:
        case None:
            return True
        case Hangup(moment=moment):
            return moment == "after"
        case Answer(applied=applied) | Rubbish(applied=applied):
            return applied


def _with_results(work: _Work, trouble: Rubbish) -> _Work:
    """Of an accepted request, what is applied when some of its interactions are refused, and the reply to that."""
    assert trouble.refused is not None
    refused = [trouble.refused.met_by(interaction) for interaction in work.accepted.interactions]
    kept = [each for each, bad in zip(work.accepted.interactions, refused, strict=True) if not bad]
    results = [{"statusCode": trouble.status, "message": "refused"} if bad else {"statusCode": 200} for bad in refused]
    return replace(
        work,
        accepted=Accepted(kept, json.dumps(kept).encode()),
        positions=[at for at, bad in enumerate(refused) if not bad],
        reply=_json(200, json.loads(work.reply.body) | {"results": results}),
    )


def _troubled(reply: Reply, verdict: Verdict) -> Reply | Hangup:
    """The reply as the rules want it. A body that does not acknowledge says the same of a refused request."""
    match verdict.trouble:
        case None:
            return reply
        case Hangup() as hangup:
            return hangup
        case Answer() as answer:
            where = f"interaction {verdict.position}: " if verdict.position else ""
            troubled = _refusal(Fault(answer.status, f"{where}refused by a misbehaviour of the sandbox."))
            if answer.retry_after is not None:
                troubled.headers.append((b"retry-after", _retry_after(answer.retry_after)))
            if answer.location is not None:
                troubled.headers.append((b"location", answer.location.encode("latin-1", "replace")))
            if answer.status == 304:
                troubled.body = b""  # HTTP allows it none
            return troubled
        case Rubbish(kind="html"):
            return Reply(200, _HTML, [(b"content-type", b"text/html; charset=utf-8")])
        case Rubbish(kind="empty"):
            return Reply(200, b"")
        case Rubbish(kind="bare"):
            return Reply(200, b"{}")
        case Rubbish(kind="mismatch") as rubbish:
            inside = _refusal(Fault(rubbish.status, "by a misbehaviour of the sandbox."))
            return Reply(200, inside.body)
        case Rubbish(kind="results"):
            return reply
        case Rubbish(kind=kind):
            return Reply(200, reply.body, shape=kind)


def _retry_after(text: str) -> bytes:
    kind, _, seconds = text.partition(":")
    if kind == "date" and seconds.isdecimal():
        return formatdate(time.time() + int(seconds), usegmt=True).encode()
    return text.encode("latin-1", "replace")


def _json(status: int, document: Mapping[str, Any]) -> Reply:
    return Reply(status, json.dumps(document).encode())


def _refusal(fault: Fault) -> Reply:
    reply = _json(fault.status, {"statusCode": fault.status, "message": fault.message})
    if fault.allow:
        reply.headers.append((b"allow", fault.allow.encode()))
    return reply


async def _wait(seconds: float) -> None:
    if seconds:
        await asyncio.sleep(seconds)


async def _body_of(receive: Receive) -> bytes:
    parts = []
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientGone
        parts.append(message["body"])
        more = message["more_body"]
    return b"".join(parts)


async def _gone(receive: Receive) -> None:
    """Returns when the connection has ended; uvicorn would else answer 500 to an application that returns mute."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send(reply: Reply, transport: asyncio.Transport, receive: Receive, send: Send) -> None:
    headers = reply.headers
    if reply.shape != "endless":
        headers = [*headers, (b"content-length", b"%d" % len(reply.body))]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    match reply.shape:
        case "whole":
            await send({"type": "http.response.body", "body": reply.body})
        case "cut":
            await send({"type": "http.response.body", "body": reply.body[: len(reply.body) // 2], "more_body": True})
            transport.close()
            await _gone(receive)
        case _:
            while not transport.is_closing():
                await send({"type": "http.response.body", "body": b" " * 16_384, "more_body": True})
                await asyncio.sleep(0)  # the loop has other connections, and this one's end to notice
