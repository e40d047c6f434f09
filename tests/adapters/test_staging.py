"""Staged files: whole or not there, private, and readable in slices."""

import re
import stat
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from backfill.adapters import staging
from backfill.adapters.staging import Manifest, StagedExport
from backfill.core.arrange import REQUEST_SCHEMA, ROW_SCHEMA, Arranged, Piece, Span
from backfill.core.errors import StorageError, Unusable

HOUR_US = 3_600_000_000


def manifest(pieces: tuple[Piece, ...] = (), runs: int = 0) -> Manifest:
    export = StagedExport(path="june.csv", rows=12, valid=10, invalid=2, size=99, mtime_ns=1, sha256="ab")
    return Manifest(
        load=3, lanes=1, exports=(export, export), pieces=pieces, runs=runs, properties=("property:a",), invalid_parts=0
    )


def piece(**bounds: int) -> Piece:
    return Piece(piece=0, lane_from=0, lane_to=1, first_request=1, **{"slot_from": 0, "slot_to": 4096, **bounds})


def run(*rows: tuple[int, int], **properties: pl.DataType) -> pl.DataFrame:
    """Rows of a run, of which only (slot, hour) matter."""
    given = [(slot, datetime.fromtimestamp(hour * 3600, UTC), n) for n, (slot, hour) in enumerate(rows)]
    frame = pl.DataFrame(given, schema=["slot", "timestamp", "row"], orient="row")
    return frame.select(
        (pl.col(name) if name in frame.columns else pl.lit(None)).cast(dtype).alias(name)
        for name, dtype in (staging.RUN_SCHEMA | properties).items()
    )


def requests(count: int) -> Arranged:
    frame = pl.DataFrame({"request": range(count)}).select(
        pl.col("request").cast(pl.Int64),
        lane=pl.lit(0, pl.UInt16),
        tid=pl.lit(None, pl.String),
        count=pl.lit(1, pl.Int16),
        body=pl.format('{{"n":{}}}', "request"),
        sizes=pl.concat_list(pl.lit(7, pl.UInt32)),
    )
    return Arranged(pl.DataFrame(schema=ROW_SCHEMA), frame)


def test_a_manifest_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    """And its totals are those of its exports."""
    staging.prepare(tmp_path / "1")
    wanted = manifest((piece(rows=5, time_from_us=0, time_to_us=9), piece(rows=7)))
    staging.write_manifest(tmp_path / "1", wanted)
    assert staging.read_manifest(tmp_path / "1") == wanted
    assert (wanted.read, wanted.valid, wanted.invalid) == (24, 20, 4)


def test_prepare_leaves_nothing_of_an_earlier_try(tmp_path: Path) -> None:
    """A run that belongs to no manifest would add rows to the next one."""
    folder = tmp_path / "staged" / "1"
    for _ in range(2):
        staging.prepare(folder)
        assert list(folder.iterdir()) == []
        staging.write_run(folder, 0, run((1, 1)))
        staging.write_manifest(folder, manifest())
        (folder / "run-00001.parquet.partial").write_bytes(b"x")
    staging.discard(folder)
    assert not folder.exists()
    staging.discard(folder)


def test_files_are_private(tmp_path: Path) -> None:
    """They hold what customers did: 0600 in a folder of 0700, whatever the umask."""
    folder = tmp_path / "1"
    staging.prepare(folder)
    staging.write_run(folder, 0, run((1, 1)))
    staging.write_piece(folder, 0, requests(1))
    staging.write_manifest(folder, manifest())
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_piece_takes_its_slots_and_times_out_of_all_runs(tmp_path: Path) -> None:
    """Both ranges are half open; a property that a run lacks is null."""
    staging.prepare(tmp_path)
    staging.write_run(tmp_path, 0, run((0, 5), (1, 5), (2, 5), (3, 5), **{"property:a": pl.String()}))
    staging.write_run(tmp_path, 1, run((1, 4), (1, 5), (1, 6), (1, 7)))
    whole = manifest(runs=2)
    slots = staging.read_piece(tmp_path, whole, piece(rows=6, slot_from=1, slot_to=3))
    assert slots.columns == [*staging.RUN_SCHEMA, "property:a"]
    assert slots["slot"].to_list() == [1, 2, 1, 1, 1, 1]
    hours = piece(rows=3, slot_from=1, slot_to=2, time_from_us=5 * HOUR_US, time_to_us=7 * HOUR_US)
    assert staging.read_piece(tmp_path, whole, hours)["timestamp"].dt.hour().to_list() == [5, 5, 6]
    with pytest.raises(StorageError, match="hold 6 rows of piece 0, and 7 were spooled"):
        staging.read_piece(tmp_path, whole, piece(rows=7, slot_from=1, slot_to=3))


def test_spans_count_rows_by_time_over_all_runs(tmp_path: Path) -> None:
    """Before 1970 as well."""
    staging.prepare(tmp_path)
    staging.write_run(tmp_path, 0, run((1, -1), (1, 5), (2, 5)))
    staging.write_run(tmp_path, 1, run((1, 5), (3, 5)))
    by_hour = staging.spans(tmp_path, 2, (1, 3), None, HOUR_US)
    assert by_hour == [Span(-HOUR_US, HOUR_US, 1), Span(5 * HOUR_US, HOUR_US, 3)]
    assert staging.spans(tmp_path, 2, (1, 3), (5 * HOUR_US, 6 * HOUR_US), 1) == [Span(5 * HOUR_US, 1, 3)]


