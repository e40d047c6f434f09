"""Every bad input through the real command: one clear message, the right code, nothing lost, nothing half-done."""

import contextlib
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import pytest

from tests.command import PRIVATE, ROOT, SECRET, Ended, Job, Server, agree, expect, serving, until, visits, write_csv

# ------------------------------------------------------------------------------------------- refused before it is sent


@dataclass(frozen=True)
class Refusal:
    """Something wrong with what the command was given. `prepare` makes it, in the job's folder.

    `words` must stand in the message; with `undone`, `prepare` changed something that must be put back.
    """

    name: str
    arguments: tuple[str, ...]
    words: tuple[str, ...]
    prepare: Callable[[Job], object] = lambda job: None
    code: int = 78
    environment: Mapping[str, str | None] = field(default_factory=dict)


def with_header(*header: str) -> Callable[[Job], object]:
    return lambda job: write_csv(job.folder / "bad.csv", visits(5), header=header)


def with_bytes(content: bytes, name: str = "bad.csv") -> Callable[[Job], object]:
    return lambda job: (job.folder / name).write_bytes(content)


def cut_parquet(job: Job) -> None:
    """A Parquet file of which the end is missing, as an interrupted copy leaves it."""
    whole = job.folder / "whole.parquet"
    pl.DataFrame({"timestamp": ["2024-05-06T07:08:09Z"] * 500, "customer_key": [PRIVATE] * 500}).write_parquet(whole)
    (job.folder / "cut.parquet").write_bytes(whole.read_bytes()[:-40])
    whole.unlink()


def damaged_parquet(job: Job) -> None:
    """A Parquet file whose end is whole, but not what it points to."""
    whole = job.folder / "damaged.parquet"
    pl.DataFrame(
        {
            "timestamp": [f"2024-05-06T07:08:{place % 60:02}Z" for place in range(3_000)],
            "customer_key": [f"{PRIVATE}-{place * 7919 % 3_001}" for place in range(3_000)],
            "url": ["api://shop/x"] * 3_000,
            "tid": [None] * 3_000,
        },
        schema_overrides={"tid": pl.String()},
    ).write_parquet(whole)
    content = bytearray(whole.read_bytes())
    content[200:1_200] = b"\xff" * 1_000
    whole.write_bytes(content)


def with_config(text: str) -> Callable[[Job], object]:
    def prepare(job: Job) -> None:
        path = job.folder / "other.toml"
        path.write_text((job.folder / "backfill.toml").read_text() + text)

    return prepare


HEADER = b"n,timestamp,customer_key,url,mark,tid\n"
GOOD = b"1,2024-05-06T07:08:09Z,PRIVATE-1,api://shop/x,plain,\n"
OTHER = ("--config", "other.toml")

REFUSALS = (
    Refusal("missing file", ("gone.csv",), ("gone.csv does not exist. Check the name",)),
    Refusal(
        "directory without exports",
        ("empty",),
        ("empty", "directory without exports", "*.csv"),
        lambda job: (job.folder / "empty").mkdir(),
    ),
    Refusal("glob without a match", ("june-*.csv",), ("No file matches june-*.csv", "Check")),
    Refusal(
        "missing column",
        ("bad.csv",),
        ("bad.csv", "no column 'timestamp'", "columns.timestamp", "Did you mean 'time_stamp'"),
        with_header("n", "time_stamp", "customer_key", "url", "mark", "tid"),
    ),
    Refusal("empty file", ("bad.csv",), ("bad.csv", "is empty", "Export it again"), with_bytes(b"")),
    Refusal("Parquet cut short", ("cut.parquet",), ("cut.parquet", "Parquet", "copy it again"), cut_parquet),
    Refusal("damaged Parquet", ("damaged.parquet",), ("damaged.parquet", "Parquet", "copy it again"), damaged_parquet),
    Refusal(
        "a record with a field too many",
        ("bad.csv",),
        ("bad.csv, line 3", "7 fields", "6"),
        with_bytes(HEADER + GOOD + GOOD.replace(b"plain", b"a,b") + GOOD),
    ),
    Refusal(
        "not UTF-8",
        ("bad.csv",),
        ("bad.csv, line 3", "not UTF-8"),
        with_bytes(HEADER + GOOD + GOOD.replace(b"plain", b"gr\xfc\xdfe")),
    ),
    Refusal(
        "too many invalid rows",
        ("good.csv", "bad.csv"),
        ("bad.csv", "2 of 3 rows are invalid", "customer_key_missing 2", "rows.max_rejected", "allows 0", "Mend"),
        with_bytes(HEADER + GOOD + 2 * GOOD.replace(b"PRIVATE-1", b"")),
    ),
    Refusal(
        "unknown key",
        (*OTHER, "good.csv"),
        ("other.toml, line", "time_zone", "Did you mean", "zone"),
        with_config('[time]\ntime_zone = "UTC"\n'),
    ),
    Refusal(
        "no credentials",
        ("good.csv",),
        ("BACKFILL_CLIENT_ID", "BACKFILL_CLIENT_SECRET", "BACKFILL_TOKEN"),
        environment={"BACKFILL_CLIENT_ID": None, "BACKFILL_CLIENT_SECRET": None},
    ),
    Refusal(
        "token and client",
        ("good.csv",),
        ("BACKFILL_TOKEN", "Unset one"),
        environment={"BACKFILL_TOKEN": SECRET},
    ),
    Refusal("nothing to go on with", (), ("no job yet", "Name the exports")),
)


