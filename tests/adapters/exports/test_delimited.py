"""Exports as they lie on disk: every record comes out once, with its place, or the error names it."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backfill.adapters.exports import CsvExport, delimited, open_export
from backfill.core.config import Csv
from backfill.core.errors import ExportError
from tests.adapters.exports.reading import read, written

FIELD = st.text(st.sampled_from(list('ab,;"\n\r ä\u2028😀\ufeff')), max_size=5)


@settings(max_examples=150, deadline=None)
@given(
    records=st.lists(st.lists(FIELD, min_size=3, max_size=3), max_size=8),
    dialect=st.sampled_from([(",", '"'), (";", '"'), ("\t", "'"), (",", "a")]),
    end=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    blank=st.lists(st.integers(0, 8), max_size=3),
    last=st.booleans(),
    bom=st.booleans(),
    block_bytes=st.sampled_from([1, 2, 7, 64, 1 << 20]),
)
def test_what_python_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    records: list[list[str]],
    dialect: tuple[str, str],
    end: str,
    quoting: Any,
    blank: list[int],
    last: bool,
    bom: bool,
    block_bytes: int,
) -> None:
    """Every record once, with its values, number and line, at any block size, with blank lines anywhere between."""
    if end == "\n" and "\r" in "".join(map("".join, records)):
        quoting = csv.QUOTE_ALL  # a bare one at the end of a line would be half of a line end
    delimiter, quote = dialect
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, quotechar=quote, lineterminator=end, quoting=quoting)
    writer.writerow(["x", "y", "z"])
    lines = []
    for number, record in enumerate(records):
        text.write(end * blank.count(number))
        lines.append(text.getvalue().count("\n") + 1)
        writer.writerow(record)
    text.write(end * blank.count(8))
    content = text.getvalue() if last else text.getvalue().removesuffix(end)
    path = tmp_path_factory.mktemp("csv") / "export.csv"
    path.write_bytes(b"\xef\xbb\xbf" * bom + content.encode())

    found = read(path, Csv(delimiter=delimiter, quote=quote), block_bytes)
    assert [list(values) for values in zip(found["x"], found["y"], found["z"], strict=True)] == [
        [field or None for field in record] for record in records
    ]
    assert found["row"] == list(range(1, len(records) + 1))
    assert found["line"] == lines


@pytest.mark.parametrize("block_bytes", [1, 10, 1 << 20])
def test_a_single_column_is_a_table_too(tmp_path: Path, block_bytes: int) -> None:
    """A blank line is no record; a quoted empty value is one."""
    path = written(tmp_path, 'k\n1\n\n""\n"a\nb"\n\r\n2')
    assert read(path, block_bytes=block_bytes) == {
        "k": ["1", None, "a\nb", "2"],
        "row": [1, 2, 3, 4],
        "line": [2, 4, 5, 8],
    }


def test_values_stay_text(tmp_path: Path) -> None:
    """Leading zeros, exponents, spaces and long numbers keep every character."""
    path = written(tmp_path, "a,b,c,d\n007, x ,1e5,12345678901234567890.10\n")
    found = read(path)
    assert [found[name] for name in "abcd"] == [["007"], [" x "], ["1e5"], ["12345678901234567890.10"]]


def test_a_byte_order_mark_inside_is_a_character(tmp_path: Path) -> None:
    """Only at the very start of a file it says nothing; a block may begin with one too."""
    path = written(tmp_path, "\ufeffa,b\n\ufeff1,2\n\ufeff3,4\n")
    for block_bytes in (1, 1 << 20):
        assert read(path, block_bytes=block_bytes)["a"] == ["\ufeff1", "\ufeff3"]


def test_a_header_may_be_quoted_and_span_lines(tmp_path: Path) -> None:
    """Lines count on below it."""
    path = written(tmp_path, '\n"a ""1""","b\nc"\r\n1,2\r\n')
    for block_bytes in (1, 1 << 20):
        export = CsvExport(path, Csv(), block_bytes=block_bytes)
        assert export.header == ('a "1"', "b\nc")
        assert read(path, block_bytes=block_bytes)["line"] == [4]


