"""Reads exports, CSV and Parquet, block by block.

Every row keeps its place: number and line. A record is never lost, padded or shifted in silence: what cannot be read
as the configuration says is an error with file and line. Never judges a value, and never writes anything.
"""

import csv
import glob
import hashlib
import io
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

import polars as pl

from backfill.core.config import Csv
from backfill.core.errors import ExportError
from backfill.core.limits import CSV_BLOCK_BYTES, MAX_RECORD_BYTES

_POLARS_FAILED = (pl.exceptions.PolarsError, pl.exceptions.PanicException)
_BOM = b"\xef\xbb\xbf"
_PARQUET_ROWS = 50_000  # as many rows as a block of CSV has, for rows of 160 bytes
_HASH_BYTES = 1 << 20


class Fingerprint(NamedTuple):
    """What an export was when it was read. `sha256` is of its contents, in hexadecimal."""

    path: Path
    size: int
    mtime_ns: int
    sha256: str


class Block(NamedTuple):
    """Some consecutive records.

    `frame` has the export's columns as text; a typed export's dates and datetimes keep their type. Empty text is as
    good as null: which of them a reader gives says nothing. The first record
    has the number `row`, the others follow; numbers count data records from 1. `lines` says where in the file each
    record starts (Int64, from 1, only LF ends a line), None for Parquet.
    """

    frame: pl.DataFrame
    row: int
    lines: pl.Series | None


class Export(Protocol):
    """One export, open for a single pass."""

    path: Path
    header: tuple[str, ...]

    def blocks(self, columns: Sequence[str]) -> Iterator[Block]:
        """The records in their order, with at least `columns`. Raises ExportError."""

    def fingerprint(self) -> Fingerprint:
        """What was read, after the last block. Raises ExportError if the file changed meanwhile."""


def find(paths: Sequence[Path]) -> list[Path]:
    """The exports that arguments stand for: files, directories (their *.csv and *.parquet), globs. Each file once.

    The order is that of the arguments, and by name within a directory or glob. Raises ExportError for what names no
    export.
    """
    found: dict[Path, Path] = {}
    for argument in paths:
        for path in _expanded(argument):
            found.setdefault(path.resolve(), path)
    return list(found.values())


def fingerprint(path: Path) -> Fingerprint:
    """Identify the export at `path` by reading it once."""
    with _reading(path), path.open("rb", buffering=0) as file:
        before = os.fstat(file.fileno())
        digest = hashlib.sha256()
        while chunk := file.read(_HASH_BYTES):
            digest.update(chunk)
        return _unchanged(path, before, os.fstat(file.fileno()), digest.hexdigest())


def open_export(path: Path, options: Csv, *, block_bytes: int = CSV_BLOCK_BYTES) -> Export:
    """Open the export at `path`, by its contents and not by its name. Raises ExportError."""
    with _reading(path), path.open("rb") as file:
        head = file.read(8)
    if not head:
        raise ExportError(f"{path} is empty: it has not even a header. Export it again, or leave it out.")
    if head[:4] == b"PAR1" or path.suffix.casefold() in {".parquet", ".pq"}:
        return ParquetExport(path)
    if head[:2] == b"\x1f\x8b" or head[:4] in {b"PK\x03\x04", b"\x28\xb5\x2f\xfd"} or head[:3] == b"BZh":
        raise ExportError(f"{path} is compressed. Unpack it first.")
    if head[:2] in {b"\xff\xfe", b"\xfe\xff"}:
        raise ExportError(f"{path} is UTF-16, and only UTF-8 can be read. Convert it first.")
    return CsvExport(path, options, block_bytes=block_bytes)


