"""Interactions that a person writes by hand, for `send`: judged, and written as the body of one call.

The judgement is the rows' own (`core.validate`), after the one that only a hand-written document needs: are these the
elements of the reference, and of the right kind? Touches nothing; `now` is passed in. What is said of a fault names
place and element, never a value.

The form on the wire is the tenant's (`[wire]`): the address field in all four calls, since it is the same element in
all; field and format of the time in the offline calls, which alone have one; the frame of the body where there are
several.
"""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

import polars as pl

from backfill.core.calls import CALLS, Call
from backfill.core.config import Rows, Time, Wire
from backfill.core.encode import request_body
from backfill.core.errors import UsageError
from backfill.core.limits import MAX_INTERACTIONS
from backfill.core.masking import visible
from backfill.core.validate import judge, rules
from backfill.core.wording import listed

ELEMENTS = ("url", "customerKey", "customerKeyName", "properties", "device", "timestamp", "tid")
"""What a document may hold: the reference's body elements, the time of an offline interaction, and the `tid`, which
travels in the query."""

_TEXTS = ("url", "customerKey", "customerKeyName", "tid")
_MOST_TOLD = 10
_LONGEST_NAME = 60
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECONDS = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)
_ANY_TIME = "2000-01-01T00:00:00Z"
"""Stands where a call has no time, so that the rules for rows find no fault in that."""

_SAID = {
    "timestamp_missing": "`timestamp` is missing: an offline call must say when the interaction occurred",
    "timestamp_unreadable": "`timestamp` cannot be read: write ISO 8601 with an offset, or milliseconds since 1970",
    "timestamp_without_zone": "`timestamp` has no offset: add Z, or one such as +01:00",
    "timestamp_spreadsheet_number": "`timestamp` is a spreadsheet's number: write ISO 8601 with an offset",
    "timestamp_number": "`timestamp` is a number in quotes: write it without them if it is milliseconds since 1970",
    "timestamp_leap_second": "`timestamp` is a leap second (:60), which the API cannot take: write :59",
    "timestamp_in_future": "`timestamp` lies in the future",
    "customer_key_blank": "`customerKey` is blank",
    "customer_key_control_characters": "`customerKey` holds control characters",
    "customer_key_too_long": "`customerKey` is longer than 1,000 characters",
    "customer_key_whole_number": "`customerKey` is a whole number that went through a float: write it without the .0",
    "customer_key_exponent": "`customerKey` is a number with an exponent, which has lost its digits",
    "customer_key_imprecise": "`customerKey` is a whole number that went through a float, which has lost its digits",
    "customer_key_name_without_key": "`customerKeyName` is given without `customerKey`, which it says the kind of",
    "url_missing": "`url` is missing: the address of the touchpoint, such as api://my.touchpoint/customer/interaction",
    "url_not_a_uri": "`url` is no URI: write it as api://my.touchpoint/customer/interaction",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What one call carries. `tid` stands in its address. No representation shows what is in it."""

    call: str
    body: bytes
    tid: str | None
    interactions: int

    def __repr__(self) -> str:
        return f"Request({self.call}, {self.interactions})"


# ------------------------------------------------------------------------------------------------------------ written


def from_options(
    *,
    url: str | None = None,
    customer_key: str | None = None,
    customer_key_name: str | None = None,
    tid: str | None = None,
    timestamp: str | None = None,
    properties: Sequence[tuple[str, str]] = (),
    device: Sequence[tuple[str, str]] = (),
) -> dict[str, object]:
    """The document that options stand for. A timestamp of digits alone counts milliseconds."""
    return {
        "url": url,
        "customerKey": customer_key,
        "customerKeyName": customer_key_name,
        "properties": _pairs(properties),
        "device": _pairs(device),
        "timestamp": int(timestamp) if timestamp is not None and _MILLISECONDS.fullmatch(timestamp) else timestamp,
        "tid": tid,
    }


def _pairs(given: Sequence[tuple[str, str]]) -> list[dict[str, str]] | None:
    return [{"name": name, "value": value} for name, value in given] or None


def from_json(content: bytes, source: str) -> object:
    """The document of a JSON file. Raises: UsageError, which names `source` and the place, never what stands there."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{source} is not UTF-8 (byte {error.start}). Save it as UTF-8.") from None
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_such_number)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise UsageError(f"{source} is no JSON ({place}: {error.msg}). Mend it there.") from None
    except _NotJson as error:
        raise UsageError(f"{source} is no JSON as the API reads it: {error}.") from None
    except (ValueError, RecursionError):
        raise UsageError(f"{source} is no JSON as the API reads it: a number too long, or nested too deeply.") from None


