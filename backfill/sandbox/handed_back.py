"""What a reply hands back beside statusCode and tid: trackers, captures, optimizations.

The reference says which calls return which of them ("No optimizations are returned" for all but POST), and nothing of
what stands in one. So each has entries of a form made up here, the same for everybody, that a client can show and
must not read more into. Trackers and captures belong to an interaction that happens now: the offline calls have none.
"""

from typing import Any

from backfill.sandbox.checks import Call

TRACKERS = [{"name": "example-activity", "type": "click"}]
"""Activity Capture Points."""

CAPTURES = [{"name": "example-field", "attribute": "value"}]
"""Page Element Attribute Capture Points."""

OPTIMIZATIONS = [
    {
        "name": "example-point",
        "mimeType": "application/json",
        "actions": [{"name": "example-offer"}, {"name": "example-alternative"}],
    }
]
"""One optimization point with a collection of actions, "that is, more than one action", as dataMimeType asks for."""


def handed_back(call: Call) -> dict[str, Any]:
    """The elements that the reply to this call has."""
    if call.offline:
        return {}
    elements: dict[str, Any] = {"trackers": TRACKERS, "captures": CAPTURES}
    if call.optimizations:
        elements["optimizations"] = OPTIMIZATIONS
    return elements
