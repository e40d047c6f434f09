"""Checking before anything is sent: which columns are matched to what, whether a token is granted, and (asked for)
which form on the wire the tenant takes.

Joins adapters; stages nothing and writes nothing, but for a probe. That delivers one row of the job through `run`'s own
stations: journaled before the first byte, in the ledger afterwards, and never sent again by a later run.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import httpx

from backfill import settle
from backfill.adapters import exports
from backfill.adapters import transport as http
from backfill.adapters.exports import Located
from backfill.adapters.interaction_api import Credentials, InteractionApi
from backfill.adapters.journal import Journal
from backfill.adapters.ledger import Ledger
from backfill.adapters.scratch import Scratch
from backfill.adapters.state import JobFile, StateDirectory, Tenant
from backfill.core.calls import CALLS
from backfill.core.columns import ColumnMap, resolve
from backfill.core.config import RunConfig
from backfill.core.errors import BackfillError, ExitCode, Unusable
from backfill.core.events import TokenFailed, TokenRefused
from backfill.core.limits import MAX_REPLY_BYTES
from backfill.core.probe import MAX_CALLS, Proof, Trial, next_form, proof
from backfill.core.proxy import Proxies
from backfill.core.stop import Stop
from backfill.core.summary import Progress
from backfill.deliver import tls_context
from backfill.run import Order as RunOrder
from backfill.run import execute

_PROBING_S = 30.0
"""A server that cannot be reached is told after this long: somebody waits."""


# ------------------------------------------------------------------------------------------------------------ exports


@dataclass(frozen=True, slots=True, kw_only=True)
class Matched:
    """How one export's columns were matched; `problem`: why they could not be, `columns` then being None."""

    path: Located
    columns: ColumnMap | None
    unused: tuple[str, ...] = ()
    problem: BackfillError | None = None


def match(given: Sequence[Located], config: RunConfig) -> list[Matched]:
    """The exports that `given` stands for, each with what its header comes to. No row is judged.

    Raises: ExportError where nothing is found.
    """
    found = exports.find(given)
    with contextlib.ExitStack() as resources:
        folder = None
        if not all(isinstance(path, Path) for path in found):  # objects are fetched to there, one after another
            folder = resources.enter_context(Scratch()).folder
        return [_matched(path, config, folder) for path in found]


def _matched(path: Located, config: RunConfig, folder: Path | None) -> Matched:
    try:
        with exports.opened(path, config.csv, folder=folder) as export:
            columns = resolve(
                config.columns,
                export.header,
                export=str(path),
                key_required=config.rows.customer_key_required,
                identity=config.rows.identity or (),
                beginning=export.beginning,
                csv=config.csv,
            )
    except BackfillError as error:
        return Matched(path=path, columns=None, problem=error)
    used = set(columns.used)
    return Matched(path=path, columns=columns, unused=tuple(name for name in export.header if name not in used))


# -------------------------------------------------------------------------------------------------------------- token


class Token(NamedTuple):
    """Whether a token is to be had. `told` is a sentence."""

    code: ExitCode
    told: str


def ask_for_token(config: RunConfig, credentials: Credentials, proxies: Proxies) -> Token:
    """Ask for one token, once; one that is given is not looked at.

    Raises: ConfigurationError where credentials, proxy or CA bundle cannot be used.
    """
    credentials.require()
    proxies.require(config.api.base_url, config.api.token_url)
    if credentials.token:
        return Token(ExitCode.COMPLETE, "given by BACKFILL_TOKEN; only a call shows whether it is good.")
    return asyncio.run(_ask(config, credentials, proxies))


async def _ask(config: RunConfig, credentials: Credentials, proxies: Proxies) -> Token:
    api = config.api
    async with http.Transport(
        ssl_context=tls_context(config),
        connect_timeout_s=api.connect_timeout_s,
        timeout_s=api.timeout_s,
        max_reply_bytes=MAX_REPLY_BYTES,
        proxies=proxies,
    ) as transport:
        timeout = httpx.Timeout(api.timeout_s, connect=api.connect_timeout_s)
        asking = InteractionApi(
            # Not entered: it would close the transport, which is ours.
            client=httpx.AsyncClient(transport=transport, timeout=timeout, trust_env=False),
            base_url=httpx.URL(api.base_url),
            site_key=api.site_key,
            call=CALLS[api.call],
            token_url=api.token_url,
            credentials=credentials,
        )
        match await asking.refresh_token():
            case TokenRefused(code, reason):
                return Token(code, f"refused. {reason}")
            case TokenFailed(reason):
                return Token(ExitCode.STOPPED_EARLY, f"not granted: {reason.rstrip('.')}. Try again later.")
    return Token(ExitCode.COMPLETE, "granted.")