@dataclass(frozen=True)
class Refused:
    """One job that met all of these in turn, then a good run."""

    job: Job
    server: Server
    ended: dict[str, Ended]
    received: dict[str, int]
    left: dict[str, set[str]]
    last: Ended


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Refused]:
    folder = tmp_path_factory.mktemp("refusals")
    with serving(folder / "log") as server:
        job = Job(folder / "job", server.base_url)
        job.export("good.csv", visits(250))
        ended, received, left = {}, {}, {}
        for refusal in REFUSALS:
            refusal.prepare(job)
            ended[refusal.name] = job.run(*refusal.arguments, environment=refusal.environment)
            received[refusal.name] = server.count()
            left[refusal.name] = job.kept()
        last = job.run("good.csv")
        yield Refused(job, server, ended, received, left, last)


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.name.replace(" ", "-"))
def test_bad_input_is_refused_whole(refused: Refused, refusal: Refusal) -> None:
    """The code, the place and the remedy; nothing was sent, and nothing of a load stays behind."""
    ended = refused.ended[refusal.name]
    expect(ended, refusal.code, *refusal.words)
    assert ended.out == ""
    assert refused.received[refusal.name] == 0
    left = {path for path in refused.left[refusal.name] if not path.startswith(("journal.db", "status.json"))}
    assert left == set()


def test_after_all_refusals_the_good_export_goes_in(refused: Refused) -> None:
    """Nothing that was refused stands in the way, or comes back."""
    expect(refused.last, 0, "read 250 = delivered 250")
    assert agree(refused.job, refused.server) == {"delivered": 250}
    assert json.loads((refused.job.state / "ledger" / "manifest.json").read_text())["loads"][0]["load"] == 1


def test_an_error_is_one_object_for_programs(tmp_path: Path) -> None:
    """--json: the same message and code as one object on standard output."""
    job = Job(tmp_path / "job", "http://127.0.0.1:1")
    ended = job.run("--json", "gone.csv")
    assert ended.code == 78
    assert ended.object()["error"]["exit_code"] == 78
    assert "gone.csv" in ended.object()["error"]["message"]


# --------------------------------------------------------------------------------------------- refused by the other end


def test_a_wrong_site_key_is_77(tmp_path: Path) -> None:
    """The API says 403 for another Space; nothing is applied, and with the right key in a new state all goes in."""
    with serving(tmp_path / "log") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(120))
        ended = job.run("--set", "api.site_key=ONE-WRONG00000-0001", "a.csv")
        expect(ended, 77, "HTTP 403", "Space", "unsent 120", "Next")
        assert (len(server.calls()), server.applied()) == (1, [])
        expect(job.run("a.csv"), 78, "another tenant", "api.site_key", "ONE-WRONG00000-0001", "--state")
        shutil.rmtree(job.state)
        (server.log / "requests.jsonl").unlink()
    with serving(tmp_path / "log2") as server:
        job.configure(api={"base_url": server.base_url})
        expect(job.run("a.csv"), 0)
        assert agree(job, server) == {"delivered": 120}


