"""Replies: what a whole reply says about the interactions of its request.

Pure; a reply that did not arrive whole never comes here. The rule that protects customers' histories: nothing is
acknowledged unless the reply says so in a form that we recognise; whatever else a 2xx may be, it is unclear.

Source: API reference, "Interaction Response Elements" and "Response Status Codes"; the rest of the table is ours.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum

from backfill.core.config import Wire
from backfill.core.masking import MAX_READ, NONE, Secrets, masked


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
    each: "tuple[Verdict, ...]" = ()
    """One verdict per interaction, where the reply treats them differently; then `fate` is the worst of them."""


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
    results = _results(content, interactions)
    embedded = _embedded_status(content)
    says_applied = any(200 <= result < 300 for result, _, _ in results or ()) or (
        embedded is not None and 200 <= embedded < 300
    )
    if not 200 <= status < 300:
        found = _of_status(status, headers, content, unapplied_statuses, now)
        if says_applied and found.fate not in (Fate.REDIRECTED, Fate.UNCLEAR):
            # "Nothing was applied" and "it was": who knows?
            return Verdict(fate=Fate.UNCLEAR, http_status=status, cause="unrecognised", words=found.words)
        return found
    if results is not None:
        return _of_results(results, _tid(content), unapplied_statuses)
    if _names_errors(content):
        return Verdict(fate=Fate.UNCLEAR, http_status=status, cause="unrecognised", words=_words(content))
    if embedded is None and wire.acknowledged_by == "http_status":
        embedded = status
    if embedded is None:
        return Verdict(fate=Fate.UNCLEAR, http_status=status, cause="unrecognised")
    if 200 <= embedded < 300:
        return Verdict(fate=Fate.ACKNOWLEDGED, http_status=status, cause="acknowledged", tid=_tid(content))
    return _of_status(embedded, headers, content, unapplied_statuses, now)


def _of_status(
    status: int, headers: Mapping[str, str], content: object, unapplied_statuses: Collection[int], now: datetime
) -> Verdict:
    """What a status says that acknowledges nothing, be it HTTP's or the body's."""
    fate, cause = _fate_of_status(status, unapplied_statuses)
    return Verdict(
        fate=fate,
        http_status=status,
        cause=cause,
        words=_words(content),
        retry_after_s=retry_after_s(headers.get("retry-after"), now) if fate is Fate.UNAPPLIED else None,
    )


_Result = tuple[int, str | None, str | None]
"""What a reply says of one interaction: status, words, tid."""


def _results(content: object, interactions: int) -> list[_Result] | None:
    """One result per interaction, where the reply lists them in a way that leaves no doubt which is which.

    Either an array (bare, or the only one in an object) with one object per interaction, each with its `statusCode`;
    or `errors`, each with the `index` of its interaction, counted from 0, beside an acknowledging `statusCode`.
    """
    if isinstance(content, list):
        return _listed(content, interactions)
    if not isinstance(content, dict):
        return None
    errors = content.get("errors")
    if isinstance(errors, list) and errors:
        return _with_errors(content, errors, interactions)
    arrays = [value for name, value in content.items() if isinstance(value, list) and name in _RESULT_NAMES]
    return _listed(arrays[0], interactions) if len(arrays) == 1 and not _names_errors(content) else None


_RESULT_NAMES = frozenset({"interactions", "responses", "results"})


def _listed(items: list[object], interactions: int) -> list[_Result] | None:
    if len(items) != interactions:
        return None
    found: list[_Result] = []
    for item in items:
        status = _embedded_status(item)
        if status is None or (200 <= status < 300 and _names_errors(item)):
            return None
        found.append((status, _words(item), _tid(item)))
    return found


def _with_errors(content: dict[str, object], errors: list[object], interactions: int) -> list[_Result] | None:
    whole = _embedded_status(content)
    if whole is None or not 200 <= whole < 300:
        return None
    found: list[_Result] = [(whole, None, None)] * interactions
    for error in errors:
        index = error.get("index") if isinstance(error, dict) else None
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < interactions:
            return None
        status = _embedded_status(error) or 400
        if found[index][0] != whole or 200 <= status < 300:
            return None
        found[index] = (status, _words(error), None)
    return found


_WORST_FIRST = (Fate.UNCLEAR, Fate.UNAPPLIED, Fate.REFUSED, Fate.ACKNOWLEDGED)


def _of_results(results: list[_Result], whole_tid: str | None, unapplied_statuses: Collection[int]) -> Verdict:
    """`whole_tid`: that of the reply, good for each result without its own."""
    each = []
    for status, words, own_tid in results:
        if 200 <= status < 300:
            tid = own_tid or whole_tid
            each.append(Verdict(fate=Fate.ACKNOWLEDGED, http_status=status, cause="acknowledged", tid=tid))
            continue
        fate, cause = _fate_of_status(status, unapplied_statuses)
        if fate not in _WORST_FIRST:  # of a single interaction among others, 401 or 413 make no sense
            fate, cause = Fate.UNCLEAR, "unrecognised"
        each.append(Verdict(fate=fate, http_status=status, cause=cause, words=words))
    worst = min(each, key=lambda verdict: _WORST_FIRST.index(verdict.fate))
    if worst.fate is not Fate.REFUSED and len({(verdict.fate, verdict.http_status) for verdict in each}) == 1:
        return replace(worst, tid=worst.tid if len({verdict.tid for verdict in each}) == 1 else None)
    return replace(worst, each=tuple(each))


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


def _embedded_status(content: object) -> int | None:
    """The `statusCode` of an object."""
    raw = content.get("statusCode") if isinstance(content, dict) else None
    if isinstance(raw, str) and re.fullmatch(r"[1-5][0-9]{2}", raw, re.ASCII):
        return int(raw)
    if isinstance(raw, int) and not isinstance(raw, bool) and 100 <= raw < 600:
        return raw
    return None


def _names_errors(content: object, depth: int = 0) -> bool:
    """Whether the body lists errors beside its status, or within its parts."""
    if isinstance(content, list):
        return any(_names_errors(item, depth + 1) for item in content) if depth < _DEEPEST else bool(content)
    if isinstance(content, dict):
        return any(bool(content.get(name)) for name in ("errors", "error"))
    return False


def _tid(content: object) -> str | None:
    raw = content.get("tid") if isinstance(content, dict) else None
    return raw if isinstance(raw, str) and raw else None


def _words(content: object) -> str | None:
    """The API's own sentence about a refusal."""
    said = " | ".join(dict.fromkeys(_sentences(content)))
    return said[:MAX_READ] or None


