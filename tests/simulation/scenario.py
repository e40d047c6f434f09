"""What a seed draws: the work, the settings and the troubles of one history. Nothing here happens yet."""

import math
from dataclasses import dataclass, field
from random import Random
from typing import Literal, NamedTuple

from backfill.core.config import Budget, Delivery

Row = tuple[int, int]
"""One interaction: request, position."""


class Planned(NamedTuple):
    """One planned request: the customer of each of its rows, in delivery order."""

    lane: int
    customers: tuple[int, ...]


@dataclass
class Plan:
    """A load as arranged. Request ids grow along a lane.

    `buckets`: each is opened by one fetch and holds the pieces that follow one another; only a bucket of a single
    lane has more than one. `bad`: rows that the API refuses whenever it looks at them.
    """

    requests: dict[int, Planned] = field(default_factory=dict)
    buckets: list[list[list[int]]] = field(default_factory=list)
    bad: set[Row] = field(default_factory=set)

    @property
    def rows(self) -> int:
        return sum(len(planned.customers) for planned in self.requests.values())


Manner = Literal[
    "fine",  # bad rows are refused, all else is acknowledged
    "busy",  # 408, 429, 503
    "error",  # 500, 502, HTML, rubbish: applied or not
    "silent",  # no whole reply: applied or not, perhaps later
    "refusing",  # everything is refused
    "mixed",  # interactions of one request meet several fates
    "revoked",  # 401
    "stale",  # the connection turns out closed before a byte has left
    "elsewhere",  # 301, 302, 403, 404
    "contradicting",  # the status says one thing, the body another
]


@dataclass(frozen=True)
class Phase:
    """How the server behaves for some calls: the chance of each manner, else fine."""

    calls: float
    manners: tuple[tuple[Manner, float], ...] = ()
    unreachable: float = 0.0
    slow_s: float = 0.05
    token_fails: float = 0.0
    token_refused: float = 0.0
    token_dead: float = 0.0  # tokens that the API does not know


@dataclass(frozen=True)
class Tenant:
    """What stays as it is through the history, on the server's side."""

    names_rows: bool  # refused rows are named, the others of the request applied
    largest: int  # interactions; more are answered by 413
    token_uses: float
    token_s: float
    loses: float  # the chance that a server that answers an error has applied the request before


@dataclass(frozen=True)
class Execution:
    """One invocation: what it is told, and what befalls it. Times in seconds from its start."""

    crash_at_step: float = math.inf
    signal_at_s: float = math.inf
    limit: int | None = None
    freezes: tuple[tuple[float, float], ...] = ()  # when the process stands still, and for how long
    pause_s: float = 0.0  # before it begins
    decides: float = 0.0  # before it begins: the chance that a part is decided about
    resumes_lost: bool = True  # under in_doubt = resend: what a crash left is sent again at once


@dataclass
class Scenario:
    """One seed's world."""

    seed: int
    plan: Plan
    tenant: Tenant
    budget: Budget
    delivery: Delivery
    phases: list[Phase]
    executions: list[Execution]
    commit_s: float  # mean
    calls_per_day: int | None
    day_s: float
    window: tuple[float, float] | None  # of each day, the part in which calls may be made: from, to


def draw(seed: int) -> Scenario:
    """The scenario of this seed."""
    chance = Random(seed)
    plan = _plan(chance)
    rate = chance.choice([1.0, 2.0, 5.0, 20.0, 20.0, 50.0, 200.0])
    day_s = chance.choice([30.0, 300.0, 3000.0])
    opens = chance.random() * 0.5
    base_s = chance.choice([0.1, 1.0])
    concurrency = chance.choice([1, 2, 3, 4, 8])
    return Scenario(
        seed=seed,
        plan=plan,
        tenant=Tenant(
            names_rows=chance.random() < 0.3,
            largest=chance.choice([1, 2, 4]) if chance.random() < 0.1 else 100,
            token_uses=chance.choice([math.inf, math.inf, concurrency, 2 * concurrency, 30]),
            token_s=chance.choice([math.inf, math.inf, 90.0, 300.0]),
            loses=chance.choice([0.0, 0.5, 1.0]),
        ),
        budget=Budget(
            requests_per_second=rate,
            interactions_per_second=chance.choice([100.0, 500.0]) if chance.random() < 0.2 else None,
            concurrency=concurrency,
        ),
        delivery=Delivery(
            in_doubt="resend" if chance.random() < 0.35 else "hold",
            on_400="reject" if chance.random() < 0.25 else "bisect",
            canary_calls=chance.choice([1, 2, 3, 5, 20]),
            max_attempts=chance.choice([1, 2, 3, 5, 10, 10]),
            backoff_base_s=base_s,
            backoff_max_s=chance.choice([base_s, 4.0, 60.0]),
            give_up_after_s=chance.choice([5.0, 60.0, 900.0]),
            breaker_failures=chance.choice([1, 2, 3, 5]),
            shutdown_grace_s=chance.choice([0.0, 0.5, 30.0]),
        ),
        phases=[_phase(chance) for _ in range(chance.randint(1, 6))],
        executions=[_execution(chance, plan.rows, rate) for _ in range(chance.randint(1, 5))],
        commit_s=chance.choice([0.0, 0.001, 0.001, 0.05, 0.5, 3.0]),
        calls_per_day=chance.choice([1, 3, 10, 30]) if chance.random() < 0.2 else None,
        day_s=day_s,
        window=(opens, opens + 0.05 + chance.random() * 0.4) if chance.random() < 0.15 else None,
    )


