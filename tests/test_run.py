"""The job itself: the real command against the real sandbox, run, run again, killed, and held against the log."""

import contextlib
import csv
import json
import shutil
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from backfill.core.budget import Pacer
from tests.account import AGENT, server_log
from tests.command import ROOT, Job, Server, Visit, agree, expect, serving, until, visits

SAMPLE = ROOT / "sample_data"
WEB, BRANCH = "web_and_app.csv", "branch_visits.parquet"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A well-behaved sandbox. Jobs that share it must differ in their event ids, or not look at its log."""
    with serving(tmp_path_factory.mktemp("server") / "log") as one:
        yield one


# ------------------------------------------------------------------------------------------------------- sample data


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of sample_data, run once against the sandbox that `run --sandbox` starts."""
    folder = tmp_path_factory.mktemp("sample") / "sample_data"
    shutil.copytree(SAMPLE, folder, ignore=shutil.ignore_patterns(".backfill"))
    job = Job(folder.parent / "elsewhere", "http://127.0.0.1:1")
    job.state = folder / ".backfill" / "sample.sandbox"
    arguments = ["--sandbox", "--json", "--set", "budget.requests_per_second=400", str(folder)]
    config = ["--config", str(folder / "backfill.toml")]
    ended = job.run(*config, *arguments, environment={"BACKFILL_CLIENT_ID": None, "BACKFILL_CLIENT_SECRET": None})
    expect(ended, 0)
    told = json.loads((folder / "expected.json").read_text())
    said = ended.object()
    assert said["balanced"]
    for figure in ("delivered", "invalid", "duplicate"):
        assert said["outcomes"][figure] == told["total"][figure]
    assert sum(said["outcomes"].values()) == said["read"] == told["total"]["read"]
    assert said["requests"] == sum(line["call"] != "token" for line in server_log(job.state / "sandbox", "requests"))
    for export in said["exports"]:
        expected = told["exports"][Path(export["export"]).name]
        found = {figure: export["outcomes"][figure] for figure in ("delivered", "invalid", "duplicate")}
        assert found == {figure: expected[figure] for figure in found}
        assert export["read"] == expected["read"]
    return folder


def sample_ledger(folder: Path) -> pl.DataFrame:
    state = folder / ".backfill" / "sample.sandbox"
    manifest = json.loads((state / "ledger" / "manifest.json").read_text())
    parts = pl.concat(pl.read_parquet(state / "ledger" / part["path"]) for part in manifest["parts"])
    return parts.with_columns(name=pl.col("export").str.split("/").list.last()).sort("name", "row")


def test_the_sample_run_finds_what_it_must_find(sample: Path) -> None:
    """Every invalid row with its line and reasons, and every duplicate with its original, is as expected.json says."""
    told = json.loads((sample / "expected.json").read_text())
    lines = sample_ledger(sample)
    invalid = [
        {"export": line["name"], "row": line["row"], "line": line["line"], "reasons": sorted(line["reasons"])}
        for line in lines.filter(outcome="invalid").iter_rows(named=True)
    ]
    assert invalid == told["invalid_rows"]
    duplicates = [
        {
            "export": line["name"],
            "row": line["row"],
            "line": line["line"],
            "duplicate_of": Path(line["duplicate_of"]).name,
        }
        for line in lines.filter(outcome="duplicate").iter_rows(named=True)
    ]
    assert duplicates == told["duplicate_rows"]


