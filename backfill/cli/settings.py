"""Where things are: the configuration, the state directory, the secrets.

The only reader of the environment beside `airflow_operator`. Finds and reads; what the values mean is judged in
`core.settings`.
"""

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from backfill.adapters.interaction_api import Credentials
from backfill.adapters.state import StateDirectory
from backfill.core.address import Address
from backfill.core.config import RunConfig
from backfill.core.errors import ConfigurationError, Unusable
from backfill.core.settings import Given, merge, parse

DEFAULT_NAME = "backfill"
CONFIG_NAME = "backfill.toml"
STATES = ".backfill"
SANDBOX_SUFFIX = ".sandbox"

SANDBOX_URL = "https://sandbox.invalid"
"""Stands in the job's identity for the embedded sandbox, whose port is another in every execution. No such host
can exist (RFC 6761), so a mistake cannot reach anybody."""

SANDBOX_CREDENTIALS = Credentials(client_id="sandbox", client_secret="sandbox", token=None)  # noqa: S106  # made up


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What an execution was told: the configuration, judged, and the state directory.

    `places`: where each key that was set came from; `file_by` and `state_by`: what chose the file and the state.
    """

    config: RunConfig
    file: Path | None
    state: Path
    places: Mapping[tuple[str, str], str] = field(default_factory=dict)
    file_by: str = ""
    state_by: str = ""


def choose(
    *,
    config_file: Path | None,
    state: Path | None,
    sets: Sequence[str],
    sandbox: bool,
    exports: Sequence[Path | Address],
    environment: Mapping[str, str],
) -> Settings:
    """The configuration and the state for `run`. Relative paths count from the working directory.

    Raises: ConfigurationError.
    """
    file = find_config(config_file, environment, exports)
    raw, places = read_config(file) if file is not None else ({}, {})
    given = merge(raw, environment, sets, places=places)
    if sandbox:
        given = _against_the_sandbox(given)
    try:
        config = parse(given)
    except ConfigurationError as error:
        if file is not None:
            raise
        raise ConfigurationError(
            f"{error.message}\nNo configuration file was found: looked for --config, BACKFILL_CONFIG, "
            f"./{CONFIG_NAME} and {CONFIG_NAME} in the directories given as EXPORT."
        ) from None
    config = _with_ca_bundle_found(config, file, given.places)
    return Settings(
        config=config,
        file=file,
        state=find_state(state, environment, file=file, name=job_name(config.job.name, file), sandbox=sandbox),
        places=given.places,
        file_by=_file_by(config_file, environment, file),
        state_by=_state_by(state, environment, file, config.job.name),
    )


def _file_by(flag: Path | None, environment: Mapping[str, str], file: Path | None) -> str:
    """What made `find_config` choose it."""
    if flag is not None:
        return "--config"
    if environment.get("BACKFILL_CONFIG"):
        return "BACKFILL_CONFIG"
    if file is None:
        return f"no --config, no BACKFILL_CONFIG, no {CONFIG_NAME} here or in an EXPORT directory"
    return "in the working directory" if file == Path(CONFIG_NAME) else "in the EXPORT directory"


def _state_by(flag: Path | None, environment: Mapping[str, str], file: Path | None, configured: str | None) -> str:
    """What made `find_state` choose it."""
    if flag is not None:
        return "--state"
    if environment.get("BACKFILL_STATE"):
        return "BACKFILL_STATE"
    beside = "in the working directory" if file is None else "beside the configuration"
    named = "by job.name" if configured is not None else "by default" if file is None else "by the configuration's name"
    return f"{beside}, named {named}"


def locate_state(
    *, config_file: Path | None, state: Path | None, sandbox: bool, environment: Mapping[str, str]
) -> Path:
    """The state for commands that only look. Of the configuration just `job.name` is read, so that a mistake
    elsewhere in it does not hide how the job stands.

    Raises: ConfigurationError.
    """
    if state is not None or environment.get("BACKFILL_STATE"):
        return find_state(state, environment, file=None, name=DEFAULT_NAME, sandbox=sandbox)
    file = find_config(config_file, environment, ())
    raw = read_config(file)[0] if file is not None else {}
    job = raw.get("job")
    named = environment.get("BACKFILL_JOB_NAME") or (job.get("name") if isinstance(job, Mapping) else None)
    # Judged by the same rule as for `run`, by itself.
    checked = parse({"job": {} if named is None else {"name": named}, "api": _UNUSED_API}).job.name
    return find_state(None, environment, file=file, name=job_name(checked, file), sandbox=sandbox)


_UNUSED_API = {"base_url": SANDBOX_URL, "site_key": "unused"}


def find_config(flag: Path | None, environment: Mapping[str, str], exports: Sequence[Path | Address]) -> Path | None:
    """--config > BACKFILL_CONFIG > ./backfill.toml > backfill.toml in an EXPORT directory; None if there is none.

    Raises: ConfigurationError where a named one is missing, or two directories bring one each.
    """
    named = [(flag, "--config")] if flag is not None else []
    if text := environment.get("BACKFILL_CONFIG"):
        named.append((Path(text), "BACKFILL_CONFIG"))
    for path, source in named:
        if path.is_file():
            return path
        what = "is a directory" if path.is_dir() else "does not exist"
        raise ConfigurationError(f"The configuration {path} ({source}) {what}. Name a TOML file.")
    here = Path(CONFIG_NAME)
    if here.is_file():
        return here
    beside: dict[Path, Path] = {}
    for export in exports:
        if isinstance(export, Path) and (path := export / CONFIG_NAME).is_file():
            beside.setdefault(path.resolve(), path)
    if len(beside) > 1:
        listed = " and ".join(str(path) for path in list(beside.values())[:2])
        raise ConfigurationError(f"Two configurations were found: {listed}. Say which one with --config.")
    return next(iter(beside.values()), None)


def read_config(file: Path) -> tuple[dict[str, Any], dict[tuple[str, str], str]]:
    """The tables of a configuration file, and for each key the file and line where it stands.

    Raises: ConfigurationError, for a syntax error with its line.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")  # Windows editors begin files with a mark
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{file} is not UTF-8 (byte {error.start}). Save it as UTF-8.") from None
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read ({error.strerror}). Check its permissions.") from None
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        # The message names line and column, but never the text there.
        raise ConfigurationError(f"{file} is no valid TOML: {error}. Mend that line.") from None
    # What stands inside another line, as in `api = { ... }`, is told with the file alone.
    inside = {(section, key): str(file) for section, keys in raw.items() if isinstance(keys, Mapping) for key in keys}
    return raw, inside | {key: f"{file}, line {line}" for key, line in _lines(text).items()}


