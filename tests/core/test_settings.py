"""Three sources by plain values: which of them wins, what their text means, how a mistake is told."""

import pytest

from backfill.core.config import SECTIONS, BulkKey, FromColumn, Template
from backfill.core.errors import ConfigurationError, ExitCode
from backfill.core.settings import merge, parse, split_set

API = {"base_url": "https://mxo.example", "site_key": "ONE-1"}


def refusal(raw: dict[str, object], environment: dict[str, str] | None = None, sets: tuple[str, ...] = ()) -> str:
    """The message for a configuration that must not be taken."""
    with pytest.raises(ConfigurationError) as caught:
        parse(merge(raw, environment or {}, sets))
    assert caught.value.exit_code is ExitCode.UNUSABLE
    return caught.value.message


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


# ----------------------------------------------------------------------------------------------------------- errors


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
        "  budget.requests (--set) is no known key. Did you mean requests_per_day?\n"
        "  rows.csv (--set) is no known key. [rows] knows duplicates, max_rejected, customer_key_required, identity "
        "and whole_number_keys.\n"
        "  api.site_key is missing: the site key of your MXO space. Write it into [api], or set "
        "BACKFILL_API_SITE_KEY.\n"
        '  api.timeout_s (june.toml, line 3) = "fast" must be a number.\n'
        '  csv.delimiter (BACKFILL_CSV_DELIMITER) = ";;" must be one ASCII character, no line end: a tab is '
        'written as "\\t".'
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
