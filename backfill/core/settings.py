"""What the user set: file, environment and `--set` joined by precedence, then judged against the description.

No file and no environment is read here: the entry points read those and pass plain values together with the place
each came from, so that an error can name it. A name that belongs nowhere is told with the nearest that does.
"""

import difflib
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from backfill.core.config import SECTIONS, RunConfig, contradictions
from backfill.core.errors import ConfigurationError
from backfill.core.wording import listed, spelled

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
        "LEDGER_KEY",
        "LEDGER_KEY_FILE",
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
    hint = f" Did you mean {listed(nearest, 'or')}?" if nearest else ""
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
        problems += [
            f"{_name(section, key, given.places)} = {spelled(getattr(getattr(config, section), key))} {complaint}."
            for section, key, complaint in contradictions(config)
        ]
        if not problems:
            return config
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise ConfigurationError(f"The configuration cannot be used ({count}):\n" + "\n".join(f"  {p}" for p in problems))


def _unknown_section(section: str, keys: object, places: Mapping[tuple[str, str], str]) -> str:
    if not isinstance(keys, Mapping) and (homes := _homes(section)):
        return f"{section} stands outside a section: put it into {listed(homes, 'or')}."
    if section in _SECRETS:
        return _misplaced_secret(section, section)
    place = next((f" ({place})" for (of, _), place in places.items() if of == section), "")
    nearest = difflib.get_close_matches(section, SECTIONS, 1)
    hint = f"Did you mean [{nearest[0]}]?" if nearest else f"Known are {listed(SECTIONS, 'and')}."
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
        return f"{name} is no known key of [{section}]: it belongs into {listed(homes, 'or')}."
    return f"{name} is no known key. [{section}] knows {listed(known, 'and')}."


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
    text = spelled(value)
    if "@" in text:
        return "(not shown)"
    return text if len(text) <= 80 else text[:77] + "..."