def _plan(chance: Random) -> Plan:
    plan = Plan()
    large = chance.random() < 0.04
    number = 0
    lane = 0
    for _ in range(1 if large else chance.randint(1, 3)):
        hot = chance.random() < 0.2
        lanes = range(lane, lane + (1 if hot else chance.randint(1, 3)))
        lane = lanes.stop
        pieces: list[list[int]] = []
        for _ in range(chance.randint(2, 3) if hot else 1):
            piece = []
            for at in lanes:
                customers = chance.choice([1, 1, 2, 5])
                for _ in range(chance.choice([1, 1, 2, 3, 5])):
                    number += 1
                    size = chance.choice([100, 37]) if large else chance.choice([1, 1, 2, 2, 3, 4, 8])
                    plan.requests[number] = Planned(
                        at, tuple(100 * at + int(chance.random() ** 2 * customers) for _ in range(size))
                    )
                    piece.append(number)
            number += chance.randint(0, 3)  # ids are not consecutive across pieces
            pieces.append(piece)
        plan.buckets.append(pieces)
    share = chance.choice([0.0, 0.0, 0.03, 0.3, 1.0 if chance.random() < 0.2 else 0.1])
    plan.bad = {
        (request, position)
        for request, planned in plan.requests.items()
        for position in range(len(planned.customers))
        if chance.random() < share
    }
    return plan


_TROUBLES: tuple[tuple[tuple[Manner, float], ...], ...] = (
    (),
    (("busy", 0.6),),
    (("busy", 1.0),),
    (("error", 0.5),),
    (("error", 1.0),),
    (("silent", 0.5),),
    (("silent", 1.0),),
    (("refusing", 1.0),),
    (("refusing", 0.5),),
    (("mixed", 0.7),),
    (("revoked", 0.3),),
    (("stale", 0.5),),
    (("elsewhere", 0.1),),
    (("contradicting", 0.3), ("error", 0.2)),
    (
        ("busy", 0.1),
        ("error", 0.05),
        ("silent", 0.05),
        ("refusing", 0.05),
        ("mixed", 0.1),
        ("revoked", 0.05),
        ("stale", 0.05),
        ("elsewhere", 0.01),
        ("contradicting", 0.02),
    ),
)


def _phase(chance: Random) -> Phase:
    return Phase(
        calls=chance.choice([2, 5, 10, 30]),
        manners=chance.choice(_TROUBLES),
        unreachable=chance.choice([0.0, 0.0, 0.0, 0.0, 0.3, 1.0]),
        slow_s=chance.choice([0.01, 0.05, 0.05, 0.5, 5.0]),
        token_fails=chance.choice([0.0, 0.0, 0.0, 0.5, 1.0 if chance.random() < 0.2 else 0.2]),
        token_refused=0.5 if chance.random() < 0.03 else 0.0,
        token_dead=1.0 if chance.random() < 0.03 else 0.0,
    )


def _execution(chance: Random, rows: int, rate: float) -> Execution:
    def moment_s() -> float:
        return chance.random() * chance.choice([0.5, 3.0, 10.0, 60.0]) * (1 + 5 / rate)

    ends = chance.random()
    return Execution(
        crash_at_step=chance.randint(1, chance.choice([20, 100, 400])) if ends < 0.55 else math.inf,
        signal_at_s=moment_s() if 0.5 < ends < 0.75 else math.inf,
        limit=chance.randint(1, max(1, rows)) if chance.random() < 0.12 else None,
        freezes=((moment_s(), chance.choice([0.3, 2.0, 100.0])),) if chance.random() < 0.15 else (),
        pause_s=chance.choice([0.0, 0.01, 0.3, 2.0, 100.0, 5000.0]),
        decides=chance.choice([0.0, 0.0, 0.3, 1.0]),
        resumes_lost=chance.random() < 0.7,
    )
