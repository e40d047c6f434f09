"""Values and names that would do harm if anything took them for more than text; and who may read what we write.

Customers' keys and `tid`s come from outside, and some people choose theirs with care. What the server got is read from
its own log.
"""

import csv
import io
import json
import os
import pty
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from tests.adapters.misbehaving import Link, Peer
from tests.command import BEGIN, ROOT, Job, Visit, expect, serving, visits

NASTY = [
    "../../etc/passwd",
    "/dev/full",
    "a/b\\c",
    "C:\\Windows",
    "quo\"te's",
    "a&sk=OTHER&tid=other",
    "a#fragment?query=1",
    "%00%2e%2e%2f",
    "100%",
    "a+b c",
    "x\r\nX-Injected: 1\r\n\r\nPUT / HTTP/1.1",
    "line\nbreak",
    "tab\tand\x1b[31mred",
    "\u202eright-to-left\u200b",
    "{0}{name}%s%(x)s${HOME}`id`$(id)",
    "'; DROP TABLE part; --",
    '=HYPERLINK("http://evil.example")',
    "ключ-鍵-🔑",
]


def write(job: Job, values: list[str], *, as_tid: bool = True) -> Path:
    rows = [
        # The rules refuse control characters in a key, and take them in a tid.
        Visit(number, _without_controls(value) if as_tid else value, BEGIN, tid=value if as_tid else "")
        for number, value in enumerate(values, start=1)
    ]
    return job.export("e.csv", rows)


def _without_controls(value: str) -> str:
    return "".join(character if character >= " " else "_" for character in value)


def test_keys_and_tids_reach_the_server_as_they_are(tmp_path: Path) -> None:
    """Each key and each tid stands in the server's log to the character, and nothing else does; the ledger has them."""
    with serving(tmp_path / "server") as server:
        job = Job(tmp_path / "job", server.base_url)
        expect(job.run(write(job, NASTY)), 0)
        applied = server.applied()
        calls = server.calls()
    assert {line["tid"] for line in applied} == set(NASTY)
    assert {line["sk"] for line in applied} == {"ONE-WHOLE00000-0001"}
    for line in applied:
        assert [each["customerKey"] for each in line["interactions"]] == [_without_controls(line["tid"])]
    assert {call["path"] for call in calls} == {"/one/oauth2/rt/api/2.0/interactions/offline"}
    assert len(calls) == len(NASTY)
    lines = job.ledger().sort("row")
    assert lines["customer_key"].to_list() == [_without_controls(value) for value in NASTY]
    assert lines["tid"].to_list() == NASTY
    assert {path.name for path in tmp_path.iterdir()} == {"server", "job"}


@pytest.mark.parametrize("key", ["A&sk=B", "A#B", "A%00B", "A?tid=1", "A/../B", "ключ"])
def test_a_site_key_reaches_the_server_as_it_is(tmp_path: Path, key: str) -> None:
    """It is a value of the query, whatever it holds."""
    with serving(tmp_path / "server", site_key=key) as server:
        job = Job(tmp_path / "job", server.base_url, {"api": {"site_key": key}})
        expect(job.run(job.export("e.csv", visits(2))), 0)
        assert {line["sk"] for line in server.applied()} == {key}


@pytest.mark.parametrize("key", ["A\r\nX-Injected: 1", "A\nB", "A\x00B", "A B"])
def test_a_site_key_that_is_none_is_refused(tmp_path: Path, key: str) -> None:
    """Line ends and blanks: 78, and nobody is called."""

    def never(link: Link) -> None:
        link.read_some()

    with Peer(never) as peer:
        job = Job(tmp_path, f"http://127.0.0.1:{peer.port}", {"api": {"site_key": key}})
        expect(job.run(job.export("e.csv", visits(1))), 78, "api.site_key")
    assert peer.links == []


