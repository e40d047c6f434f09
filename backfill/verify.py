"""Verifying: does everything on disk agree, by another way than it was made?

Plays the journal's history again, walks the staged rows, and holds both against the ledger, its manifest and the
journal's own table. Changes nothing and sends nothing. Findings name files, exports, rows and requests, never what
stands in them.
"""

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import polars as pl
from polars.exceptions import PanicException, PolarsError

from backfill.adapters import staging
from backfill.adapters.journal import Journal
from backfill.adapters.ledger import Ledger, LoadEntry, Manifest, Unreadable, part_path, stamp
from backfill.adapters.state import Load, StateDirectory
from backfill.core.account import LEDGER_SCHEMA, add_counts, count_outcomes, made_with
from backfill.core.arrange import Piece
from backfill.core.errors import StorageError, Unusable
from backfill.core.lifecycle import MOVES, STATE_OF_PARTS, Move, Part, Standing, State
from backfill.core.replay import Fate, replay, replayed_lines, untiled
from backfill.core.summary import OUTCOMES, ExportCounts

CHECKS = {
    "staged": "the staged files hold the rows that their manifest and job.toml name",
    "history": "every move in the journal is one that the lifecycle allows, of a request that was staged",
    "parts": "the journal's table of parts is what its history adds up to",
    "files": "every ledger file is there, unchanged since it was written, and named by the manifest",
    "rows": "the ledger has rows 1 to n of every export, each once",
    "lines": "every ledger line repeats its staged row",
    "outcomes": "every ledger line says what the journal's history says of it",
    "equation": "read = delivered + invalid + rejected + duplicate + in_doubt + abandoned + unsent, for every export",
    "settled": "the ledger knows all that was staged and sent",
}
"""Every check in the order of a verdict, with what it claims. `settled` never fails: a run brings in the rest."""

_SHOWN = 5
"""Findings that a check spells out; one cause often makes thousands."""

_LAST_REQUEST = 2**63 - 1
"""Of all that a journal can hold."""

_STAGED_COLUMNS = (
    "load",
    "line",
    "customer_key",
    "customer_key_name",
    "timestamp",
    "duplicate_of",
    "request",
    "position",
)
_FATE_COLUMNS = (
    "outcome",
    "reasons",
    "attempts",
    "http_status",
    "tid",
    "maybe_duplicate",
    "sent_at",
    "settled_at",
    "execution",
)


class Check(NamedTuple):
    """One claim. `detail` says what was looked at, or what is wrong and where."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """All checks, and the account of every export as recomputed from staging and the journal's history."""

    checks: tuple[Check, ...]
    exports: tuple[ExportCounts, ...]

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)


def verify(state: Path, ledger_key: str | None = None) -> Verdict:
    """Recomputes the account of a job from its files alone. Takes no lock: the caller sees that no execution runs.

    `ledger_key`: for a ledger that names customers by "hmac"; without it all is checked but how they are named.
    Memory: one piece at a time, and one bit for each row of a load.
    Raises: Unusable where there is no job; StorageError where job.toml or the journal cannot be read at all.
    """
    directory = StateDirectory(state)
    if not directory.exists():
        raise Unusable(f"There is no job in {state}. Name the right --state, or begin one with `backfill run`.")
    job = directory.read_job()
    findings = _Findings()
    loads = () if job is None else job.loads
    ledger = Ledger(state)
    try:
        manifest = ledger.read_manifest() or Manifest()
    except Unreadable as error:
        findings.wrong("files", str(error))
        manifest = Manifest()
    exports: list[ExportCounts] = []
    place = state / "journal.db"
    if loads or place.exists():  # a job.toml that was lost is noticed by what was sent
        with Journal(place, must_exist=bool(loads)) as journal:
            for load in loads:
                exports += _LoadVerifier(load, state, journal, ledger, manifest, findings, ledger_key, loads).verify()
            _no_other_load(journal, manifest, len(loads), findings)
    return Verdict(checks=findings.checks(), exports=tuple(exports))


