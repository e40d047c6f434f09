"""The description by plain values: its defaults, what it takes and what it refuses."""

import tomllib

import pytest

from backfill.core.config import Columns, Constant, FromColumn, Rows, RunConfig, Template
from backfill.core.errors import ConfigurationError, ExitCode
from backfill.core.settings import parse

API = {"base_url": "https://mxo.example", "site_key": "ONE-1"}


def of(**sections: object) -> RunConfig:
    return parse({"api": API, **sections})


def refusal(raw: dict[str, object]) -> str:
    """The message for a configuration that must not be taken."""
    with pytest.raises(ConfigurationError) as caught:
        parse(raw)
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
    ("csv", "quote", '""', "where quotes mean nothing"),
    ("csv", "encoding", "utf-9", "no known encoding"),
    ("csv", "encoding", "base64", "no known encoding"),
    ("csv", "encoding", "idna", "no known encoding"),
    ("csv", "header", False, "must be true, or the list"),
    ("csv", "header", [], "must be true, or the list"),
    ("csv", "header", ["a", ""], "must be true, or the list"),
    ("csv", "header", ["a", "b", "a"], 'names the column "a" more than once'),
    ("csv", "skip_lines", -1, "at least 0"),
    ("csv", "skip_footer", -1, "at least 0"),
    ("csv", "comment", "", "one to five ASCII characters"),
    ("csv", "comment", "#\n", "one to five ASCII characters"),
    ("csv", "null_values", "NULL", "must be a list"),
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


def test_the_call_of_one_may_have_a_small_budget_of_interactions() -> None:
    """Less than 100 a second would starve the bulk call; a call of one it only paces."""
    raw: dict[str, object] = {"api": {**API, "call": "interaction-offline"}, "budget": {"interactions_per_second": 0.5}}
    assert parse(raw).budget.interactions_per_second == 0.5
    assert "greater than 0" in refusal({**raw, "budget": {"interactions_per_second": 0}})


@pytest.mark.parametrize(
    ("section", "keys", "said"),
    [
        ("time", {"not_before": "2024-02-01T00:00:00Z", "not_after": "2024-01-31T23:00:00-02:00"}, None),
        ("time", {"not_before": "2024-02-01T00:00:00Z", "not_after": "2024-01-01T00:00:00Z"}, "not_before lies after"),
        ("csv", {"delimiter": "'", "quote": "'"}, "same character"),
        ("csv", {"delimiter": ";", "comment": ";-"}, "begins with the delimiter or the quote"),
        ("csv", {"quote": "", "comment": "#"}, None),
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


@pytest.mark.parametrize(
    ("identity", "said"), [([], "identity"), (["a", "a"], '"a" more than once'), ([""], "none of them empty")]
)
def test_an_identity_names_columns(identity: list[str], said: str) -> None:
    """At least one, each once: without any, all rows of a customer would be one interaction."""
    with pytest.raises(ValueError, match=said):
        Rows(identity=identity)
    assert Rows(identity=["b", "a"]).identity == ["b", "a"]
    assert Rows().identity is None
