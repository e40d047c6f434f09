"""The reply table of the design, section 3, by plain values."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backfill.core.config import Wire
from backfill.core.masking import Secrets
from backfill.core.reply import WITHHELD, Fate, Verdict, discreet, read, retry_after_s

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


def verdict(
    status: int,
    body: object = None,
    *,
    headers: dict[str, str] | None = None,
    raw: bytes | None = None,
    interactions: int = 100,
    wire: Wire | None = None,
    unapplied: tuple[int, ...] = (408, 429, 503),
) -> Verdict:
    content = raw if raw is not None else json.dumps(body).encode()
    return read(
        status,
        headers or {},
        content,
        interactions=interactions,
        wire=wire or Wire(),
        unapplied_statuses=unapplied,
        now=NOW,
    )


@pytest.mark.parametrize(
    ("status", "fate"),
    [
        (200, Fate.ACKNOWLEDGED),
        (301, Fate.MISDIRECTED),
        (302, Fate.REDIRECTED),
        (303, Fate.REDIRECTED),
        (304, Fate.REDIRECTED),
        (307, Fate.MISDIRECTED),
        (308, Fate.MISDIRECTED),
        (400, Fate.REFUSED),
        (401, Fate.UNAUTHORISED),
        (403, Fate.FORBIDDEN),
        (404, Fate.MISDIRECTED),
        (405, Fate.MISDIRECTED),
        (408, Fate.UNAPPLIED),
        (413, Fate.TOO_LARGE),
        (418, Fate.MISDIRECTED),
        (422, Fate.REFUSED),
        (429, Fate.UNAPPLIED),
        (500, Fate.UNCLEAR),
        (502, Fate.UNCLEAR),
        (503, Fate.UNAPPLIED),
        (504, Fate.UNCLEAR),
    ],
)
@pytest.mark.parametrize("http", [True, False])
def test_each_status_has_its_fate(status: int, fate: Fate, http: bool) -> None:
    """The status counts the same whether it is HTTP's or stands in the body of a 200."""
    found = verdict(status if http else 200, {"statusCode": status})
    assert (found.fate, found.http_status) == (fate, status)


def test_an_acknowledgement_keeps_the_tid() -> None:
    """The reference asks to keep the TID of a reply."""
    assert verdict(200, {"statusCode": 200, "tid": "abc"}).tid == "abc"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"<html>OK</html>",
        b'{"statusCode": 200, "tid": "cut sh',
        b"{}",
        b"null",
        b"200",
        b'"statusCode: 200"',
        b'{"statusCode": true}',
        b'{"statusCode": null}',
        b'{"statusCode": 2000}',
        b'{"statusCode": 0}',
        b'{"statusCode": "ok"}',
        b'{"statusCode": 200, "errors": [{"message": "row 3"}]}',
        b"[]",
        b'[{"statusCode": 200}]',
        b'\xff\xfe{"statusCode": 200}',
        b"[" * 100_000,
    ],
)
def test_a_200_that_does_not_acknowledge_is_unclear(raw: bytes) -> None:
    """Whatever is not recognised is never taken as delivered."""
    assert verdict(200, raw=raw).fate is Fate.UNCLEAR


def test_a_compressed_body_is_not_opened() -> None:
    """We ask for no compression; what claims it is not read."""
    headers = {"content-encoding": "gzip"}
    assert verdict(200, {"statusCode": 200}, headers=headers).fate is Fate.UNCLEAR


def test_an_array_acknowledges_when_each_interaction_is_acknowledged() -> None:
    """One result per interaction, all of them 200."""
    assert verdict(200, [{"statusCode": 200}] * 3, interactions=3).fate is Fate.ACKNOWLEDGED


SORTED = [
    ([{"statusCode": 200, "tid": "t"}, {"statusCode": 400, "message": "no url"}], "AR"),
    ({"statusCode": 200, "results": [{"statusCode": 503}, {"statusCode": 200}]}, "NA"),
    ({"statusCode": 200, "errors": [{"index": 1, "message": "no url"}]}, "AR"),
    ({"statusCode": 200, "errors": [{"index": 0, "statusCode": 500}]}, "UA"),
    ([{"statusCode": 401}, {"statusCode": 200}], "UA"),
    ([{"statusCode": 400}, {"statusCode": 422}], "RR"),
]


