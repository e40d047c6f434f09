"""What a Parquet file says about itself: columns, row groups, pages.

polars tells neither how a column is stored (INT96, a legacy type), nor what is encrypted, nor how large a page becomes
when it is unpacked, and it passes over the checksums of pages. Never decodes a value.
"""

import os
import zlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from backfill.adapters.exports.compact import Cut, Fields, Malformed, read_struct
from backfill.adapters.exports.content import HEAD_BYTES, reading
from backfill.adapters.exports.foreign import recognised
from backfill.core.errors import ExportError
from backfill.core.limits import MAX_PAGE_BYTES, MAX_PAGE_VALUES

_MAGIC, _ENCRYPTED_MAGIC = MAGICS = b"PAR1", b"PARE"
_TAIL = 8  # the footer's length and the magic
_HEADER_BYTES = 4096  # nearly every page header is under 100 bytes; larger ones hold statistics of long texts
_CHUNK = 1 << 20

# Numbers as parquet.thrift gives them.
_INT96 = 3
_REPEATED = 2
_LEGACY_UTC = (9, 10)  # TIMESTAMP_MILLIS, TIMESTAMP_MICROS
_DATE, _UUID = 6, 14  # of LogicalType; DATE has the same number among the converted types
_TEXTS = {1, 4, 12}  # STRING, ENUM, JSON of LogicalType
_CONVERTED_TEXTS = {0, 4, 19}  # the same of ConvertedType
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3


class Leaf(NamedTuple):
    """A column of plain values, by the name of the top column that it is part of.

    `is_legacy_utc`: a timestamp of the older kind, which knows no zone and means UTC. `is_text`: UTF-8, also where
    polars sees bytes.
    """

    column: str
    is_int96: bool
    is_legacy_utc: bool
    is_date: bool
    is_uuid: bool
    is_text: bool
    is_repeated: bool


class Chunk(NamedTuple):
    """The values of one leaf in a row group. `start` is None where they are encrypted."""

    leaf: Leaf
    start: int | None
    values: int
    unpacked_bytes: int


class RowGroup(NamedTuple):
    rows: int
    chunks: tuple[Chunk, ...]


class Footer(NamedTuple):
    """`columns`: the top columns in their order, with repeated names."""

    columns: tuple[str, ...]
    leaves: tuple[Leaf, ...]
    row_groups: tuple[RowGroup, ...]


