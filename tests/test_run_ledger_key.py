"""A ledger that names customers by HMAC, whole command: what stands in it, which key made it, and who needs the key."""

import hashlib
import hmac
import json
from pathlib import Path

import polars as pl
import pytest

from tests.command import PRIVATE, Job, Server, expect, serving, visits

KEY = "a-ledger-key-of-32-characters-..."
OTHER = "another-ledger-key-32-characters."

HMAC = {"ledger": {"customer_key": "hmac"}}


def named(key: str, customer: str) -> str:
    """How a customer stands in the ledger, made a second time and not by the product."""
    return hmac.new(key.encode(), customer.encode(), hashlib.sha256).hexdigest()


def a_job(folder: Path, server: Server) -> Job:
    """With ten customers, one row that is invalid and so aside, and a repeated one."""
    job = Job(folder, server.base_url, {**HMAC, "rows": {"max_rejected": 1}})
    rows = visits(60, customers=10)
    job.export("a.csv", [*rows, rows[0], rows[1]._replace(n=61, at=rows[1].at.replace(year=2999))])
    return job


def must_be_named_by(job: Job, key: str) -> None:
    """Each line has the customer of its row under this key, and no file of the ledger has one in plain."""
    lines = job.ledger()
    [(_, rows)] = job.truth.items()
    assert lines.height == len(rows) == 62
    for line in lines.iter_rows(named=True):
        assert line["customer_key"] == named(key, rows[line["row"] - 1].customer)
        assert line["customer_key_name"] == "customerkey"
    for path in (job.state / "ledger").rglob("*"):
        assert not path.is_file() or PRIVATE.encode() not in path.read_bytes()


def must_not_hold(job: Job, *secrets: str) -> None:
    """No file of the job, whatever it is for, has the key."""
    for path in [*job.state.rglob("*"), *job.folder.glob("*.log")]:
        for secret in secrets:
            assert not path.is_file() or secret.encode() not in path.read_bytes(), path


def test_customers_are_named_by_hmac(tmp_path: Path) -> None:
    """Delivered, duplicate and invalid rows alike; the key itself is in no file, and verify agrees with it."""
    with serving(tmp_path / "log") as server:
        job = a_job(tmp_path / "job", server)
        expect(job.run("a.csv", environment={"BACKFILL_LEDGER_KEY": KEY}), 0, "delivered 60")
        must_be_named_by(job, KEY)
        must_not_hold(job, KEY)
        verified = job.run(command="verify", environment={"BACKFILL_LEDGER_KEY": KEY})
        expect(verified, 0)
        assert "not compared" not in verified.said
        must_not_hold(job, KEY)


def test_the_key_may_stand_in_a_file(tmp_path: Path) -> None:
    """BACKFILL_LEDGER_KEY_FILE, a final line end excepted."""
    with serving(tmp_path / "log") as server:
        job = a_job(tmp_path / "job", server)
        (tmp_path / "key").write_text(KEY + "\n")
        expect(job.run("a.csv", environment={"BACKFILL_LEDGER_KEY_FILE": str(tmp_path / "key")}), 0)
        must_be_named_by(job, KEY)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, ("Set BACKFILL_LEDGER_KEY", "_FILE")),
        ({"BACKFILL_LEDGER_KEY": "short-key"}, ("less than 16 characters", "openssl rand -hex 32")),
        ({"BACKFILL_LEDGER_KEY_FILE": "/nowhere"}, ("BACKFILL_LEDGER_KEY_FILE names cannot be read",)),
    ],
)
def test_without_a_key_nothing_is_sent(tmp_path: Path, environment: dict[str, str], words: tuple[str, ...]) -> None:
    """78 with the remedy, before anything is staged; what is too short is not shown."""
    with serving(tmp_path / "log") as server:
        job = a_job(tmp_path / "job", server)
        refused = job.run("a.csv", environment=environment)
        expect(refused, 78, *words)
        assert "short-key" not in refused.said
        assert server.count() == 0
        assert not (job.state / "staged").exists()


def test_a_later_run_needs_the_key_too_whatever_is_configured_by_then(tmp_path: Path) -> None:
    """The load is frozen with it: 78 naming the load, though plain is configured and there is nothing to do."""
    with serving(tmp_path / "log") as server:
        job = a_job(tmp_path / "job", server)
        expect(job.run("a.csv", environment={"BACKFILL_LEDGER_KEY": KEY}), 0)
        expect(job.run("a.csv", "--set", "ledger.customer_key=plain"), 78, "load 1", "BACKFILL_LEDGER_KEY")
        must_be_named_by(job, KEY)


def test_another_key_writes_the_ledger_anew(tmp_path: Path) -> None:
    """Every part, without a call; the manifest tells the two keys apart and holds neither."""
    with serving(tmp_path / "log") as server:
        job = a_job(tmp_path / "job", server)
        expect(job.run("a.csv", environment={"BACKFILL_LEDGER_KEY": KEY}), 0)
        first = marks(job)
        calls = server.count()
        verified = job.run(command="verify", environment={"BACKFILL_LEDGER_KEY": OTHER})
        expect(verified, 0, "62 customer keys not compared (made with another BACKFILL_LEDGER_KEY")
        expect(job.run("a.csv", environment={"BACKFILL_LEDGER_KEY": OTHER}), 0)
        must_be_named_by(job, OTHER)
        must_not_hold(job, KEY, OTHER)
        assert marks(job) != first
        assert server.count() == calls
        expect(job.run("a.csv", environment={"BACKFILL_LEDGER_KEY": KEY}), 0)
        assert marks(job) == first


def marks(job: Job) -> list[str]:
    """How customers are named in each load, as the manifest keeps it."""
    manifest = json.loads((job.state / "ledger" / "manifest.json").read_bytes())
    return [load["customer_key"] for load in manifest["loads"]]


def test_verify_without_the_key_checks_all_else_and_says_so(tmp_path: Path) -> None:
    """0, naming what it left out; with the key it sees a customer that was changed."""
    with serving(tmp_path / "log") as server:
        job = a_job(tmp_path / "job", server)
        expect(job.run("a.csv", environment={"BACKFILL_LEDGER_KEY": KEY}), 0)
        expect(job.run(command="verify"), 0, "62 customer keys not compared (BACKFILL_LEDGER_KEY is not set)")
        part = next((job.state / "ledger").rglob("part-00000.parquet"))
        lines = job.ledger()
        assert named(KEY, "nobody") not in lines["customer_key"].to_list()
        pl.read_parquet(part).with_columns(customer_key=pl.lit(named(KEY, "nobody"))).write_parquet(part)
        part.chmod(0o600)
        damaged = job.run(command="verify", environment={"BACKFILL_LEDGER_KEY": KEY})
        expect(damaged, 74, "another customer_key for")


def test_resolve_needs_the_key_to_decide_and_not_to_look(tmp_path: Path) -> None:
    """A preview is given without; a decision would leave a ledger that cannot be written: 78, nothing decided."""
    with serving(tmp_path / "log", "drop=after,until=1") as server:
        job = a_job(tmp_path / "job", server)
        expect(job.run("a.csv", environment={"BACKFILL_LEDGER_KEY": KEY}), 4)
        expect(job.run(command="resolve"), 0, "nothing was decided")
        expect(job.run("--delivered", command="resolve"), 78, "BACKFILL_LEDGER_KEY")
        assert job.outcomes()["in_doubt"] > 0
        expect(job.run("--delivered", command="resolve", environment={"BACKFILL_LEDGER_KEY": KEY}), 0, "in doubt 0")
        must_be_named_by(job, KEY)
