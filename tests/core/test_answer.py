"""What came of a call made by hand: outcome, exit code and the elements of the reply."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backfill.core import answer
from backfill.core.answer import NOTHING, of_reply, returned, without_connection, without_reply
from backfill.core.errors import ExitCode
from backfill.core.masking import MASK, Secrets
from backfill.core.reply import Fate, Verdict

SECRET = "tok-SECRET-4711"


def verdict(fate: Fate, status: int = 200, **more: Any) -> Verdict:
    return Verdict(fate=fate, http_status=status, cause="x", **more)


@pytest.mark.parametrize(
    ("fate", "outcome", "code"),
    [
        (Fate.ACKNOWLEDGED, "delivered", 0),
        (Fate.REFUSED, "rejected", 3),
        (Fate.TOO_LARGE, "rejected", 3),
        (Fate.UNCLEAR, "in_doubt", 4),
        (Fate.UNAPPLIED, "unsent", 75),
        (Fate.UNAUTHORISED, "unsent", 77),
        (Fate.FORBIDDEN, "unsent", 77),
        (Fate.MISDIRECTED, "unsent", 78),
        (Fate.REDIRECTED, "in_doubt", 78),
    ],
)
def test_each_fate_has_its_outcome_and_code(fate: Fate, outcome: str, code: int) -> None:
    """And a reason, unless it is delivered; where the API had words, they stand in it."""
    made = of_reply(verdict(fate, 418, words="words of the API."), 418, NOTHING)
    assert (made.outcome, made.exit_code, made.http_status) == (outcome, code, 418)
    assert (made.reason is None) == (fate is Fate.ACKNOWLEDGED)
    assert made.reason is None or "(HTTP 418: words of the API)" in made.reason


def test_the_table_knows_every_fate() -> None:
    """A new one cannot be forgotten."""
    assert set(answer._FATES) == set(Fate)


def test_of_several_fates_the_worst_is_the_code() -> None:
    """As everywhere: 75 before 4 before 3; each is told by its place."""
    fates = [Fate.ACKNOWLEDGED, Fate.REFUSED, Fate.UNCLEAR]
    made = of_reply(verdict(Fate.UNCLEAR, each=tuple(verdict(fate) for fate in fates)), 200, NOTHING)
    assert (made.outcome, made.exit_code) == ("mixed", ExitCode.ROWS_IN_DOUBT)
    assert [(one.position, one.outcome) for one in made.results] == [(1, "delivered"), (2, "rejected"), (3, "in_doubt")]
    fates.append(Fate.UNAPPLIED)
    made = of_reply(verdict(Fate.UNCLEAR, each=tuple(verdict(fate) for fate in fates)), 200, NOTHING)
    assert made.exit_code == ExitCode.STOPPED_EARLY
    refused = of_reply(verdict(Fate.REFUSED, each=(verdict(Fate.REFUSED), verdict(Fate.REFUSED, 422))), 200, NOTHING)
    assert (refused.outcome, refused.exit_code) == ("rejected", ExitCode.ROWS_REFUSED)


@pytest.mark.parametrize(
    ("cause", "code"), [("refused", 75), ("dns", 75), ("proxy_credentials", 77), ("untrusted", 78)]
)
def test_without_a_connection_nothing_was_sent(cause: str, code: int) -> None:
    """What waiting does not mend is no reason to try again."""
    made = without_connection(cause, "why")
    assert (made.outcome, made.exit_code, made.http_status) == ("unsent", code, None)


def test_without_a_reply_it_is_in_doubt() -> None:
    """4, whatever is known of it."""
    assert (without_reply("why").outcome, without_reply("why").exit_code) == ("in_doubt", ExitCode.ROWS_IN_DOUBT)


def test_the_elements_of_a_reply_pass_as_they_came() -> None:
    """All five of the reference; what is missing or of another kind is None."""
    lists = {"trackers": [], "captures": [{"a": [1, None]}], "optimizations": [{"path": "x", "data": "<p>é</p>"}]}
    body = json.dumps({"statusCode": 200, "tid": "t-1", "other": 1} | lists).encode()
    found = returned(body)
    assert (found.status_code, found.tid) == (200, "t-1")
    assert {name: getattr(found, name) for name in answer.LISTS} == lists
    assert returned(b'{"statusCode": [], "tid": 5, "trackers": {}}') == NOTHING
    for rubbish in (b"", b"<html>", b"[1]", b'"x"', b"[" * 100_000, b"\xff"):
        assert returned(rubbish) == NOTHING


def test_what_repeats_a_secret_is_masked() -> None:
    """In a value or a name, at any depth; the rest stays."""
    body = json.dumps({"tid": SECRET, "trackers": [{SECRET: 1, "a": ["b", f"x{SECRET}"]}]}).encode()
    found = returned(body, secrets=Secrets(SECRET))
    assert (found.tid, found.trackers) == (MASK, [{MASK: 1, "a": ["b", MASK]}])


@given(st.integers(1, 900))
def test_a_reply_of_any_depth_can_be_shown(depth: int) -> None:
    """Levels beyond forty are left out, so that nothing that writes JSON can stumble over them."""
    body = b'{"captures":[' + b"[" * depth + b"]" * depth + b"]}"
    found = returned(body, secrets=Secrets(SECRET))
    assert ("..." in json.dumps(found.captures)) == (depth >= 40)
