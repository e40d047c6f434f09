"""`backfill check --probe` as a user types it: the form is found, and at most one row is applied, once."""

import fcntl
import json
import os
import pty
import select
import subprocess
import sys
import termios
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.command import CLIENT_ID, PRIVATE, ROOT, SECRET, Ended, Job, agree, expect, serving, until, visits
from tests.test_run_wire import applied


def probed(job: Job, *arguments: str) -> Ended:
    return job.run("--config", "backfill.toml", "--probe", "--yes", "a.csv", *arguments, command="check")


def kept(ended: Ended) -> dict[str, dict[str, object]]:
    """The section that it says to keep, read as the configuration will be."""
    return tomllib.loads("\n".join(ended.object()["probe"]["keep"]))


@pytest.mark.parametrize(
    ("demands", "most"),
    [
        ((), 1),
        (("address_field=uri",), 2),
        (("address_field=uri", "timestamp_format=iso8601", "bulk.key=interactions"), 4),
    ],
)
def test_the_form_is_found_and_run_goes_on_with_it(tmp_path: Path, demands: Sequence[str], most: int) -> None:
    """The lines that it prints complete the job: each row is applied once, the probed one by the probe alone."""
    with serving(tmp_path / "log", wire=tuple(demands)) as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(120))
        found = probed(job, "--json")
        expect(found, 0)
        probe = found.object()["probe"]
        assert probe["calls"] == len(server.calls()) == len(probe["trials"]) <= most
        [n] = applied(server)
        assert (probe["row"]["row"], probe["row"]["outcome"]) == (n, "delivered")
        assert job.outcomes() == {"delivered": 1, "unsent": 119}
        job.configure(**kept(found))
        expect(job.run("a.csv"), 0, "delivered 120")
        assert applied(server) == list(range(1, 121))
        expect(job.run(command="verify"), 0)


def test_ledger_and_server_agree_after_a_probe(tmp_path: Path) -> None:
    """In the default form every promise that is checked for `run` holds for what the probe sent, too."""
    with serving(tmp_path / "log") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(120))
        expect(probed(job), 0, "Probe: 1 call of one interaction", "Keep in the configuration:", "Sound.")
        assert agree(job, server) == {"delivered": 1, "unsent": 119}
        expect(job.run("a.csv"), 0)
        assert agree(job, server) == {"delivered": 120}


def test_the_single_call_is_probed_without_a_frame(tmp_path: Path) -> None:
    """It has four forms, and nothing is said of `bulk`."""
    with serving(tmp_path / "log", wire=("address_field=uri", "timestamp_format=iso8601")) as server:
        job = Job(tmp_path / "job", server.base_url, {"api": {"call": "interaction-offline"}})
        job.export("a.csv", visits(5))
        found = probed(job, "--json")
        expect(found, 0)
        assert found.object()["probe"]["calls"] <= 4
        assert kept(found)["wire"] == {
            "address_field": "uri",
            "timestamp_field": "timestamp",
            "timestamp_format": "iso8601",
            "acknowledged_by": "statusCode",
        }


def test_what_a_person_reads_of_a_probe(tmp_path: Path) -> None:
    """The tries with the API's words, the row, the lines and what to do next, as a whole text."""
    with serving(tmp_path / "log", wire=("address_field=uri",)) as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(5))
        said = probed(job)
        expect(said, 0)
        text = said.out[said.out.index("Probe:") :].replace(str(job.folder), "JOB")
        assert text == (
            "Probe: 2 calls of one interaction\n"
            '  1. address_field = "url", timestamp_format = "epoch_ms", bulk = "array": refused (HTTP 400: Bad input '
            "parameter: interaction 1 of 1: `uri` is missing.)\n"
            '  2. address_field = "uri", timestamp_format = "epoch_ms", bulk = "array": taken\n'
            "  The row: JOB/a.csv, row 1: delivered\n"
            "  Keep in the configuration:\n"
            "    [wire]\n"
            '    address_field = "uri"\n'
            '    timestamp_field = "timestamp"\n'
            '    timestamp_format = "epoch_ms"\n'
            '    bulk = "array"\n'
            '    acknowledged_by = "statusCode"\n'
            "  Next     It is delivered and in the ledger. With these lines `backfill run` goes on with the other "
            "rows.\n"
            "\n"
            "Sound.\n"
        )


