"""Replies: what a whole reply says about the interactions of its request.

Pure; a reply that did not arrive whole never comes here. The rule that protects customers' histories: nothing is
acknowledged unless the reply says so in a form that we recognise; whatever else a 2xx may be, it is unclear.

Source: API reference, "Interaction Response Elements" and "Response Status Codes"; the rest of the table is ours.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum

from backfill.core.config import Wire


class Fate(StrEnum):
    """What became of the interactions of one request."""

    ACKNOWLEDGED = "acknowledged"
    REFUSED = "refused"  # the interactions themselves are wrong; nothing was applied
    TOO_LARGE = "too_large"  # nothing was applied; less of it may be accepted
    UNAUTHORISED = "unauthorised"  # the token is not valid (any more)
    FORBIDDEN = "forbidden"  # the credentials lack the permission
    UNAPPLIED = "unapplied"  # not now; nothing was applied
    MISDIRECTED = "misdirected"  # the configuration points somewhere else; nothing was applied
    REDIRECTED = "redirected"  # as misdirected, but what was done with the request is not known
    UNCLEAR = "unclear"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`http_status` is the status that counted: the one embedded in the body where that one decided.

    `words`: what the API said, not yet masked: customers' values may stand in it.
    """

    fate: Fate
    http_status: int
    cause: str
    words: str | None = None
    tid: str | None = None
    retry_after_s: float | None = None


def read(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    interactions: int,
    wire: Wire,
    unapplied_statuses: Collection[int],
    now: datetime,
) -> Verdict:
    """The verdict on a reply to a request of so many interactions.

    `headers` have lower-case names; `now` is the wall clock, for Retry-After dates.
    """
    content = _json(body, headers)
    embedded = _embedded_status(content, interactions)
    if 200 <= status < 300:
        if embedded is None:
            if wire.acknowledged_by == "http_status" and not _names_errors(content):
                return Verdict(fate=Fate.ACKNOWLEDGED, http_status=status, cause="acknowledged", tid=_tid(content))
            return Verdict(fate=Fate.UNCLEAR, http_status=status, cause="unrecognised")
        if _names_errors(content):
            return Verdict(fate=Fate.UNCLEAR, http_status=status, cause="unrecognised", words=_words(content))
        if 200 <= embedded < 300:
            return Verdict(fate=Fate.ACKNOWLEDGED, http_status=status, cause="acknowledged", tid=_tid(content))
        status = embedded
    fate, cause = _fate_of_status(status, unapplied_statuses)
    return Verdict(
        fate=fate,
        http_status=status,
        cause=cause,
        words=_words(content),
        retry_after_s=retry_after_s(headers.get("retry-after"), now) if fate is Fate.UNAPPLIED else None,
    )


def _fate_of_status(status: int, unapplied_statuses: Collection[int]) -> tuple[Fate, str]:
    if status in unapplied_statuses:
        return Fate.UNAPPLIED, "unapplied"
    match status:
        case 400 | 422:
            return Fate.REFUSED, "refused"
        case 413:
            return Fate.TOO_LARGE, "too_large"
        case 401:
            return Fate.UNAUTHORISED, "unauthorised"
        case 403:
            return Fate.FORBIDDEN, "forbidden"
        case 301 | 307 | 308:
            return Fate.MISDIRECTED, "redirect"
    if 300 <= status < 400:
        return Fate.REDIRECTED, "redirect"
    if 400 <= status < 500:
        return Fate.MISDIRECTED, "misdirected"
    if 500 <= status < 600:
        return Fate.UNCLEAR, "server_error"
    return Fate.UNCLEAR, "unrecognised"


def _json(body: bytes, headers: Mapping[str, str]) -> object:
    """The body as JSON, None where it is none. A compressed body was not asked for and is not opened."""
    if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        return None


def _embedded_status(content: object, interactions: int) -> int | None:
    """The `statusCode` of an object; of an array with one object per interaction the one that they all carry."""
    if isinstance(content, dict):
        raw = content.get("statusCode")
        if isinstance(raw, str) and re.fullmatch(r"[1-5][0-9]{2}", raw, re.ASCII):
            return int(raw)
        if isinstance(raw, int) and not isinstance(raw, bool) and 100 <= raw < 600:
            return raw
        return None
    if isinstance(content, list) and len(content) == interactions:
        found = {_embedded_status(item, 1) if isinstance(item, dict) else None for item in content}
        return found.pop() if len(found) == 1 else None
    return None


def _names_errors(content: object) -> bool:
    """Whether the body lists errors beside its status, or within its parts."""
    if isinstance(content, list):
        return any(_names_errors(item) for item in content)
    if isinstance(content, dict):
        return any(bool(content.get(name)) for name in ("errors", "error"))
    return False


def _tid(content: object) -> str | None:
    raw = content.get("tid") if isinstance(content, dict) else None
    return raw if isinstance(raw, str) and raw else None


MAX_WORDS = 300
"""Characters shown: enough for a sentence of the API; more would be a page."""

MAX_WORDS_READ = 4_000
"""Characters masked. More than are shown, so that no value is cut in two before it can be recognised."""


def _words(content: object) -> str | None:
    """The API's own sentence about a refusal."""
    said = " | ".join(dict.fromkeys(_sentences(content)))
    return said[:MAX_WORDS_READ] or None


def _sentences(content: object) -> Iterator[str]:
    if isinstance(content, list):
        for item in content[:10]:
            yield from _sentences(item)
    elif isinstance(content, dict):
        for name in ("message", "error", "error_description", "errors", "detail", "reason"):
            value = content.get(name)
            if isinstance(value, str):
                yield " ".join(value.split())
            elif isinstance(value, list | dict):
                yield from _sentences(value)
    elif isinstance(content, str):
        yield " ".join(content.split())


def masked(words: str, sent: bytes) -> str:
    """The API's words without what they repeat of the request, cut to MAX_WORDS.

    `sent` is the request's JSON. Every text or number in it of three characters or more is replaced by `***`; shorter
    ones would only mask parts of words. Names of fields stay, since they say what is wrong.
    """
    try:
        content = json.loads(sent)
    except (ValueError, RecursionError):
        return "(words withheld: they could not be told from the request's)"
    for value in sorted({" ".join(value.split()) for value in _values(content)}, key=len, reverse=True):
        if len(value) >= 3:
            words = words.replace(value, "***")
    return words[:MAX_WORDS]


def _values(content: object) -> Iterator[str]:
    if isinstance(content, dict):
        for name, value in content.items():
            if name != "name":  # of a property: the column's name, not a customer's value
                yield from _values(value)
    elif isinstance(content, list):
        for item in content:
            yield from _values(item)
    elif content is not None and not isinstance(content, bool):
        yield str(content)


def retry_after_s(raw: str | None, now: datetime) -> float | None:
    """Retry-After in seconds from now; None where it is absent, rubbish or in the past.

    Source: RFC 9110, 10.2.3: a number of seconds or an HTTP date.
    """
    if raw is None:
        return None
    raw = raw.strip()
    if re.fullmatch(r"[0-9]{1,9}", raw, re.ASCII):
        return float(raw)
    try:
        when = parsedate_to_datetime(raw)
    except (ValueError, OverflowError, IndexError, TypeError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    wait_s = (when - now).total_seconds()
    return wait_s if wait_s > 0 else None
