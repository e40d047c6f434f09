"""`backfill plan` as a user types it, and its figures against what `run` makes of the same exports."""

import csv
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from backfill import plan as planning
from backfill import stage
from backfill.adapters import exports, staging
from backfill.adapters.state import StateDirectory
from backfill.core import arrange as arranging
from backfill.core.config import RunConfig
from backfill.core.validate import FAULTS, HINTS
from tests.command import BEGIN, PRIVATE, ROOT, Ended, Job, discreet, serving, until, visits
from tests.test_stage import arrange as arrange_load

NOW = datetime(2025, 1, 1, tzinfo=UTC)
NOWHERE = "http://127.0.0.1:9"
HERE = Path(__file__).parent


def planned(job: Job, *arguments: str | Path, **options: Any) -> Ended:
    """Runs the command with the job's configuration."""
    return job.run("--config", job.folder / "backfill.toml", *arguments, command="plan", **options)


# --------------------------------------------------------------------------------------------- texts as a whole


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """A copy of sample_data."""
    shutil.copytree(ROOT / "sample_data", tmp_path / "sample_data", ignore=shutil.ignore_patterns(".backfill"))
    return tmp_path


def of_sample(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "backfill", "plan", "sample_data", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BACKFILL_")}
    ended = subprocess.run(
        command,
        cwd=folder,
        env=environment | {"PYTHONPATH": str(ROOT)},
        check=True,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    return ended.stdout.replace(str(folder), "FOLDER")


def test_the_whole_text_for_the_sample_data(sample: Path) -> None:
    """Word for word; it is what a reader can check by eye against the exports."""
    assert of_sample(sample) == (HERE / "plan_of_sample_data.txt").read_text(encoding="utf-8")


def test_the_whole_object_for_the_sample_data(sample: Path) -> None:
    """The same as JSON, of which the counts are those that the script that made the exports has in its books."""
    found = json.loads(of_sample(sample, "--json"))
    assert found == json.loads((HERE / "plan_of_sample_data.json").read_text(encoding="utf-8"))
    books = json.loads((ROOT / "sample_data" / "expected.json").read_text(encoding="utf-8"))["total"]
    assert {one["reason"]: one["rows"] for one in found["invalid_by_reason"]} == books["invalid_by_reason"]
    assert [found[name] for name in ("read", "interactions", "invalid", "duplicate")] == [
        books[name] for name in ("read", "delivered", "invalid", "duplicate")
    ]


def test_each_reason_has_a_hint_and_a_value() -> None:
    """A rule that is new must say what to change, and which part of the row it is about."""
    assert set(HINTS) == set(FAULTS)
    assert all(planning.part_of(reason) for reason in FAULTS)


# -------------------------------------------------------------------------------------------- the figures of a run


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"rows": {"duplicates": "send", "max_rejected": "100%"}},
        {"api": {"call": "interaction-offline"}},
        {"rows": {"identity": ["n"], "max_rejected": "100%"}},
        {"columns": {"tid": "mark"}},
    ],
    ids=["plain", "duplicates-sent", "one-a-call", "identity", "tids"],
)
def test_it_tells_what_run_then_does(tmp_path: Path, config: dict[str, dict[str, object]]) -> None:
    """Calls, interactions, invalid rows and duplicates, per export: exactly those that the server and ledger have."""
    with serving(tmp_path / "log") as server:
        job = Job(tmp_path / "job", server.base_url, {"rows": {"max_rejected": "100%"}, **config}, budget=1_000)
        one = visits(700, customers=90, mark=lambda place: f"m{place % 7}")
        two = visits(300, first=600, customers=90, mark=lambda place: f"m{(place + 599) % 7}")
        one[5] = one[5]._replace(customer="")
        two = [row._replace(customer=one[row.n - 1].customer) if row.n <= 700 else row for row in two]
        paths = [job.export("a.csv", one), job.export("b.csv", two)]
        before = planned(job, "--json", *paths)
        assert before.code == 0, before.said
        found = before.object()
        assert server.calls() == []
        ran = job.run("--json", *paths).object()
        assert found["requests"] == len(server.calls()) == ran["requests"]
        told = [
            {"interactions": each["outcomes"]["delivered"]}
            | {name: each["outcomes"][name] for name in ("invalid", "duplicate")}
            for each in ran["exports"]
        ]
        assert [{name: each[name] for name in told[0]} for each in found["exports"]] == told
        assert found["interactions"] == sum(each["interactions"] for each in told) > 0


