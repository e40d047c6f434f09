"""Timestamps and keys through the whole command: whatever machine it runs on, and whatever the texts are."""

import csv
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tests.account import AGENT
from tests.command import PRIVATE, Job, Server, expect, serving

MACHINES = ["Asia/Kathmandu", "America/St_Johns", "UTC"]
WALLS = [datetime(2024, 1, 1) + timedelta(hours=37 * n, seconds=n) for n in range(200)]  # noqa: DTZ001  # wall clocks


def write(path: Path, rows: list[tuple[str, str]]) -> Path:
    """An export of (timestamp, key)."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(["timestamp", "customer_key", "url"])
        writer.writerows([*row, "api://shop/x"] for row in rows)
    return path


def job(folder: Path, server: Server, **config: Any) -> Job:
    made = Job(folder, server.base_url)
    made.configure(columns={"tid": {"value": "t"}}, rows={"max_rejected": 1000}, **config)
    return made


def sent(server: Server, job: Job) -> dict[int, dict[str, Any]]:
    """What the API got for each row, by the ledger's word of where the row went."""
    applied = {}
    for request in server.applied():
        agent = AGENT.search(request["user_agent"])
        assert agent is not None
        load, number, first, *_ = map(int, agent.groups())
        for position, interaction in enumerate(request["interactions"], start=first):
            applied[load, number, position] = interaction
    lines = job.ledger().filter(outcome="delivered").to_dicts()
    assert len(lines) == len(applied)
    return {line["row"]: applied[line["load"], line["request"], line["position"]] for line in lines}


@pytest.mark.parametrize("machine", MACHINES)
def test_the_zone_of_the_machine_is_never_asked(tmp_path: Path, machine: str) -> None:
    """Walls are read in the declared zone and nowhere else, and counts are UTC; the ledger has the same instants."""
    with serving(tmp_path / "log") as server:
        it = job(tmp_path / "job", server, time={"zone": "Europe/Berlin"})
        path = write(tmp_path / "june.csv", [(wall.isoformat(), f"{PRIVATE}-{n}") for n, wall in enumerate(WALLS)])
        expect(it.run(path, environment={"TZ": machine}), 0)
        berlin = [wall.replace(tzinfo=ZoneInfo("Europe/Berlin")).astimezone(UTC) for wall in WALLS]
        got = sent(server, it)
        assert [got[row + 1]["timestamp"] for row in range(len(WALLS))] == [
            round(at.timestamp() * 1000) for at in berlin
        ]
        assert it.ledger().sort("row")["timestamp"].to_list() == berlin


@pytest.mark.parametrize("machine", MACHINES)
def test_without_a_declared_zone_no_machine_s_zone_stands_in(tmp_path: Path, machine: str) -> None:
    """The rows are invalid on every machine, with the reason; typed and declared ones as well."""
    with serving(tmp_path / "log") as server:
        it = job(tmp_path / "job", server)
        path = write(tmp_path / "june.csv", [("2024-03-01 12:00:00", f"{PRIVATE}-1"), ("2024-03-01", f"{PRIVATE}-2")])
        expect(it.run(path, environment={"TZ": machine}), 0)
        assert it.outcomes() == {"invalid": 2}
        assert it.reasons("invalid") == {"timestamp_without_zone"}
        assert server.applied() == []


ALPHABETS = [
    "0123456789.eE+-",
    "aAbB \u00a0\u2003",
    "\"\\/'`<>&;,|#{}",
    "\u00e4a\u0308\u6f22\U0001f600\u0130\u0131\u00df",
    "\u200b\u200e\u202e\u2066\ufeff\u00ad\u2800\u2028",
    "".join(map(chr, range(0x20, 0x7F))),
]


@pytest.mark.parametrize("seed", range(2))
def test_a_key_is_the_same_text_in_file_body_and_ledger(tmp_path: Path, seed: int) -> None:
    """Every key that is accepted, to the character; keys that differ in case or normalisation are two customers'."""
    draw = random.Random(seed)
    keys = ["Ab", "ab", "\u00e9", "e\u0301", " x", "x ", "x"]
    while len(keys) < 800:
        keys.append("".join(draw.choices(draw.choice(ALPHABETS), k=draw.randint(1, 12))))
    with serving(tmp_path / "log") as server:
        it = job(tmp_path / "job", server)
        moment = datetime(2024, 3, 1, tzinfo=UTC)
        rows = [((moment + timedelta(seconds=n)).isoformat(), key) for n, key in enumerate(keys)]
        expect(it.run(write(tmp_path / "june.csv", rows)), 0)
        got = sent(server, it)
        assert {row: one["customerKey"] for row, one in got.items()} == {row: keys[row - 1] for row in got}
        told = it.ledger().sort("row")["customer_key"].to_list()
        assert told == keys
        refused = set(it.ledger().filter(outcome="invalid")["row"].to_list())
        assert refused == set(range(1, len(keys) + 1)) - got.keys()
        assert it.reasons("invalid") <= {
            "customer_key_blank",
            "customer_key_whole_number",
            "customer_key_exponent",
            "customer_key_imprecise",
        }
        assert len(got) > 700
