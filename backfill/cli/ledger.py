"""`backfill ledger`: rows of the ledger as CSV, JSON lines or Parquet.

Reads part by part, so memory stays flat whatever the size of the job. The one command beside `plan` whose standard
output shows customers' values.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from backfill.cli import options, output
from backfill.core.errors import StorageError, Unusable
from backfill.core.summary import OUTCOMES

if TYPE_CHECKING:
    import polars as pl

    from backfill.adapters.ledger import Ledger, Manifest, PartEntry

ROWS_AT_ONCE = 20_000
"""Rows turned into text at once: some megabytes, and enough to be fast."""

_FORMULA = r"[=+\-@\x{FF1D}\x{FF0B}\x{FF0D}\x{FF20}]"
"""What begins a formula, in full width too: some spreadsheets in East Asia take those. Source: OWASP, "CSV
Injection"."""

_FIRST = rf"^('*\s*(?:{_FORMULA}|[\t\r\n]))"
_LATER = rf"([;\t\r\n])('*[\p{{Zs}}]*{_FORMULA})"
"""Inside a value, after what a spreadsheet may take for the end of a cell if it reads the file with another
delimiter."""

Write = Callable[[bytes], object]


@click.command("ledger", short_help="Print what became of each row.")
@options.config
@options.state
@options.sandbox_state
@click.option("--outcome", "outcomes", multiple=True, type=click.Choice(OUTCOMES), help="Only these; may be repeated.")
@click.option("--export", "exports", multiple=True, metavar="NAME", help="Only rows of this export; may be repeated.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["csv", "jsonl", "parquet"]),
    help="How rows are written: csv (default), JSON lines, or Parquet.",
)
@click.option("--json", "as_json", is_flag=True, help="JSON lines; errors as one JSON object.")
@click.option(
    "--output", "target", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Else standard output."
)
def command(
    config_file: Path | None,
    state: Path | None,
    sandbox: bool,
    outcomes: tuple[str, ...],
    exports: tuple[str, ...],
    form: str | None,
    as_json: bool,
    target: Path | None,
) -> int:
    """Prints rows of the ledger, each with its outcome and reasons. Holds customers' values.

    CSV is made safe for spreadsheets: where one would see a formula (= + - @, a tab or a line end at the beginning of
    a value, or after ; tab or line end in it) a ' is put before it; taking that ' away gives back the value. JSON
    lines and Parquet give values as they are.

    \b
    Example
        backfill ledger --state .backfill/june --outcome invalid --outcome rejected --output refused.csv
    """
    if as_json and form not in (None, "jsonl"):
        raise click.UsageError(f"--json prints JSON lines; it cannot be combined with --format {form}.")
    form = form or ("jsonl" if as_json else "csv")
    if form == "parquet" and target is None:
        raise click.UsageError("Parquet cannot be printed. Add --output FILE.")
    from backfill.adapters.ledger import Ledger, Unreadable
    from backfill.cli import settings

    place = settings.locate_state(config_file=config_file, state=state, sandbox=sandbox, environment=os.environ)
    settings.existing_state(place)
    ledger = Ledger(place)
    try:
        manifest = ledger.read_manifest()
        if manifest is None:
            raise Unusable(f"{place} has no ledger yet: it is written when `backfill run` settles.")
        chosen = named_exports(exports, manifest)
        if form == "parquet":
            assert target is not None
            write_parquet(ledger, manifest, outcomes, chosen, target)
        elif target is not None:
            with replaced(target) as file:
                write_text(ledger, manifest, outcomes, chosen, form, file.write)
        else:
            write_text(ledger, manifest, outcomes, chosen, form, output.result_bytes)
    except Unreadable as error:
        raise StorageError(
            f"In {place}: {error}. The next `backfill run` writes missing and damaged parts anew."
        ) from None
    return 0


def named_exports(names: Sequence[str], manifest: "Manifest") -> list[str]:
    """The exports meant by `names`: whole paths as in the ledger, or file names where only one export has it.

    Raises: click.UsageError, naming what there is.
    """
    known = list(dict.fromkeys(export.export for load in manifest.loads for export in load.exports))
    chosen = []
    for name in names:
        found = [export for export in known if export == name] or [
            export for export in known if Path(export).name == name or Path(export) == Path(name).absolute()
        ]
        if len(found) != 1:
            problem = "names more than one export" if found else "is no export of this job"
            there = ", ".join((found or known)[:5]) or "none yet"
            raise click.UsageError(f"--export {name} {problem}. There are: {there}.")
        chosen += found
    return chosen


