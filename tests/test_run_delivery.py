"""Breakers, canary, doubt, pacing and trials through the real command: what stops a job, what it costs, what it tells.

Every ledger is held against the server's log; what a server that is ill must not cost is counted there.
"""

import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pytest

from tests.account import AGENT
from tests.command import Job, Server, agree, expect, serving, visits

REQUEST = 100
"""Rows of a full request. A job of 40 customers has one lane, so its requests are its rows in the order of time."""

CANARY_CALLS = 20
BREAKER_FAILURES = 5

EVERY_ROW_REFUSED = 2 * REQUEST - 1
"""Calls that it takes to find by bisection that no row of a full request is taken."""

REMEDIES = ("Mend the configuration", "[columns], [wire], api.call", "not_before", "delivery.canary_calls", "abandon")


def port_of(server: Server) -> int:
    return int(server.base_url.rpartition(":")[2])


def interactions(server: Server) -> int:
    """How many were applied, repetitions included."""
    return sum(len(request["interactions"]) for request in server.applied())


# ---------------------------------------------------------------------------------------------------------- the canary


def test_a_wrong_configuration_costs_20_calls_and_no_row(tmp_path: Path) -> None:
    """All is refused: 78 after 20 calls with remedies, nothing rejected; as much when run again; then it completes.

    How many calls is a setting (delivery.canary_calls).
    """
    with serving(tmp_path / "log", f"status=400,until={2 * CANARY_CALLS + 3}") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(3_000, customers=600))
        for made in (CANARY_CALLS, CANARY_CALLS, 3):
            before = len(server.calls())
            ended = job.run("a.csv", "--set", f"delivery.canary_calls={made}")
            expect(ended, 78, f"{made} calls in a row", "HTTP 400", "refused by a misbehaviour", *REMEDIES, "Next")
            expect(ended, 78, "rejected 0", "in doubt 0", "unsent 3,000")
            assert len(server.calls()) - before == made
        assert agree(job, server) == {"unsent": 3_000}
        expect(job.run("a.csv"), 0)
        assert agree(job, server) == {"delivered": 3_000}


def test_a_server_that_turns_to_refusing_everything_gets_no_row_rejected(tmp_path: Path) -> None:
    """After three good calls all is refused: some 420 calls, 78; 20 when run again; and it goes on when all is well."""
    with serving(tmp_path / "log", "status=400,after=3") as server:
        job = Job(tmp_path / "job", server.base_url, budget=2_000)
        job.export("a.csv", visits(600))
        expect(job.run("a.csv"), 78, "rejected 0", *REMEDIES)
        refused = len(server.calls()) - 3
        assert refused <= CANARY_CALLS + 2 * EVERY_ROW_REFUSED + 2
        expect(job.run("a.csv"), 78, "20 calls in a row", "rejected 0")
        assert len(server.calls()) == 3 + refused + CANARY_CALLS
        assert agree(job, server) == {"delivered": 300, "unsent": 300}
    with serving(tmp_path / "log", port=port_of(server)) as server:
        expect(job.run("a.csv"), 0)
        assert agree(job, server) == {"delivered": 600}


@pytest.mark.parametrize(
    ("bad", "allowed", "code"),
    [((0, 1, 2), 3, 0), ((7, 150, 249), 2, 3), ((247, 248, 249), 3, 0)],
    ids=["first", "anywhere", "last"],
)
def test_three_bad_rows_are_rejected_wherever_they_stand(
    tmp_path: Path, bad: tuple[int, ...], allowed: int, code: int
) -> None:
    """A night with three bad rows completes, with 3 where max_rejected does not allow them; each is found alone."""
    with serving(tmp_path / "log", "status=400,when=property:mark=bad") as server:
        job = Job(tmp_path / "job", server.base_url, {"rows": {"max_rejected": allowed}})
        job.export("a.csv", visits(250, mark=lambda place: "bad" if place in bad else "plain"))
        expect(job.run("a.csv"), code, "delivered 247", "rejected 3")
        assert agree(job, server) == {"delivered": 247, "rejected": 3}
        assert {row - 1 for row in job.ledger().filter(outcome="rejected")["row"]} == set(bad)


