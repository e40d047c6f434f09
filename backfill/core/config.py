"""The configuration: one typed description with every key, its default and what it may be.

Values in, values out. Where the values come from and how a mistake is told is `core.settings`' matter; what a load
keeps of them is `core.freeze`'s. Secrets are no part of it.
"""

import codecs
import ipaddress
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from backfill.core.limits import MAX_INTERACTIONS
from backfill.core.window import parse as parse_window
from backfill.core.wording import listed

# ------------------------------------------------------------------------------------------------ rules of values


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _origin(url: str) -> str:
    """An absolute http(s) URL without user, query and fragment; what it may carry besides is the caller's rule."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("is not a URL: write it as https://HOST") from None
    if parts.scheme not in ("http", "https") or not host or re.search(r"[\s\x00-\x1f\\]", url):
        raise ValueError("is not an http(s) URL: write it as https://HOST")
    if "@" in parts.netloc:
        raise ValueError(
            "carries a user or password: take them out, credentials are read from BACKFILL_CLIENT_ID and "
            "BACKFILL_CLIENT_SECRET"
        )
    if parts.query or parts.fragment or "?" in url or "#" in url:
        raise ValueError("carries a query or fragment: leave out everything from ? or # on")
    if parts.scheme == "http" and not _is_loopback(host):
        # The token and people's data would cross the network in the clear.
        raise ValueError("is plain http: use https (http is for loopback addresses only)")
    if port == {"http": 80, "https": 443}[parts.scheme]:
        port = None
    name = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{name}{'' if port is None else f':{port}'}{parts.path}"


def _base_url(url: str) -> str:
    """Spelled in one way, since the base URL is part of a job's identity: lower-case host, no final slash."""
    known = _origin(url).rstrip("/")
    if urlsplit(known).path:
        raise ValueError("carries a path: leave out everything after the host, the paths of the API are known")
    return known


def _token_url(url: str) -> str:
    if url.startswith("/") and not url.startswith("//"):
        if re.search(r"[\s\x00-\x1f#]", url):
            raise ValueError("is not a path: it holds blanks, control characters or #")
        return url
    return _origin(url)


def _no_blanks(text: str) -> str:
    if not text or re.search(r"[\s\x00-\x1f\x7f]", text):
        raise ValueError("must be text without blanks and control characters")
    return text


def _job_name(name: str) -> str:
    """A job's name becomes a directory, so it must not lead elsewhere."""
    if not name.strip() or name.startswith(".") or re.search(r"[/\\\x00-\x1f\x7f]", name) or len(name.encode()) > 200:
        raise ValueError("must be a plain name: no slash, no leading dot, no control character, at most 200 bytes")
    if name.endswith(".sandbox"):
        raise ValueError('must not end in ".sandbox": such states belong to runs with --sandbox')
    return name


def _instant(raw: object) -> object:
    """ISO 8601 with an offset, as text; TOML's own date-times are taken too, since they are how people write them."""
    text = raw.isoformat() if isinstance(raw, datetime) else raw
    try:
        moment = datetime.fromisoformat(text if isinstance(text, str) else "")
    except ValueError:
        raise ValueError('is not ISO 8601: write it as "2024-01-31T00:00:00Z"') from None
    if moment.tzinfo is None:
        raise ValueError('has no offset: add "Z" or one such as "+01:00"')
    return text


def _zone(name: str) -> str:
    """A zone that polars knows: it is polars that will convert with it, and asking it reads no file of ours."""
    import polars as pl

    # By name only: polars would also take "+01:00", which is an offset and knows no summer time.
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9_+\-]*(/[A-Za-z0-9_+\-]+)*", name):
        try:
            pl.Series(["2024-01-01"]).str.to_datetime().dt.replace_time_zone(name)
        except pl.exceptions.PolarsError:
            pass
        else:
            return name
    raise ValueError('is no known time zone: write an IANA name such as "Europe/London" or "UTC"')


EPOCHS = ("epoch_s", "epoch_ms", "epoch_us")
"""Formats of `[time]` that are counts since 1970, UTC, not strptime codes."""


def _window(text: str) -> str:
    parse_window(text)
    return text


