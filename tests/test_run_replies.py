"""The table of replies (design, section 3): every row once through the real command and a server that misbehaves."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.account import AGENT
from tests.command import Ended, Job, Server, Visit, agree, expect, serving, visits

REQUEST = 100
"""Rows of a full request. A job this small has one lane, so its requests are its rows in the order of time."""


@dataclass(frozen=True)
class Trouble:
    """What happens to one request, or to one row in it, and what must become of it.

    `rule` says what the sandbox does; `mark` is how it finds the rows. `rows`: how many of the request carry it.
    """

    mark: str
    rule: str
    outcome: str
    status: int | None
    cause: str = ""
    applied: int = 0
    """How often each marked row is applied."""
    attempts: int = 1
    """Of each marked row, those of wider parts included; 0: as many as it takes."""
    rows: int = REQUEST


def doubt(mark: str, rule: str, status: int | None, cause: str, *, applied: int = 0) -> Trouble:
    return Trouble(mark, rule, "in_doubt", status, cause, applied)


def refused(mark: str, rule: str, status: int, cause: str = "refused") -> Trouble:
    """One row of a request, found by bisection."""
    return Trouble(mark, rule, "rejected", status, cause, attempts=0, rows=1)


def later(mark: str, rule: str) -> Trouble:
    """Nothing was applied the first time, and all of it the second time."""
    return Trouble(mark, rule, "delivered", 200, applied=1, attempts=2)


TROUBLES = (
    # By count, not by what is in the body, which is never read: so they come first.
    doubt("drop-before", "drop=before,after=1,until=2", None, "no_reply"),
    doubt("reset-before", "reset=before,after=2,until=3", None, "no_reply"),
    # Any byte handed over, and no whole reply.
    doubt("drop-read", "drop=read", None, "no_reply"),
    doubt("drop-after", "drop=after", None, "no_reply", applied=1),
    doubt("reset-read", "reset=read", None, "no_reply"),
    doubt("reset-after", "reset=after", None, "no_reply", applied=1),
    doubt("late", "latency_ms=900", None, "no_reply", applied=1),
    doubt("cut", "body=cut", 200, "no_reply", applied=1),
    doubt("endless", "body=endless", 200, "no_reply", applied=1),
    # A whole reply that says nothing we know.
    doubt("html", "body=html", 200, "unrecognised", applied=1),
    doubt("empty", "body=empty", 200, "unrecognised", applied=1),
    doubt("bare", "body=bare", 200, "unrecognised", applied=1),
    doubt("s500", "status=500", 500, "server_error"),
    doubt("s500-applied", "status=500,applied=yes", 500, "server_error", applied=1),
    doubt("s502", "status=502", 502, "server_error"),
    doubt("s504", "status=504,applied=yes", 504, "server_error", applied=1),
    doubt("s507", "status=507", 507, "server_error"),
    doubt("says-500", "body=mismatch", 500, "server_error"),
    # The rows are wrong.
    refused("s400", "status=400", 400),
    refused("s422", "status=422", 422),
    refused("says-400", "body=mismatch,status=400", 400),
    refused("s413", "status=413", 413, "too_large"),
    # Not now.
    later("s408", "status=408,until=1"),
    later("s429", "status=429,retry_after=1,until=1"),
    later("s429-date", "status=429,retry_after=date:2,until=1"),
    later("s503", "status=503,retry_after=soon,until=1"),
    later("says-503", "body=mismatch,status=503,until=1"),
    later("s401", "status=401,until=1"),
    Trouble("plain", "", "delivered", 200, applied=1),
)

BY_MARK = {trouble.mark: trouble for trouble in TROUBLES}


@dataclass
class Seen:
    """One run with all of these troubles."""

    job: Job
    server: Server
    ended: Ended
    outcomes: dict[str, int]
    lines: pl.DataFrame
    rows: dict[int, Visit]
    applied: dict[int, int] = field(default_factory=dict)

    def of(self, mark: str) -> pl.DataFrame:
        """Ledger lines of the rows that carry this mark."""
        return self.lines.filter(pl.col("row").is_in([row for row, visit in self.rows.items() if visit.mark == mark]))

    def calls(self, mark: str) -> list[dict[str, Any]]:
        """The calls for the request in which these rows are."""
        request = self.of(mark)["request"][0]
        found = []
        for call in self.server.calls():
            agent = AGENT.search(call["user_agent"])
            if agent is not None and int(agent[2]) == request:
                found.append(call)
        return found


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """A request for every trouble, all in one lane, in the order of the table.

    A plain one before all, and breaker_failures above the doubts in a row: a server that never acknowledged anything,
    or leaves so many in doubt, is taken for broken, and the job would stop before the table is through.
    """
    folder = tmp_path_factory.mktemp("replies")
    marks = ["plain"] * REQUEST
    marks += [trouble.mark if place < trouble.rows else "plain" for trouble in TROUBLES for place in range(REQUEST)]
    rules = [
        trouble.rule if "before" in trouble.rule else f"{trouble.rule},when=property:mark={trouble.mark}"
        for trouble in TROUBLES
        if trouble.rule
    ]
    with serving(folder / "log", *rules) as server:
        config: dict[str, dict[str, object]] = {
            "api": {"timeout_s": 0.6},
            "rows": {"max_rejected": 10},
            "delivery": {"max_in_doubt": 5_000, "max_attempts": 3, "breaker_failures": len(TROUBLES)},
        }
        job = Job(folder / "job", server.base_url, config)
        job.export("replies.csv", visits(len(marks), mark=lambda place: marks[place]))
        ended = job.run("replies.csv")
        expect(ended, 0)
        outcomes = agree(job, server)
        rows = dict(enumerate(job.truth[str(job.folder / "replies.csv")], start=1))
        known = Seen(job, server, ended, outcomes, job.ledger(), rows)
        for request in server.applied():
            for interaction in request["interactions"]:
                n = next(int(one["value"]) for one in interaction["properties"] if one["name"] == "n")
                known.applied[n] = known.applied.get(n, 0) + 1
        yield known


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.mark)
def test_what_becomes_of_a_reply(seen: Seen, trouble: Trouble) -> None:
    """Outcome, status, reason, attempts and what the server applied are those of the table."""
    lines = seen.of(trouble.mark)
    assert lines.height >= trouble.rows
    assert set(lines["outcome"]) == {trouble.outcome}
    assert set(lines["http_status"]) == {trouble.status}
    for reasons in lines["reasons"].to_list():
        assert (reasons[0] if reasons else "") == trouble.cause
    assert {seen.applied.get(n, 0) for n in lines["row"]} == {trouble.applied}
    if trouble.mark == "plain":
        return
    if trouble.attempts:
        assert set(lines["attempts"]) == {trouble.attempts}
        assert len(seen.calls(trouble.mark)) == trouble.attempts
    else:
        assert 6 <= lines["attempts"][0] <= 8, "halving 100 rows to one takes seven or eight tries"
        assert len(seen.calls(trouble.mark)) <= 15


def test_the_sum_of_all_troubles(seen: Seen) -> None:
    """The summary counts what the ledger says, and shows how to look at what is in doubt."""
    doubtful = sum(REQUEST for trouble in TROUBLES if trouble.outcome == "in_doubt")
    rejected = sum(trouble.outcome == "rejected" for trouble in TROUBLES)
    delivered = REQUEST * (1 + len(TROUBLES)) - doubtful - rejected
    assert seen.outcomes == {"delivered": delivered, "in_doubt": doubtful, "rejected": rejected}
    expect(seen.ended, 0, f"in doubt {doubtful:,}", f"rejected {rejected}", f"delivered {delivered:,}")
    assert "backfill resolve" in seen.ended.out


def test_a_refusal_is_told_in_the_words_of_the_api(seen: Seen) -> None:
    """The reason of a rejected row is the status and the API's own sentence."""
    for mark in ("s400", "s422", "s413"):
        assert "refused by a misbehaviour of the sandbox" in seen.of(mark)["reasons"][0][1]


