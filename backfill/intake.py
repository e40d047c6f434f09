"""Which of the named exports are new, and which are known.

An export is known by its path or by its content; known with other content is refused before anything is sent, unless
the order says that it is new. Reads fingerprints only, never rows; of an object it asks the store for ETag and size.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from backfill.adapters import exports
from backfill.adapters.exports import Located
from backfill.adapters.state import Export, JobFile
from backfill.core.address import Address
from backfill.core.errors import ExportError


class Intake(NamedTuple):
    """`named`: the exports that the account is about, by the path under which they were staged; `new`: still to be
    staged; `warnings`: sentences about what was passed over; `changed`: those of the new ones that are known with other
    content."""

    named: tuple[Located, ...]
    new: tuple[Located, ...]
    warnings: tuple[str, ...]
    changed: tuple[Located, ...] = ()


class _Known(NamedTuple):
    """An export as it was staged. `is_open`: its load is unfinished."""

    export: Export
    is_open: bool


def take_in(
    given: Sequence[Located], job: JobFile, *, unfinished: Collection[int] = (), changed: bool = False
) -> Intake:
    """Sort out what was named on the command line: files, directories, globs, and the same in object stores.

    Of an export of the loads `unfinished` the content decides; of others equal size and mtime spare the reading.
    `changed`: a known one with other content is new, too, beside what was staged of it.
    Raises: ExportError for a path that is missing and unknown, or known with other content; StoppedEarly where an
    object store does not answer.
    """
    by_path: dict[str, list[_Known]] = {}
    for load in job.loads:
        for export in load.exports:
            by_path.setdefault(export.path, []).append(_Known(export, load.load in unfinished))
    every = [known.export for versions in by_path.values() for known in versions]
    known_sizes = {export.size for export in every}
    known_paths = {export.sha256: exports.located(export.path) for export in every}
    found, gone, warnings = _find(given, by_path)
    became = {path: _change(path, by_path[str(path)]) for path in found if str(path) in by_path}
    if not changed:
        _must_be_unchanged(became, by_path)
    sizes = [_size(path) for path in found if became.get(path, "new") is not None]
    named: dict[Located, None] = {}
    new: list[Located] = []
    for path in found:
        if path in became:
            named[path] = None
            if became[path] is None:
                continue
        size = _size(path)
        # Only a file of the same size can have the same content; others need not be read for it.
        content = _content(path) if size in known_sizes or sizes.count(size) > 1 else None
        if content is not None:
            twin = known_paths.setdefault(content, path)
            if twin != path:
                warnings.append(f"{path} has the same content as {twin}, so it is not staged a second time.")
                named[twin] = None
                continue
        named[path] = None
        new.append(path)
    return Intake((*named, *gone), tuple(new), tuple(warnings), tuple(path for path in new if path in became))


class _Found(NamedTuple):
    """`gone`: known ones that are not there any more."""

    there: list[Located]
    gone: list[Located]
    warnings: list[str]


def _find(given: Sequence[Located], by_path: Collection[str]) -> _Found:
    found: dict[Located, None] = {}
    gone, warnings = [], []
    for path in given:
        place = absolute(path)
        if str(place) in by_path and _is_gone(place):
            gone.append(place)
            warnings.append(f"{path} is gone. It was staged before, so all of its rows are accounted for.")
        else:
            found |= dict.fromkeys(absolute(each) for each in exports.find([path]))
    return _Found(list(found), gone, warnings)


def _is_gone(place: Located) -> bool:
    return exports.look(place) is None if isinstance(place, Address) else not place.exists()


def _size(place: Located) -> int:
    if isinstance(place, Path):
        return place.stat().st_size
    assert place.seen is not None, "found objects were seen"
    return place.seen.size


def _content(place: Located) -> str | None:
    """What it shares with others of the same content; None for an object of which that cannot be known."""
    return place.content_identity if isinstance(place, Address) else exports.fingerprint(place).sha256


def _change(path: Located, versions: Sequence[_Known]) -> str | None:
    """How the file differs from all that was staged under its name, told of the newest; None if it is one of them."""
    sentence = None
    for known in reversed(versions):
        became = what_became_of(path, known.export, surely=known.is_open)
        if became is None:
            return None
        sentence = sentence or became
    return sentence


def _must_be_unchanged(became: Mapping[Located, str | None], by_path: Mapping[str, Sequence[_Known]]) -> None:
    for path, sentence in became.items():
        if sentence is None:
            continue
        is_open = any(known.is_open for known in by_path[str(path)])
        raise ExportError(
            f"{path} was staged before with other content: {sentence} Nothing was sent. Put the old content back; or, "
            "if the new content is meant, run with --changed: it is taken as a new export"
            + (" after the old content, of which rows are unsent, is finished;" if is_open else ",")
            + " and of its rows those that were taken before come out as duplicates, which are not sent."
            + (" What was staged can be finished without this file, too: run without naming it." if is_open else "")
        )


def what_became_of(path: Located, known: Export, *, surely: bool) -> str | None:
    """How the file differs from what was staged, as a sentence; None where it does not.

    Unless it must be `surely` known, equal size and mtime spare the reading. Otherwise the content decides, and a
    sentence says as much as the fingerprint can tell. Raises for an object: ExportError, StoppedEarly.
    """
    if isinstance(path, Address):
        return _what_became_of_object(path, known)
    if not path.exists():
        return "it is gone."
    status = path.stat()
    if not surely and status.st_size == known.size and status.st_mtime_ns == known.mtime_ns:
        return None
    if status.st_size == known.size:
        same = exports.fingerprint(path).sha256 == known.sha256
        return None if same else f"it still has {known.size:,} bytes, but not the same ones."
    if status.st_size < known.size:
        return f"it has shrunk from {known.size:,} to {status.st_size:,} bytes."
    if exports.begins_as(path, known.size, known.sha256):
        return (
            f"it has grown by {status.st_size - known.size:,} bytes at its end; the {known.size:,} bytes before them, "
            f"in which its {known.rows:,} staged rows stand, are unchanged."
        )
    return f"it has grown from {known.size:,} to {status.st_size:,} bytes, and not only at its end."


def _what_became_of_object(address: Address, known: Export) -> str | None:
    before = known.size, known.sha256
    if address.seen is not None and (address.seen.size, address.seen.identity) == before:
        return None
    # Asked again where a listing says otherwise: some stores spell an ETag differently in it.
    looked = exports.look(address)
    seen = None if looked is None else looked.seen
    if seen is not None and (seen.size, seen.identity) == before:
        return None
    if seen is None:
        return "it is gone."
    if seen.size == known.size:
        return f"it still has {known.size:,} bytes, but another ETag."
    return f"it has {'shrunk' if seen.size < known.size else 'grown'} from {known.size:,} to {seen.size:,} bytes."


def absolute(path: Located) -> Located:
    """The path as it is kept: independent of the working directory, but links keep the name that the user chose."""
    if isinstance(path, Address):
        return path
    return Path(os.path.abspath(path))  # noqa: PTH100 - Path.resolve would follow links
