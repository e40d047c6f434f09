"""The form on the wire that a sandbox demands, where the reference leaves it open: one form, and no other is taken.

Values in, values out. Without demands everything is taken that the reference can be read to allow; what a demand does
not speak of stays free, too. Speaks of the offline calls, since only they have a time and a list.

    address_field=NAME                  the element that holds the address, `url` in the reference
    timestamp_field=NAME                the element that holds the time
    timestamp_format=epoch_ms|iso8601
    bulk=array                          many interactions are a JSON array
    bulk.key=NAME                       they are an object that holds the array under this name
    acknowledged_by=http_status         replies acknowledge by their HTTP status and carry no statusCode
    acknowledged_by=statusCode          they carry one, as the reference says
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from backfill.sandbox.checks import Accepted, Call, Fault, interactions_of

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "address_field": (),
    "timestamp_field": (),
    "timestamp_format": ("epoch_ms", "iso8601"),
    "bulk": ("array",),
    "bulk.key": (),
    "acknowledged_by": ("statusCode", "http_status"),
}
"""What may be demanded, and the values that there are; any where none are listed."""

_KINDS: Mapping[str, tuple[type, str]] = {
    "epoch_ms": (int, "whole milliseconds since 1970"),
    "iso8601": (str, "ISO 8601 text"),
}


def parse(texts: Iterable[str]) -> dict[str, str]:
    """Demands by name. Raises: ValueError with a sentence for the user."""
    demands: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if name not in _CHOICES:
            raise ValueError(f"The form {text!r} cannot be demanded: known are {', '.join(_CHOICES)}.")
        if not equals or not value or (_CHOICES[name] and value not in _CHOICES[name]):
            known = " or ".join(_CHOICES[name]) or "a name"
            raise ValueError(f"The form {text!r} cannot be demanded: write {name}= and {known}.")
        if demands.setdefault(name, value) != value:
            raise ValueError(f"The form {name} is demanded twice.")
    if {"bulk", "bulk.key"} <= demands.keys():
        raise ValueError("The forms bulk and bulk.key cannot both be demanded.")
    return demands


def accepted(call: Call, body: bytes, demands: Mapping[str, str]) -> Accepted | Fault:
    """As `interactions_of`, for a body that must also have the demanded form. What is accepted stays as it came."""
    if not demands or not call.offline:
        return interactions_of(call, body)
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return interactions_of(call, body)  # which says what is wrong
    listed = document if isinstance(document, list) else [document]
    if call.many:
        found = _listed(document, demands)
        if isinstance(found, Fault):
            return found
        listed = found
    for position, interaction in enumerate(listed, start=1):
        problem = _problem(interaction, demands) if isinstance(interaction, dict) else None
        if problem is not None:
            return Fault(400, f"Bad input parameter: interaction {position} of {len(listed)}: {problem}.")
    plain = [_plain(interaction, demands) for interaction in listed]
    judged = interactions_of(call, json.dumps(plain if call.many else plain[0]).encode())
    return judged if isinstance(judged, Fault) else Accepted(listed, json.dumps(listed).encode())


def _listed(document: Any, demands: Mapping[str, str]) -> list[Any] | Fault:
    key = demands.get("bulk.key")
    if key is not None:
        found = document.get(key) if isinstance(document, dict) and len(document) == 1 else None
        if not isinstance(found, list):
            return Fault(400, f"Bad input parameter: the body must be an object that holds an array as `{key}`.")
        return found
    if isinstance(document, list):
        return document
    if "bulk" in demands:
        return Fault(400, "Bad input parameter: the body must be a JSON array.")
    values = list(document.values()) if isinstance(document, dict) else []
    if len(values) == 1 and isinstance(values[0], list):
        return values[0]
    return Fault(400, "Bad input parameter: the body must be a JSON array, or an object holding just one.")


def _problem(interaction: Mapping[str, Any], demands: Mapping[str, str]) -> str | None:
    for demand in ("address_field", "timestamp_field"):
        name = demands.get(demand)
        if name is not None and name not in interaction:
            return f"`{name}` is missing"
    time = interaction.get(demands.get("timestamp_field", "timestamp"))
    kind, said = _KINDS.get(demands.get("timestamp_format", ""), (object, ""))
    if time is not None and not isinstance(time, kind):
        return f"the time must be {said}"
    return None


def _plain(interaction: Any, demands: Mapping[str, str]) -> Any:
    """The interaction under the reference's names, for the checks that all of them get."""
    if not isinstance(interaction, dict):
        return interaction
    names = {demands.get("address_field", "url"): "url", demands.get("timestamp_field", "timestamp"): "timestamp"}
    # Never in place of one that is there already: given twice is a fault, and stays one.
    return {
        name if names.get(name) in interaction else names.get(name, name): value for name, value in interaction.items()
    }