def test_a_header_alone_is_an_export_without_rows(tmp_path: Path) -> None:
    """An empty night is no error."""
    for content in ("a,b", "a,b\n", "a,b\n\n\n"):
        assert read(written(tmp_path, content))["row"] == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", ["is empty"]),
        (b"\xef\xbb\xbf", ["no header"]),
        (b"\n\r\n", ["no header"]),
        (b"a,b,a\n1,2,3\n", ["'a'", "columns 1 and 3"]),
        (b"a,,c\n1,2,3\n", ["column 2", "no name"]),
        (b"a,b\n1,2\n3\n4,5\n", ["line 3", "1 field ", "has 2"]),
        (b"a,b\n1,2\n3,4,5\n", ["line 3", "3 fields", "has 2"]),
        (b"a,b\n1\n3,4,5\n", ["line 2", "1 field "]),
        (b'a,b\n"1,1",2\n\n"3,3"\n', ["line 4", "1 field "]),
        (b'a,b,c\n1,"x,y"\n2,3,4\n', ["line 2", "2 fields"]),
        (b'a,b\n"1\n1",2\n3\n', ["line 4", "1 field "]),
        (b"a,b\n1,2\n3,\xff\n", ["line 3", "byte 3", "UTF-8"]),
        (b'a,b\n1,2\n3,"x\n4,5\n6,7\n', ["line 3", "quote"]),
        (b'a,b\n1,2\n3,"x"y\n4,5\n', ["line 3", "quote"]),
        (b'a,b\n1,2\n5" x,3\n6" x,5\n', ["line 3", "quote"]),
        (b'a,"b\n1,2\n', ["line 1", "quote"]),
        (b"\x1f\x8b\x08\x00", ["cut short"]),
        (b"a\xff,b\n", ["line 1", "UTF-8"]),
    ],
)
@pytest.mark.parametrize("block_bytes", [1, 9, 1 << 20])
def test_what_cannot_be_read_is_named_by_file_and_line(
    tmp_path: Path, content: bytes, said: Sequence[str], block_bytes: int
) -> None:
    """Never a record lost, padded or guessed; and never a value in the message."""
    path = written(tmp_path, content)
    with pytest.raises(ExportError) as caught:
        read(path, block_bytes=block_bytes)
    assert all(part in caught.value.message for part in [str(path), *said]), caught.value.message


def test_a_quote_in_an_unquoted_field_is_only_a_character(tmp_path: Path) -> None:
    """Where it leaves no doubt: two on one line cannot hide a line end."""
    assert read(written(tmp_path, 'a,b\n5" x,6" y\n'))["a"] == ['5" x']


def test_an_endless_record_is_refused_while_memory_is_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unclosed quote at the top of a large export does not swallow it; nor does a file without line ends."""
    monkeypatch.setattr(delimited, "MAX_RECORD_BYTES", 10_000)
    with pytest.raises(ExportError, match="line 2: a quote opens"):
        read(written(tmp_path, 'a,b\n"1,2\n' + "3,4\n" * 10_000), block_bytes=1_000)
    with pytest.raises(ExportError, match="line 2: this line"):
        read(written(tmp_path, "a,b\n" + "3" * 40_000), block_bytes=1_000)


@pytest.mark.parametrize("block_bytes", [7, 1 << 20])
def test_a_csv_that_changes_while_it_is_read_is_refused(tmp_path: Path, block_bytes: int) -> None:
    """What was staged would be of no one version."""
    path = written(tmp_path, "a,b\n" + "1,2\n" * 50)
    export = open_export(path, Csv(), block_bytes=block_bytes)
    blocks = export.blocks(export.header)
    next(blocks)
    with path.open("a") as file:
        file.write("3,4\n")
    with pytest.raises(ExportError, match="changed while it was read"):
        list(blocks)
