"""When refusals are about rows, and when about the job."""

import pytest

from backfill.core.canary import MOST_HOPELESS, Canary


def test_open_from_the_start_where_nothing_was_ever_acknowledged() -> None:
    """A job that is not proven lets one request at a time through, a proven one does not."""
    assert Canary(calls=20, proven=False).open
    assert not Canary(calls=20, proven=True).open


@pytest.mark.parametrize("calls", [1, 2, 20])
def test_it_opens_after_so_many_refusals_in_a_row(calls: int) -> None:
    """Not one earlier."""
    canary = Canary(calls=calls, proven=True)
    for _ in range(calls - 1):
        canary.refused()
    before = canary.open
    canary.refused()
    assert (before, canary.open, canary.gives_up) == (False, True, False)


def test_an_acknowledgement_closes_it_and_forgets() -> None:
    """Refusals are counted in a row: 19, an acknowledgement and 19 more open nothing."""
    canary = Canary(calls=20, proven=True)
    for _ in range(19):
        canary.refused()
    canary.acknowledged()
    for _ in range(19):
        canary.refused()
    assert not canary.open
    assert canary.refusals == 19


def test_open_from_the_start_it_gives_up_after_so_many_refusals() -> None:
    """A wrong configuration costs 20 calls."""
    canary = Canary(calls=20, proven=False)
    for _ in range(19):
        canary.refused()
        canary.refused_to_the_last_row()
    assert not canary.gives_up
    canary.refused()
    assert canary.gives_up


def test_opened_later_it_gives_up_after_two_hopeless_requests() -> None:
    """Refusals alone do not end a job that was acknowledged before: a request of 100 bad rows costs 199."""
    canary = Canary(calls=20, proven=True)
    for _ in range(199):
        canary.refused()
    canary.refused_to_the_last_row()
    assert not canary.gives_up
    for _ in range(199):
        canary.refused()
    canary.refused_to_the_last_row()
    assert canary.gives_up


def test_hopeless_requests_before_it_opened_do_not_count() -> None:
    """Lone bad rows among acknowledged ones are no sign."""
    canary = Canary(calls=20, proven=True)
    for _ in range(MOST_HOPELESS + 10):
        canary.refused()
        canary.refused_to_the_last_row()
    assert not canary.open
    assert not canary.gives_up


def test_once_acknowledged_it_is_as_if_proven() -> None:
    """What was open from the start opens later as any other does."""
    canary = Canary(calls=2, proven=False)
    canary.acknowledged()
    canary.refused()
    canary.refused()
    assert canary.open
    assert not canary.open_from_start
    assert not canary.gives_up
