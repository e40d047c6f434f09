"""Well-formed records, and the first one that is not."""

import pytest

from backfill.adapters.exports.faults import Dialect, Fault, bare_return, blanked, first_fault

COMMON = Dialect(",", '"')


@pytest.mark.parametrize(
    "text", ["", "a", 'a,"b"\n', '"a\n""b"",",c\r\n,,\n', '"",""', 'ä,"€"\n', '5" x,6" y\n', "\n\n"]
)
def test_records_in_order_are_well_formed(text: str) -> None:
    """Quotes around whole fields, doubled inside; one in a field that does not begin with it where that is allowed."""
    assert COMMON.is_well_formed(text.encode())
    if '"' in text:
        assert COMMON.around(text.encode()) == (None if '5"' in text else text.count('"') - text.count('""b""') * 2)
    assert first_fault(text.encode(), COMMON, 0) != Fault(0, None)


@pytest.mark.parametrize(
    "text", ['"a"b,c\n', '"a"b"c"\n', '"a,"b",c"\n', '"a" ,b\n', '"a\\"b"\n', '"a', "a\rb\n", 'x\n"a"b"c"\n']
)
def test_quotes_and_returns_out_of_order_are_seen(text: str) -> None:
    """By the fast check as by the slow one, which says where."""
    assert not COMMON.is_well_formed(text.encode())
    assert '"' not in text or COMMON.around(text.encode()) is None
    found = first_fault(text.encode(), COMMON, text.count(",") + 1)
    assert found == Fault(text.startswith("x"), None)


def test_any_ascii_character_may_be_a_delimiter_or_quote() -> None:
    """Those with a meaning in patterns, too."""
    for char in "^]-\\[&~|.*+?()$#\t ":
        other = "'" if char != "'" else '"'
        for dialect, text in (
            (Dialect(char, other), f"'a{char}b'{char}c\n"),
            (Dialect(",", char), f"{char}a,b{char},c\n"),
        ):
            assert dialect.is_well_formed(text.encode())
            assert first_fault(text.encode(), dialect, 2) is None
            assert first_fault(text.encode(), dialect, 3) == Fault(0, 2)


def test_where_quotes_mean_nothing_none_is_counted() -> None:
    """They are characters like others."""
    plain = Dialect(",", "")
    assert plain.quotes(b'a"b"') == 0
    assert first_fault(b'"a,b\nc"\n', plain, 2) == Fault(1, 1)


def test_blank_lines_are_no_records_but_lines() -> None:
    """The fault is told by the line on which its record begins."""
    assert first_fault(b'a,b\n\n\r\n"x\n\ny",b\nc\n', COMMON, 2) == Fault(6, 1)


def test_a_lone_return_counts_outside_quotes_only() -> None:
    """Inside it is part of a value."""
    assert bare_return(b'"a\rb",c\r\n', COMMON) is None
    assert bare_return(b'"a\rb",c\rd\r\n', COMMON) == 7
    assert bare_return(b"a,b\r", COMMON) == 3


def test_comments_become_blank_lines() -> None:
    """So that lines keep their numbers; not inside quotes, not behind a blank, and not before their end is known."""
    text = b'#a"\nb,"c\n#d"\n #e\n#f'
    assert blanked(text, b"#", COMMON, is_end=False) == b'\nb,"c\n#d"\n #e\n#f'
    assert blanked(text, b"#", COMMON, is_end=True) == b'\nb,"c\n#d"\n #e\n'
    assert blanked(b"a,b#\n", b"#", COMMON, is_end=True) is None
