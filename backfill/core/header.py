"""What the first lines of a CSV say about its columns, and what to change if they say something else than expected.

Pure text in, sentences out. A record that may be data is shown by its shape only: never a customer's value.
"""

import re
from collections.abc import Iterable, Sequence

from backfill.core.config import Csv
from backfill.core.errors import ExportError
from backfill.core.wording import spelled

_DELIMITERS = (",", ";", "\t", "|")
_LINES = 50
"""So many lines are looked at: longer preambles than that are not guessed."""

_GIVE_ONE = "Give it one; or if the table begins further down, set csv.skip_lines."

# A date, a number, an address, or so many digits in a row that it is an id.
_DATA = re.compile(r"\d{1,4}[-./]\d{1,2}[-./]\d{1,4}|^\s*[-+]?\d+([.,:]\d+)*\s*$|@|://|\d{5}")


def looks_like_data(names: Iterable[str]) -> bool:
    """Whether a record that should be a header holds what headers do not hold: dates, numbers, addresses, ids."""
    return any(_DATA.search(name) for name in names)


def shape(text: str, most: int = 24) -> str:
    """`text` with its letters and digits made unrecognisable: 9 for a digit, a or A for a letter."""
    masked = "".join(
        "9" if char.isdigit() else "A" if char.isupper() else "a" if char.isalpha() else char if char.isascii() else "?"
        for char in text[:most]
    )
    return masked if len(text) <= most else masked + "..."


def shown(names: Sequence[str], most: int = 20) -> str:
    """The names of a header, or the shapes of what does not look like one."""
    is_data = looks_like_data(names)
    listed = ", ".join(repr(shape(name) if is_data else name) for name in names[:most])
    return listed if len(names) <= most else f"{listed} and {len(names) - most} more"


def check(names: Sequence[str], export: str) -> None:
    """Raises ExportError for columns without a name and for two of one name: nobody could tell what is meant."""
    hint = headerless(names) if looks_like_data(names) else ""
    seen: dict[str, int] = {}
    for position, name in enumerate(names, start=1):
        if not name.strip():
            raise ExportError(f"{export}: column {position} has no name in the header. " + (hint or _GIVE_ONE))
        if name in seen:
            called = "have the same name" if hint else f"are named {name!r}"
            raise ExportError(
                f"{export}: columns {seen[name]} and {position} {called}. "
                + (hint or "Rename one, or name all columns by csv.skip_lines and csv.header.")
            )
        seen[name] = position


def headerless(names: Sequence[str]) -> str:
    """What to do where the first record is no header."""
    return (
        f"The first record looks like data ({shown(names, 6)}). If the export has no header, name its "
        f"{len(names)} columns in their order: csv.header = [...]."
    )


def advice(wanted: Sequence[str], header: Sequence[str], beginning: Sequence[str], options: Csv) -> str:
    """Why the columns `wanted` may not be in `header`, as a sentence; empty if these lines do not tell.

    `beginning`: the first lines of the file, decoded, before anything was skipped.
    """
    if options.header is not True:
        return ""
    best, most = None, len(set(wanted).intersection(header))
    for skipped, line in enumerate(beginning[:_LINES]):
        for delimiter in dict.fromkeys((options.delimiter, *_DELIMITERS)):
            found = len(set(wanted).intersection(_fields(line, delimiter, options.quote)))
            if found > most:
                best, most = (delimiter, skipped), found
    if best is not None:
        delimiter, skipped = best
        changes = [f"csv.delimiter = {spelled(delimiter)}"] if delimiter != options.delimiter else []
        if skipped != options.skip_lines and any(
            line.strip() for line in beginning[options.skip_lines : skipped] or beginning[skipped : options.skip_lines]
        ):
            changes.append(f"csv.skip_lines = {skipped}")
        if changes:
            return f"Line {skipped + 1} reads like the header: set {' and '.join(changes)}."
    others = {other: header[0].count(other) for other in _DELIMITERS if other != options.delimiter}
    likely = max(others, key=lambda other: others[other])
    if len(header) == 1 and others[likely]:
        return (
            f"Its header is a single column and holds {spelled(likely)} {others[likely]} times. "
            f"If that separates the columns, set csv.delimiter = {spelled(likely)}."
        )
    return headerless(header) if looks_like_data(header) else ""


def _fields(line: str, delimiter: str, quote: str) -> list[str]:
    fields = line.rstrip("\r").split(delimiter)
    return [field.strip(quote) for field in fields] if quote else fields
