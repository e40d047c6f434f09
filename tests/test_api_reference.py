"""The API reference, row by row, and for each row the tests that show it.

The reference itself is not in the repository. What it lists is written down here a first time, as its tables have it
(`REFERENCE`), and a second time with the evidence (`SHOWN`); the tests below keep both together, and the names of
tests true.
"""

import ast
import json
from functools import cache
from pathlib import Path

import pytest

from backfill.core.answer import LISTS
from backfill.core.calls import CALLS
from backfill.core.interaction import ELEMENTS
from backfill.sandbox import checks

ROOT = Path(__file__).parent.parent

REFERENCE: dict[str, tuple[str, ...]] = {
    "call": (
        "POST /one/oauth2/rt/api/2.0/interaction",
        "PUT /one/oauth2/rt/api/2.0/interaction",
        "PUT /one/oauth2/rt/api/2.0/interaction/offline",
        "PUT /one/oauth2/rt/api/2.0/interactions/offline",
    ),
    "rule": (
        "optimizations are returned by POST only",
        "offline interactions must have a timestamp",
        "at most 100 interactions per call",
        "customerKeyName only with customerKey",
    ),
    "query parameter": ("sk", "tid"),
    "header": ("Content-Type", "Authorization", "dataMimeType"),
    "body element": ("url", "customerKey", "customerKeyName", "properties", "device"),
    "reply element": ("statusCode", "tid", "trackers", "captures", "optimizations"),
    "status code": ("200", "400", "401", "403", "404", "405", "500"),
}
"""The tables "Available API Calls", "Interaction Request Elements", "Interaction Response Elements" and "Response
Status Codes", and what their descriptions demand."""

_EVERY_ELEMENT = "tests/test_send.py::test_each_call_sends_every_element_of_the_reference"
_REPLY = "tests/test_send.py::test_the_reply_is_told_as_it_came"
_EXIT_CODES = "tests/test_send.py::test_each_reply_has_its_exit_code_and_one_attempt"
_INVALID = "tests/test_send.py::test_an_invalid_interaction_is_refused_before_anything_is_sent"
_FOUR = "tests/sandbox/test_app.py::test_the_four_calls"
_HUNDRED = "tests/test_send.py::test_a_list_goes_in_one_call_up_to_a_hundred"
_HEADERS = "tests/sandbox/test_app.py::test_both_headers_must_say_json"
_SITE_KEY = "tests/sandbox/test_app.py::test_a_missing_site_key_is_400_and_another_one_403"

SHOWN: dict[tuple[str, str], tuple[str, ...]] = {
    ("call", "POST /one/oauth2/rt/api/2.0/interaction"): (_EVERY_ELEMENT, _FOUR),
    ("call", "PUT /one/oauth2/rt/api/2.0/interaction"): (_EVERY_ELEMENT, _FOUR),
    ("call", "PUT /one/oauth2/rt/api/2.0/interaction/offline"): (
        _EVERY_ELEMENT,
        _FOUR,
        "tests/test_run_single.py::test_each_interaction_is_a_call_of_its_own",
    ),
    ("call", "PUT /one/oauth2/rt/api/2.0/interactions/offline"): (_EVERY_ELEMENT, _FOUR, _HUNDRED),
    ("rule", "optimizations are returned by POST only"): (_REPLY, _FOUR),
    ("rule", "offline interactions must have a timestamp"): (
        _INVALID,
        "tests/core/test_interaction.py::test_a_time_that_cannot_be_is_refused",
    ),
    ("rule", "at most 100 interactions per call"): (
        _HUNDRED,
        "tests/sandbox/test_app.py::test_a_hundred_interactions_are_taken",
        "tests/sandbox/test_app.py::test_bodies_that_are_no_bulk_request",
    ),
    ("rule", "customerKeyName only with customerKey"): (_INVALID,),
    ("query parameter", "sk"): (_EVERY_ELEMENT, _SITE_KEY),
    ("query parameter", "tid"): (_EVERY_ELEMENT, "tests/sandbox/test_app.py::test_a_tid_is_given_once_and_not_blank"),
    ("header", "Content-Type"): (_HEADERS, _EVERY_ELEMENT),
    ("header", "Authorization"): ("tests/sandbox/test_app.py::test_an_unknown_token_is_401", _EVERY_ELEMENT),
    ("header", "dataMimeType"): (_HEADERS, _EVERY_ELEMENT),
    ("body element", "url"): (_EVERY_ELEMENT, _INVALID),
    ("body element", "customerKey"): (_EVERY_ELEMENT,),
    ("body element", "customerKeyName"): (_EVERY_ELEMENT, _INVALID),
    ("body element", "properties"): (_EVERY_ELEMENT, "tests/test_send.py::test_a_file_passes_as_it_is"),
    ("body element", "device"): (_EVERY_ELEMENT, "tests/test_send.py::test_a_file_passes_as_it_is"),
    ("reply element", "statusCode"): (
        _REPLY,
        "tests/core/test_answer.py::test_the_elements_of_a_reply_pass_as_they_came",
    ),
    ("reply element", "tid"): (_REPLY, "tests/core/test_answer.py::test_the_elements_of_a_reply_pass_as_they_came"),
    ("reply element", "trackers"): (_REPLY, "tests/cli/test_sent.py::test_a_delivered_interaction"),
    ("reply element", "captures"): (_REPLY, "tests/cli/test_sent.py::test_a_delivered_interaction"),
    ("reply element", "optimizations"): (_REPLY, "tests/cli/test_sent.py::test_a_delivered_interaction"),
    ("status code", "200"): (_REPLY,),
    ("status code", "400"): (_EXIT_CODES, "tests/test_run_single.py::test_a_bad_row_costs_one_call"),
    ("status code", "401"): (_EXIT_CODES, "tests/sandbox/test_app.py::test_an_unknown_token_is_401"),
    ("status code", "403"): (_EXIT_CODES, _SITE_KEY),
    ("status code", "404"): (_EXIT_CODES, "tests/sandbox/test_app.py::test_an_unknown_path_is_404"),
    ("status code", "405"): (_EXIT_CODES, "tests/sandbox/test_app.py::test_a_wrong_method_is_405"),
    ("status code", "500"): (_EXIT_CODES,),
}
"""Row → the tests (node ids) that show it."""