class _NotJson(ValueError):
    pass


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _NotJson(f"{_shown(name)} is given twice in one object")
        found[name] = value
    return found


def _no_such_number(name: str) -> NoReturn:
    raise _NotJson(f"{name} is no number in JSON")


# ------------------------------------------------------------------------------------------------------------- judged


def request(document: object, call: str, wire: Wire, *, now: datetime) -> Request:
    """The one call that a document asks for: an interaction, or for a call of many a list of up to 100.

    Raises: UsageError with every fault of every interaction.
    """
    several = _interactions(document, call)
    problems = {at: _shape(one, CALLS[call]) for at, one in enumerate(several)}
    well_formed = {at: one for at, one in enumerate(several) if not problems[at] and isinstance(one, dict)}
    judged = judge(_rows(well_formed, CALLS[call]), rules(Time(), Rows(customer_key_required=False), now=now))
    for at, reasons in judged.invalid.select("position", "reasons").iter_rows():
        problems[at] += [_SAID.get(reason, reason) for reason in reasons]
    if any(problems.values()):
        raise _invalid(problems, many=CALLS[call].many)
    whole = list(well_formed.values())
    tids = {one.get("tid") for one in whole}
    if len(tids) > 1:
        raise UsageError(
            "The interactions have different `tid`s, so nothing was sent: a call carries one, in its address. Send "
            "those of each `tid` by themselves."
        )
    times = _times(judged.valid, wire) if CALLS[call].historic else [None] * len(whole)
    fragment = b",".join(_rendered(one, time, wire) for one, time in zip(whole, times, strict=True))
    return Request(call=call, body=request_body(fragment, wire, call), tid=tids.pop(), interactions=len(whole))


def _interactions(document: object, call: str) -> list[object]:
    if not isinstance(document, list):
        return [document]
    if not CALLS[call].many:
        several = next(name for name, known in CALLS.items() if known.many)
        raise UsageError(f"{call} takes one interaction, not a list. Write one JSON object, or use --call {several}.")
    if not 1 <= len(document) <= MAX_INTERACTIONS:
        raise UsageError(
            f"The list holds {len(document)} interactions, so nothing was sent: a call takes 1 to {MAX_INTERACTIONS}."
        )
    return document


def _invalid(problems: Mapping[int, list[str]], *, many: bool) -> UsageError:
    told = [
        f"  interaction {at + 1}: {problem}." if many else f"  {problem}."
        for at, found in problems.items()
        for problem in found
    ]
    if len(told) > _MOST_TOLD:
        told[_MOST_TOLD:] = [f"  and {len(told) - _MOST_TOLD} more."]
    subject = (
        f"{sum(map(bool, problems.values()))} of {len(problems)} interactions are" if many else "The interaction is"
    )
    return UsageError(f"{subject} invalid, so nothing was sent:\n" + "\n".join(told))


