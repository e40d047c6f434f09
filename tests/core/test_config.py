"""The configuration by plain values: what is taken, what is refused and how it is told, what a load keeps."""

import tomllib
from datetime import UTC

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from backfill.core.config import (
    FROZEN_SECTIONS,
    SECTIONS,
    BulkKey,
    Columns,
    Constant,
    FromColumn,
    RunConfig,
    Template,
    differences,
    frozen,
    merge,
    parse,
    split_set,
)
from backfill.core.errors import ConfigurationError, ExitCode

API = {"base_url": "https://mxo.example", "site_key": "ONE-1"}


def of(**sections: object) -> RunConfig:
    return parse({"api": API, **sections})


def refusal(raw: dict[str, object], environment: dict[str, str] | None = None, sets: tuple[str, ...] = ()) -> str:
    """The message for a configuration that must not be taken."""
    with pytest.raises(ConfigurationError) as caught:
        parse(merge(raw, environment or {}, sets))
    assert caught.value.exit_code is ExitCode.UNUSABLE
    return caught.value.message


# -------------------------------------------------------------------------------------------------------- defaults


def test_two_keys_are_enough() -> None:
    """Everything but base URL and site key has a default; these are the documented ones."""
    config = of()
    assert config.columns == Columns(
        timestamp=FromColumn(column="timestamp"),
        customer_key=FromColumn(column="customer_key"),
        customer_key_name=Constant(value="customerkey"),
        url=FromColumn(column="url"),
    )
    assert config.api.token_url == "/one/oauth2token"
    assert (config.budget.requests_per_second, config.budget.concurrency) == (20, 16)
    assert (config.rows.max_rejected, config.delivery.unapplied_statuses) == ("1%", [408, 429, 503])


def test_columns_are_written_in_three_ways() -> None:
    """A name, a constant and a template are told apart by their form."""
    columns = of(
        columns={"timestamp": "when", "customer_key_name": {"value": "email"}, "url": {"template": "api://x/{channel}"}}
    ).columns
    assert columns.timestamp == FromColumn(column="when")
    assert columns.customer_key_name == Constant(value="email")
    assert columns.url == Template(template="api://x/{channel}")


def test_tomls_own_date_times_are_taken() -> None:
    """`not_before = 2024-01-31T00:00:00Z` without quotes is how people write TOML."""
    raw = tomllib.loads("not_before = 2024-01-31T00:00:00Z\nnot_after = '2024-02-01 00:00:00+01:00'")
    assert of(time=raw).time.not_before == "2024-01-31T00:00:00+00:00"


@pytest.mark.parametrize(
    ("url", "spelled"),
    [
        ("https://MXO.Example/", "https://mxo.example"),
        ("https://mxo.example:443", "https://mxo.example"),
        ("https://mxo.example:8443", "https://mxo.example:8443"),
        ("http://127.0.0.1:80", "http://127.0.0.1"),
        ("http://localhost:8080", "http://localhost:8080"),
        ("http://[::1]:8080/", "http://[::1]:8080"),
    ],
)
def test_a_base_url_has_one_spelling(url: str, spelled: str) -> None:
    """The base URL is the job's identity, so a slash, capitals or the usual port make no other tenant."""
    assert of(api={**API, "base_url": url}).api.base_url == spelled


# -------------------------------------------------------------------------------------------------------- refusals

