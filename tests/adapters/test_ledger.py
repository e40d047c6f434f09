"""The ledger's files, on a real file system."""

import hashlib
import os
import stat
from pathlib import Path

import polars as pl
import pytest

from backfill.adapters.ledger import (
    ExportEntry,
    Ledger,
    LoadEntry,
    Manifest,
    PartEntry,
    Unreadable,
    part_path,
    stamp,
)
from backfill.core.account import LEDGER_SCHEMA
from backfill.core.errors import StorageError


def some_lines(rows: int) -> pl.DataFrame:
    return LEDGER_SCHEMA.to_frame().clear(rows).with_columns(row=pl.int_range(1, rows + 1, dtype=pl.Int64))


def an_entry(ledger: Ledger, path: str, rows: int = 3) -> PartEntry:
    written = ledger.write_part(path, some_lines(rows))
    return PartEntry(
        path=path,
        load=1,
        rows=written.rows,
        sha256=written.sha256,
        bytes=written.bytes,
        journal_moves=5,
        staged="10-ab",
        outcomes={"/exports/june.csv": {"delivered": rows}},
    )


def test_a_part_comes_back_as_it_was_written(tmp_path: Path) -> None:
    """Lines, schema, size and checksum of a part are what `write_part` answered."""
    ledger = Ledger(tmp_path)
    lines = some_lines(3)
    written = ledger.write_part(part_path(1, 0), lines)
    file = tmp_path / "ledger" / "1" / "part-00000.parquet"
    assert ledger.read_part("1/part-00000.parquet").equals(lines)
    assert ledger.read_part("1/part-00000.parquet").schema == LEDGER_SCHEMA
    assert written == (3, hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_size)
    assert ledger.sha256("1/part-00000.parquet") == written.sha256


@pytest.mark.parametrize("umask", [0, 0o277])
def test_only_the_owner_can_read_a_ledger(tmp_path: Path, umask: int) -> None:
    """Files are 0600 and folders 0700 whatever the umask, since customers' values lie here."""
    before = os.umask(umask)
    try:
        ledger = Ledger(tmp_path)
        ledger.write_manifest(Manifest(parts=(an_entry(ledger, part_path(1, 0)),)))
    finally:
        os.umask(before)
    modes = {
        path.relative_to(tmp_path).as_posix(): stat.S_IMODE(path.stat().st_mode)
        for path in tmp_path.glob("ledger/**/*")
    }
    assert modes == {"ledger/1": 0o700, "ledger/1/part-00000.parquet": 0o600, "ledger/manifest.json": 0o600}
    assert stat.S_IMODE((tmp_path / "ledger").stat().st_mode) == 0o700


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    """Everything that the manifest holds survives its JSON."""
    ledger = Ledger(tmp_path)
    manifest = Manifest(
        written_at="2024-03-01T00:00:00.000+00:00",
        loads=(LoadEntry(1, True, "plain", (ExportEntry("/exports/j\u00fcni.csv", 3, {"delivered": 3}),)),),
        parts=(an_entry(ledger, part_path(1, 0)),),
    )
    ledger.write_manifest(manifest)
    assert ledger.read_manifest() == manifest
    assert not list(tmp_path.glob("**/*.tmp"))


def test_no_manifest_is_no_ledger_yet(tmp_path: Path) -> None:
    """Before the first settling there is none, and that is no error."""
    assert Ledger(tmp_path).read_manifest() is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 1}', b'{"version": 2, "loads": [], "parts": []}'])
def test_a_damaged_manifest_is_told_from_a_missing_one(tmp_path: Path, content: bytes) -> None:
    """Cut short, of another shape or of another version: the caller learns that it cannot be read."""
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / "manifest.json").write_bytes(content)
    with pytest.raises(Unreadable, match=r"ledger/manifest\.json"):
        Ledger(tmp_path).read_manifest()


def test_a_part_that_is_missing_or_cut_short_is_noticed_without_reading_it(tmp_path: Path) -> None:
    """`holds` compares presence and size with the manifest's entry."""
    ledger = Ledger(tmp_path)
    entry = an_entry(ledger, part_path(1, 0))
    file = tmp_path / "ledger" / entry.path
    assert ledger.holds(entry)
    os.truncate(file, entry.bytes - 1)
    assert not ledger.holds(entry)
    file.unlink()
    assert not ledger.holds(entry)


@pytest.mark.parametrize("content", [None, b"", b"PAR1 this is no Parquet PAR1", b"x" * 500])
def test_an_unreadable_part_is_named(tmp_path: Path, content: bytes | None) -> None:
    """A missing or damaged part is one kind of error with its path, whatever polars says about it."""
    (tmp_path / "ledger" / "1").mkdir(parents=True)
    if content is not None:
        (tmp_path / "ledger" / "1" / "part-00000.parquet").write_bytes(content)
    with pytest.raises(Unreadable, match=r"ledger/1/part-00000\.parquet"):
        Ledger(tmp_path).read_part("1/part-00000.parquet")


def test_what_the_manifest_does_not_name_is_swept_away(tmp_path: Path) -> None:
    """Parts of an older staging and half-written files go; named parts and the manifest stay."""
    ledger = Ledger(tmp_path)
    kept = an_entry(ledger, part_path(1, 0))
    an_entry(ledger, part_path(1, 1))
    ledger.write_manifest(Manifest(parts=(kept,)))
    (tmp_path / "ledger" / "1" / "part-00002.parquet.tmp").write_bytes(b"half")
    (tmp_path / "ledger" / "manifest.json.tmp").write_bytes(b"half")
    ledger.keep_only([kept.path])
    assert ledger.files() == [kept.path]
    assert ledger.read_manifest() is not None
    assert not list(tmp_path.glob("**/*.tmp"))


def test_a_disk_that_refuses_is_a_storage_error_that_names_the_file(tmp_path: Path) -> None:
    """What the system refuses comes out as StorageError with the place and the remedy."""
    (tmp_path / "ledger").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match=r"Cannot write .*part-00000\.parquet.*run again"):
        Ledger(tmp_path).write_part(part_path(1, 0), some_lines(1))


def test_a_part_that_cannot_be_deleted_is_a_storage_error_with_its_folder(tmp_path: Path) -> None:
    """A folder under the name of a part, for instance: rows might be counted twice, so it is not passed over."""
    (tmp_path / "ledger" / "1" / "part-00007.parquet").mkdir(parents=True)
    with pytest.raises(
        StorageError, match=r"Cannot delete an outdated file in .*ledger: .*permissions, then run again"
    ):
        Ledger(tmp_path).keep_only([])


def test_the_stamp_is_that_of_the_content(tmp_path: Path) -> None:
    """A copy has the same stamp, other rows another one, even where the size is the same."""
    one, copy, other = tmp_path / "one", tmp_path / "copy", tmp_path / "other"
    some_lines(3).write_parquet(one)
    copy.write_bytes(one.read_bytes())
    some_lines(3).with_columns(row=pl.col("row") + 1).write_parquet(other)
    assert other.stat().st_size == one.stat().st_size
    assert stamp(copy) == stamp(one)
    assert stamp(other) != stamp(one)
    with pytest.raises(Unreadable, match="gone"):
        stamp(tmp_path / "gone")
