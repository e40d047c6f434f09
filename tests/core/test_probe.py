"""Probing by plain values: the order of forms, where it ends, what a row's line proves, the lines to keep."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backfill.core.config import BulkKey, Wire
from backfill.core.probe import MAX_CALLS, Proof, Trial, lines_to_keep, next_form, proof, summed_up
from backfill.core.settings import parse

KEYED = BulkKey(key="interactions")
FORMS = [
    Wire(address_field=field, timestamp_format=time, bulk=bulk)
    for field in ("url", "uri")
    for time in ("epoch_ms", "iso8601")
    for bulk in ("array", KEYED)
]


def walked(tenant: Wire, configured: Wire, *, many: bool = True, words: str = "") -> list[Trial]:
    """The tries against a tenant that takes one form alone."""
    trials: list[Trial] = []
    while (form := next_form(configured, trials, many=many)) is not None:
        trials.append(Trial(form, Proof.TAKEN if form == tenant else Proof.REFUSED, words))
    return trials


@given(st.sampled_from(FORMS), st.sampled_from(FORMS), st.sampled_from(["", "uri is missing", "body", "timestamp"]))
def test_every_form_is_found_from_every_other(tenant: Wire, configured: Wire, words: str) -> None:
    """Within eight calls, none of them twice, the configured one first, and nothing after the one that was taken."""
    trials = walked(tenant, configured, words=words)
    assert len(trials) <= MAX_CALLS
    assert len({summed_up(trial.wire, many=True) for trial in trials}) == len(trials)
    assert (trials[0].wire, trials[-1].wire, trials[-1].proof) == (configured, tenant, Proof.TAKEN)


def test_the_words_of_a_refusal_lead_the_way() -> None:
    """A refusal that speaks of the address has that tried next, then what the next refusal speaks of."""
    first = Trial(Wire(), Proof.REFUSED, "interaction 1 of 1: `uri` is missing")
    second = next_form(Wire(), [first], many=True)
    assert second == Wire(address_field="uri")
    assert second is not None
    third = next_form(Wire(), [first, Trial(second, Proof.REFUSED, "wrong timestamp")], many=True)
    assert third == Wire(address_field="uri", timestamp_format="iso8601")


def test_a_call_of_one_has_four_forms() -> None:
    """How several interactions stand in a body is no matter of the single call."""
    forms = [trial.wire for trial in walked(Wire(address_field="link"), Wire(), many=False)]
    assert len(forms) == 4
    assert {form.bulk for form in forms} == {"array"}


def test_names_of_ones_own_are_tried_first_and_the_calls_stay_eight() -> None:
    """A configured name that is none of the known ones makes more forms than calls: the ones nearest to it go first."""
    configured = Wire(address_field="link", bulk=BulkKey(key="all"))
    forms = [trial.wire for trial in walked(Wire(address_field="nothing"), configured)]
    assert len(forms) == MAX_CALLS
    assert forms[0] == configured


def test_a_form_that_no_configuration_can_hold_is_not_tried() -> None:
    """Where the time is called uri, the address cannot be."""
    forms = [trial.wire for trial in walked(Wire(address_field="x"), Wire(timestamp_field="uri"))]
    assert {form.address_field for form in forms} == {"url"}


@pytest.mark.parametrize("shown", [each for each in Proof if each is not Proof.REFUSED])
def test_only_a_refusal_is_followed_by_another_try(shown: Proof) -> None:
    """After anything that may have been applied, or says nothing of the form, another call would be a guess."""
    assert next_form(Wire(), [Trial(Wire(), shown)], many=True) is None


@pytest.mark.parametrize(
    ("outcome", "reasons", "status", "shown"),
    [
        ("delivered", [], 200, Proof.TAKEN),
        ("unsent", ["refused", "HTTP 400: no"], 400, Proof.REFUSED),
        ("rejected", ["refused", "HTTP 422: no"], 422, Proof.REFUSED),
        ("unsent", ["too_large"], 413, Proof.NOTHING),
        ("unsent", ["unapplied"], 503, Proof.NOTHING),
        ("unsent", [], None, Proof.NOTHING),
        ("in_doubt", ["unrecognised"], 200, Proof.UNRECOGNISED),
        ("in_doubt", ["unrecognised"], None, Proof.DOUBT),
        ("in_doubt", ["server_error"], 500, Proof.DOUBT),
        ("in_doubt", ["no_reply"], None, Proof.DOUBT),
        (None, [], None, Proof.NOTHING),
    ],
)
def test_what_a_line_of_the_ledger_proves(
    outcome: str | None, reasons: list[str], status: int | None, shown: Proof
) -> None:
    """Only "refused" says that nothing was applied and the form may be at fault; what is in doubt stays so."""
    assert proof(outcome, reasons, status) is shown


@pytest.mark.parametrize("form", FORMS)
def test_the_lines_to_keep_are_the_form_that_was_taken(form: Wire) -> None:
    """Put into the configuration they mean that very form."""
    text = "\n".join(lines_to_keep(Trial(form, Proof.TAKEN), many=True))
    api = {"base_url": "https://mxo.example", "site_key": "k"}
    assert parse({"api": api, **tomllib.loads(text)}).wire == form


def test_a_reply_without_a_status_code_is_kept_as_http_status() -> None:
    """The form was answered by a 2xx: what is wrong is how replies are read."""
    assert lines_to_keep(Trial(Wire(), Proof.UNRECOGNISED), many=False) == [
        "[wire]",
        'address_field = "url"',
        'timestamp_field = "timestamp"',
        'timestamp_format = "epoch_ms"',
        'acknowledged_by = "http_status"',
    ]


@pytest.mark.parametrize("shown", [Proof.REFUSED, Proof.DOUBT, Proof.NOTHING])
def test_nothing_is_to_be_kept_of_what_was_not_taken(shown: Proof) -> None:
    """No lines are proposed that no reply supports."""
    assert lines_to_keep(Trial(Wire(), shown), many=True) == []
