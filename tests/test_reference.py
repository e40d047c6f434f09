"""README's reference of the configuration is what the one description says, and that description is whole."""

import re
import tomllib

import pytest

from backfill.core.config import SECTIONS
from backfill.core.freeze import frozen, written
from backfill.core.settings import merge, parse
from backfill.core.wording import spelled
from tests.make_reference import BEGIN, END, README, default, may_be, reference, with_reference

API = {"base_url": "https://mxo.example", "site_key": "ONE-1"}
KEYS = [(section, key) for section, model in SECTIONS.items() for key in model.model_fields]


def lines() -> dict[str, list[str]]:
    """By key, the cells of its line."""
    found = [re.split(r"(?<!\\)\|", line)[1:-1] for line in reference().splitlines()[2:]]
    return {cells[0].strip(" `"): [cell.strip() for cell in cells] for cells in found}


def test_readme_has_the_reference_as_it_is() -> None:
    """Whoever changes a key runs `python -m tests.make_reference`."""
    readme = README.read_text(encoding="utf-8")
    assert with_reference(readme) == readme, "run: python -m tests.make_reference"


def test_a_reference_that_is_out_of_date_is_seen_and_put_right() -> None:
    """Negative control: an edited line differs, and is written anew; the text around it stays."""
    readme = README.read_text(encoding="utf-8")
    edited = readme.replace("| `api.site_key` |", "| `api.sitekey` |")
    assert edited != readme == with_reference(edited)
    with pytest.raises(ValueError, match="no place"):
        with_reference(readme.replace(BEGIN, "").replace(END, ""))


def test_the_reference_has_every_key_once() -> None:
    """In the order of the sections, each line with its five cells."""
    assert list(lines()) == [f"{section}.{key}" for section, key in KEYS]
    assert {len(cells) for cells in lines().values()} == {5}


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_a_key_is_described(section: str, key: str) -> None:
    """It has a sentence of its own and says what it may be; so a key cannot be added without."""
    field = SECTIONS[section].model_fields[key]
    assert re.fullmatch(r"\S.*[^ ]\.", str(field.description), re.DOTALL), "write a docstring under the key"
    assert len(" ".join(str(field.description).split())) <= 160, "one line in a table, not a chapter"
    assert may_be(field)


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_a_default_is_written_so_that_it_can_be_copied(section: str, key: str) -> None:
    """What the table shows as the default means just that in a file, as --set, and in the environment."""
    config = parse({"api": API})
    shown = default(SECTIONS[section].model_fields[key]).strip("`")
    if shown in ("", "must be given"):
        return
    value = getattr(getattr(config, section), key)
    file = tomllib.loads(f"[{section}]\n{key} = {shown}")
    in_file = parse(merge({**file, "api": {**API, **file.get("api", {})}}, {}, ()))
    by_set = parse(merge({"api": API}, {}, (f"{section}.{key}={shown}",)))
    by_name = parse(merge({"api": API}, {f"BACKFILL_{section}_{key}".upper(): shown}, ()))
    for given in (in_file, by_set, by_name):
        assert getattr(getattr(given, section), key) == value
    assert shown == spelled(written(value))


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_frozen_is_said_of_what_a_load_keeps(section: str, key: str) -> None:
    """The mark is that of `freeze`: what it keeps of a configuration is marked, and nothing else."""
    kept = frozen(parse({"api": API}))
    is_set = getattr(getattr(parse({"api": API}), section), key) is not None
    marked = lines()[f"{section}.{key}"][4] == "yes"
    if is_set:
        assert marked == (key in kept.get(section, {}))
    else:
        assert marked == (section in kept)