@pytest.mark.parametrize(
    "wire",
    [
        {},
        {"address_field": "uri", "timestamp_format": "iso8601", "bulk": {"key": "interactions"}},
    ],
)
def test_the_json_is_to_the_byte_what_is_sent(tmp_path: Path, wire: dict[str, object]) -> None:
    """The hash of the body that the server got is that of the interactions shown, put together."""
    with serving(tmp_path / "log", "status=503,every=1") as server:  # it remembers what it refuses, too
        job = Job(tmp_path / "job", server.base_url, {"wire": wire, "delivery": {"max_attempts": 1}})
        rows = [row._replace(mark='tab\t"quote" ä \u202e😀') for row in visits(3)]
        path = job.export("a.csv", rows)
        shown = planned(job, "--json", "--show", "3", path).object()["first"]
        assert [(one["row"], one["line"]) for one in shown] == [(1, 2), (2, 3), (3, 4)]
        assert job.run(path).code == 75
        body = "[" + ",".join(one["body"] for one in shown) + "]"
        body = f'{{"interactions":{body}}}' if wire else body
        assert server.calls()[0]["sha256"] == hashlib.sha256(body.encode()).hexdigest()


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many runs and pieces out of few rows; a busy customer's lane is cut by time."""
    monkeypatch.setattr(stage, "RUN_ROWS", 300)
    monkeypatch.setattr(planning, "RUN_ROWS", 270)
    monkeypatch.setattr(stage, "BUCKET_ROWS", 200)
    monkeypatch.setattr(arranging, "BUCKET_ROWS", 200)
    monkeypatch.setattr(arranging, "ROWS_PER_LANE", 20)
    monkeypatch.setattr(exports, "open_export", partial(exports.open_export, block_bytes=5_000))


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("tid", [None, "tid"])
@pytest.mark.parametrize("identity", [None, ["message"]])
def test_a_lane_that_is_cut_by_time_is_counted_like_staging_cuts_it(
    tmp_path: Path, tid: str | None, identity: list[str] | None
) -> None:
    """Requests and repeats over many pieces of one lane, by content and by identity, with tids and without."""
    path = tmp_path / "a.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["timestamp", "customer_key", "url", "tid", "message"])
        for n in [*range(2_700), *range(1_600, 1_900)]:
            moment = BEGIN + timedelta(seconds=n % 1_100 * 7_919 % 50_000)
            customer = 0 if n % 2 else n % 90
            writer.writerow(
                [moment.isoformat(), f"c{customer}", "api://x", f"t{n % 3}" if n % 10 == 3 else "", n % 1_900]
            )
    config = RunConfig.model_validate(
        {
            "api": {"base_url": "https://mxo.example", "site_key": "s"},
            "columns": {"tid": tid},
            "rows": {"identity": identity} if identity else {},
        }
    )
    order = planning.Order(config=config, exports=(path,), state=tmp_path / "none", latency_s=0.2, show=0)
    found = planning.plan(order, now=NOW, report=lambda _: None)
    folder = tmp_path / "state" / "staged" / "1"
    folder.parent.parent.mkdir()
    manifest = stage.spool([path], config, folder, load=1, now=NOW, report=lambda _: None, stopped=lambda: False)
    arrange_load(folder, config)
    index = pl.concat([staging.request_index(folder, piece.piece) for piece in manifest.pieces])
    assert sum(piece.time_from_us is not None for piece in manifest.pieces) > 3
    assert found.lanes == manifest.lanes
    assert dict(found.tally.by_lane) == dict(index.group_by("lane").len().iter_rows())
    assert found.tally.interactions[0] == index["count"].sum() < 3_000
    assert found.tally.busiest[0].customer_key == "c0"
    assert not (tmp_path / "none").exists()


# -------------------------------------------------------------------------------------------- refusals, like run's


