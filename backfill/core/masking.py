"""Masking: what the API or a token endpoint says, without the secrets and customers' values that it repeats.

Whatever a server says may quote what it was sent, in another spelling or in part. Only what leaves this room may be
kept or shown. What is masked, and so what may be relied on:

- of a secret of eight characters or more, every piece of eight characters; of a shorter one, the whole (from three);
- of a value, the whole from three characters on, and of a longer one also what begins or ends with twelve of them;
- in any mix of capitals and small letters, percent-encoded, escaped as JSON or HTML has it, up to three times over,
  with invisible characters strewn in; secrets also in base64 (at any place of a longer text) and in hex.

Nothing of eight characters can be told from a hash or an encryption of a secret; those pass.
"""

import re
import unicodedata
from base64 import b64encode
from collections.abc import Iterable, Iterator
from html import unescape
from typing import NamedTuple
from urllib.parse import quote_plus

MASK = "***"

MAX_SHOWN = 300
"""Characters shown: enough for a sentence of the API; more would be a page."""

MAX_READ = 4_000
"""Characters looked at. More than are shown, so that no value is cut in two before it can be recognised."""

_PIECE = 8
_SHORTEST = 3
"""Shorter ones would only mask parts of words."""

_ENDS = 12
_TAIL = 160
"""At the end of words that were cut, a piece may be too short to be known: so much is `_ENDS` characters, however
spelled."""

_LEVELS = 3


class Secrets:
    """What must never be shown. No representation tells it."""

    __slots__ = ("_pieces", "_wholes")

    def __init__(self, *secrets: str | None, names: Iterable[str | None] = ()) -> None:
        """`names`, such as a client id: masked as a whole only, since their parts may be plain words."""
        self._pieces: set[bytes] = set()
        self._wholes: set[bytes] = {
            _lower(_spelling(name).content) for name in names if name and len(name) >= _SHORTEST
        }
        for secret in secrets:
            if not secret or len(secret) < _SHORTEST:
                continue
            plain = secret.encode("utf-8", "surrogatepass")
            for form in _forms(plain, secret):
                if len(plain) >= _PIECE:
                    self._pieces.update(form[at : at + _PIECE] for at in range(len(form) - _PIECE + 1))
                else:
                    self._wholes.add(form)

    def __or__(self, other: "Secrets") -> "Secrets":
        both = Secrets()
        both._pieces = self._pieces | other._pieces
        both._wholes = self._wholes | other._wholes
        return both

    def __repr__(self) -> str:
        return "Secrets(...)"

    def within(self, text: str) -> bool:
        """Whether any of them stands in the text."""
        return any(True for level in _levels(text) for _ in self.spans(level))

    def spans(self, level: "_Spelling") -> Iterator[tuple[int, int]]:
        """Where they stand, as places of the text that was read."""
        content = level.content
        if self._pieces:
            for at in range(len(content) - _PIECE + 1):
                if content[at : at + _PIECE] in self._pieces:
                    yield level.place(at, at + _PIECE)
        for whole in self._wholes:
            yield from _found(whole, level)


NONE = Secrets()


def masked(words: str, values: Iterable[str], secrets: Secrets = NONE) -> str:
    """The words as they may be kept: secrets and values masked, nothing invisible, at most MAX_SHOWN characters."""
    cut = len(words) >= MAX_READ
    words = words[:MAX_READ]
    levels = _levels(words)
    needles = {_lower(_spelling(" ".join(value.split())).content) for value in values if len(value) >= _SHORTEST}
    needles.discard(b"")
    spans = [span for level in levels for span in secrets.spans(level)]
    spans += [span for level in levels for needle in needles for span in _found(needle, level, parts=True)]
    end = len(words) - _TAIL if cut else len(words)
    shown, at = "", 0
    for start, stop in sorted(spans):
        if start >= end:
            break
        if start >= at:
            shown += words[at:start] + (MASK if start > at or not shown else "")
        at = max(at, stop)
    shown += words[at:end]
    return visible(shown)[:MAX_SHOWN]


def visible(text: str) -> str:
    """The text on one line, in which nothing can move a cursor, change a direction or hide."""
    return " ".join("".join(_shown(character) for character in " ".join(text.split())).split())


def _shown(character: str) -> str:
    if character.isascii():
        return character if character >= " " and character != "\x7f" else "\ufffd"
    return "\ufffd" if unicodedata.category(character) in _INVISIBLE else character


_INVISIBLE = frozenset(("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"))


# -------------------------------------------------------------------------------------------------------- spellings