_HEADER = re.compile(r"\s*\[\s*([\w-]+)\s*(?:\.\s*([\w-]+)\s*)?\]")
_KEY = re.compile(r"\s*([\w-]+)\s*(?:\.\s*([\w-]+)\s*)?=")


def _lines(text: str) -> dict[tuple[str, str], int]:
    """Where keys stand, found without a TOML parser (Python's tells no lines): a help for errors, no truth."""
    lines: dict[tuple[str, str], int] = {}
    section: str | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            section = header[1]
            if header[2]:
                lines.setdefault((section, header[2]), number)
        elif key := _KEY.match(line):
            where = (key[1], key[2]) if section is None else (section, key[1])
            if where[1] is not None:
                lines.setdefault(where, number)
    return lines


def job_name(configured: str | None, file: Path | None) -> str:
    """`job.name`, else the configuration's stem. Raises: ConfigurationError where the stem cannot name a directory."""
    if configured is not None:
        return configured
    if file is None:
        return DEFAULT_NAME
    try:
        parse({"job": {"name": file.stem}, "api": _UNUSED_API})
    except ConfigurationError:
        raise ConfigurationError(
            f'The file name of {file} cannot name the job. Write name = "..." into its section [job].'
        ) from None
    return file.stem


def find_state(
    flag: Path | None, environment: Mapping[str, str], *, file: Path | None, name: str, sandbox: bool
) -> Path:
    """--state > BACKFILL_STATE > .backfill/<name> beside the configuration, or in the working directory without one.

    With `sandbox` the name gets `.sandbox`, also that of BACKFILL_STATE: a trial must not occupy the place of the
    real job. --state is taken as it is.
    """
    if flag is not None:
        return flag
    if text := environment.get("BACKFILL_STATE"):
        state = Path(text)
    else:
        state = (file.parent if file is not None else Path()) / STATES / name
    if sandbox and not state.name.endswith(SANDBOX_SUFFIX):
        return state.with_name(state.name + SANDBOX_SUFFIX)
    return state


def existing_state(place: Path) -> StateDirectory:
    """The state directory, for commands that only look. Raises: Unusable where no job was ever begun there."""
    directory = StateDirectory(place)
    if directory.exists():
        return directory
    sandbox = StateDirectory(place.with_name(place.name + SANDBOX_SUFFIX))
    hint = (
        f"There is {sandbox.path}, the state of runs with --sandbox: add --sandbox to see it."
        if sandbox.exists()
        else "Name the right one with --state, or the configuration it belongs to with --config."
    )
    raise Unusable(f"There is no job in {place}. {hint}")


