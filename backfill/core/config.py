"""The configuration: one typed description with every key, its default and what it may be.

Values in, values out. Where the values come from and how a mistake is told is `core.settings`' matter; what a load
keeps of them is `core.freeze`'s. Secrets are no part of it.
"""

import ipaddress
import re
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


def _one_ascii_character(text: str) -> str:
    if len(text) != 1 or not text.isascii() or text in "\r\n\0":
        raise ValueError("must be one ASCII character, no line end")
    return text


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


def _bulk(raw: object) -> object:
    if isinstance(raw, BulkKey):
        return raw
    if isinstance(raw, dict) and list(raw) == ["key"] and isinstance(raw["key"], str) and raw["key"]:
        return BulkKey(key=raw["key"])
    if raw != "array":
        raise ValueError('must be "array" or { key = "..." }')
    return raw


# ---------------------------------------------------------------------------------------------------- description


class Section(BaseModel):
    """A table of the configuration: it cannot be changed, and it knows no key but its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


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


class Job(Section):
    name: Annotated[str, AfterValidator(_job_name)] | None = None


class Api(Section):
    base_url: Annotated[str, AfterValidator(_base_url)]
    site_key: Annotated[str, AfterValidator(_no_blanks)]
    token_url: Annotated[str, AfterValidator(_token_url)] = "/one/oauth2token"  # noqa: S105  # a path, no password
    """A path at base_url, or a whole URL where tokens are issued elsewhere."""
    call: Literal["interactions-offline", "interaction-offline"] = "interactions-offline"
    connect_timeout_s: float = Field(10.0, gt=0)
    timeout_s: float = Field(60.0, gt=0)
    ca_bundle: str | None = Field(None, min_length=1)


class Columns(Section):
    timestamp: ColumnSource = FromColumn(column="timestamp")
    customer_key: ColumnSource | None = FromColumn(column="customer_key")
    customer_key_name: ColumnSource | None = Constant(value="customerkey")
    url: ColumnSource = FromColumn(column="url")
    tid: ColumnSource | None = None
    properties: Annotated[list[str] | dict[str, str] | None, BeforeValidator(_properties)] = None
    """None: every column that no other key names. A dict maps column to property name."""


class Time(Section):
    zone: Annotated[str, AfterValidator(_zone)] | None = None
    """IANA zone for timestamps without an offset; without it they are invalid."""
    formats: Annotated[list[str], Field(min_length=1), AfterValidator(_formats)] | None = None
    """strptime codes, or one of EPOCHS; when given, only these are tried."""
    not_before: Annotated[str | None, BeforeValidator(_instant)] = None
    not_after: Annotated[str | None, BeforeValidator(_instant)] = None
    """ISO 8601, inclusive. not_after defaults to the moment of staging."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        limits = [datetime.fromisoformat(text) for text in (self.not_before, self.not_after) if text is not None]
        if limits != sorted(limits):
            raise ValueError("not_before lies after not_after, so every row would be invalid")
        return self


class Csv(Section):
    delimiter: Annotated[str, AfterValidator(_one_ascii_character)] = ","
    quote: Annotated[str, AfterValidator(_one_ascii_character)] = '"'

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.delimiter == self.quote:
            raise ValueError("delimiter and quote are the same character")
        return self


class Rows(Section):
    duplicates: Literal["skip", "send"] = "skip"
    max_rejected: Annotated[str | int, BeforeValidator(_share_or_count)] = "1%"
    """Per export: a share ("1%") or a count of rows that may be invalid or rejected."""
    customer_key_required: bool = True


class Budget(Section):
    requests_per_second: float = Field(20.0, gt=0)
    interactions_per_second: float | None = Field(None, ge=MAX_INTERACTIONS)
    """At least one full request a second, or no request of 100 could ever be granted."""
    concurrency: int = Field(16, ge=1, le=1024)
    requests_per_day: int | None = Field(None, ge=1)
    window: Annotated[str, AfterValidator(_window)] | None = None
    """When requests may be sent: "22:00-06:00", in `window_zone`."""
    window_zone: Annotated[str, AfterValidator(_zone)] = "UTC"


class Delivery(Section):
    in_doubt: Literal["hold", "resend"] = "hold"
    max_in_doubt: int = Field(0, ge=0)
    on_400: Literal["bisect", "reject"] = "bisect"
    canary_calls: int = Field(20, ge=1)
    unapplied_statuses: Annotated[list[int], AfterValidator(_unapplied)] = [408, 429, 503]
    max_attempts: int = Field(10, ge=1)
    backoff_base_s: float = Field(1.0, gt=0)
    backoff_max_s: float = Field(60.0, gt=0)
    give_up_after_s: float = Field(900.0, gt=0)
    breaker_failures: int = Field(5, ge=1)
    shutdown_grace_s: float = Field(30.0, ge=0)

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
    timestamp_field: str = Field("timestamp", min_length=1)
    timestamp_format: Literal["epoch_ms", "iso8601"] = "epoch_ms"
    bulk: Annotated[Literal["array"] | BulkKey, BeforeValidator(_bulk)] = "array"
    acknowledged_by: Literal["statusCode", "http_status"] = "statusCode"

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
    customer_key: Literal["plain", "omit"] = "plain"


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


SECTIONS: dict[str, type[Section]] = {
    name: field.annotation  # type: ignore[misc]  # every field of RunConfig is a section
    for name, field in RunConfig.model_fields.items()
}
