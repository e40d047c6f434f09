"""A disk that fails when told to, for one process: the errors of the system on chosen files, and a log of every call.

A small library, compiled where there is a C compiler, stands in front of the C library of the process under test.
Chosen over strace's fault injection because it fails by file and from a chosen instant on, tells to the microsecond
what the disk had promised before, and needs neither tracing rights nor a package.
"""

import errno
import functools
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

_SOURCE = Path(__file__).with_name("failing_disk.c")


class Call(NamedTuple):
    """What the disk answered: `error` is 0 where it did what it was asked; `size` is the file's after that."""

    at: float
    call: str
    error: int
    size: int
    path: str


@functools.cache
def _library() -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler here (cc, gcc or clang), so no disk can be made to fail")
    library = Path(tempfile.mkdtemp(prefix="failing-disk-")) / "failing_disk.so"
    command = [compiler, "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", str(library), str(_SOURCE), "-ldl"]
    subprocess.run(command, check=True)
    return library


@dataclass(frozen=True)
class FailingDisk:
    """Files whose path holds `files`: `calls` on them fail with `error` once it is switched on.

    `calls`: sync, write, read, rename. `times`: how many fail, 0 for all of them.
    """

    folder: Path
    files: str
    calls: tuple[str, ...]
    error: int = errno.EIO
    times: int = 0

    @property
    def environment(self) -> dict[str, str]:
        """With this the process under test sees the disk fail."""
        return {
            "LD_PRELOAD": str(_library()),
            "FAILING_DISK_PATH": self.files,
            "FAILING_DISK_CALLS": "".join(f":{call}:" for call in self.calls),
            "FAILING_DISK_ERRNO": str(self.error),
            "FAILING_DISK_TIMES": str(self.times),
            "FAILING_DISK_SWITCH": str(self._switch),
            "FAILING_DISK_LOG": str(self.folder / "disk.log"),
        }

    @property
    def _switch(self) -> Path:
        return self.folder / "disk-fails"

    def fail(self) -> None:
        """From now on."""
        self._switch.touch()

    def mend(self) -> None:
        self._switch.unlink(missing_ok=True)

    def calls_made(self) -> list[Call]:
        """Every call on these files so far, in order."""
        log = self.folder / "disk.log"
        found = []
        for line in log.read_text().splitlines() if log.exists() else []:
            at, call, error, size, path = line.split(" ", 4)
            found.append(Call(float(at), call.strip(":"), int(error), int(size), path))
        return found

    def first_failure(self) -> Call:
        failures = [call for call in self.calls_made() if call.error]
        assert failures, "the disk never failed"
        return failures[0]