class _Findings:
    """What each check looked at, and what it found."""

    def __init__(self) -> None:
        self._found: dict[str, list[str]] = {name: [] for name in CHECKS}
        self._seen: dict[str, dict[str, int]] = {name: {} for name in CHECKS}

    def wrong(self, check: str, finding: str) -> None:
        self._found[check].append(finding)

    def saw(self, check: str, what: str, count: int) -> None:
        self._seen[check][what] = self._seen[check].get(what, 0) + count

    def checks(self) -> tuple[Check, ...]:
        return tuple(Check(name, name == "settled" or not self._found[name], self._detail(name)) for name in CHECKS)

    def _detail(self, name: str) -> str:
        found = self._found[name]
        if not found:
            return ", ".join(f"{count:,} {what}" for what, count in self._seen[name].items()) or "nothing to look at"
        more = f"; and {len(found) - _SHOWN:,} more" if len(found) > _SHOWN else ""
        return "; ".join(found[:_SHOWN]) + more


class _Rows:
    """Ticks off the rows 1 to n of an export, one bit each."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._ticked = bytearray((n >> 3) + 1)
        self._count = 0
        self._doubled: list[int] = []
        self._beyond: list[int] = []

    def tick(self, rows: Sequence[int]) -> None:
        ticked = self._ticked
        for row in rows:
            if not 1 <= row <= self._n:
                self._beyond.append(row)
                continue
            place, bit = row >> 3, 1 << (row & 7)
            if ticked[place] & bit:
                self._doubled.append(row)
            else:
                ticked[place] |= bit
                self._count += 1

    def extra(self) -> list[str]:
        """Rows met twice, or that were never read."""
        found = []
        if self._doubled:
            found.append(f"{len(self._doubled):,} rows more than once, first row {min(self._doubled)}")
        if self._beyond:
            found.append(f"{len(self._beyond):,} rows that were never read, first row {min(self._beyond)}")
        return found

    def missing(self) -> list[str]:
        if self._count == self._n:
            return []
        first = next(row for row in range(1, self._n + 1) if not self._ticked[row >> 3] & 1 << (row & 7))
        return [f"{self._n - self._count:,} rows not at all, first row {first}"]


class _Staged(NamedTuple):
    """One staged file and what the ledger must say of it.

    Shape of `expected`: (rows, 19), as the ledger.
    """

    part: str
    moves: int
    stamp: str
    expected: pl.DataFrame


class _LoadVerifier:
    """One load, one staged file after another."""

    def __init__(
        self,
        load: Load,
        state: Path,
        journal: Journal,
        ledger: Ledger,
        manifest: Manifest,
        findings: _Findings,
        ledger_key: str | None,
        loads: Sequence[Load],
    ) -> None:
        self._load = load
        self._number = load.load
        self._folder = state / "staged" / str(load.load)
        self._journal = journal
        self._ledger = ledger
        self._findings = findings
        self._entry: LoadEntry | None = next((each for each in manifest.loads if each.load == load.load), None)
        self._parts = {part.path: part for part in manifest.parts_of(load.load)}
        self._exports_by_load = {each.load: [export.path for export in each.exports] for each in loads}
        self._rows_read = {each.load: [export.rows for export in each.exports] for each in loads}
        self._in_ledger = self._entry is not None and self._entry.complete
        self._all_current = self._in_ledger
        self._staged_anew = False
        self._customer_keys = load.config.get("ledger", {}).get("customer_key")
        self._ledger_key = ledger_key
        self._unchecked = self._why_unchecked()
        self._recomputed: dict[str, dict[str, int]] = {}
        self._counted: dict[str, dict[str, int]] = {}
        self._rows = {export.path: _Rows(export.rows) for export in load.exports}

    def verify(self) -> list[ExportCounts]:
        try:
            staged = staging.read_manifest(self._folder)
        except StorageError as error:
            self._findings.wrong("staged", error.message)
            return [
                ExportCounts(export=export.path, load=self._number, read=export.rows, outcomes={})
                for export in self._load.exports
            ]
        self._job_agrees(staged)
        whole = True
        for piece in staged.pieces:
            whole &= self._piece(staged, piece)
        for part in range(staged.invalid_parts):
            whole &= self._invalid(staged, part)
        self._requests_beyond(staged)
        self._every_row(whole)
        if self._in_ledger:
            self._no_other_file(len(staged.pieces) + staged.invalid_parts)
        else:
            self._findings.wrong("settled", f"load {self._number} is not in the ledger yet")
        return self._equation(staged, whole)

    # ------------------------------------------------------------------------------------------ one staged file

    def _piece(self, staged: staging.Manifest, piece: Piece) -> bool:
        """Looks at one piece. False where its rows could not be seen."""
        name = f"load {self._number}, piece {piece.piece}"
        first, last = piece.first_request, piece.first_request + piece.rows - 1
        try:
            moves = self._journal.moves(self._number, first, last)
            standings = self._journal.standings(self._number, first, last)
        except ValueError:  # a word that is no move or no state
            self._findings.wrong("history", f"{name}: the journal holds words that no journal has")
            return False
        newest = self._journal.newest_move(self._number, first, last)
        if not staging.is_arranged(self._folder, piece.piece):
            if moves:
                self._findings.wrong("history", f"{name} was sent, but its staged files are missing")
            if self._in_ledger:
                self._findings.wrong("staged", f"{name} is in the ledger, but its staged files are missing")
            self._findings.wrong("settled", f"{name} is not arranged yet: its {piece.rows:,} rows are unsent")
            return False
        try:
            mark = stamp(staging.rows_file(self._folder, piece.piece))
            staging.check_piece(self._folder, piece.piece)
            rows = staging.rows(self._folder, piece.piece)
            sizes = self._sizes(name, rows)
            planned = staging.request_index(self._folder, piece.piece)
            played = replay(moves, sizes)
            expected = replayed_lines(
                rows,
                played,
                load=self._number,
                exports=[each.path for each in staged.exports],
                exports_by_load=self._exports_by_load,
            )
        except (StorageError, Unreadable, PolarsError, PanicException) as error:
            self._findings.wrong("staged", f"{name} cannot be read ({type(error).__name__})")
            return False
        if dict(planned.select("request", "count").iter_rows()) != sizes:
            self._findings.wrong("staged", f"{name} has rows for other requests than are planned")
        self._originals_exist(name, rows)
        if rows.height != piece.rows:
            self._findings.wrong("staged", f"{name} has {rows.height:,} rows instead of {piece.rows:,}")
        self._findings.saw("staged", "pieces", 1)
        self._findings.saw("history", "moves", len(moves))
        for fault in played.faults:
            self._findings.wrong("history", f"load {self._number}: {fault}")
        self._table_agrees(played.fates, standings, sizes)
        self._look_at(_Staged(part_path(self._number, piece.piece), newest, mark, expected))
        return True

    def _invalid(self, staged: staging.Manifest, part: int) -> bool:
        name = f"load {self._number}, invalid rows {part}"
        paths = dict(enumerate(each.path for each in staged.exports))
        try:
            mark = stamp(staging.invalid_file(self._folder, part))
            expected = staging.invalid(self._folder, part).select(
                pl.col("export").replace_strict(paths, return_dtype=pl.String),
                "row",
                "line",
                "customer_key",
                "customer_key_name",
                "timestamp",
                pl.lit("invalid").alias("outcome"),
                "reasons",
                pl.lit(None, pl.String).alias("duplicate_of"),
                pl.lit(self._number, pl.Int32).alias("load"),
                pl.lit(None, pl.Int64).alias("request"),
                pl.lit(None, pl.Int16).alias("position"),
                pl.lit(0, pl.Int32).alias("attempts"),
                pl.lit(None, pl.Int16).alias("http_status"),
                "tid",
                pl.lit(value=False).alias("maybe_duplicate"),
                pl.lit(None, LEDGER_SCHEMA["sent_at"]).alias("sent_at"),
                pl.lit(None, LEDGER_SCHEMA["settled_at"]).alias("settled_at"),
                pl.lit(None, pl.Int32).alias("execution"),
            )
        except (StorageError, Unreadable, PolarsError, PanicException) as error:
            self._findings.wrong("staged", f"{name} cannot be read ({type(error).__name__})")
            return False
        self._findings.saw("staged", "files of invalid rows", 1)
        self._look_at(_Staged(part_path(self._number, len(staged.pieces) + part), 0, mark, expected))
        return True

    def _originals_exist(self, name: str, rows: pl.DataFrame) -> None:
        """A duplicate names an earlier load, or its own, and a row that was read there."""
        repeats = rows.filter(pl.col("duplicate_of_row").is_not_null()).select(
            pl.col("duplicate_of_load").fill_null(self._number).alias("load"), "duplicate_of_export", "duplicate_of_row"
        )
        for load, export, first, last in (
            repeats.group_by("load", "duplicate_of_export")
            .agg(first=pl.col("duplicate_of_row").min(), last=pl.col("duplicate_of_row").max())
            .iter_rows()
        ):
            read = self._rows_read.get(load, []) if load <= self._number else []
            if export >= len(read) or not 1 <= first <= last <= read[export]:
                self._findings.wrong("staged", f"{name} has duplicates of rows that load {load} does not have")

    def _sizes(self, name: str, rows: pl.DataFrame) -> dict[int, int]:
        """Interactions by request. Positions have to be 0, 1, 2, ... in each."""
        requests = (
            rows.filter(pl.col("request").is_not_null())
            .group_by("request")
            .agg(size=pl.len(), distinct=pl.col("position").n_unique(), last=pl.col("position").max())
        )
        gaps = requests.filter((pl.col("distinct") != pl.col("size")) | (pl.col("last") != pl.col("size") - 1))
        for request in gaps["request"].sort().to_list():
            self._findings.wrong("staged", f"{name}: the positions of request {request} are not 0, 1, 2, ...")
        return dict(requests.select("request", "size").iter_rows())

    def _table_agrees(
        self, fates: Mapping[Part, Fate], standings: Sequence[Standing], sizes: Mapping[int, int]
    ) -> None:
        table = {
            each.part: Fate(
                each.state,
                each.attempts,
                each.http_status,
                each.cause,
                each.reason,
                each.tid,
                each.sent_at_ms,
                each.settled_at_ms,
                each.execution,
                each.maybe_duplicate,
            )
            for each in standings
        }
        self._findings.saw("parts", "parts", len(table))
        for part in sorted(table.keys() | fates.keys()):
            kept, made = table.get(part), fates.get(part)
            if kept == made:
                continue
            if kept is None or made is None:
                finding = "is not in the table" if kept is None else "is in the table, but never moved"
            else:
                fields = [name for name in Fate._fields if getattr(kept, name) != getattr(made, name)]
                finding = f"differs in {', '.join(fields)}"
                if "state" in fields:
                    finding += f": the table says {kept.state}, the history {made.state}"
            self._findings.wrong("parts", f"load {self._number}, request {part} {finding}")
        leaves = [part for part, fate in table.items() if fate.state is not State.SPLIT]
        for fault in untiled(leaves, sizes):
            self._findings.wrong("parts", f"load {self._number}, {fault}")

    # ------------------------------------------------------------------------------------------ one ledger part

    def _look_at(self, staged: _Staged) -> None:
        """Counts what a staged file comes to, and compares it with its part of the ledger, if it has one."""
        staged = staged._replace(expected=self._with_customers_named(staged.expected))
        add_counts(self._recomputed, count_outcomes(staged.expected))
        lines = self._compare(staged) if self._in_ledger else staged.expected
        if lines is None:
            return
        if self._in_ledger:
            add_counts(self._counted, count_outcomes(lines))
        for (export,), of_export in lines.select("export", "row").partition_by("export", as_dict=True).items():
            rows = self._rows.get(str(export))
            if rows is not None:  # else the export's name differs, which is a finding already
                rows.tick(of_export["row"].to_list())

    def _why_unchecked(self) -> str | None:
        """Why the ledger's customer keys cannot be compared, in a few words; None where they can."""
        if self._customer_keys != "hmac":
            return None
        if self._ledger_key is None:
            return "BACKFILL_LEDGER_KEY is not set"
        if self._entry is not None and self._entry.customer_keys != made_with("hmac", self._ledger_key):
            return "made with another BACKFILL_LEDGER_KEY; a run writes them anew"
        return None

    def _with_customers_named(self, expected: pl.DataFrame) -> pl.DataFrame:
        """The lines with customers named as the load's ledger does, if that can be known here."""
        if self._customer_keys == "omit":
            nobody = pl.lit(None, pl.String)
            return expected.with_columns(customer_key=nobody, customer_key_name=nobody)
        if self._customer_keys == "hmac" and self._unchecked is None and self._ledger_key is not None:
            secret = self._ledger_key.encode()
            keys = expected["customer_key"].drop_nulls().unique().to_list()
            names = {key: hmac.digest(secret, key.encode(), "sha256").hex() for key in keys}
            return expected.with_columns(pl.col("customer_key").replace_strict(names, return_dtype=pl.String))
        return expected

    def _compare(self, staged: _Staged) -> pl.DataFrame | None:
        """The lines of the part, None where they cannot be read or belong to rows that were staged anew."""
        name = f"ledger/{staged.part}"
        entry = self._parts.get(staged.part)
        if entry is None:
            self._findings.wrong("files", f"{name} is not named by the manifest")
            return None
        if staged.moves < entry.journal_moves:
            self._findings.wrong("history", f"the journal lacks moves that {name} was made from")
        # A run writes a part anew that was made from fewer moves or other rows, and it may have been killed after
        # that and before the manifest: then neither its checksum nor its outcomes mean anything.
        current = (entry.journal_moves, entry.staged) == (staged.moves, staged.stamp)
        if not current:
            self._all_current = False
            self._findings.wrong("settled", f"{name} is older than the journal or staging")
        try:
            if current and self._ledger.sha256(staged.part) != entry.sha256:
                self._findings.wrong("files", f"{name} was changed or damaged (checksum); delete it and run again")
            lines = self._ledger.read_part(staged.part)
        except Unreadable as error:
            self._findings.wrong("files", str(error))
            return None
        self._findings.saw("files", "parts", 1)
        if dict(lines.schema) != dict(LEDGER_SCHEMA):
            self._findings.wrong("files", f"{name} has other columns than a ledger")
            return None
        if current and (lines.height != entry.rows or count_outcomes(lines) != entry.outcomes):
            self._findings.wrong("files", f"{name} has other counts than the manifest says")
        if entry.staged == staged.stamp:
            self._compare_lines(name, lines, staged.expected, with_fates=current)
            return lines
        self._staged_anew = True
        return None

    def _compare_lines(self, name: str, lines: pl.DataFrame, expected: pl.DataFrame, *, with_fates: bool) -> None:
        there = pl.lit(value=True)
        both = expected.with_columns(is_staged=there).join(
            lines.with_columns(is_line=there), on=["export", "row"], how="full", coalesce=True, suffix=" in ledger"
        )
        in_both = both.filter(pl.col("is_staged") & pl.col("is_line"))
        self._report(f"{name} lacks", both.filter(pl.col("is_line").is_null()), "lines")
        self._report(f"{name} has unstaged", both.filter(pl.col("is_staged").is_null()), "lines")
        self._report(f"{name} doubles", lines.filter(pl.struct("export", "row").is_duplicated()), "lines")
        for check, columns in (("lines", _STAGED_COLUMNS), ("outcomes", _FATE_COLUMNS if with_fates else ())):
            for column in columns:
                if column == "customer_key" and self._unchecked is not None:
                    self._findings.saw("lines", f"customer keys not compared ({self._unchecked})", lines.height)
                    continue
                differ = in_both.filter(pl.col(column).ne_missing(pl.col(f"{column} in ledger")))
                self._report(f"{name} has another {column} for", differ, check)
        self._findings.saw("lines", "rows", lines.height)
        if with_fates:
            self._findings.saw("outcomes", "rows", lines.height)

    def _report(self, what: str, rows: pl.DataFrame, check: str) -> None:
        if rows.is_empty():
            return
        first = rows.sort("export", "row").row(0, named=True)
        of_request = "" if first["request"] is None else f" (request {self._number}/{first['request']})"
        self._findings.wrong(
            check, f"{what} {rows.height:,} rows, first {first['export']} row {first['row']}{of_request}"
        )

    # ------------------------------------------------------------------------------------------ the load as a whole

    def _job_agrees(self, staged: staging.Manifest) -> None:
        frozen = [(export.path, export.rows) for export in self._load.exports]
        if [(export.path, export.rows) for export in staged.exports] != frozen:
            self._findings.wrong(
                "staged", f"the staged manifest of load {self._number} names other exports or rows than job.toml"
            )

    def _requests_beyond(self, staged: staging.Manifest) -> None:
        """Requests that no piece can hold. Those before the first one are of an earlier staging: none was applied."""
        first_request = staged.pieces[0].first_request if staged.pieces else _LAST_REQUEST
        beyond = first_request + sum(piece.rows for piece in staged.pieces)
        if not _nothing_applied(self._journal, self._number, 1, first_request - 1):
            self._findings.wrong("history", f"load {self._number} was staged anew after rows of it had been sent")
        for first, last in ((-_LAST_REQUEST, 0), (beyond, _LAST_REQUEST)):
            if self._journal.newest_move(self._number, first, last):
                self._findings.wrong("history", f"load {self._number} has moves of requests that were never staged")
            if self._journal.standings(self._number, first, last):
                self._findings.wrong("parts", f"load {self._number} has parts of requests that were never staged")

    def _every_row(self, whole: bool) -> None:
        if self._staged_anew:
            return  # the ledger's rows are those of the staging before
        check = "rows" if self._in_ledger else "staged"
        for export, rows in self._rows.items():
            found = rows.extra() + (rows.missing() if whole or self._in_ledger else [])
            for each in found:
                self._findings.wrong(check, f"load {self._number}, {export}: {each}")
            self._findings.saw(check, "exports", 1)

    def _no_other_file(self, parts: int) -> None:
        """The manifest names the parts of this load and no others, and no other file lies among them."""
        expected = {part_path(self._number, part) for part in range(parts)}
        on_disk = {path for path in self._ledger.files() if path.startswith(f"{self._number}/")}
        for path in sorted((self._parts.keys() | on_disk) - expected):
            self._findings.wrong("files", f"ledger/{path} does not belong to the ledger")

    def _equation(self, staged: staging.Manifest, whole: bool) -> list[ExportCounts]:
        exports = []
        for export in staged.exports:
            counts = self._recomputed.get(export.path, {})
            name = f"load {self._number}, {export.path}"
            if not whole and not self._in_ledger:
                seen = sum(counts.values()) - counts.get("invalid", 0)
                counts = {**counts, "unsent": counts.get("unsent", 0) + export.valid - seen}
            account = ExportCounts(
                export=export.path,
                load=self._number,
                read=export.rows,
                outcomes={outcome: counts.get(outcome, 0) for outcome in OUTCOMES},
            )
            exports.append(account)
            self._findings.saw("equation", "exports", 1)
            if not account.balanced:
                total = sum(account.outcomes.values())
                self._findings.wrong("equation", f"{name}: {export.rows:,} rows were read, {total:,} have an outcome")
            if account.outcomes["invalid"] != export.invalid:
                self._findings.wrong(
                    "equation",
                    f"{name}: {export.invalid:,} rows were invalid when read, now {account.outcomes['invalid']:,}",
                )
            if self._all_current:
                self._ledger_counts(name, export.path, account)
        return exports

    def _ledger_counts(self, name: str, path: str, account: ExportCounts) -> None:
        assert self._entry is not None
        said = next((each for each in self._entry.exports if each.export == path), None)
        if said is None or said.read != account.read or dict(said.outcomes) != dict(account.outcomes):
            self._findings.wrong("equation", f"{name}: the ledger's manifest has other counts")
        counted = self._counted.get(path, {})
        if {outcome: counted.get(outcome, 0) for outcome in OUTCOMES} != account.outcomes:
            self._findings.wrong("equation", f"{name}: the ledger's parts have other counts")


