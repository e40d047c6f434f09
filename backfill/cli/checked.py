"""What `check` says: the configuration with its sources, the columns, the way to MXO, and what a probe showed.

Values in, text out; prints nothing. Of a secret it is told whether it is there and where it comes from; of exports the
names of columns, never what stands in a row.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backfill.check import Matched, Probed, Token
from backfill.cli.render import labelled, many
from backfill.cli.settings import Settings
from backfill.core.address import Address
from backfill.core.calls import CALLS
from backfill.core.columns import ColumnMap
from backfill.core.config import SECTIONS, ColumnSource, Constant, FromColumn, Template
from backfill.core.errors import BackfillError, ExitCode, worst
from backfill.core.freeze import written
from backfill.core.probe import Proof, lines_to_keep, summed_up
from backfill.core.wording import spelled

_FILES_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """All that was looked at. `exports` is None where none were named (or found), `token` where none was asked for.

    `problems`: what would keep `run` from going on, beside what `exports` and `token` tell.
    """

    settings: Settings
    has_job: bool
    secrets: Mapping[str, str | None]
    ways: Sequence[tuple[str, str, str]]
    exports: Sequence[Matched] | None
    token: Token | None
    has_credentials: bool
    problems: tuple[BackfillError, ...] = ()
    probed: Probed | None = None

    @property
    def exit_code(self) -> ExitCode:
        codes = [problem.exit_code for problem in self.problems]
        codes += [each.problem.exit_code for each in self.exports or () if each.problem is not None]
        codes += [self.token.code] if self.token is not None else []
        codes += [self.probed.exit_code] if self.probed is not None else []
        return ExitCode(worst(ExitCode.COMPLETE, *codes))


# --------------------------------------------------------------------------------------------------------------- text


def as_text(checked: Checked) -> str:
    """Everything in the order in which it takes effect, the verdict last."""
    settings = checked.settings
    file = "none" if settings.file is None else str(settings.file)
    job = "a job is there" if checked.has_job else "no job there yet"
    lines = [
        f"Configuration  {file} ({settings.file_by})",
        f"State          {settings.state} ({settings.state_by}; {job})",
        "",
        *_values(settings),
        "",
        *_secrets(checked.secrets),
    ]
    if checked.exports is not None:
        lines += ["", *_exports(checked.exports)]
    lines += ["", "Way to MXO"]
    width = len("api.token_url")
    lines += [f"  {key:<{width}}  {url}: {way}" for key, url, way in checked.ways]
    lines.append(f"  {'token':<{width}}  {_token(checked)}")
    if checked.probed is not None:
        lines += ["", *_probe(checked.probed, checked)]
    if checked.problems:
        lines += ["", "Problems", *(f"  {problem.message}" for problem in checked.problems)]
    return "\n".join([*lines, "", _verdict(checked)]) + "\n"


def _values(settings: Settings) -> list[str]:
    rows = [
        (f"  {section}.{key} = {spelled(written(getattr(getattr(settings.config, section), key)))}", place)
        for section, key, place in _keys(settings)
    ]
    # Aligned where that is easy to read; a long value has its source right behind it.
    width = max((len(text) for text, _ in rows if len(text) <= 60), default=0)
    return ["Values", *(f"{text:<{width}}  {place or 'default'}" for text, place in rows)]


def _keys(settings: Settings) -> list[tuple[str, str, str | None]]:
    return [
        (section, key, settings.places.get((section, key)))
        for section, model in SECTIONS.items()
        for key in model.model_fields
    ]


def _secrets(secrets: Mapping[str, str | None]) -> list[str]:
    width = max(map(len, secrets))
    return [
        "Secrets",
        *(
            f"  {name:<{width}}  {f'present, from {source}' if source else 'absent'}"
            for name, source in secrets.items()
        ),
    ]


def _exports(exports: Sequence[Matched]) -> list[str]:
    """One block for all exports with the same columns, since most have."""
    alike: dict[tuple[ColumnMap | None, tuple[str, ...], str], list[Path | Address]] = {}
    for each in exports:
        key = (each.columns, each.unused, each.problem.message if each.problem else "")
        alike.setdefault(key, []).append(each.path)
    lines = ["Exports"]
    for (columns, unused, problem), paths in alike.items():
        more = f" and {len(paths) - _FILES_SHOWN} more" if len(paths) > _FILES_SHOWN else ""
        if columns is None:
            lines.append(f"  {problem}")
            continue
        lines.append(f"  {', '.join(map(str, paths[:_FILES_SHOWN]))}{more}")
        lines += [f"    {part:<17}  {said}" for part, said in _matched(columns, unused)]
    return lines


def _matched(columns: ColumnMap, unused: Sequence[str]) -> list[tuple[str, str]]:
    parts = [
        (name, _source(getattr(columns, name)))
        for name in ("timestamp", "customer_key", "customer_key_name", "url", "tid")
    ]
    properties = ", ".join(
        spelled(column) if column == name else f"{spelled(column)} as {spelled(name)}"
        for column, name in columns.properties
    )
    parts.append(("properties", properties or "none"))
    if columns.identity:
        parts.append(("identity", ", ".join(map(spelled, columns.identity))))
    parts.append(("unused columns", ", ".join(map(spelled, unused)) or "none"))
    return parts


def _source(source: ColumnSource | None) -> str:
    match source:
        case FromColumn(column=column):
            return f"column {spelled(column)}"
        case Constant(value=value):
            return f"always {spelled(value)}"
        case Template(template=template):
            return f"template {spelled(template)}"
    return "none"


def _token(checked: Checked) -> str:
    if checked.token is not None:
        return checked.token.told
    if checked.has_credentials:
        return "not asked for, see below"
    return "not asked for: there are no credentials, and `backfill run` needs them"


_SHOWN = {
    Proof.TAKEN: "taken",
    Proof.REFUSED: "refused",
    Proof.UNRECOGNISED: "answered by a 2xx that does not acknowledge",
    Proof.DOUBT: "in doubt: no usable reply",
    Proof.NOTHING: "says nothing",
}


def _probe(probed: Probed, checked: Checked) -> list[str]:
    multiple = _is_bulk(checked)
    lines = [f"Probe: {many(probed.calls, 'call')} of one interaction"]
    for number, trial in enumerate(probed.trials, start=1):
        words = f" ({trial.words})" if trial.words else ""
        lines.append(f"  {number}. {summed_up(trial.wire, many=multiple)}: {_SHOWN[trial.proof]}{words}")
    if probed.row is not None:
        lines.append(f"  The row: {probed.row.export}, row {probed.row.row}: {probed.row.outcome}")
    kept = lines_to_keep(probed.trials[-1], many=multiple) if probed.trials else []
    if kept:
        lines += ["  Keep in the configuration:", *(f"    {line}" for line in kept)]
    return lines + [f"  {line}" for line in labelled("Next", _next(probed, str(checked.settings.state)))]


def _next(probed: Probed, state: str) -> list[str]:
    last = probed.trials[-1].proof if probed.trials else Proof.NOTHING
    at = f"--state {shlex.quote(state)}"
    match last:
        case Proof.TAKEN:
            return ["It is delivered and in the ledger. With these lines `backfill run` goes on with the other rows."]
        case Proof.UNRECOGNISED:
            return [
                "The API answered 2xx without a statusCode of 2xx. `backfill send` shows such a reply whole. If it is "
                "what your tenant says of every call it took, keep these lines; then ask whether the row arrived, and "
                f"decide with `backfill resolve {at} --delivered` or `--not-delivered`."
            ]
        case Proof.DOUBT:
            return [
                "Nobody knows whether the row arrived, so no other form was tried. Ask the vendor, then decide with "
                f"`backfill resolve {at}`."
            ]
        case Proof.REFUSED:
            return [
                "Each form was refused, so it is rather the row, its columns or the site key: read the API's words, "
                "mend that, and probe again. Nothing was applied."
            ]
    return [probed.stopped or "No row was sent, since the exports hold none that may be."]


def _is_bulk(checked: Checked) -> bool:
    return CALLS[checked.settings.config.api.call].many


def _verdict(checked: Checked) -> str:
    code = checked.exit_code
    if code is ExitCode.COMPLETE:
        return "Sound." if checked.has_credentials else "Sound, but for the credentials, which are absent."
    what = ["the problems above"] if checked.problems else []
    if any(each.problem for each in checked.exports or ()):
        what.append("exports that cannot be read as configured")
    if checked.token is not None and checked.token.code is not ExitCode.COMPLETE:
        what.append("no token")
    if checked.probed is not None and checked.probed.exit_code is not ExitCode.COMPLETE:
        what.append("no form that the API took")
    return f"Not sound: {', '.join(what)}."


# --------------------------------------------------------------------------------------------------------------- json


def as_json(checked: Checked) -> dict[str, Any]:
    """The object of `check --json`.

    {"exit_code", "problems": [sentence], "config": {"file", "by"}, "state": {"directory", "by", "has_job"},
     "values": [{"key", "value", "from"}]: "from" is "default", --set, the name in the environment, or file and line;
     "secrets": {NAME: where it comes from, or null},
     "exports": [{"export", "parts": {part: {"column"|"value"|"template": ...} or null}, "properties": {column: name},
                  "identity", "unused", "error"}] or null,
     "ways": [{"key", "url", "way"}], "token": {"exit_code", "told"} or null,
     "probe": {"exit_code", "calls", "trials": [{"wire", "proof", "words"}],
               "row": {"export", "row", "outcome"} or null, "keep": [line], "stopped"} or null}
    """
    settings = checked.settings
    return {
        "exit_code": int(checked.exit_code),
        "problems": [problem.message for problem in checked.problems],
        "config": {"file": None if settings.file is None else str(settings.file), "by": settings.file_by},
        "state": {"directory": str(settings.state), "by": settings.state_by, "has_job": checked.has_job},
        "values": [
            {
                "key": f"{section}.{key}",
                "value": written(getattr(getattr(settings.config, section), key)),
                "from": place or "default",
            }
            for section, key, place in _keys(settings)
        ],
        "secrets": dict(checked.secrets),
        "exports": None if checked.exports is None else [_export_json(each) for each in checked.exports],
        "ways": [{"key": key, "url": url, "way": way} for key, url, way in checked.ways],
        "token": None if checked.token is None else {"exit_code": int(checked.token.code), "told": checked.token.told},
        "probe": None if checked.probed is None else _probe_json(checked.probed, many=_is_bulk(checked)),
    }


def _export_json(matched: Matched) -> dict[str, Any]:
    columns = matched.columns
    parts = ("timestamp", "customer_key", "customer_key_name", "url", "tid")
    return {
        "export": str(matched.path),
        "parts": None if columns is None else {name: _part(getattr(columns, name)) for name in parts},
        "properties": None if columns is None else dict(columns.properties),
        "identity": None if columns is None else list(columns.identity),
        "unused": list(matched.unused),
        "error": None if matched.problem is None else matched.problem.message,
    }


def _part(source: ColumnSource | None) -> dict[str, str] | None:
    return None if source is None else source.model_dump()


def _probe_json(probed: Probed, *, many: bool) -> dict[str, Any]:
    return {
        "exit_code": int(probed.exit_code),
        "calls": probed.calls,
        "trials": [
            {"wire": trial.wire.model_dump(), "proof": trial.proof.value, "words": trial.words or None}
            for trial in probed.trials
        ],
        "row": None
        if probed.row is None
        else {"export": probed.row.export, "row": probed.row.row, "outcome": probed.row.outcome},
        "keep": lines_to_keep(probed.trials[-1], many=many) if probed.trials else [],
        "stopped": probed.stopped,
    }
