"""Folders named `key=value`: what they say about every row of the exports below them, as text columns.

Reads names only. Which folders count follows from the file's own path, so that an export is the same however it was
found.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from urllib.parse import unquote

import polars as pl

from backfill.adapters.exports.export import Block, Export, Fingerprint

_FOLDER = re.compile(r"([A-Za-z_][A-Za-z0-9_.\-]*)=(.*)")
_NULL = "__HIVE_DEFAULT_PARTITION__"  # how Hive and Spark write a folder for rows without value


def is_partition(folder: PurePath) -> bool:
    return _FOLDER.fullmatch(folder.name) is not None


def partitions(path: Path) -> dict[str, str | None]:
    """The columns that the folders right above a file add, the outermost first."""
    found: list[tuple[str, str | None]] = []
    for folder in path.absolute().parents:
        named = _FOLDER.fullmatch(folder.name)
        if named is None:
            break
        value = unquote(named[2])
        found.append((named[1], None if value == _NULL else value))
    return dict(reversed(found))


class Partitioned:
    """An export with the columns that its folders add. A column of its own by such a name stays as it is."""

    def __init__(self, export: Export, added: dict[str, str | None]) -> None:
        self._export = export
        self._added = {name: value for name, value in added.items() if name not in export.header}
        self.path = export.path
        self.header = (*export.header, *self._added)
        self.beginning = export.beginning

    def blocks(self, columns: Sequence[str]) -> Iterator[Block]:
        """As `Export.blocks`."""
        values = [pl.lit(value, pl.String).alias(name) for name, value in self._added.items()]
        for block in self._export.blocks([name for name in columns if name not in self._added]):
            yield block._replace(frame=block.frame.with_columns(values))

    def fingerprint(self) -> Fingerprint:
        return self._export.fingerprint()
