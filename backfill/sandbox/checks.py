"""What the API reference demands of a request: the four calls, their query, headers and body.

Values in, values out: no socket, no clock, no log. A fault names place and element, never a customer's value.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn
from urllib.parse import parse_qsl

MAX_INTERACTIONS = 100
"""Reference: "a maximum of 100 offline interactions per call"."""

_BASE = "/one/oauth2/rt/api/2.0"

_VALUES = frozenset({str, int, float, bool})
"""What the value of a property may be. The reference shows text only; a null, list or object has no reading there."""

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:\S")

_EPOCH_MS = (-62_135_596_800_000, 253_402_300_799_999)
"""The years 1 to 9999: beyond them lie microseconds or nanoseconds sent by mistake."""


@dataclass(frozen=True, slots=True)
class Call:
    """One of the four calls of the reference."""

    name: str
    method: str
    path: str
    many: bool
    """The body carries several interactions."""
    offline: bool
    """Every interaction must say when it occurred; the other calls happen now."""
    optimizations: bool
    """The reply carries content for the customer."""


CALLS = (
    Call("interaction-post", "POST", f"{_BASE}/interaction", many=False, offline=False, optimizations=True),
    Call("interaction-put", "PUT", f"{_BASE}/interaction", many=False, offline=False, optimizations=False),
    Call("interaction-offline", "PUT", f"{_BASE}/interaction/offline", many=False, offline=True, optimizations=False),
    Call("interactions-offline", "PUT", f"{_BASE}/interactions/offline", many=True, offline=True, optimizations=False),
)

_ROUTES = {(call.method, call.path): call for call in CALLS}


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a request is refused: a status code of the reference and a sentence."""

    status: int
    message: str
    allow: str = ""
    """With 405: the methods that the path knows."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The interactions of a request that keeps to the reference."""

    interactions: Sequence[Mapping[str, Any]]
    text: bytes
    """The same as one JSON array on one line, as received."""


def route(method: str, path: str) -> Call | Fault:
    """The call that a request line means. A trailing slash is the same path (the reference writes both)."""
    bare = path.removesuffix("/")
    call = _ROUTES.get((method, bare))
    if call is not None:
        return call
    allowed = [known.method for known in CALLS if known.path == bare]
    if allowed:
        return Fault(405, f"Method not allowed: {bare} knows {', '.join(allowed)}.", allow=", ".join(allowed))
    return Fault(404, "Not found: this path is none of the API's calls.")


def query_fault(query: bytes, site_key: str | None) -> Fault | None:
    """Checks `sk` and `tid`; `site_key` None takes any.

    A missing key is bad input (400). A key of another Space than the credentials' is 403: nothing is wrong with its
    form, but the client "lacks permissions to perform operation" there.
    """
    given = [value for name, value in _pairs(query) if name == "sk"]
    if len(given) != 1 or not given[0].strip():
        return Fault(400, "Bad input parameter: `sk`, the site key, must be given once in the query.")
    if site_key is not None and given[0] != site_key:
        return Fault(403, "No permission: these credentials do not belong to the Space of this site key (`sk`).")
    tids = [value for name, value in _pairs(query) if name == "tid"]
    if len(tids) > 1 or (tids and not tids[0].strip()):
        return Fault(400, "Bad input parameter: `tid`, where it is given, must be given once in the query, not blank.")
    return None


def parameter(query: bytes, name: str) -> str | None:
    """The first value of a query parameter."""
    return next((value for given, value in _pairs(query) if given == name), None)


def _pairs(query: bytes) -> list[tuple[str, str]]:
    return parse_qsl(query.decode("latin-1"), keep_blank_values=True)


def headers_fault(headers: Mapping[bytes, bytes]) -> Fault | None:
    """`Content-Type` and `dataMimeType` must both be JSON; names in `headers` are in lower case."""
    content_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if content_type != b"application/json":
        return Fault(400, "Bad input parameter: the header Content-Type must be application/json.")
    if headers.get(b"datamimetype", b"").strip().lower() != b"application/json":
        return Fault(400, "Bad input parameter: the header dataMimeType must be application/json.")
    return None


