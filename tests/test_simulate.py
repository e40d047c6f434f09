"""The simulation in its short form, what it must have met to prove anything, and that it sees every known mistake."""

import multiprocessing

import pytest

from tests.simulate import catch, simulate
from tests.simulation.disk import Violation
from tests.simulation.exhaustive import WORLDS, Small, walk
from tests.variants import (
    VARIANTS,
    Variant,
    belief_after_the_acknowledgement,
    intent_not_awaited,
    no_reply_is_not_sent,
    rejected_after_doubt,
    resend_unmarked,
    right_half_first,
    sorted_part_forgotten,
)

SEEDS = 10_000

MET = (
    "crash",
    "commits lost in a crash",
    "lost in a crash",
    "signal",
    "reply not awaited",
    "process stood still",
    "applied after the reply was given up",
    "not connected",
    "token failed",
    "complete",
    "decided: abandoned",
    "decided: decided_delivered",
    "decided: decided_not_delivered",
    "decided: decided_resend",
    "move: believed",
    "move: cut",
    "move: decided_doubt",
    "move: divided",
    "move: refused",
    "move: sorted",
    "move: unclear",
    "server: several fates",
    "server: stale",
    "stop: As many interactions",
    "stop: No token",
    "stop: Nothing was acknowledged",
    "stop: Request failed",
    "stop: Stopped by a signal",
    "stop: The API does not take this call",
    "stop: The API refused the token",
    "stop: The API refuses what is sent",
    "stop: The credentials lack",
    "stop: The day's budget",
    "stop: The server asks to wait",
    "stop: The server gives no usable answer",
    "stop: The server redirects",
    "stop: The time window",
)
"""What must have occurred in at least ten histories."""


@pytest.mark.timeout(900)
def test_ten_thousand_histories_hold() -> None:
    """I1 to I10 hold through crashes, lost commits and every reply, and each trouble was really met."""
    outcome = simulate(0, SEEDS, jobs=multiprocessing.cpu_count())
    for kind, count in sorted(outcome.seen.items()):
        print(f"{count:10,} in {outcome.histories[kind]:8,} histories  {kind}")
    assert outcome.failed is None, (
        f"seed {outcome.failed}: {outcome.why}; again: python -m tests.simulate --seeds 1 --first {outcome.failed}"
    )
    rare = {
        kind for kind in MET if sum(count for name, count in outcome.histories.items() if name.startswith(kind)) < 10
    }
    assert rare == set(), "the simulation is too mild to prove anything about these"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_broken_variant_is_caught(variant: Variant) -> None:
    """Each mistake shows within 5,000 histories, half of what every run of the tests plays."""
    assert catch(variant, seeds=5_000).seed is not None


@pytest.mark.timeout(600)
@pytest.mark.parametrize("small", WORLDS[:4], ids=str)
def test_every_history_of_a_small_world_holds(small: Small) -> None:
    """All interleavings of two lanes, with crashes and every reply that matters."""
    walked = walk(small)
    print(f"{walked.states:,} states, {walked.histories:,} histories")
    assert walked.states > 4_000
    assert walked.histories > 300_000


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("variant", "small"),
    [
        (belief_after_the_acknowledgement, Small(lanes=((1, 1), (1,)), bad=frozenset({(1, 0)}), signals=0)),
        (intent_not_awaited, WORLDS[0]),
        (no_reply_is_not_sent, WORLDS[0]),
        (rejected_after_doubt, WORLDS[1]),
        (resend_unmarked, WORLDS[1]),
        (right_half_first, WORLDS[2]),
        (sorted_part_forgotten, WORLDS[2]),
    ],
)
def test_a_mistake_shows_in_a_small_world(variant: Variant, small: Small) -> None:
    """The walk sees what the seeds see."""
    with variant(), pytest.raises(Violation):
        walk(small)
