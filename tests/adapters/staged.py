"""Frozen jobs made by hand: a few rows in staged files, a real journal, a job.toml.

For tests of what comes after staging. The files have the shapes that staging gives them, and a test says itself
which row lies where.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event

import polars as pl

from backfill.adapters import staging
from backfill.adapters.journal import Journal
from backfill.adapters.state import Export, JobFile, Load, StateDirectory, Tenant
from backfill.core.arrange import Arranged, Piece
from backfill.core.lifecycle import Move, Part, Recorded

ROWS = pl.Schema(
    {
        "export": pl.UInt32(),
        "row": pl.Int64(),
        "line": pl.Int64(),
        "customer_key": pl.String(),
        "customer_key_name": pl.String(),
        "tid": pl.String(),
        "timestamp": pl.Datetime("us", "UTC"),
        "lane": pl.UInt16(),
        "request": pl.Int64(),
        "position": pl.Int16(),
        "duplicate_of_export": pl.UInt32(),
        "duplicate_of_row": pl.Int64(),
        "duplicate_of_load": pl.UInt32(),
    }
)
INVALID = pl.Schema(
    {
        "export": pl.UInt32(),
        "row": pl.Int64(),
        "line": pl.Int64(),
        "customer_key": pl.String(),
        "customer_key_name": pl.String(),
        "tid": pl.String(),
        "timestamp": pl.Datetime("us", "UTC"),
        "reasons": pl.List(pl.String()),
    }
)
REQUESTS = pl.Schema(
    {
        "request": pl.Int64(),
        "lane": pl.UInt16(),
        "tid": pl.String(),
        "count": pl.Int16(),
        "body": pl.String(),
        "sizes": pl.List(pl.UInt32()),
    }
)

START = datetime(2024, 3, 1, tzinfo=UTC)


@dataclass
class StagedLoad:
    """One load, put together row by row. Every row gets the next row number of its export."""

    exports: Sequence[str]
    pieces: list[list[dict[str, object]]] = field(default_factory=list)
    invalid: list[list[dict[str, object]]] = field(default_factory=list)
    not_arranged: set[int] = field(default_factory=set)
    """Pieces whose files are not there yet."""
    numbered_from: int = 1
    """More than 1 for a load that was staged and tried before."""

    def first_request(self, piece: int) -> int:
        return self.numbered_from + sum(len(rows) for rows in self.pieces[:piece])

    def next_piece(self) -> None:
        self.pieces.append([])

    def request(self, export: int, interactions: int, *, tid: str | None = None) -> Part:
        """The next request of the newest piece, with rows of one export."""
        rows = self.pieces[-1]
        taken = [row["request"] for row in rows if isinstance(row["request"], int)]
        number = max(taken) + 1 if taken else self.first_request(len(self.pieces) - 1)
        for position in range(interactions):
            rows.append(self._valid(export, tid) | {"request": number, "position": position})
        return Part(number, 0, interactions)

    def duplicate(self, export: int, *, of: dict[str, object], load: int | None = None) -> None:
        """A row in the newest piece that repeats another one, of this load or an earlier one."""
        original = {"duplicate_of_export": of["export"], "duplicate_of_row": of["row"], "duplicate_of_load": load}
        self.pieces[-1].append(self._valid(export, None) | original)

    def refuse(self, export: int, *reasons: str) -> None:
        """A row that our rules refuse, in the newest file of invalid rows."""
        if not self.invalid:
            self.invalid.append([])
        row = self._read(export)
        self.invalid[-1].append(row | {"customer_key": None, "timestamp": None, "reasons": list(reasons)})

    def rows_read(self, export: int) -> int:
        return sum(row["export"] == export for part in (*self.pieces, *self.invalid) for row in part)

    def write(self, state: Path, load: int) -> Path:
        """Writes the staged files as arranging leaves them. Returns their folder."""
        folder = state / "staged" / str(load)
        folder.mkdir(mode=0o700, parents=True)
        for number, rows in enumerate(self.pieces):
            if number in self.not_arranged:
                continue
            requests: dict[int, int] = {}
            for row in rows:
                if isinstance(row["request"], int):
                    requests[row["request"]] = requests.get(row["request"], 0) + 1
            planned = pl.DataFrame(
                [
                    {"request": request, "lane": number, "count": count, "body": ",".join(["{}"] * count)}
                    | {"sizes": [2] * count}
                    for request, count in requests.items()
                ],
                schema=REQUESTS,
            )
            staging.write_piece(folder, number, Arranged(pl.DataFrame(rows, schema=ROWS), planned))
        for number, rows in enumerate(self.invalid):
            staging.write_invalid(folder, number, pl.DataFrame(rows, schema=INVALID))
        staging.write_manifest(folder, self._manifest(load))
        return folder

    def _manifest(self, load: int) -> staging.Manifest:
        invalid = [sum(row["export"] == nth for part in self.invalid for row in part) for nth in self._numbers()]
        read = [self.rows_read(nth) for nth in self._numbers()]
        return staging.Manifest(
            load=load,
            lanes=len(self.pieces),
            exports=tuple(
                staging.StagedExport(
                    path=path, rows=rows, valid=rows - refused, invalid=refused, size=1, mtime_ns=1, sha256="0" * 64
                )
                for path, rows, refused in zip(self.exports, read, invalid, strict=True)
            ),
            pieces=tuple(
                Piece(
                    piece=number,
                    lane_from=number,
                    lane_to=number + 1,
                    slot_from=number,
                    slot_to=number + 1,
                    rows=len(rows),
                    first_request=self.first_request(number),
                )
                for number, rows in enumerate(self.pieces)
            ),
            runs=0,
            properties=(),
            invalid_parts=len(self.invalid),
        )

    def _numbers(self) -> range:
        return range(len(self.exports))

    def _read(self, export: int) -> dict[str, object]:
        row = self.rows_read(export) + 1
        return {
            "export": export,
            "row": row,
            "line": row + 1,
            "customer_key": f"000{row % 7}",
            "customer_key_name": "customerkey",
            "tid": None,
            "timestamp": START + timedelta(minutes=row),
        }

    def _valid(self, export: int, tid: str | None) -> dict[str, object]:
        nothing = dict.fromkeys(("request", "position", "duplicate_of_export", "duplicate_of_row", "duplicate_of_load"))
        return self._read(export) | {"tid": tid, "lane": len(self.pieces) - 1} | nothing


def freeze(state: Path, loads: Sequence[StagedLoad], *, customer_key: str = "plain") -> None:
    """Writes the staged files of all loads, then job.toml."""
    directory = StateDirectory(state)
    if not directory.exists():
        with directory.lock("run"):
            pass
    for number, load in enumerate(loads, start=1):
        load.write(state, number)
    directory.write_job(
        JobFile(
            tenant=Tenant(base_url="https://mxo.example", site_key="ONE-1", call="interactions-offline"),
            loads=tuple(
                Load(
                    load=number,
                    config={"ledger": {"customer_key": customer_key}},
                    exports=tuple(
                        Export(path=path, size=1, mtime_ns=1, sha256="0" * 64, rows=load.rows_read(nth))
                        for nth, path in enumerate(load.exports)
                    ),
                )
                for number, load in enumerate(loads, start=1)
            ),
        )
    )


def record(journal: Journal, moves: Iterable[Recorded], *, at_ms: int = 1_700_000_000_000) -> None:
    """Makes each move durable before the next, a second apart."""
    for nth, move in enumerate(moves):
        durable = Event()
        errors: list[Exception] = []

        def told(error: Exception | None, durable: Event = durable, errors: list[Exception] = errors) -> None:
            errors.extend([error] if error else [])
            durable.set()

        journal.commit([move], at_ms + nth * 1000, told)
        assert durable.wait(10)
        assert errors == []


def delivered(part: Part, *, load: int = 1, tid: str | None = None, attempt: int = 1) -> list[Recorded]:
    """The moves of a part that goes through at its first attempt, which is that number of its rows' attempts."""
    return [
        Recorded(load=load, part=part, move=Move.INTENT, attempt=attempt),
        Recorded(
            load=load,
            part=part,
            move=Move.ACKNOWLEDGED,
            attempt=attempt,
            http_status=200,
            cause="acknowledged",
            tid=tid,
        ),
    ]
