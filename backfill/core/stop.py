"""The wish of a person or a scheduler that an execution ends: once means start nothing new, twice means now.

Never hears a signal itself and never ends anything; whoever works asks, or is told.
"""

from collections.abc import Callable


class Stop:
    """What was asked for so far.

    `request` may be called from a signal handler at any time.
    """

    def __init__(self) -> None:
        self.requests = 0
        self._told: Callable[[], None] | None = None

    @property
    def requested(self) -> bool:
        return self.requests > 0

    def request(self) -> None:
        self.requests += 1
        if self._told is not None:
            self._told()

    def tell(self, told: Callable[[], None] | None) -> None:
        """Call `told` at each request from now on; None ends it."""
        self._told = told