def test_a_load_that_is_refused_whole_is_not_believed(tmp_path: Path) -> None:
    """Two rows, both refused, and nothing was ever acknowledged: 78, nothing is rejected."""
    with serving(tmp_path / "log", "status=400,until=3") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(2))
        expect(job.run("a.csv"), 78, "3 calls in a row", "rejected 0", "unsent 2", *REMEDIES)
        assert agree(job, server) == {"unsent": 2}
        expect(job.run("a.csv"), 0)
        assert agree(job, server) == {"delivered": 2}


def test_many_bad_rows_never_stop_a_job(tmp_path: Path) -> None:
    """30% of all rows are bad: all are found, and the rest is delivered."""
    drawn = random.Random(4711)
    marks = ["bad" if drawn.random() < 0.3 else "plain" for _ in range(300)]
    with serving(tmp_path / "log", "status=400,when=property:mark=bad") as server:
        job = Job(tmp_path / "job", server.base_url, {"rows": {"max_rejected": "50%"}}, budget=2_000)
        job.export("a.csv", visits(300, customers=300, mark=lambda place: marks[place]))
        expect(job.run("a.csv"), 0)
        assert agree(job, server) == {"delivered": marks.count("plain"), "rejected": marks.count("bad")}


# ------------------------------------------------------------------------------------------------ results row by row


def test_results_row_by_row_split_the_request_by_fate(tmp_path: Path) -> None:
    """Inside a 200: refused rows are rejected without bisection, unapplied ones sent again, broken ones in doubt."""
    rules = (
        "body=results,when=property:mark=bad",
        "body=results,status=503,when=property:mark=later,until=1",
        "body=results,status=500,when=property:mark=broken",
    )
    # The later ones are the last of their customers in their request: what the server itself takes in another order
    # cannot be put right.
    at = {3: "bad", 50: "bad", 51: "bad", 170: "later", 180: "later", 299: "broken"}
    with serving(tmp_path / "log", *rules) as server:
        job = Job(tmp_path / "job", server.base_url, {"rows": {"max_rejected": 3}, "delivery": {"max_in_doubt": 1}})
        job.export("a.csv", visits(400, mark=lambda place: at.get(place, "plain")))
        expect(job.run("a.csv"), 0, "rejected 3", "in doubt 1")
        assert agree(job, server) == {"delivered": 396, "rejected": 3, "in_doubt": 1}
        lines = job.ledger().sort("row")
        told = {
            row - 1: (outcome, status, tries)
            for row, outcome, status, tries in lines.select("row", "outcome", "http_status", "attempts").iter_rows()
        }
        assert {place: told[place] for place in at} == {
            3: ("rejected", 400, 1),
            50: ("rejected", 400, 1),
            51: ("rejected", 400, 1),
            170: ("delivered", 200, 2),
            180: ("delivered", 200, 2),
            299: ("in_doubt", 500, 1),
        }
        assert {told[place] for place in range(400) if place not in at} == {("delivered", 200, 1)}
        assert len(server.calls()) == 4 + 2, "one call for each row that was not applied, none for the refused"


def test_results_that_refuse_every_row_are_no_acknowledgement(tmp_path: Path) -> None:
    """A 200 with a 400 for every single row is what a wrong mapping looks like: 78, nothing rejected."""
    with serving(tmp_path / "log", "body=results,when=key_contains:PRIVATE") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(250))
        expect(job.run("a.csv"), 78, "rejected 0", *REMEDIES)
        assert len(server.calls()) <= CANARY_CALLS
        assert agree(job, server) == {"unsent": 250}


# --------------------------------------------------------------------------------------- a server that is of no use


@pytest.mark.parametrize(
    ("rule", "cause"),
    [
        ("status=500", "server_error"),
        ("body=html", "unrecognised"),
        ("latency_ms=700", "no_reply"),
    ],
)
def test_a_server_without_a_useful_answer_leaves_a_handful_in_doubt(tmp_path: Path, rule: str, cause: str) -> None:
    """Only 500, only HTML, or nothing: five requests, one after the other, are in doubt, then 75; the rest waits."""
    with serving(tmp_path / "log", rule) as server:
        job = Job(tmp_path / "job", server.base_url, {"api": {"timeout_s": 0.3}})
        job.export("a.csv", visits(6_000, customers=1_200))
        ended = job.run("a.csv")
        expect(ended, 75, "no usable answer", "5 calls, one after the other", "breaker_failures", "Next")
    calls = server.calls()  # those that nobody waited for stand in the log only now that the server has ended
    assert len(calls) == BREAKER_FAILURES
    doubtful = sum(call["interactions"] for call in calls)
    assert agree(job, server) == {"in_doubt": doubtful, "unsent": 6_000 - doubtful}
    assert {reasons[0] for reasons in job.ledger().filter(outcome="in_doubt")["reasons"].to_list()} == {cause}