def _formats(formats: list[str]) -> list[str]:
    for known in formats:
        if "%" not in known and known not in EPOCHS:
            raise ValueError(
                'holds a format without codes: write strptime codes such as "%d/%m/%Y %H:%M:%S", '
                "or epoch_s, epoch_ms, epoch_us"
            )
    return formats


def _delimiter(text: str) -> str:
    if len(text) != 1 or not text.isascii() or text in "\r\n\0":
        raise ValueError('must be one ASCII character, no line end: a tab is written as "\\t"')
    return text


def _quote(text: str) -> str:
    if text and (len(text) != 1 or not text.isascii() or text in "\r\n\0"):
        raise ValueError('must be one ASCII character, no line end, or "" where quotes mean nothing')
    return text


def _comment(text: str) -> str:
    if not 1 <= len(text) <= 5 or not text.isascii() or re.search(r"[\r\n\0]", text):
        raise ValueError('must be one to five ASCII characters, no line end: "#" or "//"')
    return text


_NO_CHARACTERS = {"idna", "punycode", "undefined", "unicode-escape", "unicode_escape", "raw-unicode-escape", "utf-7"}
"""Codecs of Python that read text and are nobody's encoding of a file."""


def _encoding(name: str) -> str:
    """Spelled in one way, so that "UTF8" and "utf-8" are the same to a frozen load."""
    try:
        known = codecs.lookup(name).name
        "a".encode(known)  # refuses what is no encoding of text, such as base64
    except (LookupError, ValueError):
        known = ""
    if not known or known in _NO_CHARACTERS:
        raise ValueError('is no known encoding: write "utf-8", "windows-1252", "latin-1", "utf-16-le", ...')
    return "utf-8" if known == "utf-8-sig" else known  # a byte order mark is recognised by itself


def _csv_header(raw: object) -> object:
    if raw is True:
        return raw
    if not isinstance(raw, list) or not raw or not all(isinstance(name, str) and name for name in raw):
        raise ValueError("must be true, or the list of the columns' names for exports without a header")
    if twice := sorted({name for name in raw if raw.count(name) > 1}):
        raise ValueError(f'names the column "{twice[0]}" more than once')
    return raw


def _share_or_count(raw: object) -> object:
    if isinstance(raw, str):
        share = re.fullmatch(r"(\d+(?:\.\d+)?) ?%", raw.strip())
        if share and float(share[1]) <= 100:
            return raw.strip()
    elif isinstance(raw, int) and not isinstance(raw, bool) and raw >= 0:
        return raw
    raise ValueError('must be a count of rows such as 10, or a share between "0%" and "100%"')


OWN_STATUSES = frozenset({400, 401, 413, 422})
"""Replies with an answer of their own (split, refresh the token): to repeat them unchanged would never end."""


def _unapplied(statuses: list[int]) -> list[int]:
    if any(not 400 <= status <= 599 for status in statuses):
        raise ValueError("may hold statuses from 400 to 599 only: others say nothing about what was not applied")
    if own := sorted(OWN_STATUSES.intersection(statuses)):
        raise ValueError(f"must not hold {listed(map(str, own), 'or')}: such replies are answered in their own way")
    return statuses


def _properties(raw: object) -> object:
    if raw is None:
        return raw
    names = (
        list(raw.items())
        if isinstance(raw, dict)
        else [(name, name) for name in raw]
        if isinstance(raw, list)
        else [(0, 0)]
    )
    if not all(isinstance(text, str) and text for pair in names for text in pair):
        raise ValueError('must be a list of column names, or a table { column = "property name" }')
    properties = [name for _, name in names]
    if twice := sorted({name for name in properties if properties.count(name) > 1}):
        raise ValueError(f'names the property "{twice[0]}" more than once')
    return raw


def _names(names: list[str] | None) -> list[str] | None:
    for name in names or ():
        if not name:
            raise ValueError("must be a list of column names, none of them empty")
        if names is not None and names.count(name) > 1:
            raise ValueError(f'names the column "{name}" more than once')
    return names


def _bulk(raw: object) -> object:
    if isinstance(raw, BulkKey):
        return raw
    if isinstance(raw, dict) and list(raw) == ["key"] and isinstance(raw["key"], str) and raw["key"]:
        return BulkKey(key=raw["key"])
    if raw != "array":
        raise ValueError('must be "array" or { key = "..." }')
    return raw