def _shape(one: object, call: Call) -> list[str]:
    """What makes a document none of the reference's; null is the same as nothing."""
    if not isinstance(one, dict):
        return [f"it is no JSON object with {listed(ELEMENTS, 'and')}"]
    problems = [_unknown(name) for name in one if name not in ELEMENTS]
    given = {name: value for name, value in one.items() if value is not None}
    for name in _TEXTS:
        if not isinstance(given.get(name, ""), str):
            problems.append(f"`{name}` must be text")
        elif name not in _JUDGED_BLANK and name in given and not given[name].strip():
            problems.append(f"`{name}` is blank")
    if not isinstance(given.get("timestamp", ""), str | int) or isinstance(given.get("timestamp"), bool):
        problems.append("`timestamp` must be ISO 8601 text with an offset, or whole milliseconds since 1970")
    if "timestamp" in given and not call.historic:
        problems.append("`timestamp` is for offline calls only: this one registers what happens now")
    if "properties" in given and not _are_pairs(given["properties"]):
        problems.append(
            '`properties` must be an array of {"name": ..., "value": ...}, with names that are text and values that '
            "are text, numbers or booleans"
        )
    if "device" in given and not isinstance(given["device"], dict | list):
        problems.append("`device` must be an array of name and value, or an object")
    try:
        json.dumps(one, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        problems.append("it holds half a character (a lone surrogate), a number without end, or is nested too deeply")
    return problems


_JUDGED_BLANK = ("url", "customerKey")
"""Whether these are blank is a rule for rows too, and told from there."""


def _unknown(name: str) -> str:
    nearest = difflib.get_close_matches(name.lower().replace("_", ""), [one.lower() for one in ELEMENTS], 1, 0.6)
    right = next((one for one in ELEMENTS if nearest and one.lower() == nearest[0]), None)
    hint = f"did you mean `{right}`?" if right else f"known are {listed(ELEMENTS, 'and')}"
    return f"{_shown(name)} is no element of an interaction ({hint})"


def _shown(name: str) -> str:
    return f"`{visible(name)[:_LONGEST_NAME]}`"


def _are_pairs(raw: object) -> bool:
    return isinstance(raw, list) and all(
        isinstance(pair, dict)
        and pair.keys() == {"name", "value"}
        and isinstance(pair["name"], str)
        and bool(pair["name"])
        and isinstance(pair["value"], str | int | float)
        for pair in raw
    )


def _rows(documents: Mapping[int, Mapping[str, Any]], call: Call) -> pl.DataFrame:
    """The documents by position, as the rules for rows read them."""
    whole = documents.values()
    texts = {"customer_key": "customerKey", "customer_key_name": "customerKeyName", "url": "url", "tid": "tid"}
    return pl.DataFrame(
        {
            "position": list(documents),
            "timestamp": [_as_text(one.get("timestamp")) if call.historic else _ANY_TIME for one in whole],
            **{column: [one.get(element) for one in whole] for column, element in texts.items()},
        },
        schema={"position": pl.Int64, "timestamp": pl.String, **dict.fromkeys(texts, pl.String)},
    )


def _as_text(timestamp: str | int | None) -> str | None:
    if not isinstance(timestamp, int):
        return timestamp
    try:
        return (_EPOCH + timedelta(milliseconds=timestamp)).isoformat()
    except OverflowError:
        return f"{timestamp} ms"  # which the rules cannot read, and do not take for a number in quotes


# ----------------------------------------------------------------------------------------------------------- rendered


def _times(rows: pl.DataFrame, wire: Wire) -> list[Any]:
    instant = rows["timestamp"]
    if wire.timestamp_format == "epoch_ms":
        return instant.dt.epoch("ms").to_list()
    return instant.dt.to_string("%Y-%m-%dT%H:%M:%S%.3fZ").to_list()


def _rendered(one: Mapping[str, Any], time: object, wire: Wire) -> bytes:
    """In the order in which rows are written; elements pass as they were given."""
    elements = {wire.timestamp_field: time, wire.address_field: one["url"]}
    elements |= {name: one.get(name) for name in ("customerKey", "customerKeyName", "properties", "device")}
    kept = {name: value for name, value in elements.items() if value is not None}
    return json.dumps(kept, ensure_ascii=False, separators=(",", ":")).encode()
