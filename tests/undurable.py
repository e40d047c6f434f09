"""The command line under watch, and variants of it that forget one sync, which a power cut must bring to light.

python -m tests.undurable VARIANT NOTE run ...     VARIANT: `none` is the product as it is
NOTE is a file outside of the disk under test; the instant of the first failed commit is appended to it.
"""

import os
import sqlite3
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from backfill.adapters import journal, ledger, staging, state
from backfill.cli import main
from backfill.core.errors import StorageError


class _OsWithout:
    """The module `os` for one module of ours, whose fsync lies about some descriptors."""

    def __init__(self, forgets: Callable[[int], bool]) -> None:
        self._forgets = forgets

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def fsync(self, descriptor: int) -> None:
        if not self._forgets(descriptor):
            os.fsync(descriptor)


def _forget(*modules: ModuleType, forgets: Callable[[int], bool] = lambda _: True) -> None:
    for module in modules:
        module.os = _OsWithout(forgets)  # type: ignore[attr-defined]


def _is_folder(descriptor: int) -> bool:
    return stat.S_ISDIR(os.fstat(descriptor).st_mode)


def _journal(level: str) -> None:
    opened = journal._open

    def lax(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = opened(*arguments, **options)
        connection.execute(f"PRAGMA synchronous = {level}")
        return connection

    journal._open = lax


VARIANTS: dict[str, Callable[[], None]] = {
    "none": lambda: None,
    "journal_normal": lambda: _journal("NORMAL"),
    "journal_off": lambda: _journal("OFF"),
    "job": lambda: _forget(state),
    "staging": lambda: _forget(staging),
    "ledger": lambda: _forget(ledger),
    "folders": lambda: _forget(state, staging, ledger, forgets=_is_folder),
}
"""What each forgets: SQLite's syncs, wholly or between checkpoints; every sync of job.toml, of the staged files, of
the ledger; the sync of every folder."""


def _watch(note: Path) -> None:
    """Notes when the journal finds out that a commit failed, before it tells anyone."""
    failure = journal._failure

    def noted(*arguments: Any) -> StorageError:
        with note.open("a") as file:
            file.write(f"{time.time()}\n")
        return failure(*arguments)

    vars(journal)["_failure"] = noted


if __name__ == "__main__":
    VARIANTS[sys.argv[1]]()
    _watch(Path(sys.argv[2]))
    sys.exit(main(sys.argv[3:]))