def test_a_server_that_recovers_is_gone_on_with(tmp_path: Path) -> None:
    """Ill in the middle of a job: what was in the air and a few probes are in doubt; the same execution completes."""
    with serving(tmp_path / "log", "status=500,after=10,until=18") as server:
        job = Job(tmp_path / "job", server.base_url, {"delivery": {"max_in_doubt": 900, "breaker_failures": 5}})
        job.export("a.csv", visits(6_000, customers=1_200))
        expect(job.run("a.csv"), 0)
        doubtful = sum(call["interactions"] for call in server.calls() if call["status"] == 500)
        assert 0 < doubtful <= 8 * REQUEST
        assert agree(job, server) == {"delivered": 6_000 - doubtful, "in_doubt": doubtful}


# ---------------------------------------------------------------------------------------------------------------- doubt


def test_resend_delivers_at_least_once_and_marks_what_may_be_there_twice(tmp_path: Path) -> None:
    """in_doubt = "resend": requests that may have been applied are sent again; all are delivered, those are marked."""
    marks = ["twice" if 100 <= place < 200 else "once" if 300 <= place < 400 else "plain" for place in range(500)]
    rules = ("drop=after,when=property:mark=twice,until=1", "drop=read,when=property:mark=once,until=2")
    with serving(tmp_path / "log", *rules) as server:
        job = Job(tmp_path / "job", server.base_url, {"delivery": {"in_doubt": "resend"}})
        job.export("a.csv", visits(500, mark=lambda place: marks[place]))
        expect(job.run("a.csv"), 0, "in doubt 0", "delivered 500")
        assert agree(job, server) == {"delivered": 500}
        marked = {row - 1 for row in job.ledger().filter(pl.col("maybe_duplicate"))["row"]}
        assert marked == {place for place, mark in enumerate(marks) if mark != "plain"}
        assert times_applied(server) == {n + 1: 2 if mark == "twice" else 1 for n, mark in enumerate(marks)}
        calls = server.count()
        expect(job.run("a.csv"), 0)
        assert server.count() == calls


def times_applied(server: Server) -> Counter[int]:
    """By event id."""
    return Counter(
        int(one["value"])
        for request in server.applied()
        for interaction in request["interactions"]
        for one in interaction["properties"]
        if one["name"] == "n"
    )


def test_a_row_refused_after_a_doubt_stays_in_doubt(tmp_path: Path) -> None:
    """The refusal speaks of the second attempt; the first may have been applied, and here it was: never rejected."""
    rules = ("drop=after,when=property:mark=bad,until=1", "status=400,when=property:mark=bad,after=1")
    with serving(tmp_path / "log", *rules) as server:
        job = Job(tmp_path / "job", server.base_url, {"delivery": {"in_doubt": "resend", "max_in_doubt": 1}})
        job.export("a.csv", visits(300, mark=lambda place: "bad" if place == 150 else "plain"))
        expect(job.run("a.csv"), 0, "rejected 0", "in doubt 1")
        assert agree(job, server) == {"delivered": 299, "in_doubt": 1}
        doubtful = job.ledger().filter(outcome="in_doubt")
        assert (doubtful["row"].to_list(), doubtful["reasons"][0][0]) == ([151], "refused_after_doubt")


# -------------------------------------------------------------------------------------------------- push-back, tokens


