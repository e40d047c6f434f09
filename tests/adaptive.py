"""Draws how the granted rate follows a tenant whose limit changes, in virtual time.

    python -m tests.adaptive

The budget is 40 requests/s throughout; the tenant takes 40, then 10, then 40 again, and answers 429 beyond that.
"""

import sys
from collections import Counter, deque

from backfill.core.config import Budget, Delivery
from backfill.core.lifecycle import Part
from tests.core.world import Answer, World, ok, status

BUDGET = 40.0
PHASES = ((60.0, 40), (180.0, 10), (300.0, 40))
"""Until when, in seconds, the tenant takes how many requests/s."""


def limit_at(now_s: float) -> int:
    return next((limit for until_s, limit in PHASES if now_s < until_s), PHASES[-1][1])


class Tenant:
    """Takes so many requests in any sliding second, and refuses the others without applying them."""

    def __init__(self) -> None:
        self.world: World | None = None
        self.taken: Counter[int] = Counter()
        self.refused: Counter[int] = Counter()
        self._starts: deque[float] = deque()

    def __call__(self, part: Part) -> Answer:
        assert self.world is not None
        now_s = self.world.now_s
        while self._starts and now_s - self._starts[0] >= 1.0:
            self._starts.popleft()
        if len(self._starts) >= limit_at(now_s):
            self.refused[int(now_s)] += 1
            return status(429)(part)
        self._starts.append(now_s)
        self.taken[int(now_s)] += 1
        return ok(part)


def observe() -> tuple[Tenant, float]:
    """A delivery that lasts as long as the phases. Returns what the tenant saw, and when it ended."""
    tenant = Tenant()
    world = World(
        {lane: [1] * 800 for lane in range(64)},
        server=tenant,
        budget=Budget(requests_per_second=BUDGET, concurrency=16),
        delivery=Delivery(max_attempts=10_000),
    )
    tenant.world = world
    world.run(until_s=PHASES[-1][0])
    return tenant, world.now_s


def figure(tenant: Tenant, *, every_s: int = 10) -> str:
    """One line for ten seconds: requests/s taken (#) and refused (x), and where the limit lies (|)."""
    lines = ["seconds   requests/s taken (#) and refused (x); | is the tenant's limit"]
    for start in range(0, int(PHASES[-1][0]), every_s):
        taken, refused = (
            sum(counter[second] for second in range(start, start + every_s)) / every_s
            for counter in (tenant.taken, tenant.refused)
        )
        bar = "#" * round(taken) + "x" * round(refused + 0.49 if refused else 0)
        limit = limit_at(start)
        drawn = bar.ljust(limit) + "|" if len(bar) <= limit else bar[:limit] + "|" + bar[limit:]
        lines.append(f"{start:>4}-{start + every_s:<4} {drawn.ljust(46)} {taken:5.1f} taken {refused:5.2f} refused")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(figure(observe()[0]) + "\n")