REFUSED: list[tuple[str, str, object, str]] = [
    ("api", "base_url", "mxo.example", "is not an http(s) URL"),
    ("api", "base_url", "ftp://mxo.example", "is not an http(s) URL"),
    ("api", "base_url", "https://mxo.example/one/oauth2", "carries a path"),
    ("api", "base_url", "https://mxo.example?sk=1", "carries a query"),
    ("api", "base_url", "https://mxo.example:port", "is not a URL"),
    ("api", "base_url", "https:// mxo.example", "is not an http(s) URL"),
    ("api", "base_url", "http://mxo.example", "plain http"),
    ("api", "base_url", "http://127.0.0.1.evil.example", "plain http"),
    ("api", "site_key", "", "without blanks"),
    ("api", "site_key", "A B", "without blanks"),
    ("api", "token_url", "//evil.example/token", "is not an http(s) URL"),
    ("api", "token_url", "http://login.example/token", "plain http"),
    ("api", "call", "interaction-post", '"interactions-offline" or "interaction-offline"'),
    ("api", "timeout_s", 0, "greater than 0"),
    ("api", "timeout_s", "60", "must be a number"),
    ("api", "timeout_s", float("inf"), "finite"),
    ("api", "timeout_s", float("nan"), "finite"),
    ("columns", "url", {"templat": "x"}, "{ template ="),
    ("columns", "url", "", "must be a column name"),
    ("columns", "url", 5, "must be a column name"),
    ("columns", "properties", ["a", "a"], 'names the property "a" more than once'),
    ("columns", "properties", {"a": "x", "b": "x"}, 'names the property "x" more than once'),
    ("columns", "properties", [1], "a list of column names"),
    ("columns", "properties", "a", "a list of column names"),
    ("time", "zone", "Europe/Londn", "IANA name"),
    ("time", "zone", "", "IANA name"),
    ("time", "zone", "+01:00", "IANA name"),
    ("time", "formats", [], "must not be empty"),
    ("time", "formats", ["iso"], "strptime codes"),
    ("time", "not_before", "2024-01-31", "no offset"),
    ("time", "not_before", "31.01.2024", "ISO 8601"),
    ("time", "not_after", 5, "ISO 8601"),
    ("csv", "delimiter", "||", "one ASCII character"),
    ("csv", "delimiter", "\n", "one ASCII character"),
    ("csv", "quote", "»", "one ASCII character"),
    ("rows", "max_rejected", "5", "a count of rows"),
    ("rows", "max_rejected", "101%", "a count of rows"),
    ("rows", "max_rejected", -1, "a count of rows"),
    ("rows", "max_rejected", True, "a count of rows"),
    ("rows", "duplicates", "drop", '"skip" or "send"'),
    ("rows", "customer_key_required", "yes", "true or false"),
    ("budget", "interactions_per_second", 99, "at least 100"),
    ("budget", "concurrency", 0, "at least 1"),
    ("budget", "concurrency", 1025, "at most 1024"),
    ("budget", "concurrency", 2.5, "whole number"),
    ("delivery", "unapplied_statuses", [200], "from 400 to 599"),
    ("delivery", "unapplied_statuses", [401], "must not hold 401"),
    ("delivery", "unapplied_statuses", ["503"], "as an entry must be a whole number"),
    ("wire", "bulk", {"keys": "x"}, '"array" or { key'),
    ("wire", "address_field", "", "must not be empty"),
    ("job", "name", "../june", "plain name"),
    ("job", "name", "..", "plain name"),
    ("job", "name", " ", "plain name"),
    ("job", "name", "june.sandbox", "--sandbox"),
]


@pytest.mark.parametrize(("section", "key", "value", "said"), REFUSED)
def test_a_wrong_value_is_told_with_key_and_remedy(section: str, key: str, value: object, said: str) -> None:
    """Each names the key, and what would be right, on one line; nothing of pydantic shines through."""
    raw: dict[str, object] = {"api": dict(API)}
    raw[section] = {**(API if section == "api" else {}), key: value}
    message = refusal(raw)
    assert message.startswith("The configuration cannot be used (1 problem):\n")
    (line,) = message.splitlines()[1:]
    assert line.startswith(f"  {section}.{key} ")
    assert said in line
    assert "pydantic" not in message
    assert "Value error" not in message


@pytest.mark.parametrize(
    ("section", "keys", "said"),
    [
        ("time", {"not_before": "2024-02-01T00:00:00Z", "not_after": "2024-01-31T23:00:00-02:00"}, None),
        ("time", {"not_before": "2024-02-01T00:00:00Z", "not_after": "2024-01-01T00:00:00Z"}, "not_before lies after"),
        ("csv", {"delimiter": "'", "quote": "'"}, "same character"),
        ("delivery", {"backoff_base_s": 100.0}, "larger than backoff_max_s"),
        ("wire", {"timestamp_field": "url"}, "differ from each other"),
        ("wire", {"address_field": "customerKey"}, "differ from each other"),
    ],
)
def test_keys_that_contradict_each_other(section: str, keys: dict[str, object], said: str | None) -> None:
    """A contradiction is told for its section; instants are compared, not their spelling."""
    if said is None:
        of(**{section: keys})
    else:
        assert f"[{section}] contradicts itself: " in (message := refusal({"api": API, section: keys}))
        assert said in message


