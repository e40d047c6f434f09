"""What tests of Parquet share: files as pyarrow writes them, and footers changed to what older writers left."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Struct = dict[int, tuple[int, Any]]
"""Of Thrift's compact protocol: field number → (kind, value)."""

Edit = Callable[[Struct], None]


def parquet(table: pa.Table, **options: Any) -> bytes:
    made = io.BytesIO()
    pq.write_table(table, made, **options)
    return made.getvalue()


def with_footer(raw: bytes, edit: Edit) -> bytes:
    """The file with its FileMetaData changed in place by `edit`."""
    length = int.from_bytes(raw[-8:-4], "little")
    at = len(raw) - 8 - length
    footer = _Decoder(raw[at:-8]).struct()
    edit(footer)
    encoded = _struct(footer)
    return raw[:at] + encoded + len(encoded).to_bytes(4, "little") + b"PAR1"


def without_logical_types(raw: bytes) -> bytes:
    """As writers left it before 2018: converted types only."""

    def edit(footer: Struct) -> None:
        for element in footer[2][1][1]:
            element.pop(10, None)

    return with_footer(raw, edit)


def written(tmp_path: Path, raw: bytes | pa.Table, name: str = "export.parquet", **options: Any) -> Path:
    path = tmp_path / name
    path.write_bytes(raw if isinstance(raw, bytes) else parquet(raw, **options))
    return path


class _Decoder:
    def __init__(self, raw: bytes) -> None:
        self._raw = io.BytesIO(raw)

    def struct(self) -> Struct:
        fields: Struct = {}
        number = 0
        while head := self._raw.read(1)[0]:
            number = number + (head >> 4) if head >> 4 else _unzigzag(self._varint())
            fields[number] = (head & 15, self._value(head & 15))
        return fields

    def _value(self, kind: int) -> Any:
        match kind:
            case 1 | 2:
                return None
            case 3:
                return self._raw.read(1)
            case 4 | 5 | 6:
                return self._varint()
            case 7:
                return self._raw.read(8)
            case 8:
                return self._raw.read(self._varint())
            case 9:
                head = self._raw.read(1)[0]
                count = head >> 4 if head >> 4 < 15 else self._varint()
                return head & 15, [self._value(head & 15) for _ in range(count)]
            case 12:
                return self.struct()
        raise ValueError(f"Thrift has no kind {kind}")

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._raw.read(1)[0]
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value


def _unzigzag(value: int) -> int:
    return (value >> 1) ^ -(value & 1)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _struct(fields: Struct) -> bytes:
    # The long form of every field header: number after kind.
    return (
        b"".join(
            bytes([kind]) + _varint(number << 1) + _encoded(kind, value)
            for number, (kind, value) in sorted(fields.items())
        )
        + b"\0"
    )


def _encoded(kind: int, value: Any) -> bytes:
    match kind:
        case 1 | 2:
            return b""
        case 3 | 7:
            return bytes(value)
        case 4 | 5 | 6:
            return _varint(value)
        case 8:
            return _varint(len(value)) + bytes(value)
        case 9:
            inner, items = value
            return bytes([0xF0 | inner]) + _varint(len(items)) + b"".join(_encoded(inner, item) for item in items)
        case _:
            return _struct(value)
