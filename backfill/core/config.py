"""The configuration: one typed description with every default, from which parsing and errors follow.

Values in, values out. No file and no environment is read here: the entry points read those and pass plain
values together with the place each came from, so that an error can name it. Secrets are no part of it.
"""

import difflib
import ipaddress
import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from backfill.core.errors import ConfigurationError
from backfill.core.limits import MAX_INTERACTIONS

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


def _formats(formats: list[str]) -> list[str]:
    for known in formats:
        if "%" not in known:
            raise ValueError('holds a format without codes: write strptime codes such as "%d/%m/%Y %H:%M:%S"')
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
        raise ValueError(f"must not hold {_listed(map(str, own), 'or')}: such replies are answered in their own way")
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


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class FromColumn(_Section):
    """The value stands in a column of the export."""

    column: str


class Constant(_Section):
    """Every row has the same value."""

    value: str


class Template(_Section):
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


class Job(_Section):
    name: Annotated[str, AfterValidator(_job_name)] | None = None


class Api(_Section):
    base_url: Annotated[str, AfterValidator(_base_url)]
    site_key: Annotated[str, AfterValidator(_no_blanks)]
    token_url: Annotated[str, AfterValidator(_token_url)] = "/one/oauth2token"  # noqa: S105  # a path, no password
    """A path at base_url, or a whole URL where tokens are issued elsewhere."""
    call: Literal["interactions-offline", "interaction-offline"] = "interactions-offline"
    connect_timeout_s: float = Field(10.0, gt=0)
    timeout_s: float = Field(60.0, gt=0)
    ca_bundle: str | None = Field(None, min_length=1)


class Columns(_Section):
    timestamp: ColumnSource = FromColumn(column="timestamp")
    customer_key: ColumnSource | None = FromColumn(column="customer_key")
    customer_key_name: ColumnSource | None = Constant(value="customerkey")
    url: ColumnSource = FromColumn(column="url")
    tid: ColumnSource | None = None
    properties: Annotated[list[str] | dict[str, str] | None, BeforeValidator(_properties)] = None
    """None: every column that no other key names. A dict maps column to property name."""


class Time(_Section):
    zone: Annotated[str, AfterValidator(_zone)] | None = None
    """IANA zone for timestamps without an offset; without it they are invalid."""
    formats: Annotated[list[str], Field(min_length=1), AfterValidator(_formats)] | None = None
    """strptime codes; when given, only these are tried."""
    not_before: Annotated[str | None, BeforeValidator(_instant)] = None
    not_after: Annotated[str | None, BeforeValidator(_instant)] = None
    """ISO 8601, inclusive. not_after defaults to the moment of staging."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        limits = [datetime.fromisoformat(text) for text in (self.not_before, self.not_after) if text is not None]
        if limits != sorted(limits):
            raise ValueError("not_before lies after not_after, so every row would be invalid")
        return self


class Csv(_Section):
    delimiter: Annotated[str, AfterValidator(_one_ascii_character)] = ","
    quote: Annotated[str, AfterValidator(_one_ascii_character)] = '"'

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.delimiter == self.quote:
            raise ValueError("delimiter and quote are the same character")
        return self


class Rows(_Section):
    duplicates: Literal["skip", "send"] = "skip"
    max_rejected: Annotated[str | int, BeforeValidator(_share_or_count)] = "1%"
    """Per export: a share ("1%") or a count of rows that may be invalid or rejected."""
    customer_key_required: bool = True


class Budget(_Section):
    requests_per_second: float = Field(20.0, gt=0)
    interactions_per_second: float | None = Field(None, ge=MAX_INTERACTIONS)
    """At least one full request a second, or no request of 100 could ever be granted."""
    concurrency: int = Field(16, ge=1, le=1024)


class Delivery(_Section):
    max_in_doubt: int = Field(0, ge=0)
    on_400: Literal["bisect", "reject"] = "bisect"
    unapplied_statuses: Annotated[list[int], AfterValidator(_unapplied)] = [408, 429, 503]
    max_attempts: int = Field(10, ge=1)
    backoff_base_s: float = Field(1.0, gt=0)
    backoff_max_s: float = Field(60.0, gt=0)
    give_up_after_s: float = Field(900.0, gt=0)
    shutdown_grace_s: float = Field(30.0, ge=0)

    @model_validator(mode="after")
    def _growing(self) -> Self:
        if self.backoff_base_s > self.backoff_max_s:
            raise ValueError("backoff_base_s is larger than backoff_max_s")
        return self


class BulkKey(_Section):
    """Bulk bodies are an object that holds the array under this key."""

    key: str


class Wire(_Section):
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


class Ledger(_Section):
    customer_key: Literal["plain", "omit"] = "plain"


class RunConfig(_Section):
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


FROZEN_SECTIONS = ("columns", "time", "csv", "rows", "wire", "ledger")
"""Sections that a load keeps as they were when it was staged (`rows.max_rejected` excepted): they shape its bytes."""

_CHANGEABLE = frozenset({("rows", "max_rejected")})

SECTIONS: dict[str, type[_Section]] = {
    name: field.annotation  # type: ignore[misc]  # every field of RunConfig is a section
    for name, field in RunConfig.model_fields.items()
}

ENVIRONMENT_PREFIX = "BACKFILL_"

OTHER_NAMES = frozenset(
    ENVIRONMENT_PREFIX + name
    for name in (
        "CONFIG",
        "STATE",
        "CLIENT_ID",
        "CLIENT_ID_FILE",
        "CLIENT_SECRET",
        "CLIENT_SECRET_FILE",
        "TOKEN",
        "TOKEN_FILE",
    )
)
"""Environment names that the entry points read and that are no keys of the configuration."""

_KEYS_BY_NAME = {
    f"{ENVIRONMENT_PREFIX}{section}_{key}".upper(): (section, key)
    for section, model in SECTIONS.items()
    for key in model.model_fields
}

_SECRETS = {
    "client_id": "BACKFILL_CLIENT_ID",
    "client_secret": "BACKFILL_CLIENT_SECRET",
    "secret": "BACKFILL_CLIENT_SECRET",
    "password": "BACKFILL_CLIENT_SECRET",
    "token": "BACKFILL_TOKEN",
    "access_token": "BACKFILL_TOKEN",
    "bearer_token": "BACKFILL_TOKEN",
}

# -------------------------------------------------------------------------------------------------------- merging


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What the user wrote, joined but not yet judged.

    `values` is by section, then key; `places` says where each came from ("backfill.toml, line 3",
    "BACKFILL_API_SITE_KEY", "--set"). `problems` are sentences about names that belong nowhere.
    """

    values: Mapping[str, object]
    places: Mapping[tuple[str, str], str]
    problems: tuple[str, ...] = ()