def test_requests_are_read_in_slices(tmp_path: Path) -> None:
    """Any slice, also across row groups and past the end; the index has no bodies."""
    staging.prepare(tmp_path)
    staging.write_piece(tmp_path, 0, requests(150))
    assert staging.is_arranged(tmp_path, 0)
    assert not staging.is_arranged(tmp_path, 1)
    for offset, count in ((0, 1), (63, 2), (100, 100), (150, 5)):
        expected = list(range(offset, min(150, offset + count)))
        found = staging.request_bodies(tmp_path, 0, offset, count)
        assert found.schema == pl.Schema(REQUEST_SCHEMA)
        assert found["request"].to_list() == expected
        assert found["body"].to_list() == [f'{{"n":{n}}}' for n in expected]
    assert staging.request_index(tmp_path, 0).columns == ["request", "lane", "tid", "count"]
    assert staging.rows(tmp_path, 0).schema == pl.Schema(ROW_SCHEMA)


def test_what_is_damaged_or_missing_is_named_with_the_remedy(tmp_path: Path) -> None:
    """Not a traceback out of Parquet."""
    staging.prepare(tmp_path)
    with pytest.raises(StorageError, match=r"requests-00000\.parquet is missing.*Restore"):
        staging.request_index(tmp_path, 0)
    staging.write_piece(tmp_path, 0, requests(1))
    (tmp_path / "requests-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(StorageError, match=r"requests-00000\.parquet is damaged.*Restore"):
        staging.request_bodies(tmp_path, 0, 0, 1)
    for content in ("{", "[]", "null", '{"version": 2}', '{"version": 0}', '{"version": "2"}'):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(StorageError, match=r"manifest\.json is damaged"):
            staging.read_manifest(tmp_path)
    for version, words in ((99, "a later version"), (1, "an earlier version")):
        (tmp_path / "manifest.json").write_text(f'{{"version": {version}}}')
        said = rf"json was written by {words} of backfill \(format {version}, .*that version again and finish its loads"
        with pytest.raises(Unusable, match=said):
            staging.read_manifest(tmp_path)


def test_a_changed_bit_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    """In a Parquet file it may read as another value, in JSON as another digit; checksums notice each."""
    staging.prepare(tmp_path)
    staging.write_run(tmp_path, 0, run((1, 1), (2, 2)))
    staging.write_invalid(tmp_path, 0, pl.DataFrame(schema=staging.INVALID_SCHEMA))
    kept = replace(manifest((piece(rows=2),), runs=1), invalid_parts=1)
    staging.write_manifest(tmp_path, kept)
    staging.write_piece(tmp_path, 0, requests(70))

    def look() -> None:
        found = staging.read_manifest(tmp_path)
        staging.check_runs(tmp_path, found)
        staging.check_invalid(tmp_path, found)
        staging.check_piece(tmp_path, 0)

    look()
    for path in sorted(tmp_path.iterdir()):
        content = path.read_bytes()
        for place in range(0, len(content) - 1, max(1, len(content) // 50)):  # but the line end of a JSON file
            changed = bytearray(content)
            changed[place] ^= 4
            if path.suffix == ".json" and content[place] in b" \n" and changed[place] in b" \n":
                continue  # white space says nothing
            path.write_bytes(changed)
            with pytest.raises((StorageError, Unusable), match=re.escape(path.name)):
                look()
        path.write_bytes(content)
    look()


def test_lost_requests_are_named_and_not_the_runs_that_went_because_of_them(tmp_path: Path) -> None:
    """After the last piece there are no runs; then a missing piece cannot be arranged again."""
    staging.prepare(tmp_path)
    staging.write_run(tmp_path, 0, run((1, 1)))
    staging.write_manifest(tmp_path, manifest((piece(rows=1),), runs=1))
    staging.write_piece(tmp_path, 0, requests(1))
    staging.remove_runs(tmp_path)
    (tmp_path / "requests-00000.parquet").unlink()
    with pytest.raises(StorageError, match=r"requests-00000\.parquet is missing"):
        staging.check_runs(tmp_path, staging.read_manifest(tmp_path))


def test_a_file_that_the_disk_will_not_take_is_not_there(tmp_path: Path) -> None:
    """A limit on file sizes stands for a full disk: one sentence that says what to free, no half file, code 74."""
    program = """
import resource, sys
from pathlib import Path
import polars as pl
from backfill.adapters import staging
from backfill.core.errors import StorageError
folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
frame = pl.DataFrame({name: pl.Series([None], dtype=dtype) for name, dtype in staging.RUN_SCHEMA.items()})
rows = pl.concat([frame] * 20_000).with_columns(url=pl.int_range(20_000).hash().cast(pl.String))
try:
    staging.write_run(folder, 0, rows)
except StorageError as error:
    print(error.message)
    sys.exit(error.exit_code)
"""
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert ended.returncode == 74, ended.stderr
    assert "File too large. Free some space" in ended.stdout
    assert list(tmp_path.iterdir()) == []


def test_rows_arranged_before_loads_knew_of_each_other_name_no_load(tmp_path: Path) -> None:
    """A file without the column is read as if no row repeated another load."""
    staging.prepare(tmp_path)
    rows = pl.DataFrame(schema=ROW_SCHEMA).drop("duplicate_of_load")
    staging.write_piece(tmp_path, 0, requests(1)._replace(rows=rows))
    assert staging.rows(tmp_path, 0).schema == pl.Schema(ROW_SCHEMA)
