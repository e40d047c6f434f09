"""The whole command with exports in an object store: a real S3 server, and every row accounted for by its address."""

import csv
import gzip
import io
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.command import Ended, Job, Server, Visit, agree, expect, serving, until, visits
from tests.objects import BUCKET, SECRET_KEY, Store, store

HEADER = ["n", "timestamp", "customer_key", "url", "mark", "tid"]


@pytest.fixture(scope="module")
def running() -> Iterator[Store]:
    with store() as made:
        yield made


@pytest.fixture
def s3(running: Store) -> Store:
    running.asked.clear()
    running.before = lambda method, path: None
    return running


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "server") as made:
        yield made


def _records(rows: Sequence[Visit]) -> list[list[str]]:
    return [
        [str(row.n), row.at.isoformat(timespec="milliseconds"), row.customer, "api://shop/visit", row.mark, row.tid]
        for row in rows
    ]


def as_csv(rows: Sequence[Visit]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([HEADER, *_records(rows)])
    return text.getvalue().encode()


def as_gzip(rows: Sequence[Visit]) -> bytes:
    return gzip.compress(as_csv(rows))


def as_parquet(rows: Sequence[Visit]) -> bytes:
    file = io.BytesIO()
    pl.DataFrame(_records(rows), schema=HEADER, orient="row").write_parquet(file)
    return file.getvalue()


class World:
    """A job whose exports lie in the store, in a folder of their own."""

    def __init__(self, folder: Path, s3: Store, server: Server) -> None:
        self.s3, self.server = s3, server
        self.job = Job(folder / "job", server.base_url)
        self.prefix = f"{folder.name}/exports"

    def put(self, name: str, rows: Sequence[Visit], content: bytes | None = None) -> str:
        address = self.s3.put(f"{self.prefix}/{name}", as_csv(rows) if content is None else content)
        self.job.truth[address] = list(rows)
        return address

    def at(self, name: str) -> str:
        return f"s3://{BUCKET}/{self.prefix}/{name}"

    def run(self, *arguments: str, environment: dict[str, str | None] | None = None, **options: Any) -> Ended:
        ended = self.job.run(*arguments, environment={**self.s3.environment, **(environment or {})}, **options)
        assert SECRET_KEY not in ended.said
        return ended

    def staged(self) -> list[str]:
        return sorted(path.name for path in (self.job.state / "staged").rglob("fetched*"))


@pytest.fixture
def world(tmp_path: Path, s3: Store, server: Server) -> World:
    return World(tmp_path, s3, server)


def test_exports_of_a_store_are_delivered_and_never_fetched_again(world: World) -> None:
    """CSV, gzip and Parquet by one prefix: each row once, by its address; a rerun sends and fetches nothing."""
    world.put("a.csv", visits(150))
    world.put("b.csv.gz", rows := visits(120, first=1001), as_gzip(rows))
    world.put("c.parquet", rows := visits(130, first=2001), as_parquet(rows))
    expect(world.run(world.at("")), 0, "delivered 400")
    assert agree(world.job, world.server) == {"delivered": 400}
    assert world.s3.fetched() == [f"{world.prefix}/{name}" for name in ("a.csv", "b.csv.gz", "c.parquet")]
    assert world.staged() == []
    calls = world.server.count()
    world.s3.asked.clear()
    expect(world.run(world.at("")), 0, "delivered 400")
    expect(world.run(world.at("b.csv.gz")), 0, "delivered 120")
    assert world.server.count() == calls
    assert world.s3.fetched() == []
    assert world.s3.asked
    job = (world.job.state / "job.toml").read_text()
    assert f'path = "{world.at("a.csv")}"' in job
    assert 'sha256 = "etag:' in job
    shown = world.job.run("--export", "c.parquet", command="ledger")
    assert shown.code == 0, shown.err
    assert shown.out.count(world.at("c.parquet")) == 130


def test_a_glob_takes_what_is_new_and_leaves_what_is_known(world: World, tmp_path: Path) -> None:
    """Beside a file of the local disk, in one job."""
    world.put("june-1.csv", visits(100))
    local = world.job.export("local.csv", visits(50, first=3001))
    expect(world.run(world.at("june-*.csv"), str(local)), 0, "delivered 150")
    world.put("june-2.csv", visits(100, first=1001))
    world.s3.put(f"{world.prefix}/july.csv", b"not meant")
    world.s3.asked.clear()
    expect(world.run(world.at("june-*.csv")), 0, "delivered 200")
    assert world.s3.fetched() == [f"{world.prefix}/june-2.csv"]
    assert agree(world.job, world.server) == {"delivered": 250}


def test_a_changed_object_is_refused_and_with_changed_only_new_rows_are_sent(world: World) -> None:
    """78 with what changed; nothing is sent. With --changed the rows that were taken before are duplicates."""
    address = world.put("a.csv", visits(100))
    expect(world.run(address), 0)
    calls = world.server.count()
    world.s3.put(f"{world.prefix}/a.csv", as_csv(visits(100)).replace(b"plain", b"plaim", 1))
    expect(world.run(address), 78, address, "another ETag", "--changed", "Nothing was sent")
    world.s3.put(f"{world.prefix}/a.csv", as_csv(visits(130)))
    expect(world.run(address), 78, address, "has grown from", "--changed")
    assert world.server.count() == calls
    expect(world.run(address, "--changed"), 0)
    assert world.job.outcomes() == {"delivered": 130, "duplicate": 100}
    assert sum(len(request["interactions"]) for request in world.server.applied()) == 130


def test_a_copy_in_the_store_is_recognised_and_a_lost_object_is_only_a_warning(world: World) -> None:
    """One ETag and size: not staged again. What is gone was accounted for."""
    address = world.put("a.csv", visits(100))
    expect(world.run(address), 0)
    world.s3.put(f"{world.prefix}/copy.csv", as_csv(visits(100)))
    expect(world.run(world.at("copy.csv")), 0, "has the same content as", "delivered 100")
    world.s3.delete(f"{world.prefix}/a.csv")
    expect(world.run(address), 0, f"{address} is gone", "delivered 100")
    assert agree(world.job, world.server) == {"delivered": 100}


def test_a_kill_while_fetching_leaves_nothing_and_the_rerun_completes(world: World) -> None:
    """Half a copy is in the load's folder when the process dies; the next execution begins anew without it."""
    world.put("a.csv", visits(100))
    large = visits(180, first=1001, mark=lambda _: "m" * 30_000)  # more than one piece
    world.put("b.csv", large)
    second, over = threading.Event(), threading.Event()

    def hold(method: str, path: str) -> None:
        if method == "GET" and world.s3.fetched().count(f"{world.prefix}/b.csv") == 2:
            second.set()
            over.wait(60)

    world.s3.before = hold
    process = world.job.start(world.at("*.csv"), environment=world.s3.environment)
    try:
        until(second.is_set, "the second piece was asked for")
        assert world.staged() == ["fetched"]
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        over.set()
    world.s3.before = lambda method, path: None
    expect(world.run(world.at("*.csv")), 0, "delivered 280")
    assert agree(world.job, world.server) == {"delivered": 280}
    assert world.staged() == []


def test_a_signal_while_fetching_stops_and_leaves_nothing(world: World) -> None:
    """75 soon, though the store is silent; nothing is staged."""
    address = world.put("a.csv", visits(100))
    asked, over = threading.Event(), threading.Event()

    def hold(method: str, path: str) -> None:
        if method == "GET":
            asked.set()
            over.wait(60)

    world.s3.before = hold
    process = world.job.start(address, environment=world.s3.environment)
    until(asked.is_set, "the object was asked for")
    process.send_signal(signal.SIGTERM)
    ended = world.job.wait(process)
    over.set()
    expect(ended, 75, "Stopped by a signal")
    assert ended.seconds < 15
    assert world.staged() == []
    assert world.server.count() == 0


@pytest.mark.parametrize(
    ("name", "environment", "code", "words"),
    [
        ("none.csv", {}, 78, ["none.csv does not exist", "Check the key"]),
        ("a.csv", {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, 75, ["did not answer", "Run the same command again"]),
        ("a.csv", {"AWS_ACCESS_KEY_ID": None}, 78, ["no credentials for s3://", "Set AWS_ACCESS_KEY_ID"]),
        ("a.csv?X-Amz-Signature=whole-SECRET-4711", {}, 2, ["ends in a query"]),
    ],
)
def test_what_cannot_be_fetched_is_told_with_place_and_remedy(
    world: World, name: str, environment: dict[str, str | None], code: int, words: list[str]
) -> None:
    """Before anything is staged or sent, and without a secret."""
    world.put("a.csv", visits(3))
    given = {**world.s3.environment, **environment}
    expect(world.job.run(world.at(name), environment=given), code, *words)
    assert world.server.count() == 0


def test_an_object_with_a_bad_record_is_refused_by_its_address(world: World) -> None:
    """File and line are those of the object, not of its copy."""
    address = world.put("bad.csv", [], as_csv(visits(3)) + b"4,short\n")
    ended = world.run(address)
    expect(ended, 78, f"{address}, line 5")
    assert "fetched" not in ended.said
    assert world.server.count() == 0


def test_plan_and_check_read_objects_and_leave_nothing(world: World, tmp_path: Path) -> None:
    """By address; what they fetched is gone from TMPDIR."""
    address = world.put("a.csv", visits(100))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    config = ("--config", str(world.job.folder / "backfill.toml"))
    environment: dict[str, str | None] = {"TMPDIR": str(scratch)}
    planned = world.run(address, *config, "--json", command="plan", environment=environment)
    assert planned.code == 0, planned.said
    assert [(each["export"], each["read"]) for each in planned.object()["exports"]] == [(address, 100)]
    checked = world.run(address, *config, "--json", command="check", environment=environment)
    expect(checked, 0)
    assert [each["export"] for each in checked.object()["exports"]] == [address]
    assert list(scratch.iterdir()) == []
    assert world.server.count() == world.server.tokens()