@pytest.mark.parametrize(("retry_after", "least_s", "most_s"), [("1", 1.0, 2.0), ("date:2", 1.0, 3.0)])
def test_retry_after_is_meant_for_all_lanes(tmp_path: Path, retry_after: str, least_s: float, most_s: float) -> None:
    """429 to one of many lanes, in seconds or as a date: by the server's log nobody calls before, then all is well."""
    with serving(tmp_path / "log", f"status=429,retry_after={retry_after},after=9,until=10", "latency_ms=5") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(4_000, customers=800))
        expect(job.run("a.csv"), 0)
        assert agree(job, server) == {"delivered": 4_000}
        calls = server.calls()
        pushed_back = next(call for call in calls if call["status"] == 429)
        # Those that had been granted their place before the answer came are on their way.
        after = [call["at"] - pushed_back["answered_at"] for call in calls]
        assert not [wait_s for wait_s in after if 0.1 < wait_s < least_s]
        assert least_s <= min(wait_s for wait_s in after if wait_s > 0.1) <= most_s


def test_a_server_that_refuses_a_fifth_for_now_gets_everything(tmp_path: Path) -> None:
    """A fifth of the calls is answered 503: slower, but complete, and nothing is in doubt."""
    with serving(tmp_path / "log", "status=503,share=0.2,seed=5") as server:
        job = Job(tmp_path / "job", server.base_url, budget=1_000)
        job.export("a.csv", visits(6_000, customers=1_200))
        expect(job.run("a.csv"), 0)
        assert agree(job, server) == {"delivered": 6_000}
        assert sum(call["status"] == 503 for call in server.calls()) > 5


@pytest.mark.parametrize(
    ("status", "code", "tokens", "words"),
    [
        (503, 75, 3, ("No token after 3 attempts", "HTTP 503")),
        (401, 77, 1, ("refuses the credentials", "HTTP 401", "BACKFILL_CLIENT_SECRET")),
    ],
)
def test_a_token_endpoint_in_trouble_stops_before_any_call(
    tmp_path: Path, status: int, code: int, tokens: int, words: tuple[str, ...]
) -> None:
    """Down: tried max_attempts times, 75; refused: once, 77; nothing is sent, and it completes when all is well."""
    with serving(tmp_path / "log", f"status={status},on=token,until={tokens}") as server:
        job = Job(tmp_path / "job", server.base_url, {"delivery": {"max_attempts": 3}})
        job.export("a.csv", visits(250))
        expect(job.run("a.csv"), code, *words, "unsent 250")
        assert (server.tokens(), server.calls()) == (tokens, [])
        assert agree(job, server) == {"unsent": 250}
        expect(job.run("a.csv"), 0)
        assert agree(job, server) == {"delivered": 250}


# ---------------------------------------------------------------------------------------------------- trials and hours


def test_a_trial_sends_exactly_as_many_as_it_says(tmp_path: Path) -> None:
    """--limit: so many interactions and not one more, 75; the same command without it delivers the rest, each once."""
    limit = 777
    with serving(tmp_path / "log") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(1_500, customers=400))
        expect(job.run("--limit", str(limit), "a.csv"), 75, "--limit", f"delivered {limit}", "Next")
        assert interactions(server) == limit
        assert agree(job, server) == {"delivered": limit, "unsent": 1_500 - limit}
        expect(job.run("a.csv", "--limit", "10"), 75)  # a trial counts for itself, and goes on in the cut request
        assert interactions(server) == limit + 10
        expect(job.run("a.csv", "--limit", "5000"), 0)
        assert agree(job, server) == {"delivered": 1_500}


def test_a_trial_of_bad_rows_says_so(tmp_path: Path) -> None:
    """What a limit let through is tried to the end, here by halves; refused and nothing acknowledged: 78."""
    with serving(tmp_path / "log", "status=400") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(250))
        expect(job.run("--limit", "4", "a.csv"), 78, *REMEDIES)
        assert len(server.calls()) == 7
        assert agree(job, server) == {"unsent": 250}


def test_a_job_that_must_have_a_state_never_begins_anew(tmp_path: Path) -> None:
    """--require-state: 78 without one, and none is made; with one it goes on."""
    with serving(tmp_path / "log") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(250))
        expect(job.run("--require-state", "a.csv"), 78, str(job.state), "--require-state", "--state")
        assert (server.count(), job.state.exists()) == (0, False)
        expect(job.run("--limit", "100", "a.csv"), 75)
        expect(job.run("--require-state", "a.csv"), 0)
        assert agree(job, server) == {"delivered": 250}


def zone_at_noon() -> str:
    """A zone in which it is about noon now: no test that counts days may meet midnight."""
    hour = datetime.now(UTC).hour
    return f"Etc/GMT{hour - 12:+d}" if hour != 12 else "UTC"