@pytest.mark.parametrize(("body", "fates"), SORTED)
def test_each_interaction_has_its_own_fate_where_the_reply_gives_it_one(body: object, fates: str) -> None:
    """By place in an array of results, or by the index of an error."""
    letters = {"A": Fate.ACKNOWLEDGED, "R": Fate.REFUSED, "N": Fate.UNAPPLIED, "U": Fate.UNCLEAR}
    found = verdict(200, body, interactions=2)
    assert [each.fate for each in found.each] == [letters[letter] for letter in fates]


@pytest.mark.parametrize(
    "body",
    [
        [{"statusCode": 200}],
        [{"statusCode": 200}, {"message": "no url"}],
        [{"statusCode": 200}, {"statusCode": 200, "error": "no url"}],
        {"statusCode": 200, "errors": [{"message": "no url"}]},
        {"statusCode": 200, "errors": [{"index": 2}]},
        {"statusCode": 200, "errors": [{"index": True}]},
        {"statusCode": 200, "errors": [{"index": 1}, {"index": 1}]},
        {"statusCode": 200, "errors": {"1": "no url"}},
        {"errors": [{"index": 1}]},
    ],
)
def test_results_that_leave_doubt_which_is_which_are_unclear(body: object) -> None:
    """A wrong row rejected and a right one called delivered would be worse than doubt."""
    assert verdict(200, body, interactions=2).fate is Fate.UNCLEAR


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 429, 503])
def test_a_refusal_that_says_in_its_body_that_all_is_well_is_unclear(status: int) -> None:
    """HTTP says that nothing was applied, the body that it was."""
    assert verdict(status, {"statusCode": 200}).fate is Fate.UNCLEAR
    assert verdict(status, [{"statusCode": 200}] * 2, interactions=2).fate is Fate.UNCLEAR


@pytest.mark.parametrize("raw", [b"", b"OK", b"{}"])
def test_http_status_alone_may_acknowledge_where_declared(raw: bytes) -> None:
    """`acknowledged_by = "http_status"` takes a bare 2xx."""
    assert verdict(204, raw=raw, wire=Wire(acknowledged_by="http_status")).fate is Fate.ACKNOWLEDGED


def test_the_body_outranks_http_status_even_where_that_acknowledges() -> None:
    """A contradicting `statusCode` counts under either setting."""
    assert verdict(200, {"statusCode": 500}, wire=Wire(acknowledged_by="http_status")).fate is Fate.UNCLEAR


def test_statuses_declared_as_unapplied_come_first() -> None:
    """A tenant whose gateway answers 502 before its API may say so."""
    assert verdict(502, unapplied=(502,)).fate is Fate.UNAPPLIED


@pytest.mark.parametrize(
    ("raw", "seconds"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        ("Sun, 01 Mar 2026 12:01:00 GMT", 60.0),
        ("Sun, 01 Mar 2026 11:59:00 GMT", None),
        ("-5", None),
        ("1e3", None),
        ("soon", None),
        ("", None),
        ("\u0661\u0662", None),
        ("99999999999999999999", None),
        (None, None),
    ],
)
def test_retry_after(raw: str | None, seconds: float | None) -> None:
    """Seconds or an HTTP date; rubbish and the past are ignored."""
    assert retry_after_s(raw, NOW) == seconds


@given(st.text(max_size=40))
def test_no_retry_after_is_an_exception(raw: str) -> None:
    """Whatever a server writes there, it is a number of seconds or nothing."""
    found = retry_after_s(raw, NOW)
    assert found is None or found >= 0


@given(st.integers(100, 599), st.binary(max_size=200))
def test_no_reply_is_an_exception_and_rubbish_never_acknowledges(status: int, raw: bytes) -> None:
    """Random bytes are not an acknowledgement."""
    assert verdict(status, raw=raw).fate is not Fate.ACKNOWLEDGED


