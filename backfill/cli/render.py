"""What people and programs read: summary, status, verdict and progress, as text and as JSON values.

Values in, text out; prints nothing. Shows counts, places and names of files, never what stands in a row.
"""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePath
from typing import Any

from backfill.core.errors import ExitCode
from backfill.core.summary import OUTCOMES, ExportCounts, Progress, Summary

_EXPORTS_SHOWN = 10
_EXPORTS_NAMED = 3

# --------------------------------------------------------------------------------------------------------- summary

_HEADLINES = {
    ExitCode.COMPLETE: "Complete: every row is accounted for.",
    ExitCode.ROWS_REFUSED: "Complete, but more rows are invalid or rejected than rows.max_rejected allows.",
    ExitCode.ROWS_IN_DOUBT: "Complete, but of some rows nobody knows whether they arrived.",
    ExitCode.STOPPED_EARLY: "Stopped early; running it again continues.",
    ExitCode.CREDENTIALS_REFUSED: "Stopped: the credentials were refused.",
    ExitCode.UNUSABLE: "Stopped: something must be changed first.",
    ExitCode.STORAGE_FAILED: "Stopped: the journal or the disk failed.",
    ExitCode.BUG: "Stopped by a bug.",
}


def summary_text(summary: Summary) -> str:
    """The account of an execution, in five lines where all went well: what happened, what it cost, the equation, the
    ledger, what to do next. Single exports are named where one of them is the reason of the exit code.
    """
    outcomes = {name: summary.count(name) for name in OUTCOMES}
    lines = [_HEADLINES.get(summary.exit_code, f"Ended with exit code {int(summary.exit_code)}.")]
    if summary.stopped:
        lines.append(f"Reason   {summary.stopped}")
    if summary.resume_after:
        lines.append(f"         Not before {summary.resume_after}.")
    lines += [
        f"Sent     {many(summary.requests, 'call')} in {duration(summary.duration_s)} (execution {summary.execution})",
        f"Account  {equation(summary.read, outcomes)}",
    ]
    if summary.remaining_calls:
        calls, takes = many(summary.remaining_calls, "call"), duration(summary.remaining_s)
        lines.append(f"Left     {summary.count('unsent'):,} rows, about {calls}, {takes} at the budget")
    if not summary.balanced:
        lines.append("         This does not add up. Do not trust it; run `backfill verify`, and report it as a bug.")
    if len(summary.exports) > 1 and summary.exit_code is not ExitCode.COMPLETE:
        lines += _exports(summary.exports)
    lines.append(f"Ledger   {summary.ledger}")
    if summary.not_taken:
        lines.append(f"Keep     {listed(summary.not_taken)}: not taken yet, the next execution needs them")
    lines += labelled("Next", next_steps(summary.exit_code, summary.state, outcomes))
    return "\n".join(lines) + "\n"


def equation(read: int, outcomes: Mapping[str, int]) -> str:
    """`read 10 = delivered 9 + invalid 1 + ...`, all outcomes, also those of no row."""
    return f"read {read:,} = " + " + ".join(f"{_words(name)} {outcomes.get(name, 0):,}" for name in OUTCOMES)


def next_steps(code: ExitCode, state: str, outcomes: Mapping[str, int]) -> list[str]:
    """What a person should do after this exit code, with these rows."""
    at = f"--state {shlex.quote(state)}"
    see_doubt = (
        f"Rows in doubt are not sent again by themselves. `backfill resolve {at}` shows them; ask the vendor whether "
        "they arrived, then decide there."
    )
    unsent = {name: count for name in ("invalid", "rejected") if (count := outcomes.get(name, 0))}
    which = " and ".join(f"{count:,} {name}" for name, count in unsent.items())
    shows = f"`backfill ledger {at}{''.join(f' --outcome {name}' for name in unsent)}` shows why"
    refused = f"{which} rows were not delivered: {shows}. Deliver them, mended, as an export of their own."
    complete = f"Nothing is left to do. `backfill verify {at}` recomputes this account from the files."
    steps = {
        ExitCode.COMPLETE: [refused if unsent else complete],
        ExitCode.ROWS_REFUSED: [refused],
        ExitCode.STOPPED_EARLY: ["Run the same command again; it goes on where it stopped."],
        ExitCode.CREDENTIALS_REFUSED: [
            "Correct BACKFILL_CLIENT_ID and BACKFILL_CLIENT_SECRET (or BACKFILL_TOKEN), or the rights they have; "
            "then run the same command again."
        ],
        ExitCode.UNUSABLE: ["Do what the reason says, then run the same command again."],
        ExitCode.STORAGE_FAILED: ["Free or mend the disk, then run the same command again. Nothing is lost."],
        ExitCode.BUG: ["Report it. Nothing is lost: what was sent stands in the journal."],
    }.get(code, [])
    return [*steps, see_doubt] if outcomes.get("in_doubt") or code is ExitCode.ROWS_IN_DOUBT else steps


