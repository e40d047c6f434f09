"""The breaker for failures: a server that does not answer usefully gets one request at a time, then none.

Open from the start of an execution until its first useful answer, so that a server that is down, or answers nothing
usable, meets one request and not as many as there are connections. Decides only; `dispatch` acts.
"""

RETRIES_FREE = 100
RETRIES_PER_CALL = 0.5
"""The retry budget: so many calls may repeat others, and half of all calls besides. Each costs the customer licence."""


class Breaker:
    """`open`: only one request may be in the air, each a probe that waits its turn."""

    def __init__(self, *, failures: int) -> None:
        """`failures`: so many in a row open it; so many doubtful probes end the delivery."""
        self._most = failures
        self._doubtful_probes = 0
        self._retries = 0
        self._calls = 0
        self._failures = 0
        self.failed_probes = 0
        """In a row. The wait before the next grows with them, not with the failures: those that were in the air
        together, as when a tenant's limit is passed, are one event."""
        self.open = True

    def called(self) -> None:
        self._calls += 1

    def answered(self) -> None:
        """A useful answer: the server works."""
        self.open = False
        self._failures = self.failed_probes = self._doubtful_probes = 0

    def failed(self, *, probe: bool, doubtful: bool = False) -> None:
        """No useful answer. `probe`: it started while this was open; `doubtful`: it left its request in doubt."""
        self._failures += 1
        self.failed_probes += probe
        self._doubtful_probes += probe and doubtful
        if self._failures >= self._most:
            self.open = True

    def retried(self) -> None:
        """A call is to be repeated that changed nothing."""
        self._retries += 1

    @property
    def burns(self) -> bool:
        """More probes would only put more requests in doubt."""
        return self._doubtful_probes >= self._most

    @property
    def out_of_retries(self) -> bool:
        return self._retries > RETRIES_FREE + RETRIES_PER_CALL * self._calls
