"""When a server that does not answer usefully is asked one request at a time, and when no more."""

from backfill.core.breaker import RETRIES_FREE, Breaker


def test_open_until_the_first_useful_answer() -> None:
    """Slow start: a server that is down meets one request, not as many as there are connections."""
    breaker = Breaker(failures=5)
    assert breaker.open
    breaker.answered()
    assert not breaker.open


def test_it_opens_after_so_many_failures_in_a_row() -> None:
    """Not one earlier, and an answer between them begins the count anew."""
    breaker = Breaker(failures=3)
    breaker.answered()
    breaker.failed(probe=False)
    breaker.failed(probe=False)
    breaker.answered()
    breaker.failed(probe=False)
    breaker.failed(probe=False)
    assert not breaker.open
    breaker.failed(probe=False)
    assert breaker.open


def test_doubtful_probes_burn_and_others_do_not() -> None:
    """A probe that is refused (429, no connection) costs nothing that cannot be had again."""
    breaker = Breaker(failures=3)
    for _ in range(50):
        breaker.failed(probe=True)
        breaker.failed(probe=False, doubtful=True)
    assert not breaker.burns
    for _ in range(2):
        breaker.failed(probe=True, doubtful=True)
    assert not breaker.burns
    breaker.failed(probe=True, doubtful=True)
    assert breaker.burns


def test_an_answer_makes_good_for_doubtful_probes() -> None:
    """Only probes in a row burn."""
    breaker = Breaker(failures=3)
    for _ in range(20):
        breaker.failed(probe=True, doubtful=True)
        breaker.failed(probe=True, doubtful=True)
        breaker.answered()
    assert not breaker.burns


def test_only_failed_probes_make_the_wait_longer() -> None:
    """Sixteen requests that were in the air together and are all told to slow down are one event."""
    breaker = Breaker(failures=3)
    breaker.answered()
    for _ in range(16):
        breaker.failed(probe=False)
    assert breaker.open
    assert breaker.failed_probes == 0
    breaker.failed(probe=True)
    assert breaker.failed_probes == 1
    breaker.answered()
    assert breaker.failed_probes == 0


def test_the_retry_budget_is_half_of_all_calls() -> None:
    """And some that are free, so that a short job is not stopped by its first bad minute."""
    breaker = Breaker(failures=5)
    for _ in range(RETRIES_FREE):
        breaker.called()
        breaker.retried()
    assert not breaker.out_of_retries
    for _ in range(RETRIES_FREE):
        breaker.called()
        breaker.retried()
    assert not breaker.out_of_retries  # 200 of 200 + 100
    breaker.retried()
    assert breaker.out_of_retries
