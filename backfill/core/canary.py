"""The canary: a breaker for refusals.

A refusal (400, 413, 422) says something about rows only beside an acknowledgement: a wrong mapping is refused row by
row exactly as a bad row is. So until the next acknowledgement a refusal is not believed, and a long row of them lets
one request at a time through, or stops the job, with nothing rejected. Decides only; `dispatch` acts.
"""

MOST_HOPELESS = 2
"""Requests refused to their last row, without any acknowledgement between, after which an open canary stops the job.
One may be all bad; of two in a row we rather think that it is not the rows."""


class Canary:
    """`open`: only one request may be in the air. `gives_up`: nothing may start any more."""

    def __init__(self, *, calls: int, proven: bool) -> None:
        """`calls`: refusals in a row that are too many. `proven`: the job has been acknowledged as it is configured
        now, and did not end in refusals."""
        self._calls = calls
        self._refusals = 0
        self._hopeless = 0
        self.open = not proven
        self.open_from_start = not proven

    def acknowledged(self) -> None:
        """The configuration is right: whatever was refused was so for its rows."""
        self.open = self.open_from_start = False
        self._refusals = self._hopeless = 0

    def refused(self) -> None:
        """One more refused call."""
        self._refusals += 1
        if self._refusals >= self._calls:
            self.open = True

    def refused_to_the_last_row(self) -> None:
        """A request has no row left, and its last one was refused."""
        if self.open:
            self._hopeless += 1

    @property
    def gives_up(self) -> bool:
        if self.open_from_start:
            return self._refusals >= self._calls
        return self._hopeless >= MOST_HOPELESS

    @property
    def refusals(self) -> int:
        """Refused calls since the last acknowledgement."""
        return self._refusals
