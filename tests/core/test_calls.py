"""Our table of calls against the sandbox's, which was written from the API reference alone."""

from backfill.core.calls import CALLS
from backfill.sandbox import checks


def test_both_tables_say_the_same() -> None:
    """Two readings of one reference: name, method, path, one or many, timestamp, optimizations."""
    ours = {
        (name, call.method, call.path, call.many, call.historic, call.optimizations) for name, call in CALLS.items()
    }
    assert ours == {
        (call.name, call.method, call.path, call.many, call.offline, call.optimizations) for call in checks.CALLS
    }
    assert len(ours) == 4


def test_a_call_of_many_takes_a_hundred() -> None:
    """As the sandbox has it, and the others one."""
    assert {name: call.most for name, call in CALLS.items()} == {
        call.name: checks.MAX_INTERACTIONS if call.many else 1 for call in checks.CALLS
    }
