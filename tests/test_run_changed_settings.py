"""Settings change between two executions: another tenant, keys that a load freezes, keys that may change.

What is refused must cost no request and change nothing; a load of which nothing can have been applied takes other
settings; all ends with every row applied once.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.account import AGENT
from tests.command import SITE_KEY, Job, agree, expect, serving, visits
from tests.stages import JUNE, LEFT, OTHER_SITE, At, journal, prepared_in


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[At]:
    """Brings a job to a stage, once for all cells."""
    with prepared_in(tmp_path_factory.mktemp("changed").resolve()) as at:
        yield at


# ------------------------------------------------------------------------------------------------------ other settings

FROZEN: dict[str, dict[str, str]] = {
    "columns": {"columns.url": '{ value = "api://shop/visit" }', "columns.properties": '["mark", "n"]'},
    "time": {"time.zone": '"Europe/Berlin"'},
    "csv": {"csv.quote": '"\'"'},
    "rows": {"rows.duplicates": '"send"', "rows.customer_key_required": "false"},
    "wire": {"wire.bulk": '{ key = "interactions" }'},
}
"""By section: keys that a load freezes, with other values under which the same interactions come out."""

BEFORE = {
    "columns.url": '"url"',
    "columns.properties": "not set",
    "time.zone": "not set",
    "csv.quote": '"',
    "rows.duplicates": '"skip"',
    "rows.customer_key_required": "true",
    "wire.bulk": '"array"',
    "ledger.customer_key": '"plain"',
}

OMITTED = {"ledger.customer_key": '"omit"'}


def _sets(keys: dict[str, str]) -> list[str]:
    return [word for key, value in keys.items() for word in ("--set", f"{key}={value}")]


def _told(keys: dict[str, str]) -> list[str]:
    """What a message must hold: each key with the value that it had and the one it has."""
    return [f"{key} was {BEFORE[key]}" if key != "csv.quote" else key for key in keys] + [
        f"and is now {value}" for key, value in keys.items() if key != "csv.quote"
    ]


def test_a_load_of_which_something_was_sent_keeps_its_settings(prepared: At) -> None:
    """78 naming the load, both values of each key of each section, and what to do; nothing is sent."""
    world = prepared("stopped").again()
    before = world.frozen()
    keys = OMITTED | {key: value for section in FROZEN.values() for key, value in section.items()}
    expect(world.job.run("exports", *_sets(keys)), 78, "Load 1", *_told(keys), "were sent", "Put the settings back")
    assert world.requests() == 0
    assert world.frozen() == before
    expect(world.job.run(*_sets(OMITTED)), 78, "Load 1", *_told(OMITTED))
    assert world.requests() == 0


@pytest.mark.parametrize(
    "keys",
    [FROZEN["columns"], FROZEN["csv"] | FROZEN["time"], FROZEN["rows"] | FROZEN["wire"]],
    ids=["columns", "csv-time", "rows-wire"],
)
def test_a_load_of_which_nothing_was_sent_takes_other_settings(prepared: At, keys: dict[str, str]) -> None:
    """It is staged again, with a warning that names both values, whether or not its exports are named again."""
    world = prepared("unsent").again()
    arguments = ["exports"] if "columns.url" in keys else []
    expect(world.job.run(*arguments, *_sets(keys)), 0, "staged again", *_told(keys), "delivered 260")
    assert world.agrees() == {"delivered": 260}


def test_a_load_that_is_staged_again_may_leave_customers_out_of_its_ledger(
    prepared: At,
) -> None:
    """Every line that an earlier execution wrote with customers is gone, and `verify` agrees."""
    world = prepared("unsent").again()
    assert world.job.ledger()["customer_key"].null_count() == 0
    expect(world.job.run("exports", *_sets(OMITTED)), 0, "staged again", *_told(OMITTED))
    assert world.job.ledger()["customer_key"].null_count() == 260
    expect(world.job.run(command="verify"), 0)


def test_to_be_staged_again_a_load_needs_its_exports_as_they_were(prepared: At) -> None:
    """One that is gone or edited: 78 naming the keys and the file; with the settings back it needs none of them."""
    world = prepared("unsent").again()
    before = world.frozen()
    other = _sets(FROZEN["wire"])
    world.june.write_bytes(world.june.read_bytes().replace(b"plain", b"plaim", 1))
    expect(world.job.run(*other), 78, *_told(FROZEN["wire"]), f"{world.june}: it still has", "Put the settings back")
    world.june.unlink()
    expect(world.job.run(*other), 78, *_told(FROZEN["wire"]), f"{world.june}: it is gone", "Put the settings back")
    assert (world.requests(), world.frozen()) == (0, before)
    expect(world.job.run(), 0, "delivered 260")
    assert world.agrees() == {"delivered": 260}


def test_settings_that_cannot_read_the_exports_leave_an_account_that_agrees(
    prepared: At,
) -> None:
    """Staged again with a wrong delimiter: 78, nothing is left, `verify` agrees; put back, all rows are sent."""
    world = prepared("unsent").again()
    expect(world.job.run("exports", "--set", 'csv.delimiter=";"'), 78, str(world.july), "no column 'timestamp'")
    assert world.requests() == 0
    expect(world.job.run(command="verify"), 0)
    expect(world.job.run("exports"), 0, "delivered 260")
    assert world.agrees() == {"delivered": 260}


def test_a_finished_load_keeps_its_settings_and_the_next_one_has_others(prepared: At) -> None:
    """All frozen keys changed at once: nothing is sent of what is complete, and a new export follows the new ones."""
    world = prepared("complete").again()
    before = world.frozen()
    others = [word for keys in FROZEN.values() for word in _sets(keys)]
    expect(world.job.run("exports", *others), 0, "read 260 = delivered 260")
    assert (world.requests(), world.frozen()) == (0, before)
    world.job.export("exports/august.csv", visits(40, first=5_000))
    expect(world.job.run("exports", *others), 0, "read 300 = delivered 300")
    assert world.agrees() == {"delivered": 300}


OTHER_TENANTS = {
    "base_url": ("https://other.example.com", "http://127.0.0.1:"),
    "site_key": (OTHER_SITE, SITE_KEY),
    "call": ("interaction-offline", "interactions-offline"),
}


@pytest.mark.parametrize(
    ("stage", "key"),
    [*(("stopped", key) for key in OTHER_TENANTS), ("complete", "call"), ("unsent", "site_key")],
)
def test_another_tenant_is_refused_in_every_stage(prepared: At, stage: str, key: str) -> None:
    """78 naming both values and the way out; nothing is sent to either tenant, and the state is as it was."""
    value, was = OTHER_TENANTS[key]
    world = prepared(stage).again()
    before = world.frozen()
    ended = world.job.run("exports", "--set", f"api.{key}={value}")
    expect(ended, 78, "another tenant", f"api.{key}", value, was, "--state", "put the key back")
    assert (world.requests(), world.frozen()) == (0, before)


@pytest.mark.parametrize("stage", LEFT)
def test_what_may_change_is_taken_and_journaled(prepared: At, stage: str) -> None:
    """Budget, delivery, timeouts, the token's address and max_rejected: the job goes on, and the journal has them."""
    world = prepared(stage).again()
    changes = {
        "budget.requests_per_second": 500.0,
        "budget.concurrency": 2,
        "delivery.max_attempts": 3,
        "delivery.in_doubt": "resend",
        "api.timeout_s": 30.0,
        "api.connect_timeout_s": 5.0,
        "api.token_url": f"{world.server.base_url}/one/oauth2token",
        "rows.max_rejected": "5%",
    }
    expect(world.job.run("exports", *_sets({key: json.dumps(value) for key, value in changes.items()})), 0)
    assert world.agrees() == {"delivered": 260}
    first, *_, last = (json.loads(text) for (text,) in journal(world.job, "SELECT settings FROM execution ORDER BY id"))
    for name, value in changes.items():
        section, key = name.split(".")
        assert last[section][key] == value
        assert first[section][key] != value


