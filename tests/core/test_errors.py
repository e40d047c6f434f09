"""Exit codes are a contract with schedulers: their numbers, and which of them is answered."""

from itertools import combinations

import pytest

from backfill.core import errors
from backfill.core.errors import BackfillError, ExitCode, worst


def kinds() -> list[type[BackfillError]]:
    return [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, BackfillError)]


def test_the_numbers_are_the_documented_ones() -> None:
    """Schedulers are configured with them, so they never change."""
    assert {code.value: code.name for code in ExitCode} == {
        0: "COMPLETE",
        1: "BUG",
        2: "USAGE",
        3: "ROWS_REFUSED",
        4: "ROWS_IN_DOUBT",
        11: "JOB_HELD",
        74: "STORAGE_FAILED",
        75: "STOPPED_EARLY",
        77: "CREDENTIALS_REFUSED",
        78: "UNUSABLE",
    }


def test_where_several_codes_apply_the_documented_order_decides() -> None:
    """1 > 74 > 77 > 78 > 75 > 4 > 3 > 0, in any order of arguments."""
    ranked = [ExitCode(number) for number in (1, 74, 77, 78, 75, 4, 3, 0)]
    for higher, lower in combinations(ranked, 2):
        assert worst(higher, lower) is worst(lower, higher) is higher
    assert worst(*reversed(ranked)) is ExitCode.BUG


@pytest.mark.parametrize("kind", kinds())
def test_an_error_carries_its_sentence_and_its_code(kind: type[BackfillError]) -> None:
    """Whoever catches the family can tell both; only the family itself, which nobody raises, counts as a bug."""
    error = kind("Something happened. Do this.")
    assert error.message == str(error) == "Something happened. Do this."
    assert (error.exit_code is ExitCode.BUG) == (kind is BackfillError)
