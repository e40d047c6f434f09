"""The granted rate follows what the tenant bears."""

from tests.adaptive import figure, observe


def test_the_rate_adapts_down_and_back() -> None:
    """At a quarter of the budget most of it is used with few refusals; when the limit is lifted, all of it is again."""
    tenant, ended_s = observe()
    assert ended_s >= 290, "the work ran out before the phases did"
    low = range(80, 180)
    assert sum(tenant.taken[second] for second in low) >= 0.7 * 10 * len(low)
    assert sum(tenant.refused[second] for second in low) <= 0.05 * 10 * len(low)
    assert sum(tenant.taken[second] for second in range(240, 290)) >= 0.98 * 40 * 50
    assert "|" in figure(tenant)
