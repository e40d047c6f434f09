"""Thrift's compact protocol, as far as Parquet's footers and page headers need it: bytes in, plain values out.

Knows no meaning: a struct is a dict by field number. Never trusts a length.
"""

import struct
from collections.abc import Mapping
from typing import Any

Fields = Mapping[int, Any]

_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT, _UUID = range(1, 14)
_DEEPEST = 24  # a LogicalType in a SchemaElement in a list in the footer is 5 deep


class Malformed(ValueError):
    """These bytes are not what they should be; or they are not all there, which `Cut` says."""


class Cut(Malformed):
    """The bytes end inside a value."""


def read_struct(raw: bytes, at: int = 0) -> tuple[Fields, int]:
    """The struct that begins at `at`, and where it ends. Raises Malformed, and Cut where `raw` is too short."""
    try:
        return _Reader(raw, at).whole()
    except IndexError as error:
        raise Cut("ends early") from error
    except struct.error as error:
        raise Cut("ends early") from error


class _Reader:
    def __init__(self, raw: bytes, at: int) -> None:
        self._raw = raw
        self._at = at

    def whole(self) -> tuple[Fields, int]:
        return self._struct(0), self._at

    def _struct(self, depth: int) -> dict[int, Any]:
        if depth > _DEEPEST:
            raise Malformed("nested too deep")
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            kind, step = head & 15, head >> 4
            number = number + step if step else self._signed()
            fields[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        match kind:
            case 5 | 6 | 4:  # the most frequent first
                return self._signed()
            case 8:
                return self._take(self._varint())
            case 12:
                return self._struct(depth + 1)
            case 9 | 10:
                head = self._byte()
                count = head >> 4
                count = self._varint() if count == 15 else count
                return [self._item(head & 15, depth + 1) for _ in range(count)]
            case 3:
                return self._byte()
            case 7:
                return struct.unpack("<d", self._take(8))[0]
            case 11:
                count = self._varint()
                kinds = self._byte() if count else 0
                return [(self._item(kinds >> 4, depth + 1), self._item(kinds & 15, depth + 1)) for _ in range(count)]
            case 13:
                return self._take(16)
            case _:
                raise Malformed(f"a value of kind {kind}")

    def _item(self, kind: int, depth: int) -> Any:
        if depth > _DEEPEST:
            raise Malformed("nested too deep")
        # Inside lists a boolean is a byte of its own.
        return self._byte() == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind, depth)

    def _byte(self) -> int:
        value = self._raw[self._at]
        self._at += 1
        return value

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 63:
                raise Malformed("a number of over 64 bits")

    def _signed(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _take(self, count: int) -> bytes:
        taken = self._raw[self._at : self._at + count]
        if len(taken) < count:
            raise Cut("ends early")
        self._at += count
        return taken