def sample_interactions() -> dict[tuple[str, int], tuple[str | None, dict[str, Any]]]:
    """tid and interaction of every row whose timestamp can be read, by export and row: not by the product's reader."""
    found: dict[tuple[str, int], tuple[str | None, dict[str, Any]]] = {}
    with (SAMPLE / WEB).open(encoding="utf-8", newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    branch = pl.read_parquet(SAMPLE / BRANCH).to_dicts()
    for export, records in ((WEB, rows), (BRANCH, branch)):
        for row, values in enumerate(records, start=1):
            timestamp = values.pop("timestamp")
            try:
                at = timestamp if isinstance(timestamp, datetime) else datetime.fromisoformat(timestamp)
                epoch_ms = (at - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1000
            except (TypeError, ValueError):
                continue
            whole = {"timestamp": round(epoch_ms), "url": values.pop("url"), "customerKey": values.pop("customer_key")}
            tid = values.pop("tid") or None
            properties = [
                {"name": name, "value": str(value).lower() if isinstance(value, bool) else str(value)}
                for name, value in sorted(values.items())
                if value is not None and value != ""
            ]
            found[export, row] = (tid, whole | {"customerKeyName": "customerkey", "properties": properties})
    return found


def event_of(interaction: dict[str, Any]) -> str:
    """What tells the interactions of the sample data apart."""
    ids = ("event_id", "visit_id")
    return next(str(one["name"] + one["value"]) for one in interaction["properties"] if one["name"] in ids)


def test_each_delivered_sample_row_was_applied_once_as_it_stands_in_its_export(sample: Path) -> None:
    """Row by row: what the server applied is the export's row, once, from the request and position of the ledger."""
    state = sample / ".backfill" / "sample.sandbox"
    applied: dict[str, list[tuple[int, int, str | None, dict[str, Any]]]] = {}
    for request in server_log(state / "sandbox", "applied"):
        agent = AGENT.search(request["user_agent"])
        assert agent is not None
        for position, interaction in enumerate(request["interactions"], start=int(agent[3])):
            applied.setdefault(event_of(interaction), []).append((int(agent[2]), position, request["tid"], interaction))
    rows = sample_interactions()
    delivered = sample_ledger(sample).filter(outcome="delivered")
    assert delivered.height == sum(map(len, applied.values()))
    for line in delivered.iter_rows(named=True):
        tid, interaction = rows[line["name"], line["row"]]
        assert applied[event_of(interaction)] == [(line["request"], line["position"], tid, interaction)]


def test_the_sample_job_can_be_looked_at(sample: Path) -> None:
    """`status`, `verify` and `ledger` agree with the run; the ledger as CSV has a line for each row asked for."""
    job = Job(sample.parent / "looking", "http://127.0.0.1:1")
    job.state = sample / ".backfill" / "sample.sandbox"
    status = job.run("--json", command="status").object()
    assert (status["running"], status["last"]["exit_code"], status["not_in_ledger"]) == (False, 0, [])
    assert sum(export["outcomes"]["delivered"] for export in status["exports"]) == 9_876
    verdict = job.run("--json", command="verify")
    assert (verdict.code, verdict.object()["ok"]) == (0, True)
    refused = job.run("--outcome", "invalid", command="ledger")
    assert (refused.code, len(list(csv.DictReader(refused.out.splitlines(keepends=True))))) == (0, 72)


# ---------------------------------------------------------------------------------------------------- running again


def test_running_again_sends_nothing_and_says_the_same(tmp_path: Path) -> None:
    """After completion nothing is sent, not even for a token; with or without EXPORT the account is the same."""
    with serving(tmp_path / "log") as server:
        job = Job(tmp_path / "job", server.base_url)
        export = job.export("june.csv", visits(450))
        first = job.run("--json", export)
        expect(first, 0)
        assert agree(job, server) == {"delivered": 450}
        manifest = (job.state / "ledger" / "manifest.json").read_bytes()
        for arguments in (["--json", export], ["--json"]):
            again = job.run(*arguments, environment={"BACKFILL_CLIENT_ID": None, "BACKFILL_CLIENT_SECRET": None})
            expect(again, 0)
            assert again.object()["requests"] == 0
            assert again.object()["outcomes"] == first.object()["outcomes"]
        assert (len(server.calls()), server.tokens()) == (5, 1)
        assert (job.state / "ledger" / "manifest.json").read_bytes() == manifest


def test_a_new_export_makes_a_new_load_and_only_that_is_sent(tmp_path: Path) -> None:
    """A directory named again with one file more: the known ones are not sent again, each load has its own numbers."""
    with serving(tmp_path / "log") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("exports/a.csv", visits(250))
        job.export("exports/b.csv", visits(130, first=1_000))
        expect(job.run("exports"), 0, "read 380 = delivered 380")
        before = len(server.calls())
        job.export("exports/c.csv", [*visits(90, first=2_000), Visit(9_999, "", visits(1)[0].at)])
        expect(job.run("exports", "--set", 'rows.max_rejected="5%"'), 0, "read 471 = delivered 470 + invalid 1")
        assert {line["user_agent"].split("load ")[1][0] for line in server.calls()[before:]} == {"2"}
        assert sum(line["interactions"] for line in server.calls()[before:]) == 90
        assert agree(job, server) == {"delivered": 470, "invalid": 1}
        only = job.run("--json", job.folder / "exports" / "c.csv").object()
        assert (only["read"], only["outcomes"]["delivered"]) == (91, 90)


def test_duplicates_within_a_load_are_sent_once(tmp_path: Path) -> None:
    """The same interaction in one file and in another is sent once; each repetition names the first."""
    with serving(tmp_path / "log") as server:
        job = Job(tmp_path / "job", server.base_url)
        rows = visits(150)
        job.export("a.csv", [*rows, *rows[:20]])
        job.export("b.csv", [*visits(30, first=500), *rows[100:110]])
        expect(job.run("a.csv", "b.csv"), 0, "duplicate 30")
        assert agree(job, server) == {"delivered": 180, "duplicate": 30}


def test_an_export_of_a_header_only_is_fine(tmp_path: Path, server: Server) -> None:
    """No rows are no error: 0 rows, nothing sent, complete."""
    job = Job(tmp_path / "job", server.base_url)
    job.export("none.csv", [])
    ended = job.run("none.csv")
    expect(ended, 0, "read 0 = delivered 0", "0 calls")
    expect(job.run("none.csv"), 0, "read 0 = delivered 0")


def test_rows_with_a_tid_are_sent_under_it(tmp_path: Path) -> None:
    """A row's tid is the request's query parameter and stands in the ledger; others keep the tid of their reply."""
    with serving(tmp_path / "log") as server:
        job = Job(tmp_path / "job", server.base_url)
        tids = ["", "tid a&b=c", "", "tïd-2"]
        job.export("tids.csv", [row._replace(tid=tids[row.n % 4]) for row in visits(200, customers=16)])
        expect(job.run("tids.csv"), 0)
        assert agree(job, server) == {"delivered": 200}
        assert {line["tid"] for line in server.applied()} == {None, "tid a&b=c", "tïd-2"}


# ----------------------------------------------------------------------------------------------------------- pacing


def bare_loop(budget: float, ended: Callable[[], bool]) -> float:
    """Starts per second that a loop reaches which only waits by the budget's rule: what the machine allows now."""
    began_s = time.monotonic()
    pacer = Pacer(requests_per_second=budget, not_before_s=began_s)
    starts = 0
    while not ended():
        time.sleep(max(0.0, pacer.ready_at_s - time.monotonic()))
        pacer.take(time.monotonic(), 1)
        starts += 1
    return (starts - 1) / (time.monotonic() - began_s)


def test_the_budget_is_kept_and_used(tmp_path: Path) -> None:
    """By the server's log: never more calls in a sliding second than allowed, and 98% of what is allowed.

    On a machine that is too busy to wake anybody in time: 98% of what a bare loop reaches beside it.
    """
    with serving(tmp_path / "log", "latency_ms=60") as server:
        job = Job(tmp_path / "job", server.base_url, budget=20)
        job.export("paced.csv", visits(9_600, customers=2_000))
        process = job.start("paced.csv")
        until(partial(received, server, 3), "calls")
        possible = bare_loop(20, lambda: process.poll() is not None)
        expect(job.wait(process), 0)
        starts = [line["at"] for line in server.calls()]
        assert len(starts) > 95
        assert min(later - earlier for earlier, later in zip(starts, starts[20:], strict=False)) >= 1.0
        # The last two requests of a lane wait for each other, so the very end is no measure.
        steady = starts[:-8]
        assert (len(steady) - 1) / (steady[-1] - steady[0]) >= 0.98 * min(20, possible)
        assert max(later - earlier for earlier, later in pairwise(starts)) < 0.5, "starts are spaced evenly"
        assert agree(job, server) == {"delivered": 9_600}


def test_the_budget_holds_across_executions(tmp_path: Path) -> None:
    """The first intent of an execution is a second after the last one of the execution before it."""
    with serving(tmp_path / "log") as server:
        job = Job(tmp_path / "job", server.base_url, budget=4)
        job.export("a.csv", visits(150))
        expect(job.run("a.csv"), 0)
        job.export("b.csv", visits(150, first=1_000))
        expect(job.run("b.csv"), 0)
        connection = sqlite3.connect(f"file:{job.state / 'journal.db'}?mode=ro", uri=True)
        with contextlib.closing(connection):
            intents = connection.execute("SELECT execution, at FROM move WHERE move = 'intent' ORDER BY id").fetchall()
        assert [execution for execution, _ in intents] == [1, 1, 2, 2]
        assert intents[2][1] - intents[1][1] >= 1_000
        assert agree(job, server) == {"delivered": 300}


def test_the_budget_of_interactions_is_kept(tmp_path: Path) -> None:
    """With interactions_per_second, full requests are spaced by what they carry."""
    with serving(tmp_path / "log") as server:
        job = Job(tmp_path / "job", server.base_url, {"budget": {"interactions_per_second": 500}})
        job.export("a.csv", visits(1_000))
        expect(job.run("a.csv"), 0)
        starts = [line["at"] for line in server.calls()]
        assert min(later - earlier for earlier, later in zip(starts, starts[5:], strict=False)) >= 1.0
        assert starts[-1] - starts[0] <= 9 * 0.2 * 1.1, "but it is used"


# ----------------------------------------------------------------------------------------------------------- tokens


def test_tokens_that_run_out_in_the_middle_cost_nothing(tmp_path: Path) -> None:
    """A token is refused after 30 calls: one refresh for all who wait, every row delivered once, no doubt."""
    with serving(tmp_path / "log", "latency_ms=20", token_uses=30) as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("tokens.csv", visits(9_000, customers=2_000))
        expect(job.run("tokens.csv"), 0)
        # An intent that waits for its send is taken back while a token is fetched: a try that was never made.
        assert agree(job, server, attempts_seen=False) == {"delivered": 9_000}
        calls = server.calls()
        accepted = sum(line["status"] == 200 for line in calls)
        refused = sum(line["status"] == 401 for line in calls)
        assert accepted + refused == len(calls)
        assert refused > 0
        # No token is thrown away while it is good: as few as 30 calls each allow.
        assert server.tokens() == -(-accepted // 30)


def test_a_given_token_is_used_as_it_is(tmp_path: Path) -> None:
    """BACKFILL_TOKEN needs no token endpoint; it is told nowhere."""
    with serving(tmp_path / "log", token="given-TOKEN-0815") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("given.csv", visits(120))
        client = {"BACKFILL_CLIENT_ID": None, "BACKFILL_CLIENT_SECRET": None}
        ended = job.run("given.csv", environment=client | {"BACKFILL_TOKEN": "given-TOKEN-0815"})
        expect(ended, 0)
        assert "given-TOKEN" not in ended.said
        assert server.tokens() == 0
        assert agree(job, server) == {"delivered": 120}
        assert not any(b"given-TOKEN" in path.read_bytes() for path in job.state.rglob("*") if path.is_file())


# ------------------------------------------------------------------------------------------------- refusals, crashes


def test_bad_rows_are_found_alone_and_the_rest_is_delivered(tmp_path: Path) -> None:
    """400 for three rows of 500: each is rejected by itself with the API's reason, left halves go first."""
    bad = {7, 8, 333}
    with serving(tmp_path / "log", "status=400,when=property:mark=bad") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("bad.csv", visits(500, mark=lambda place: "bad" if place in bad else "plain"))
        ended = job.run("bad.csv")
        expect(ended, 0, "delivered 497", "rejected 3")
        assert agree(job, server) == {"delivered": 497, "rejected": 3}
        rejected = job.ledger().filter(outcome="rejected")
        assert {row - 1 for row in rejected["row"]} == bad
        assert set(rejected["http_status"]) == {400}
        assert all("refused by a misbehaviour" in reasons[-1] for reasons in rejected["reasons"])
        # Halving 100 down to one bad row takes 2 * 7 calls at most beside the first.
        assert len(server.calls()) <= 5 + 2 * (2 * 7 + 2)
        ranges: dict[str, list[int]] = {}
        for call in server.calls():
            agent = AGENT.search(call["user_agent"])
            assert agent is not None
            if call["status"] == 200:
                ranges.setdefault(agent[2], []).append(int(agent[3]))
        assert all(firsts == sorted(firsts) for firsts in ranges.values())


def test_more_rejected_rows_than_allowed_is_3_and_stays_3(tmp_path: Path) -> None:
    """Complete, but more rows rejected than max_rejected: 3, also for the next execution, which sends nothing."""
    with serving(tmp_path / "log", "status=422,when=property:mark=bad") as server:
        job = Job(tmp_path / "job", server.base_url, {"rows": {"max_rejected": 1}})
        job.export("bad.csv", visits(100, mark=lambda place: "bad" if place in (3, 4) else "plain"))
        expect(job.run("bad.csv"), 3, "rejected 2", "rows.max_rejected", "--outcome rejected")
        calls = len(server.calls())
        expect(job.run("bad.csv"), 3)
        assert len(server.calls()) == calls
        assert agree(job, server) == {"delivered": 98, "rejected": 2}


def received(server: Server, enough: int) -> bool:
    return server.count() >= enough


def bodies(server: Server) -> dict[tuple[str, ...], set[str]]:
    """The checksums of the bodies that each part of a request was ever sent with."""
    found: dict[tuple[str, ...], set[str]] = {}
    for call in server.calls():
        agent = AGENT.search(call["user_agent"])
        assert agent is not None
        if call["sha256"] is not None:  # None: killed before its body was out
            found.setdefault(agent.groups()[:4], set()).add(call["sha256"])
    return found


def test_after_a_kill_the_bodies_are_the_same_to_the_byte(tmp_path: Path) -> None:
    """Killed in the middle, then finished: every attempt of a request, and a run without a kill, send one body."""
    rows = visits(4_400, customers=900, mark=lambda place: "bad" if place in (500, 4_000) else 'Grüße, "x"\n')
    rules = ("status=400,when=property:mark=bad", "status=503,every=7", "latency_ms=30")
    with serving(tmp_path / "calm", *rules) as calm, serving(tmp_path / "killed", *rules) as server:
        config: dict[str, dict[str, object]] = {"rows": {"max_rejected": 20}, "delivery": {"max_in_doubt": 2_000}}
        whole = Job(tmp_path / "whole", calm.base_url, config)
        whole.export("same.csv", rows)
        unbroken = whole.start("same.csv")
        job = Job(tmp_path / "job", server.base_url, config)
        job.export("same.csv", rows)
        for enough in (15, 30):
            process = job.start("same.csv")
            until(partial(received, server, enough), "calls")
            process.send_signal(signal.SIGKILL)
            process.wait()
        expect(job.run("same.csv"), 0)
        expect(whole.wait(unbroken), 0)
        outcomes = agree(job, server, kills=2, attempts_seen=False)
        assert set(outcomes) <= {"delivered", "rejected", "in_doubt"}
        assert outcomes.get("rejected", 0) <= 2  # a bad row may be in doubt as well
        assert agree(whole, calm) == {"delivered": 4_398, "rejected": 2}
        sent, reference = bodies(server), bodies(calm)
        assert all(len(checksums) == 1 for checksums in sent.values())
        assert len([part for part in sent if part in reference]) > 45
        for part, checksums in sent.items():
            assert checksums == reference.get(part, checksums)
        attempts = Counter(agent[5] for call in server.calls() if (agent := AGENT.search(call["user_agent"])))
        assert attempts["2"] > 0, "no request was sent twice: this proves too little"
