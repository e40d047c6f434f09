"""Parquet exports: rows in small blocks, each with its number; or refused."""

import os
import random
import subprocess
import sys
from datetime import date
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from backfill.adapters.exports import open_export, parquet
from backfill.core.config import Csv
from backfill.core.errors import ExportError
from tests.adapters.exports.columnar import written
from tests.adapters.exports.reading import read


def test_a_parquet_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    """Also if it is replaced."""
    path = tmp_path / "export.parquet"
    pl.DataFrame({"a": ["x"]}).write_parquet(path)
    export = open_export(path, Csv())
    blocks = export.blocks(("a",))
    next(blocks)
    os.utime(path, ns=(1, 1))
    with pytest.raises(ExportError, match="changed while it was read"):
        list(blocks)


def test_rows_are_numbered_across_blocks_and_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From 1, without lines; row groups are cut where they are large and read together where they are small."""
    monkeypatch.setattr(parquet, "_BLOCK_ROWS", 3)
    monkeypatch.setattr(parquet, "_SPAN_ROWS", 7)
    for group in (1, 2, 4, 5, 40, 100):
        path = tmp_path / f"{group}.parquet"
        frame = pl.DataFrame({"n": range(100), "k": [f"k{n}" for n in range(100)], "unused": [[b"x"]] * 100})
        frame.write_parquet(path, row_group_size=group)
        export = open_export(path, Csv())
        assert export.header == ("n", "k", "unused")
        blocks = list(export.blocks(("k", "n")))
        assert [block.row for block in blocks] == [
            1 + sum(b.frame.height for b in blocks[:at]) for at in range(len(blocks))
        ]
        assert all(block.lines is None and block.frame.height <= 3 for block in blocks)
        together = pl.concat(block.frame for block in blocks)
        assert together.rows() == [(f"k{n}", str(n)) for n in range(100)]


def test_rows_that_share_a_long_value_come_in_small_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text or category: a dictionary makes a table of gigabytes of a tiny file, and memory must not follow."""
    monkeypatch.setattr(parquet, "CSV_BLOCK_BYTES", 10_000)
    words = pa.DictionaryArray.from_arrays(pa.array([0] * 500, pa.int32()), pa.array(["x" * 3_000]))
    for store_schema in (True, False):
        path = written(tmp_path, pa.table({"a": words}), store_schema=store_schema)
        blocks = list(open_export(path, Csv()).blocks(("a",)))
        assert {block.frame.height for block in blocks} == {3, 2}
        assert sum(block.frame.height for block in blocks) == 500
    monkeypatch.setattr(parquet, "MAX_RECORD_BYTES", 2_000)
    with pytest.raises(ExportError, match="row 1 holds 3,000 bytes of text"):
        list(open_export(path, Csv()).blocks(("a",)))


def test_memory_stays_flat_whatever_a_row_group_holds(tmp_path: Path) -> None:
    """10 million equal rows in one row group, some megabytes on disk and 160 MB as columns of polars: in a process of
    its own reading takes less than that. (Whole, it takes 750 MB.)"""
    rows = 10_000_000
    same = pa.DictionaryArray.from_arrays(
        pa.Array.from_buffers(pa.int32(), rows, [None, pa.py_buffer(bytes(4 * rows))]), pa.array(["x" * 100])
    )
    path = written(tmp_path, pa.table({"a": same}), row_group_size=rows, compression="zstd", store_schema=False)
    assert path.stat().st_size < 2_000_000
    ended = subprocess.run(
        [sys.executable, "-c", READ, str(path)], capture_output=True, text=True, timeout=200, check=True
    )
    read, before_kb, peak_kb = map(int, ended.stdout.split())
    assert read == rows
    assert peak_kb - before_kb < 150_000


READ = """
import sys
from pathlib import Path
from backfill.adapters.exports import open_export
from backfill.core.config import Csv
def anonymous_kb():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))
before, rows, peak = anonymous_kb(), 0, 0
for block in open_export(Path(sys.argv[1]), Csv()).blocks(("a",)):
    rows += block.frame.height
    peak = max(peak, anonymous_kb())
print(rows, before, peak)
"""


