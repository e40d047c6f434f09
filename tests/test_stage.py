"""Staging as a whole: exports in, requests out, the same ones whatever happened in between."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from backfill import stage
from backfill.adapters import exports, staging
from backfill.adapters.exports import fingerprint
from backfill.adapters.staging import Manifest
from backfill.core import arrange as arranging
from backfill.core.config import Api, RunConfig
from backfill.core.errors import ConfigurationError, ExportError, StoppedEarly, StorageError
from backfill.core.lifecycle import Standing
from backfill.core.summary import Progress
from backfill.repeats import Repeats

NOW = datetime(2025, 1, 1, tzinfo=UTC)
START = datetime(2024, 1, 1, tzinfo=UTC)


def config(**sections: Any) -> RunConfig:
    return RunConfig.model_validate({"api": {"base_url": "https://mxo.example", "site_key": "s"}, **sections})


def spool(
    paths: list[Path],
    folder: Path,
    settings: RunConfig | None = None,
    stopped: Callable[[], bool] = lambda: False,
    reports: list[Progress] | None = None,
) -> Manifest:
    report = (lambda _: None) if reports is None else reports.append
    return stage.spool(paths, settings or config(), folder, load=1, now=NOW, report=report, stopped=stopped)


def arrange(folder: Path, settings: RunConfig | None = None, stopped: Callable[[], bool] = lambda: False) -> None:
    stage.arrange(folder, settings or config(), repeats=repeats(folder), report=lambda _: None, stopped=stopped)


class Unsent:
    """A journal in which nothing ever moved."""

    def standings(self, load: int, first_request: int, last_request: int) -> list[Standing]:
        return []


def repeats(folder: Path) -> Repeats:
    """What the load of this folder repeats of those before it in the same state."""
    return Repeats(folder.parent.parent, int(folder.name), Unsent())


def export(path: Path, rows: int, *, customers: int = 50, bad: int = 0, hot: bool = False) -> Path:
    """`rows` rows of which the last `bad` are invalid; every tenth has a tid; `hot`: customer 0 owns a half."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["timestamp", "customer_key", "url", "tid", "note"])
        for n in range(rows):
            moment = START + timedelta(seconds=n * 7919 % 500_000)
            customer = 0 if hot and n % 2 else n % customers
            url = "nowhere" if n >= rows - bad else f"api://shop/{n % 5}"
            tid = f"t{customer}" if customer % 10 == 3 else ""
            writer.writerow([moment.isoformat(), f"c{customer}", url, tid, f'note "{n}", ä\n'])
    return path


WITH_TID = config(columns={"tid": "tid"}, rows={"max_rejected": "100%"})


