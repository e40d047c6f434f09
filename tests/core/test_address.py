"""Addresses as values: what they say, and what is refused without repeating a secret."""

import pytest

from backfill.core.address import Seen, is_address, parse_address


@pytest.mark.parametrize(
    "text", ["s3://bucket/june.csv", "gs://b/a folder/x[1].csv", "az://c/*.csv", "s3://bucket/", "s3://b/ä?.csv"]
)
def test_an_address_is_kept_to_the_character(text: str) -> None:
    """With both slashes and all that the key holds."""
    assert is_address(text)
    assert str(parse_address(text)) == text


@pytest.mark.parametrize("text", ["june.csv", "/s3://x", "https://host/x.csv", "s3:/bucket/x", "C://x"])
def test_other_texts_are_no_addresses(text: str) -> None:
    """They stay paths."""
    assert not is_address(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("s3://key:SECRET@bucket/x.csv", "environment"),
        ("s3:///x.csv", "bucket's name"),
        ("s3://bucket/x.csv?X-Amz-Signature=SECRET", "query"),
        ("s3://bucket/a//b.csv", "empty part"),
        ("s3://bucket/../b.csv", "empty part"),
        ("s3://bucket/a\nb.csv", "control character"),
    ],
)
def test_what_cannot_be_read_or_holds_a_secret_is_refused_unrepeated(text: str, said: str) -> None:
    """An address is shown in logs and in the ledger, so nothing secret may get into one."""
    with pytest.raises(ValueError, match=said) as caught:
        parse_address(text)
    assert "SECRET" not in str(caught.value)


def test_the_same_object_is_equal_whatever_was_seen() -> None:
    """An address is what it is known by; ETag and size are only what was there."""
    address = parse_address("s3://b/x.csv")
    assert parse_address("s3://b/x.csv") == address
    assert Seen(3, '"abc"').identity == Seen(3, "abc").identity == "etag:abc"


@pytest.mark.parametrize(
    ("text", "etag", "content"),
    [
        ("s3://b/x", '"0123456789abcdef0123456789abcdef"', "etag:0123456789abcdef0123456789abcdef"),
        ("s3://b/x", '"0123456789abcdef0123456789abcdef-12"', "etag:0123456789abcdef0123456789abcdef-12"),
        ("s3://b/x", '"0x8DC1"', None),
        ("gs://b/x", '"0123456789abcdef0123456789abcdef"', None),
        ("az://b/x", '"0x8DC1"', None),
    ],
)
def test_only_etags_made_of_the_content_prove_the_same_content(text: str, etag: str, content: str | None) -> None:
    """Others may be equal by accident, and then rows would be passed over."""
    from dataclasses import replace

    assert replace(parse_address(text), seen=Seen(1, etag)).content_identity == content