# ---------------------------------------------------------------------------------------------------- description


@dataclass(frozen=True, slots=True)
class Written:
    """Says what a key may be, in words, where its type does not."""

    words: str


class Section(BaseModel):
    """A table of the configuration: it cannot be changed, and it knows no key but its own.

    The docstring under a key is its line in README's reference; `Written` says there what it may be, where its type
    does not (`python -m tests.make_reference` writes it).
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class FromColumn(Section):
    """The value stands in a column of the export."""

    column: str


class Constant(Section):
    """Every row has the same value."""

    value: str


class Template(Section):
    """The value is put together from columns: `api://shop/{channel}`."""

    template: str


def _column_source(raw: object) -> object:
    """A bare string names a column; `{ value = ... }` and `{ template = ... }` are written as tables."""
    if isinstance(raw, (FromColumn, Constant, Template)):
        return raw
    if isinstance(raw, str) and raw:
        return FromColumn(column=raw)
    if isinstance(raw, dict) and len(raw) == 1:
        (kind, text), *_ = raw.items()
        if isinstance(text, str) and text:
            if kind == "value":
                return Constant(value=text)
            if kind == "template":
                return Template(template=text)
    raise ValueError('must be a column name, { value = "..." } or { template = "..." }')


ColumnSource = Annotated[FromColumn | Constant | Template, BeforeValidator(_column_source)]

_SOURCE = Written('a column name, `{ value = "..." }` or `{ template = "api://shop/{channel}" }`')


_ZONE = Written("an IANA name such as `Europe/London`")
_INSTANT = Written("ISO 8601 with an offset, inclusive")


class Job(Section):
    name: Annotated[str, AfterValidator(_job_name)] | None = None
    """Names the job, and its state directory; by default the stem of the configuration's file."""


class Api(Section):
    base_url: Annotated[str, AfterValidator(_base_url), Written("`https://HOST`")]
    """The address of your MXO; https, or http on loopback. Part of the job's identity."""
    site_key: Annotated[str, AfterValidator(_no_blanks)]
    """The site key of your MXO space. Part of the job's identity."""
    token_url: Annotated[str, AfterValidator(_token_url), Written("a path or a URL")] = "/one/oauth2token"  # noqa: S105  # a path, no password
    """A path at base_url, or a whole URL where tokens are issued elsewhere."""
    call: Literal["interactions-offline", "interaction-offline"] = "interactions-offline"
    """The bulk call of up to 100 interactions, or the call of one. Part of the job's identity."""
    connect_timeout_s: float = Field(10.0, gt=0)
    """How long a connection, TLS included, may take."""
    timeout_s: float = Field(60.0, gt=0)
    """How long a reply may take; after it the request is in doubt."""
    ca_bundle: str | None = Field(None, min_length=1)
    """PEM file with the authorities to trust instead of the system's; counts from the configuration's file."""


class Columns(Section):
    timestamp: Annotated[ColumnSource, _SOURCE] = FromColumn(column="timestamp")
    """When the interaction occurred."""
    customer_key: Annotated[ColumnSource | None, _SOURCE] = FromColumn(column="customer_key")
    """Whose it is. Unless one is required, an export may lack the default column, and only that."""
    customer_key_name: Annotated[ColumnSource | None, _SOURCE] = Constant(value="customerkey")
    """The kind of the key, as MXO knows it."""
    url: Annotated[ColumnSource, _SOURCE] = FromColumn(column="url")
    """The address of the touchpoint."""
    tid: Annotated[ColumnSource | None, _SOURCE] = None
    """The Thunderhead identifier; rows with one share no request with those of another."""
    properties: Annotated[
        list[str] | dict[str, str] | None,
        BeforeValidator(_properties),
        Written('a list of columns, or `{ column = "property name" }`'),
    ] = None
    """By default every column that no other key names. A table maps column to property name."""


