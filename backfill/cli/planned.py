"""What `plan` says. Values in, text out; prints nothing.

One of the few places that may show customers' values: the plan goes to standard output alone.
"""

import json
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from backfill.cli.render import duration, labelled, listed, many
from backfill.core.config import RunConfig
from backfill.core.errors import ExitCode
from backfill.core.forecast import Customer, window_s
from backfill.core.validate import HINTS

if TYPE_CHECKING:
    from backfill.plan import Example, Place, Plan

_VALUE_CHARS = 60
_HINT_CHARS = 108
_EXPORTS_SHOWN = 10
_MONTHS_SHOWN = 24
_COUNTS_A_LINE = 6


def exit_code(plan: "Plan") -> ExitCode:
    """78 where a run would refuse these exports, so that a pipeline can ask before."""
    return ExitCode.UNUSABLE if plan.refusals else ExitCode.COMPLETE


def as_text(plan: "Plan", config: RunConfig, latency_s: float) -> str:
    """The whole plan, for a person."""
    read, kept = plan.count("read"), plan.count("interactions")
    lines = [_headline(plan)]
    lines += labelled("Refused", plan.refusals) if plan.refusals else []
    lines.append(
        f"Rows     read {read:,} = interactions {kept:,} + invalid {plan.count('invalid'):,} + duplicate "
        f"{plan.count('duplicate'):,}"
    )
    if len(plan.exports) > 1:
        lines += _exports(plan)
    if plan.known:
        lines += labelled("Known", [f"{listed(plan.known)}: staged before, not counted here and not taken again"])
    if plan.earlier_loads:
        lines += labelled(
            "At most", [f"{many(plan.earlier_loads, 'earlier load')} may hold some of these rows; such are not sent."]
        )
    lines += _cost(plan, config, latency_s)
    lines += _busiest(plan)
    lines += _months(plan)
    lines += _invalid(plan)
    if plan.unseen_keys:
        told = [f"{many(plan.unseen_keys, 'row')} with characters in the key that cannot be seen; sent as they are:"]
        told += [f"  {_where(one.place)}: {_quoted(one.value)}" for one in plan.unseen_examples]
        lines += labelled("Keys", told)
    if plan.shown:
        told = []
        for shown in plan.shown:
            tid = "" if shown.tid is None else f", tid {_quoted(shown.tid)} in the request's address"
            told += [f"{_where(shown.place)}{tid}", f"  {shown.body}"]
        lines += labelled("First", told)
    if not plan.refusals and kept:
        lines.append(
            "Next     `backfill run` with the same arguments sends this; --limit N tries N interactions first."
        )
    return "\n".join(lines) + "\n"


def _headline(plan: "Plan") -> str:
    of = many(len(plan.exports), "export")
    if plan.refusals:
        return f"Plan for {of}: run would refuse this. Nothing was sent or kept."
    if not plan.exports:
        return "Nothing new: run would send nothing."
    return f"Plan for {of}. Nothing was sent or kept."


def _exports(plan: "Plan") -> list[str]:
    named = [PurePath(export.export).name for export in plan.exports[:_EXPORTS_SHOWN]]
    width = max(map(len, named))
    told = [
        f"{name:<{width}}  read {export.read:,}: interactions {export.interactions:,}, invalid {export.invalid:,}, "
        f"duplicate {export.duplicate:,}"
        for name, export in zip(named, plan.exports, strict=False)
    ]
    if len(plan.exports) > _EXPORTS_SHOWN:
        told.append(f"and {len(plan.exports) - _EXPORTS_SHOWN:,} more, see --json")
    return labelled("Exports", told)


def _cost(plan: "Plan", config: RunConfig, latency_s: float) -> list[str]:
    tally = plan.tally
    cost = [f"{many(tally.requests, 'call')}, each of which costs licence, in {many(plan.lanes, 'lane')}"]
    extra = tally.requests - tally.untied_requests
    if tally.with_tid:
        cost.append(
            f"{extra:,} of them only for the tid of {many(tally.with_tid, 'row')}, since a call has one at most"
        )
    lines = labelled("Cost", cost)
    if not tally.requests:
        return lines
    lines += labelled("Takes", _takes(plan, config, latency_s))
    if tally.slowest is not None:
        floor_s = tally.slowest.requests * latency_s
        lines += labelled(
            "Floor",
            [
                f"about {duration(floor_s)} at any budget: {_customer(tally.slowest)} needs "
                f"{many(tally.slowest.requests, 'call')}, one after another, {latency_s:g} s each (--latency)"
            ],
        )
    return lines


def _takes(plan: "Plan", config: RunConfig, latency_s: float) -> list[str]:
    took, budget = plan.duration, config.budget
    pace = {
        "budget.requests_per_second": f"at budget.requests_per_second = {budget.requests_per_second:g}",
        "budget.interactions_per_second": "at budget.interactions_per_second = "
        f"{budget.interactions_per_second or 0:g}",
        "budget.concurrency": f"with budget.concurrency = {budget.concurrency} and {latency_s:g} s a call (--latency)",
        "lane": f"for the {many(max(plan.tally.by_lane.values()), 'call')} of one lane, one after another, "
        f"{latency_s:g} s each (--latency)",
    }[took.bound_by]
    told = [f"about {duration(took.sending_s)} {pace}"]
    if took.sittings is not None:
        told.append(
            f"needs {_sittings(plan, config)}, about {duration(took.calendar_s)} from the first call to the last"
        )
    return told