def test_run_in_another_form_than_the_probe_found_is_refused(tmp_path: Path) -> None:
    """A row was delivered in that form, so the load keeps it: 78 naming both, and no call."""
    with serving(tmp_path / "log", wire=("address_field=uri",)) as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(5))
        expect(probed(job), 0)
        calls = len(server.calls())
        expect(job.run("a.csv"), 78, 'wire.address_field was "uri" and is now "url"')
        assert len(server.calls()) == calls


def test_eight_refusals_are_the_end(tmp_path: Path) -> None:
    """78 after eight calls, nothing applied, no lines to keep; a later run in the right form is complete."""
    with serving(tmp_path / "log", wire=("address_field=link",)) as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(5))
        said = probed(job)
        expect(said, 78, "Probe: 8 calls", "Each form was refused", "`link` is missing", "no form that the API took")
        assert "Keep" not in said.out
        assert (len(server.calls()), applied(server)) == (8, [])
        job.configure(wire={"address_field": "link"})
        expect(job.run("a.csv"), 0, "delivered 5")
        assert applied(server) == [1, 2, 3, 4, 5]


def test_a_reply_without_status_code_ends_in_doubt_and_says_how_to_go_on(tmp_path: Path) -> None:
    """4 after one call, `http_status` proposed; with it and a decision the same job is complete, nothing twice."""
    with serving(tmp_path / "log", wire=("acknowledged_by=http_status",)) as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(120))
        found = probed(job, "--json")
        assert (found.code, found.object()["probe"]["calls"], len(server.calls())) == (4, 1, 1)
        assert kept(found)["wire"]["acknowledged_by"] == "http_status"
        assert job.outcomes() == {"in_doubt": 1, "unsent": 119}
        job.configure(**kept(found))
        expect(job.run("--delivered", command="resolve"), 0)
        expect(job.run("a.csv"), 0, "delivered 120")
        assert applied(server) == list(range(1, 121))


@pytest.mark.parametrize(
    ("rule", "code", "words", "outcomes"),
    [
        ("drop=after", 4, "Nobody knows whether the row arrived", {"in_doubt": 1, "unsent": 4}),
        ("status=500", 4, "Nobody knows whether the row arrived", {"in_doubt": 1, "unsent": 4}),
        ("status=503", 75, "says nothing", {"unsent": 5}),
        ("status=401", 77, "refused the token", {"unsent": 5}),
        ("status=403", 77, "says nothing", {"unsent": 5}),
        ("status=404", 78, "says nothing", {"unsent": 5}),
    ],
)
def test_any_other_reply_ends_it_at_the_first_call(
    tmp_path: Path, rule: str, code: int, words: str, outcomes: dict[str, int]
) -> None:
    """Doubt is never followed by another try, and what says nothing of the form costs one call alone."""
    with serving(tmp_path / "log", rule) as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(5))
        said = probed(job)
        expect(said, code, words, "Not sound: no form")
        assert "Keep" not in said.out
        assert len(server.calls()) == 1
        assert job.outcomes() == outcomes


def test_a_probe_that_is_killed_leaves_its_row_in_doubt(tmp_path: Path) -> None:
    """Killed while the API has the call: the next run names the row, sends the others, and not that one again."""
    with serving(tmp_path / "log", "hold_s=3,until=1") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(120))
        process = job.start("--config", "backfill.toml", "--probe", "--yes", "a.csv", command="check")
        until(lambda: told_requests(job) == 1, "a call under way")
        process.kill()
        process.wait()
        until(lambda: len(server.calls()) == 1, "the call being applied")
        expect(job.run("a.csv"), 4, "in doubt 1", "delivered 119")
        assert sorted(applied(server)) == list(range(1, 121))
        expect(job.run(command="verify"), 0)


