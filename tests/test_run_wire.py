"""The forms of `[wire]`, whole command against a sandbox that demands one: taken as configured, or refused unharmed."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.command import ROOT, Job, Server, expect, serving, visits

FORMS: dict[str, tuple[str, dict[str, object]]] = {
    "uri": ("address_field=uri", {"address_field": "uri"}),
    "when": ("timestamp_field=when", {"timestamp_field": "when"}),
    "iso8601": ("timestamp_format=iso8601", {"timestamp_format": "iso8601"}),
    "key": ("bulk.key=interactions", {"bulk": {"key": "interactions"}}),
}
"""By name, a demand of the sandbox and the configuration that meets it; each differs from what is demanded else."""

DEFAULTS = ("address_field=url", "timestamp_field=timestamp", "timestamp_format=epoch_ms", "bulk=array")


def demanding(*demands: str) -> tuple[str, ...]:
    """A whole form: these demands, and the default form in all else."""
    keys = {demand.partition("=")[0].partition(".")[0] for demand in demands}
    return (*demands, *(text for text in DEFAULTS if text.partition("=")[0] not in keys))


def applied(server: Server) -> list[int]:
    """The event ids of all that was applied."""
    return sorted(
        next(int(one["value"]) for one in interaction["properties"] if one["name"] == "n")
        for request in server.applied()
        for interaction in request["interactions"]
    )


def whole(one: Mapping[str, Any]) -> set[str]:
    return {name for name in one if name not in ("customerKey", "customerKeyName", "properties")}


@pytest.mark.parametrize("name", FORMS)
def test_a_job_in_the_demanded_form_is_complete(tmp_path: Path, name: str) -> None:
    """Every row is applied once, and nothing but the demanded elements stands in it."""
    demand, wire = FORMS[name]
    with serving(tmp_path / "log", wire=demanding(demand)) as server:
        job = Job(tmp_path / "job", server.base_url, {"wire": wire})
        job.export("a.csv", visits(250))
        expect(job.run("a.csv"), 0, "delivered 250")
        assert applied(server) == list(range(1, 251))
        elements = {str(wire.get("address_field", "url")), str(wire.get("timestamp_field", "timestamp"))}
        assert all(whole(one) == elements for request in server.applied() for one in request["interactions"])
        expect(job.run(command="verify"), 0)


def test_all_forms_together_and_by_the_single_call(tmp_path: Path) -> None:
    """What differs from the default in everything is taken, in the call of one too, where a frame has no meaning."""
    demands = tuple(demand for demand, _ in FORMS.values())
    wire = {key: value for _, keys in FORMS.values() for key, value in keys.items()}
    for call in ("interactions-offline", "interaction-offline"):
        with serving(tmp_path / call / "log", wire=demands) as server:
            job = Job(tmp_path / call / "job", server.base_url, {"wire": wire, "api": {"call": call}})
            job.export("a.csv", visits(30))
            expect(job.run("a.csv"), 0, "delivered 30")
            assert applied(server) == list(range(1, 31))


@pytest.mark.parametrize("name", FORMS)
def test_a_job_in_another_form_stops_with_nothing_rejected(tmp_path: Path, name: str) -> None:
    """78 after `canary_calls` calls, nothing applied; put right, the same job is complete."""
    demand, wire = FORMS[name]
    with serving(tmp_path / "log", wire=demanding(demand)) as server:
        job = Job(tmp_path / "job", server.base_url, {"delivery": {"canary_calls": 4}})
        job.export("a.csv", visits(250))
        expect(job.run("a.csv"), 78, "rejected 0", "unsent 250")
        assert (applied(server), len(server.calls())) == ([], 4)
        job.configure(wire=wire)
        expect(job.run("a.csv"), 0, "delivered 250")
        assert applied(server) == list(range(1, 251))


def test_a_form_that_the_sandbox_does_not_demand_is_refused_too(tmp_path: Path) -> None:
    """The default form is demanded: a job that writes `uri` is told so, and nothing is applied."""
    with serving(tmp_path / "log", wire=DEFAULTS) as server:
        job = Job(tmp_path / "job", server.base_url, {"wire": {"address_field": "uri"}})
        job.export("a.csv", visits(50))
        expect(job.run("a.csv"), 78, "rejected 0", "`url` is missing")
        assert applied(server) == []


def test_replies_without_a_status_code_leave_doubt_until_their_form_is_configured(tmp_path: Path) -> None:
    """75 with the calls of the breaker in doubt; then the same load goes on under `http_status`, nothing twice."""
    with serving(tmp_path / "log", wire=("acknowledged_by=http_status",)) as server:
        job = Job(tmp_path / "job", server.base_url, {"delivery": {"breaker_failures": 2}})
        job.export("a.csv", visits(900, customers=300))
        expect(job.run("a.csv"), 75, "rejected 0", "no usable answer")
        doubt = job.outcomes()["in_doubt"]
        assert doubt < 900
        job.configure(wire={"acknowledged_by": "http_status"}, delivery={"backoff_base_s": 0.02})
        expect(job.run("a.csv"), 4, f"in doubt {doubt}", f"delivered {900 - doubt}")
        assert applied(server) == list(range(1, 901))
        expect(job.run("--delivered", command="resolve"), 0, "in doubt 0")
        expect(job.run("a.csv"), 0)
        assert applied(server) == list(range(1, 901))


def test_replies_with_a_status_code_are_taken_by_http_status_as_well(tmp_path: Path) -> None:
    """The weaker reading takes the stronger reply."""
    with serving(tmp_path / "log", wire=("acknowledged_by=statusCode",)) as server:
        job = Job(tmp_path / "job", server.base_url, {"wire": {"acknowledged_by": "http_status"}})
        job.export("a.csv", visits(50))
        expect(job.run("a.csv"), 0, "delivered 50")
        assert applied(server) == list(range(1, 51))


def test_a_form_that_cannot_be_demanded_is_wrong_usage(tmp_path: Path) -> None:
    """`sandbox --wire` with a typing error: 2, naming what there is; it does not start."""
    words = [sys.executable, "-m", "backfill", "sandbox", "--log", str(tmp_path / "log"), "--wire", "bulk=list"]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert "The form 'bulk=list' cannot be demanded: write bulk= and array." in ended.stderr
    assert not (tmp_path / "log").exists()