def test_refused_credentials_are_77(tmp_path: Path) -> None:
    """A wrong secret: named by its variable, never shown; with the right one the same command completes."""
    with serving(tmp_path / "log") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(120))
        ended = job.run("a.csv", environment={"BACKFILL_CLIENT_SECRET": "wrong-SECRET-0815"})
        expect(ended, 77, "refuses the credentials", "BACKFILL_CLIENT_SECRET", "HTTP 401", "Next")
        assert "0815" not in ended.said
        assert (server.tokens(), server.calls()) == (1, [])
        expect(job.run("a.csv"), 0)
        assert agree(job, server) == {"delivered": 120}


def test_a_host_that_does_not_answer_is_75(tmp_path: Path) -> None:
    """Refused connections: tried max_attempts times, then 75; nothing is in doubt, and a rerun completes."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused, and nobody else gets the port
        port = taken.getsockname()[1]
        job = Job(tmp_path / "job", f"http://127.0.0.1:{port}", {"delivery": {"max_attempts": 3}})
        job.export("a.csv", visits(120))
        ended = job.run("a.csv")
        expect(ended, 75, "No token after 3 attempts", "refused", "unsent 120", "Run the same command again")
    with serving(tmp_path / "log", port=port) as server:
        expect(job.run("a.csv"), 0)
        assert agree(job, server) == {"delivered": 120}


def test_a_host_that_is_none_is_75(tmp_path: Path) -> None:
    """A name that cannot be found: the message says so, with the host."""
    job = Job(tmp_path / "job", "https://mxo.invalid", {"delivery": {"max_attempts": 2}})
    job.export("a.csv", visits(20))
    expect(job.run("a.csv"), 75, "No token after 2 attempts", "mxo.invalid", "unsent 20")


# ------------------------------------------------------------------------------------------------ what is known already


def test_an_edited_export_is_refused(tmp_path: Path) -> None:
    """Known with other content: 78 before anything is sent; put back, or under a new name, all is well."""
    with serving(tmp_path / "log") as server:
        job = Job(tmp_path / "job", server.base_url)
        path = job.export("a.csv", visits(120))
        expect(job.run("a.csv"), 0)
        calls = server.count()
        before = path.read_bytes()
        write_csv(path, visits(130))
        job.export("b.csv", visits(50, first=1_000))
        expect(job.run("a.csv", "b.csv"), 78, "a.csv", "other content", "Nothing was sent", "--changed")
        assert server.count() == calls
        # Same size, other content: the fingerprint decides, not the size.
        path.write_bytes(before.replace(b"plain", b"other", 1))
        expect(job.run("a.csv"), 78, "a.csv", "other content")
        path.write_bytes(before)  # another mtime, the same content
        expect(job.run("a.csv", "b.csv"), 0, "delivered 170")
        assert agree(job, server) == {"delivered": 170}


def test_an_export_that_is_gone_but_staged_is_a_warning(tmp_path: Path) -> None:
    """What was staged needs no file any more: an unfinished load is finished without its export."""
    with serving(tmp_path / "log", "status=403,until=1") as server:
        job = Job(tmp_path / "job", server.base_url)
        path = job.export("a.csv", visits(150))
        expect(job.run("a.csv"), 77)
        path.unlink()
        expect(job.run("a.csv"), 0, "Warning", "a.csv is gone", "delivered 150")
        assert agree(job, server) == {"delivered": 150}


def test_the_same_content_under_another_name_is_known(tmp_path: Path) -> None:
    """A copy is not staged or sent, whether the original was sent before or is named beside it."""
    with serving(tmp_path / "log") as server:
        job = Job(tmp_path / "job", server.base_url)
        path = job.export("a.csv", visits(120))
        shutil.copy(path, job.folder / "copy.csv")
        expect(
            job.run("a.csv", "copy.csv"), 0, "Warning", "copy.csv has the same content as", "read 120 = delivered 120"
        )
        expect(job.run("copy.csv"), 0, "Warning", "copy.csv has the same content as", "read 120 = delivered 120")
        assert agree(job, server) == {"delivered": 120}


def test_another_tenant_is_refused(tmp_path: Path) -> None:
    """Base URL, site key and call belong to the job: 78 naming both values, nothing sent."""
    with serving(tmp_path / "log") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(10))
        expect(job.run("a.csv"), 0)
        calls = server.count()
        job.export("b.csv", visits(10, first=100))
        for key, value in (("base_url", "https://other.example.com"), ("site_key", "ONE-OTHER00000-0001")):
            expect(
                job.run("--set", f"api.{key}={value}", "b.csv"), 78, "another tenant", f"api.{key}", value, "--state"
            )
        expect(job.run("--set", "api.call=interaction-offline", "b.csv"), 78, "api.call", "interactions-offline")
        assert server.count() == calls
        expect(job.run("b.csv"), 0)
        assert agree(job, server) == {"delivered": 20}


def test_a_frozen_setting_cannot_change_while_its_load_is_unfinished(tmp_path: Path) -> None:
    """Once something was sent: 78 naming both values; before, the load is staged again with the new setting."""
    with serving(tmp_path / "log", "status=403,after=1,until=2") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(150))
        expect(job.run("a.csv"), 77, "delivered 100", "unsent 50")
        calls = server.count()
        expect(
            job.run("--set", "wire.address_field=uri", "a.csv"), 78, "Load 1", "wire.address_field", '"uri"', '"url"'
        )
        assert server.count() == calls
        expect(job.run("a.csv"), 0)
        assert agree(job, server) == {"delivered": 150}


def test_what_was_finished_is_settled_before_a_new_export_is_refused(tmp_path: Path) -> None:
    """An unfinished load is finished first; that the new export cannot be read does not keep it out of the ledger."""
    with serving(tmp_path / "log", "status=403,after=1,until=2") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(250))
        expect(job.run("a.csv"), 77)
        (job.folder / "bad.csv").write_bytes(HEADER.replace(b"url", b"address"))
        expect(job.run("a.csv", "bad.csv"), 78, "bad.csv", "no column 'url'")
        assert agree(job, server) == {"delivered": 250}


# ------------------------------------------------------------------------------------------------------------ the state


def test_a_held_job_is_11_and_names_its_holder(tmp_path: Path) -> None:
    """A second execution ends at once, names pid and host, and does not disturb the first; `status` works meanwhile."""
    with serving(tmp_path / "log", "hold_s=1.2") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(450))
        first = job.start("a.csv")
        until(lambda: server.count() >= 2, "a call")
        words = (job.folder / "stderr.log").read_text()
        second = Job(tmp_path / "second", server.base_url)
        second.state = job.state
        ended = second.run(job.folder / "a.csv")
        expect(ended, 11, f"pid {first.pid}", socket.gethostname(), str(job.state), "Wait for it")
        assert ended.seconds < 5
        status = second.run("--json", command="status").object()
        assert (status["running"], status["last"]["pid"]) == (True, first.pid)
        assert words
        expect(job.wait(first), 0)
        assert agree(job, server) == {"delivered": 450}


def damaged(path: Path) -> Callable[[], object]:
    """Damages a file; answers how to put it back."""
    content = path.read_bytes()
    path.write_bytes(b"\x00garbage" + content[9 : len(content) // 2])
    return lambda: path.write_bytes(content)


def test_a_state_that_cannot_be_read_is_74_and_loses_nothing(tmp_path: Path) -> None:
    """Damaged job.toml, journal or staged files: named with the remedy, and nothing is sent; put back, all goes on."""
    with serving(tmp_path / "log", "status=403,after=1,until=2") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.export("a.csv", visits(250))
        expect(job.run("a.csv"), 77, "delivered 100", "unsent 150")
        calls = server.count()
        for name in ("job.toml", "journal.db", "staged/1/requests-00000.parquet"):
            put_back = damaged(job.state / name)
            expect(job.run("a.csv"), 74, name, "backup" if name in ("job.toml", "journal.db") else "Restore")
            put_back()
        assert server.count() == calls
        (job.state / "status.json").write_text("{rubbish")  # news only
        damaged(job.state / "ledger" / "manifest.json")  # derived: written anew
        expect(job.run("a.csv"), 0)
        assert agree(job, server) == {"delivered": 250}


def test_a_state_that_is_no_directory_is_78(tmp_path: Path) -> None:
    """A file in its place, or a directory of other things, is refused before anything is written."""
    job = Job(tmp_path / "job", "http://127.0.0.1:1")
    job.export("a.csv", visits(10))
    job.state = job.folder / "a.csv"
    expect(job.run("a.csv"), 78, "a.csv", "--state")
    job.state = job.folder
    expect(job.run("a.csv"), 78, "holds other files", "--state")
    assert {path.name for path in job.folder.iterdir()} == {"a.csv", "backfill.toml", "stdout.log", "stderr.log"}


# ------------------------------------------------------------------------------------------------------------- the disk


@contextlib.contextmanager
def small_disk(place: Path, size: str) -> Iterator[Callable[[str], None]]:
    """A file system of that size, and how to give it another; skips where mounting is not allowed."""
    place.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.decode().strip()}")

    def resize(size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(place)], check=True)

    try:
        yield resize
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_full_while_staging_is_74(tmp_path: Path) -> None:
    """Nothing of the load stays behind, nothing is sent; with more room the same command completes."""
    with serving(tmp_path / "log") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.state = job.folder / "disk" / "state"
        job.export("a.csv", visits(5_000, customers=900, mark=lambda place: f"{place * 7919 % 10_007:x}" * 4))
        with small_disk(job.folder / "disk", "192k") as resize:
            expect(job.run("a.csv"), 74, str(job.state), "cannot be written", "Free some space", "run again")
            assert server.count() == 0
            assert not list((job.state / "staged").glob("*/*"))
            resize("64m")
            expect(job.run("a.csv"), 0)
            assert agree(job, server) == {"delivered": 5_000}


AT_EVERY_END = """
import resource, sys
from pathlib import Path
import polars as pl
from backfill.adapters import staging
from backfill.core.arrange import REQUEST_SCHEMA, ROW_SCHEMA, Arranged
from backfill.core.errors import StorageError
folder = Path(sys.argv[1])
none = {name: pl.Series([None] * 3_200, dtype=dtype) for name, dtype in REQUEST_SCHEMA.items()}
requests = pl.DataFrame(none).with_columns(request=pl.int_range(3_200))
arranged = Arranged(pl.DataFrame(schema=ROW_SCHEMA), requests)
staging.write_piece(folder, 0, arranged)
size = (folder / "requests-00000.parquet").stat().st_size
refused = 0
for limit in range(size - 1, 0, -1_499):
    for file in folder.iterdir():
        file.unlink()
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        staging.write_piece(folder, 0, arranged)
    except StorageError as error:
        assert "Free some space" in error.message, error.message
        refused += 1
    assert not staging.is_arranged(folder, 0) and not list(folder.glob("*.partial")), "half a file"
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(refused)
"""


def test_a_disk_that_is_full_at_any_byte_is_74(tmp_path: Path) -> None:
    """Also where only the end of a Parquet file does not fit, of which polars reports no error of the system."""
    command = [sys.executable, "-c", AT_EVERY_END, str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) > 30


def test_a_disk_that_fills_up_while_delivering_is_74(tmp_path: Path) -> None:
    """The journal cannot be written: no further call; what was in flight is in doubt; with room, a rerun completes."""
    with serving(tmp_path / "log", "latency_ms=20") as server:
        job = Job(tmp_path / "job", server.base_url)
        job.state = job.folder / "disk" / "state"
        job.export("a.csv", visits(12_000, customers=1_200))
        with small_disk(job.folder / "disk", "32m"):
            process = job.start("a.csv")
            until(lambda: server.count() >= 30, "calls")
            filler = job.folder / "disk" / "filler"
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(b"\0" * 65_536 if shutil.disk_usage(file.name).free >= 65_536 else b"\0" * 4_096)
            ended = job.wait(process)
            calls = len(server.calls())
            expect(ended, 74, "journal", "full", "Free space", "run again")
            assert 30 <= calls < 115
            filler.unlink()
            expect(job.run("a.csv"), 4, "in doubt")
            outcomes = agree(job, server, attempts_seen=False, kills=1)
            assert outcomes["delivered"] + outcomes["in_doubt"] == 12_000
            assert outcomes["in_doubt"] <= 8 * 100