class CsvExport:
    """A CSV file. Reads some 8 MB at once, cut at a line end outside quotes."""

    def __init__(self, path: Path, options: Csv, *, block_bytes: int = CSV_BLOCK_BYTES) -> None:
        self.path = path
        self._delimiter = options.delimiter.encode()
        self._quote = options.quote.encode()
        self._block_bytes = block_bytes
        self._fingerprint: Fingerprint | None = None
        self.header = self._read_header()

    def blocks(self, columns: Sequence[str]) -> Iterator[Block]:
        """As `Export.blocks`, with all columns: only with all of them the fields of a record can be counted."""
        row, is_header = 1, True
        for raw, line in self._raw_blocks():
            rest, start = raw, line
            if is_header:
                end = self._header_end(raw)
                if end is None:
                    continue
                rest, start, is_header = raw[end:], line + raw.count(b"\n", 0, end), False
            if not rest:
                continue
            frame, lines = self._parse(rest, start)
            if frame.height:
                yield Block(frame, row, lines)
                row += frame.height

    def fingerprint(self) -> Fingerprint:
        assert self._fingerprint is not None, "the last block has not been read"
        return self._fingerprint

    def _read_header(self) -> tuple[str, ...]:
        for raw, line in self._raw_blocks():
            end = self._header_end(raw)
            if end is not None:
                return self._parse_header(raw[:end], line)
        raise ExportError(f"{self.path} has no header: there is nothing but blank lines in it.")

    def _raw_blocks(self) -> Iterator[tuple[bytes, int]]:
        """Whole records, some block_bytes at once, each with the line on which it starts."""
        digest = hashlib.sha256()
        # One buffer for all blocks: a new one each time is as much work for the kernel as reading it.
        buffer, held, line = bytearray(self._block_bytes), 0, 1
        with _reading(self.path), self.path.open("rb", buffering=0) as file:
            before = os.fstat(file.fileno())
            while count := file.readinto(memoryview(buffer)[held:]):
                digest.update(memoryview(buffer)[held : held + count])
                held += count
                end = self._last_record_end(buffer, held)
                if end:
                    block = bytes(memoryview(buffer)[:end])
                    yield (block.removeprefix(_BOM) if line == 1 else block), line
                    line += block.count(b"\n")
                    buffer[: held - end] = buffer[end:held]
                    held -= end
                elif held > MAX_RECORD_BYTES:
                    raise self._endless(bytes(buffer[:held]), line)
                if held > len(buffer) // 2:
                    buffer.extend(bytes(len(buffer)))
            after = os.fstat(file.fileno())
        rest = bytes(buffer[:held])
        rest = rest.removeprefix(_BOM) if line == 1 else rest
        if rest.count(self._quote) % 2:
            raise self._endless(rest, line)
        if rest:
            yield rest, line
        self._fingerprint = _unchanged(self.path, before, after, digest.hexdigest())

    def _last_record_end(self, buffer: bytearray, size: int) -> int:
        """The end of the last line that ends outside quotes, in the first `size` bytes; 0 if there is none."""
        inside = buffer.count(self._quote, 0, size) % 2
        end, known = buffer.rfind(b"\n", 0, size) + 1, size
        while end:
            inside = (inside + buffer.count(self._quote, end, known)) % 2
            if not inside:
                return end
            end, known = buffer.rfind(b"\n", 0, end - 1) + 1, end
        return 0

    def _header_end(self, raw: bytes) -> int | None:
        """Where the header's record ends. Blank lines before it are no header; None if there is nothing else."""
        end = 0
        while end < len(raw):
            start, end = end, (raw.find(b"\n", end) + 1) or len(raw)
            while raw.count(self._quote, start, end) % 2 and end < len(raw):
                end = (raw.find(b"\n", end) + 1) or len(raw)
            if raw[start:end].strip(b"\r\n"):
                return end
        return None

    def _parse_header(self, record: bytes, line: int) -> tuple[str, ...]:
        text = io.StringIO(self._decoded(record, line, None), newline="")
        reader = csv.reader(text, delimiter=self._delimiter.decode(), quotechar=self._quote.decode(), strict=True)
        try:
            names = next(fields for fields in reader if fields)
        except csv.Error as error:
            raise ExportError(f"{self.path}, line {line}: the header cannot be read ({error}).") from error
        _check_names(self.path, names)
        return tuple(names)

    def _parse(self, raw: bytes, line: int) -> tuple[pl.DataFrame, pl.Series]:
        """The records of whole lines, and where each starts. Nothing that polars lost, added or padded gets through."""
        numbers: pl.Series | None = None  # where the lines of `raw` stand in the file, if not one after another
        if self._may_be_blank(raw[:2]):
            raw, numbers = self._without_blank_lines(raw, line)
        frame = self._read(raw, line, numbers)
        # A blank line reads as a record without values. Where a column has all its values, there is none.
        if numbers is None and all(frame.null_count().row(0)):
            raw, numbers = self._without_blank_lines(raw, line)
            frame = self._read(raw, line, numbers)
        if frame.is_empty():
            return frame, pl.Series([], dtype=pl.Int64)
        # polars pads a short record in silence, so the line ends and delimiters are counted against what it read.
        # Those inside quotes are in the values. If no line end can be, none is looked for.
        quoted = self._quote in raw
        ends = raw.count(b"\n") + (not raw.endswith(b"\n"))
        newlines = self._inside(frame, "\n") if quoted and (ends != frame.height or frame.width == 1) else None
        delimiters = self._inside(frame, self._delimiter.decode()).sum() if quoted else 0
        within = 0 if newlines is None else newlines.sum()
        apart = raw.count(self._delimiter) - delimiters
        if frame.height + within != ends or apart != frame.height * (frame.width - 1):
            raise self._torn(raw, line, numbers)
        starts = pl.int_range(frame.height, dtype=pl.Int64, eager=True)
        if newlines is not None and within:
            starts = starts + newlines.cum_sum().shift(1, fill_value=0)
        return frame, starts + line if numbers is None else numbers.gather(starts)

    def _read(self, raw: bytes, line: int, numbers: pl.Series | None) -> pl.DataFrame:
        if not raw:
            return pl.DataFrame(schema=dict.fromkeys(self.header, pl.String))
        has_header = raw.startswith(_BOM)
        if has_header:
            # polars would take it for a mark; it is a character here. A header of our own stands before it.
            raw = self._delimiter.join(b"c%d" % n for n in range(len(self.header))) + b"\n" + raw
        try:
            frame = pl.read_csv(
                raw,
                has_header=has_header,
                schema=dict.fromkeys((f"c{n}" for n in range(len(self.header))), pl.String),
                separator=self._delimiter.decode(),
                quote_char=self._quote.decode(),
            )
        except _POLARS_FAILED as error:
            raise self._unreadable(raw, line, numbers, error) from error
        frame.columns = list(self.header)
        return frame

    def _inside(self, frame: pl.DataFrame, text: str) -> pl.Series:
        """How often `text` stands in the values of each record."""
        return frame.select(
            pl.sum_horizontal(pl.all().str.count_matches(text, literal=True).fill_null(0).cast(pl.Int64))
        ).to_series()

    @staticmethod
    def _may_be_blank(start: bytes) -> bool:
        return start[:1] == b"\n" or start == b"\r\n"

    def _without_blank_lines(self, raw: bytes, line: int) -> tuple[bytes, pl.Series]:
        """The lines that belong to records, and their places in the file. A blank line inside quotes belongs to one."""
        kept: list[bytes] = []
        places: list[int] = []
        inside = False
        for place, text in enumerate(raw.removesuffix(b"\n").split(b"\n"), start=line):
            if not inside and text in {b"", b"\r"}:
                continue
            kept.append(text)
            places.append(place)
            inside ^= bool(text.count(self._quote) % 2)
        end = b"\n" if kept and raw.endswith(b"\n") else b""
        return b"\n".join(kept) + end, pl.Series(places, dtype=pl.Int64)

    def _records(self, raw: bytes, line: int) -> Iterator[tuple[bytes, int]]:
        """Record by record, in Python: only to find a fault that is known to be there."""
        record, start = b"", line
        for place, text in enumerate(raw.split(b"\n"), start=line):
            record = record + b"\n" + text if record else text
            if record.count(self._quote) % 2:
                continue
            if record not in {b"", b"\r"}:
                yield record, start
            record, start = b"", place + 1
        if record:
            yield record, start

    def _unreadable(self, raw: bytes, line: int, numbers: pl.Series | None, error: BaseException) -> ExportError:
        self._decoded(raw, line, numbers)
        found = self._fault(raw, line, numbers)
        if found is not None:
            return found
        shown = str(error).splitlines()[0][:200] if isinstance(error, pl.exceptions.PanicException) else ""
        return ExportError(f"{self._lines(raw, line)}: these records cannot be read as CSV. {shown}".rstrip())

    def _torn(self, raw: bytes, line: int, numbers: pl.Series | None) -> ExportError:
        found = self._fault(raw, line, numbers)
        if found is not None:
            return found
        return ExportError(
            f"{self._lines(raw, line)}: quotes and line ends do not fit together. "
            "A quote inside a field must be doubled, and the whole field be in quotes."
        )

    def _lines(self, raw: bytes, line: int) -> str:
        last = line + raw.count(b"\n")
        return f"{self.path}, lines {line} to {last}"

    def _fault(self, raw: bytes, line: int, numbers: pl.Series | None) -> ExportError | None:
        """The first record that has not as many fields as the header, or a quote where none may be."""
        parts = {b"q": re.escape(self._quote), b"d": re.escape(self._delimiter)}
        field = rb"(?:%(q)b(?:[^%(q)b]|%(q)b%(q)b)*%(q)b|(?!%(q)b)[^%(d)b\n]*)" % parts
        whole = re.compile(rb"%b(?:%b%b)*\r?" % (field, parts[b"d"], field))
        one = re.compile(rb"(?:^|%b)%b" % (parts[b"d"], field))
        for record, start in self._records(raw, line):
            place = start if numbers is None else numbers[start - line]
            if not whole.fullmatch(record):
                return ExportError(
                    f"{self.path}, line {place}: a quote inside a field. It must be doubled, and the whole field "
                    "be in quotes. If quotes mean nothing in this export, set csv.quote to a character that it lacks."
                )
            fields = len(one.findall(record))
            if fields != len(self.header):
                return ExportError(
                    f"{self.path}, line {place}: {_counted(fields, 'field')} where the header has {len(self.header)}. "
                    "Mend the line, or declare the right csv.delimiter and csv.quote."
                )
        return None

    def _endless(self, buffer: bytes, line: int) -> ExportError:
        """A quote that opens and does not close, or a single line without end. `buffer` begins with the record."""
        if self._quote in buffer:
            line += buffer.count(b"\n", 0, buffer.index(self._quote))
            return ExportError(
                f"{self.path}, line {line}: a quote opens here that never closes. Close it, or double it if it is part "
                "of the text; if quotes mean nothing in this export, set csv.quote to a character that it lacks."
            )
        return ExportError(
            f"{self.path}, line {line}: this line is longer than {MAX_RECORD_BYTES >> 20} MB. Is this a CSV file?"
        )

    def _decoded(self, raw: bytes, line: int, numbers: pl.Series | None) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            before = raw.count(b"\n", 0, error.start)
            place = line + before if numbers is None else numbers[before]
            byte = error.start - raw.rfind(b"\n", 0, error.start)
            raise ExportError(
                f"{self.path}, line {place}, byte {byte}: this is not UTF-8. Convert the export to UTF-8 first."
            ) from error


