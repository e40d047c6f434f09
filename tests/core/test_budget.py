"""Pacing: never above the budget in any sliding second, and nearly all of it used."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backfill.core.budget import SLOWEST, Allowance, Hours, Pacer, Throttle, calls_per_second


def starts(pacer: Pacer, seconds: float, late: list[float], interactions: int = 100) -> list[float]:
    """Starts of someone who always has work and wakes up late by the given seconds in turn."""
    made: list[float] = []
    now_s = 0.0
    while now_s < seconds:
        now_s = max(now_s, pacer.ready_at_s) + late[len(made) % len(late)]
        pacer.take(now_s, interactions)
        made.append(now_s)
    return made


def most_in_a_second(made: list[float]) -> int:
    first = 0
    most = 0
    for last, at_s in enumerate(made):
        while at_s - made[first] >= 1.0:
            first += 1
        most = max(most, last - first + 1)
    return most


@given(
    st.sampled_from([1.0, 5.0, 20.0, 33.3, 200.0, 1000.0]),
    st.lists(st.floats(0, 3.0) | st.floats(0, 0.01), min_size=1, max_size=20),
)
def test_no_sliding_second_exceeds_the_budget(rate: float, late: list[float]) -> None:
    """However late the wake-ups come, starts never bunch beyond the budget (I8); of 33.3, a second may hold 34."""
    assert most_in_a_second(starts(Pacer(requests_per_second=rate), 10, late)) <= math.ceil(rate)


@pytest.mark.parametrize("rate", [1.0, 20.0, 200.0, 1000.0])
def test_at_least_98_percent_of_the_budget_is_used(rate: float) -> None:
    """Wake-ups up to a millisecond late cost less than the margin."""
    late = [random.Random(1).random() * 0.001 for _ in range(1000)]
    made = starts(Pacer(requests_per_second=rate, not_before_s=0.0), 30, late)
    assert len(made) / 30 >= 0.98 * rate


def test_interactions_are_paced_as_well() -> None:
    """Full requests of 100 under 1,000 interactions/s start ten times a second at the most."""
    pacer = Pacer(requests_per_second=100, interactions_per_second=1000)
    made = starts(pacer, 10, [0.0])
    assert most_in_a_second(made) == 10
    assert len(made) >= 98


def test_nothing_starts_before_the_first_moment() -> None:
    """An execution begins where the last one's second ends."""
    assert Pacer(requests_per_second=20, not_before_s=5.0).ready_at_s == 5.0


def test_a_push_back_halves_the_rate() -> None:
    """Those of requests that were in the air together count once."""
    throttle = Throttle()
    for at_s in (10.0, 10.1, 10.9):
        throttle.push_back(at_s)
    assert throttle.share(10.9) == pytest.approx(0.5, abs=0.02)
    throttle.push_back(11.0)
    assert throttle.share(11.0) == pytest.approx(0.26, abs=0.01)


def test_the_rate_comes_back_evenly() -> None:
    """Half of the budget in 25 s, and never more than all of it."""
    throttle = Throttle()
    throttle.push_back(0.0)
    assert throttle.share(12.5) == pytest.approx(0.75)
    assert throttle.share(25.0) == pytest.approx(1.0)
    assert throttle.share(1000.0) == 1.0


def test_the_rate_never_ends() -> None:
    """However often it is pushed back, a server that recovers is found out."""
    throttle = Throttle()
    for at_s in range(100):
        throttle.push_back(float(at_s))
    assert throttle.share(99.0) >= SLOWEST


@given(st.lists(st.tuples(st.floats(0, 5), st.booleans()), max_size=50))
def test_the_share_stays_a_share(steps: list[tuple[float, bool]]) -> None:
    """In (0, 1], whatever happens when; reading it changes nothing."""
    throttle = Throttle()
    now_s = 0.0
    for wait_s, pushes in steps:
        now_s += wait_s
        if pushes:
            throttle.push_back(now_s)
        share = throttle.share(now_s)
        assert SLOWEST <= share <= 1.0
        assert throttle.share(now_s) == share


def test_a_share_of_the_budget_spaces_starts_wider() -> None:
    """A quarter of 20 requests/s is 5."""
    pacer = Pacer(requests_per_second=20, not_before_s=0.0)
    pacer.take(0.0, 1, share=0.25)
    assert pacer.ready_at_s == pytest.approx(0.2, abs=0.005)


def test_without_bounds_everything_is_allowed() -> None:
    """And nothing is ever refilled."""
    allowance = Allowance(Hours())
    allowance.take(0.0)
    assert allowance.left(1e9) == math.inf


def test_the_day_is_counted_down_and_filled_at_midnight() -> None:
    """Through several midnights at once, if nobody asked in between."""
    allowance = Allowance(Hours(calls_today=2, calls_per_day=5, day_ends_at_s=100.0, day_s=1000.0))
    allowance.take(1.0)
    allowance.take(2.0)
    assert allowance.left(99.0) == 0
    assert allowance.refill_s(99.0) == 1.0
    assert allowance.left(100.0) == 5
    allowance.take(100.0)
    assert allowance.left(1099.0) == 4
    assert allowance.left(5000.0) == 5
    assert allowance.refill_s(5000.0) == 100.0


def test_outside_the_window_nothing_is_left() -> None:
    """Whatever the day still has; it is told when the window opens again."""
    allowance = Allowance(Hours(closes_at_s=10.0, opens_at_s=30.0, calls_today=7, calls_per_day=7))
    assert allowance.left(9.9) == 7
    assert allowance.left(10.0) == 0
    assert allowance.refill_s(12.0) == 18.0


@pytest.mark.parametrize(
    ("interactions_per_second", "per_call", "calls"),
    [(None, 100, 20.0), (None, 1, 20.0), (5.0, 1, 5.0), (50.0, 1, 20.0), (500.0, 100, 5.0), (500.0, 12.5, 20.0)],
)
def test_the_tighter_of_both_bounds_says_how_many_calls_fit(
    interactions_per_second: float | None, per_call: float, calls: float
) -> None:
    """With one interaction a call, interactions/s are calls/s; otherwise what a call carries counts."""
    assert calls == calls_per_second(
        requests_per_second=20.0,
        interactions_per_second=interactions_per_second,
        interactions_per_call=per_call,
    )
