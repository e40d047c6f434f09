"""The form that a sandbox demands, by plain values: what is taken, what is refused and how it is told."""

import json

import pytest

from backfill.sandbox.checks import CALLS, Accepted, Fault
from backfill.sandbox.wire import accepted, parse

BULK = next(call for call in CALLS if call.many)
ONE = next(call for call in CALLS if call.offline and not call.many)
POST = next(call for call in CALLS if not call.offline)

REFERENCE = {"url": "api://shop/visit", "timestamp": 1_718_000_000_000, "customerKey": "4711"}


def told(document: object, *demands: str, call: object = BULK) -> str:
    """Why a body is refused; empty where it is taken, as it came."""
    judged = accepted(call, json.dumps(document).encode(), parse(demands))  # type: ignore[arg-type]
    if isinstance(judged, Fault):
        assert judged.status == 400
        return judged.message
    assert isinstance(judged, Accepted)
    sent = document if isinstance(document, list) else [document] if call is not BULK else next(iter(document.values()))  # type: ignore[attr-defined]
    assert judged.interactions == sent == json.loads(judged.text)
    return ""


def but(**elements: object) -> dict[str, object]:
    """The interaction of the reference with other elements; None takes one away."""
    return {name: value for name, value in (REFERENCE | elements).items() if value is not None}


@pytest.mark.parametrize(
    ("demand", "taken", "refused", "words"),
    [
        ("address_field=uri", [but(url=None, uri="api://x/y")], [but()], "`uri` is missing"),
        ("address_field=url", [but()], [but(url=None, uri="api://x/y")], "`url` is missing"),
        ("address_field=link", [but(url=None, link="api://x/y")], [but()], "`link` is missing"),
        ("timestamp_field=when", [but(timestamp=None, when=1)], [but()], "`when` is missing"),
        ("timestamp_format=iso8601", [but(timestamp="2024-05-06T07:08:09Z")], [but()], "must be ISO 8601"),
        ("timestamp_format=epoch_ms", [but()], [but(timestamp="2024-05-06T07:08:09Z")], "must be whole milliseconds"),
        ("bulk=array", [but()], {"all": [but()]}, "must be a JSON array"),
        ("bulk.key=all", {"all": [but()]}, [but()], "holds an array as `all`"),
        ("bulk.key=all", {"all": [but()]}, {"some": [but()]}, "holds an array as `all`"),
        ("bulk.key=all", {"all": [but()]}, {"all": [but()], "more": 1}, "holds an array as `all`"),
    ],
)
def test_a_demand_is_met_or_refused(demand: str, taken: object, refused: object, words: str) -> None:
    """The form that is demanded is taken and logged as it came; another is bad input, told by its element."""
    assert told(taken, demand) == ""
    assert words in told(refused, demand)


def test_demands_hold_together() -> None:
    """Several of them are met by one body, and none of them by a body that misses one."""
    demands = ("address_field=uri", "timestamp_format=iso8601", "bulk.key=all")
    right = but(url=None, uri="api://x/y", timestamp="2024-05-06T07:08:09Z")
    assert told({"all": [right, right]}, *demands) == ""
    assert "interaction 2 of 2" in told({"all": [right, but()]}, *demands)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ([but(url=None, uri="nonsense")], "is no URI"),
        ([but(url="api://x/y", uri="api://x/y")], "given twice"),
        ([but(url=None, uri="api://x/y", customerKeyName="email", customerKey=None)], "`customerKey` is required"),
        ([], "no interaction"),
        (["text"], "not a JSON object"),
    ],
)
def test_the_reference_still_holds_beside_a_demand(document: object, words: str) -> None:
    """A body in the demanded form is judged as any other is."""
    assert words in told(document, "address_field=uri")


def test_the_single_offline_call_has_the_form_too_and_the_others_are_free() -> None:
    """One object, without a frame; calls of what happens now have no time, and are judged by the reference alone."""
    demands = ("address_field=uri", "bulk.key=all")
    assert told(but(url=None, uri="api://x/y"), *demands, call=ONE) == ""
    assert "`uri` is missing" in told(but(), *demands, call=ONE)
    assert told(but(timestamp=None), *demands, call=POST) == ""


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["adress_field=uri"], "known are address_field"),
        (["bulk=list"], "write bulk= and array"),
        (["address_field"], "write address_field= and a name"),
        (["address_field=a", "address_field=b"], "demanded twice"),
        (["bulk=array", "bulk.key=x"], "cannot both be demanded"),
    ],
)
def test_a_form_that_cannot_be_demanded_is_told(texts: list[str], words: str) -> None:
    """A demand with a typing error must not be taken for no demand."""
    with pytest.raises(ValueError, match="demanded") as caught:
        parse(texts)
    assert words in str(caught.value)
