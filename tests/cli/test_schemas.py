"""What `--json` prints, by the whole commands, against the schemas that are documented. No schema allows a key that it
does not describe, so that a new one cannot go out undocumented.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import backfill.cli
from backfill.cli import COMMANDS
from tests.command import CLIENT_ID, ROOT, SECRET, Ended, Job, Server, serving, until, visits

FOLDER = Path(backfill.cli.__file__).parent / "schemas"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


def schema(name: str) -> dict[str, Any]:
    value = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    assert isinstance(value, dict)
    return value


def faults(name: str, value: object) -> list[str]:
    """What the schema says against a value; empty if nothing."""
    validator = Draft202012Validator(schema(name), format_checker=Draft202012Validator.FORMAT_CHECKER)
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]


def objects(node: object, path: str = "$") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every part of a schema that describes a value, with its place."""
    if isinstance(node, dict):
        if "type" in node or "const" in node or "description" in node:
            yield path, node
        for key, inner in node.get("properties", {}).items():
            yield from objects(inner, f"{path}.{key}")
        if "items" in node:
            yield from objects(node["items"], f"{path}[]")


# ---------------------------------------------------------------------------------------------------- the schemas


def test_every_command_has_one() -> None:
    """One schema for each command, one for errors, and none for what is no command."""
    assert sorted([*COMMANDS, "error"]) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_strict_schema(name: str) -> None:
    """Of draft 2020-12; every key is described and required, and no other is allowed."""
    whole = schema(name)
    Draft202012Validator.check_schema(whole)
    assert whole["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    for path, part in objects(whole):
        if "properties" in part:
            assert part["additionalProperties"] is False, path
            for key, inner in part["properties"].items():
                assert inner.get("description") or inner.keys() <= {"type", "minimum"}, f"{path}.{key}"


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_names_it(name: str) -> None:
    """Whoever reads --json by a program finds the contract."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "backfill/cli/schemas/" in readme
    assert f"`{name}.json`" in readme or "COMMAND.json" in readme


# ----------------------------------------------------------------------------------------------- what commands print


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Every fourth call is lost after it was applied."""
    with serving(tmp_path_factory.mktemp("server"), "drop=after,every=4") as serving_:
        yield serving_


@pytest.fixture(scope="module")
def job(server: Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Ended]:
    """A job with delivered rows, invalid ones, duplicates and rows in doubt, and how its run ended."""
    job = Job(tmp_path_factory.mktemp("job"), server.base_url, {"rows": {"max_rejected": "50%"}})
    rows = visits(900, customers=300)
    job.export("a.csv", [*rows, rows[0], rows[1]._replace(customer="")])
    return job, job.run("a.csv", "--json")


def agrees(name: str, ended: Ended, *codes: int) -> dict[str, Any]:
    """The object that a command printed, which must be as its schema says."""
    assert ended.code in codes, ended.said
    value = ended.object()
    assert faults(name, value) == []
    return value


def test_a_run_that_completes(job: tuple[Job, Ended]) -> None:
    """Complete, with rows in doubt."""
    value = agrees("run", job[1], 4)
    assert value["exit_code"] == 4
    assert value["outcomes"]["in_doubt"] > 0


def test_a_run_that_stops(server: Server, tmp_path: Path) -> None:
    """A trial: stopped, with the reason and what is left."""
    job = Job(tmp_path / "job", server.base_url)
    job.export("a.csv", visits(300))
    value = agrees("run", job.run("a.csv", "--limit", "10", "--json"), 75)
    assert value["stopped"]
    assert value["remaining_calls"] > 0


def test_a_status_while_it_runs_and_after(tmp_path: Path) -> None:
    """The same object with a process that lives, one that died, and one that ended."""
    with serving(tmp_path / "log") as server:
        job = Job(tmp_path / "job", server.base_url, {"budget": {"requests_per_second": 2}})
        job.export("a.csv", visits(2_000))
        running = job.start("a.csv")
        try:
            until(lambda: server.count() > 1, "calls are made")
            until(lambda: status(job).object()["last"]["phase"] == "delivering", "the status tells of it")
            value = agrees("status", status(job), 0)
            assert (value["running"], value["alive"], value["last"]["rows_total"]) == (True, True, 2_000)
        finally:
            running.send_signal(signal.SIGKILL)
            running.wait()
        value = agrees("status", status(job), 0)
        assert (value["running"], value["alive"], value["last"]["exit_code"]) == (False, False, None)
        assert value["not_in_ledger"][0]["exports"][0]["read"] == 2_000


def status(job: Job) -> Ended:
    """`status --json` beside a running command, whose output files stay as they are."""
    words = [sys.executable, "-m", "backfill", "status", "--state", str(job.state), "--json"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    return Ended(done.returncode, done.stdout, done.stderr, 0.0)


def test_a_status_of_a_finished_job(job: tuple[Job, Ended]) -> None:
    """With its exports and the exit code of the last execution."""
    value = agrees("status", status(job[0]), 0)
    assert value["last"]["exit_code"] == 4
    assert value["exports"][0]["read"] == 902


def test_every_line_of_the_ledger(job: tuple[Job, Ended]) -> None:
    """Delivered, invalid, duplicate and in doubt: each as one object."""
    ended = job[0].run("--json", command="ledger")
    lines = [json.loads(line) for line in ended.out.splitlines()]
    assert {line["outcome"] for line in lines} == {"delivered", "invalid", "duplicate", "in_doubt"}
    assert [fault for line in lines for fault in faults("ledger", line)] == []


def test_a_verdict_that_agrees_and_one_that_does_not(job: tuple[Job, Ended], tmp_path: Path) -> None:
    """The same object with ok true and false."""
    assert agrees("verify", job[0].run("--json", command="verify"), 0)["ok"] is True
    with serving(tmp_path / "log") as server:
        other = Job(tmp_path / "other", server.base_url)
        other.export("a.csv", visits(20))
        other.run("a.csv")
        next(other.state.glob("ledger/*/*.parquet")).unlink()
        assert agrees("verify", other.run("--json", command="verify"), 74)["ok"] is False


def test_a_preview_and_a_decision(tmp_path: Path) -> None:
    """With and without a decision, and where nothing is concerned."""
    with serving(tmp_path / "log", "drop=after,every=2") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(400, customers=100))
        assert job.run("a.csv").code == 4
        value = agrees("resolve", job.run("--json", command="resolve"), 0)
        assert (value["decision"], value["by_cause"].keys()) == (None, {"no_reply"})
        value = agrees("resolve", job.run("--json", "--delivered", "--rows", "x.csv", command="resolve"), 0)
        assert (value["carried_out"], value["outcomes"]["in_doubt"], value["rows_file"]) == (True, 0, "x.csv")
        value = agrees("resolve", job.run("--json", "--resend", command="resolve"), 0)
        assert (value["rows"], value["carried_out"]) == (0, False)


def invoke(folder: Path, *words: str | Path, config: Path | None = None) -> Ended:
    """Any command in a folder of its own, with the test's credentials."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BACKFILL_")}
    environment |= {"BACKFILL_CLIENT_ID": CLIENT_ID, "BACKFILL_CLIENT_SECRET": SECRET, "PYTHONPATH": str(ROOT)}
    told = [*words, *(["--config", config] if config is not None else []), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "backfill", *map(str, told)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr, 0.0)


def test_a_plan(job: tuple[Job, Ended], tmp_path: Path) -> None:
    """Of an export that would be taken, of one that would be refused, and of one without a valid row."""
    folder, config = job[0].folder, job[0].folder / "backfill.toml"
    value = agrees("plan", invoke(tmp_path, "plan", folder / "a.csv", config=config), 0)
    assert (value["read"], value["invalid"], value["duplicate"]) == (902, 1, 1)
    assert len(value["first"]) == 3
    other = tmp_path / "other.csv"
    other.write_text("n,timestamp,customer_key,url,mark,tid\n1,never,,api://a,x,\n")
    value = agrees("plan", invoke(tmp_path, "plan", other, config=config), 78)
    assert value["refusals"]
    assert value["floor"] is None


def test_a_check(job: tuple[Job, Ended], tmp_path: Path) -> None:
    """With an export that matches and one that does not; with a token granted."""
    folder, config = job[0].folder, job[0].folder / "backfill.toml"
    value = agrees("check", invoke(tmp_path, "check", folder / "a.csv", config=config), 0)
    assert value["token"]["exit_code"] == 0
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    value = agrees("check", invoke(tmp_path, "check", other, config=config), 78)
    assert value["exports"][0]["error"]
    assert agrees("check", invoke(tmp_path, "check", config=config), 0)["exports"] is None


def test_a_probe(tmp_path: Path) -> None:
    """Its trials, what it cost and the lines to keep."""
    with serving(tmp_path / "log", wire="address_field=uri") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(3))
        words = ("check", "a.csv", "--probe", "--yes", "--state", job.state)
        value = agrees("check", invoke(job.folder, *words, config=job.folder / "backfill.toml"), 0)
        assert value["probe"]["trials"][-1]["proof"] == "taken"
        assert value["probe"]["keep"]


@pytest.mark.parametrize("call", ["interaction-post", "interaction-put", "interaction-offline"])
def test_a_call_by_hand(tmp_path: Path, call: str) -> None:
    """Each call's reply; only POST hands back optimizations."""
    offline = ("--timestamp", "2024-05-06T07:08:09Z") if "offline" in call else ()
    words = ("send", "--call", call, "--url", "api://shop/a", "--customer-key", "4711", "--sandbox", *offline)
    value = agrees("send", invoke(tmp_path, *words), 0)
    assert (value["outcome"], value["optimizations"] is not None) == ("delivered", call == "interaction-post")


def test_a_call_by_hand_that_nobody_answers(tmp_path: Path) -> None:
    """Nothing came back, so the reply's elements are null."""
    (tmp_path / "backfill.toml").write_text('[api]\nbase_url = "http://127.0.0.1:9"\nsite_key = "k"\n')
    words = ("send", "--call", "interaction-put", "--url", "api://shop/a", "--customer-key", "4711")
    value = agrees("send", invoke(tmp_path, *words), 75)
    assert (value["outcome"], value["http_status"], value["sent_at"]) == ("unsent", None, None)


def test_a_sandbox_that_listens(tmp_path: Path) -> None:
    """One object, as soon as it can be reached."""
    words = [
        sys.executable,
        "-m",
        "backfill",
        "sandbox",
        "--json",
        "--log",
        str(tmp_path / "log"),
        "--exit-with-parent",
    ]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    line = process.stdout.readline()
    process.communicate()
    assert faults("sandbox", json.loads(line)) == []


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("words", [["--no-such-option"], ["--state", "nowhere"]])
def test_every_error(tmp_path: Path, name: str, words: list[str]) -> None:
    """Wrong usage and a job that is not there: the same object from every command."""
    if name == "sandbox" and words[0] == "--state":
        words = ["--misbehave", "nonsense"]
    ended = invoke(tmp_path, name, *words)
    assert ended.code in (2, 78)
    assert faults("error", ended.object()) == []
    assert ended.object()["error"]["exit_code"] == ended.code


def test_a_schema_sees(job: tuple[Job, Ended]) -> None:
    """Negative control: a key too many, one too few, and a value of another kind are told."""
    value = job[1].object()
    assert faults("run", value) == []
    assert faults("run", value | {"new": 1}) != []
    assert faults("run", {key: item for key, item in value.items() if key != "read"}) != []
    assert faults("run", value | {"read": "902"}) != []
    assert faults("run", value | {"outcomes": value["outcomes"] | {"lost": 0}}) != []
