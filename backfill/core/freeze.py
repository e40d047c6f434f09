"""What a load keeps of the configuration, and how it differs from the one in force.

The bytes of a load's requests follow from these keys, so they stay as they were when it was staged. Whether a
difference stops an execution is not decided here.
"""

from collections.abc import Mapping

from backfill.core.config import Api, FromColumn, RunConfig, Section
from backfill.core.wording import spelled

FROZEN_SECTIONS = ("columns", "time", "csv", "rows", "wire", "ledger")
"""Sections that a load keeps as they were when it was staged, since they shape its bytes; `is_frozen` excepts keys."""

# How a reply is read shapes no bytes. Were it frozen, a load whose replies nobody recognises could never be finished:
# each puts its rows in doubt, and what was sent keeps its settings.
_CHANGEABLE = frozenset({("rows", "max_rejected"), ("wire", "acknowledged_by")})


def is_frozen(section: str, key: str) -> bool:
    """Whether a load keeps this key as it was when it was staged."""
    return section in FROZEN_SECTIONS and (section, key) not in _CHANGEABLE


def frozen(config: RunConfig) -> dict[str, dict[str, object]]:
    """What a load keeps: the sections of FROZEN_SECTIONS as a user would write them in TOML, without unset keys.

    Nothing is lost: None has no spelling in TOML, so a key can only be None where that is its default.
    """
    kept: dict[str, dict[str, object]] = {}
    for section in FROZEN_SECTIONS:
        model: Section = getattr(config, section)
        kept[section] = {
            key: written(value)
            for key in type(model).model_fields
            if is_frozen(section, key) and (value := getattr(model, key)) is not None
        }
    return kept


def written(value: object) -> object:
    """A value of the configuration as a user would write it in TOML."""
    if isinstance(value, FromColumn):
        return value.column
    if isinstance(value, Section):
        return value.model_dump()
    return value


def differences(before: Mapping[str, Mapping[str, object]], now: Mapping[str, Mapping[str, object]]) -> list[str]:
    """The keys in which two results of `frozen` differ, each as a phrase that names both values.

    A key that one of them lacks stands at its default, so that a load stays valid when a later version adds one; and
    one that an earlier version froze, and this one does not, is no difference.
    """
    found: list[str] = []
    for section in FROZEN_SECTIONS:
        old, new = ({**_DEFAULTS[section], **kept.get(section, {})} for kept in (before, now))
        found += [
            f"{section}.{key} was {spelled(old.get(key))} and is now {spelled(new.get(key))}"
            for key in sorted(old.keys() | new.keys())
            if is_frozen(section, key) and old.get(key) != new.get(key)
        ]
    return found


_DEFAULTS = frozen(RunConfig(api=Api(base_url="https://default.invalid", site_key="default")))
