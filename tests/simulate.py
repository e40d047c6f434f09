"""Simulation: made-up histories of delivering, in virtual time, through the very dispatch that the product runs.

    python -m tests.simulate --seeds 1000000 [--first N] [--jobs 2]     so many histories, one per seed
    python -m tests.simulate --seeds 1 --first N                        a failing one again, in readable lines
    python -m tests.simulate --variants                                 how many seeds each broken variant needs
    python -m tests.simulate --exhaustive                               every history of small worlds

Prints what the histories held. Exits 1 at the first seed whose account does not balance, and tells its history.
"""

import argparse
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from tests.simulation.disk import Violation
from tests.simulation.exhaustive import WORLDS, walk
from tests.simulation.history import play
from tests.variants import VARIANTS, Variant

CHUNK = 50


class Outcome(NamedTuple):
    """Of some seeds: the first that failed and why, and what all of them held."""

    failed: int | None
    why: str
    seen: Counter[str]
    histories: Counter[str]


def _play_all(seeds: range) -> Outcome:
    seen: Counter[str] = Counter()
    histories: Counter[str] = Counter()
    for seed in seeds:
        try:
            found = play(seed)
        except Violation as violation:
            return Outcome(seed, str(violation), seen, histories)
        seen += found
        histories.update(kind for kind, count in found.items() if count)
    return Outcome(None, "", seen, histories)


def simulate(first: int, seeds: int, *, jobs: int) -> Outcome:
    """Play these seeds, stopping at the lowest that fails among those under way."""
    chunks = [range(at, min(at + CHUNK, first + seeds)) for at in range(first, first + seeds, CHUNK)]
    if jobs == 1:
        return _sum(map(_play_all, chunks))
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        return _sum(pool.imap(_play_all, chunks))


def _sum(outcomes: Iterable[Outcome]) -> Outcome:
    seen: Counter[str] = Counter()
    histories: Counter[str] = Counter()
    for outcome in outcomes:
        seen += outcome.seen
        histories += outcome.histories
        if outcome.failed is not None:
            return Outcome(outcome.failed, outcome.why, seen, histories)
    return Outcome(None, "", seen, histories)


class Caught(NamedTuple):
    """By which seed a broken variant is caught (None: by none of those tried), and what it broke."""

    variant: str
    seed: int | None
    why: str


def catch(variant: Variant, *, seeds: int) -> Caught:
    """Play seeds with this mistake in the product until one fails."""
    for seed in range(seeds):
        try:
            with variant():
                play(seed)
        except Violation as violation:
            return Caught(variant.__name__, seed, str(violation))
    return Caught(variant.__name__, None, "")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--variants", action="store_true")
    parser.add_argument("--exhaustive", action="store_true")
    arguments = parser.parse_args()
    if arguments.exhaustive:
        return _walk_all()
    if arguments.variants:
        return _table(arguments.seeds)
    if arguments.seeds == 1:
        return _tell(arguments.first)
    began_s = time.monotonic()
    outcome = simulate(arguments.first, arguments.seeds, jobs=arguments.jobs)
    for kind, count in sorted(outcome.seen.items()):
        print(f"{count:10,} in {outcome.histories[kind]:8,} histories  {kind}")
    if outcome.failed is not None:
        _tell(outcome.failed)
        return 1
    lasted_s = time.monotonic() - began_s
    print(f"{arguments.seeds:,} histories hold, {arguments.seeds / lasted_s:.0f} a second.")
    return 0


def _walk_all() -> int:
    for small in WORLDS:
        began_s = time.monotonic()
        print(small)
        try:
            walked = walk(small)
        except Violation as violation:
            print(violation)
            return 1
        lasted_s = time.monotonic() - began_s
        print(f"    {walked.states:,} states, {walked.histories:,} histories, {lasted_s:.1f} s", flush=True)
    return 0


def _table(seeds: int) -> int:
    missed = 0
    for variant in VARIANTS:
        caught = catch(variant, seeds=seeds)
        missed += caught.seed is None
        needed = "missed" if caught.seed is None else f"{caught.seed + 1:,}"
        print(f"{caught.variant.replace('_', ' '):40} {needed:>7}  {caught.why}")
    return 1 if missed else 0


def _tell(seed: int) -> int:
    lines: list[str] = []
    try:
        play(seed, lines.append)
    except Violation as violation:
        print(*lines, sep="\n")
        print(f"\nSeed {seed} fails: {violation}")
        print(f"Again: python -m tests.simulate --seeds 1 --first {seed}")
        return 1
    print(*lines, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