def contents(folder: Path) -> list[tuple[str, Any]]:
    """Everything that later stations read, file by file."""
    return [
        (path.name, pl.read_parquet(path).to_dicts())
        for path in sorted(folder.iterdir())
        if path.name.startswith(("rows", "requests", "invalid"))
    ]


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many runs and pieces out of few rows."""
    monkeypatch.setattr(stage, "RUN_ROWS", 300)
    monkeypatch.setattr(stage, "BUCKET_ROWS", 200)
    monkeypatch.setattr(arranging, "BUCKET_ROWS", 200)
    monkeypatch.setattr(arranging, "ROWS_PER_LANE", 20)
    monkeypatch.setattr(exports, "open_export", partial(exports.open_export, block_bytes=5_000))


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("hot", [False, True])
def test_every_row_is_planned_refused_or_a_duplicate(tmp_path: Path, hot: bool) -> None:
    """Over several exports, runs and pieces: each row once, as its CSV line says, customers in time order."""
    june = export(tmp_path / "june.csv", 1_500, bad=10, hot=hot)
    july = export(tmp_path / "july.csv", 1_000, hot=hot)
    folder = tmp_path / "staged" / "1"
    manifest = spool([june, july], folder, WITH_TID)
    arrange(folder, WITH_TID)

    assert [(e.path, e.rows, e.valid, e.invalid) for e in manifest.exports] == [
        (str(june), 1_500, 1_490, 10),
        (str(july), 1_000, 1_000, 0),
    ]
    assert manifest.exports[0].sha256 == fingerprint(june).sha256
    assert manifest.runs > 3
    assert len(manifest.pieces) > 5
    assert not list(folder.glob("run-*"))

    source = [list(csv.DictReader(path.open(newline=""))) for path in (june, july)]
    planned: dict[tuple[int, int], dict[str, Any]] = {}
    duplicates, last_request = 0, 0
    last_time: dict[str, datetime] = {}
    for piece in manifest.pieces:
        rows = staging.rows(folder, piece.piece).to_dicts()
        assert len(rows) == piece.rows
        lines = {(row["request"], row["position"]): row for row in rows if row["request"] is not None}
        duplicates += len(rows) - len(lines)
        for request in staging.request_bodies(folder, piece.piece, 0, piece.rows).to_dicts():
            assert last_request < request["request"] < piece.first_request + piece.rows
            assert piece.lane_from <= request["lane"] < piece.lane_to
            last_request = request["request"]
            for position, body in enumerate(json.loads(f"[{request['body']}]")):
                row = lines.pop((request["request"], position))
                wanted = source[row["export"]][row["row"] - 1]
                assert body == {
                    "timestamp": int(datetime.fromisoformat(wanted["timestamp"]).timestamp() * 1000),
                    "url": wanted["url"],
                    "customerKey": wanted["customer_key"],
                    "customerKeyName": "customerkey",
                    "properties": [{"name": "note", "value": wanted["note"]}],
                }
                assert request["tid"] == (wanted["tid"] or None)
                assert row["line"] == 2 * row["row"]
                assert last_time.get(row["customer_key"], START) <= row["timestamp"]
                last_time[row["customer_key"]] = row["timestamp"]
                planned[row["export"], row["row"]] = row
        assert not lines
    invalid = pl.concat([staging.invalid(folder, part) for part in range(manifest.invalid_parts)])
    assert invalid["row"].to_list() == list(range(1_491, 1_501))
    assert set(invalid["reasons"].explode()) == {"url_not_a_uri"}
    assert len(planned) + duplicates == manifest.valid
    assert duplicates == 1_000  # all of July stands in June already
    if hot:
        assert any(a.lane_from == b.lane_from for a, b in pairwise(manifest.pieces))


@pytest.mark.usefixtures("small_pieces")
def test_a_stop_keeps_nothing_of_spooling_and_every_arranged_piece(tmp_path: Path) -> None:
    """Stopped at any block or piece; the next try comes to the very same files."""
    june = export(tmp_path / "june.csv", 2_000, bad=3, hot=True)
    spool([june], tmp_path / "whole" / "1", WITH_TID)
    arrange(tmp_path / "whole" / "1", WITH_TID)
    expected = contents(tmp_path / "whole" / "1")

    folder = tmp_path / "staged" / "1"
    for after in (0, 5):
        with pytest.raises(StoppedEarly):
            spool([june], folder, WITH_TID, stopped=_countdown(after))
        assert not folder.exists()
    spool([june], folder, WITH_TID)
    for _ in range(len(expected)):
        try:
            arrange(folder, WITH_TID, stopped=_countdown(2))
            break
        except StoppedEarly:
            assert list(folder.glob("run-*")), "the runs are needed until the last piece"
    assert contents(folder) == expected
    arrange(folder, WITH_TID)
    assert contents(folder) == expected


def _countdown(calls: int) -> Callable[[], bool]:
    left: Iterator[int] = iter(range(calls))
    return lambda: next(left, None) is None


def test_a_kill_at_any_instant_changes_nothing(tmp_path: Path) -> None:
    """SIGKILL while spooling, while arranging, between: what is staged in the end is the same, byte for byte."""
    june = export(tmp_path / "june.csv", 30_000, customers=3_000, bad=5, hot=True)
    program = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from backfill import stage
from backfill.adapters import exports, staging
from backfill.core import arrange as arranging
from tests.test_stage import NOW, WITH_TID, repeats
arranging.BUCKET_ROWS = stage.BUCKET_ROWS = stage.RUN_ROWS = 2_000
def report(progress):
    print(progress.phase, flush=True)
folder, june = Path(sys.argv[1]), Path(sys.argv[2])
print("ready", flush=True)
if not (folder / "manifest.json").exists():
    stage.spool([june], WITH_TID, folder, load=1, now=NOW, report=report, stopped=lambda: False)
    print("spooled", flush=True)
stage.arrange(folder, WITH_TID, repeats=repeats(folder), report=report, stopped=lambda: False)
print("done", flush=True)
"""
    folder = tmp_path / "staged" / "1"
    command = [sys.executable, "-c", program, str(folder), str(june)]
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "whole" / "1"), str(june)], check=True, capture_output=True
    )
    expected = contents(tmp_path / "whole" / "1")
    assert len(expected) > 10

    # Each try is killed a little after it has said the given word, so that all phases are met wherever it runs.
    for word, delay_s in [("ready", 0.05), ("ready", 0.2), ("spooled", 0.0), ("arranging", 0.01), ("arranging", 0.03)]:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.strip() in {word, "done"}:
                    break
            time.sleep(delay_s)
            os.kill(process.pid, signal.SIGKILL)
    subprocess.run(command, check=True, capture_output=True)
    assert contents(folder) == expected
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        path.name for path in (tmp_path / "whole" / "1").iterdir()
    )


