"""Text of other encodings as UTF-8, and footers left out, at any size of pieces."""

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backfill.adapters.exports.decoding import Transcoded, WithoutFooter, marked
from backfill.core.errors import ExportError

PATH = Path("june.csv")


class Dripping:
    """Bytes that come a few at a time, as from a slow disk."""

    def __init__(self, content: bytes, step: int) -> None:
        self._file, self._step = io.BytesIO(content), step

    def readinto(self, target: memoryview) -> int:
        return self._file.readinto(target[: self._step])


def drained(source: Transcoded | WithoutFooter, size: int) -> bytes:
    target, found = bytearray(size), b""
    while count := source.readinto(memoryview(target)):
        found += target[:count]
    return found


@given(
    text=st.text(st.sampled_from(list("aä€😀\n\r,"))),
    encoding=st.sampled_from(["utf-16-le", "utf-16-be", "utf-32-le", "shift_jis", "gb18030"]),
    step=st.integers(1, 9),
    size=st.integers(1, 9),
)
def test_text_comes_out_as_utf8(text: str, encoding: str, step: int, size: int) -> None:
    """Though characters are cut anywhere on the way in and out."""
    known = text.encode(encoding, "ignore")
    assert drained(Transcoded(Dripping(known, step), encoding, PATH), size) == known.decode(encoding).encode()


@pytest.mark.parametrize("step", [1, 3, 100])
@pytest.mark.parametrize(
    ("encoding", "content", "said"),
    [
        ("cp1252", "ab\näö".encode("cp1252") + b"\x81", "line 2, byte 3: 0x81"),
        ("utf-16-le", "a\nbc".encode("utf-16-le") + b"\x00\xdcx\x00", "line 2, byte 5: 0x00DC"),
        ("utf-16-le", "a\nbc".encode("utf-16-le") + b"x", "line 2, byte 5: the file ends in the middle"),
        ("iso8859-1", b"a\n\n\xe4\x80", "line 3, byte 2: byte 0x80"),
        ("ascii", b"a\n\xe4", "line 2, byte 1: 0xE4"),
    ],
)
def test_what_is_no_text_of_that_encoding_is_named_by_line_and_byte(
    encoding: str, content: bytes, said: str, step: int
) -> None:
    """Counted in the file's own bytes."""
    with pytest.raises(ExportError) as caught:
        drained(Transcoded(Dripping(content, step), encoding, PATH), 50)
    assert f"june.csv, {said}" in caught.value.message


def test_a_mark_names_the_encoding() -> None:
    """UTF-32 before UTF-16, whose mark it begins with."""
    assert marked("a".encode("utf-16")) == ("utf-16-le", 2)
    assert marked("a".encode("utf-32")) == ("utf-32-le", 4)
    assert marked("a".encode("utf-8-sig")) == ("utf-8", 3)
    assert marked(b"a,b") is None


@given(
    lines=st.lists(st.sampled_from(["a", "bb", "", "\r"]), max_size=12),
    count=st.integers(1, 4),
    last=st.booleans(),
    step=st.integers(1, 5),
    size=st.integers(1, 5),
)
def test_a_footer_is_so_many_lines_that_hold_something(
    lines: list[str], count: int, last: bool, step: int, size: int
) -> None:
    """With the blank lines behind and between them; the lines before stay to the byte."""
    content = "\n".join(lines) + "\n" * last
    found = drained(WithoutFooter(Dripping(content.encode(), step), count, PATH), size).decode()
    filled = [number for number, line in enumerate(lines) if line.strip()]
    kept = lines[: filled[-count]] if len(filled) >= count else []
    assert found == "".join(line + "\n" for line in kept)