def _no_other_load(journal: Journal, manifest: Manifest, loads: int, findings: _Findings) -> None:
    """Nothing was sent or accounted for that job.toml does not know of."""
    # What was tried and not applied may be staged anew; stopped before that is frozen, it is in no load for a while.
    if not _nothing_applied(journal, loads + 1, -_LAST_REQUEST, _LAST_REQUEST):
        findings.wrong("history", f"load {loads + 1} was sent, but job.toml does not know it")
    named = {load.load for load in manifest.loads} | {part.load for part in manifest.parts}
    for load in sorted(named):
        if not 1 <= load <= loads:
            findings.wrong("files", f"the ledger's manifest names load {load}, which job.toml does not know")


_STATE_AFTER = {move: after for (_, move), after in MOVES.items()}


def _nothing_applied(journal: Journal, load: int, first_request: int, last_request: int) -> bool:
    """Whether the history left all of these requests planned, and none of them was ever sent again on a guess."""
    states: dict[Part, State] = {}
    try:
        moves = journal.moves(load, first_request, last_request)
    except ValueError:  # a word that is no move
        return False
    for made, _, _ in moves:
        states[made.part] = _STATE_AFTER[made.move]
        states |= dict.fromkeys(made.into, STATE_OF_PARTS.get(made.move, State.PLANNED))
    again = any(made.move is Move.DECIDED_RESEND for made, _, _ in moves)
    return not again and all(state in (State.PLANNED, State.SPLIT) for state in states.values())