def test_what_run_would_refuse_is_a_headline_and_78(tmp_path: Path) -> None:
    """Too many invalid rows: everything is counted all the same, and run says the same sentence."""
    job = Job(tmp_path / "job", NOWHERE)
    rows = visits(100)
    bad = [row._replace(customer="") if row.n <= 5 else row for row in rows]
    good = job.export("good.csv", visits(50, first=200))
    path = job.export("bad.csv", bad)
    ended = planned(job, good, path)
    assert ended.code == 78
    assert ended.out.startswith("Plan for 2 exports: run would refuse this. Nothing was sent or kept.\n")
    sentence = f"{path}: 5 of 100 rows are invalid (customer_key_missing 5), and rows.max_rejected = '1%' allows 1."
    assert f"Refused  {sentence}\n" in ended.out
    assert "read 150 = interactions 145 + invalid 5 + duplicate 0" in ended.out
    assert "bad.csv row 1, line 2: no value" in ended.out
    found = planned(job, "--json", good, path).object()
    assert (found["exit_code"], found["refusals"], found["interactions"]) == (78, [sentence], 145)
    refused = job.run(good, path)
    assert refused.code == 78
    assert sentence in refused.err


@pytest.mark.parametrize(
    "content", [b"", b"timestamp,customer_key\n1,2\n", b"n,timestamp,customer_key,url,mark,tid\n1,2\n", None]
)
def test_an_export_that_cannot_be_read_is_the_same_error_as_for_run(tmp_path: Path, content: bytes | None) -> None:
    """Empty, without a column, broken, missing: word for word, with the same code."""
    job = Job(tmp_path / "job", NOWHERE)
    path = job.folder / "a.csv"
    if content is not None:
        path.write_bytes(content)
    ended = planned(job, path)
    ran = job.run(path)
    assert (ended.code, ended.err.splitlines()[-1]) == (ran.code, ran.err.splitlines()[-1])
    assert ended.code == 78
    assert ended.out == ""


def test_standard_input_is_refused(tmp_path: Path) -> None:
    """With what to do instead."""
    ended = planned(Job(tmp_path / "job", NOWHERE), "-")
    assert (ended.code, ended.out) == (2, "")
    assert "Write it to a file" in ended.err


# -------------------------------------------------------------------------------------------- nothing is left behind


def files(*folders: Path) -> set[Path]:
    return {path for folder in folders for path in folder.rglob("*")}


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """Where the command puts temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    return folder


def test_it_needs_no_network_no_credentials_and_no_lock_and_leaves_nothing(tmp_path: Path, temporary: Path) -> None:
    """Not one connection to the tenant; no state; it works while another process holds the job."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        job = Job(tmp_path / "job", f"http://127.0.0.1:{listening.getsockname()[1]}")
        path = job.export("a.csv", visits(50))
        before = files(job.folder, temporary)
        bare = {"TMPDIR": str(temporary), "BACKFILL_CLIENT_ID": None, "BACKFILL_CLIENT_SECRET": None}
        assert planned(job, path, environment=bare).code == 0
        said = {job.folder / "stdout.log", job.folder / "stderr.log"}
        assert files(job.folder, temporary) - said == before
        with StateDirectory(job.state).lock("test"):
            held = files(job.state)
            assert planned(job, path, environment=bare).code == 0
            assert files(job.state) == held
        with pytest.raises(BlockingIOError):
            listening.accept()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_it_and_takes_the_temporary_files_along(
    tmp_path: Path, temporary: Path, number: signal.Signals, code: int
) -> None:
    """Keys of customers lie in them, so they go even when nobody waits for the plan."""
    job = Job(tmp_path / "job", NOWHERE)
    head, *rest = job.export("a.csv", visits(20_000)).read_text().splitlines(keepends=True)
    (job.folder / "a.csv").write_text(head + "".join(rest) * 25)
    process = job.start("--config", "backfill.toml", "a.csv", command="plan", environment={"TMPDIR": str(temporary)})
    until(lambda: bool(list(temporary.iterdir())), "it has a temporary directory")
    process.send_signal(number)
    ended = job.wait(process)
    assert (ended.code, ended.out) == (code, "")
    assert "Traceback" not in ended.err
    assert list(temporary.iterdir()) == []


def test_only_standard_output_shows_customers(tmp_path: Path) -> None:
    """Keys and bodies are on it; what goes to standard error can be kept in a log."""
    job = Job(tmp_path / "job", NOWHERE)
    ended = planned(job, job.export("a.csv", visits(50)))
    assert PRIVATE in ended.out
    discreet(ended.err)


# ----------------------------------------------------------------------------------------------------- what it says


