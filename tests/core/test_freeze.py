"""What a load keeps, through TOML and back, and how two of them differ."""

import tomllib
from datetime import UTC

import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from backfill.core.config import RunConfig
from backfill.core.freeze import FROZEN_SECTIONS, differences, frozen
from backfill.core.settings import parse

API = {"base_url": "https://mxo.example", "site_key": "ONE-1"}


def of(**sections: object) -> RunConfig:
    return parse({"api": API, **sections})


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8)
sources = texts | st.builds(lambda t: {"value": t}, texts) | st.builds(lambda t: {"template": t}, texts)
shaped = st.fixed_dictionaries(
    {},
    optional={
        "columns": st.fixed_dictionaries(
            {},
            optional={
                "timestamp": sources,
                "customer_key_name": sources,
                "tid": sources,
                "properties": st.lists(texts, unique=True) | st.dictionaries(texts, texts, max_size=1),
            },
        ),
        "time": st.fixed_dictionaries(
            {},
            optional={
                "zone": st.sampled_from(["UTC", "Europe/Berlin", "Etc/GMT-1"]),
                "formats": st.lists(texts.map(lambda t: "%d" + t), min_size=1),
                "not_before": st.datetimes(timezones=st.just(UTC)).map(lambda t: t.isoformat()),
            },
        ),
        "csv": st.fixed_dictionaries(
            {},
            optional={
                "delimiter": st.sampled_from(";|\t"),
                "quote": st.sampled_from(["", "'"]),
                "encoding": st.sampled_from(["utf-8", "UTF8", "latin-1", "windows-1252"]),
                "header": st.just(True) | st.lists(texts, unique=True, min_size=1),
                "skip_lines": st.integers(0, 9),
                "comment": st.sampled_from(["#", "//"]),
                "null_values": st.lists(texts),
            },
        ),
        "rows": st.fixed_dictionaries(
            {}, optional={"duplicates": st.sampled_from(["skip", "send"]), "max_rejected": st.integers(0, 9)}
        ),
        "wire": st.fixed_dictionaries({}, optional={"bulk": st.just("array") | texts.map(lambda t: {"key": t})}),
        "ledger": st.fixed_dictionaries({}, optional={"customer_key": st.sampled_from(["plain", "omit"])}),
    },
)


@given(raw=shaped)
def test_what_is_frozen_parses_to_the_same(raw: dict[str, object]) -> None:
    """Through TOML and back, every frozen key keeps its meaning; max_rejected, which may change, is not among them."""
    config = of(**raw)
    kept = tomllib.loads(tomli_w.dumps(frozen(config)))
    again = of(**kept)
    for section in FROZEN_SECTIONS:
        if section != "rows":
            assert getattr(again, section) == getattr(config, section)
    assert again.rows.duplicates == config.rows.duplicates
    assert "max_rejected" not in kept["rows"]
    assert differences(kept, frozen(config)) == []


def test_a_changed_key_is_named_with_both_values() -> None:
    """Was and is, as one writes them."""
    before = of(columns={"properties": ["a"]}, time={"zone": "UTC"})
    now = of(
        columns={"url": {"template": "api://x/{c}"}, "properties": {"a": "b"}},
        rows={"customer_key_required": False, "max_rejected": 5},
        budget={"concurrency": 1},
    )
    assert differences(frozen(before), frozen(now)) == [
        'columns.properties was ["a"] and is now { a = "b" }',
        'columns.url was "url" and is now { template = "api://x/{c}" }',
        'time.zone was "UTC" and is now not set',
        "rows.customer_key_required was true and is now false",
    ]


def test_a_key_that_a_later_version_adds_changes_nothing() -> None:
    """A load frozen before a key existed stands at that key's default."""
    kept = frozen(of())
    del kept["wire"]["bulk"]
    del kept["csv"]
    assert differences(kept, frozen(of())) == []
    assert differences(kept, frozen(of(csv={"delimiter": ";"}))) == ['csv.delimiter was "," and is now ";"']


def test_a_key_that_this_version_lacks_is_a_difference() -> None:
    """Frozen by a later version: what it meant cannot be kept, so it is named."""
    kept = frozen(of())
    kept["time"]["calendar"] = "julian"
    assert differences(kept, frozen(of())) == ['time.calendar was "julian" and is now not set']


def test_new_keys_of_csv_do_not_change_an_old_load() -> None:
    """A load that was staged when [csv] had two keys is as it was, and two spellings of an encoding are one."""
    old = frozen(of())
    old["csv"] = {"delimiter": ",", "quote": '"'}
    assert differences(old, frozen(of(csv={"encoding": "UTF8"}))) == []
    assert differences(old, frozen(of(csv={"encoding": "latin-1"}))) == [
        'csv.encoding was "utf-8" and is now "iso8859-1"'
    ]


def test_how_replies_are_read_may_change() -> None:
    """It shapes no bytes: a load that an earlier version froze with it takes another reading, or none could end it."""
    old = frozen(of())
    old["wire"]["acknowledged_by"] = "statusCode"
    assert "acknowledged_by" not in frozen(of())["wire"]
    assert differences(old, frozen(of(wire={"acknowledged_by": "http_status"}))) == []