def interactions_of(call: Call, body: bytes) -> Accepted | Fault:
    """Reads and checks a body; one bad interaction refuses all of them."""
    try:
        text = body.decode("utf-8")
        document = json.loads(text, parse_constant=_no_such_number)
    except (ValueError, RecursionError):
        return Fault(400, "Bad input parameter: the body is not JSON in UTF-8.")
    interactions: list[Any]
    if not call.many:
        if not isinstance(document, dict):
            return Fault(400, "Bad input parameter: the body must be one JSON object, the interaction.")
        interactions, line = [document], b"[%b]" % body
    elif isinstance(document, list):
        interactions, line = document, body
    elif isinstance(document, dict) and [type(value) for value in document.values()] == [list]:
        [interactions] = document.values()
        line = json.dumps(interactions).encode()
    else:
        return Fault(
            400, "Bad input parameter: the body must be a JSON array of interactions, or an object holding just one."
        )
    if not interactions:
        return Fault(400, "Bad input parameter: the body holds no interaction.")
    if len(interactions) > MAX_INTERACTIONS:
        return Fault(
            400,
            f"Bad input parameter: {len(interactions)} interactions in one call; at most {MAX_INTERACTIONS} may be.",
        )
    for position, interaction in enumerate(interactions, start=1):
        problem = _problem(interaction, call)
        if problem is not None:
            return Fault(400, f"Bad input parameter: interaction {position} of {len(interactions)}: {problem}.")
    # JSON strings hold no raw line breaks, so a line break stands between tokens, where a space means the same.
    return Accepted(interactions, line.replace(b"\n", b" ") if b"\n" in line else line)


def _no_such_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _problem(interaction: Any, call: Call) -> str | None:
    """What is wrong with one interaction, in a few words. Runs 200,000 times a second, hence its plain look."""
    if interaction.__class__ is not dict:
        return "it is not a JSON object"
    get = interaction.get
    left = len(interaction)  # elements not looked at yet

    timestamp = get("timestamp")
    if call.offline:
        if timestamp.__class__ is not int or not _EPOCH_MS[0] <= timestamp <= _EPOCH_MS[1]:
            problem = _timestamp_problem(timestamp)
            if problem is not None:
                return problem
        left -= 1
    elif "timestamp" in interaction:
        return f"`timestamp` is for offline calls only; {call.name} registers what happens now"

    url = get("url")
    if url is None:
        url = get("uri")
        if url is None:
            return "`url` is missing"
    elif "uri" in interaction:  # what the vendor's public client code calls the reference's `url`
        return "`url` is given twice, as `url` and as `uri`"
    if url.__class__ is not str or _URI.match(url) is None:
        return "`url` is no URI: it must be text such as api://my.touchpoint/customer/interaction"
    left -= 1

    name = get("customerKeyName")
    if name is not None:
        if name.__class__ is not str or not name.strip():
            return "`customerKeyName` must be text that is not blank"
        if get("customerKey") is None:
            return "`customerKey` is required, since customerKeyName is given"
        left -= 1
    key = get("customerKey")
    if key is not None:
        if key.__class__ is not str or not key.strip():
            return "`customerKey` must be text that is not blank"
        left -= 1

    properties = get("properties")
    if properties is not None:
        if properties.__class__ is not list:
            return "`properties` must be an array of name and value"
        for one in properties:
            try:
                name, value = one["name"], one["value"]
            except (KeyError, TypeError):
                return '`properties` must be an array of {"name": ..., "value": ...}'
            if name.__class__ is not str or not name or len(one) != 2:
                return "`properties` must have names that are text and not empty, and nothing besides name and value"
            if value.__class__ is not str and value.__class__ not in _VALUES:
                return "`properties` must have values that are text, numbers or booleans"
        left -= 1

    if left and get("device") is not None:
        device = interaction["device"]
        if device.__class__ is not dict and not _are_containers(device):
            return "`device` must be an array of objects with name and value, or an object"
        left -= 1
    if left:
        return (
            "it has elements that are null, or none of"
            " url, customerKey, customerKeyName, properties, device and timestamp"
        )
    return None


def _are_containers(device: Any) -> bool:
    """The reference's type says OBJECT, its description "an array of objects consisting of name/value pairs"."""
    return device.__class__ is list and all(
        one.__class__ is dict and one.keys() == {"name", "value"} and one["name"].__class__ is str for one in device
    )


def _timestamp_problem(timestamp: Any) -> str | None:
    if timestamp.__class__ is int:
        if not _EPOCH_MS[0] <= timestamp <= _EPOCH_MS[1]:
            return "`timestamp` is out of range for milliseconds since 1970"
        return None
    if timestamp is None:
        return "`timestamp` is missing; offline calls must say when the interaction occurred"
    if timestamp.__class__ is str:
        try:
            zoned = datetime.fromisoformat(timestamp).tzinfo is not None
        except ValueError:
            zoned = False
        if zoned:
            return None
    return "`timestamp` must be whole milliseconds since 1970, or ISO 8601 text with an offset"