@pytest.mark.parametrize(
    ("mark", "least_s", "most_s"), [("s429", 1.0, 2.0), ("s429-date", 1.0, 3.0), ("s503", 0.0, 0.9)]
)
def test_retry_after_is_honoured(seen: Seen, mark: str, least_s: float, most_s: float) -> None:
    """In seconds or as a date nothing is sent before; rubbish is as good as nothing."""
    first, second = seen.calls(mark)
    waited_s = second["at"] - first["answered_at"]
    assert least_s <= waited_s <= most_s
    between = [call for call in seen.server.calls() if first["answered_at"] < call["at"] < second["at"]]
    assert between == []


def test_a_refused_token_is_renewed_once(seen: Seen) -> None:
    """One 401 in the middle costs one token, and the request is sent again with it."""
    assert seen.server.tokens() == 2
    assert [call["status"] for call in seen.calls("s401")] == [401, 200]


def test_doubt_outlives_the_next_execution(seen: Seen) -> None:
    """With more in doubt than max_in_doubt the code is 4; nothing in doubt is ever sent again by itself."""
    calls = seen.server.count()
    ended = seen.job.run("replies.csv", "--set", "delivery.max_in_doubt=0")
    expect(ended, 4, "in doubt", "backfill resolve")
    assert seen.server.count() == calls


