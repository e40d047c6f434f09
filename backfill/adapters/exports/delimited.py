"""Reads CSV, some 8 MB at once, cut at a line end outside quotes.

A record is never lost, padded or shifted in silence: what cannot be read as the configuration says is an error with
file and line. Never judges a value.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from backfill.adapters.exports.content import Content, reading
from backfill.adapters.exports.decoding import Source, Transcoded, WithoutFooter, marked
from backfill.adapters.exports.export import POLARS_FAILED, Block, Fingerprint, without_words
from backfill.adapters.exports.faults import Dialect, bare_return, blanked, first_fault
from backfill.adapters.exports.foreign import recognised
from backfill.core import header as headers
from backfill.core.config import Csv
from backfill.core.errors import ExportError
from backfill.core.limits import CSV_BLOCK_BYTES, MAX_RECORD_BYTES

_BOM = b"\xef\xbb\xbf"
_BEGINNING_BYTES = 1 << 16
_FOOTER_LINES = 20  # a fault so near to the end may be a footnote


class CsvExport:
    """A CSV file."""

    def __init__(self, path: Path, options: Csv, *, block_bytes: int = CSV_BLOCK_BYTES) -> None:
        self.path = path
        self.beginning: tuple[str, ...] = ()
        self._options = options
        self._dialect = Dialect(options.delimiter, options.quote)
        self._comment = (options.comment or "").encode()
        self._block_bytes = block_bytes
        self._mark_bytes = 0
        self._ends_in_line = False  # the last line has no line end
        self._fingerprint: Fingerprint | None = None
        self.header = tuple(options.header) if isinstance(options.header, list) else self._read_header()

    def blocks(self, columns: Sequence[str]) -> Iterator[Block]:
        """As `Export.blocks`, with all columns: only with all of them the fields of a record can be counted."""
        row, is_header = 1, self._options.header is True
        raw_blocks = self._raw_blocks()
        for raw, line in raw_blocks:
            rest, start = raw, line
            if is_header:
                end = self._header_end(raw)
                if end is None:
                    continue
                rest, start, is_header = raw[end:], line + raw.count(b"\n", 0, end), False
            if not rest:
                continue
            try:
                frame, lines = self._parse(rest, start)
            except _Misshapen as fault:
                follows = next(raw_blocks, None)
                raise self._misshapen(fault, rest, start, is_last=follows is None) from fault
            if not frame.height:
                continue
            if row == 1 and self._options.header is not True:
                self._check_not_header(frame.row(0), int(lines[0]))
            yield Block(without_words(frame, self._options.null_values), row, lines)
            row += frame.height

    def fingerprint(self) -> Fingerprint:
        assert self._fingerprint is not None, "the last block has not been read"
        return self._fingerprint

    # ------------------------------------------------------------------------------------------------------- header

    def _read_header(self) -> tuple[str, ...]:
        for raw, line in self._raw_blocks():
            end = self._header_end(raw)
            if end is not None:
                return self._parse_header(raw[:end], line)
        raise ExportError(
            f"{self.path} has no header: there is nothing but blank lines"
            + (
                " behind what csv.skip_lines, csv.skip_footer and csv.comment leave out. Set these anew."
                if self._leaves_out
                else " in it. Export it again, or leave it out."
            )
        )

    @property
    def _leaves_out(self) -> bool:
        return bool(self._options.skip_lines or self._options.skip_footer or self._comment)

    def _header_end(self, raw: bytes) -> int | None:
        """Where the header's record ends. Blank lines before it are no header; None if there is nothing else."""
        end = 0
        while end < len(raw):
            start, end = end, (raw.find(b"\n", end) + 1) or len(raw)
            while self._dialect.quotes(raw, start, end) % 2 and end < len(raw):
                end = (raw.find(b"\n", end) + 1) or len(raw)
            if raw[start:end].strip(b"\r\n"):
                return end
        return None

    def _parse_header(self, record: bytes, line: int) -> tuple[str, ...]:
        self._check_bytes(record, line)
        text = io.StringIO(self._decoded(record, line, None), newline="")
        reader = csv.reader(
            text,
            delimiter=self._options.delimiter,
            quotechar=self._options.quote or None,
            quoting=csv.QUOTE_MINIMAL if self._options.quote else csv.QUOTE_NONE,
            strict=True,
        )
        try:
            names, *more = [fields for fields in reader if fields]
        except csv.Error as error:
            raise ExportError(
                f"{self.path}, line {line}: the header cannot be read ({error}). Mend it, or name the columns by "
                "csv.skip_lines and csv.header."
            ) from error
        if more:
            # A quote inside a name seemed to open one that goes on in the lines below: they would be lost.
            raise ExportError(
                f"{self.path}, line {line}: a quote inside a column's name. It must be doubled, and the whole name be "
                'in quotes. If quotes mean nothing in this export, set csv.quote = "".'
            )
        headers.check(names, str(self.path))
        return tuple(names)

    def _check_not_header(self, first: Sequence[str | None], line: int) -> None:
        if [(value or "").casefold() for value in first] == [name.casefold() for name in self.header]:
            raise ExportError(
                f"{self.path}, line {line}: the first record is a header with the very names of csv.header. "
                f"Take csv.header out, or leave that line out by csv.skip_lines = {line}."
            )

    # ------------------------------------------------------------------------------------------------- bytes to blocks

    def _source(self, content: Content) -> Source:
        """The text of the table as UTF-8."""
        encoding, self._mark_bytes = marked(content.head) or (self._options.encoding, 0)
        if what := recognised(content.head, may_be_json=self._options.header is not True):
            raise ExportError(f"{self.path} is {what}.")
        if not content.head[self._mark_bytes :] and not self._mark_bytes:
            raise ExportError(f"{self.path} is empty: it has not even a header. Export it again, or leave it out.")
        if encoding in {"utf-16", "utf-32"}:
            raise ExportError(
                f"{self.path} has no byte order mark, so which {encoding.upper()} it is cannot be seen. "
                f'Set csv.encoding to "{encoding}-le" (from Windows, most likely) or "{encoding}-be".'
            )
        content.skip_head(self._mark_bytes)
        source: Source = content
        if encoding != "utf-8":
            source = Transcoded(content, encoding, self.path, mark_bytes=self._mark_bytes)
        if self._options.skip_footer:
            source = WithoutFooter(source, self._options.skip_footer, self.path)
        return source

    def _raw_blocks(self) -> Iterator[tuple[bytes, int]]:
        """Whole records, some block_bytes at once, each with the line on which it starts."""
        # One buffer for all blocks: a new one each time is as much work for the kernel as reading it.
        buffer, held, line = bytearray(self._block_bytes), 0, 1
        skip = self._options.skip_lines
        with reading(self.path), Content(self.path) as content:
            source = self._source(content)
            while count := source.readinto(memoryview(buffer)[held:]):
                held += count
                if line == 1:
                    self._remember_beginning(buffer, held)
                if skip:
                    held, skipped = self._skip(buffer, held, skip)
                    line, skip = line + skipped, skip - skipped
                if self._comment and not skip:
                    held = self._blank_comments(buffer, held, is_end=False)
                end = 0 if skip else self._last_record_end(buffer, held)
                if end:
                    block = bytes(memoryview(buffer)[:end])
                    yield block, line
                    line += block.count(b"\n")
                    buffer[: held - end] = buffer[end:held]
                    held -= end
                elif held > MAX_RECORD_BYTES:
                    raise self._endless(bytes(buffer[:held]), line)
                if held > len(buffer) // 2:
                    buffer.extend(bytes(len(buffer)))
            seen = content.fingerprint()
        if self._comment and not skip:
            held = self._blank_comments(buffer, held, is_end=True)
        rest = b"" if skip else bytes(buffer[:held])
        if skip > 1 or (skip and not held):
            raise ExportError(
                f"{self.path} has no more than {self._options.skip_lines - skip + bool(held)} lines, "
                f"and csv.skip_lines = {self._options.skip_lines} leaves out all of them."
            )
        if self._dialect.quotes(rest) % 2:
            raise self._endless(rest, line)
        self._ends_in_line = bool(rest)
        if rest:
            yield rest, line
        self._fingerprint = seen

    def _remember_beginning(self, buffer: bytearray, held: int) -> None:
        self.beginning = tuple(bytes(buffer[: min(held, _BEGINNING_BYTES)]).decode(errors="replace").split("\n"))

    @staticmethod
    def _skip(buffer: bytearray, held: int, most: int) -> tuple[int, int]:
        """Leave out up to `most` whole lines; how much is held then, and how many lines those were."""
        end = skipped = 0
        while skipped < most and (found := buffer.find(b"\n", end, held) + 1):
            end, skipped = found, skipped + 1
        buffer[: held - end] = buffer[end:held]
        return held - end, skipped

    def _blank_comments(self, buffer: bytearray, held: int, *, is_end: bool) -> int:
        without = blanked(memoryview(buffer)[:held].tobytes(), self._comment, self._dialect, is_end=is_end)
        if without is None:
            return held
        buffer[: len(without)] = without
        return len(without)

    def _last_record_end(self, buffer: bytearray, size: int) -> int:
        """The end of the last line that ends outside quotes, in the first `size` bytes; 0 if there is none."""
        inside = self._dialect.quotes(buffer, 0, size) % 2
        end, known = buffer.rfind(b"\n", 0, size) + 1, size
        while end:
            inside = (inside + self._dialect.quotes(buffer, end, known)) % 2
            if not inside:
                return end
            end, known = buffer.rfind(b"\n", 0, end - 1) + 1, end
        return 0

    # ---------------------------------------------------------------------------------------------- block to records

    def _parse(self, raw: bytes, line: int) -> tuple[pl.DataFrame, pl.Series]:
        """The records of whole lines, and where each starts. Nothing that polars lost, added or padded gets through."""
        returns = self._check_bytes(raw, line)
        numbers: pl.Series | None = None  # where the lines of `raw` stand in the file, if not one after another
        if self._may_be_blank(raw[:2]):
            raw, numbers = self._without_blank_lines(raw, line)
        frame = self._read(raw, line, numbers)
        # A blank line reads as a record without values. Where a column has all its values, there is none.
        if numbers is None and all(frame.null_count().row(0)) and (b"\n\n" in raw or b"\n\r\n" in raw):
            raw, numbers = self._without_blank_lines(raw, line)
            frame = self._read(raw, line, numbers)
        if frame.is_empty():
            return frame, pl.Series([], dtype=pl.Int64)
        # polars pads a short record in silence, so the line ends and delimiters are counted against what it read.
        # Those inside quotes are in the values. If no line end can be, none is looked for.
        quoted = bool(self._dialect.quote) and self._dialect.quote in raw
        ends = raw.count(b"\n") + (not raw.endswith(b"\n"))
        newlines = self._inside(frame, "\n") if quoted and (ends != frame.height or frame.width == 1) else None
        within = 0 if newlines is None else newlines.sum()
        if frame.height + within != ends:
            raise _Misshapen(raw, numbers)
        if self._delimiters(raw, frame, quoted=quoted, returns=returns) != frame.height * (frame.width - 1):
            raise _Misshapen(raw, numbers)
        starts = pl.int_range(frame.height, dtype=pl.Int64, eager=True)
        if newlines is not None and within:
            starts = starts + newlines.cum_sum().shift(1, fill_value=0)
        return frame, starts + line if numbers is None else numbers.gather(starts)

    def _read(self, raw: bytes, line: int, numbers: pl.Series | None) -> pl.DataFrame:
        if not raw:
            return pl.DataFrame(schema=dict.fromkeys(self.header, pl.String))
        has_header = raw.startswith(_BOM)
        text = raw
        if has_header:
            # polars would take it for a mark; it is a character here. A header of our own stands before it.
            text = self._dialect.delimiter.join(b"c%d" % n for n in range(len(self.header))) + b"\n" + raw
        try:
            frame = pl.read_csv(
                text,
                has_header=has_header,
                schema=dict.fromkeys((f"c{n}" for n in range(len(self.header))), pl.String),
                separator=self._options.delimiter,
                quote_char=self._options.quote or None,
            )
        except POLARS_FAILED as error:
            self._decoded(raw, line, numbers)
            raise _Misshapen(raw, numbers, error) from error
        frame.columns = list(self.header)
        return frame

    def _delimiters(self, raw: bytes, frame: pl.DataFrame, *, quoted: bool, returns: bool) -> int | None:
        """How many delimiters stand between the fields of `raw`; None if its quotes are not in order."""
        around = self._dialect.around(raw) if quoted else 0
        if around is not None and not returns:
            # Whatever is neither value nor quote nor line end is a delimiter; to count those takes ten times as long.
            values = int(frame.select(pl.sum_horizontal(pl.all().str.len_bytes().sum())).item() or 0)
            line_ends = frame.height - (not raw.endswith(b"\n"))
            return len(raw) - values - line_ends - around
        if around is None and not self._dialect.is_well_formed(raw):
            return None
        inside = int(self._inside(frame, self._options.delimiter).sum()) if quoted else 0
        return raw.count(self._dialect.delimiter) - inside

    @staticmethod
    def _inside(frame: pl.DataFrame, text: str) -> pl.Series:
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
        inside = 0
        for place, text in enumerate(raw.removesuffix(b"\n").split(b"\n"), start=line):
            if not inside and text in {b"", b"\r"}:
                continue
            kept.append(text)
            places.append(place)
            inside ^= self._dialect.quotes(text) % 2
        end = b"\n" if kept and raw.endswith(b"\n") else b""
        return b"\n".join(kept) + end, pl.Series(places, dtype=pl.Int64)

    # -------------------------------------------------------------------------------------------------------- faults

    def _check_bytes(self, raw: bytes, line: int) -> bool:
        """Nothing that text does not hold: it would pass as a character of a value. Says whether there is any CR."""
        if b"\0" in raw:
            place = line + raw.count(b"\n", 0, raw.index(b"\0"))
            raise ExportError(
                f"{self.path}, line {place}: a NUL byte, which text never holds. Either the file was damaged, or it is "
                'UTF-16 without a byte order mark: then set csv.encoding = "utf-16-le".'
            )
        if b"\r" not in raw:
            return False
        bare = bare_return(raw, self._dialect)
        if bare is not None:
            place = line + raw.count(b"\n", 0, bare)
            raise ExportError(
                f"{self.path}, line {place}: a carriage return (CR) that no line feed (LF) follows, outside quotes. "
                "Lines must end in LF or CRLF: convert the export, or quote that field."
            )
        return True

    def _decoded(self, raw: bytes, line: int, numbers: pl.Series | None) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            before = raw.count(b"\n", 0, error.start)
            place = line + before if numbers is None else numbers[before]
            byte = error.start - raw.rfind(b"\n", 0, error.start) + (self._mark_bytes if place == 1 else 0)
            raise ExportError(
                f"{self.path}, line {place}, byte {byte}: 0x{raw[error.start]:02X} is not UTF-8. Declare the export's "
                'encoding: csv.encoding = "windows-1252" if it comes from Windows in a Western language, or "latin-1"; '
                "or export it as UTF-8."
            ) from error

    def _misshapen(self, fault: "_Misshapen", rest: bytes, line: int, *, is_last: bool) -> ExportError:
        raw, numbers = fault.raw, fault.numbers
        found = first_fault(raw, self._dialect, len(self.header))
        if found is None:
            reason = fault.error
            said = str(reason).splitlines()[0][:200] if isinstance(reason, pl.exceptions.PanicException) else ""
            last = line + rest.count(b"\n")
            return ExportError(
                f"{self.path}, lines {line} to {last}: quotes and line ends do not fit together. "
                f"A quote inside a field must be doubled, and the whole field be in quotes. {said}".rstrip()
            )
        place = line + found.line if numbers is None else int(numbers[found.line])
        at = f"{self.path}, line {place}"
        if found.fields is None:
            return ExportError(
                f"{at}: a quote inside a field. It must be doubled, and the whole field be in quotes. "
                'If quotes mean nothing in this export, set csv.quote = "".'
            )
        names = "the header has" if self._options.header is True else "csv.header names"
        count = f"{found.fields} field" if found.fields == 1 else f"{found.fields} fields"
        after = rest.rstrip(b"\r\n").count(b"\n") - (place - line) if is_last else _FOOTER_LINES
        if is_last and after == 0 and self._ends_in_line and found.fields < len(self.header):
            hint = "The file ends within this line: it was cut off. Export or copy it again."
        elif after < _FOOTER_LINES and found.fields < len(self.header):
            footer = self._options.skip_footer + after + 1
            hint = (
                f"Mend the line; or if the table ends before it and this is a footnote, set csv.skip_footer = {footer}."
            )
        else:
            hint = "Mend the line, or declare the right csv.delimiter and csv.quote."
        return ExportError(f"{at}: {count} where {names} {len(self.header)}. {hint}")

    def _endless(self, buffer: bytes, line: int) -> ExportError:
        """A quote that opens and does not close, or a single line without end. `buffer` begins with the record."""
        if self._dialect.quotes(buffer):
            line += buffer.count(b"\n", 0, buffer.index(self._dialect.quote))
            return ExportError(
                f"{self.path}, line {line}: a quote opens here that never closes. Close it, or double it if it is part "
                'of the text; if quotes mean nothing in this export, set csv.quote = "". '
                "If the file was cut off, export or copy it again."
            )
        return ExportError(
            f"{self.path}, line {line}: this line is longer than {MAX_RECORD_BYTES >> 20} MB. Is this a CSV file?"
        )


class _Misshapen(Exception):
    """These records are not what the header announces.

    `raw` is without blank lines if `numbers` says where its lines stand in the file.
    """

    def __init__(self, raw: bytes, numbers: pl.Series | None, error: BaseException | None = None) -> None:
        super().__init__()
        self.raw = raw
        self.numbers = numbers
        self.error = error
