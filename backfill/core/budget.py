"""Rate budget: when may the next request start?

Starts are spaced evenly, at 0.99 of what the tenant allows, with no burst: the 1% and `LATENESS_S` together keep
any sliding second within the budget even as the server's clock sees it. Never sleeps and never reads a
clock; `now_s` is passed in.
"""

import math

SHARE = 0.99
"""Of the budget that is used: 20 requests/s are spaced 50.5 ms apart, so the 21st starts 1,010 ms after the first."""

LATENESS_S = 0.002
"""How much of a late start may be caught up. Event loops wake up to a millisecond late; without this every wake-up
would be lost rate, with more of it starts would bunch: (n - 1) gaps less 2 ms still last over a second."""


class Pacer:
    """Spaces starts so that neither requests/s nor interactions/s is exceeded in any sliding second.

    `ready_at_s` is the earliest moment of the next start.
    """

    def __init__(
        self,
        *,
        requests_per_second: float,
        interactions_per_second: float | None = None,
        not_before_s: float = -math.inf,
    ) -> None:
        self._gap_s = 1 / (SHARE * requests_per_second)
        self._gap_per_interaction_s = 1 / (SHARE * interactions_per_second) if interactions_per_second else 0.0
        self.ready_at_s = not_before_s

    def take(self, now_s: float, interactions: int) -> None:
        """Count a start of so many interactions at `now_s`, which must not be before `ready_at_s`."""
        gap_s = max(self._gap_s, interactions * self._gap_per_interaction_s)
        # A start that was due at 10.000 and came at 10.001 makes the next one due as if it had been punctual; one
        # that came later than LATENESS_S loses the rest, so that a stopped process cannot bunch starts.
        self.ready_at_s = max(self.ready_at_s, now_s - LATENESS_S) + gap_s