def test_the_day_s_budget_is_counted_across_executions(tmp_path: Path) -> None:
    """requests_per_day: every call of the day counts, whichever execution made it; then 75 until the next midnight."""
    zone = zone_at_noon()
    with serving(tmp_path / "log", "status=400,when=property:mark=bad") as server:
        job = Job(tmp_path / "job", server.base_url, {"budget": {"window_zone": zone}, "rows": {"max_rejected": 1}})
        job.export("a.csv", visits(600, mark=lambda place: "bad" if place == 199 else "plain"))
        # Its third call is the first half of a refused request: bisection costs calls like anything else.
        for allowed, made in ((4, 4), (4, 0), (6, 2)):
            before = len(server.calls())
            ended = job.run("--json", "a.csv", "--set", f"budget.requests_per_day={allowed}")
            expect(ended, 75, "budget.requests_per_day")
            said = ended.object()
            assert (len(server.calls()) - before, said["requests"]) == (made, made)
            assert said["remaining_calls"] > 0
            resumed = resume_after(said).astimezone(ZoneInfo(zone))
            assert resumed.date() == datetime.now(ZoneInfo(zone)).date() + timedelta(days=1)
            assert resumed - resumed.replace(hour=0, minute=0, second=0) < timedelta(seconds=5)
            agree(job, server)
        expect(job.run("a.csv", "--set", "budget.requests_per_day=100"), 0)
        assert agree(job, server) == {"delivered": 599, "rejected": 1}


def resume_after(said: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(said["resume_after"])


def test_outside_the_window_nothing_is_sent(tmp_path: Path) -> None:
    """75 at once, not even a token is asked for, with the time at which it opens; inside it, the same job completes."""
    now = datetime.now(UTC).replace(second=0, microsecond=0)

    def window(opens_h: int, closes_h: int) -> str:
        opens, closes = (now + timedelta(hours=hours) for hours in (opens_h, closes_h))
        return f"{opens:%H:%M}-{closes:%H:%M}"

    with serving(tmp_path / "log") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(250))
        ended = job.run("--json", "a.csv", "--set", f"budget.window={window(6, 8)}")
        expect(ended, 75, "outside the time window", window(6, 8), "budget.window")
        said = ended.object()
        assert abs(resume_after(said) - (now + timedelta(hours=6))) < timedelta(seconds=5)
        assert said["not_taken"] == [str(job.folder / "a.csv")]
        assert server.count() == 0
        expect(job.run("a.csv", "--set", f"budget.window={window(-6, 6)}", "--limit", "100"), 75)
        # Also where the load is staged already.
        ended = job.run("--json", "a.csv", "--set", f"budget.window={window(6, 8)}")
        expect(ended, 75, "outside the time window")
        assert (ended.object()["requests"], ended.object()["outcomes"]["unsent"]) == (0, 150)
        assert agree(job, server) == {"delivered": 100, "unsent": 150}
        expect(job.run("a.csv", "--set", f"budget.window={window(-6, 6)}"), 0)
        assert agree(job, server) == {"delivered": 250}


def test_what_is_refused_costs_at_most_what_bisection_must(tmp_path: Path) -> None:
    """A lone bad row among 100 costs 15 calls, a hopeless request 199, all within the budget, the lane in order."""
    marks = ["bad" if place == 157 or 300 <= place < 400 else "plain" for place in range(600)]
    with serving(tmp_path / "log", "status=400,when=property:mark=bad") as server:
        config: dict[str, dict[str, object]] = {"rows": {"max_rejected": 101}}
        job = Job(tmp_path / "job", server.base_url, config, budget=100)
        job.export("a.csv", visits(600, mark=lambda place: marks[place]))
        expect(job.run("a.csv"), 0)
        assert agree(job, server) == {"delivered": 499, "rejected": 101}
        cost = Counter(int(agent[2]) for call in server.calls() if (agent := AGENT.search(call["user_agent"])))
        in_order = [cost[request] for request in sorted(cost)]
        assert (in_order[0], in_order[2], in_order[4], in_order[5]) == (1, 1, 1, 1)
        assert in_order[1] <= 15
        assert in_order[3] == EVERY_ROW_REFUSED
