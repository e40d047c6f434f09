"""What came of one call made by hand, for `send`: its outcome, its exit code, and what the reply hands back.

Values in, values out. What a reply means is `core.reply`'s word; here that becomes an answer to a person. The
elements of a reply are for the caller of the API to use, so they are kept as they came: only what repeats a secret is
masked.

Source: API reference, "Interaction Response Elements".
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backfill.core.errors import ExitCode, worst
from backfill.core.masking import MASK, NONE, Secrets
from backfill.core.reply import Fate, Verdict

LISTS = ("trackers", "captures", "optimizations")
"""The elements of a reply that are collections."""

_DEEPEST = 40
"""Levels of a reply that are shown; what lies deeper is a trap for whoever follows it."""

_FATES: Mapping[Fate, tuple[str, ExitCode]] = {
    Fate.ACKNOWLEDGED: ("delivered", ExitCode.COMPLETE),
    Fate.REFUSED: ("rejected", ExitCode.ROWS_REFUSED),
    Fate.TOO_LARGE: ("rejected", ExitCode.ROWS_REFUSED),  # of a call that is not divided, a refusal like 400
    Fate.UNAUTHORISED: ("unsent", ExitCode.CREDENTIALS_REFUSED),
    Fate.FORBIDDEN: ("unsent", ExitCode.CREDENTIALS_REFUSED),
    Fate.UNAPPLIED: ("unsent", ExitCode.STOPPED_EARLY),
    Fate.MISDIRECTED: ("unsent", ExitCode.UNUSABLE),
    Fate.REDIRECTED: ("in_doubt", ExitCode.UNUSABLE),
    Fate.UNCLEAR: ("in_doubt", ExitCode.ROWS_IN_DOUBT),
}
"""Outcomes are the ledger's; "unsent" is also what the API surely did not apply."""

_CONNECTION = {"proxy_credentials": ExitCode.CREDENTIALS_REFUSED, "untrusted": ExitCode.UNUSABLE}
"""Why there is no connection, where waiting mends nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What the reply says of one interaction among several. `position` counts from 1."""

    position: int
    outcome: str
    status: int
    words: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Returned:
    """The reference's elements of a reply, as they came; None where a reply has none, or another kind of value."""

    status_code: int | str | None = None
    tid: str | None = None
    trackers: list[Any] | None = None
    captures: list[Any] | None = None
    optimizations: list[Any] | None = None


NOTHING = Returned()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """`outcome`: "delivered", "rejected", "in_doubt", "unsent" (surely not applied), or "mixed" (see `results`).

    `reason`: why it is not "delivered". `http_status` is None where no reply came.
    """

    outcome: str
    exit_code: ExitCode
    reason: str | None = None
    http_status: int | None = None
    returned: Returned = NOTHING
    results: tuple[Result, ...] = ()


def without_token(code: ExitCode, reason: str) -> Answer:
    """No token was granted, so nothing was sent."""
    return Answer(outcome="unsent", exit_code=code, reason=reason)


def without_connection(cause: str, said: str) -> Answer:
    """No byte of the request was handed over."""
    code = _CONNECTION.get(cause, ExitCode.STOPPED_EARLY)
    return Answer(outcome="unsent", exit_code=code, reason=f"No connection to api.base_url: {said}")


def without_reply(why: str, http_status: int | None = None) -> Answer:
    """At least a byte was handed over, and no whole reply came back."""
    return Answer(
        outcome="in_doubt", exit_code=ExitCode.ROWS_IN_DOUBT, reason=f"No whole reply: {why}", http_status=http_status
    )


def of_reply(verdict: Verdict, http_status: int, returned: Returned) -> Answer:
    """`verdict` must have become discreet: its words are shown."""
    results = tuple(
        Result(position=at, outcome=_FATES[one.fate][0], status=one.http_status, words=one.words)
        for at, one in enumerate(verdict.each, start=1)
    )
    outcome, code = _FATES[verdict.fate]
    if results:
        outcomes = {result.outcome for result in results}
        outcome = outcomes.pop() if len(outcomes) == 1 else "mixed"
        code = worst(*(_FATES[one.fate][1] for one in verdict.each))
    return Answer(
        outcome=outcome,
        exit_code=code,
        reason=None if verdict.fate is Fate.ACKNOWLEDGED else _reason(verdict),
        http_status=http_status,
        returned=returned,
        results=results,
    )


def _reason(verdict: Verdict) -> str:
    said = f"HTTP {verdict.http_status}" + (f": {verdict.words.rstrip('.')}" if verdict.words else "")
    if verdict.each:
        return "The API treats the interactions differently."
    match verdict.fate:
        case Fate.REFUSED:
            return f"The API refuses what was sent ({said}); nothing was applied."
        case Fate.TOO_LARGE:
            return f"The API refuses so large a call ({said}); nothing was applied."
        case Fate.UNAUTHORISED:
            return (
                f"The API refuses the token at its first use ({said}); nothing was applied. Check that the credentials "
                "belong to this base_url and site_key."
            )
        case Fate.FORBIDDEN:
            return f"The credentials lack the permission for this call ({said}); nothing was applied."
        case Fate.UNAPPLIED:
            wait = "" if verdict.retry_after_s is None else f" It asks to wait {verdict.retry_after_s:.0f} s."
            return f"Not now, says the API ({said}); nothing was applied.{wait}"
        case Fate.MISDIRECTED if verdict.cause == "redirect":
            return f"The server redirects ({said}), which is never followed; nothing was applied. Check api.base_url."
        case Fate.MISDIRECTED:
            return f"The API does not take this call ({said}); nothing was applied. Check api.base_url and --call."
        case Fate.REDIRECTED:
            return (
                f"The server redirects ({said}), which is never followed. Whether it was applied is not known. Check "
                "api.base_url."
            )
    return f"The reply does not say whether it was applied ({said})."


def returned(body: bytes, *, secrets: Secrets = NONE) -> Returned:
    """The elements of a reply's body; none of one that is no JSON object."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return NOTHING
    if not isinstance(content, dict):
        return NOTHING
    status, tid = content.get("statusCode"), content.get("tid")
    lists = {name: content[name] for name in LISTS if isinstance(content.get(name), list)}
    return Returned(
        status_code=status if isinstance(status, int) or (isinstance(status, str) and len(status) <= 3) else None,
        tid=_discreet(tid, secrets) if isinstance(tid, str) and tid else None,
        **{name: _discreet(value, secrets) for name, value in lists.items()},
    )


def _discreet(value: Any, secrets: Secrets, depth: int = 0) -> Any:
    if isinstance(value, str):
        return MASK if secrets.within(value) else value
    if isinstance(value, dict | list) and depth >= _DEEPEST:
        return "..."
    if isinstance(value, list):
        return [_discreet(item, secrets, depth + 1) for item in value]
    if isinstance(value, dict):
        return {_discreet(name, secrets): _discreet(item, secrets, depth + 1) for name, item in value.items()}
    return value
