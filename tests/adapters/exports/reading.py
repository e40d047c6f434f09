"""What tests of the readers share: files written, and whole exports read into columns."""

from pathlib import Path
from typing import Any

from backfill.adapters.exports import fingerprint, open_export
from backfill.core import limits
from backfill.core.config import Csv


def read(path: Path, options: Csv | None = None, block_bytes: int = limits.CSV_BLOCK_BYTES) -> dict[str, list[Any]]:
    """All records: columns, `row` and `line`. Empty text and null are the same."""
    export = open_export(path, options or Csv(), block_bytes=block_bytes)
    records: dict[str, list[Any]] = {name: [] for name in (*export.header, "row", "line")}
    for block in export.blocks(export.header):
        for name in export.header:
            records[name] += [value or None for value in block.frame[name].to_list()]
        records["row"] += range(block.row, block.row + block.frame.height)
        records["line"] += [None] * block.frame.height if block.lines is None else block.lines.to_list()
    assert export.fingerprint() == fingerprint(path)
    return records


def written(tmp_path: Path, content: str | bytes, name: str = "export.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path