class ParquetExport:
    """A Parquet file, some 50,000 rows at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fingerprint: Fingerprint | None = None
        with _reading(path):
            try:
                self._schema = pl.read_parquet_schema(path)
                self._rows: int = pl.scan_parquet(path, glob=False).select(pl.len()).collect().item()
            except _POLARS_FAILED as error:
                raise self._corrupt(error) from error
        self.header = tuple(self._schema)
        _check_names(path, self.header)

    def blocks(self, columns: Sequence[str]) -> Iterator[Block]:
        """As `Export.blocks`, with exactly `columns`; values become text as polars writes them."""
        for column in columns:
            dtype = self._schema[column]
            if dtype.is_nested() or isinstance(dtype, pl.Binary | pl.Object | pl.Duration):
                raise ExportError(
                    f"{self.path}: column {column!r} is of type {dtype}, which has no plain text. "
                    "Leave it out by listing the wanted columns in columns.properties."
                )
        with _reading(self.path):
            before = self.path.stat()
        row = 1
        with _reading(self.path):
            try:
                scan = pl.scan_parquet(self.path, glob=False).select(
                    pl.col(name)
                    if isinstance(self._schema[name], pl.Date | pl.Datetime)
                    else pl.col(name).cast(pl.String)
                    for name in columns
                )
                for frame in scan.collect_batches(chunk_size=_PARQUET_ROWS, maintain_order=True):
                    if frame.height:
                        yield Block(frame, row, None)
                        row += frame.height
            except _POLARS_FAILED as error:
                raise self._corrupt(error) from error
        if row - 1 != self._rows:
            raise ExportError(f"{self.path}: {row - 1} rows could be read of {self._rows} that it announces.")
        self._fingerprint = fingerprint(self.path)
        if (self._fingerprint.size, self._fingerprint.mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise _changed(self.path)

    def fingerprint(self) -> Fingerprint:
        assert self._fingerprint is not None, "the last block has not been read"
        return self._fingerprint

    def _corrupt(self, error: BaseException) -> ExportError:
        return ExportError(
            f"{self.path} cannot be read as Parquet ({str(error).splitlines()[0][:200]}). Export or copy it again."
        )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Says which export it was that the operating system would not give."""
    try:
        yield
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror or error}.") from error


