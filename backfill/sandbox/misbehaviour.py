"""Misbehaviour on request: rules that say which requests get which trouble. Seeded, so a run can be repeated.

A rule is words joined by commas, each `name=value`:

    what happens (at most one of the first four)
        status=CODE            answers 300 to 599 and applies nothing; with retry_after=SECONDS (or date:SECONDS for
                               an HTTP date, or any other text as it is) and location=URL as headers
        drop=before|read|after    closes the connection: before the body is read, after it is read but nothing is
                               applied, after it is applied; no reply
        reset=before|read|after   the same by a TCP reset
        body=html|empty|bare|cut|endless|mismatch    HTTP 200 with a web page, nothing, JSON without a statusCode,
                               half of the announced body, a body without end, a statusCode of 500 (or status=CODE)
        body=results           HTTP 200 with one result per interaction; those that `when` names are not applied and get
                               400 (or status=CODE), the others 200
        applied=yes|no         with status or body: whether the interactions are applied all the same
                               (else: body yes, except mismatch; status no)
        hold_s=SECONDS         waits before applying
        latency_ms=MS          waits between applying and replying
    to which requests (each narrows; none: to all)
        on=calls|token         the API's calls (default), or the token endpoint
        when=property:NAME=VALUE | key_contains:TEXT | bytes_over:N    only if an interaction, or the body, is like that
        after=N, until=N       not the first N such requests; only the first N
        every=N                each Nth of those
        share=P                a random share of those, 0 to 1, by seed=N (default: the sandbox's)

Waits of all rules that apply add up. Of what happens, a drop or reset before reading comes first, then the rule
that was given first. Decides only; `app` does it. Reads no clock.
"""

import difflib
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Moment = Literal["before", "read", "after"]
Target = Literal["calls", "token"]


@dataclass(frozen=True, slots=True)
class Answer:
    """Answers with this status."""

    status: int
    retry_after: str | None
    location: str | None
    applied: bool


@dataclass(frozen=True, slots=True)
class Hangup:
    """Ends the connection without a reply."""

    moment: Moment
    reset: bool


@dataclass(frozen=True, slots=True)
class Rubbish:
    """HTTP 200 with a body that is no acknowledgement."""

    kind: str
    status: int
    """The statusCode inside, for `mismatch` and `results`."""
    applied: bool
    refused: "Condition | None" = None
    """Which interactions `results` refuses."""


Trouble = Answer | Hangup | Rubbish


