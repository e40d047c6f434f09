"""The grammar and the counting of misbehaviour rules, as plain values."""

import re

import pytest

from backfill.sandbox.misbehaviour import Answer, Hangup, Misbehaviour, Rubbish, parse, parse_all


def fired(*texts: str, requests: int, seed: int = 0) -> list[list[int]]:
    """For each request, the places of the rules that apply."""
    misbehaviour = Misbehaviour(parse_all(texts), seed=seed)
    return [sorted(misbehaviour.at_head("calls")) for _ in range(requests)]


def test_a_rule_says_what_happens() -> None:
    """Each kind of trouble parses to its own value."""
    assert parse("status=429,retry_after=2").trouble == Answer(429, "2", None, applied=False)
    assert parse("status=500, applied=yes").trouble == Answer(500, None, None, applied=True)
    assert parse("drop=before").trouble == Hangup("before", reset=False)
    assert parse("reset=after").trouble == Hangup("after", reset=True)
    assert parse("body=html").trouble == Rubbish("html", 500, applied=True)
    assert parse("body=mismatch,status=400").trouble == Rubbish("mismatch", 400, applied=False)
    waits = parse("latency_ms=50,hold_s=5")
    assert (waits.trouble, waits.latency_s, waits.hold_s) == (None, 0.05, 5.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "`` is no word of a rule"),
        ("sttus=503", "the nearest is `status`"),
        ("chaos=1", "known are status,"),
        ("status", "`status` needs a value"),
        ("status=", "`status` needs a value"),
        ("status=500,status=503", "given twice"),
        ("status=200", "300 or more"),
        ("status=600", "from 300 to 599"),
        ("status=abc", "whole number"),
        ("status=500,drop=after", "one trouble"),
        ("drop=after,reset=after", "one trouble"),
        ("body=html,status=400", "one trouble"),
        ("drop=later", "before, read, after"),
        ("body=rubbish", "html, empty"),
        ("applied=yes,latency_ms=5", "`applied` goes with status or body"),
        ("retry_after=2,body=html", "`retry_after` goes with status"),
        ("every=7", "it says no trouble"),
        ("latency_ms=0", "it says no trouble"),
        ("latency_ms=-1", "`latency_ms` must be a number"),
        ("hold_s=nan", "`hold_s` must be a number"),
        ("status=500,every=0", "`every` must be a whole number, 1 or more"),
        ("status=500,share=1.5", "`share` must be a number from 0 to 1"),
        ("status=500,after=5,until=5", "`until` must be more than `after`"),
        ("status=500,seed=1", "`seed` belongs to `share`"),
        ("status=500,when=property:x", "`when` must be"),
        ("status=500,when=key_contains:", "`when` must be"),
        ("status=500,when=bytes_over:x", "`when` must be"),
        ("status=500,on=token,when=key_contains:x", "have none"),
        ("drop=before,when=key_contains:x", "write `read` instead"),
        ("status=500,on=tokens", "calls, token"),
    ],
)
def test_a_rule_that_cannot_be_used_says_why(text: str, words: str) -> None:
    """A bad rule is a ValueError that quotes the rule and says what is wrong."""
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        parse(text)
    assert str(caught.value).startswith(f"The rule {text!r} cannot be used: ")


def test_counting() -> None:
    """after, until and every count the requests that the rule looks at."""
    every, window = "status=500,every=3", "status=500,after=2,until=6,every=2"
    assert [bool(places) for places in fired(every, requests=7)] == [False, False, True] * 2 + [False]
    assert [n for n, places in enumerate(fired(window, requests=9), start=1) if places] == [4, 6]


def test_a_share_is_random_but_repeatable() -> None:
    """The same seed gives the same requests, another one others, and a share is about what it says."""
    rule = "status=500,share=0.25"
    first = fired(rule, requests=2000, seed=1)
    assert first == fired(rule, requests=2000, seed=1)
    assert first != fired(rule, requests=2000, seed=2)
    assert 400 < sum(map(len, first)) < 600
    assert fired(f"{rule},seed=9", requests=50, seed=1) == fired(f"{rule},seed=9", requests=50, seed=2)


def test_two_rules_draw_apart() -> None:
    """Rules with the same share do not hit the same requests."""
    both = fired("status=500,share=0.5", "latency_ms=5,share=0.5", requests=200)
    assert {tuple(places) for places in both} == {(), (0,), (1,), (0, 1)}


def test_waits_add_up_and_the_first_trouble_wins() -> None:
    """Of several rules the first decides what happens, but a drop before reading comes first in time."""
    misbehaviour = Misbehaviour(parse_all(["latency_ms=50", "status=500,latency_ms=25", "drop=after", "drop=before"]))
    verdict = misbehaviour.verdict({0: None, 1: None, 2: None})
    assert verdict.latency_s == pytest.approx(0.075)
    assert verdict.rule == "status=500,latency_ms=25"
    assert misbehaviour.verdict({1: None, 3: None}).rule == "drop=before"


def test_when_counts_only_what_it_matches() -> None:
    """With `when`, the first request that matches is the first that counts; its position is told."""
    misbehaviour = Misbehaviour(parse_all(["status=400,when=property:vip=true,until=1"]))
    plain = {"customerKey": "1", "properties": [{"name": "vip", "value": False}]}
    asked = {"customerKey": "2", "properties": [{"name": "vip", "value": True}]}
    seen = [misbehaviour.at_body({}, batch, 100) for batch in ([plain], [plain, asked], [asked])]
    assert seen == [{}, {0: 2}, {}]


def test_when_by_key_and_by_size() -> None:
    """key_contains finds the interaction; bytes_over concerns the whole body."""
    misbehaviour = Misbehaviour(parse_all(["status=400,when=key_contains:99", "status=413,when=bytes_over:1000"]))
    assert misbehaviour.at_body({}, [{}, {"customerKey": "1990"}], 1000) == {0: 2}
    assert misbehaviour.at_body({}, [{"customerKey": "1"}], 1001) == {1: None}
