"""Authorisation: whether there is a token to send with, and what a 401 means.

One token serves all requests and is asked for by one at a time. A 401 mostly means that a token has expired; one that
lets nobody in from the start means that the credentials are wrong. Decides only; `dispatch` acts.
"""

import math

YOUNG_S = 60.0
"""A token that was refused at its first use at this age or older may have expired while it waited for a server that
could not be reached."""


class Authorisation:
    """`generation` numbers the tokens from 1; `valid`: nobody has been refused with the present one."""

    def __init__(self) -> None:
        self.generation = 0
        self.valid = False
        self.failures = 0
        """Of the token endpoint, in a row."""
        self._asked = False
        self._ask_at_s = -math.inf
        self._granted_at_s = -math.inf
        self._let_in = False  # somebody, with the present token
        self.suspect = False
        """The present token was refused at its first use. Replies overtake each other: one that is still to come may
        show that it let somebody in before."""

    @property
    def wanted_at_s(self) -> float:
        """When a token is to be asked for; infinity where none is wanted."""
        return math.inf if self.valid or self._asked or self.suspect else self._ask_at_s

    def asked(self) -> None:
        self._asked = True

    def granted(self, now_s: float) -> None:
        self._asked = False
        self.generation += 1
        self.valid = True
        self.failures = 0
        self._granted_at_s = now_s
        self._let_in = False

    def failed(self) -> None:
        self._asked = False
        self.failures += 1

    def not_before(self, at_s: float) -> None:
        """Do not ask again earlier than this."""
        self._ask_at_s = at_s

    def let_in(self, generation: int) -> None:
        """A request was looked at that was sent with this token."""
        if generation == self.generation:
            self._let_in = True
            self.suspect = False

    def refused(self, generation: int, sent_s: float) -> None:
        """A request that was sent with this token met a 401."""
        if generation == self.generation and self.valid:
            self.valid = False
            self.suspect = not self._let_in and sent_s - self._granted_at_s < YOUNG_S