class Time(Section):
    zone: Annotated[Annotated[str, AfterValidator(_zone)] | None, _ZONE] = None
    """The zone of timestamps without an offset; without it they are invalid."""
    formats: Annotated[
        Annotated[list[str], Field(min_length=1), AfterValidator(_formats)] | None,
        Written("a list of strptime codes, `epoch_s`, `epoch_ms`, `epoch_us`"),
    ] = None
    """When given, only these are tried; else ISO 8601."""
    fold: Literal["refuse", "earlier", "later"] = "refuse"
    """Which instant is meant by a time that the clocks showed twice, when summer time ended."""
    not_before: Annotated[str | None, BeforeValidator(_instant), _INSTANT] = None
    """Earlier timestamps are invalid."""
    not_after: Annotated[str | None, BeforeValidator(_instant), _INSTANT] = None
    """Later timestamps are invalid; by default those after the moment of staging."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        limits = [datetime.fromisoformat(text) for text in (self.not_before, self.not_after) if text is not None]
        if limits != sorted(limits):
            raise ValueError("not_before lies after not_after, so every row would be invalid")
        return self


class Csv(Section):
    delimiter: Annotated[str, AfterValidator(_delimiter), Written("one ASCII character")] = ","
    """What stands between two fields."""
    quote: Annotated[str, AfterValidator(_quote), Written('one ASCII character, or `""`')] = '"'
    """What fields are quoted by; empty where quotes mean nothing, and no value holds a delimiter or a line end."""
    encoding: Annotated[
        str, AfterValidator(_encoding), Written("`utf-8`, `windows-1252`, `latin-1`, `utf-16-le`, ...")
    ] = "utf-8"
    """How the text is encoded; what a byte order mark says is stronger."""
    header: Annotated[
        Literal[True] | list[str], BeforeValidator(_csv_header), Written("`true`, or a list of names")
    ] = True
    """True: the first record names the columns. A list: these are their names, and the first record is a row."""
    skip_lines: int = Field(0, ge=0)
    """Lines before the header (or the first row) that are no part of the table."""
    skip_footer: int = Field(0, ge=0)
    """Lines at the end that are no part of the table; blank lines after them are not counted."""
    comment: Annotated[Annotated[str, AfterValidator(_comment)] | None, Written("one to five ASCII characters")] = None
    """What lines that are no records begin with."""
    null_values: Annotated[list[str], Written("a list of texts")] = []
    """Words that mean "no value", also in text columns of Parquet."""

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.delimiter == self.quote:
            raise ValueError("delimiter and quote are the same character")
        if self.comment and self.comment[0] in (self.delimiter, self.quote):
            raise ValueError("comment begins with the delimiter or the quote")
        return self


class Rows(Section):
    duplicates: Literal["skip", "send"] = "skip"
    """Whether an interaction that was met before, in this load or an earlier one, is sent again."""
    max_rejected: Annotated[
        str | int, BeforeValidator(_share_or_count), Written('a share such as `"1%"`, or a count')
    ] = "1%"
    """How many rows of an export may be invalid (else nothing of it is sent), or rejected (else exit code 3)."""
    customer_key_required: bool = True
    """Whether rows without a customer key are invalid."""
    identity: Annotated[list[str] | None, Field(min_length=1), AfterValidator(_names), Written("a list of columns")] = (
        None
    )
    """Columns that tell two interactions of one customer apart; by default all of the content does."""
    whole_number_keys: Literal["refuse", "mend"] = "refuse"
    """Whether the key 17850.0, a whole number that went through a float, is invalid or sent as 17850."""


class Budget(Section):
    requests_per_second: float = Field(20.0, gt=0)
    """Never more calls than this start in any second."""
    interactions_per_second: float | None = Field(None, gt=0)
    """On average; with the bulk call at least 100, which one full request carries."""
    concurrency: int = Field(16, ge=1, le=1024)
    """Requests in the air at once; so many may be in doubt after a crash."""
    requests_per_day: int | None = Field(None, ge=1)
    """Calls from midnight to midnight in window_zone, refused and repeated ones included."""
    window: Annotated[Annotated[str, AfterValidator(_window)] | None, Written('`"22:00-06:00"`')] = None
    """When requests may be sent, by the clock of window_zone."""
    window_zone: Annotated[str, AfterValidator(_zone), _ZONE] = "UTC"
    """Whose clock window and requests_per_day go by."""


class Delivery(Section):
    in_doubt: Literal["hold", "resend"] = "hold"
    """What nobody can know of is held until someone decides, or sent again (maybe twice) and marked."""
    max_in_doubt: int = Field(0, ge=0)
    """More rows in doubt than this: exit code 4."""
    on_400: Literal["bisect", "reject"] = "bisect"
    """A refused request is divided until the bad rows stand alone, or rejected as a whole."""
    canary_calls: int = Field(20, ge=1)
    """Refusals in a row, with nothing acknowledged, after which the job stops with nothing rejected."""
    unapplied_statuses: Annotated[
        list[int], AfterValidator(_unapplied), Written("a list of statuses from 400 to 599")
    ] = [408, 429, 503]
    """Replies after which a request is sent again, since nothing of it was applied."""
    max_attempts: int = Field(10, ge=1)
    """A request that was tried so often stops the job."""
    backoff_base_s: float = Field(1.0, gt=0)
    """The longest wait before the second attempt; it doubles with each further one."""
    backoff_max_s: float = Field(60.0, gt=0)
    """The longest wait before any attempt."""
    give_up_after_s: float = Field(900.0, gt=0)
    """Without an acknowledgement for so long the job stops."""
    breaker_failures: int = Field(5, ge=1)
    """Failures in a row after which only one request probes the server."""
    shutdown_grace_s: float = Field(30.0, ge=0)
    """How long a stop waits for replies."""

    @model_validator(mode="after")
    def _growing(self) -> Self:
        if self.backoff_base_s > self.backoff_max_s:
            raise ValueError("backoff_base_s is larger than backoff_max_s")
        return self


class BulkKey(Section):
    """Bulk bodies are an object that holds the array under this key."""

    key: str


class Wire(Section):
    address_field: str = Field("url", min_length=1)
    """What the interaction's address is called: `url` in the reference, `uri` in the vendor's public client code."""
    timestamp_field: str = Field("timestamp", min_length=1)
    """What the interaction's time is called."""
    timestamp_format: Literal["epoch_ms", "iso8601"] = "epoch_ms"
    """How the time is written."""
    bulk: Annotated[
        Literal["array"] | BulkKey,
        BeforeValidator(_bulk),
        Written('`"array"` or `{ key = "interactions" }`'),
    ] = "array"
    """The body of a bulk call: a bare array, or an object that holds it under this key."""
    acknowledged_by: Literal["statusCode", "http_status"] = "statusCode"
    """What tells that a call arrived: a statusCode of 2xx in the reply, or the HTTP status alone. Shapes no bytes."""

    @model_validator(mode="after")
    def _apart(self) -> Self:
        names = [self.address_field, self.timestamp_field, "customerKey", "customerKeyName", "properties"]
        if len(set(names)) < len(names):
            raise ValueError(
                "address_field and timestamp_field must differ from each other and from customerKey, "
                "customerKeyName and properties"
            )
        return self


