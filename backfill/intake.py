"""Which of the named exports are new, and which are known.

An export is known by its path or by its content; known with other content is refused before anything is sent, unless
the order says that it is new. Reads fingerprints only, never rows.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from backfill.adapters import exports
from backfill.adapters.state import Export, JobFile
from backfill.core.errors import ExportError


class Intake(NamedTuple):
    """`named`: the exports that the account is about, by the path under which they were staged; `new`: still to be
    staged; `warnings`: sentences about what was passed over; `changed`: those of the new ones that are known with other
    content."""

    named: tuple[Path, ...]
    new: tuple[Path, ...]
    warnings: tuple[str, ...]
    changed: tuple[Path, ...] = ()


class _Known(NamedTuple):
    """An export as it was staged. `is_open`: its load is unfinished."""

    export: Export
    is_open: bool


def take_in(given: Sequence[Path], job: JobFile, *, unfinished: Collection[int] = (), changed: bool = False) -> Intake:
    """Sort out what was named on the command line: files, directories, globs.

    Of an export of the loads `unfinished` the content decides; of others equal size and mtime spare the reading.
    `changed`: a known one with other content is new, too, beside what was staged of it.
    Raises: ExportError for a path that is missing and unknown, or known with other content.
    """
    by_path: dict[str, list[_Known]] = {}
    for load in job.loads:
        for export in load.exports:
            by_path.setdefault(export.path, []).append(_Known(export, load.load in unfinished))
    every = [known.export for versions in by_path.values() for known in versions]
    known_sizes = {export.size for export in every}
    known_paths = {export.sha256: Path(export.path) for export in every}
    found, warnings = _find(given, by_path)
    became = {path: _change(path, by_path[str(path)]) for path in found if str(path) in by_path}
    if not changed:
        _must_be_unchanged(became, by_path)
    sizes = [path.stat().st_size for path in found if became.get(path, "new") is not None]
    named: dict[Path, None] = {}
    new: list[Path] = []
    for path in found:
        if path in became:
            named[path] = None
            if became[path] is None:
                continue
        size = path.stat().st_size
        # Only a file of the same size can have the same content; others need not be read for it.
        if size in known_sizes or sizes.count(size) > 1:
            twin = known_paths.setdefault(exports.fingerprint(path).sha256, path)
            if twin != path:
                warnings.append(f"{path} has the same content as {twin}, so it is not staged a second time.")
                named[twin] = None
                continue
        named[path] = None
        new.append(path)
    gone = [path for path in (absolute(each) for each in given) if str(path) in by_path and not path.exists()]
    return Intake((*named, *gone), tuple(new), tuple(warnings), tuple(path for path in new if path in became))


def _find(given: Sequence[Path], by_path: Collection[str]) -> tuple[list[Path], list[str]]:
    found: dict[Path, None] = {}
    warnings = []
    for path in given:
        if str(absolute(path)) in by_path and not path.exists():
            warnings.append(f"{path} is gone. It was staged before, so all of its rows are accounted for.")
        else:
            found |= dict.fromkeys(absolute(each) for each in exports.find([path]))
    return list(found), warnings


def _change(path: Path, versions: Sequence[_Known]) -> str | None:
    """How the file differs from all that was staged under its name, told of the newest; None if it is one of them."""
    sentence = None
    for known in reversed(versions):
        became = what_became_of(path, known.export, surely=known.is_open)
        if became is None:
            return None
        sentence = sentence or became
    return sentence


def _must_be_unchanged(became: Mapping[Path, str | None], by_path: Mapping[str, Sequence[_Known]]) -> None:
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


def what_became_of(path: Path, known: Export, *, surely: bool) -> str | None:
    """How the file differs from what was staged, as a sentence; None where it does not.

    Unless it must be `surely` known, equal size and mtime spare the reading. Otherwise the content decides, and a
    sentence says as much as the fingerprint can tell.
    """
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


def absolute(path: Path) -> Path:
    """The path as it is kept: independent of the working directory, but links keep the name that the user chose."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - Path.resolve would follow links