def test_every_problem_is_told_at_once() -> None:
    """One error lists all, each with its place, in the words of a person."""
    raw: dict[str, object] = {
        "api": {"base_url": "https://mxo.example", "site_kee": "x", "timeout_s": "fast"},
        "bugdet": {"concurrency": 1},
        "timestamp": "when",
        "ledger": 5,
    }
    given_ = merge(
        raw,
        {"BACKFILL_CSV_DELIMITER": ";;", "BACKFILL_API_SITEKEY": "x", "BACKFILL_BASE_URL": "x"},
        ("budget.requests=1", "rows.csv=1"),
        places={("api", "timeout_s"): "june.toml, line 3", ("bugdet", "concurrency"): "june.toml, line 5"},
    )
    with pytest.raises(ConfigurationError) as caught:
        parse(given_)
    assert caught.value.message == (
        "The configuration cannot be used (11 problems):\n"
        "  BACKFILL_API_SITEKEY (environment) names no key. Did you mean BACKFILL_API_SITE_KEY? Correct or unset it.\n"
        "  BACKFILL_BASE_URL (environment) names no key. Did you mean BACKFILL_API_BASE_URL? Correct or unset it.\n"
        "  api.site_kee is no known key. Did you mean site_key?\n"
        "  [bugdet] (june.toml, line 5) is no known section. Did you mean [budget]?\n"
        "  timestamp stands outside a section: put it into [columns].\n"
        "  ledger is a section: write [ledger] on a line of its own, its keys below.\n"
        "  budget.requests (--set) is no known key. Did you mean requests_per_second?\n"
        "  rows.csv (--set) is no known key. [rows] knows duplicates, max_rejected and customer_key_required.\n"
        "  api.site_key is missing: the site key of your MXO space. Write it into [api], or set "
        "BACKFILL_API_SITE_KEY.\n"
        '  api.timeout_s (june.toml, line 3) = "fast" must be a number.\n'
        '  csv.delimiter (BACKFILL_CSV_DELIMITER) = ";;" must be one ASCII character, no line end.'
    )


def test_a_key_in_the_wrong_section_is_shown_home() -> None:
    """`[api] concurrency` is told where it belongs."""
    assert "api.concurrency is no known key of [api]: it belongs into [budget]." in refusal(
        {"api": {**API, "concurrency": 4}}
    )


SECRET = "hunter2-hunter2"


@pytest.mark.parametrize(
    "raw",
    [
        {"api": {**API, "client_secret": SECRET}},
        {"api": {**API, "token": SECRET}},
        {"api": {**API, "clientsecret": SECRET}},
        {"api": {**API, "base_url": f"https://me:{SECRET}@mxo.example"}},
        {"api": {**API, "token_url": f"https://me:{SECRET}@mxo.example/token"}},
        {"api": API, "token": SECRET},
        {"api": API, "secrets": {"client": SECRET}},
    ],
)
def test_a_secret_in_the_wrong_place_is_not_repeated(raw: dict[str, object]) -> None:
    """Errors end in logs, so a password that somebody wrote into the file is not shown."""
    assert SECRET not in refusal(raw)


def test_a_secret_in_the_file_is_sent_to_the_environment() -> None:
    """The message says where secrets belong."""
    assert "BACKFILL_CLIENT_SECRET_FILE" in refusal({"api": {**API, "client_secret": SECRET}})
    assert SECRET not in refusal({"api": API}, {"BACKFILL_CLIENT_SECRT": SECRET})


# --------------------------------------------------------------------------------------------------------- merging


def test_the_stronger_source_wins() -> None:
    """--set beats the environment, that beats the file, that beats the default; key by key."""
    file = {"api": API, "budget": {"concurrency": 2, "requests_per_second": 2.0}, "csv": {"quote": "'"}}
    environment = {"BACKFILL_BUDGET_CONCURRENCY": "3", "BACKFILL_BUDGET_REQUESTS_PER_SECOND": "3"}
    config = parse(merge(file, environment, ("budget.concurrency=4",)))
    assert (config.budget.concurrency, config.budget.requests_per_second, config.csv.quote) == (4, 3, "'")
    assert config.csv.delimiter == ","
    assert file["budget"] == {"concurrency": 2, "requests_per_second": 2.0}