def _expanded(argument: Path) -> list[Path]:
    text = str(argument)
    if text == "-":
        raise ExportError("Standard input cannot be staged: after a crash it would be gone. Write it to a file first.")
    if argument.is_dir():
        paths = sorted(path for path in argument.iterdir() if _is_export(path))
        if not paths:
            raise ExportError(f"{argument} is a directory without exports: it holds no *.csv and no *.parquet file.")
        return paths
    if not argument.exists() and glob.has_magic(text):
        matches = glob.glob(text, recursive=True)  # noqa: PTH207  # takes absolute patterns, which Path.glob does not
        paths = sorted(path for path in map(Path, matches) if path.is_file())
        if not paths:
            raise ExportError(f"No file matches {text}. Check the pattern, or the directory it is run from.")
        return paths
    with _reading(argument):
        if not argument.exists():
            raise ExportError(f"{argument} does not exist. Check the name, or the directory it is run from.")
        mode = argument.stat().st_mode
    if not stat.S_ISREG(mode):
        raise ExportError(f"{argument} is no regular file. Only files can be read again; write it to one first.")
    return [argument]


def _is_export(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".") and path.suffix.casefold() in {".csv", ".parquet"}


def _unchanged(path: Path, before: os.stat_result, after: os.stat_result, sha256: str) -> Fingerprint:
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise _changed(path)
    return Fingerprint(path, after.st_size, after.st_mtime_ns, sha256)


def _changed(path: Path) -> ExportError:
    return ExportError(f"{path} changed while it was read. Wait until it is complete, then run again.")


def _check_names(path: Path, names: Sequence[str]) -> None:
    for position, name in enumerate(names, start=1):
        if not name:
            raise ExportError(f"{path}: column {position} has no name in the header. Give it one.")
        if name in islice(names, position - 1):
            raise ExportError(f"{path}: two columns are named {name!r} (the second is column {position}). Rename one.")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