def split_set(text: str) -> tuple[str, str, str]:
    """`section.key=value` taken apart. Raises ValueError with a sentence where it is not of that form."""
    name, equals, value = text.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and section and key) or "." in key:
        raise ValueError("write it as SECTION.KEY=VALUE, for example budget.concurrency=8")
    return section, key, value.strip()


def merge(
    file: Mapping[str, object],
    environment: Mapping[str, str],
    sets: Sequence[str],
    *,
    places: Mapping[tuple[str, str], str] | None = None,
) -> Given:
    """Join the three sources; the stronger replaces a value as a whole: --set, then environment, then file.

    `environment` may be the whole environment of the process. `places` names the file and line of the file's
    keys. Raises ValueError for a `--set` that `split_set` cannot take apart.
    """
    values: dict[str, object] = {
        section: dict(keys) if isinstance(keys, Mapping) else keys for section, keys in file.items()
    }
    known_places = dict(places or {})
    problems: list[str] = []

    def put(section: str, key: str, value: object, place: str) -> None:
        keys = values.setdefault(section, {})
        if isinstance(keys, dict):
            keys[key] = value
            known_places[section, key] = place

    for name in sorted(environment):
        if name in _KEYS_BY_NAME:
            section, key = _KEYS_BY_NAME[name]
            put(section, key, _literal_or_text(section, key, environment[name]), name)
        elif name.startswith(ENVIRONMENT_PREFIX) and name not in OTHER_NAMES:
            problems.extend(_stray(name))
    for text in sets:
        section, key, value = split_set(text)
        put(section, key, _literal_or_text(section, key, value), "--set")
    return Given(values=values, places=known_places, problems=tuple(problems))


def _literal_or_text(section: str, key: str, text: str) -> object:
    """The value that `text` means for this key: a TOML literal where the key takes it, else the text itself.

    `12345` is a number for a timeout and text for a site key.
    """
    try:
        literal = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    if set(literal) != {"value"}:  # a line end inside the text began another key
        return text
    return text if not _takes(section, key, literal["value"]) and _takes(section, key, text) else literal["value"]


def _takes(section: str, key: str, value: object) -> bool:
    if section not in SECTIONS:
        return False
    try:
        SECTIONS[section].model_validate({key: value})
    except ValidationError as error:
        return all(detail["loc"][:1] != (key,) for detail in error.errors())
    return True