def ways(config: RunConfig, proxies: Proxies) -> list[tuple[str, str, str]]:
    """Where it connects to, and how: key, address, way.

    Raises: ConfigurationError where a proxy that is named cannot be used.
    """
    api = config.api
    trust = "the system's authorities" if api.ca_bundle is None else f"the authorities in {api.ca_bundle}"
    found = []
    for key, url in (("api.base_url", httpx.URL(api.base_url)), ("api.token_url", _token_url(config))):
        origin = http.Origin.of(url)
        proxy = proxies.route(*origin)
        way = "directly" if proxy is None else f"through {proxy}"
        found.append((key, str(url), f"{way}, {f'TLS trusting {trust}' if url.scheme == 'https' else 'without TLS'}"))
    return found


def _token_url(config: RunConfig) -> httpx.URL:
    return httpx.URL(config.api.base_url).join(config.api.token_url)


def require_ledger_key(ledger_key: str | None, job: JobFile | None, config: RunConfig) -> None:
    """Raises: ConfigurationError where `run` would miss the key that its ledger needs."""
    settle.require_ledger_key(ledger_key, JobFile(tenant=_NOBODY) if job is None else job, config.ledger.customer_key)


_NOBODY = Tenant(base_url="", site_key="", call="")


# -------------------------------------------------------------------------------------------------------------- probe


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What shall be probed, and for whom; the keys are those of `run.Order`."""

    config: RunConfig
    exports: tuple[Located, ...]
    state: Path
    credentials: Credentials
    proxies: Proxies = field(default_factory=Proxies)
    ledger_key: str | None = field(default=None, repr=False)


class Row(NamedTuple):
    """The row that was tried, and what the ledger says of it."""

    export: str
    row: int
    outcome: str
    reasons: list[str]
    http_status: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """What came of it. `row` is None where none was sent; `stopped`: why the last try ended, in `run`'s words."""

    trials: tuple[Trial, ...]
    calls: int
    row: Row | None
    exit_code: ExitCode
    stopped: str | None


def probe(order: Order, *, stop: Stop, report: Callable[[Progress], None]) -> Probed:
    """Deliver one row of the exports, in one form after the other until the API takes it.

    The caller holds the lock of the state directory. Each try is an execution of the job, limited to one interaction; a
    load of which nothing was applied is staged again for the next form. Raises: Unusable for a job of which rows were
    sent already; whatever else `run` raises.
    """
    _must_be_untried(order.state)
    many = CALLS[order.config.api.call].many
    trials: list[Trial] = []
    calls, row, stopped, code = 0, None, None, ExitCode.STOPPED_EARLY
    while calls < MAX_CALLS and not stop.requested:
        wire = next_form(order.config.wire, trials, many=many)
        if wire is None:
            break
        summary = execute(_try(order, wire), report=report, stop=stop)
        calls += summary.requests
        stopped, code = summary.stopped, summary.exit_code
        row = _tried(order.state) if summary.requests else None
        shown = proof(row.outcome, row.reasons, row.http_status) if row is not None else Proof.NOTHING
        trials.append(Trial(wire, shown, " ".join(row.reasons[1:]) if row is not None else ""))
    return Probed(
        trials=tuple(trials),
        calls=calls,
        row=row,
        exit_code=_exit_code(trials[-1].proof if trials else Proof.NOTHING, code),
        stopped=stopped,
    )


def _try(order: Order, wire: object) -> RunOrder:
    # One failure or one wait ends a try, as the limit does after one refusal: another call would cost licence.
    delivery = order.config.delivery.model_copy(
        update={
            "in_doubt": "hold",
            "max_attempts": 1,
            "give_up_after_s": min(_PROBING_S, order.config.delivery.give_up_after_s),
        }
    )
    return RunOrder(
        config=order.config.model_copy(update={"wire": wire, "delivery": delivery}),
        exports=order.exports,
        state=order.state,
        credentials=order.credentials,
        limit=1,
        proxies=order.proxies,
        ledger_key=order.ledger_key,
    )


def _exit_code(last: Proof, of_run: ExitCode) -> ExitCode:
    match last:
        case Proof.TAKEN:
            return ExitCode.COMPLETE
        case Proof.UNRECOGNISED | Proof.DOUBT:
            return ExitCode.ROWS_IN_DOUBT
        case Proof.REFUSED:
            return ExitCode.UNUSABLE
    return of_run


def _must_be_untried(state: Path) -> None:
    directory = StateDirectory(state)
    job = directory.read_job()
    if job is None or not job.loads:
        return
    with Journal.existing(state / "journal.db") as journal:
        sent = [load.load for load in job.loads if not journal.is_unapplied(load.load)]
    if sent:
        raise Unusable(
            f"Rows of the job in {state} were sent already (load {sent[0]}), so that a probe has nothing to find out: "
            f"`backfill ledger --state {state}` shows what the API answered."
        )


def _tried(state: Path) -> Row | None:
    """The row that was sent, from the ledger that the execution has just written."""
    return next(_lines(Ledger(state)), None)


def _lines(ledger: Ledger) -> Iterator[Row]:
    manifest = ledger.read_manifest()
    for part in manifest.parts if manifest is not None else ():
        lines = ledger.read_part(part.path)
        lines = lines.filter(lines["attempts"] > 0).select("export", "row", "outcome", "reasons", "http_status")
        yield from (Row(*line) for line in lines.iter_rows())