@pytest.mark.parametrize("run_rows", [1, 150_000])
def test_exports_may_differ_in_their_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_rows: int) -> None:
    """In one run or several, each row keeps its own properties; CSV and Parquet rows can be duplicates."""
    monkeypatch.setattr(stage, "RUN_ROWS", run_rows)
    one, two, three = (tmp_path / name for name in ("1.csv", "2.csv", "3.parquet"))
    one.write_text("timestamp,customer_key,url,a\n2024-01-01T00:00:00Z,c,api://x,1\n")
    two.write_text("b,url,customer_key,timestamp\n2,api://x,c,2024-01-01T01:00:00Z\n")
    pl.DataFrame(
        {
            "timestamp": [START],
            "customer_key": ["c"],
            "url": ["api://x"],
            "a": [1],
            "b": pl.Series([None], dtype=pl.String),
        }
    ).write_parquet(three)
    folder = tmp_path / "staged" / "1"
    spool([one, two, three], folder)
    arrange(folder)
    (request,) = staging.request_bodies(folder, 0, 0, 9).to_dicts()
    assert [body["properties"] for body in json.loads(f"[{request['body']}]")] == [
        [{"name": "a", "value": "1"}],
        [{"name": "b", "value": "2"}],
    ]
    duplicate = staging.rows(folder, 0).filter(pl.col("request").is_null()).row(0, named=True)
    assert (duplicate["export"], duplicate["line"]) == (2, None)
    assert (duplicate["duplicate_of_export"], duplicate["duplicate_of_row"]) == (0, 1)


def test_requests_of_a_load_that_was_tried_before_have_new_numbers(tmp_path: Path, small_pieces: None) -> None:
    """Numbered on from where the earlier ones ended, over all pieces; nothing else of them differs."""
    path = export(tmp_path / "a.csv", 2_000)
    folders = tmp_path / "staged" / "1", tmp_path / "again" / "1"
    first = spool([path], folders[0])
    stage.spool(
        [path],
        config(),
        folders[1],
        load=1,
        first_request=501,
        now=NOW,
        report=lambda _: None,
        stopped=lambda: False,
    )
    frames = []
    for folder in folders:
        arrange(folder)
        frames.append(pl.concat(pl.read_parquet(file) for file in sorted(folder.glob("requests-*.parquet"))))
    assert len(first.pieces) > 1
    assert frames[1].equals(frames[0].with_columns(pl.col("request") + 500))


def test_the_single_call_has_requests_of_one(tmp_path: Path) -> None:
    """interaction-offline takes one interaction."""
    settings = config().model_copy(
        update={"api": Api(base_url="https://mxo.example", site_key="s", call="interaction-offline")}
    )
    folder = tmp_path / "staged" / "1"
    spool([export(tmp_path / "june.csv", 30)], folder, settings)
    arrange(folder, settings)
    assert staging.request_index(folder, 0)["count"].to_list() == [1] * 30


def test_an_export_without_rows_is_a_load_without_pieces(tmp_path: Path) -> None:
    """And needs no arranging."""
    folder = tmp_path / "staged" / "1"
    manifest = spool([export(tmp_path / "june.csv", 0)], folder)
    arrange(folder)
    assert (manifest.pieces, manifest.read, manifest.lanes) == ((), 0, 1)
    assert [path.name for path in folder.iterdir()] == ["manifest.json"]