def test_the_words_of_a_refusal_are_read() -> None:
    """From an object, a list of errors or a nested error."""
    assert verdict(400, {"statusCode": 400, "message": "url is\n missing"}).words == "url is missing"
    assert verdict(400, {"errors": [{"message": "a"}, {"message": "b"}]}).words == "a | b"


def test_a_retry_after_date_counts_from_now() -> None:
    """The wall clock is passed in."""
    when = (NOW + timedelta(seconds=30)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    assert verdict(503, headers={"retry-after": when}).retry_after_s == 30


VALID = [
    b'{"statusCode": 200, "tid": "dedc2983-4666-4641-8047-61250a878f89"}',
    b'{"statusCode": 200, "errors": [{"index": 1, "message": "no url"}]}',
    b'[{"statusCode": 200}, {"statusCode": 400, "message": "no url"}]',
    b'{"statusCode": 400, "message": "Bad Input Parameter"}',
]


@given(
    st.sampled_from(VALID),
    st.lists(st.tuples(st.integers(0, 70), st.integers(0, 255), st.sampled_from(["set", "drop", "add"])), max_size=4),
    st.sampled_from([200, 204, 400, 429, 500]),
)
def test_a_mutated_reply_acknowledges_only_what_it_still_says(
    valid: bytes, mutations: list[tuple[int, int, str]], status: int
) -> None:
    """Whatever is changed: no exception, and an acknowledgement only where a whole `statusCode` of 2xx stands."""
    raw = bytearray(valid)
    for place, byte, kind in mutations:
        at = min(place, len(raw) - 1)
        raw[at : at + (kind != "add")] = b"" if kind == "drop" else bytes([byte])
    found = verdict(status, raw=bytes(raw), interactions=2)
    fates = {each.fate for each in found.each} or {found.fate}
    if Fate.ACKNOWLEDGED in fates:
        assert 200 <= status < 300
        content = json.loads(bytes(raw))
        parts = content if isinstance(content, list) else [content]
        assert any(200 <= int(part["statusCode"]) < 300 for part in parts)


SENT = json.dumps(
    [
        {
            "customerKey": "jane.doe@example.org",
            "customerKeyName": "customerkey",
            "url": "api://shop/buy",
            "properties": [{"name": "plan", "value": "gold"}],
        }
    ]
).encode()


def test_words_are_kept_without_values_and_secrets() -> None:
    """Those of the whole and of each interaction; the names of elements and properties stay."""
    words = "customerKey jane.doe@example.org of api://shop/buy: plan gold; Bearer tok-4711-4711"
    said = Verdict(fate=Fate.REFUSED, http_status=400, cause="refused", words=words)
    kept = discreet(replace(said, each=(said,)), sent=SENT, secrets=Secrets("tok-4711-4711"))
    assert kept.words == "customerKey *** of ***: plan ***; Bearer ***"
    assert kept.each[0].words == kept.words


def test_words_about_an_unreadable_request_are_withheld() -> None:
    """What cannot be told from a customer's value is not kept."""
    said = Verdict(fate=Fate.REFUSED, http_status=400, cause="refused", words="jane")
    assert discreet(said, sent=b"{").words == WITHHELD


def test_a_tid_is_kept_unless_it_repeats_something() -> None:
    """The request's own stands in the staged rows already; a secret is no tid."""
    said = Verdict(fate=Fate.ACKNOWLEDGED, http_status=200, cause="acknowledged", tid="t-1")
    assert discreet(said, sent=SENT, tid=None).tid == "t-1"
    assert discreet(said, sent=SENT, tid="t-1").tid is None
    assert discreet(replace(said, tid="x tok-4711-4711"), sent=SENT, secrets=Secrets("tok-4711-4711")).tid is None


@pytest.mark.parametrize("depth", [30, 500, 900, 980, 100_000])
@pytest.mark.parametrize("nest", [("[", "]"), ('{"errors":', "}"), ('{"errors":[', "]}")])
def test_a_deep_body_is_no_exception(depth: int, nest: tuple[str, str]) -> None:
    """Whoever follows it to its ground would run out of stack."""
    raw = (nest[0] * depth + nest[1] * depth).encode()
    assert verdict(400, raw=raw).fate is Fate.REFUSED
    assert verdict(200, raw=raw).fate is Fate.UNCLEAR
