"""An export's text as UTF-8, whatever encoding it has: by its byte order mark, or as declared. Never a guess.

Holds back the lines of a footer as well, since only here the end of the text is seen before it is read on.
"""

import codecs
import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Protocol

from backfill.core.errors import ExportError
from backfill.core.limits import MAX_RECORD_BYTES

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16: it begins with the same two bytes
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_CHUNK_BYTES = 1 << 20
_C1 = re.compile(b"\xc2[\x80-\x9f]")  # control characters that no text has, in UTF-8


class Source(Protocol):
    """Bytes that come one after another."""

    def readinto(self, target: memoryview) -> int:
        """Fill `target` with what comes next; 0 at the end."""


def marked(head: bytes) -> tuple[str, int] | None:
    """The encoding that a byte order mark names, and the length of the mark."""
    return next(((encoding, len(mark)) for mark, encoding in _MARKS if head.startswith(mark)), None)


class _Handed(ABC):
    """Hands on what `_next` makes, filling whatever it is given: small pieces are slow to parse."""

    def __init__(self) -> None:
        self._ready = memoryview(b"")
        self._ended = False

    @abstractmethod
    def _next(self) -> bytes:
        """The next piece, perhaps an empty one; sets `_ended` with the last."""

    def readinto(self, target: memoryview) -> int:
        filled = 0
        while filled < len(target) and (self._ready or not self._ended):
            if not self._ready:
                self._ready = memoryview(self._next())
            count = min(len(self._ready), len(target) - filled)
            target[filled : filled + count] = self._ready[:count]
            self._ready = self._ready[count:]
            filled += count
        return filled


class Transcoded(_Handed):
    """Text of another encoding as UTF-8. Raises ExportError with line and byte where it is not of that encoding."""

    def __init__(self, source: Source, encoding: str, path: Path, *, mark_bytes: int = 0) -> None:
        super().__init__()
        self._source = source
        self._encoding = encoding
        self._path = path
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._chunk = bytearray(_CHUNK_BYTES)
        self._line = 1
        self._line_bytes = mark_bytes  # of the unfinished line, in the file's own encoding

    def _next(self) -> bytes:
        count = self._source.readinto(memoryview(self._chunk))
        self._ended = count == 0
        raw = bytes(self._chunk[:count])
        try:
            text = self._decoder.decode(raw, final=self._ended)
        except UnicodeDecodeError as error:
            # The decoder's input begins with what it kept of the chunk before.
            good = error.object[: error.start].decode(self._encoding)
            self._count(good)
            raise self._undecodable(error.object[error.start : error.end]) from error
        utf8 = text.encode()
        if self._encoding == "iso8859-1" and (found := _C1.search(utf8)):
            self._count(utf8[: found.start()].decode())
            raise ExportError(
                f"{self._at()}: byte 0x{utf8[found.start() + 1]:02X} is a control character in Latin-1. "
                'Most likely the export is Windows-1252: set csv.encoding = "windows-1252".'
            )
        self._count(text)
        return utf8

    def _count(self, text: str) -> None:
        """Go on to the end of `text`, which is good."""
        lines = text.count("\n")
        if lines:
            self._line += lines
            self._line_bytes = 0
            text = text[text.rfind("\n") + 1 :]
        self._line_bytes += len(text.encode(self._encoding))

    def _at(self) -> str:
        return f"{self._path}, line {self._line}, byte {self._line_bytes + 1}"

    def _undecodable(self, bad: bytes) -> ExportError:
        if self._ended and not self._encoding.startswith(("cp", "iso")):
            return ExportError(f"{self._at()}: the file ends in the middle of a character. Export or copy it again.")
        return ExportError(
            f"{self._at()}: 0x{bad[:4].hex().upper()} is no character in {self._encoding}. "
            "Declare the export's encoding by csv.encoding, or mend this place."
        )


class WithoutFooter(_Handed):
    """Everything but the last `lines` lines; blank lines at the very end are not counted, and go as well."""

    def __init__(self, source: Source, lines: int, path: Path) -> None:
        super().__init__()
        self._source = source
        self._lines = lines
        self._path = path
        self._chunk = bytearray(_CHUNK_BYTES)
        self._held = b""  # read, and perhaps a part of the footer

    def _next(self) -> bytes:
        count = self._source.readinto(memoryview(self._chunk))
        self._held += self._chunk[:count]
        self._ended = count == 0
        end = self._footer_start()
        if len(self._held) - end > MAX_RECORD_BYTES:
            raise ExportError(f"{self._path} has a line longer than {MAX_RECORD_BYTES >> 20} MB. Is this a CSV file?")
        ready, self._held = self._held[:end], self._held[end:]
        return ready

    def _footer_start(self) -> int:
        """Where the last `lines` lines begin that hold something, among what is held."""
        end = len(self._held)
        for _ in range(self._lines):
            while end and self._held[end - 1] in b"\r\n":
                end -= 1
            start = self._held.rfind(b"\n", 0, end) + 1
            if not start:
                return 0
            end = start
        return end