# ------------------------------------------------------------------------------------------------ settings that matter


def test_the_status_alone_can_acknowledge(tmp_path: Path) -> None:
    """With acknowledged_by = "http_status" a 2xx is enough, unless its body says otherwise."""
    rules = [f"body={body},when=property:mark={body}" for body in ("bare", "html", "empty", "mismatch", "cut")]
    marks = [mark for mark in ("bare", "html", "empty", "mismatch", "cut", "plain") for _ in range(REQUEST)]
    with serving(tmp_path / "log", *rules) as server:
        job = Job(tmp_path / "job", server.base_url, {"wire": {"acknowledged_by": "http_status"}})
        job.export("a.csv", visits(len(marks), mark=lambda place: marks[place]))
        expect(job.run("a.csv"), 4)
        assert job.outcomes() == {"delivered": 400, "in_doubt": 200}
        delivered = set(job.ledger().filter(outcome="delivered")["row"])
        assert {marks[row - 1] for row in delivered} == {"bare", "html", "empty", "plain"}
        assert sum(len(line["interactions"]) for line in server.applied()) == 500


def test_on_400_reject_refuses_the_whole_request(tmp_path: Path) -> None:
    """With on_400 = "reject" nothing is split: 100 rows are rejected by one reply, but 413 is split all the same."""
    rules = ("status=400,when=property:mark=bad", "status=413,when=bytes_over:60000")
    with serving(tmp_path / "log", *rules) as server:
        job = Job(
            tmp_path / "job",
            server.base_url,
            {"delivery": {"on_400": "reject"}, "rows": {"max_rejected": 100}},
        )
        marks = ["bad" if place == 50 else "x" * 2_000 if place >= 200 else "plain" for place in range(300)]
        job.export("a.csv", visits(300, mark=lambda place: marks[place]))
        expect(job.run("a.csv"), 0)
        assert agree(job, server) == {"delivered": 200, "rejected": 100}
        assert set(job.ledger().filter(outcome="rejected")["row"]) == set(range(1, 101))
        assert [call["status"] for call in server.calls()] == [400, 200, 413, 413, 200, 200, 413, 200, 200]


# ---------------------------------------------------------------------------------------------- replies that stop a job


@dataclass(frozen=True)
class End:
    """A reply that ends an execution: its code, what is said, and what it costs.

    `tokens`: how often the token endpoint is asked; where it is the one in trouble, no call is made.
    """

    rule: str
    code: int
    words: tuple[str, ...]
    doubtful: bool = False
    tokens: int = 1

    @property
    def at_the_door(self) -> bool:
        return "on=token" in self.rule


STOPS = (
    End("on=token,status=400", 77, ("refuses the credentials", "BACKFILL_CLIENT_SECRET")),
    End("on=token,status=302,location=/login", 78, ("HTTP 302", "api.token_url")),
    End("on=token,status=503", 75, ("No token after 3 attempts", "HTTP 503"), tokens=3),
    End("on=token,body=html", 75, ("No token after 3 attempts", "without a usable access_token"), tokens=3),
    End("status=301,location=/elsewhere", 78, ("redirects (HTTP 301", "nothing was applied", "api.base_url")),
    End("status=308,location=/elsewhere", 78, ("redirects (HTTP 308", "nothing was applied", "api.base_url")),
    End("status=401", 77, ("401", "credentials")),
    End("status=403", 77, ("permission", "HTTP 403", "BACKFILL_CLIENT_ID")),
    End("status=404", 78, ("HTTP 404", "nothing was applied", "api.base_url")),
    End("status=409", 78, ("HTTP 409", "nothing was applied", "api.base_url")),
    End("status=429,retry_after=7200", 75, ("wait 7200 s", "give_up_after_s", "Not before 20")),
    End("status=302,location=/elsewhere,applied=yes", 78, ("redirects (HTTP 302", "api.base_url"), doubtful=True),
    End("status=303,location=/elsewhere", 78, ("redirects (HTTP 303", "api.base_url"), doubtful=True),
)


def one_after_another() -> Iterator[str]:
    """The rules, each for the requests of one execution; at last a token endpoint that recovers within one."""
    calls = tokens = 0
    for stop in STOPS:
        begin, end = (tokens, tokens + stop.tokens) if stop.at_the_door else (calls, calls + 1)
        yield f"{stop.rule},after={begin},until={end}"
        tokens += stop.tokens
        calls += not stop.at_the_door
    yield f"on=token,status=500,after={tokens},until={tokens + 2}"