def _stray(name: str) -> list[str]:
    """A sentence about a `BACKFILL_*` name that is no key, where it looks like one; others' names are let be.

    Kubernetes, for one, sets BACKFILL_SERVICE_HOST in every pod beside a service called backfill.
    """
    rest = name.removeprefix(ENVIRONMENT_PREFIX)
    known = [*_KEYS_BY_NAME, *OTHER_NAMES]
    same_key = [full for full, (_, key) in _KEYS_BY_NAME.items() if key.upper() == rest]
    nearest = same_key or [
        ENVIRONMENT_PREFIX + match
        for match in difflib.get_close_matches(rest, [n.removeprefix(ENVIRONMENT_PREFIX) for n in known], 1, 0.8)
    ]
    of_a_section = any(rest.startswith(f"{section.upper()}_") for section in SECTIONS)
    if not nearest and not of_a_section:
        return []
    hint = f" Did you mean {_listed(nearest, 'or')}?" if nearest else ""
    return [f"{name} (environment) names no key.{hint} Correct or unset it."]


# -------------------------------------------------------------------------------------------------------- parsing


def parse(given: Given | Mapping[str, object]) -> RunConfig:
    """The configuration, judged.

    Raises ConfigurationError that lists every problem with key, place and remedy. Values are shown only for keys
    that exist, so that a secret under a wrong name is not repeated.
    """
    if not isinstance(given, Given):
        given = Given(values=given, places={})
    problems = list(given.problems)
    usable: dict[str, object] = {"api": {}}  # so that a missing section is told as its missing keys
    for section, keys in given.values.items():
        if section not in SECTIONS:
            problems.append(_unknown_section(section, keys, given.places))
        elif not isinstance(keys, Mapping):
            problems.append(f"{section} is a section: write [{section}] on a line of its own, its keys below.")
        else:
            known = SECTIONS[section].model_fields
            usable[section] = {key: value for key, value in keys.items() if key in known}
            problems += [_unknown_key(section, key, given.places) for key in keys if key not in known]
    try:
        config = RunConfig.model_validate(usable)
    except ValidationError as error:
        problems += _told(error.errors(include_url=False), given.places)
    else:
        if not problems:
            return config
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise ConfigurationError(f"The configuration cannot be used ({count}):\n" + "\n".join(f"  {p}" for p in problems))


def _unknown_section(section: str, keys: object, places: Mapping[tuple[str, str], str]) -> str:
    if not isinstance(keys, Mapping) and (homes := _homes(section)):
        return f"{section} stands outside a section: put it into {_listed(homes, 'or')}."
    if section in _SECRETS:
        return _misplaced_secret(section, section)
    place = next((f" ({place})" for (of, _), place in places.items() if of == section), "")
    nearest = difflib.get_close_matches(section, SECTIONS, 1)
    hint = f"Did you mean [{nearest[0]}]?" if nearest else f"Known are {_listed(SECTIONS, 'and')}."
    return f"[{section}]{place} is no known section. {hint}"


def _unknown_key(section: str, key: str, places: Mapping[tuple[str, str], str]) -> str:
    name = _name(section, key, places)
    if key in _SECRETS:
        return _misplaced_secret(name, key)
    known = list(SECTIONS[section].model_fields)
    longer = [other for other in known if len(key) > 3 and (key in other or other in key)]
    if nearest := difflib.get_close_matches(key, known, 1) or longer[:1]:
        return f"{name} is no known key. Did you mean {nearest[0]}?"
    if homes := _homes(key):
        return f"{name} is no known key of [{section}]: it belongs into {_listed(homes, 'or')}."
    return f"{name} is no known key. [{section}] knows {_listed(known, 'and')}."


def _misplaced_secret(name: str, key: str) -> str:
    return (
        f"{name}: secrets never stand in the configuration. Take it out and set {_SECRETS[key]} in the environment, "
        f"or {_SECRETS[key]}_FILE to a file that holds it."
    )


def _homes(key: str) -> list[str]:
    return [f"[{section}]" for section, model in SECTIONS.items() if key in model.model_fields]


def _name(section: str, key: str, places: Mapping[tuple[str, str], str]) -> str:
    place = places.get((section, key))
    return f"{section}.{key}" if place is None else f"{section}.{key} ({place})"


