"""Probing: which forms on the wire to try in which order, what came of each, and the configuration lines to keep.

The reference leaves the body of the offline calls partly open (`[wire]`). One interaction is tried in one form after
the other until the API takes it. Sends nothing, and never goes on after a call that may have been applied.
"""

import re
from collections.abc import Iterator, Sequence
from enum import StrEnum
from itertools import product
from typing import NamedTuple

from backfill.core.config import BulkKey, Wire
from backfill.core.wording import spelled

MAX_CALLS = 8
"""Each call costs licence. Two spellings of three keys make eight forms."""

_CHOICES: dict[str, tuple[object, ...]] = {
    "address_field": ("url", "uri"),
    "timestamp_format": ("epoch_ms", "iso8601"),
    "bulk": ("array", BulkKey(key="interactions")),
}
"""By key, what is known of tenants. `acknowledged_by` is no form of a request: the reply to any form tells."""

_SPEAKS_OF = {
    "address_field": re.compile(r"\b(url|uri|address)\b", re.IGNORECASE),
    "timestamp_format": re.compile(r"\b(timestamp|time|date|epoch|iso)\b", re.IGNORECASE),
    "bulk": re.compile(r"\b(body|array|object|list|interactions)\b", re.IGNORECASE),
}


class Proof(StrEnum):
    """What one try showed."""

    TAKEN = "taken"  # acknowledged: the form is found
    REFUSED = "refused"  # nothing was applied, so another form may be tried
    UNRECOGNISED = "unrecognised"  # a 2xx that does not acknowledge as configured: perhaps applied
    DOUBT = "doubt"  # perhaps applied, for another reason
    NOTHING = "nothing"  # the call was not made, or answered in a way that says nothing of the form


class Trial(NamedTuple):
    """One try. `words`: what the API said of it, masked."""

    wire: Wire
    proof: Proof
    words: str = ""


def proof(outcome: str | None, reasons: Sequence[str], http_status: int | None) -> Proof:
    """What the ledger's line of the row that was tried shows; None where no row was."""
    cause = reasons[0] if reasons else None
    match outcome:
        case "delivered":
            return Proof.TAKEN
        case "in_doubt" if cause == "unrecognised" and http_status is not None and 200 <= http_status < 300:
            return Proof.UNRECOGNISED
        case "in_doubt":
            return Proof.DOUBT
        case "unsent" | "rejected" if cause == "refused":
            return Proof.REFUSED
    return Proof.NOTHING


def next_form(configured: Wire, trials: Sequence[Trial], *, many: bool) -> Wire | None:
    """The form to try now; None where the tries are over. `many`: the job's call is the bulk one.

    First the form that is configured. Then, of those that are left, one that differs from the last in what the refusal
    speaks of, and in as little else as possible.
    """
    if not trials:
        return configured
    last = trials[-1]
    if last.proof is not Proof.REFUSED or len(trials) >= MAX_CALLS:
        return None
    tried = [trial.wire for trial in trials]
    left = [form for form in _forms(configured, many) if form not in tried]
    if not left:
        return None
    named = {key for key, speaks in _SPEAKS_OF.items() if speaks.search(last.words)}

    def rank(form: Wire) -> tuple[bool, int, int]:
        changed = _changed(last.wire, form)
        return not changed & named, len(changed), len(_changed(configured, form))

    return min(left, key=rank)


def _forms(configured: Wire, many: bool) -> Iterator[Wire]:
    keys = [key for key in _CHOICES if many or key != "bulk"]
    values = [list(dict.fromkeys([getattr(configured, key), *_CHOICES[key]])) for key in keys]
    for chosen in product(*values):
        form = configured.model_copy(update=dict(zip(keys, chosen, strict=True)))
        if form.address_field != form.timestamp_field:  # which the configuration could not hold either
            yield form


def _changed(one: Wire, other: Wire) -> set[str]:
    return {key for key in _CHOICES if getattr(one, key) != getattr(other, key)}


def summed_up(wire: Wire, *, many: bool) -> str:
    """A form in one line."""
    return ", ".join(f"{key} = {_written(getattr(wire, key))}" for key in _CHOICES if many or key != "bulk")


def lines_to_keep(trial: Trial, *, many: bool) -> list[str]:
    """The section [wire] as the tries showed it; nothing where they did not show any."""
    if trial.proof not in (Proof.TAKEN, Proof.UNRECOGNISED):
        return []
    wire = trial.wire
    if trial.proof is Proof.UNRECOGNISED:
        wire = wire.model_copy(update={"acknowledged_by": "http_status"})
    keys = [key for key in type(wire).model_fields if many or key != "bulk"]
    return ["[wire]", *(f"{key} = {_written(getattr(wire, key))}" for key in keys)]


def _written(value: object) -> str:
    return spelled(value.model_dump() if isinstance(value, BulkKey) else value)