def test_every_row_of_the_reference_is_shown_and_no_other() -> None:
    """The evidence has the rows of the reference, each with a test."""
    rows = {(table, row) for table, names in REFERENCE.items() for row in names}
    assert SHOWN.keys() == rows
    assert all(SHOWN.values())


@cache
def names_in(file: str) -> frozenset[str]:
    """The names of a file's tests, as pytest finds them."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name[:5] == "test_")


@pytest.mark.parametrize("node", sorted({node for nodes in SHOWN.values() for node in nodes}))
def test_the_named_test_exists(node: str) -> None:
    """A test that is renamed or taken out is missed here."""
    file, _, name = node.partition("::")
    assert name in names_in(file)


@pytest.mark.parametrize("status", [code for code in REFERENCE["status code"] if code != "200"])
def test_the_test_of_a_status_code_asks_for_it(status: str) -> None:
    """The test of exit codes has a case for each status code of the reference: a name alone proves little."""
    source = (ROOT / "tests/test_send.py").read_text(encoding="utf-8")
    tree = next(
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name == _EXIT_CODES.partition("::")[2]
    )
    asked = [
        constant.value
        for constant in ast.walk(tree.decorator_list[0])
        if isinstance(constant, ast.Constant) and isinstance(constant.value, str)
    ]
    assert any(words.split(",")[0] == f"status={status}" for words in asked)


def test_the_tables_of_the_code_have_the_rows_of_the_reference() -> None:
    """Calls, elements of a request and of a reply: ours, and those that the sandbox was given on its own."""
    calls = set(REFERENCE["call"])
    assert {f"{call.method} {call.path}" for call in CALLS.values()} == calls
    assert {f"{call.method} {call.path}" for call in checks.CALLS} == calls
    assert {call.optimizations for call in CALLS.values() if call.method == "POST"} == {True}
    assert {call.optimizations for call in CALLS.values() if call.method != "POST"} == {False}
    assert set(ELEMENTS) == {*REFERENCE["body element"], "tid", "timestamp"}
    assert {"statusCode", "tid", *LISTS} == set(REFERENCE["reply element"])


@pytest.mark.parametrize("element", REFERENCE["body element"])
def test_the_sandbox_knows_each_element_and_no_other(element: str) -> None:
    """An element of the reference is taken; the same under another name is refused."""
    call = checks.CALLS[0]
    whole = {
        "url": "api://a",
        "customerKey": "1",
        "customerKeyName": "email",
        "properties": [{"name": "a", "value": "b"}],
        "device": [{"name": "ck", "value": "1234"}],
    }
    assert whole.keys() == set(REFERENCE["body element"])
    assert isinstance(checks.interactions_of(call, json.dumps(whole).encode()), checks.Accepted)
    renamed = {f"{name}x" if name == element else name: value for name, value in whole.items()}
    refused = checks.interactions_of(call, json.dumps(renamed).encode())
    assert isinstance(refused, checks.Fault)
    assert refused.status == 400
