"""How records must be written, and the first one that is not.

`Dialect` looks at every byte and is fast. What finds a fault goes record by record in Python: only where
one is known to be there, so it may be slow. Never shows a value.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

import polars as pl

_LF, _CR = 10, 13


class Dialect:
    """How records are written. `quote` is empty where quotes mean nothing."""

    def __init__(self, delimiter: str, quote: str) -> None:
        self.delimiter = delimiter.encode()
        self.quote = quote.encode()
        d, q = f"\\x{ord(delimiter):02x}", f"\\x{ord(quote or delimiter):02x}"
        field = f"(?:{q}(?:[^{q}]|{q}{q})*{q}|(?:[^{q}{d}\\r\\n][^{d}\\r\\n]*)?)"
        record = f"{field}(?:{d}{field})*\\r?"
        self._records = f"\\A(?:{record}\\n)*(?:{record})?\\z"

    def quotes(self, text: bytes | bytearray, start: int = 0, end: int | None = None) -> int:
        """How many quotes stand in `text[start:end]`."""
        return text.count(self.quote, start, end) if self.quote else 0

    def around(self, raw: bytes) -> int | None:
        """How many quotes stand around fields or double another; None if one stands neither so nor so.

        `raw`: whole records. Looks at each quote and its neighbours at once: this is a twentieth of the parsing.
        """
        import numpy as np  # here: what reads no quotes need not load it

        text = np.frombuffer(raw, np.uint8)
        places = np.flatnonzero(text == self.quote[0])
        if len(places) % 2:
            return None
        opening, closing = places[0::2], places[1::2]
        again = closing[:-1] + 1 == opening[1:]
        before, after = text[opening - 1], text[np.minimum(closing + 1, len(text) - 1)]
        opens = (before == self.delimiter[0]) | (before == _LF)
        closes = (after == self.delimiter[0]) | (after == _LF) | (after == _CR)
        opens[0] |= opening[0] == 0
        closes[-1] |= closing[-1] == len(text) - 1
        opens[1:] |= again
        closes[:-1] |= again
        return len(places) - int(np.count_nonzero(again)) if opens.all() and closes.all() else None

    def is_well_formed(self, raw: bytes) -> bool:
        """Whether quotes stand around whole fields, doubled inside such, or in fields that do not begin with one.

        polars drops others in silence: it reads `"a"b"c"` as abc. `raw`: whole records, in UTF-8. One pass of a finite
        automaton, which takes as long as the parsing.
        """
        return bool(pl.Series([raw.decode()]).str.contains(self._records)[0])


class Fault(NamedTuple):
    """The record that begins at the line with this index (from 0): it has so many fields, or None for quotes that
    do not fit."""

    line: int
    fields: int | None


def first_fault(raw: bytes, dialect: Dialect, width: int) -> Fault | None:
    """The first record that has not `width` fields, or a quote where none may be. `raw`: whole records."""
    delimiter, quote = re.escape(dialect.delimiter), re.escape(dialect.quote)
    field = b"[^%b\r\n]*" % delimiter
    if quote:
        field = b"(?:%b(?:[^%b]|%b%b)*%b|(?!%b)%b)" % (quote, quote, quote, quote, quote, quote, field)
    whole = re.compile(b"%b(?:%b%b)*\r?" % (field, delimiter, field))
    one = re.compile(b"(?:^|%b)%b" % (delimiter, field))
    for line, record in _records(raw, dialect):
        if not whole.fullmatch(record):
            return Fault(line, None)
        fields = len(one.findall(record))
        if fields != width:
            return Fault(line, fields)
    return None


def _records(raw: bytes, dialect: Dialect) -> Iterator[tuple[int, bytes]]:
    """Record by record with the index of its first line; blank lines are none."""
    start = line = begun = 0  # of the record; the line that is looked at
    at, inside = 0, 0
    while at < len(raw):
        end = raw.find(b"\n", at)
        end = len(raw) if end < 0 else end
        inside ^= dialect.quotes(raw, at, end) % 2
        if not inside:
            record = raw[start:end]
            if record not in {b"", b"\r"}:
                yield begun, record
            start, begun = end + 1, line + 1
        at, line = end + 1, line + 1
    if start < len(raw):
        yield begun, raw[start:]


def bare_return(raw: bytes, dialect: Dialect) -> int | None:
    """Where the first CR stands outside quotes that is not half of a line end. `raw` begins outside quotes."""
    if raw.count(b"\r") == raw.count(b"\r\n"):
        return None
    inside = known = 0
    for found in re.finditer(b"\r(?!\n)", raw):
        inside ^= dialect.quotes(raw, known, found.start()) % 2
        known = found.start()
        if not inside:
            return known
    return None


def blanked(text: bytes | bytearray, comment: bytes, dialect: Dialect, *, is_end: bool) -> bytes | None:
    """`text` with blank lines in place of comments, so that lines keep their numbers; None if there are none.

    It begins with a record. A comment without line end is left alone unless the file is at its end.
    """
    kept: list[bytes] = []
    inside = known = taken = 0
    for found in re.finditer(b"(?m)^" + re.escape(comment), text):
        start = found.start()
        if start < taken:
            continue
        inside ^= dialect.quotes(text, known, start) % 2
        known = start
        if inside:
            continue
        end = text.find(b"\n", start)
        if end < 0 and not is_end:
            break
        end = len(text) if end < 0 else end
        kept.append(bytes(text[taken:start]))
        taken = known = end
    return b"".join((*kept, text[taken:])) if taken else None