_DEEPEST = 20
"""Levels of a body that are looked into. A deeper one is a trap for whoever follows it."""


def _sentences(content: object, depth: int = 0) -> Iterator[str]:
    if depth > _DEEPEST:
        return
    if isinstance(content, list):
        for item in content[:10]:
            yield from _sentences(item, depth + 1)
    elif isinstance(content, dict):
        for name in ("message", "error", "error_description", "errors", "detail", "reason"):
            value = content.get(name)
            if isinstance(value, str):
                yield " ".join(value.split())
            elif isinstance(value, list | dict):
                yield from _sentences(value, depth + 1)
    elif isinstance(content, str):
        yield " ".join(content.split())


def discreet(verdict: Verdict, *, sent: bytes, tid: str | None = None, secrets: Secrets = NONE) -> Verdict:
    """The verdict as it may be kept and shown: its words without what they repeat of the request or of a secret.

    `sent`: the request's JSON; `tid`: the one that stood in its address. Names of fields stay, since they say what is
    wrong. A tid that only repeats the request's, or a secret, is dropped.
    """
    if verdict.words is None and verdict.tid is None and not verdict.each:
        return verdict
    try:
        content = json.loads(sent) if _speaks(verdict) else None
    except (ValueError, RecursionError):
        return _kept(verdict, None, tid, secrets)
    names = {name.lower() for name in _names(content)}
    values = {value for value in [*_values(content), tid or ""] if value.lower() not in names}
    return _kept(verdict, values, tid, secrets)


def _speaks(verdict: Verdict) -> bool:
    return verdict.words is not None or any(_speaks(each) for each in verdict.each)


def _kept(verdict: Verdict, values: set[str] | None, tid: str | None, secrets: Secrets) -> Verdict:
    """Without `values` no words are kept."""
    words = verdict.words
    if words is not None:
        words = WITHHELD if values is None else masked(words, values, secrets)
    kept = verdict.tid
    if kept is not None and (kept == tid or secrets.within(kept)):
        kept = None
    return replace(
        verdict, words=words, tid=kept, each=tuple(_kept(each, values, tid, secrets) for each in verdict.each)
    )


WITHHELD = "(words withheld: they could not be told from the request's)"


def _names(content: object) -> Iterator[str]:
    """Of the elements of an interaction."""
    if isinstance(content, dict):
        yield from content
        for value in content.values():
            yield from _names(value)
    elif isinstance(content, list):
        for item in content:
            yield from _names(item)


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
