"""Refusals of exports as a person reads them, whole: what is wrong, where, and what to do now."""

import gzip
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from backfill.adapters.exports import decoding, delimited, open_export, parquet
from backfill.core.config import Csv
from backfill.core.errors import ExportError
from backfill.core.limits import CSV_BLOCK_BYTES
from tests.adapters.exports import columnar
from tests.adapters.exports.reading import written

GOOD = b"timestamp,url\n2024-03-01,x\n"


def refusal(path: Path, options: Csv | None = None, block_bytes: int = CSV_BLOCK_BYTES) -> str:
    def read() -> None:
        export = open_export(path, options or Csv(), block_bytes=block_bytes)
        list(export.blocks(export.header))

    with pytest.raises(ExportError) as caught:
        read()
    return caught.value.message.replace(f"{path.parent}/", "")


def _named(value: object) -> str:
    """Tests are called by what is said, not by the bytes of the file."""
    return value[:60] if isinstance(value, str) else "-"


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        (
            b"",
            {},
            "june.csv is empty: it has not even a header. Export it again, or leave it out.",
        ),
        (
            b"\n\n",
            {},
            "june.csv has no header: there is nothing but blank lines in it. Export it again, or leave it out.",
        ),
        (
            b"\n\n",
            {"skip_lines": 1},
            "june.csv has no header: there is nothing but blank lines behind what csv.skip_lines, "
            "csv.skip_footer and csv.comment leave out. Set these anew.",
        ),
        (
            b'a"b,c\n1,2\n3",4\n',
            {},
            "june.csv, line 1: a quote inside a column's name. It must be doubled, and the whole name be "
            'in quotes. If quotes mean nothing in this export, set csv.quote = "".',
        ),
        (
            b'"a"b,c\n1,2\n',
            {},
            "june.csv, line 1: the header cannot be read (',' expected after '\"'). Mend it, or name the "
            "columns by csv.skip_lines and csv.header.",
        ),
        (
            b'a,"b\n1,2\n',
            {},
            "june.csv, line 1: a quote opens here that never closes. Close it, or double it if it is part "
            'of the text; if quotes mean nothing in this export, set csv.quote = "". If the file was cut '
            "off, export or copy it again.",
        ),
        (
            GOOD + b"2024-03-02,\xe9\n",
            {},
            "june.csv, line 3, byte 12: 0xE9 is not UTF-8. Declare the export's encoding: csv.encoding = "
            '"windows-1252" if it comes from Windows in a Western language, or "latin-1"; or export it as '
            "UTF-8.",
        ),
        (
            GOOD + b"2024-03-02,\x80\n",
            {"encoding": "latin-1"},
            "june.csv, line 3, byte 12: byte 0x80 is a control character in Latin-1. Most likely the "
            'export is Windows-1252: set csv.encoding = "windows-1252".',
        ),
        (
            GOOD + b"2024-03-02,\xe9\n",
            {"encoding": "ascii"},
            "june.csv, line 3, byte 12: 0xE9 is no character in ascii. Declare the export's encoding by "
            "csv.encoding, or mend this place.",
        ),
        (
            b"<!DOCTYPE html>\n<html></html>\n",
            {},
            "june.csv is a web page or XML, not a table: perhaps the page of a login or of an error, "
            "saved under the name of an export. Look into it, and export again.",
        ),
        (
            gzip.compress(GOOD, mtime=0)[:-9],
            {},
            "june.csv is cut short: its packed data ends before its end. Export or copy it again.",
        ),
    ],
    ids=_named,
)
def test_a_refused_csv_is_told_whole(tmp_path: Path, content: bytes, options: dict[str, Any], said: str) -> None:
    """Where it is, to the line and byte; never with the values that stand there."""
    assert refusal(written(tmp_path, content, "june.csv"), Csv(**options)) == said


@pytest.mark.parametrize("encoding", ["utf-8", "windows-1252"])
def test_a_line_without_end_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    """Whatever it is written in: memory must not grow with it."""
    monkeypatch.setattr(delimited, "MAX_RECORD_BYTES", 1 << 20)
    monkeypatch.setattr(decoding, "MAX_RECORD_BYTES", 1 << 20)
    path = written(tmp_path, GOOD + b"x" * (3 << 20), "june.csv")
    footer = 1 if encoding != "utf-8" else 0
    told = refusal(path, Csv(encoding=encoding, skip_footer=footer), block_bytes=1 << 16)
    assert (
        told
        == {
            "utf-8": "june.csv, line 3: this line is longer than 1 MB. Is this a CSV file?",
            "windows-1252": "june.csv has a line longer than 1 MB. Is this a CSV file?",
        }[encoding]
    )


def test_lines_of_which_only_polars_knows_the_fault_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where our own search finds none, the lines it lies in are named all the same."""
    path = written(tmp_path, GOOD + b"2024-03-02,x,y\n", "june.csv")
    monkeypatch.setattr(delimited, "first_fault", lambda *_: None)
    assert refusal(path) == (
        "june.csv, lines 2 to 4: quotes and line ends do not fit together. "
        "A quote inside a field must be doubled, and the whole field be in quotes."
    )


TABLE = columnar.parquet(pa.table({"a": [1, 2]}))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (TABLE[:-9], "june.parquet cannot be read as Parquet: it is cut short. Export or copy it again."),
        (
            b"PAR1" + b"\xff\xff\xff\x7fPAR1",
            "june.parquet cannot be read as Parquet: it is damaged (its footer would be larger than the file). "
            "Export or copy it again.",
        ),
        (
            b"PARE" + bytes(40) + b"PARE",
            "june.parquet is encrypted. Only plain Parquet can be read: export it without encryption.",
        ),
    ],
    ids=_named,
)
def test_a_refused_parquet_is_told_whole(tmp_path: Path, content: bytes, said: str) -> None:
    """By its name; there is no line to point at."""
    assert refusal(columnar.written(tmp_path, content, "june.parquet")) == said


def test_a_parquet_that_polars_reads_otherwise_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other columns or fewer rows than the footer has: no row is lost in silence."""
    path = columnar.written(tmp_path, TABLE, "june.parquet")
    with monkeypatch.context() as less:
        less.setattr(parquet.ParquetExport, "_decoded", lambda *_: iter([pl.DataFrame({"a": ["1"]})]))
        assert refusal(path) == "june.parquet: 1 rows could be read of 2 announced. Export or copy it again."
    monkeypatch.setattr(pl, "read_parquet_schema", lambda *_: {"b": pl.Int64()})
    assert refusal(path) == (
        "june.parquet cannot be read as Parquet: its columns are not those it announces. Export or copy it again."
    )
