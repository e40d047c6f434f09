"""Pacing: never above the budget in any sliding second, and nearly all of it used."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backfill.core.budget import Pacer


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