def _sittings(plan: "Plan", config: RunConfig) -> str:
    budget, sittings = config.budget, plan.duration.sittings or 0
    a_day = "" if budget.requests_per_day is None else f" with {budget.requests_per_day:,} calls a day"
    if budget.window is None:
        return f"{many(sittings, 'day')}{a_day} (budget.requests_per_day)"
    opens, closes = budget.window.replace(" ", "").split("-")
    what = "night" if closes <= opens else "day"
    return f"{many(sittings, what)} of {opens}-{closes} {budget.window_zone}{a_day}"


def _busiest(plan: "Plan") -> list[str]:
    told = [
        f"{_customer(one)}: {many(one.rows, 'interaction')}, {many(one.requests, 'call')}" for one in plan.tally.busiest
    ]
    return labelled("Busiest", told) if told else []


def _customer(one: Customer) -> str:
    if one.customer_key is None:
        return f"tid {_quoted(one.tid)}"
    name = "" if one.customer_key_name in (None, "customerkey") else f"{_quoted(one.customer_key_name)} "
    return f"{name}{_quoted(one.customer_key)}"


def _months(plan: "Plan") -> list[str]:
    """By month, or by year where there are many."""
    months = sorted(plan.tally.months.items())
    if not months:
        return []
    counts: Counter[str] = Counter()
    for month, rows in months:
        counts[month if len(months) <= _MONTHS_SHOWN else month[:4]] += rows
    told = [f"{name} {rows:,}" for name, rows in counts.items()]
    span = months[0][0] if len(months) == 1 else f"{months[0][0]} to {months[-1][0]}"
    return labelled(
        "Months",
        [
            f"{span} (UTC), {many(len(months), 'month')} with interactions",
            *("  " + ", ".join(told[at : at + _COUNTS_A_LINE]) for at in range(0, len(told), _COUNTS_A_LINE)),
        ],
    )


def _invalid(plan: "Plan") -> list[str]:
    told: list[str] = []
    for reason, rows in plan.invalid.items():
        told += [f"{reason} {rows:,}", *(f"  {line}" for line in textwrap.wrap(HINTS[reason], _HINT_CHARS))]
        told += [f"  {_where(one.place)}: {_quoted(one.value)}" for one in plan.invalid_examples[reason]]
    return labelled("Invalid", told) if told else []


def _where(place: "Place") -> str:
    line = "" if place.line is None else f", line {place.line:,}"
    return f"{PurePath(place.export).name} row {place.row:,}{line}"


def _quoted(value: str | None) -> str:
    """As JSON writes it, so that line ends and blanks at the ends are seen; cut where it is long."""
    if value is None:
        return "no value"
    cut = shortened(value)
    more = f"... ({len(value):,} characters)" if cut != value else ""
    return json.dumps(cut, ensure_ascii=False) + more


def shortened(value: str) -> str:
    """So much of a value as is needed to recognise it."""
    return value[:_VALUE_CHARS]


def as_json(plan: "Plan", config: RunConfig, latency_s: float) -> dict[str, Any]:
    """The object of `plan --json`.

    Counts are exact, but for rows that earlier loads hold (`earlier_loads`). What has `"about": true` is an estimate.
    `requests` is what it costs in licence; `requests_for_tid` those of them that would not be without a `tid`. Seconds
    are numbers, `window` and `requests_per_day` null where there is none, `sittings` (windows or days) null where
    neither bounds it. A `value` is cut to 60 characters, null where it is missing; a `body` is what is sent, to the
    byte.
    """
    tally, took = plan.tally, plan.duration
    slowest = tally.slowest
    return {
        "exit_code": int(exit_code(plan)),
        "refusals": list(plan.refusals),
        "read": plan.count("read"),
        "interactions": plan.count("interactions"),
        "invalid": plan.count("invalid"),
        "duplicate": plan.count("duplicate"),
        "exports": [
            {
                "export": export.export,
                "read": export.read,
                "interactions": export.interactions,
                "invalid": export.invalid,
                "duplicate": export.duplicate,
            }
            for export in plan.exports
        ],
        "known": list(plan.known),
        "earlier_loads": plan.earlier_loads,
        "requests": tally.requests,
        "lanes": plan.lanes,
        "rows_with_tid": tally.with_tid,
        "requests_for_tid": tally.requests - tally.untied_requests,
        "duration": {
            "about": True,
            "sending_s": round(took.sending_s, 1),
            "calendar_s": round(took.calendar_s, 1),
            "bound_by": took.bound_by,
            "sittings": took.sittings,
            "window": config.budget.window,
            "window_s": None if config.budget.window is None else window_s(config.budget.window),
            "requests_per_day": config.budget.requests_per_day,
        },
        "floor": None
        if slowest is None
        else {
            "about": True,
            "seconds": round(slowest.requests * latency_s, 1),
            "latency_s": latency_s,
            **slowest._asdict(),
        },
        "busiest": [one._asdict() for one in tally.busiest],
        "months": dict(sorted(tally.months.items())),
        "invalid_by_reason": [
            {
                "reason": reason,
                "rows": rows,
                "remedy": HINTS[reason],
                "examples": _examples(plan.invalid_examples[reason]),
            }
            for reason, rows in plan.invalid.items()
        ],
        "unseen_characters": {"rows": plan.unseen_keys, "examples": _examples(plan.unseen_examples)},
        "first": [{**one.place._asdict(), "tid": one.tid, "body": one.body} for one in plan.shown],
        "warnings": list(plan.warnings),
    }


def _examples(examples: "Sequence[Example]") -> list[dict[str, Any]]:
    return [{**one.place._asdict(), "value": None if one.value is None else shortened(one.value)} for one in examples]