@dataclass(frozen=True)
class Chain:
    """One job that each of these replies stopped in turn, then ran to its end."""

    job: Job
    server: Server
    ended: dict[str, Ended]
    calls: dict[str, int]
    tokens: dict[str, int]
    last: Ended


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    folder = tmp_path_factory.mktemp("stops")
    with serving(folder / "log", *one_after_another()) as server:
        job = Job(folder / "job", server.base_url, {"delivery": {"max_attempts": 3}})
        job.export("stops.csv", visits(500))
        ended, calls, tokens = {}, {}, {}
        for stop in STOPS:
            before = len(server.calls()), server.tokens()
            ended[stop.rule] = job.run("stops.csv")
            calls[stop.rule] = len(server.calls()) - before[0]
            tokens[stop.rule] = server.tokens() - before[1]
        yield Chain(job, server, ended, calls, tokens, job.run("--json", "stops.csv"))


@pytest.mark.parametrize("stop", STOPS, ids=lambda stop: stop.rule)
def test_a_reply_that_stops_the_job(chain: Chain, stop: End) -> None:
    """One call, then nothing more: the code, the reason and the remedy are told, and the account still closes."""
    ended = chain.ended[stop.rule]
    expect(ended, stop.code, *stop.words, "Next")
    assert chain.calls[stop.rule] == (0 if stop.at_the_door else 1), "nothing is sent after it, no redirect followed"
    assert chain.tokens[stop.rule] == stop.tokens
    before = sum(each.doubtful for each in STOPS[: STOPS.index(stop)])
    doubtful = REQUEST * (before + stop.doubtful)
    assert f"in doubt {doubtful} + abandoned 0 + unsent {500 - doubtful}" in ended.out


def test_after_all_stops_the_rest_is_delivered(chain: Chain) -> None:
    """The last execution gets its token at the third try and completes; every attempt is accounted for."""
    expect(chain.last, 4)
    assert agree(chain.job, chain.server) == {"delivered": 300, "in_doubt": 200}
    tries = chain.job.ledger().group_by("request").agg(pl.col("attempts").first()).sort("request")["attempts"].to_list()
    assert tries == [8, 1, 1, 1, 1]
    assert not any("/elsewhere" in call["path"] or "/login" in call["path"] for call in chain.server.calls())


def test_resume_after_is_told_to_schedulers(tmp_path: Path) -> None:
    """--json carries resume_after where the server said when."""
    with serving(tmp_path / "log", "status=503,retry_after=3600") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(10))
        before = datetime.now(UTC)
        said = job.run("--json", "a.csv")
        expect(said, 75)
        resume_after = datetime.fromisoformat(said.object()["resume_after"])
        assert 3_590 <= (resume_after - before).total_seconds() <= 3_630
        assert said.object()["outcomes"]["unsent"] == 10


def test_a_server_that_is_never_ready_ends_in_75(tmp_path: Path) -> None:
    """A request out of max_attempts, or nothing acknowledged for give_up_after_s: stop, nothing in doubt."""
    with serving(tmp_path / "log", "status=503,until=100") as server:
        job = Job(tmp_path / "job", server.base_url, {"delivery": {"backoff_base_s": 0.01, "backoff_max_s": 0.01}})
        job.export("a.csv", visits(120))
        expect(job.run("a.csv", "--set", "delivery.max_attempts=4"), 75, "failed 4 times", "max_attempts", "HTTP 503")
        assert len(server.calls()) == 4
        slow = ["--set", "delivery.give_up_after_s=0.5", "--set", "delivery.max_attempts=1000"]
        ended = job.run("a.csv", *slow)
        expect(ended, 75, "Nothing was acknowledged for 0.5 s", "unsent 120")
        assert ended.seconds < 3
        expect(job.run("a.csv", "--set", "delivery.max_attempts=1000"), 0)
        # The stop may have met an intent that had not been sent: a try that was never made.
        assert agree(job, server, attempts_seen=False) == {"delivered": 120}


def test_connections_that_the_server_closes_cost_no_doubt(tmp_path: Path) -> None:
    """Idle connections that the server closed are seen before anything is sent on them."""
    with serving(tmp_path / "log", keep_alive=1) as server:
        job = Job(tmp_path / "job", server.base_url, budget=0.9)
        job.export("a.csv", visits(300))
        expect(job.run("a.csv"), 0)
        assert agree(job, server) == {"delivered": 300}
        assert len(server.calls()) == 3
