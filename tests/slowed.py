"""The command line with a slow disk under its journal, and a note of when each commit was really durable.

    python -m tests.slowed LOW_MS HIGH_MS NOTES VARIANT run ...     VARIANT: one of tests.broken, or - for none

Every commit waits LOW_MS to HIGH_MS before SQLite gets it, so an intent that is not awaited is late by that much. After
it, and before anybody is told, a line goes into NOTES: {"execution", "first", "last", "at"}: the moves (by number) that
became durable, and when. The journal itself knows only when a commit was asked for. Slows and notes; changes nothing.
"""

import json
import os
import random
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

from backfill.cli import main
from tests.broken import VARIANTS


def slow_down(low_ms: float, high_ms: float, notes: Path) -> None:
    """From now on, for every SQLite connection of this process."""
    chance = random.Random()
    connect = sqlite3.connect
    descriptor = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    class Slowed(sqlite3.Connection):
        noted = -1
        changes = 0

        def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
            if sql != "COMMIT":
                if sql.startswith("BEGIN") and self.noted < 0:
                    self.noted = self._newest("move")
                return super().execute(sql, *arguments)
            execution, newest = self._newest("execution"), self._newest("move")
            if self.total_changes > self.changes:  # a query has nothing to write
                self.changes = self.total_changes
                time.sleep(chance.uniform(low_ms, high_ms) / 1000)
            cursor = super().execute(sql)
            if newest > self.noted:
                note = {"execution": execution, "first": self.noted + 1, "last": newest, "at": time.time()}
                os.write(descriptor, json.dumps(note).encode() + b"\n")
                self.noted = newest
            return cursor

        def _newest(self, table: str) -> int:
            return int(super().execute(f"SELECT coalesce(max(id), 0) FROM {table}").fetchone()[0])

    def connect_slowly(path: Path, **options: Any) -> sqlite3.Connection:
        return connect(path, factory=Slowed, **options)

    sqlite3.connect = connect_slowly  # type: ignore[assignment]


if __name__ == "__main__":
    low, high, file, variant, *command = sys.argv[1:]
    slow_down(float(low), float(high), Path(file))
    if variant != "-":
        VARIANTS[variant]()
    sys.exit(main(command))
