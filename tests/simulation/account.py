"""The account that must balance: the server's own record against what the ledger would say, at any moment.

The checks bear the names of the design's invariants, I1 to I10.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

from backfill.core.lifecycle import Move, Part, State
from tests.simulation.disk import Disk, Violation, rows_of
from tests.simulation.scenario import Plan, Row, Scenario
from tests.simulation.server import Server

Call = tuple[float, int, Part]
"""A request that started: when, in which execution, and what."""


def check_rows(scenario: Scenario, server: Server, disk: Disk) -> None:
    """I1 to I5, and what may be rejected: true at every moment, a part in flight counting as in doubt."""
    seen: Counter[Row] = Counter()
    applied = server.applied
    for part, entry in disk.leaves():
        state = entry.state
        for row in rows_of(part):
            seen[row] += 1
            times = applied[row]
            held = state in (State.IN_DOUBT, State.IN_FLIGHT) or entry.marked
            if state is State.DELIVERED and not times and not entry.assumed:
                raise Violation(f"I2: {row} is delivered, and was never applied")
            if times > 1 and not held:
                raise Violation(f"I3: {row} was applied {times} times, and is {state} without a mark")
            if state in (State.REJECTED, State.ABANDONED) and times:
                raise Violation(f"I4: {row} is {state}, and was applied")
            if times and not held and state is not State.DELIVERED:
                raise Violation(f"I5: {row} was applied, and is {state}")
            if state is State.REJECTED and row not in server.named:
                raise Violation(f"{row} is rejected, and the server never refused it alone or by name")
    if set(seen.values()) - {1} or len(seen) != scenario.plan.rows:
        raise Violation(f"I1: {scenario.plan.rows} rows are planned, {seen.total()} are accounted for")


def check_order(plan: Plan, server: Server, disk: Disk) -> None:
    """I10: each customer's rows were applied in their order; those ever in doubt are excepted, and those that the
    server itself left out of a request that it applied."""
    newest: dict[int, Row] = {}
    for _, row in server.log:
        if row in disk.doubted or row in server.skipped:
            continue
        customer = plan.requests[row[0]].customers[row[1]]
        if customer in newest and newest[customer] > row:
            raise Violation(f"I10: {row} of customer {customer} was applied after {newest[customer]}")
        newest[customer] = row


def check_pace(scenario: Scenario, calls: Sequence[Call], *, bounded: int) -> None:
    """I8 over all executions; the day's budget and the window for the first `bounded` calls."""
    rate = scenario.budget.requests_per_second
    most = -int(-rate // 1)
    times = [at_s for at_s, _, _ in calls]
    for last, at_s in enumerate(times):
        first = bisect_left(times, at_s - 1.0 + 1e-9)
        if last - first + 1 > most:
            raise Violation(f"I8: {last - first + 1} requests started in the second before {at_s:.3f} s, not {rate:g}")
    del times[bounded:]
    if scenario.calls_per_day is not None:
        per_day = Counter(int(at_s // scenario.day_s) for at_s in times)
        for day, made in per_day.items():
            if made > scenario.calls_per_day:
                raise Violation(f"{made} calls were made on day {day}, not {scenario.calls_per_day}")
    if scenario.window is not None:
        opens, closes = scenario.window
        for at_s in times:
            if not opens <= at_s % scenario.day_s / scenario.day_s < closes:
                raise Violation(f"a call was made at {at_s:.3f} s, outside the window")


def refusals_in_a_row(disk: Disk) -> int | None:
    """Refused calls since the last acknowledgement in the durable history; None if there never was one."""
    refusals = 0
    acknowledged = False
    for _, recorded in disk.history:
        if recorded.move is Move.ACKNOWLEDGED:
            acknowledged = True
            refusals = 0
        elif recorded.cause in ("refused", "too_large", "refused_after_doubt") and recorded.move in (
            Move.UNAPPLIED,
            Move.DIVIDED,
            Move.UNCLEAR,
        ):
            refusals += 1
    return refusals if acknowledged else None