def parts(manifest: "Manifest", outcomes: Sequence[str], exports: Sequence[str]) -> "list[PartEntry]":
    """The parts that hold any such row, by the counts that the manifest keeps."""
    return [
        part
        for part in manifest.parts
        if any(
            count and (not exports or export in exports) and (not outcomes or outcome in outcomes)
            for export, counts in part.outcomes.items()
            for outcome, count in counts.items()
        )
    ]


def condition(outcomes: Sequence[str], exports: Sequence[str]) -> "pl.Expr":
    import polars as pl

    wanted = pl.lit(value=True)
    if outcomes:
        wanted = wanted & pl.col("outcome").is_in(list(outcomes))
    if exports:
        wanted = wanted & pl.col("export").is_in(list(exports))
    return wanted


def write_text(
    ledger: "Ledger",
    manifest: "Manifest",
    outcomes: Sequence[str],
    exports: Sequence[str],
    form: str,
    write: Write,
) -> None:
    """Raises: Unreadable for a part that is missing or damaged."""
    spell = csv_lines if form == "csv" else _jsonl
    if form == "csv":
        write(csv_header())
    for part in parts(manifest, outcomes, exports):
        lines = ledger.read_part(part.path).filter(condition(outcomes, exports))
        for some in lines.iter_slices(ROWS_AT_ONCE):
            write(spell(some))


def csv_header() -> bytes:
    from backfill.core.account import LEDGER_SCHEMA

    return (",".join(LEDGER_SCHEMA) + "\n").encode()


def csv_lines(lines: "pl.DataFrame") -> bytes:
    import polars as pl
    import polars.selectors as cs

    flat = _with_iso_times(lines).with_columns(pl.col("reasons").list.join("; "))
    text = cs.string()
    # Marks that stand there already get another, so that taking one away always gives back the value.
    safe = flat.with_columns(text.str.replace_all(_LATER, "${1}'${2}").str.replace(_FIRST, "'${1}"))
    return safe.write_csv(include_header=False).encode()


def _jsonl(lines: "pl.DataFrame") -> bytes:
    return _with_iso_times(lines).write_ndjson().encode()


def _with_iso_times(lines: "pl.DataFrame") -> "pl.DataFrame":
    import polars as pl
    import polars.selectors as cs

    return lines.with_columns(
        cs.datetime("us", "*").dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ"),
        cs.datetime("ms", "*").dt.strftime("%Y-%m-%dT%H:%M:%S%.3fZ"),
    ).with_columns(pl.col("reasons").fill_null([]))


def write_parquet(
    ledger: "Ledger", manifest: "Manifest", outcomes: Sequence[str], exports: Sequence[str], target: Path
) -> None:
    """One file from all parts, streamed. Raises: Unreadable, StorageError."""
    import polars as pl

    from backfill.adapters.ledger import Unreadable
    from backfill.core.account import LEDGER_SCHEMA

    files = [ledger.folder / part.path for part in parts(manifest, outcomes, exports)]
    lines = pl.scan_parquet(files) if files else pl.LazyFrame(schema=LEDGER_SCHEMA)
    with replaced(target) as file:
        try:
            lines.filter(condition(outcomes, exports)).sink_parquet(file, compression="zstd")
        except (pl.exceptions.PolarsError, FileNotFoundError) as error:
            raise Unreadable(f"A part of {ledger.folder} cannot be read") from error


@contextmanager
def replaced(target: Path, option: str = "--output") -> Iterator[IO[bytes]]:
    """Yields a file that takes the place of `target` once all is written; only its owner can read it.

    Raises: StorageError.
    """
    temporary = target.with_name(target.name + ".tmp")
    try:
        temporary.unlink(missing_ok=True)  # of a killed process, or a link that somebody laid there
        with open(temporary, "wb", opener=lambda path, flags: os.open(path, flags | os.O_EXCL, 0o600)) as file:
            os.fchmod(file.fileno(), 0o600)  # whatever the umask
            yield file
        temporary.replace(target)
    except OSError as error:
        raise StorageError(f"{target} cannot be written ({error.strerror}). Choose another {option}.") from None
    finally:
        temporary.unlink(missing_ok=True)
