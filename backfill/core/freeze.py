"""What a load keeps of the configuration, and how it differs from the one in force.

The bytes of a load's requests follow from these keys, so they stay as they were when it was staged. Whether a
difference stops an execution is not decided here.
"""

from collections.abc import Mapping

from backfill.core.config import Api, FromColumn, RunConfig, Section
from backfill.core.wording import spelled

FROZEN_SECTIONS = ("columns", "time", "csv", "rows", "wire", "ledger")
"""Sections that a load keeps as they were when it was staged (`rows.max_rejected` excepted): they shape its bytes."""

_CHANGEABLE = frozenset({("rows", "max_rejected")})


def frozen(config: RunConfig) -> dict[str, dict[str, object]]:
    """What a load keeps: the sections of FROZEN_SECTIONS as a user would write them in TOML, without unset keys.

    Nothing is lost: None has no spelling in TOML, so a key can only be None where that is its default.
    """
    kept: dict[str, dict[str, object]] = {}
    for section in FROZEN_SECTIONS:
        model: Section = getattr(config, section)
        kept[section] = {
            key: _written(value)
            for key in type(model).model_fields
            if (section, key) not in _CHANGEABLE and (value := getattr(model, key)) is not None
        }
    return kept


def _written(value: object) -> object:
    if isinstance(value, FromColumn):
        return value.column
    if isinstance(value, Section):
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
            f"{section}.{key} was {spelled(old.get(key))} and is now {spelled(new.get(key))}"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)
        ]
    return found


_DEFAULTS = frozen(RunConfig(api=Api(base_url="https://default.invalid", site_key="default")))