def summary_json(summary: Summary) -> dict[str, Any]:
    """The object of `run --json`. Times are seconds; `resume_after` is ISO 8601 or null."""
    return {
        "exit_code": int(summary.exit_code),
        "stopped": summary.stopped,
        "resume_after": summary.resume_after,
        "remaining_calls": summary.remaining_calls,
        "remaining_s": round(summary.remaining_s, 1),
        "read": summary.read,
        "outcomes": {name: summary.count(name) for name in OUTCOMES},
        "balanced": summary.balanced,
        "exports": _exports_json(summary.exports),
        "not_taken": list(summary.not_taken),
        "requests": summary.requests,
        "duration_s": round(summary.duration_s, 3),
        "execution": summary.execution,
        "ledger": summary.ledger,
        "state": summary.state,
        "warnings": list(summary.warnings),
    }


def _exports_json(exports: Iterable[ExportCounts]) -> list[dict[str, Any]]:
    return [
        {
            "export": export.export,
            "load": export.load,
            "read": export.read,
            "outcomes": {name: export.outcomes.get(name, 0) for name in OUTCOMES},
        }
        for export in exports
    ]


_ALRIGHT = ("delivered", "duplicate")


def _exports(exports: Sequence[ExportCounts]) -> list[str]:
    """A line for each of those exports, the worst first, in which rows were not delivered; outcomes of no row are left
    out.
    """
    bad = [
        (sum(each.outcomes.values()) - sum(each.outcomes.get(name, 0) for name in _ALRIGHT), each) for each in exports
    ]
    worst = [each for missing, each in sorted(bad, key=lambda pair: -pair[0]) if missing]
    named = [PurePath(export.export).name for export in worst[:_EXPORTS_NAMED]]
    width = max(map(len, named), default=0)
    told = [
        f"{name:<{width}}  read {export.read:,}: {_happened(export.outcomes)}"
        for name, export in zip(named, worst, strict=False)
    ]
    if len(worst) > _EXPORTS_NAMED:
        told.append(f"and {len(worst) - _EXPORTS_NAMED:,} more; --json names each")
    return labelled("Exports", told)


def _happened(outcomes: Mapping[str, int]) -> str:
    return ", ".join(f"{_words(name)} {outcomes[name]:,}" for name in OUTCOMES if outcomes.get(name)) or "nothing"


# -------------------------------------------------------------------------------------------------------- progress


def progress_line(progress: Progress, elapsed_s: float, rows_per_s: float | None = None) -> str:
    """`00:01:05 delivering 120,000 of 1,000,000 rows (12%), 1,950 rows/s, 1,312 calls, 3 in doubt, 7 min 31 s left`."""
    done, total = progress.rows_done, progress.rows_total
    of = "" if total is None else f" of {total:,}"
    share = f" ({done * 100 // total}%)" if total else ""
    told = [f"{clock(elapsed_s)} {progress.phase} {done:,}{of} rows{share}"]
    if rows_per_s:
        told.append(f"{rows_per_s:,.0f} rows/s")
    told += _counters(progress)
    if total and rows_per_s and done < total:
        told.append(f"{duration((total - done) / rows_per_s)} left")
    return ", ".join(told)


def _counters(progress: Progress) -> list[str]:
    """What is worth telling beside the rows; empty before anything was sent."""
    told = []
    if progress.requests:
        told.append(many(progress.requests, "call"))
    if progress.budget_share is not None:
        told.append(f"{progress.budget_share:.0%} of the budget")
    if progress.in_doubt:
        told.append(f"{progress.in_doubt:,} in doubt")
    if progress.rejected:
        told.append(f"{progress.rejected:,} rejected")
    return told


# ---------------------------------------------------------------------------------------------------------- status


@dataclass(frozen=True, kw_only=True)
class JobView:
    """How a job stands, put together from job.toml, status.json and the ledger's manifest.

    `status` is status.json as it is; `alive` says whether the process named there still runs (None: not known,
    since it runs on another host). `accounted` are the exports of loads that the ledger holds, `unaccounted` the
    loads that it does not hold yet, each with its exports' paths and rows.
    """

    state: str
    tenant: str | None
    status: Mapping[str, Any] | None
    alive: bool | None
    accounted: Sequence[ExportCounts]
    unaccounted: Sequence[tuple[int, Sequence[tuple[str, int]]]]
    ledger_as_of: str | None

    @property
    def running(self) -> bool:
        return self.status is not None and self.status.get("exit_code") is None and self.alive is not False


def status_text(view: JobView, now: datetime) -> str:
    """How a job stands, for a person."""
    lines = [f"Job      {view.state}"]
    if view.tenant:
        lines.append(f"Tenant   {view.tenant}")
    lines += labelled("Now", _now(view, now))
    if hidden := max(0, len(view.accounted) - _EXPORTS_SHOWN):
        lines.append(f"Loads    {hidden:,} exports more, see --json; the newest are:")
    lines += [f"Load {load.load:<4}{_account(load)}" for load in view.accounted[hidden:]]
    for number, exports in view.unaccounted:
        rows = sum(rows for _, rows in exports)
        names = listed([PurePath(path).name for path, _ in exports])
        lines.append(f"Load {number:<4}{names}: {rows:,} rows, not in the ledger yet")
    if view.ledger_as_of:
        lines.append(f"Ledger   {view.state}/ledger, as of {view.ledger_as_of}")
    if not view.accounted and not view.unaccounted:
        lines.append("Loads    none yet")
    unsent = any(export.outcomes.get("unsent") for export in view.accounted)
    if not view.running and (view.unaccounted or unsent):
        lines.append("Next     Run the same command again; it goes on where it stopped.")
    return "\n".join(lines) + "\n"