def told_requests(job: Job) -> int:
    """Calls made, as status.json has them while an execution runs."""
    try:
        return int(json.loads((job.state / "status.json").read_text()).get("requests", 0))
    except (OSError, ValueError):
        return 0


def test_a_job_that_has_sent_rows_is_not_probed(tmp_path: Path) -> None:
    """78 with where to look, and no call."""
    with serving(tmp_path / "log") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(5))
        expect(job.run("a.csv"), 0)
        calls = len(server.calls())
        expect(probed(job), 78, "were sent already (load 1)", "backfill ledger --state")
        assert len(server.calls()) == calls


def test_nothing_is_probed_while_something_else_is_wrong(tmp_path: Path) -> None:
    """Refused credentials, or columns that do not match, are told first: no call, no state."""
    with serving(tmp_path / "log") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(5))
        expect(probed(job, "--set", "columns.url=ulr"), 78, "no column 'ulr'")
        refused = job.run(
            *("--config", "backfill.toml", "--probe", "--yes", "a.csv"),
            command="check",
            environment={"BACKFILL_CLIENT_SECRET": "wrong"},
        )
        expect(refused, 77)
        assert server.calls() == []
        assert not job.state.exists()


def test_exports_without_a_row_to_send(tmp_path: Path) -> None:
    """No call, and it says that there was nothing to try."""
    with serving(tmp_path / "log") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", [])
        expect(probed(job), 0, "Probe: 0 calls", "No row was sent")
        assert server.calls() == []


@pytest.mark.parametrize(("answer", "calls"), [("n", 0), ("y", 1)])
def test_on_a_terminal_it_asks_first(tmp_path: Path, answer: str, calls: int) -> None:
    """It says what is going to happen and what it costs; only a yes makes a call."""
    with serving(tmp_path / "log") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(5))
        code, said = on_a_terminal(job, answer)
        assert code == 0
        for words in ("delivers one row of a.csv for real", server.base_url, "at most 8 calls", "costs licence"):
            assert words in " ".join(said.split()), said
        assert ("Nothing was sent." in said) == (answer == "n")
        assert len(server.calls()) == calls
        assert (job.state / "staged").exists() == (answer == "y")
        assert PRIVATE not in said


def test_ctrl_c_at_the_question_ends_it(tmp_path: Path) -> None:
    """130 at once, as for any program that asks; nothing is sent, and nothing was begun."""
    with serving(tmp_path / "log") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(5))
        code, said = on_a_terminal(job, "\x03")
        assert (code, "Interrupted." in said) == (130, True)
        assert server.calls() == []
        assert not job.state.exists()


def on_a_terminal(job: Job, answer: str) -> tuple[int, str]:
    """Runs the probe on a pseudo-terminal and answers its question."""
    leader, follower = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BACKFILL_")}
    credentials = {"BACKFILL_CLIENT_ID": CLIENT_ID, "BACKFILL_CLIENT_SECRET": SECRET, "PYTHONPATH": str(ROOT)}
    words = ["check", "--state", str(job.state), "--config", "backfill.toml", "--probe", "a.csv"]
    process = subprocess.Popen(
        [sys.executable, "-m", "backfill", *words],
        cwd=job.folder,
        env=environment | credentials,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(follower)
    said, answered, deadline_s = b"", False, time.monotonic() + 60
    try:
        while time.monotonic() < deadline_s:
            if not select.select([leader], [], [], 0.2)[0]:
                continue
            try:
                more = os.read(leader, 65_536)
            except OSError:  # the last holder of the other end is gone
                break
            if not more:
                break
            said += more
            if not answered and b"[y/N]" in said:
                os.write(leader, answer.encode() + b"\n")
                answered = True
        return process.wait(10), said.decode()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(leader)
