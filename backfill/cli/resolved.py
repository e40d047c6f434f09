"""What `resolve` says: the rows a choice concerns, and what was decided. Values in, text out; prints nothing."""

import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from backfill.cli.render import equation, labelled, listed, many
from backfill.core.resolution import Decision
from backfill.core.summary import OUTCOMES

if TYPE_CHECKING:
    from backfill.resolve import Matter, Resolved

QUESTIONS = {
    Decision.DELIVERED: "Take these rows as delivered?",
    Decision.NOT_DELIVERED: "Send these rows again, as never delivered?",
    Decision.RESEND: "Send these rows again, though they may have been delivered?",
    Decision.ABANDON: "Never send these rows?",
}

_DECIDED = {
    Decision.DELIVERED: "taken as delivered (reason assumed)",
    Decision.NOT_DELIVERED: "not delivered: the next run sends them again",
    Decision.RESEND: "to be sent again by the next run, marked maybe_duplicate",
    Decision.ABANDON: "abandoned: they are never sent; those that were once in doubt are in doubt again",
}


def matter_text(matter: "Matter") -> str:
    """How many rows, why, when they were sent, and of which exports: two or three lines."""
    lines = [f"Rows     {many(matter.rows, 'row')} in {many(matter.requests, 'request')} ({_counts(matter.by_cause)})"]
    if matter.sent_from_ms is not None and matter.sent_until_ms is not None:
        lines.append(f"Sent     between {_time(matter.sent_from_ms)} and {_time(matter.sent_until_ms)}")
    exports = {PurePath(path).name: count for path, count in matter.by_export.items()}
    lines += labelled("Exports", [_counts(exports)])
    if matter.beside:
        lines.append(
            f"         {many(matter.beside, 'row')} of other exports share a request with these, and so its fate."
        )
    return "\n".join(lines)


def as_text(resolved: "Resolved", state: str, rows_file: str | None) -> str:
    """The preview, or what was decided and the account after it."""
    at = f"--state {shlex.quote(state)}"
    lines = [_headline(resolved)]
    if resolved.matter.rows:
        lines.append(matter_text(resolved.matter))
    if resolved.unsent:
        lines.append(f"Unsent   {many(resolved.unsent, 'row')}, which --abandon would take")
    if rows_file is not None:
        lines.append(f"List     {rows_file} has these rows one by one")
    if resolved.carried_out:
        total = {name: sum(export.outcomes.get(name, 0) for export in resolved.exports) for name in OUTCOMES}
        lines.append(f"Account  {equation(sum(export.read for export in resolved.exports), total)}")
        if resolved.decision in (Decision.NOT_DELIVERED, Decision.RESEND):
            lines.append(f"Next     `backfill run {at}` with the job's configuration sends them.")
    elif resolved.decision is None and resolved.matter.rows:
        lines += labelled(
            "Next",
            [
                "Ask the vendor whether they arrived (--rows FILE writes the list), then decide with --delivered,",
                "--not-delivered or --resend. Without a decision nothing changes.",
            ],
        )
    return "\n".join(lines) + "\n"


def _headline(resolved: "Resolved") -> str:
    if resolved.carried_out and resolved.decision is not None:
        return f"Decided: {_DECIDED[resolved.decision]}."
    what = "unsent" if resolved.decision is Decision.ABANDON else "in doubt"
    if not resolved.matter.rows:
        return f"No row that the filters choose is {what}, so nothing was decided."
    return f"These rows are {what}; nothing was decided."


def as_json(resolved: "Resolved", state: str, rows_file: str | None) -> dict[str, Any]:
    """The object of `resolve --json`. Times are ISO 8601; `decision` is null for a preview."""
    matter = resolved.matter
    return {
        "decision": resolved.decision,
        "carried_out": resolved.carried_out,
        "requests": matter.requests,
        "rows": matter.rows,
        "rows_of_other_exports": matter.beside,
        "by_export": matter.by_export,
        "by_cause": matter.by_cause,
        "sent_from": None if matter.sent_from_ms is None else _time(matter.sent_from_ms),
        "sent_until": None if matter.sent_until_ms is None else _time(matter.sent_until_ms),
        "unsent": resolved.unsent,
        "rows_file": rows_file,
        "outcomes": {name: sum(export.outcomes.get(name, 0) for export in resolved.exports) for name in OUTCOMES}
        if resolved.carried_out
        else None,
        "state": state,
    }


def _counts(counts: Mapping[str, int]) -> str:
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return listed([f"{name} {count:,}" for name, count in ranked], shown=6)


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