def read_footer(path: Path) -> Footer:
    """Raises ExportError for what is no Parquet, is cut short, damaged or encrypted."""
    with reading(path), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(HEAD_BYTES)
        if not head.startswith((_MAGIC, _ENCRYPTED_MAGIC)):
            what = "empty. Export it again" if not head else recognised(head, may_be_json=False)
            hint = f"It is {what}." if what else "If it is a CSV, give it a name that ends in .csv."
            raise ExportError(f"{path} is not Parquet, whatever its name says. {hint}")
        file.seek(max(4, size - _TAIL))
        tail = file.read(_TAIL)
        if _ENCRYPTED_MAGIC in (head[:4], tail[-4:]):
            raise ExportError(f"{path} is encrypted. Only plain Parquet can be read: export it without encryption.")
        if len(tail) < _TAIL or tail[-4:] != _MAGIC:
            raise ExportError(f"{path} cannot be read as Parquet: it is cut short. Export or copy it again.")
        length = int.from_bytes(tail[:4], "little")
        if length > size - _TAIL - 4:
            raise damaged(path, "its footer would be larger than the file")
        file.seek(size - _TAIL - length)
        raw = file.read(length)
    try:
        return _footer(read_struct(raw)[0])
    except (Malformed, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        # Whatever stands where another kind of value should: nothing here is code that could be wrong instead.
        raise damaged(path, "its footer makes no sense") from error


def damaged(path: Path, what: str) -> ExportError:
    return ExportError(f"{path} cannot be read as Parquet: it is damaged ({what}). Export or copy it again.")


def _footer(fields: Fields) -> Footer:
    root, *elements = fields[2]
    columns, leaves, at = [], [], 0
    for _ in range(root.get(5, 0)):
        name = elements[at][4].decode()
        columns.append(name)
        found, at = _leaves(name, elements, at, repeated=False, depth=0)
        leaves += found
    groups = tuple(_row_group(group, leaves) for group in fields.get(4, []))
    if sum(group.rows for group in groups) != fields[3]:
        raise Malformed("row groups do not add up")
    return Footer(tuple(columns), tuple(leaves), groups)


def _leaves(column: str, elements: Sequence[Fields], at: int, *, repeated: bool, depth: int) -> tuple[list[Leaf], int]:
    element = elements[at]
    if depth > 100:
        raise Malformed("nested too deep")
    at += 1
    repeated = repeated or element.get(3) == _REPEATED
    if not element.get(5):
        converted, logical = element.get(6), element.get(10, {})
        leaf = Leaf(
            column=column,
            is_int96=element[1] == _INT96,
            is_legacy_utc=converted in _LEGACY_UTC and not logical,
            is_date=_DATE in logical or converted == _DATE,
            is_uuid=_UUID in logical,
            is_text=converted in _CONVERTED_TEXTS or not _TEXTS.isdisjoint(logical),
            is_repeated=repeated,
        )
        return [leaf], at
    found: list[Leaf] = []
    for _ in range(element[5]):
        more, at = _leaves(column, elements, at, repeated=repeated, depth=depth + 1)
        found += more
    return found, at


def _row_group(group: Fields, leaves: Sequence[Leaf]) -> RowGroup:
    return RowGroup(_count(group[3]), tuple(_chunk(chunk, leaf) for chunk, leaf in zip(group[1], leaves, strict=True)))


def _chunk(chunk: Fields, leaf: Leaf) -> Chunk:
    meta: dict[int, Any] = chunk.get(3, {})
    if 8 in chunk or not meta:
        return Chunk(leaf, None, 0, 0)
    # Some writers give 0 for a dictionary that is not there.
    start = min(meta[9], meta.get(11) or meta[9])
    return Chunk(leaf, _count(start), _count(meta[5]), _count(meta[6]))


def _count(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value < 1 << 60:
        raise Malformed("no count")
    return value


def check_pages(path: Path, file: BinaryIO, group: RowGroup, columns: Collection[str]) -> None:
    """Walk the pages of `columns` in a row group without unpacking one.

    Checksums are compared where the file has them. `file` is open unbuffered. Raises ExportError for a page that does
    not fit its checksum or its place, or that would not stay small in memory.
    """
    for chunk in group.chunks:
        if chunk.leaf.column in columns:
            if chunk.start is None:
                raise ExportError(
                    f"{path}: column {chunk.leaf.column!r} is encrypted. Leave it out by listing the wanted columns in "
                    "columns.properties, or export it without encryption."
                )
            for page in _pages(path, file, chunk):
                _check_page(path, file, chunk.leaf, page)


class _Page(NamedTuple):
    start: int
    size: int
    unpacked: int
    values: int
    crc: int | None


def _pages(path: Path, file: BinaryIO, chunk: Chunk) -> Iterator[_Page]:
    assert chunk.start is not None
    at, left = chunk.start, chunk.values
    while left > 0:
        header, start = _page_header(path, file, at)
        try:
            kind, unpacked, size = header[1], _count(header[2]), _count(header[3])
            part = {_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}.get(kind)
            values = _count(header[part][1]) if part else 0
            crc = int(header[4]) & 0xFFFF_FFFF if 4 in header else None
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(path, f"a page of column {chunk.leaf.column!r} makes no sense") from error
        yield _Page(start, size, unpacked, values, crc)
        if kind in (_DATA, _DATA_V2):
            left -= values
        at = start + size
    if left < 0:
        raise damaged(path, f"column {chunk.leaf.column!r} has more values than it announces")


def _page_header(path: Path, file: BinaryIO, at: int) -> tuple[Fields, int]:
    """The header at `at`, and where its page begins."""
    size = _HEADER_BYTES
    while True:
        raw = os.pread(file.fileno(), size, at)
        try:
            header, length = read_struct(raw)
        except Cut as error:
            if len(raw) < size or size > MAX_PAGE_BYTES:
                raise damaged(path, "it ends inside a page") from error
            size *= 8
        except Malformed as error:
            raise damaged(path, "the header of a page makes no sense") from error
        else:
            return header, at + length


def _check_page(path: Path, file: BinaryIO, leaf: Leaf, page: _Page) -> None:
    if page.unpacked > MAX_PAGE_BYTES or (leaf.is_repeated and page.values > MAX_PAGE_VALUES):
        raise ExportError(
            f"{path}: column {leaf.column!r} has a page of {page.unpacked:,} bytes and {page.values:,} values, once "
            f"unpacked, and more than {MAX_PAGE_BYTES:,} or {MAX_PAGE_VALUES:,} might not fit into memory. Export it "
            "with smaller pages, or leave the column out."
        )
    at, left, crc = page.start, page.size, 0
    if page.crc is None:
        if left and not os.pread(file.fileno(), 1, at + left - 1):
            raise damaged(path, "it ends inside a page")
        return
    while left:
        data = os.pread(file.fileno(), min(left, _CHUNK), at)
        if not data:
            raise damaged(path, "it ends inside a page")
        crc = zlib.crc32(data, crc)
        at, left = at + len(data), left - len(data)
    if crc != page.crc:
        raise damaged(path, f"a page of column {leaf.column!r} does not fit its checksum")
