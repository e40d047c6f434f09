"""Files that are no exports, told by how they begin."""

import pytest

from backfill.adapters.exports.foreign import recognised


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"BZh91AY", "bzip2"),
        (b"\xef\xbb\xbf \n<!doctype HTML>", "web page"),
        (b"<html lang=en>", "web page"),
        (b"<?xml version='1.0'?>", "XML"),
        (b'[{"a": 1}]', "JSON"),
        (b'{\n "a": 1}', "JSON"),
        (b"[]", "JSON"),
        (b"PAR1\x15", "Parquet"),
        (b"%PDF-1.4", "PDF"),
    ],
)
def test_it_is_told_what_it_is(head: bytes, said: str) -> None:
    """With what to do instead."""
    assert said in (recognised(head, may_be_json=False) or "")


@pytest.mark.parametrize("head", [b"a,b\n", b"<a>,b\n", b"[a],b\n", b"{a},b\n", b"PK,b\n", b"", b"\xef\xbb\xbfa"])
def test_what_may_be_a_table_is_let_be(head: bytes) -> None:
    """A column may have an odd name."""
    assert recognised(head, may_be_json=False) is None


def test_json_may_be_a_record_where_no_header_is_expected() -> None:
    """One column of JSON, say."""
    assert recognised(b'{"a": 1}\n', may_be_json=True) is None
