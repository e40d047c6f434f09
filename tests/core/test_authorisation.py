"""One token for all, asked for by one, and what a 401 means."""

import math

from backfill.core.authorisation import YOUNG_S, Authorisation


def granted(at_s: float = 0.0) -> Authorisation:
    """With its first token."""
    authorisation = Authorisation()
    authorisation.asked()
    authorisation.granted(at_s)
    return authorisation


def test_one_token_is_asked_for_at_a_time() -> None:
    """Wanted at once, and not again while the answer is awaited."""
    authorisation = Authorisation()
    assert authorisation.wanted_at_s == -math.inf
    authorisation.asked()
    assert authorisation.wanted_at_s == math.inf
    authorisation.granted(0.0)
    assert authorisation.valid
    assert authorisation.wanted_at_s == math.inf


def test_an_endpoint_that_fails_is_asked_again_later() -> None:
    """Failures in a row are counted, a token begins anew."""
    authorisation = Authorisation()
    authorisation.asked()
    authorisation.failed()
    authorisation.not_before(7.0)
    assert (authorisation.wanted_at_s, authorisation.failures) == (7.0, 1)
    authorisation.asked()
    authorisation.granted(8.0)
    assert authorisation.failures == 0


def test_an_expiry_is_noticed_once() -> None:
    """Those in the air with the old token are refused after the new one has come, which stays valid."""
    authorisation = granted()
    authorisation.let_in(1)
    authorisation.refused(1, 0.0)
    assert (authorisation.valid, authorisation.suspect) == (False, False)
    authorisation.asked()
    authorisation.granted(1.0)
    authorisation.refused(1, 0.0)
    assert (authorisation.valid, authorisation.generation) == (True, 2)


def test_a_token_that_lets_nobody_in_is_suspect() -> None:
    """No other is asked for before it is known whether its first use was a refusal."""
    authorisation = granted()
    authorisation.refused(1, 0.0)
    assert authorisation.suspect
    assert authorisation.wanted_at_s == math.inf


def test_a_reply_that_was_overtaken_clears_it() -> None:
    """It let somebody in, so it has expired and nothing else."""
    authorisation = granted()
    authorisation.refused(1, 0.0)
    authorisation.let_in(1)
    assert not authorisation.suspect
    assert authorisation.wanted_at_s == -math.inf


def test_an_old_token_may_have_expired_unused() -> None:
    """A server that could not be reached for a minute says nothing about the credentials."""
    authorisation = granted(10.0)
    authorisation.refused(1, 10.0 + YOUNG_S)
    assert not authorisation.suspect
    assert authorisation.wanted_at_s == -math.inf