def test_every_key_can_be_set_in_the_environment() -> None:
    """BACKFILL_<SECTION>_<KEY> is known for all of them: none is told as a stray name."""
    for section, model in SECTIONS.items():
        for key in model.model_fields:
            given_ = merge({}, {f"BACKFILL_{section}_{key}".upper(): "x"}, ())
            assert given_.problems == ()
            assert given_.values == {section: {key: "x"}}


@pytest.mark.parametrize(
    ("text", "section", "key", "value"),
    [
        ("api.site_key=12345", "api", "site_key", "12345"),
        ("job.name=2024", "job", "name", "2024"),
        ("budget.concurrency=8", "budget", "concurrency", 8),
        ("rows.max_rejected=5", "rows", "max_rejected", 5),
        ("rows.max_rejected=5%", "rows", "max_rejected", "5%"),
        ("rows.customer_key_required=false", "rows", "customer_key_required", False),
        ("csv.delimiter=;", "csv", "delimiter", ";"),
        ('csv.delimiter="\\t"', "csv", "delimiter", "\t"),
        ("csv.quote='", "csv", "quote", "'"),
        ("time.not_before=2024-01-31T00:00:00Z", "time", "not_before", "2024-01-31T00:00:00+00:00"),
        ("time.formats=['%d/%m/%Y']", "time", "formats", ["%d/%m/%Y"]),
        ("columns.url = when = x", "columns", "url", FromColumn(column="when = x")),
        ("columns.tid=7", "columns", "tid", FromColumn(column="7")),
        (
            'columns.url={ template = "api://x/{channel}" }',
            "columns",
            "url",
            Template(template="api://x/{channel}"),
        ),
        ("columns.properties=['a', 'b']", "columns", "properties", ["a", "b"]),
        ("wire.bulk={ key = 'all' }", "wire", "bulk", BulkKey(key="all")),
        ("delivery.unapplied_statuses=[503]", "delivery", "unapplied_statuses", [503]),
    ],
)
def test_text_becomes_what_the_key_takes(text: str, section: str, key: str, value: object) -> None:
    """A TOML literal where the key takes one, else the text itself: a site key of digits stays text."""
    by_flag = parse(merge({"api": API}, {}, (text,)))
    name, _, written = text.partition("=")
    by_name = parse(merge({"api": API}, {"BACKFILL_" + name.strip().replace(".", "_").upper(): written.strip()}, ()))
    assert getattr(getattr(by_flag, section), key) == getattr(getattr(by_name, section), key) == value


@pytest.mark.parametrize("text", ["api.site_key", "site_key=1", ".a=1", "a.=1", "columns.url.template=x", "=", ""])
def test_a_malformed_set_shows_how(text: str) -> None:
    """What is not SECTION.KEY=VALUE is told with an example."""
    with pytest.raises(ValueError, match=r"SECTION\.KEY=VALUE"):
        split_set(text)


@pytest.mark.parametrize("name", ["BACKFILL_SERVICE_HOST", "BACKFILL_PORT_80_TCP", "BACKFILL_IMAGE", "BACKFILL_STATE"])
def test_names_of_others_are_let_be(name: str) -> None:
    """Kubernetes sets BACKFILL_SERVICE_HOST beside a service called backfill; that must not stop a job."""
    parse(merge({"api": API}, {name: "x"}, ()))


# -------------------------------------------------------------------------------------------------------- freezing

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
        "csv": st.fixed_dictionaries({}, optional={"delimiter": st.sampled_from(";|\t")}),
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
    del kept["wire"]["acknowledged_by"]
    del kept["csv"]
    assert differences(kept, frozen(of())) == []
    assert differences(kept, frozen(of(csv={"delimiter": ";"}))) == ['csv.delimiter was "," and is now ";"']


def test_a_key_that_this_version_lacks_is_a_difference() -> None:
    """Frozen by a later version: what it meant cannot be kept, so it is named."""
    kept = frozen(of())
    kept["time"]["fold"] = "later"
    assert differences(kept, frozen(of())) == ['time.fold was "later" and is now not set']