def read_credentials(environment: Mapping[str, str]) -> Credentials:
    """The client's credentials, or a token, each from its name or from the file that NAME_FILE names.

    None given is no error here: an execution that has nothing to send needs none.
    Raises: ConfigurationError, which never repeats a value.
    """
    client_id, client_secret, token = (
        _secret(environment, name) for name in ("BACKFILL_CLIENT_ID", "BACKFILL_CLIENT_SECRET", "BACKFILL_TOKEN")
    )
    if token is not None and (client_id is not None or client_secret is not None):
        raise ConfigurationError(
            "Both a token (BACKFILL_TOKEN) and a client (BACKFILL_CLIENT_ID, BACKFILL_CLIENT_SECRET) are given. "
            "Unset one of them, so that it is clear who sends."
        )
    return Credentials(client_id=client_id, client_secret=client_secret, token=token)


SHORTEST_LEDGER_KEY = 16
"""Characters. Customers' keys can be guessed, so a key that can be guessed too hides nobody."""


def read_ledger_key(environment: Mapping[str, str]) -> str | None:
    """What makes pseudonyms of customers' keys where ledger.customer_key is "hmac"; None where none is given.

    Raises: ConfigurationError, which never repeats a value.
    """
    key = _secret(environment, "BACKFILL_LEDGER_KEY")
    if key is not None and len(key) < SHORTEST_LEDGER_KEY:
        raise ConfigurationError(
            f"BACKFILL_LEDGER_KEY has less than {SHORTEST_LEDGER_KEY} characters, so that it could be guessed. Take a "
            "random one, as `openssl rand -hex 32` makes."
        )
    return key


SECRETS = ("BACKFILL_CLIENT_ID", "BACKFILL_CLIENT_SECRET", "BACKFILL_TOKEN", "BACKFILL_LEDGER_KEY")


def where_secrets_are(environment: Mapping[str, str]) -> dict[str, str | None]:
    """By name, where each secret comes from; None where it is absent. Never a value."""
    return {
        name: name if environment.get(name) else f"{name}_FILE" if environment.get(f"{name}_FILE") else None
        for name in SECRETS
    }


def _secret(environment: Mapping[str, str], name: str) -> str | None:
    value, file = environment.get(name), environment.get(f"{name}_FILE")
    if value and file:
        raise ConfigurationError(f"Both {name} and {name}_FILE are set. Unset one of them.")
    source = name
    if file:
        source = f"{name}_FILE"
        try:
            value = Path(file).read_text(encoding="utf-8-sig").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError:
            raise ConfigurationError(f"The file that {source} names is not UTF-8: {file}. Save it as UTF-8.") from None
        except OSError as error:
            raise ConfigurationError(
                f"The file that {source} names cannot be read: {file} ({error.strerror}). "
                "Check its name and permissions."
            ) from None
        if not value:
            raise ConfigurationError(f"The file that {source} names is empty: {file}. Write the secret into it.")
    if value and re.search(r"[\x00-\x1f\x7f]", value):
        raise ConfigurationError(f"{source} holds a line end or another control character. Set it anew, without.")
    return value or None


def _against_the_sandbox(given: Given) -> Given:
    """The same configuration, but nothing in it reaches the real MXO, or the place where its tokens come from."""
    section = given.values.get("api", {})
    api = dict(section) if isinstance(section, Mapping) else section
    if isinstance(api, dict):
        api.pop("token_url", None)
        api.pop("ca_bundle", None)
        api["base_url"] = SANDBOX_URL
        api.setdefault("site_key", "SANDBOX")
    return replace(given, values={**given.values, "api": api})


def _with_ca_bundle_found(config: RunConfig, file: Path | None, places: Mapping[tuple[str, str], str]) -> RunConfig:
    """A path in the file counts from the file; one in the environment or a flag from the working directory."""
    if config.api.ca_bundle is None:
        return config
    place = places.get(("api", "ca_bundle"), "")
    in_file = file is not None and place.startswith(str(file))
    path = (file.parent if in_file and file is not None else Path()) / config.api.ca_bundle
    if not path.is_file() or not os.access(path, os.R_OK):
        raise ConfigurationError(f"api.ca_bundle ({place}) names no readable file: {path}. Name a PEM file.")
    return config.model_copy(update={"api": config.api.model_copy(update={"ca_bundle": str(path)})})
