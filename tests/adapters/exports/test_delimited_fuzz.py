"""CSV against an independent reader: Python's csv module, which wrote the file, or reads the spoiled one as well."""

import csv
import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from backports import zstd
from hypothesis import example, given, settings
from hypothesis import strategies as st

from backfill.core.config import Csv
from backfill.core.errors import ExportError
from tests.adapters.exports.reading import read

ENCODINGS: dict[str, Callable[[str], bytes]] = {
    "utf-8": lambda text: text.encode(),
    "utf-8 with mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "utf-16": lambda text: text.encode("utf-16"),
    "utf-16-be": lambda text: text.encode("utf-16-be"),
    "cp1252": lambda text: text.encode("cp1252"),
}
PACKERS: dict[str, Callable[[bytes], bytes]] = {"as it is": bytes, "gzip": gzip.compress, "zstd": zstd.compress}

FIELD = st.text(st.sampled_from(list("ab,;|\t\"'#\n\r \u00e4\u20ac")), max_size=5)


def _path(factory: pytest.TempPathFactory, content: bytes) -> Path:
    path = factory.mktemp("csv") / "export.csv"
    path.write_bytes(content)
    return path


def _read_or_refused(path: Path, block_bytes: int = 1 << 20) -> dict[str, list[Any]] | None:
    """What is read; None for an error that names the file."""
    try:
        return read(path, Csv(), block_bytes)
    except ExportError as error:
        if str(path) not in error.message:
            raise
        return None


@settings(max_examples=250, deadline=None)
@given(
    records=st.lists(st.lists(FIELD, min_size=2, max_size=2), max_size=6),
    delimiter=st.sampled_from(",;|\t"),
    quote=st.sampled_from("\"'"),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    end=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(sorted(ENCODINGS)),
    packer=st.sampled_from(sorted(PACKERS)),
    around=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    comments=st.booleans(),
    named=st.booleans(),
    block_bytes=st.sampled_from([1, 7, 64, 1 << 20]),
)
def test_what_python_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    records: list[list[str]],
    delimiter: str,
    quote: str,
    quoting: Any,
    end: str,
    encoding: str,
    packer: str,
    around: tuple[int, int],
    comments: bool,
    named: bool,
    block_bytes: int,
) -> None:
    """In any dialect, encoding and packing, with preamble, comments and footer: each record, its number and line."""
    if end == "\n" and any("\r" in field for record in records for field in record):
        quoting = csv.QUOTE_ALL  # this version of csv writes a CR without quotes, and that is refused
    if comments and any(record[0].startswith("#") for record in records):
        quoting = csv.QUOTE_ALL
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, quotechar=quote, lineterminator=end, quoting=quoting)
    text.write(f'Report "of{quote} March{end}' * around[0])
    if not named:
        writer.writerow(["x", "y"])
    lines = []
    for record in records:
        text.write(f"# it's {quote} a comment{end}" * comments)
        lines.append(text.getvalue().count("\n") + 1)
        writer.writerow(record)
    text.write(f"Total{quote}{end}" * around[1] + end * bool(around[1]))
    content = PACKERS[packer](ENCODINGS[encoding](text.getvalue()))
    if not text.getvalue():
        return  # no header and no record: an empty file is refused, a lone mark is a table without rows
    options = Csv(
        delimiter=delimiter,
        quote=quote,
        encoding=encoding.removesuffix(" with mark"),
        header=["x", "y"] if named else True,
        skip_lines=around[0],
        skip_footer=around[1],
        comment="#" if comments else None,
    )
    path = _path(tmp_path_factory, content)
    found = read(path, options, block_bytes)
    assert [list(pair) for pair in zip(found["x"], found["y"], strict=True)] == [
        [field or None for field in record] for record in records
    ]
    assert found["row"] == list(range(1, len(records) + 1))
    assert found["line"] == lines


VALID = (
    b'a,b,c\n1,"x, y",z\n"2","say ""no""",\xc3\xa4\n\n3,"line\nbreak",""\r\n4,,\n"",5" x,6" y\n',
    b'a,b\n"1","2"\n"3","4"\n"","6"\n',
    b"k\n1\n2\n\n3\n",
    b"a;b|c,d\r\n1,2\r\n3,4\r\n",
)
PIECES = (b'"', b'""', b",", b"\n", b"\r", b"\r\n", b"\\", b"\0", b"\xff", b"\xc3", b"\xef\xbb\xbf", b"x", b" ", b"")


@settings(max_examples=1_500, deadline=None)
@given(
    content=st.sampled_from(VALID),
    changes=st.lists(st.tuples(st.integers(0, 80), st.integers(0, 4), st.sampled_from(PIECES)), min_size=1, max_size=4),
    block_bytes=st.sampled_from([1, 16, 1 << 20]),
)
@example(b'a,b\n"x"y"z",1\n', [(80, 0, b"")], 1 << 20)
@example(b'a,b\n"x,"y",z",1\n', [(80, 0, b"")], 1 << 20)
@example(b'a,b\n"say \\"x\\", twice",1\n', [(80, 0, b"")], 1 << 20)
@example(b'a",b\n"1,"2",3\n4,5\n', [(80, 0, b"")], 1 << 20)
@example(b'a,b\n"1","2"\n3\n"4" x,5" y"\n', [(80, 0, b"")], 1 << 20)
def test_a_spoiled_file_is_never_read_wrong(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, changes: list[tuple[int, int, bytes]], block_bytes: int
) -> None:
    """Bytes replaced, lost and added anywhere: refused, or read just as the strict reader of Python reads it."""
    for at, lost, added in changes:
        content = content[:at] + added + content[at + lost :]
    path = _path(tmp_path_factory, content)
    found = _read_or_refused(path, block_bytes)
    if found is None:
        return
    text = content.decode("utf-8-sig")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header, *records = [record for record in reader if record]
    if len(header) == 1:
        # A quoted empty value alone is a record here and there; a blank line is none here and there.
        assert all(len(record) == 1 for record in records)
    assert header == [name for name in found if name not in ("row", "line")]
    assert [list(values) for values in zip(*(found[name] for name in header), strict=True)] == [
        [field or None for field in record] for record in records
    ]


@settings(max_examples=300, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 150), st.integers(0, 3), st.binary(max_size=3)), min_size=1, max_size=3),
    packer=st.sampled_from(["gzip", "zstd"]),
)
def test_a_spoiled_packed_file_is_never_read_wrong(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int, bytes]], packer: str
) -> None:
    """Its checksum, or ours, says so; a change that changes nothing is read as before."""
    plain = b"a,b\n" + b"".join(b"%d,%d\n" % (n, n * 7919 % 1000) for n in range(40))
    # Both write a checksum of what is packed; zstd only if it is asked to.
    packed = gzip.compress(plain) if packer == "gzip" else zstd.compress(plain, options={_CHECKSUM: 1})
    for at, lost, added in changes:
        packed = packed[:at] + added + packed[at + lost :]
    path = _path(tmp_path_factory, packed)
    found = _read_or_refused(path)
    if found is None:
        return
    assert found["a"] == [str(n) for n in range(40)]
    assert found["b"] == [str(n * 7919 % 1000) for n in range(40)]


_CHECKSUM = zstd.CompressionParameter.checksum_flag