def test_characters_that_nobody_sees_are_reported_and_spelled_out(tmp_path: Path) -> None:
    """Marks of direction and control characters reach no terminal; --json has the key as it is."""
    job = Job(tmp_path / "job", NOWHERE, {"rows": {"max_rejected": "100%"}})
    rows = visits(6)
    rows[1] = rows[1]._replace(customer="C\u202e123")
    rows[3] = rows[3]._replace(customer="C\u200b4")
    rows[4] = rows[4]._replace(customer="C\x1b[2J\n5")
    path = job.export("a.csv", rows)
    ended = planned(job, path)
    assert ended.code == 0
    assert all(character.isprintable() or character == "\n" for character in ended.out)
    assert "Keys     2 rows with characters in the key that cannot be seen; sent as they are:" in ended.out
    assert 'a.csv row 2, line 3: "C\\u202e123"' in ended.out
    assert 'a.csv row 5, line 6: "C\\u001b[2J\\n5"' in ended.out
    found = planned(job, "--json", path).object()
    assert found["unseen_characters"] == {
        "rows": 2,
        "examples": [
            {"export": str(path), "row": 2, "line": 3, "value": "C\u202e123"},
            {"export": str(path), "row": 4, "line": 5, "value": "C\u200b4"},
        ],
    }


def test_an_export_that_was_taken_before_is_known(tmp_path: Path) -> None:
    """Run would not take it again, so it is not counted; what is new beside it may hold rows of it."""
    with serving(tmp_path / "log") as server:
        job = Job(tmp_path / "job", server.base_url)
        old, new = job.export("a.csv", visits(50)), job.export("b.csv", visits(30, first=100))
        assert job.run(old).code == 0
        found = planned(job, "--json", old, new).object()
        assert (found["known"], found["earlier_loads"], found["read"]) == ([str(old)], 1, 30)
        text = planned(job, old, new).out
        assert f"Known    {old}: staged before, not counted here and not taken again" in text
        assert "At most  1 earlier load may hold some of these rows; such are not sent." in text
        assert planned(job, old).out.startswith("Nothing new: run would send nothing.\n")


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["requests_per_second=0.01"], ["about 8 min 25 s at budget.requests_per_second = 0.01"]),
        (
            ["requests_per_second=0.0001", "window=22:00-06:00", "window_zone=Europe/Berlin"],
            ["needs 2 nights of 22:00-06:00 Europe/Berlin, about 30 h"],
        ),
        (["window=09:00-17:00"], ["needs 1 day of 09:00-17:00 UTC, about 1.0 s"]),
        (["requests_per_day=2"], ["needs 3 days with 2 calls a day (budget.requests_per_day), about 48 h 00 min"]),
    ],
)
def test_it_says_how_long_it_takes(tmp_path: Path, sets: list[str], words: list[str]) -> None:
    """At the budget, in nights of a window, in days of a day's budget."""
    job = Job(tmp_path / "job", NOWHERE)
    path = job.export("a.csv", visits(480))
    options = [f"--set=budget.{text}" for text in sets]
    ended = planned(job, path, *options)
    assert ended.code == 0, ended.said
    for word in words:
        assert word in ended.out, ended.out


def test_the_floor_and_the_pace_follow_the_latency(tmp_path: Path) -> None:
    """A customer's calls go one after another: 480 rows of one are 5 calls, so 10 s at 2 s each, at any budget."""
    job = Job(tmp_path / "job", NOWHERE)
    path = job.export("a.csv", visits(480, customers=1))
    ended = planned(job, "--latency", "2", "--show", "0", path)
    assert "Floor    about 10.0 s at any budget: " in ended.out
    assert "needs 5 calls, one after another, 2 s each (--latency)" in ended.out
    assert "Takes    about 10.0 s for the 5 calls of one lane, one after another, 2 s each (--latency)" in ended.out
    assert "First" not in ended.out


def test_it_can_plan_without_any_configuration(tmp_path: Path) -> None:
    """As `run --sandbox` works on exports with the default column names."""
    job = Job(tmp_path / "job", NOWHERE)
    path = job.export("a.csv", visits(50))
    (job.folder / "backfill.toml").unlink()
    assert "interactions 50" in job.run("--sandbox", path, command="plan").out
    refused = job.run(path, command="plan")
    assert refused.code == 78
    assert "api.base_url" in refused.err