def _told(errors: Sequence[ErrorDetails], places: Mapping[tuple[str, str], str]) -> list[str]:
    """One sentence per key, though pydantic reports every branch of a union by itself."""
    told: dict[tuple[str, ...], list[str]] = {}
    shown: dict[tuple[str, ...], str] = {}
    for error in errors:
        where = tuple(str(part) for part in error["loc"][:2])
        complaint = _complaint(error)
        if complaint not in told.setdefault(where, []):
            told[where].append(complaint)
        if error["type"] not in ("missing", "model_type") and len(where) == 2:
            shown.setdefault(where, _shown(error["input"]))
    sentences = []
    for where, complaints in told.items():
        if len(where) < 2:
            sentences.append(f"[{where[0]}] contradicts itself: {' or '.join(complaints)}.")
            continue
        section, key = where
        value = f" = {shown[where]}" if where in shown else ""
        sentences.append(f"{_name(section, key, places)}{value} {' or '.join(complaints)}.")
    return sentences


_MISSING = {
    ("api", "base_url"): "is missing: the address of your MXO, as https://HOST. Write it into [api], or set "
    "BACKFILL_API_BASE_URL",
    ("api", "site_key"): "is missing: the site key of your MXO space. Write it into [api], or set "
    "BACKFILL_API_SITE_KEY",
}

_COMPLAINTS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "string_type": lambda _: "must be text in quotes",
    "string_too_short": lambda _: "must not be empty",
    "int_type": lambda _: "must be a whole number",
    "int_from_float": lambda _: "must be a whole number",
    "float_type": lambda _: "must be a number",
    "finite_number": lambda _: "must be a finite number",
    "bool_type": lambda _: "must be true or false",
    "list_type": lambda _: "must be a list",
    "dict_type": lambda _: "must be a table",
    "model_type": lambda _: "must be a table",
    "too_short": lambda _: "must not be empty",
    "extra_forbidden": lambda _: "holds a key that it does not know",
    "literal_error": lambda context: "must be " + str(context["expected"]).replace("'", '"'),
    "greater_than": lambda context: f"must be greater than {context['gt']:g}",
    "greater_than_equal": lambda context: f"must be at least {context['ge']:g}",
    "less_than_equal": lambda context: f"must be at most {context['le']:g}",
    "value_error": lambda context: str(context["error"]),
}


def _complaint(error: ErrorDetails) -> str:
    where = error["loc"]
    if error["type"] == "missing":
        return _MISSING.get((str(where[0]), str(where[-1])), f"needs {where[-1]}")
    told = _COMPLAINTS.get(error["type"])
    complaint = error["msg"] if told is None else told(error.get("ctx", {}))
    of_a_list = isinstance(where[-1], int)
    return f"as an entry {complaint}" if of_a_list else complaint


def _shown(value: object) -> str:
    """A value as the user wrote it, short; one that looks like an address with a password is not shown."""
    text = _spelled(value)
    if "@" in text:
        return "(not shown)"
    return text if len(text) <= 80 else text[:77] + "..."


def _listed(names: Sequence[str] | Mapping[str, object] | Any, last: str) -> str:
    *head, tail = list(names)
    return f"{', '.join(head)} {last} {tail}" if head else str(tail)


# -------------------------------------------------------------------------------------------------------- freezing


def frozen(config: RunConfig) -> dict[str, dict[str, object]]:
    """What a load keeps: the sections of FROZEN_SECTIONS as a user would write them in TOML, without unset keys.

    Nothing is lost: None has no spelling in TOML, so a key can only be None where that is its default.
    """
    kept: dict[str, dict[str, object]] = {}
    for section in FROZEN_SECTIONS:
        model: _Section = getattr(config, section)
        kept[section] = {
            key: _written(value)
            for key in type(model).model_fields
            if (section, key) not in _CHANGEABLE and (value := getattr(model, key)) is not None
        }
    return kept


def _written(value: object) -> object:
    if isinstance(value, FromColumn):
        return value.column
    if isinstance(value, BaseModel):
        return value.model_dump()
    return value


def differences(before: Mapping[str, Mapping[str, object]], now: Mapping[str, Mapping[str, object]]) -> list[str]:
    """The keys in which two results of `frozen` differ, each as a phrase that names both values.

    A key that one of them lacks stands at its default, so that a load stays valid when a later version adds one.
    """
    found: list[str] = []
    for section in FROZEN_SECTIONS:
        old, new = ({**_DEFAULTS[section], **kept.get(section, {})} for kept in (before, now))
        found += [
            f"{section}.{key} was {_spelled(old.get(key))} and is now {_spelled(new.get(key))}"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)
        ]
    return found


def _spelled(value: object) -> str:
    if value is None:
        return "not set"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_spelled(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_spelled, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)


_DEFAULTS = frozen(RunConfig(api=Api(base_url="https://default.invalid", site_key="default")))