def test_a_table_without_rows_has_no_blocks(tmp_path: Path) -> None:
    """And is no error; one without columns is."""
    assert list(open_export(written(tmp_path, pa.table({"a": pa.array([], pa.string())})), Csv()).blocks(("a",))) == []
    with pytest.raises(ExportError, match="has no columns"):
        open_export(written(tmp_path, pa.table({})), Csv())


def test_columns_of_one_name_or_none_are_refused(tmp_path: Path) -> None:
    """By position; another case is another name."""
    for names, said in (
        ("aba", "columns 1 and 3 are both named 'a'"),
        (("a", " ", "b"), "column 2 has no name. Give it one when exporting"),
    ):
        table = pa.Table.from_arrays([pa.array([1])] * 3, names=list(names))
        with pytest.raises(ExportError, match=said):
            open_export(written(tmp_path, table), Csv())
    table = pa.Table.from_arrays([pa.array([1])] * 2, names=["a", "A"])
    assert open_export(written(tmp_path, table), Csv()).header == ("a", "A")


def test_a_parquet_is_known_by_its_content(tmp_path: Path) -> None:
    """Whatever it is called; folders say nothing that polars would read by itself."""
    folder = tmp_path / "a=7" / "b=8"
    folder.mkdir(parents=True)
    path = written(folder, pa.table({"a": [1]}), "export.csv")
    assert read(path) == {"a": ["1"], "b": ["8"], "row": [1], "line": [None]}


def test_a_damaged_parquet_is_one_clear_error(tmp_path: Path) -> None:
    """Cut short, overwritten inside, or not Parquet at all."""
    path = tmp_path / "export.parquet"
    pl.DataFrame({"a": range(5_000)}).write_parquet(path, compression="uncompressed")
    whole = path.read_bytes()
    inside = bytearray(whole)
    inside[10:4_000] = b"\x5a" * 3_990
    for content in (whole[:-50], whole[:100], bytes(inside), b"PAR1" + b"x" * 100 + b"PAR1", b"a,b\n1,2\n"):
        path.write_bytes(content)
        with pytest.raises(ExportError, match=r"export\.parquet.*Parquet"):
            list(open_export(path, Csv()).blocks(("a",)))


def test_null_words_count_in_text_columns_only(tmp_path: Path) -> None:
    """To the character; a number or a date is never a word."""
    path = tmp_path / "export.parquet"
    pl.DataFrame({"a": ["NULL", "null", None, "x"], "n": [1, 2, 3, 4], "d": [date(2024, 3, 1)] * 4}).write_parquet(path)
    (block,) = open_export(path, Csv(null_values=["NULL", "2024-03-01"])).blocks(("a", "n", "d"))
    assert block.frame["a"].to_list() == [None, "null", None, "x"]
    assert block.frame["n"].to_list() == ["1", "2", "3", "4"]
    assert block.frame["d"].null_count() == 0


def test_whatever_bits_are_flipped_the_only_error_is_ours(tmp_path: Path) -> None:
    """Without checksums damage can pass unseen; but what polars fails at, panics included, is a clear refusal."""
    table = pa.table({"a": [f"PRIVATE-{n}" for n in range(300)], "l": [[n] for n in range(300)]})
    path = written(tmp_path, table, compression="zstd", row_group_size=100)
    raw = path.read_bytes()
    dice = random.Random(2)
    told = []
    for _ in range(150):
        damaged = bytearray(raw)
        damaged[dice.randrange(4, len(raw) - 8)] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        try:
            export = open_export(path, Csv())
            list(export.blocks(export.header))
        except ExportError as error:
            told.append(error.message)
    assert len(told) > 20
    assert not [message for message in told if "PRIVATE" in message or str(path) not in message]


def test_a_panic_of_polars_is_a_clear_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no Exception, so that a plain except would let it pass as a bug."""

    def panic(*_: object, **__: object) -> None:
        raise pl.exceptions.PanicException("range end index 9 out of range")

    export = open_export(written(tmp_path, pa.table({"a": [1]})), Csv())
    monkeypatch.setattr(pl, "scan_parquet", panic)
    with pytest.raises(ExportError, match=r"export\.parquet cannot be read as Parquet \(range end.*copy it again"):
        list(export.blocks(("a",)))
