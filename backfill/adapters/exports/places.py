"""Finds the exports that arguments stand for: files, directories, globs, and the same in object stores.

Looks at names only and opens nothing.
"""

import glob
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from backfill.adapters.exports.content import reading
from backfill.adapters.exports.export import Located
from backfill.adapters.exports.objects import find_objects
from backfill.adapters.exports.partitions import is_partition
from backfill.core.address import Address, is_address, parse_address
from backfill.core.errors import ExportError

_NAMES = re.compile(r"\.(?:(?:csv|tsv)(?:\.gz|\.zst)?|zip|parquet)\Z", re.IGNORECASE)
"""What exports in a directory are called. *.zip too: one that is none is refused, but one passed over would be lost."""

_ELSEWHERE = re.compile(r"(?:s3a?|gs|gcs|az|abfss?|adl|https?|ftp|hdfs)://?(?=[^/])", re.IGNORECASE)
"""Addresses of object stores and servers; a Path has already lost one of two slashes."""


def located(text: str) -> Located:
    """What a job kept as text. Only addresses that were read are kept, so each can be parsed again."""
    return parse_address(text) if is_address(text) else Path(text)


def find(places: Sequence[Located]) -> list[Located]:
    """The exports that arguments stand for: files, directories, globs. Each file or object once.

    A directory stands for its files by the names of _NAMES, and for those in its `key=value` folders; so does an
    address that ends in a slash. The order is that of the arguments, and by name within a directory or glob.
    Objects come with what their store says of them. Raises ExportError for what names no export, StoppedEarly where a
    store does not answer.
    """
    found: dict[Located, Located] = {}
    for argument in places:
        if isinstance(argument, Address):
            for address in find_objects(argument, _is_export):
                found.setdefault(address, address)
            continue
        for path in _expanded(argument):
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _expanded(argument: Path) -> list[Path]:
    text = str(argument)
    if text == "-":
        raise ExportError("Standard input cannot be staged: after a crash it would be gone. Write it to a file first.")
    if _ELSEWHERE.match(text):
        raise ExportError(
            f"{_spelled(text)} is not on a local disk. Read from elsewhere are only s3://, gs:// and az:// (with both "
            "slashes); copy other exports to a local disk and name the copy."
        )
    if argument.is_dir():
        with reading(argument):
            paths = sorted(_inside(argument))
        if not paths:
            raise ExportError(
                f"{argument} is a directory without exports: it holds no *.csv, *.tsv (also .gz, .zst), *.zip or "
                "*.parquet file, itself or in folders named key=value. Other files can be named one by one."
            )
        return paths
    if not argument.exists() and glob.has_magic(text):
        matches = glob.glob(text, recursive=True)  # noqa: PTH207  # takes absolute patterns, which Path.glob does not
        paths = sorted(path for path in map(Path, matches) if path.is_file())
        if not paths:
            raise ExportError(f"No file matches {text}. Check the pattern, or the directory it is run from.")
        return paths
    with reading(argument):
        if not argument.exists():
            raise ExportError(f"{argument} does not exist. Check the name, or the directory it is run from.")
        mode = argument.stat().st_mode
    if not stat.S_ISREG(mode):
        raise ExportError(f"{argument} is no regular file. Only files can be read again; write it to one first.")
    return [argument]


def _spelled(address: str) -> str:
    """With both slashes again, and without a query: it may be signed."""
    scheme, rest = re.split(r":/+", address, maxsplit=1)
    return f"{scheme}://{rest.split('?')[0]}"


def _is_export(name: str) -> bool:
    return not name.startswith(".") and _NAMES.search(name) is not None


def _inside(directory: Path) -> Iterator[Path]:
    for path in directory.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if is_partition(path):
                yield from _inside(path)
        elif _is_export(path.name) and path.is_file():
            yield path