class Ledger(Section):
    customer_key: Literal["plain", "hmac", "omit"] = "plain"
    """As they are, as HMAC-SHA256 with the key in BACKFILL_LEDGER_KEY, or not at all."""


class RunConfig(Section):
    """Everything `backfill run` can be told; every key but `api.base_url` and `api.site_key` has a default."""

    job: Job = Job()
    api: Api
    columns: Columns = Columns()
    time: Time = Time()
    csv: Csv = Csv()
    rows: Rows = Rows()
    budget: Budget = Budget()
    delivery: Delivery = Delivery()
    wire: Wire = Wire()
    ledger: Ledger = Ledger()


def contradictions(config: RunConfig) -> list[tuple[str, str, str]]:
    """What two sections say against each other: section, key, and what is wrong with its value.

    The bulk call needs a budget of at least one full request a second, or it would wait for seconds at each of them.
    A call of one interaction needs no such thing: there, interactions/s are requests/s.
    """
    least = config.budget.interactions_per_second
    if config.api.call == "interactions-offline" and least is not None and least < MAX_INTERACTIONS:
        return [
            (
                "budget",
                "interactions_per_second",
                f"must be at least {MAX_INTERACTIONS}, which one call of {config.api.call} carries (less is possible "
                'with api.call = "interaction-offline")',
            )
        ]
    return []


SECTIONS: dict[str, type[Section]] = {
    name: field.annotation  # type: ignore[misc]  # every field of RunConfig is a section
    for name, field in RunConfig.model_fields.items()
}
