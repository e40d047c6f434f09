"""The words of `send`, as whole texts."""

from datetime import UTC, datetime
from typing import Any

from backfill.cli.sent import as_json, as_text
from backfill.core.answer import Answer, Result, Returned
from backfill.core.errors import ExitCode
from backfill.core.interaction import Request
from backfill.send import Sent

AT = datetime(2024, 5, 6, 7, 8, 9, 123_000, tzinfo=UTC)
ONE = Request(call="interaction-post", body=b"{}", tid=None, interactions=1)
MANY = Request(call="interactions-offline", body=b"[]", tid=None, interactions=12)


def sent(at: datetime | None = AT, **answer: Any) -> Sent:
    whole: dict[str, Any] = {"outcome": "delivered", "exit_code": ExitCode.COMPLETE} | answer
    return Sent(answer=Answer(**whole), name="0123456789ab", sent_at=at, duration_s=0.25)


DELIVERED = sent(
    http_status=200,
    returned=Returned(
        status_code=200, tid="t-1", trackers=[], captures=[{"name": "é"}], optimizations=[{"a": 1}, {"b": "x\ny"}]
    ),
)


def test_a_delivered_interaction() -> None:
    """Status, tid and every entry of every collection, one a line."""
    assert as_text(ONE, DELIVERED) == (
        "Delivered: the API acknowledged 1 interaction.\n"
        "Call     POST /one/oauth2/rt/api/2.0/interaction (interaction-post)\n"
        "Sent     2024-05-06T07:08:09.123Z, 0.2 s in all\n"
        "Status   HTTP 200, statusCode 200\n"
        "tid      t-1\n"
        "Trackers (0)\n"
        "Captures (1)\n"
        '         {"name": "é"}\n'
        "Optimizations (2)\n"
        '         {"a": 1}\n'
        '         {"b": "x\\ny"}\n'
        "Next     Nothing is left to do. It belongs to no job, so no ledger shows it.\n"
    )


def test_an_interaction_in_doubt() -> None:
    """What is known, and by which name the vendor can find the call."""
    doubt = sent(outcome="in_doubt", exit_code=ExitCode.ROWS_IN_DOUBT, reason="No whole reply: why")
    assert as_text(ONE, doubt) == (
        "In doubt: nobody knows whether 1 interaction arrived.\n"
        "Reason   No whole reply: why\n"
        "Call     POST /one/oauth2/rt/api/2.0/interaction (interaction-post)\n"
        "Sent     2024-05-06T07:08:09.123Z, 0.2 s in all\n"
        "Next     Ask the vendor for the call whose User-Agent has `send 0123456789ab`. It is not sent again by "
        "itself;\n"
        "         do so only if it never arrived.\n"
    )


def test_several_of_which_some_were_refused() -> None:
    """Those that were not delivered, ten at the most, by their place."""
    results = (
        Result(position=1, outcome="delivered", status=200, words=None),
        *(Result(position=at, outcome="rejected", status=400, words="bad") for at in range(2, 13)),
    )
    text = as_text(MANY, sent(outcome="mixed", exit_code=ExitCode.ROWS_REFUSED, http_status=200, results=results))
    assert "Mixed: of 12 interactions, some were delivered and some were not.\n" in text
    assert "interaction 1:" not in text
    assert "         interaction 2: rejected, 400: bad\n" in text
    assert "interaction 12:" not in text
    assert "         and 1 more (--json lists all)\n" in text


def test_each_end_has_a_next_step() -> None:
    """Whatever the code, and without a call nothing is said of when."""
    for code in (ExitCode.ROWS_REFUSED, ExitCode.STOPPED_EARLY, ExitCode.CREDENTIALS_REFUSED, ExitCode.UNUSABLE):
        text = as_text(ONE, sent(None, outcome="unsent", exit_code=code, reason="why"))
        assert "(interaction-post)\nSent     no, not a byte\n" in text
        assert "Nothing is left to do" not in text
        assert "send it again" in text.lower()


def test_the_object() -> None:
    """All keys, as they are documented."""
    assert as_json(ONE, DELIVERED) == {
        "call": "interaction-post",
        "interactions": 1,
        "outcome": "delivered",
        "exit_code": 0,
        "reason": None,
        "sent_at": "2024-05-06T07:08:09.123Z",
        "duration_s": 0.25,
        "user_agent_name": "send 0123456789ab",
        "http_status": 200,
        "statusCode": 200,
        "tid": "t-1",
        "trackers": [],
        "captures": [{"name": "é"}],
        "optimizations": [{"a": 1}, {"b": "x\ny"}],
        "results": [],
    }
    assert as_json(ONE, sent(None))["sent_at"] is None
