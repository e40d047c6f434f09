"""Thrift's compact protocol: structs read, and whatever is not one refused."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backfill.adapters.exports.compact import Cut, Malformed, read_struct

# 1: i32 -3; 2: "ab"; 3: true; 20: list of i32 [1, 2]; 21: {1: false}
GOOD = bytes([0x15, 5, 0x18, 2, 97, 98, 0x11, 0x09, 40, 0x25, 2, 4, 0x1C, 0x12, 0, 0])


def test_a_struct_is_read_with_its_end() -> None:
    """Numbers with their sign, field numbers in both forms; what follows is left alone."""
    assert read_struct(b"xx" + GOOD + b"rest", 2) == (
        {1: -3, 2: b"ab", 3: True, 20: [1, 2], 21: {1: False}},
        2 + len(GOOD),
    )


@pytest.mark.parametrize("size", range(len(GOOD)))
def test_a_struct_that_ends_early_says_so(size: int) -> None:
    """At every byte, so that whoever read too little can read more."""
    with pytest.raises(Cut):
        read_struct(GOOD[:size])


@given(st.binary(max_size=200))
def test_rubbish_is_read_or_malformed(raw: bytes) -> None:
    """Nothing else comes of any bytes."""
    with contextlib.suppress(Malformed):
        read_struct(raw)


@pytest.mark.parametrize("raw", [b"\x1c" * 500, b"\x19" * 500, b"\x1e\x00", b"\x16" + b"\xff" * 20])
def test_depth_kinds_and_numbers_are_bounded(raw: bytes) -> None:
    """Structs in structs, lists in lists, a kind that there is not, a number of too many bits."""
    with pytest.raises(Malformed):
        read_struct(raw)
