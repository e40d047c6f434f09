"""Values and lists as they stand in messages: written as a person would write them in the configuration."""

import json
import re
from collections.abc import Iterable, Mapping


def spelled(value: object) -> str:
    """A value as TOML has it, so that it can be copied into the file."""
    if value is None:
        return "not set"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {spelled(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(spelled, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # JSON leaves DEL as it is, TOML refuses it.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)


def _key(name: str) -> str:
    """Columns are keys, too (`[columns] properties`), and their names may hold blanks."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else spelled(name)


def listed(names: Iterable[str], last: str) -> str:
    """At least one name, joined by commas and before the final one by `last`: "a, b or c"."""
    *head, tail = list(names)
    return f"{', '.join(head)} {last} {tail}" if head else tail


def nothing_to_go_on_with(state: object) -> str:
    """For a state directory without a load, when no export is named either."""
    return f"{state} holds no job yet, so there is nothing to go on with. Name the exports to send."