class _Spelling(NamedTuple):
    """A text in UTF-8 and small letters, perhaps unescaped: `starts` and `stops` say where each byte came from."""

    content: bytes
    starts: list[int]
    stops: list[int]

    def place(self, first: int, end: int) -> tuple[int, int]:
        return self.starts[first], self.stops[end - 1]


def _spelling(text: str) -> _Spelling:
    """The text as it stands, without what cannot be seen. Letters keep their case: base64 and escapes need it."""
    if text.isascii() and text.isprintable():
        return _Spelling(text.encode(), list(range(len(text))), list(range(1, len(text) + 1)))
    pieces = [
        (character.encode(), at)
        for at, character in enumerate(text)
        if character.isspace() or unicodedata.category(character) not in _INVISIBLE
    ]
    starts = [at for piece, at in pieces for _ in piece]
    return _Spelling(b"".join(piece for piece, _ in pieces), starts, [at + 1 for at in starts])


_ESCAPE = re.compile(
    rb"%([0-9a-fA-F]{2})|\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})|\\u([0-9a-fA-F]{4})"
    rb"|\\x([0-9a-fA-F]{2})|\\([\"'\\/])|(&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z]{2,8});)"
)


def _levels(text: str) -> list[_Spelling]:
    """The text as it stands, and unescaped once, twice, three times, as far as there is anything to unescape."""
    level = _spelling(text)
    levels = [level]
    while len(levels) <= _LEVELS and (next_level := _unescaped(level)) is not None:
        levels.append(level := next_level)
    return [_Spelling(_lower(level.content), level.starts, level.stops) for level in levels]


def _unescaped(level: _Spelling) -> _Spelling | None:
    content, starts, stops, at = bytearray(), [], [], 0
    for escape in _ESCAPE.finditer(level.content):
        meant = _meant(escape)
        content += level.content[at : escape.start()] + meant
        starts += level.starts[at : escape.start()] + [level.starts[escape.start()]] * len(meant)
        stops += level.stops[at : escape.start()] + [level.stops[escape.end() - 1]] * len(meant)
        at = escape.end()
    if at == 0:
        return None
    return _Spelling(bytes(content) + level.content[at:], starts + level.starts[at:], stops + level.stops[at:])


def _meant(escape: re.Match[bytes]) -> bytes:
    percent, high, low, unit, hexadecimal, plain, entity = escape.groups()
    if percent or hexadecimal:
        return bytes([int(percent or hexadecimal, 16)])
    if high:
        return chr(0x10000 + (int(high, 16) - 0xD800) * 0x400 + int(low, 16) - 0xDC00).encode()
    if unit:
        return chr(int(unit, 16)).encode("utf-8", "surrogatepass")
    return plain or unescape(entity.decode()).encode("utf-8", "surrogatepass")


def _lower(content: bytes) -> bytes:
    """Small letters, where they take as many bytes as the capitals: so no byte moves."""
    if content.isascii():
        return content.lower()
    text = content.decode("utf-8", "surrogateescape")
    return b"".join(_lower_character(character) for character in text)


def _lower_character(character: str) -> bytes:
    kept = character.encode("utf-8", "surrogateescape")
    small = character.lower().encode("utf-8", "surrogateescape")
    return small if len(small) == len(kept) else kept


def _forms(plain: bytes, secret: str) -> Iterator[bytes]:
    yield _lower(plain)
    if " " in secret:
        yield _lower(quote_plus(secret).encode())
    yield plain.hex().encode()
    for before in range(3):
        # Of a longer text in base64, the characters that depend on this part alone, wherever in it that begins.
        whole = b64encode(b"\0" * before + plain)
        settled = whole[-(-before * 8 // 6) : (before + len(plain)) * 8 // 6]
        yield _lower(settled)
        yield _lower(settled.translate(bytes.maketrans(b"+/", b"-_")))


def _found(needle: bytes, level: _Spelling, *, parts: bool = False) -> Iterator[tuple[int, int]]:
    """Where the needle stands; with `parts`, also where it only begins or ends."""
    content = level.content
    long = parts and len(needle) > _ENDS
    head = needle[:_ENDS] if long else needle
    at = content.find(head)
    while at >= 0:
        end = at + len(head)
        while end - at < len(needle) and end < len(content) and content[end] == needle[end - at]:
            end += 1
        yield level.place(at, end)
        at = content.find(head, at + 1)
    if long:
        foot = needle[-_ENDS:]
        at = content.find(foot)
        while at >= 0:
            start, left = at, len(needle) - _ENDS
            while left and start and content[start - 1] == needle[left - 1]:
                start, left = start - 1, left - 1
            yield level.place(start, at + _ENDS)
            at = content.find(foot, at + 1)