@dataclass(frozen=True, slots=True)
class Condition:
    """What an interaction, or the body, must be like."""

    kind: str
    name: str
    value: str

    def met_at(self, interactions: Sequence[Mapping[str, Any]], body_bytes: int) -> int | None:
        """The 1-based position of the first interaction that is so; 0 if the whole body is; None if nothing is."""
        if self.kind == "bytes_over":
            return 0 if body_bytes > int(self.value) else None
        return next((at for at, interaction in enumerate(interactions, start=1) if self.met_by(interaction)), None)

    def met_by(self, interaction: Mapping[str, Any]) -> bool:
        """Whether a single interaction is so."""
        if self.kind == "key_contains":
            return self.value in interaction.get("customerKey", "")
        return any(
            one["name"] == self.name and _plain(one["value"]) == self.value for one in interaction.get("properties", ())
        )


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule, parsed."""

    text: str
    trouble: Trouble | None
    hold_s: float
    latency_s: float
    on: Target
    when: Condition | None
    after: int
    until: int | None
    every: int
    share: float
    seed: int | None


@dataclass(slots=True)
class Verdict:
    """What shall happen to one request."""

    hold_s: float = 0.0
    latency_s: float = 0.0
    trouble: Trouble | None = None
    rule: str | None = None
    position: int | None = None
    """1-based, of the interaction that the rule looked for; None where it looked at the whole request."""


class _Counted:
    """A rule and how many requests it has looked at."""

    def __init__(self, rule: Rule, seed: str) -> None:
        self.rule = rule
        self._seen = 0
        self._random = random.Random(seed)  # noqa: S311 - repeatable trouble, not a secret

    def fires(self) -> bool:
        rule = self.rule
        self._seen += 1
        nth = self._seen - rule.after
        # Drawn for every request, so that the nth has the same fate whatever the other words say.
        drawn = self._random.random()
        return (
            nth > 0
            and (rule.until is None or self._seen <= rule.until)
            and nth % rule.every == 0
            and drawn < rule.share
        )


@dataclass
class Misbehaviour:
    """All rules of a sandbox. Ask `at_head` once for each request, then `at_body` if its body was read."""

    rules: Sequence[Rule]
    seed: int = 0
    _counted: list[_Counted] = field(init=False)

    def __post_init__(self) -> None:
        self._counted = [
            _Counted(rule, f"{self.seed}:{place}" if rule.seed is None else str(rule.seed))
            for place, rule in enumerate(self.rules)
        ]

    def at_head(self, on: Target) -> dict[int, int | None]:
        """The places of the rules that apply by count alone."""
        return {
            place: None
            for place, counted in enumerate(self._counted)
            if counted.rule.on == on and counted.rule.when is None and counted.fires()
        }

    def at_body(
        self, fired: dict[int, int | None], interactions: Sequence[Mapping[str, Any]], body_bytes: int
    ) -> dict[int, int | None]:
        """`fired` with those added that look into the body; the values are positions of interactions."""
        for place, counted in enumerate(self._counted):
            if counted.rule.when is not None:
                position = counted.rule.when.met_at(interactions, body_bytes)
                if position is not None and counted.fires():
                    fired[place] = position or None
        return fired

    def verdict(self, fired: Mapping[int, int | None]) -> Verdict:
        """What the rules that apply come to."""
        verdict = Verdict()
        first: tuple[bool, int] | None = None
        for place, position in sorted(fired.items()):
            rule = self.rules[place]
            verdict.hold_s += rule.hold_s
            verdict.latency_s += rule.latency_s
            if rule.trouble is None:
                continue
            rank = (not (isinstance(rule.trouble, Hangup) and rule.trouble.moment == "before"), place)
            if first is None or rank < first:
                first = rank
                verdict.trouble, verdict.rule, verdict.position = rule.trouble, rule.text, position
        return verdict


_NAMES = (
    *("status", "retry_after", "location", "drop", "reset", "body", "applied", "hold_s", "latency_ms"),
    *("on", "when", "after", "until", "every", "share", "seed"),
)
_MOMENTS = ("before", "read", "after")
_BODIES = ("html", "empty", "bare", "cut", "endless", "mismatch", "results")


def parse_all(texts: Iterable[str]) -> list[Rule]:
    """The rules in the order given. Raises: ValueError with a sentence for the user."""
    return [parse(text) for text in texts]


def parse(text: str) -> Rule:
    """One rule. Raises: ValueError with a sentence for the user."""
    words = _Words(text)
    applied = words.choice("applied", ("yes", "no"))
    trouble = _trouble(words, None if applied is None else applied == "yes")
    when = words.get("when")
    condition = None if when is None else _condition(words, when)
    if isinstance(trouble, Rubbish) and trouble.kind == "results":
        if condition is None or condition.kind == "bytes_over":
            raise words.bad("`body=results` needs a `when` that looks at interactions")
        trouble = replace(trouble, refused=condition)
    on = words.choice("on", ("calls", "token"))
    rule = Rule(
        text=text,
        trouble=trouble,
        hold_s=words.number("hold_s", 0.0, 0.0, 86_400.0),
        latency_s=words.number("latency_ms", 0.0, 0.0, 86_400_000.0) / 1000,
        on="token" if on == "token" else "calls",
        when=condition,
        after=words.count("after", 0) or 0,
        until=words.count("until", 1),
        every=words.count("every", 1) or 1,
        share=words.number("share", 1.0, 0.0, 1.0),
        seed=words.count("seed", 0),
    )
    if rule.trouble is None and not rule.hold_s and not rule.latency_s:
        raise words.bad("it says no trouble; add one of status, drop, reset, body, hold_s, latency_ms")
    if rule.when is not None and rule.on == "token":
        raise words.bad("`when` looks at interactions, and requests for a token have none")
    if rule.when is not None and isinstance(rule.trouble, Hangup) and rule.trouble.moment == "before":
        raise words.bad("`when` looks into the body, which `before` leaves unread; write `read` instead")
    if rule.until is not None and rule.until <= rule.after:
        raise words.bad("`until` must be more than `after`, or the rule never applies")
    if "seed" in words and "share" not in words:
        raise words.bad("`seed` belongs to `share`")
    return rule


def _trouble(words: "_Words", applied: bool | None) -> Trouble | None:
    kinds = [name for name in ("body", "drop", "reset", "status") if name in words]
    inside = kinds == ["body", "status"] and words["body"] in ("mismatch", "results")
    if len(kinds) > 1 and not inside:
        raise words.bad("one rule makes one trouble: give status, drop, reset and body in rules of their own")
    kind = kinds[0] if kinds else None
    for name, owners in (("retry_after", ("status",)), ("location", ("status",)), ("applied", ("status", "body"))):
        if name in words and kind not in owners:
            raise words.bad(f"`{name}` goes with {' or '.join(owners)}")
    if kind == "drop" or kind == "reset":
        return Hangup(_moment(words.choice(kind, _MOMENTS)), reset=kind == "reset")
    if kind == "body":
        body = words.choice("body", _BODIES) or ""
        return Rubbish(
            body,
            words.count("status", 100) or (400 if body == "results" else 500),
            body != "mismatch" if applied is None else applied,
        )
    if kind == "status":
        status = words.count("status", 300) or 0
        if status > 599:
            raise words.bad("`status` must be a whole number from 300 to 599")
        return Answer(status, words.get("retry_after"), words.get("location"), bool(applied))
    return None


def _moment(word: str | None) -> Moment:
    return "before" if word == "before" else "read" if word == "read" else "after"


def _condition(words: "_Words", when: str) -> Condition:
    kind, _, rest = when.partition(":")
    if kind == "property":
        name, equals, value = rest.partition("=")
        if name and equals:
            return Condition(kind, name, value)
    elif (kind == "key_contains" and rest) or (kind == "bytes_over" and rest.isdecimal()):
        return Condition(kind, "", rest)
    raise words.bad("`when` must be property:NAME=VALUE, key_contains:TEXT or bytes_over:N")


class _Words(dict[str, str]):
    """The words of a rule by name, with errors that quote the rule."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        for word in text.split(","):
            name, equals, value = (part.strip() for part in word.partition("="))
            if name not in _NAMES:
                near = difflib.get_close_matches(name, _NAMES, n=1)
                hint = f"the nearest is `{near[0]}`" if near else f"known are {', '.join(_NAMES)}"
                raise self.bad(f"`{name}` is no word of a rule; {hint}")
            if not equals or not value:
                raise self.bad(f"`{name}` needs a value: {name}=...")
            if name in self:
                raise self.bad(f"`{name}` is given twice")
            self[name] = value

    def bad(self, what: str) -> ValueError:
        return ValueError(f"The rule {self.text!r} cannot be used: {what}.")

    def choice(self, name: str, known: Sequence[str]) -> str | None:
        value = self.get(name)
        if value is not None and value not in known:
            raise self.bad(f"`{name}` must be one of {', '.join(known)}")
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        try:
            value = float(self.get(name, default))
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise self.bad(f"`{name}` must be a number from {low:g} to {high:g}")
        return value

    def count(self, name: str, low: int) -> int | None:
        value = self.get(name)
        if value is None:
            return None
        if not (value.isascii() and value.isdecimal()) or int(value) < low:
            raise self.bad(f"`{name}` must be a whole number, {low} or more")
        return int(value)
