"""What `send` says: the outcome of one call, and the reply's elements. Values in, text out; prints nothing.

The elements of a reply may hold a customer's values. They are what `send` was asked for, so its standard output shows
them; nothing else does.
"""

import json
from datetime import datetime
from typing import Any

from backfill.cli.render import duration, labelled, many
from backfill.core.answer import LISTS, Answer
from backfill.core.calls import CALLS
from backfill.core.errors import ExitCode
from backfill.core.interaction import Request
from backfill.send import Sent

_HEADLINES = {
    "delivered": "Delivered: the API acknowledged {what}.",
    "rejected": "Rejected: the API does not take {what}.",
    "in_doubt": "In doubt: nobody knows whether {what} arrived.",
    "unsent": "Not delivered: {what} was surely not applied.",
    "mixed": "Mixed: of {what}, some were delivered and some were not.",
}
_RESULTS_SHOWN = 10


def as_text(request: Request, sent: Sent) -> str:
    """Outcome, reply and what to do next, in some five to ten lines."""
    answer = sent.answer
    call = CALLS[request.call]
    lines = [_HEADLINES[answer.outcome].format(what=many(request.interactions, "interaction"))]
    if answer.reason:
        lines.append(f"Reason   {answer.reason}")
    lines.append(f"Call     {call.method} {call.path} ({request.call})")
    lines.append(f"Sent     {_when(sent)}")
    if answer.http_status is not None:
        lines += _reply(answer)
    lines += labelled("Next", _next(answer, sent.name))
    return "\n".join(lines) + "\n"


def _when(sent: Sent) -> str:
    if sent.sent_at is None:
        return "no, not a byte"
    return f"{_time(sent.sent_at)}, {duration(sent.duration_s)} in all"


def _reply(answer: Answer) -> list[str]:
    """The elements of the reply, each collection with its count and one entry a line."""
    returned = answer.returned
    lines = [f"Status   HTTP {answer.http_status}, statusCode {_shown(returned.status_code)}"]
    if returned.tid is not None:
        lines.append(f"tid      {returned.tid}")
    for name in LISTS:
        entries = getattr(returned, name)
        if entries is not None:
            lines.append(f"{name.capitalize()} ({len(entries)})")
            lines += [f"         {json.dumps(entry, ensure_ascii=False)}" for entry in entries]
    unlike = [result for result in answer.results if result.outcome != "delivered"]
    lines += [
        f"         interaction {result.position}: {result.outcome}, {result.status}"
        + (f": {result.words}" if result.words else "")
        for result in unlike[:_RESULTS_SHOWN]
    ]
    if len(unlike) > _RESULTS_SHOWN:
        lines.append(f"         and {len(unlike) - _RESULTS_SHOWN} more (--json lists all)")
    return lines


def _shown(status_code: int | str | None) -> str:
    return "none" if status_code is None else str(status_code)


def _next(answer: Answer, name: str) -> list[str]:
    if answer.outcome == "in_doubt":
        return [
            f"Ask the vendor for the call whose User-Agent has `send {name}`. It is not sent again by itself;",
            "do so only if it never arrived.",
        ]
    if answer.outcome == "mixed":
        return ["Send again, by themselves, only those that were surely not applied; mend what was rejected."]
    match answer.exit_code:
        case ExitCode.ROWS_REFUSED:
            return ["Mend the interaction as the API says, and send it again."]
        case ExitCode.STOPPED_EARLY:
            return ["Send it again later: nothing was applied."]
        case ExitCode.CREDENTIALS_REFUSED:
            return ["Correct the credentials, or the rights they have; then send it again."]
        case ExitCode.UNUSABLE:
            return ["Correct the configuration; then send it again."]
    return ["Nothing is left to do. It belongs to no job, so no ledger shows it."]


def as_json(request: Request, sent: Sent) -> dict[str, Any]:
    """The object of `send --json`, always with all of these keys.

    call, interactions    as they were sent
    outcome               "delivered", "rejected", "in_doubt", "unsent" (surely not applied), or "mixed"
    exit_code, reason     the process's, and why the outcome is not "delivered" (else null)
    sent_at, duration_s   ISO 8601, null if nothing was sent; seconds, with the token
    user_agent_name       what the call's User-Agent names it by, for the vendor to find it
    http_status           null if no whole reply came
    statusCode, tid, trackers, captures, optimizations    the reply's elements as they came, null where it has none
    results               [{"position", "outcome", "status", "words"}] where the reply tells interactions apart, else []
    """
    answer, returned = sent.answer, sent.answer.returned
    return {
        "call": request.call,
        "interactions": request.interactions,
        "outcome": answer.outcome,
        "exit_code": int(answer.exit_code),
        "reason": answer.reason,
        "sent_at": None if sent.sent_at is None else _time(sent.sent_at),
        "duration_s": round(sent.duration_s, 3),
        "user_agent_name": f"send {sent.name}",
        "http_status": answer.http_status,
        "statusCode": returned.status_code,
        "tid": returned.tid,
        "trackers": returned.trackers,
        "captures": returned.captures,
        "optimizations": returned.optimizations,
        "results": [
            {"position": one.position, "outcome": one.outcome, "status": one.status, "words": one.words}
            for one in answer.results
        ],
    }


def _time(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
