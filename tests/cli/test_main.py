"""The one door of the command line: exit codes, words and JSON, through real processes where a process matters."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import httpx
import polars as pl
import pytest

import backfill.run
from backfill import __version__
from backfill.adapters.ledger import ExportEntry, Ledger, LoadEntry, Manifest, PartEntry
from backfill.adapters.state import Export, JobFile, Load, StateDirectory, Tenant
from backfill.cli import COMMANDS, commands, embedded, main
from backfill.core.account import LEDGER_SCHEMA
from backfill.core.errors import ExitCode, Unusable
from backfill.core.summary import ExportCounts, Progress, Summary
from backfill.run import Order, Stop

ROOT = Path(backfill.__file__).parent.parent


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test works in an empty directory, without anybody's BACKFILL_ names."""
    for name in [name for name in os.environ if name.startswith("BACKFILL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for processes that we start from here
    monkeypatch.chdir(tmp_path)
    return tmp_path


def process(*words: str, **changes: Any) -> "subprocess.Popen[bytes]":
    """`python -m backfill` as users run it."""
    return subprocess.Popen([sys.executable, "-m", "backfill", *words], **changes)


def told(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(words)
    out, err = capsys.readouterr()
    return code, out, err


# ----------------------------------------------------------------------------------------------------------- words


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """--version names program and version."""
    assert told(capsys, "--version") == (0, f"backfill {__version__}\n", "")


def test_the_version_does_not_wait_for_polars() -> None:
    """Commands load what they need when they run, so that asking for help is quick."""
    code = (
        "import sys; from backfill.cli import main; main(['--version']); main(['-h']); print('polars' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_an_example(capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Its help shows one command line that starts with its own name, and every option has a text."""
    code, out, _ = told(capsys, name, "--help")
    assert code == 0
    assert f"    backfill {name} " in out
    assert "Example" in out
    command = commands.get_command(click.Context(commands), name)
    assert command is not None
    options = [option for option in command.params if isinstance(option, click.Option)]
    assert [option.name for option in options if not option.help] == []


def test_the_sandboxs_rules_are_in_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    """The grammar of --misbehave is told from one source."""
    _, out, _ = told(capsys, "sandbox", "--help")
    assert "status=CODE" in out
    assert "share=P" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rnu"], "Did you mean 'run'?"),
        (["frobnicate"], "There are: run, "),
        (["run", "--sandbx"], "--sandbox"),
        (["run", "--set", "concurrency=8"], "SECTION.KEY=VALUE"),
        (["run", "-"], "Standard input"),
        (["ledger", "--outcome", "deliverd"], "delivered"),
        (["sandbox", "--misbehave", "statsu=503"], "status"),
        (["sandbox", "--port", "70000"], "65535"),
    ],
)
def test_wrong_usage_is_2_and_names_what_is_near(
    capsys: pytest.CaptureFixture[str], words: Sequence[str], said: str
) -> None:
    """The usage line and the nearest right word on standard error; with --json one object on standard output."""
    code, out, err = told(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith("Usage: backfill")
    assert said in err
    assert "Traceback" not in err
    code, out, err = told(capsys, *words[:1], "--json", *words[1:])
    assert (code, err) == (2, "")
    error = json.loads(out)["error"]
    assert error["exit_code"] == 2
    assert said in error["message"]


@pytest.mark.parametrize(
    ("words", "said"), [(["--json", "--format", "csv"], "cannot be combined"), (["--format", "parquet"], "--output")]
)
def test_forms_of_the_ledger_that_cannot_be(capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    """JSON lines as CSV, and Parquet on a terminal, are wrong usage."""
    code, out, err = told(capsys, "ledger", *words)
    assert code == 2
    assert said in out + err


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """`backfill` alone is wrong usage, answered by the list of commands."""
    code, out, err = told(capsys)
    assert (code, out) == (2, "")
    assert "Commands:" in err


def test_a_mistake_in_the_configuration_is_78(capsys: pytest.CaptureFixture[str]) -> None:
    """A sentence and the code of its kind, never a traceback; as JSON likewise."""
    code, out, err = told(capsys, "run", "x.csv")
    assert (code, out) == (78, "")
    assert err.startswith("Error: The configuration cannot be used")
    code, out, err = told(capsys, "run", "x.csv", "--json")
    assert (code, err) == (78, "")
    assert json.loads(out)["error"]["exit_code"] == 78


@pytest.mark.parametrize("name", ["status", "ledger", "verify"])
def test_to_look_where_nothing_is_leaves_nothing(capsys: pytest.CaptureFixture[str], here: Path, name: str) -> None:
    """Commands that only look make no directory; the answer is 78."""
    code, _, err = told(capsys, name, "--state", "june")
    assert code == 78
    assert "There is no job in june" in err
    assert list(here.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------ bugs

SECRET = "customer-4711"


def breaking(error: BaseException) -> Callable[..., Summary]:
    def execute(*_: object, **__: object) -> Summary:
        raise error

    return execute


class Panic(BaseException):
    """As polars raises it: no Exception."""


@pytest.mark.parametrize("error", [KeyError(SECRET), Panic(SECRET), ConnectionError(SECRET)])
@pytest.mark.parametrize("as_json", [True, False])
def test_a_bug_is_1_and_quotes_no_row(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: BaseException, as_json: bool
) -> None:
    """A traceback with its places and one sentence; the exception's words may quote a customer, so they stay away."""
    monkeypatch.setattr(backfill.run, "execute", breaking(error))
    code, out, err = told(capsys, "run", "--sandbox", "x.csv", *(["--json"] if as_json else []))
    assert code == 1
    assert "Traceback" in err
    assert type(error).__name__ in err
    assert SECRET not in out + err
    assert ("bug" in json.loads(out)["error"]["message"]) if as_json else ("This is a bug" in err)


def test_an_interrupt_outside_of_a_run_is_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in a command that only looks ends it without a traceback."""
    monkeypatch.setattr(backfill.run, "execute", breaking(KeyboardInterrupt()))
    code, _, err = told(capsys, "run", "--sandbox", "x.csv")
    assert (code, "Traceback" in err) == (130, False)


# -------------------------------------------------------------------------------------------------- standard output


def test_a_reader_that_goes_away_is_141_and_silent() -> None:
    """`backfill ledger | head` neither complains nor claims success."""
    job_with_ledger(Path("june"), rows=200_000)
    ledger = process("ledger", "--state", "june", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert ledger.stdout is not None
    assert ledger.stdout.readline().startswith(b"export,")
    ledger.stdout.close()
    assert ledger.stderr is not None
    assert ledger.stderr.read() == b""
    assert ledger.wait(60) == 141


def test_a_reader_that_never_was_is_141_too() -> None:
    """The help, too, ends silently."""
    read, write = os.pipe()
    os.close(read)
    command = process("--help", stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    _, err = command.communicate(timeout=60)
    assert (command.returncode, err) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full device")
def test_an_output_that_is_full_is_74() -> None:
    """`backfill ledger > full-disk` says so."""
    job_with_ledger(Path("june"))
    with Path("/dev/full").open("wb") as full:
        command = process("ledger", "--state", "june", stdout=full, stderr=subprocess.PIPE)
        _, err = command.communicate(timeout=60)
    assert command.returncode == 74
    assert b"Standard output cannot be written (No space left on device)" in err
    assert b"Traceback" not in err


# ------------------------------------------------------------------------------------------------------------- run


def answering(seen: list[Order], during: Callable[[Stop], None] = lambda _: None) -> Callable[..., Summary]:
    """A stand-in for `backfill.run.execute` that remembers its order."""

    def execute(order: Order, *, report: Callable[[Progress], None], stop: Stop) -> Summary:
        seen.append(order)
        report(Progress("delivering", 1, 2))
        during(stop)
        return Summary(
            exports=(ExportCounts(export="x.csv", load=1, read=2, outcomes={"delivered": 1, "unsent": 1}),),
            exit_code=ExitCode.STOPPED_EARLY,
            ledger=str(order.state / "ledger"),
            state=str(order.state),
            execution=1,
            requests=1,
            duration_s=0.0,
            stopped="A signal came.",
            warnings=("y.csv is gone.",),
        )

    return execute


def test_run_turns_words_into_an_order_and_a_summary_into_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result on standard output, progress and warnings on standard error, the code as the summary has it."""
    orders: list[Order] = []
    monkeypatch.setattr(backfill.run, "execute", answering(orders))
    Path("june.toml").write_text('[api]\nbase_url = "https://mxo.example"\nsite_key = "k"\n')
    monkeypatch.setenv("BACKFILL_TOKEN", SECRET)
    words = ["run", "--config", "june.toml", "--set", "budget.concurrency=3", "x.csv", "y/*.csv"]
    code, out, err = told(capsys, *words)
    (order,) = orders
    assert (order.exports, order.state) == ((Path("x.csv"), Path("y/*.csv")), Path(".backfill/june"))
    assert (order.config.budget.concurrency, order.credentials.token, order.connect_to) == (3, SECRET, None)
    assert code == 75
    assert out.startswith("Stopped early")
    assert "delivering 1 of 2 rows (50%)" in err
    assert "Warning: y.csv is gone." in err
    assert SECRET not in out + err
    code, out, err = told(capsys, *words, "--json")
    assert (code, json.loads(out)["exit_code"]) == (75, 75)
    assert out.count("\n") == 1


def test_signals_ask_for_a_stop_and_mean_the_same_as_before_afterwards(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGHUP (a dropped terminal), SIGTERM and SIGINT reach `Stop`; the run's own answer is the exit code."""
    requested: list[bool] = []

    def during(stop: Stop) -> None:
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
            deadline_s = time.monotonic() + 2.0  # the kernel may give it to another thread, and Python takes its time
            while not stop.requested and time.monotonic() < deadline_s:
                time.sleep(0.001)
            requested.append(stop.requested)

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(backfill.run, "execute", answering([], during))
    assert told(capsys, "run", "--sandbox", "x.csv")[0] == 75
    assert requested == [True, True, True]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_sandbox_run_reaches_a_sandbox_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It listens on loopback while the run lasts, gets no secrets, logs into the state, and ends with the run."""
    reached: list[str] = []
    orders: list[Order] = []

    def during(_: Stop) -> None:
        (order,) = orders
        request = urllib.request.Request(f"{order.connect_to}/nowhere")
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request)
        reached.append(str(caught.value.code))

    monkeypatch.setenv("BACKFILL_TOKEN", SECRET)
    monkeypatch.setattr(backfill.run, "execute", answering(orders, during))
    told(capsys, "run", "--sandbox", "x.csv")
    (order,) = orders
    assert reached == ["404"]
    assert order.credentials.token is None
    assert order.config.api.base_url == "https://sandbox.invalid"
    assert (order.state / "sandbox" / "requests.jsonl").read_text().count("\n") == 1
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{order.connect_to}/nowhere")


def test_a_sandbox_that_does_not_start_says_why(here: Path) -> None:
    """Its own words reach the user."""
    (here / "sandbox").mkdir()
    (here / "sandbox" / "applied.jsonl").mkdir()
    with pytest.raises(Unusable, match=r"The sandbox did not start: .*directory"), embedded.sandbox(here / "sandbox"):
        pytest.fail("started")


def test_the_sandboxs_token_lives_as_long_as_it_is_told(here: Path) -> None:
    """`sandbox --token-lifetime --client-id --client-secret`: who shows these gets a token that tells that lifetime."""
    words = ("--token-lifetime", "77", "--client-id", "me", "--client-secret", "mine", "--exit-with-parent", "--json")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    sandbox = process("sandbox", "--log", "log", *words, cwd=here, **pipes)
    assert sandbox.stdout is not None
    url = f"{json.loads(sandbox.stdout.readline())['base_url']}/one/oauth2token"
    asked = {"grant_type": "client_credentials"}
    assert httpx.post(url, data=asked, auth=("me", "mine"), trust_env=False).json()["expires_in"] == 77
    assert httpx.post(url, data=asked, auth=("me", "yours"), trust_env=False).status_code == 401
    sandbox.communicate(timeout=30)


def test_a_killed_run_leaves_no_sandbox_behind(here: Path) -> None:
    """The sandbox ends when its parent is gone, however that went."""
    code = (
        "import sys, pathlib\n"
        "from backfill.cli.embedded import sandbox\n"
        "with sandbox(pathlib.Path('log')) as url: print(url, flush=True); sys.stdin.read()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    url = parent.stdout.readline().strip()
    parent.kill()
    parent.communicate()
    for _ in range(100):
        try:
            urllib.request.urlopen(url).close()
        except urllib.error.HTTPError:
            time.sleep(0.1)
        except OSError:
            return
    pytest.fail("the sandbox outlived its parent")


# ------------------------------------------------------------------------------------------------- status and ledger

WHEN = datetime(2024, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)


def lines(rows: int, outcome: str, first: int = 1, **columns: Any) -> pl.DataFrame:
    """Ledger lines of one outcome."""
    plain: dict[str, Any] = {
        "export": "/data/june.csv",
        "row": pl.Series(range(first, first + rows)),
        "line": None,
        "customer_key": "c-1",
        "customer_key_name": "customerkey",
        "timestamp": WHEN,
        "outcome": outcome,
        "reasons": [],
        "duplicate_of": None,
        "load": 1,
        "attempts": 1,
        "maybe_duplicate": False,
        "sent_at": WHEN,
    }
    given = {**plain, **columns}
    frame = pl.DataFrame({"row": given.pop("row")}).with_columns(
        **{name: pl.lit(value, dtype=LEDGER_SCHEMA[name]) for name, value in given.items()}
    )
    missing = [
        pl.lit(None, dtype=LEDGER_SCHEMA[name]).alias(name) for name in LEDGER_SCHEMA if name not in frame.columns
    ]
    return frame.with_columns(missing).select(LEDGER_SCHEMA.names()).cast(LEDGER_SCHEMA)


def job_with_ledger(state: Path, rows: int = 3) -> None:
    """A settled job of one export: delivered rows in one part, two invalid ones in another."""
    directory = StateDirectory(state)
    ledger = Ledger(state)
    frames = [
        lines(rows, "delivered", request=1, position=0, http_status=200),
        lines(
            1,
            "invalid",
            rows + 1,
            customer_key='=HYPERLINK("http://evil")',
            reasons=["url_missing", "timestamp_missing"],
        ),
        lines(1, "invalid", rows + 2, customer_key="+4479", timestamp=None),
    ]
    with directory.lock("backfill run"):
        tenant = Tenant(base_url="https://mxo.example", site_key="ONE-1", call="interactions-offline")
        export = Export(path="/data/june.csv", size=1, mtime_ns=1, sha256="", rows=rows + 2)
        later = Export(path="/data/july.csv", size=1, mtime_ns=1, sha256="", rows=7)
        loads = (Load(load=1, config={}, exports=(export,)), Load(load=2, config={}, exports=(later,)))
        directory.write_job(JobFile(tenant=tenant, loads=loads))
        parts = []
        for number, frame in enumerate(frames):
            path = f"1/part-{number:05d}.parquet"
            written = ledger.write_part(path, frame)
            counts = {"/data/june.csv": {frame["outcome"][0]: frame.height}}
            parts.append(PartEntry(path, 1, written.rows, written.sha256, written.bytes, 0, "", counts))
        entry = ExportEntry("/data/june.csv", rows + 2, {"delivered": rows, "invalid": 2})
        load = LoadEntry(1, True, "plain", (entry,))
        ledger.write_manifest(Manifest(written_at="2024-02-01T00:00:00+00:00", loads=(load,), parts=tuple(parts)))
        directory.write_status(
            {"pid": os.getpid(), "host": "nowhere", "execution": 1, "exit_code": 0, "updated_at": "x"}
        )


def test_status_sees_a_job_that_another_process_holds(capsys: pytest.CaptureFixture[str]) -> None:
    """It takes no lock, so it answers while the job is held, and shows what the ledger holds and lacks."""
    job_with_ledger(Path("june"))
    with StateDirectory(Path("june")).lock("backfill run"):
        code, out, err = told(capsys, "status", "--state", "june")
        value = json.loads(told(capsys, "status", "--state", "june", "--json")[1])
    assert (code, err) == (0, "")
    assert "Load 1   june.csv: read 5 = delivered 3 + invalid 2 + " in out
    assert "Load 2   july.csv: 7 rows, not in the ledger yet" in out
    assert value["exports"][0]["outcomes"]["delivered"] == 3
    assert value["not_in_ledger"] == [{"load": 2, "exports": [{"export": "/data/july.csv", "read": 7}]}]
    assert value["running"] is False


def test_the_ledger_as_csv_is_safe_for_spreadsheets(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """Formulas in customers' keys are defused; everything else is as a CSV reader expects it."""
    job_with_ledger(Path("june"))
    assert main(["ledger", "--state", "june"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsysbinary.readouterr().out.decode())))
    assert list(rows[0]) == LEDGER_SCHEMA.names()
    assert [row["row"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert rows[0]["timestamp"] == "2024-01-31T12:00:00.123456Z"
    assert rows[0]["sent_at"] == "2024-01-31T12:00:00.123Z"
    assert (rows[0]["request"], rows[0]["http_status"], rows[0]["line"], rows[0]["reasons"]) == ("1", "200", "", "")
    assert rows[3]["customer_key"] == '\'=HYPERLINK("http://evil")'
    assert rows[3]["reasons"] == "url_missing; timestamp_missing"
    assert rows[4]["customer_key"] == "'+4479"


def test_the_ledger_as_json_lines_is_exact(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """One object per line with values as they are; --json and --format jsonl are the same."""
    job_with_ledger(Path("june"))
    assert main(["ledger", "--state", "june", "--json"]) == 0
    out = capsysbinary.readouterr().out
    rows = [json.loads(line) for line in out.splitlines()]
    assert list(rows[0]) == LEDGER_SCHEMA.names()
    assert rows[4]["customer_key"] == "+4479"
    assert rows[4]["timestamp"] is None
    assert rows[3]["reasons"] == ["url_missing", "timestamp_missing"]
    assert rows[0]["reasons"] == []
    assert rows[0]["maybe_duplicate"] is False
    assert main(["ledger", "--state", "june", "--format", "jsonl"]) == 0
    assert capsysbinary.readouterr().out == out


@pytest.mark.parametrize(
    ("words", "rows"),
    [
        ([], [1, 2, 3, 4, 5]),
        (["--outcome", "invalid"], [4, 5]),
        (["--outcome", "invalid", "--outcome", "delivered"], [1, 2, 3, 4, 5]),
        (["--outcome", "in_doubt"], []),
        (["--export", "/data/june.csv", "--outcome", "delivered"], [1, 2, 3]),
        (["--export", "june.csv"], [1, 2, 3, 4, 5]),
    ],
)
def test_rows_are_chosen_alike_in_every_format(
    capsysbinary: pytest.CaptureFixture[bytes], words: list[str], rows: list[int]
) -> None:
    """Filters mean the same whatever the form of the answer, also where nothing is left."""
    job_with_ledger(Path("june"))
    asked = ["ledger", "--state", "june", *words]
    assert main([*asked, "--json"]) == 0
    assert [json.loads(line)["row"] for line in capsysbinary.readouterr().out.splitlines()] == rows
    assert main([*asked, "--format", "parquet", "--output", "out.parquet"]) == 0
    found = pl.read_parquet("out.parquet")
    assert (found["row"].to_list(), found.schema) == (rows, LEDGER_SCHEMA)
    assert main([*asked, "--output", "out.csv"]) == 0
    assert capsysbinary.readouterr().out == b""
    assert [int(row["row"]) for row in csv.DictReader(io.StringIO(Path("out.csv").read_text()))] == rows
    for file in ("out.csv", "out.parquet"):
        assert Path(file).stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in Path().iterdir()) == ["june", "out.csv", "out.parquet"]


def test_an_unknown_export_is_told_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    """A typing error does not come out as an empty, reassuring answer."""
    job_with_ledger(Path("june"))
    code, out, err = told(capsys, "ledger", "--state", "june", "--export", "jun.csv")
    assert (code, out) == (2, "")
    assert "/data/june.csv" in err


def test_a_lost_part_is_74_and_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    """The remedy is a run, which writes it anew; a half-written --output is not left behind."""
    job_with_ledger(Path("june"))
    Path("june/ledger/1/part-00001.parquet").unlink()
    code, _, err = told(capsys, "ledger", "--state", "june", "--output", "out.csv")
    assert code == 74
    assert "part-00001.parquet is missing" in err
    assert "backfill run" in err
    assert told(capsys, "ledger", "--state", "june", "--format", "parquet", "--output", "out.parquet")[0] == 74
    assert [path.name for path in Path().iterdir()] == ["june"]


def test_an_output_that_cannot_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    """--output into nowhere is told, not raised."""
    job_with_ledger(Path("june"))
    code, _, err = told(capsys, "ledger", "--state", "june", "--output", "nowhere/out.csv")
    assert code == 74
    assert "nowhere/out.csv cannot be written" in err


def test_a_ledger_that_is_not_there_yet(capsys: pytest.CaptureFixture[str]) -> None:
    """Before the first settling there is none; that is said, with the reason."""
    with StateDirectory(Path("june")).lock("backfill run"):
        pass
    code, _, err = told(capsys, "ledger", "--state", "june")
    assert code == 78
    assert "no ledger yet" in err
