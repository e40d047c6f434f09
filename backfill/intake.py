"""Which of the named exports are new, and which are known.

An export is known by its path or by its content; known with other content is refused before anything is sent. Reads
fingerprints only, never rows.
"""

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from backfill.adapters import exports
from backfill.adapters.state import Export, JobFile
from backfill.core.errors import ExportError


class Intake(NamedTuple):
    """`named`: the exports that the account is about, by the path under which they were staged; `new`: still to be
    staged; `warnings`: sentences about what was passed over."""

    named: tuple[Path, ...]
    new: tuple[Path, ...]
    warnings: tuple[str, ...]


def take_in(given: Sequence[Path], job: JobFile, *, unfinished: Collection[int] = ()) -> Intake:
    """Sort out what was named on the command line: files, directories, globs.

    Of an export of the loads `unfinished` the content decides; of others equal size and mtime spare the reading.
    Raises: ExportError for a path that is missing and unknown, or known with other content.
    """
    by_path = {export.path: export for load in job.loads for export in load.exports}
    open_paths = {export.path for load in job.loads if load.load in unfinished for export in load.exports}
    known_sizes = {export.size for export in by_path.values()}
    known_paths = {export.sha256: Path(export.path) for export in by_path.values()}
    found, warnings = _find(given, by_path)
    sizes = [path.stat().st_size for path in found if str(path) not in by_path]
    named: dict[Path, None] = {}
    new: list[Path] = []
    for path in found:
        known = by_path.get(str(path))
        if known is not None:
            must_be_unchanged(path, known, surely=str(path) in open_paths)
            named[path] = None
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
    return Intake((*named, *gone), tuple(new), tuple(warnings))


def _find(given: Sequence[Path], by_path: dict[str, Export]) -> tuple[list[Path], list[str]]:
    found: dict[Path, None] = {}
    warnings = []
    for path in given:
        if str(absolute(path)) in by_path and not path.exists():
            warnings.append(f"{path} is gone. It was staged before, so all of its rows are accounted for.")
        else:
            found |= dict.fromkeys(absolute(each) for each in exports.find([path]))
    return list(found), warnings


def must_be_unchanged(path: Path, known: Export, *, surely: bool) -> None:
    """Raises: ExportError where the file is no longer what was staged.

    Unless it must be `surely` known, equal size and mtime spare the reading.
    """
    status = path.stat()
    if not surely and status.st_size == known.size and status.st_mtime_ns == known.mtime_ns:
        return
    if status.st_size == known.size and exports.fingerprint(path).sha256 == known.sha256:
        return
    raise ExportError(
        f"{path} was staged before with other content ({known.size:,} bytes then, {status.st_size:,} now). Nothing was "
        "sent. Put the old content back, or give the new content a new name."
    )


def absolute(path: Path) -> Path:
    """The path as it is kept: independent of the working directory, but links keep the name that the user chose."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - Path.resolve would follow links