# ------------------------------------------------------------------------------- sent, and provably nothing was applied


def test_a_refused_mapping_can_be_mended(tmp_path: Path) -> None:
    """All is refused, and the remedy is to mend [columns]: the load is staged again although it was sent.

    Its requests have new numbers, since what was sent under the old ones stands in the vendor's log. A first attempt
    that cannot be staged at all changes nothing of that.
    """
    with serving(tmp_path / "log", "status=400,until=20") as server:
        job = Job(tmp_path / "job", server.base_url, budget=1_000)
        job.export("june.csv", JUNE)
        expect(job.run("june.csv", "--set", 'columns.properties=["n"]'), 78, "Mend the configuration ([columns]")
        refused = server.calls()
        assert {call["status"] for call in refused} == {400}
        expect(job.run("june.csv", "--set", 'columns.url="address"'), 78, "no column 'address'")
        expect(job.run(command="verify"), 0)
        expect(job.run("june.csv"), 0, "delivered 200")
        assert agree(job, server) == {"delivered": 200}
        numbers = [{_request(call) for call in calls} for calls in (refused, server.calls()[len(refused) :])]
        assert min(numbers[1]) > max(numbers[0])


def _request(call: dict[str, Any]) -> int:
    agent = AGENT.search(call["user_agent"])
    assert agent is not None
    return int(agent[2])


def test_a_mapping_is_kept_once_a_row_may_have_been_applied(tmp_path: Path) -> None:
    """One request of the load is in doubt, all others were refused: other columns are 78, and nothing is sent."""
    with serving(tmp_path / "log", "status=500,until=1", "status=400,after=1,until=21") as server:
        job = Job(tmp_path / "job", server.base_url, budget=1_000)
        job.export("june.csv", JUNE)
        expect(job.run("june.csv"), 78, "in doubt 100")
        calls = server.count()
        expect(job.run("june.csv", *_sets(FROZEN["columns"])), 78, *_told(FROZEN["columns"]), "Load 1")
        assert server.count() == calls
        expect(job.run("june.csv", "--set", "delivery.max_in_doubt=100"), 0, "delivered 100", "in doubt 100")
        assert agree(job, server) == {"delivered": 100, "in_doubt": 100}
