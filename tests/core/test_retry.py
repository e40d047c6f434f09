"""Backoff: full jitter under a doubling, capped ceiling."""

from hypothesis import given
from hypothesis import strategies as st

from backfill.core.config import Delivery
from backfill.core.retry import backoff_s


def test_the_ceiling_doubles_up_to_the_cap() -> None:
    """With a base of 1 s and a cap of 60 s: 1, 2, 4, ... 60."""
    almost_one = 1 - 2**-53
    ceilings = [round(backoff_s(failures, Delivery(), almost_one)) for failures in range(1, 9)]
    assert ceilings == [1, 2, 4, 8, 16, 32, 60, 60]


@given(st.integers(1, 10**6), st.floats(0, 1, exclude_max=True))
def test_the_wait_lies_between_nothing_and_the_cap(failures: int, jitter: float) -> None:
    """Full jitter: anything from zero to the ceiling, for any number of failures."""
    assert 0 <= backoff_s(failures, Delivery(), jitter) <= 60
