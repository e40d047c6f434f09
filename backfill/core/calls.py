"""The four calls of the Interaction API as one table.

Source: API reference, "Available API Calls" and "Interaction Request Elements".
"""

from dataclasses import dataclass

from backfill.core.limits import MAX_INTERACTIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """How one call is made. `many`: its body holds up to 100 interactions; `historic`: it demands a timestamp."""

    method: str
    path: str
    many: bool
    historic: bool
    optimizations: bool

    @property
    def most(self) -> int:
        """Interactions that one call takes at the most."""
        return MAX_INTERACTIONS if self.many else 1


CALLS: dict[str, Call] = {
    "interaction-post": Call(
        method="POST",
        path="/one/oauth2/rt/api/2.0/interaction",
        many=False,
        historic=False,
        optimizations=True,
    ),
    "interaction-put": Call(
        method="PUT",
        path="/one/oauth2/rt/api/2.0/interaction",
        many=False,
        historic=False,
        optimizations=False,
    ),
    "interaction-offline": Call(
        method="PUT",
        path="/one/oauth2/rt/api/2.0/interaction/offline",
        many=False,
        historic=True,
        optimizations=False,
    ),
    "interactions-offline": Call(
        method="PUT",
        path="/one/oauth2/rt/api/2.0/interactions/offline",
        many=True,
        historic=True,
        optimizations=False,
    ),
}
