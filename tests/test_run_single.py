"""A job by the call of one interaction (`api.call = "interaction-offline"`), with the rate arithmetic that it needs.

Every ledger is held against the server's log.
"""

from itertools import pairwise
from pathlib import Path

import pytest

from tests.command import Job, Server, Visit, agree, expect, serving, visits

SINGLE = "interaction-offline"


def single(folder: Path, server: Server, **budget: object) -> Job:
    job = Job(folder, server.base_url, {"api": {"call": SINGLE}})
    job.configure(api={"call": SINGLE}, budget=budget)
    return job


def bad(count: int, first: int = 1) -> list[Visit]:
    """Rows that the server of these tests refuses."""
    return visits(count, first=first, mark=lambda _: "bad")


REFUSES_BAD = "status=400,when=property:mark=bad"


def test_each_interaction_is_a_call_of_its_own(tmp_path: Path) -> None:
    """As many calls as rows, all to interaction/offline with one object; a tid costs none more, a duplicate none."""
    with serving(tmp_path / "log") as server:
        job = single(tmp_path / "job", server)
        rows = visits(150)
        rows[7] = rows[7]._replace(tid="t-7")
        job.export("a.csv", [*rows, rows[3]])
        expect(job.run("a.csv"), 0, "150 calls")
        assert agree(job, server) == {"delivered": 150, "duplicate": 1}
        assert {(call["call"], call["interactions"]) for call in server.calls()} == {(SINGLE, 1)}
        expect(job.run("a.csv"), 0, "0 calls")
        assert len(server.calls()) == 150


def test_the_least_of_a_hundred_interactions_is_the_bulk_calls(tmp_path: Path) -> None:
    """Fewer than 100 interactions/s are a budget like any other here, kept and used; for the bulk call: 78."""
    with serving(tmp_path / "log") as server:
        job = single(tmp_path / "job", server, requests_per_second=200, interactions_per_second=20)
        job.export("a.csv", visits(60))
        expect(job.run("a.csv"), 0)
        starts = [call["at"] for call in server.calls()]
        assert min(later - earlier for earlier, later in zip(starts, starts[20:], strict=False)) >= 1.0
        assert starts[-1] - starts[0] <= 59 / 20 * 1.5, "but it is used"
        assert agree(job, server) == {"delivered": 60}
        bulk = Job(tmp_path / "bulk", server.base_url, {"budget": {"interactions_per_second": 20}})
        bulk.export("a.csv", visits(3))
        expect(bulk.run("a.csv"), 78, "budget.interactions_per_second", "at least 100", "backfill.toml, line", SINGLE)


@pytest.mark.parametrize("bounds", [{"requests_per_second": 20}, {"interactions_per_second": 20}])
def test_what_is_left_is_counted_in_rows(tmp_path: Path, bounds: dict[str, float]) -> None:
    """After a trial of 30 of 150: 120 calls are left, at the tighter of both budgets; then it goes on with those."""
    with serving(tmp_path / "log") as server:
        job = single(tmp_path / "job", server, **bounds)
        job.export("a.csv", visits(150))
        ended = job.run("a.csv", "--limit", "30", "--json")
        assert ended.code == 75
        told = ended.object()
        assert (told["requests"], told["remaining_calls"]) == (30, 120)
        assert told["remaining_s"] == pytest.approx(120 / 20, abs=0.1)
        assert len(server.calls()) == 30
        job.configure(api={"call": SINGLE}, budget={"requests_per_second": 200})
        expect(job.run("a.csv"), 0, "120 calls")
        assert agree(job, server) == {"delivered": 150}


def test_stopped_before_it_was_arranged_as_many_calls_are_left_as_rows(tmp_path: Path) -> None:
    """A day's budget of calls is one of rows; what is left is told as such."""
    with serving(tmp_path / "log") as server:
        job = single(tmp_path / "job", server, requests_per_day=40)
        job.export("a.csv", visits(100))
        ended = job.run("a.csv", "--json")
        assert ended.code == 75
        assert (ended.object()["requests"], ended.object()["remaining_calls"]) == (40, 60)
        assert agree(job, server) == {"delivered": 40, "unsent": 60}


def test_a_bad_row_costs_one_call(tmp_path: Path) -> None:
    """There is nothing to divide: a refused row is rejected after one call, beside the acknowledgement of others."""
    with serving(tmp_path / "log", REFUSES_BAD) as server:
        job = single(tmp_path / "job", server)
        job.export("a.csv", [*visits(60), *bad(3, first=61), *visits(60, first=64)])
        expect(job.run("a.csv", "--set", "rows.max_rejected=3"), 0, "123 calls")
        assert agree(job, server) == {"delivered": 120, "rejected": 3}


def test_the_canary_stops_a_wrong_configuration_after_20_rows(tmp_path: Path) -> None:
    """All is refused: 78 after 20 calls, one at a time, nothing rejected; then it completes."""
    with serving(tmp_path / "log", "status=400,until=20", "latency_ms=20") as server:
        job = single(tmp_path / "job", server)
        job.export("a.csv", visits(120))
        expect(job.run("a.csv"), 78, "20 calls in a row", "rejected 0", "unsent 120")
        calls = server.calls()
        assert len(calls) == 20
        assert all(later["at"] >= earlier["answered_at"] for earlier, later in pairwise(calls))
        expect(job.run("a.csv"), 0)
        assert agree(job, server) == {"delivered": 120}


def test_a_long_row_of_bad_ones_stops_it_with_nothing_rejected(tmp_path: Path) -> None:
    """Of 30 bad rows in a row 21 are asked for: the 20th opens the canary, the next stops it; with canary_calls raised
    it completes.
    """
    with serving(tmp_path / "log", REFUSES_BAD) as server:
        job = single(tmp_path / "job", server, concurrency=1)
        job.export("a.csv", [*visits(10), *bad(30, first=11), *visits(10, first=41)])
        expect(job.run("a.csv"), 78, "delivery.canary_calls", "rejected 0", "delivered 10")
        assert len(server.calls()) == 10 + 21
        expect(job.run("a.csv", "--set", "delivery.canary_calls=50", "--set", "rows.max_rejected=30"), 0)
        assert agree(job, server, concurrency=1) == {"delivered": 20, "rejected": 30}


def test_a_lost_reply_leaves_one_row_in_doubt(tmp_path: Path) -> None:
    """Doubt is no wider than the call."""
    with serving(tmp_path / "log", "drop=after,every=20") as server:
        job = single(tmp_path / "job", server)
        job.export("a.csv", visits(100))
        expect(job.run("a.csv"), 4, "in doubt 5")
        assert agree(job, server) == {"delivered": 95, "in_doubt": 5}


def test_the_call_belongs_to_the_job(tmp_path: Path) -> None:
    """Another call for the same state is another tenant (78), also when nothing else changed."""
    with serving(tmp_path / "log") as server:
        job = single(tmp_path / "job", server)
        job.export("a.csv", visits(20))
        expect(job.run("a.csv"), 0)
        expect(job.run("a.csv", "--set", "api.call=interactions-offline"), 78, "api.call", "--state")
