"""What an execution came to: the closing equation, the exit code, the next step.

Counts in, verdict out; never reads the ledger and never prints.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

from backfill.core.errors import ExitCode, worst

OUTCOMES = ("delivered", "invalid", "rejected", "duplicate", "in_doubt", "abandoned", "unsent")
"""Every row has exactly one of these; `unsent` is the only one that a later execution still changes by itself."""


class Progress(NamedTuple):
    """Where an execution stands, for a progress bar, a log line and status.json.

    `phase`: spooling, arranging, delivering, settling. Rows are rows of the current phase; `rows_total` is None while
    the exports have not been read to the end.
    """

    phase: str
    rows_done: int
    rows_total: int | None
    requests: int = 0
    in_doubt: int = 0
    rejected: int = 0
    budget_share: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportCounts:
    """The rows of one export by outcome; `read` is counted by the reader, not by adding up the outcomes."""

    export: str
    load: int
    read: int
    outcomes: Mapping[str, int]

    @property
    def balanced(self) -> bool:
        """The closing equation: read = delivered + invalid + rejected + duplicate + in_doubt + abandoned + unsent."""
        return self.read == sum(self.outcomes.get(name, 0) for name in OUTCOMES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The account of the named exports (or of the whole job) after an execution.

    `requests` counts attempts on the wire of this execution: what it cost. `stopped` is the sentence that says why
    it ended early, None when it went through. `remaining_calls`: about how many it takes to send what is unsent,
    `remaining_s`: how long at the budget.
    """

    exports: tuple[ExportCounts, ...]
    exit_code: ExitCode
    ledger: str
    state: str
    execution: int
    requests: int
    duration_s: float
    stopped: str | None = None
    resume_after: str | None = None
    remaining_calls: int = 0
    remaining_s: float = 0.0
    not_taken: tuple[str, ...] = ()
    warnings: tuple[str, ...] = field(default=())

    @property
    def read(self) -> int:
        return sum(export.read for export in self.exports)

    def count(self, outcome: str) -> int:
        return sum(export.outcomes.get(outcome, 0) for export in self.exports)

    @property
    def balanced(self) -> bool:
        return all(export.balanced for export in self.exports)


def refused_limit(max_rejected: str | int, read: int) -> int:
    """How many of the `read` rows of an export may be invalid or rejected. Rounded down: "1%" of 250 is 2."""
    if isinstance(max_rejected, int):
        return max_rejected
    # As a fraction, since a float would make 56 rows of 0.57% of 10,000.
    return int(Fraction(max_rejected.rstrip("% ")) * read / 100)


def exit_code(
    exports: tuple[ExportCounts, ...],
    *,
    max_rejected: str | int,
    max_in_doubt: int,
    stopped: ExitCode = ExitCode.COMPLETE,
) -> ExitCode:
    """The code for these exports, whichever execution did the work. Unsent rows mean 75 even without a stop."""
    codes = [stopped]
    if any(export.outcomes.get("unsent", 0) for export in exports):
        codes.append(ExitCode.STOPPED_EARLY)
    if sum(export.outcomes.get("in_doubt", 0) for export in exports) > max_in_doubt:
        codes.append(ExitCode.ROWS_IN_DOUBT)
    for export in exports:
        refused = export.outcomes.get("invalid", 0) + export.outcomes.get("rejected", 0)
        if refused > refused_limit(max_rejected, export.read):
            codes.append(ExitCode.ROWS_REFUSED)
    return worst(*codes)