@pytest.mark.parametrize("name", ["../x", "a/b", "/tmp/x", "..", ".", "a\\b", "a\x00b", "a\nb", "\x1b[2Jx"])
def test_a_job_name_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    """78 that names the key; no directory is made anywhere."""
    job = Job(tmp_path / "job", "https://mxo.example", {"job": {"name": name}})
    export = job.export("e.csv", visits(1))
    done = subprocess.run(
        [sys.executable, "-m", "backfill", "run", "--config", "backfill.toml", str(export)],
        cwd=job.folder,
        env=_plain_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 78
    assert "job.name" in done.stderr
    assert all(character.isprintable() or character == "\n" for character in done.stderr)
    assert {path.name for path in tmp_path.rglob("*")} == {"job", "backfill.toml", "e.csv"}


def test_a_file_name_moves_no_cursor(tmp_path: Path) -> None:
    """The name of an export is told with its control characters spelled out, in sentences and in JSON."""
    job = Job(tmp_path, "https://mxo.example")
    name = "\x1b[2J\x9b31m\u202eevil.csv"
    for words in ((), ("--json",)):
        ended = job.run(tmp_path / name, *words)
        assert ended.code == 78
        assert "evil.csv" in ended.said
        assert all(character.isprintable() or character == "\n" for character in ended.said), repr(ended.said)
        if words:
            assert name in ended.object()["error"]["message"]  # and a program reads the name itself


# ------------------------------------------------------------------------------------------------------ spreadsheets

CELLS = {
    "=1+1": "'=1+1",
    "+4912345": "'+4912345",
    "-5": "'-5",
    "@SUM(A1)": "'@SUM(A1)",
    "\t=1": "'\t'=1",
    " =1": "' =1",
    "'=1": "''=1",
    "a;=cmd|'/c calc'!A1": "a;'=cmd|'/c calc'!A1",
    "a\n=1": "a\n'=1",
    "\uff1d1": "'\uff1d1",
    "0017850": "0017850",
    "plain=text": "plain=text",
    "O'Neil": "O'Neil",
    'say "hi", you': 'say "hi", you',
}


@pytest.fixture(scope="module")
def settled(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A finished job whose keys and tids are cells that a spreadsheet might run."""
    folder = tmp_path_factory.mktemp("spreadsheet")
    with serving(folder / "server") as server:
        job = Job(folder / "job", server.base_url)
        # The rules refuse some of these keys; the ledger names them all the same.
        expect(job.run(write(job, list(CELLS), as_tid=False), "--set", "rows.max_rejected=100"), 0)
    return job


def test_the_ledger_as_csv_holds_no_formula(settled: Job) -> None:
    """Each key that could run is made text by a mark; the others, and numbers of ours, stay as they are."""
    rows = list(csv.DictReader(io.StringIO((settled.run("--format", "csv", command="ledger")).out, newline="")))
    rows.sort(key=lambda row: int(row["row"]))
    got = dict(zip(CELLS, [row["customer_key"] for row in rows], strict=True))
    # Read back as text, CR and LF are what the file has.
    assert got == CELLS
    assert [row["row"] for row in rows] == [str(number) for number in range(1, len(CELLS) + 1)]


def test_a_mark_taken_away_gives_back_the_key(settled: Job) -> None:
    """So nobody loses a customer by the marks: the rule of --help works both ways, and the other formats have none."""
    dangerous = r"[=+\-@\x{FF1D}\x{FF0B}\x{FF0D}\x{FF20}]"
    marked = pl.Series(list(CELLS.values()))
    back = marked.str.replace(rf"^'('*\s*(?:{dangerous}|[\t\r\n]))", "${1}").str.replace_all(
        rf"([;\t\r\n])'('*\p{{Zs}}*{dangerous})", "${1}${2}"
    )
    assert back.to_list() == list(CELLS)
    lines = [json.loads(line) for line in settled.run("--json", command="ledger").out.split("\n") if line]
    lines.sort(key=lambda line: int(line["row"]))
    assert [line["customer_key"] for line in lines] == list(CELLS)
    target = settled.folder / "ledger.parquet"
    expect(settled.run("--format", "parquet", "--output", target, command="ledger"), 0)
    assert pl.read_parquet(target).sort("row")["customer_key"].to_list() == list(CELLS)


def test_on_a_terminal_the_ledger_moves_no_cursor(tmp_path: Path) -> None:
    """There a key's control characters are spelled out; a file or a pipe gets them as they are."""
    with serving(tmp_path / "server") as server:
        job = Job(tmp_path / "job", server.base_url)
        expect(job.run(write(job, ["\x1b[2J\x9b31mevil"], as_tid=False), "--set", "rows.max_rejected=100"), 0)
    assert "\x1b[2J\x9b31mevil" in job.run(command="ledger").out
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "backfill", "ledger", "--state", str(job.state)]
    process = subprocess.Popen(words, stdout=theirs, env=_plain_environment())
    os.close(theirs)
    shown = b""
    while chunk := _read(ours):
        shown += chunk
    assert process.wait(30) == 0
    os.close(ours)
    assert b"\x1b" not in shown
    assert rb"\x1b[2J\x9b31mevil" in shown


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # the other side is closed
        return b""


def _plain_environment() -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BACKFILL_")}
    return inherited | {"PYTHONPATH": str(ROOT), "BACKFILL_CLIENT_ID": "c", "BACKFILL_CLIENT_SECRET": "s"}


# -------------------------------------------------------------------------------------------------------- permissions


def _with_umask(mask: int) -> Callable[[], None]:
    def set_it() -> None:
        os.umask(mask)

    return set_it


@pytest.mark.parametrize("mask", [0o000, 0o777])
def test_only_the_owner_reads_what_we_write(tmp_path: Path, mask: int) -> None:
    """Under any umask: directories 0700, files 0600, the journal's and the sandbox's while it runs, too."""
    job = Job(tmp_path / "job", "https://mxo.example")
    # 100 customers of one row each, a second call must wait: so there is a moment to look at.
    export = job.export("e.csv", visits(400, customers=400))
    run = job.run(export, "--sandbox", "--limit", "150", before=_with_umask(mask))
    expect(run, 75)
    process = job.start("--sandbox", "--set", "budget.requests_per_second=0.5", before=_with_umask(mask))
    try:
        wal = job.state / "journal.db-wal"
        while not (wal.exists() and wal.stat().st_size) and process.poll() is None:
            pass
        while_running = _modes(job.state)
    finally:
        process.terminate()
        job.wait(process)
    assert "journal.db-wal" in while_running
    assert "sandbox/applied.jsonl" in while_running
    for modes in (while_running, _modes(job.state)):
        assert {path: mode for path, mode in modes.items() if mode not in ("drwx------", "-rw-------")} == {}
    for form in ("csv", "parquet"):
        target = tmp_path / f"ledger.{form}"
        target.touch(mode=0o644)
        expect(job.run("--format", form, "--output", target, command="ledger", before=_with_umask(mask)), 0)
        assert stat.filemode(target.stat().st_mode) == "-rw-------"


def _modes(state: Path) -> dict[str, str]:
    found = {}
    for path in (state, *state.rglob("*")):
        try:
            found[path.relative_to(state).as_posix()] = stat.filemode(path.lstat().st_mode)
        except FileNotFoundError:  # replaced while we looked
            continue
    return found


def test_a_link_in_the_place_of_an_output_is_not_followed(tmp_path: Path, settled: Job) -> None:
    """Whoever may write to the folder of --output cannot make us overwrite another file."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    target = tmp_path / "ledger.csv"
    (tmp_path / "ledger.csv.tmp").symlink_to(victim)
    expect(settled.run("--output", target, command="ledger"), 0)
    assert victim.read_text() == "mine"
    assert target.read_text().startswith("export,")
    assert not target.is_symlink()