def _account(export: ExportCounts) -> str:
    return f"{PurePath(export.export).name}: {equation(export.read, export.outcomes)}"


def _now(view: JobView, now: datetime) -> list[str]:
    status = view.status
    if status is None:
        return ["no execution has told anything yet"]
    execution = f"execution {status.get('execution', '?')}"
    code = status.get("exit_code")
    when = status.get("updated_at", "an unknown time")
    if code is not None:
        return [f"{execution} ended with exit code {code} at {when}"]
    who = f"pid {status.get('pid', '?')} on {status.get('host', '?')}"
    doing = _doing(status)
    if view.alive is False:
        return [f"{execution} ({who}) died while {doing}; it said so last at {when}"]
    lines = [f"{execution} ({who}) is {doing}"]
    silent_s = _silent_s(status.get("updated_at"), now)
    if silent_s is not None and silent_s >= 10:
        lines.append(f"it has said nothing for {duration(silent_s)}")
    return lines


def _doing(status: Mapping[str, Any]) -> str:
    rows, total = status.get("rows_done"), status.get("rows_total")
    phase = str(status.get("phase", "starting"))
    if not isinstance(rows, int):
        return phase
    progress = Progress(
        phase=phase,
        rows_done=rows,
        rows_total=total if isinstance(total, int) else None,
        requests=int(status.get("requests") or 0),
        in_doubt=int(status.get("in_doubt") or 0),
        rejected=int(status.get("rejected") or 0),
    )
    return progress_line(progress, float(status.get("running_s") or 0)).partition(" ")[2]


def _silent_s(updated_at: object, now: datetime) -> float | None:
    try:
        return (now - datetime.fromisoformat(str(updated_at))).total_seconds()
    except (ValueError, TypeError):
        return None


def status_json(view: JobView) -> dict[str, Any]:
    """The object of `status --json`. `last` is what the last execution told of itself, or null."""
    return {
        "state": view.state,
        "tenant": view.tenant,
        "running": view.running,
        "alive": view.alive,
        "last": dict(view.status) if view.status is not None else None,
        "ledger_as_of": view.ledger_as_of,
        "exports": _exports_json(view.accounted),
        "not_in_ledger": [
            {"load": load, "exports": [{"export": path, "read": rows} for path, rows in exports]}
            for load, exports in view.unaccounted
        ],
    }


# --------------------------------------------------------------------------------------------------------- verdict


def verdict_text(
    checks: Sequence[tuple[str, bool, str]], exports: Sequence[ExportCounts], claims: Mapping[str, str]
) -> str:
    """Every check with what it claims and what it saw, then the recomputed account. Checks are (name, ok, detail)."""
    failed = [name for name, ok, _ in checks if not ok]
    lines = [
        f"Everything agrees ({len(checks)} checks)." if not failed else f"Something does not agree: {listed(failed)}."
    ]
    for name, ok, detail in checks:
        lines.append(f"{'ok' if ok else 'WRONG':<7}{name:<10}{claims.get(name, '')}")
        if detail:
            lines.append(f"{'':<17}{detail}")
    total = {name: sum(export.outcomes.get(name, 0) for export in exports) for name in OUTCOMES}
    lines.append(f"Account  {equation(sum(export.read for export in exports), total)}")
    if failed:
        lines.append(
            "Next     `backfill run` writes missing or damaged ledger parts anew; then verify again. What staging or "
            "the journal lacks must come back from a backup."
        )
    return "\n".join(lines) + "\n"


def verdict_json(checks: Sequence[tuple[str, bool, str]], exports: Sequence[ExportCounts]) -> dict[str, Any]:
    """The object of `verify --json`."""
    return {
        "ok": all(ok for _, ok, _ in checks),
        "checks": [{"check": name, "ok": ok, "detail": detail} for name, ok, detail in checks],
        "exports": _exports_json(exports),
    }


# ---------------------------------------------------------------------------------------------------- small things


def duration(seconds: float) -> str:
    """`0.4 s`, `12.3 s`, `4 min 05 s`, `3 h 02 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60:,} h {minutes % 60:02} min"


def clock(seconds: float) -> str:
    """`03:02:07`, for what is redrawn in place: its width stays the same."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest:02}"


def many(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _words(outcome: str) -> str:
    return outcome.replace("_", " ")


def listed(names: Sequence[str], shown: int = 3) -> str:
    head = ", ".join(names[:shown])
    return head if len(names) <= shown else f"{head} and {len(names) - shown:,} more"


def labelled(label: str, lines: Sequence[str]) -> list[str]:
    return [f"{label if number == 0 else '':<9}{line}" for number, line in enumerate(lines)]