def test_too_many_invalid_rows_leave_nothing_behind(tmp_path: Path) -> None:
    """One export over its limit stops the load, with the reasons and how to go on; at the limit it goes through."""
    good, bad = export(tmp_path / "good.csv", 100), export(tmp_path / "bad.csv", 100, bad=2)
    folder = tmp_path / "staged" / "1"
    with pytest.raises(ExportError, match=r"bad\.csv: 2 of 100 rows are invalid \(url_not_a_uri 2\).*'1%' allows 1"):
        spool([good, bad], folder)
    assert not folder.exists()
    assert spool([good, bad], folder, config(rows={"max_rejected": 2})).invalid == 2


def test_a_bad_export_or_mapping_leaves_nothing_behind(tmp_path: Path) -> None:
    """Whole or not at all, also after the first export was read."""
    good, bad = export(tmp_path / "good.csv", 100), tmp_path / "bad.csv"
    folder = tmp_path / "staged" / "1"
    for content, error in (("timestamp,customer_key,uri\n", ConfigurationError), ("", ExportError)):
        bad.write_text(content)
        with pytest.raises(error, match=r"bad\.csv"):
            spool([good, bad], folder)
        assert not folder.exists()


def test_progress_counts_rows_of_each_phase(tmp_path: Path) -> None:
    """The total is known as soon as all is read."""
    reports: list[Progress] = []
    folder = tmp_path / "staged" / "1"
    spool([export(tmp_path / "a.csv", 30), export(tmp_path / "b.csv", 20)], folder, reports=reports)
    stage.arrange(folder, config(), repeats=repeats(folder), report=reports.append, stopped=lambda: False)
    assert [(p.phase, p.rows_done, p.rows_total) for p in reports] == [
        ("spooling", 30, None),
        ("spooling", 50, None),
        ("arranging", 50, 50),
    ]


def test_a_lost_run_is_noticed(tmp_path: Path) -> None:
    """Before anything of the piece is planned."""
    folder = tmp_path / "staged" / "1"
    spool([export(tmp_path / "june.csv", 30)], folder)
    (folder / "run-00000.parquet").unlink()
    with pytest.raises(StorageError, match=r"run-00000\.parquet is missing"):
        arrange(folder)
    assert not staging.is_arranged(folder, 0)


@pytest.mark.usefixtures("small_pieces")
def test_one_identity_in_two_pieces_of_a_lane_is_planned_once(tmp_path: Path) -> None:
    """A customer so busy that its lane is cut by time: of each message the earliest row stays, wherever the others lie.

    So it is when arranging was stopped after any piece.
    """
    settings = config(rows={"identity": ["message"]}, columns={"properties": []})
    path = tmp_path / "june.csv"
    lines = [f"{(START + timedelta(minutes=n)).isoformat()},c,api://shop,m{n % 250}\n" for n in range(1_000)]
    path.write_text("timestamp,customer_key,url,message\n" + "".join(lines[::-1]))
    folder = tmp_path / "staged" / "1"
    manifest = spool([path], folder, settings)
    assert len(manifest.pieces) > 3
    assert len({piece.lane_from for piece in manifest.pieces}) == 1
    for _ in manifest.pieces:
        try:
            arrange(folder, settings, stopped=_countdown(1))
        except StoppedEarly:
            continue
    rows = pl.concat([staging.rows(folder, piece.piece) for piece in manifest.pieces]).to_dicts()
    assert sorted(1_000 - row["row"] for row in rows if row["request"] is not None) == list(range(250))
    for row in rows:
        if row["request"] is None:
            n = 1_000 - row["row"]
            assert (row["duplicate_of_load"], 1_000 - row["duplicate_of_row"]) == (None, n % 250)


def test_a_load_repeats_what_an_earlier_one_has(tmp_path: Path) -> None:
    """Its rows are named with the load, export and row that they repeat; with "send" they are planned all the same."""
    june = export(tmp_path / "june.csv", 300)
    for load in ("1", "2", "3"):
        folder = tmp_path / "staged" / load
        settings = config(rows={"duplicates": "send" if load == "3" else "skip"})
        manifest = stage.spool(
            [june], settings, folder, load=int(load), now=NOW, report=lambda _: None, stopped=lambda: False
        )
        arrange(folder, settings)
        rows = pl.concat([staging.rows(folder, piece.piece) for piece in manifest.pieces])
        if load == "2":
            assert rows["request"].null_count() == 300
            assert rows["duplicate_of_row"].equals(rows["row"], check_names=False)
            assert set(rows["duplicate_of_load"]) == {1}
        else:
            assert rows["request"].null_count() == 0
