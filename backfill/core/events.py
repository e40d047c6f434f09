"""What the dispatch is told, and what it orders: events and commands, as plain values.

Whoever drives a dispatch (`deliver`, the simulation) speaks only in these.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from backfill.core.errors import ExitCode
from backfill.core.lifecycle import Part, Recorded
from backfill.core.reply import Verdict

# Events


class Ready(NamedTuple):
    """A part that may be sent: its lane, the attempts that the journal knows, and whether it was once in doubt."""

    lane: int
    part: Part
    attempts: int
    marked: bool = False


class Fetched(NamedTuple):
    """Answer to Fetch: work for new lanes, or for `lane`, in delivery order.

    `more`: lanes of which a later piece follows. `exhausted`: no new lanes are left in this load.
    """

    lane: int | None
    ready: Sequence[Ready]
    more: frozenset[int]
    exhausted: bool


class Connected(NamedTuple):
    part: Part


class NotSent(NamedTuple):
    """No byte of the request was handed to a socket, before the intent or after it.

    `cause` in one word, as the journal keeps it; `said` in sentences, as a person is told.
    """

    part: Part
    cause: str
    said: str = ""


class Committed(NamedTuple):
    """The intents of these parts are durable."""

    parts: Sequence[Part]


class Replied(NamedTuple):
    """A whole reply; the words in its verdict are masked."""

    part: Part
    verdict: Verdict


class Unanswered(NamedTuple):
    """At least one byte may have left, and no whole reply came; `reason` says how it ended."""

    part: Part
    reason: str
    http_status: int | None


class TokenGranted(NamedTuple):
    pass


class TokenRefused(NamedTuple):
    """The token endpoint refuses the credentials; `code` says whether they or the configuration are at fault."""

    code: ExitCode
    reason: str


class TokenFailed(NamedTuple):
    """The token endpoint could not be asked, or answered nothing usable: to be tried again."""

    reason: str


class Tick(NamedTuple):
    """Time has passed."""


class StopRequested(NamedTuple):
    """Start nothing new."""

    code: ExitCode
    reason: str


Event = (
    Fetched
    | Connected
    | NotSent
    | Committed
    | Replied
    | Unanswered
    | TokenGranted
    | TokenRefused
    | TokenFailed
    | Tick
    | StopRequested
)

# Commands


class Fetch(NamedTuple):
    """Open new lanes, or more of `lane`."""

    lane: int | None


class Connect(NamedTuple):
    part: Part


class Commit(NamedTuple):
    """Journal these moves. Intents among them are answered by Committed; the others may ride with any commit."""

    moves: Sequence[Recorded]


class Send(NamedTuple):
    """Make the attempt on the connection that this part holds."""

    part: Part
    attempt: int


class Release(NamedTuple):
    """Give the connection back unused."""

    part: Part


class RefreshToken(NamedTuple):
    pass


Command = Fetch | Connect | Commit | Send | Release | RefreshToken


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """Why no further request starts; `resume_after_s` from now, where the server said when."""

    code: ExitCode
    reason: str
    resume_after_s: float | None = None
