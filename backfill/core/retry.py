"""Retry: how long to wait before the next try, and when to give up.

Draws no random number: the share of the jitter is passed in.
"""

from backfill.core.config import Delivery


def backoff_s(failures: int, delivery: Delivery, jitter: float) -> float:
    """The wait after so many failures in a row (1 or more): full jitter under a doubling, capped ceiling.

    `jitter` lies in [0, 1). With a base of 1 s the ceilings are 1, 2, 4, ... up to `backoff_max_s`.
    Full jitter, since lanes that failed together must not come back together.
    """
    doublings = min(failures - 1, 32)  # beyond that only the cap counts, and 2.0 ** 1024 overflows
    return float(jitter * min(delivery.backoff_max_s, delivery.backoff_base_s * 2.0**doublings))
