"""Rate budget: when may the next request start, and how many may today?

Starts are spaced evenly, at 0.99 of what the tenant allows, with no burst: the 1% and `LATENESS_S` together keep
any sliding second within the budget even as the server's clock sees it. Never sleeps and never reads a
clock; `now_s` is passed in.
"""

import math
from dataclasses import dataclass

SHARE = 0.99
"""Of the budget that is used: 20 requests/s are spaced 50.5 ms apart, so the 21st starts 1,010 ms after the first."""

LATENESS_S = 0.002
"""How much of a late start may be caught up. Event loops wake up to a millisecond late; without this every wake-up
would be lost rate, with more of it starts would bunch: (n - 1) gaps less 2 ms still last over a second."""


PUSHED_BACK = 0.5
"""What is left of the rate after a push-back (429, 503, a timeout)."""

PUSH_BACK_EVERY_S = 1.0
"""Requests that were in the air together are pushed back together; that counts once."""

SLOWEST = 1 / 64

RECOVERED_PER_S = 0.02
"""Of the budget that comes back in each second without a push-back: half of it in 25 s."""


class Throttle:
    """The share of the budget that the server bears: halved when it pushes back, coming back evenly.

    Multiplicative decrease and additive increase, since many clients that share a limit find a fair share that way.
    """

    def __init__(self) -> None:
        self._share = 1.0
        self._at_s = -math.inf
        self._pushed_back_s = -math.inf

    def share(self, now_s: float) -> float:
        """In (0, 1]."""
        if self._share < 1.0:
            self._share = min(1.0, self._share + RECOVERED_PER_S * max(0.0, now_s - self._at_s))
            self._at_s = now_s
        return self._share

    def push_back(self, now_s: float) -> None:
        if now_s - self._pushed_back_s >= PUSH_BACK_EVERY_S:
            self._share = max(SLOWEST, self.share(now_s) * PUSHED_BACK)
            self._at_s = self._pushed_back_s = now_s


class Pacer:
    """Spaces starts so that requests/s is exceeded in no sliding second, and interactions/s on no average.

    Where sizes differ, a second can hold one request more than interactions/s allows: many small ones, then a full one.

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

    def take(self, now_s: float, interactions: int, share: float = 1.0) -> None:
        """Count a start of so many interactions at `now_s`, which must not be before `ready_at_s`.

        `share`: of the budget, that is granted at present.
        """
        gap_s = max(self._gap_s, interactions * self._gap_per_interaction_s) / share
        # A start that was due at 10.000 and came at 10.001 makes the next one due as if it had been punctual; one
        # that came later than LATENESS_S loses the rest, so that a stopped process cannot bunch starts.
        self.ready_at_s = max(self.ready_at_s, now_s - LATENESS_S) + gap_s


def calls_per_second(
    *, requests_per_second: float, interactions_per_second: float | None, interactions_per_call: float
) -> float:
    """How many calls of that size the budget allows, on average: the tighter of its two bounds.

    With one interaction a call, interactions/s is just another bound of requests/s.
    """
    if interactions_per_second is None:
        return requests_per_second
    return min(requests_per_second, interactions_per_second / max(1.0, interactions_per_call))


@dataclass(frozen=True, slots=True, kw_only=True)
class Hours:
    """How long this execution may send, and how much, on the clock that the dispatch is given.

    `closes_at_s`: the end of the time window; it opens again at `opens_at_s`. `calls_today`: calls that are left of
    the day's budget until `day_ends_at_s`, then `calls_per_day` for each day. None: no such bound.
    """

    closes_at_s: float = math.inf
    opens_at_s: float = math.inf
    calls_today: int | None = None
    calls_per_day: int = 0
    day_ends_at_s: float = math.inf
    day_s: float = 86_400.0


class Allowance:
    """Counts calls against the hours."""

    def __init__(self, hours: Hours) -> None:
        self._hours = hours
        self._left = math.inf if hours.calls_today is None else hours.calls_today
        self._day_ends_at_s = hours.day_ends_at_s

    def left(self, now_s: float) -> float:
        """Calls that may still be made today; 0 outside the window."""
        if now_s >= self._hours.closes_at_s:
            return 0
        while now_s >= self._day_ends_at_s:
            self._left = self._hours.calls_per_day
            self._day_ends_at_s += self._hours.day_s
        return self._left

    def take(self, now_s: float) -> None:
        """Count a call."""
        self.left(now_s)
        self._left -= 1

    def refill_s(self, now_s: float) -> float:
        """Seconds until calls may be made again, where none are left."""
        if now_s >= self._hours.closes_at_s:
            return self._hours.opens_at_s - now_s
        return self._day_ends_at_s - now_s

    @property
    def closes_at_s(self) -> float:
        return self._hours.closes_at_s
