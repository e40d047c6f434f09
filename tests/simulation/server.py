"""The simulated tenant: the API and its token endpoint, with their own account of what they did.

It answers real statuses and bodies, which `core.reply` reads. Decides nothing about the client.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from random import Random
from typing import NamedTuple

from backfill.core import reply
from backfill.core.config import Wire
from backfill.core.lifecycle import Part
from backfill.core.reply import Fate, Verdict
from tests.simulation.disk import rows_of
from tests.simulation.scenario import Manner, Phase, Row, Scenario

TIMEOUT_S = 10.0
"""How long the client waits for a reply."""

_WIRE = Wire()
_NOW = datetime(2024, 5, 1, tzinfo=UTC)
_CALM = Phase(calls=math.inf)


class Answer(NamedTuple):
    """What the server does with a call: the rows it applies at once or later, and what the client sees, when.

    `verdict` is None where no whole reply comes; `stale`: the connection was closed before a byte had left.
    """

    verdict: Verdict | None
    after_s: float
    applies: Sequence[Row] = ()
    applies_later: Sequence[Row] = ()
    stale: bool = False


class Token:
    """An access token: for so many uses, until some time."""

    def __init__(self, uses: float, until_s: float, *, dead: bool) -> None:
        self.uses = uses
        self.until_s = until_s
        self.dead = dead
        self.accepted = False
        self.refused = False


_LOOKED_AT = frozenset({Fate.ACKNOWLEDGED, Fate.REFUSED, Fate.TOO_LARGE})
"""Answers that show the client that its token was accepted; others do not use it up."""


class Server:
    """`applied`, `log`: what was done, as the server itself counts it. `named`: rows that it refused alone, by name, or
    in a whole request where that rejects them all."""

    def __init__(self, scenario: Scenario, chance: Random) -> None:
        self._scenario = scenario
        self._chance = chance
        self._phases = list(scenario.phases)
        self._calls_in_phase = 0
        self.calm = False
        self.applied: Counter[Row] = Counter()
        self.log: list[tuple[float, Row]] = []
        self.named: set[Row] = set()
        self.skipped: set[Row] = set()  # left out of a request of which other rows were applied
        self.seen: Counter[str] = Counter()

    @property
    def phase(self) -> Phase:
        return self._phases[0] if self._phases and not self.calm else _CALM

    def next_phase(self) -> None:
        """Behave otherwise from now on."""
        del self._phases[:1]
        self._calls_in_phase = 0

    def _count(self) -> None:
        self._calls_in_phase += 1
        if self._calls_in_phase > self.phase.calls:
            self.next_phase()

    # The token endpoint

    def token(self, now_s: float) -> Token | str:
        """A token, or how it failed: "fails", "refuses"."""
        phase = self.phase
        if self._chance.random() < phase.token_fails:
            self._count()
            return "fails"
        if self._chance.random() < phase.token_refused:
            self._count()
            return "refuses"
        tenant = self._scenario.tenant
        return Token(tenant.token_uses, now_s + tenant.token_s, dead=self._chance.random() < phase.token_dead)

    # The API

    def reachable(self) -> bool:
        """Whether a connection can be made now."""
        if self._chance.random() < self.phase.unreachable:
            self._count()
            return False
        return True

    def apply(self, rows: Sequence[Row], now_s: float) -> None:
        self.applied.update(rows)
        self.log += [(now_s, row) for row in rows]

    def call(self, part: Part, token: Token, now_s: float) -> Answer:
        """What it does with this call. The caller applies what the answer says."""
        self._count()
        manner = self._manner()
        answer = self._answer(manner, part, token, now_s)
        self.seen[manner] += 1
        if answer.verdict is not None and (answer.verdict.each or answer.verdict.fate in _LOOKED_AT):
            token.uses -= 1
            token.accepted = True
        if answer.verdict is not None and answer.verdict.each:
            self.seen["several fates"] += len({verdict.fate for verdict in answer.verdict.each}) > 1
        return answer

    def _manner(self) -> Manner:
        dice = self._chance.random()
        for manner, share in self.phase.manners:
            dice -= share
            if dice < 0:
                return manner
        return "fine"

    def _answer(self, manner: Manner, part: Part, token: Token, now_s: float) -> Answer:
        chance = self._chance
        rows = list(rows_of(part))
        after_s = chance.expovariate(1 / self.phase.slow_s)
        if after_s > TIMEOUT_S:
            return Answer(None, TIMEOUT_S, applies=self._either(rows))
        match manner:
            case "busy":
                wait = chance.choice([None, None, "1", "3", "30", "soon", "100000" if chance.random() < 0.1 else "2"])
                return Answer(_verdict(chance.choice([408, 429, 503]), wait, b"busy", len(rows)), after_s)
            case "error":
                status, body = chance.choice(
                    [(500, b"{}"), (502, b"<html>"), (200, b"<html>"), (200, b""), (200, b"[]"), (504, b"")]
                )
                return Answer(_verdict(status, None, body, len(rows)), after_s, applies=self._either(rows))
            case "silent":
                wait_s = chance.choice([0.0, after_s, TIMEOUT_S])
                match chance.choice(["now", "later", "never"]):
                    case "now":
                        return Answer(None, wait_s, applies=rows)
                    case "later":
                        return Answer(None, wait_s, applies_later=rows)
                return Answer(None, wait_s)
            case "stale":
                return Answer(None, 0.001, stale=True)
            case "elsewhere":
                status = chance.choice([301, 302, 303, 307, 403, 404, 405])
                applies = self._either(rows) if status in (302, 303) else ()
                self.seen[f"{status}"] += 1
                return Answer(_verdict(status, None, b"", len(rows)), after_s, applies=applies)
            case "contradicting":
                status, body, unclear = chance.choice(
                    [
                        (400, b'{"statusCode": 200}', True),
                        (200, b'{"statusCode": 429}', False),
                        (200, b'{"statusCode": 500}', True),
                        (200, b'{"statusCode": 200, "errors": ["some"]}', True),
                        (503, b'[{"statusCode": 200}]', len(rows) == 1),
                    ]
                )
                return Answer(
                    _verdict(status, None, body, len(rows)), after_s, applies=self._either(rows) if unclear else ()
                )
            case "revoked":
                token.dead = True
        if token.dead or token.uses < 1 or now_s >= token.until_s:
            token.refused = True
            return Answer(_verdict(401, None, b"", len(rows)), after_s)
        if len(rows) > self._scenario.tenant.largest:
            return Answer(_verdict(413, None, b"", len(rows)), after_s)
        if manner == "mixed":
            return self._mixed(rows, after_s)
        refused = rows if manner == "refusing" else [row for row in rows if row in self._scenario.plan.bad]
        return self._refuse(rows, refused, after_s) if refused else Answer(_ok(len(rows)), after_s, applies=rows)

    def _either(self, rows: Sequence[Row]) -> Sequence[Row]:
        return rows if self._chance.random() < self._scenario.tenant.loses else ()

    def _refuse(self, rows: Sequence[Row], refused: Sequence[Row], after_s: float) -> Answer:
        if self._scenario.tenant.names_rows:
            self.named.update(refused)
            statuses = [400 if row in refused else 200 for row in rows]
            applies = [row for row in rows if row not in refused]
            return Answer(_each(tuple(statuses), self._chance.random() < 0.5), after_s, applies=applies)
        if len(rows) == 1 or self._scenario.delivery.on_400 == "reject":
            self.named.update(rows)
        status, body = self._chance.choice([(400, b"{}"), (422, b'{"message": "no"}'), (200, b'{"statusCode": 400}')])
        return Answer(_verdict(status, None, body, len(rows)), after_s)

    def _mixed(self, rows: Sequence[Row], after_s: float) -> Answer:
        """Each row has its own fate; where one of them may be tried again, it comes after rows that followed it."""
        shares = self._chance.choice([(5, 1, 1, 1), (0, 1, 0, 0), (0, 1, 1, 0), (1, 0, 1, 0), (1, 1, 0, 0)])
        statuses = self._chance.choices([200, 400, 429, 500], shares, k=len(rows))
        statuses = [
            400 if row in self._scenario.plan.bad else status for row, status in zip(rows, statuses, strict=True)
        ]
        applies = []
        for row, status in zip(rows, statuses, strict=True):
            if status == 200 or (status == 500 and self._either([row])):
                applies.append(row)
            if status == 400:
                self.named.add(row)
        if applies:
            self.skipped.update(row for row in rows if row not in applies)
        return Answer(_each(tuple(statuses), listed=True), after_s, applies=applies)


@lru_cache(4096)
def _verdict(status: int, retry_after: str | None, body: bytes, interactions: int) -> Verdict:
    headers = {} if retry_after is None else {"retry-after": retry_after}
    return reply.read(
        status,
        headers,
        body,
        interactions=interactions,
        wire=_WIRE,
        unapplied_statuses=(408, 429, 503),
        now=_NOW,
    )


def _ok(interactions: int) -> Verdict:
    return _verdict(200, None, b'{"statusCode": 200}', interactions)


@lru_cache(4096)
def _each(statuses: tuple[int, ...], listed: bool) -> Verdict:
    if listed:
        content: object = [{"statusCode": status} for status in statuses]
    else:
        errors = [{"index": index, "statusCode": status} for index, status in enumerate(statuses) if status != 200]
        content = {"statusCode": 200, "errors": errors}
    return _verdict(200, None, json.dumps(content).encode(), len(statuses))
