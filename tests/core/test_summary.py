"""The account by plain values: the closing equation, how many rows may be refused, which code is answered."""

from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backfill.core.errors import ExitCode
from backfill.core.summary import OUTCOMES, ExportCounts, Summary, exit_code, refused_limit


def counts(*, read: int | None = None, **outcomes: int) -> ExportCounts:
    return ExportCounts(
        export="june.csv", load=1, read=sum(outcomes.values()) if read is None else read, outcomes=outcomes
    )


def code(
    *exports: ExportCounts,
    max_rejected: str | int = "1%",
    max_in_doubt: int = 0,
    stopped: ExitCode = ExitCode.COMPLETE,
) -> ExitCode:
    return exit_code(exports, max_rejected=max_rejected, max_in_doubt=max_in_doubt, stopped=stopped)


@given(outcomes=st.fixed_dictionaries(dict.fromkeys(OUTCOMES, st.integers(0, 9))), off=st.integers(-2, 2))
def test_the_equation_closes_only_if_every_row_has_an_outcome(outcomes: dict[str, int], off: int) -> None:
    """All seven outcomes count, and a row too many is as wrong as one too few."""
    assert counts(read=sum(outcomes.values()) + off, **outcomes).balanced == (off == 0)


def test_one_unbalanced_export_spoils_the_summary() -> None:
    """A row missing here and one too many there do not make it whole."""

    def summary(*exports: ExportCounts) -> Summary:
        return Summary(
            exports=exports,
            exit_code=ExitCode.COMPLETE,
            ledger="",
            state="",
            execution=1,
            requests=0,
            duration_s=0.0,
        )

    good = counts(delivered=3, invalid=1)
    assert summary(good, good).balanced
    assert (summary(good, good).read, summary(good, good).count("delivered")) == (8, 6)
    assert not summary(good, counts(read=5, delivered=4), counts(read=3, delivered=4)).balanced


@pytest.mark.parametrize(
    ("max_rejected", "read", "rows"), [("1%", 250, 2), ("1%", 99, 0), ("100%", 7, 7), ("0%", 1000, 0), (5, 2, 5)]
)
def test_a_share_is_rounded_down(max_rejected: str | int, read: int, rows: int) -> None:
    """1% of 250 rows are 2; a count is that count."""
    assert refused_limit(max_rejected, read) == rows


@given(hundredths=st.integers(0, 10_000), read=st.integers(0, 10**9))
@example(hundredths=57, read=10_000)
def test_a_share_is_counted_exactly(hundredths: int, read: int) -> None:
    """As with pencil and paper: 0.57% of 10,000 are 57 rows, though a float makes 56 of them."""
    share = f"{hundredths // 100}.{hundredths % 100:02}%"
    assert refused_limit(share, read) == Fraction(hundredths, 10_000) * read // 1


def test_all_rows_settled_is_complete() -> None:
    """Duplicates and abandoned rows are final, too; no export at all is complete as well."""
    assert code(counts(delivered=99, duplicate=5, abandoned=2)) is ExitCode.COMPLETE
    assert code() is ExitCode.COMPLETE


@pytest.mark.parametrize(("invalid", "rejected", "said"), [(1, 1, ExitCode.COMPLETE), (1, 2, ExitCode.ROWS_REFUSED)])
def test_invalid_and_rejected_rows_share_one_limit(invalid: int, rejected: int, said: ExitCode) -> None:
    """Two of 200 are 1%, three are more."""
    assert code(counts(read=200, delivered=200 - invalid - rejected, invalid=invalid, rejected=rejected)) is said


def test_the_limit_counts_per_export() -> None:
    """A bad small export is not hidden by a good large one."""
    assert code(counts(delivered=10_000), counts(delivered=8, rejected=2)) is ExitCode.ROWS_REFUSED


@pytest.mark.parametrize(("allowed", "said"), [(2, ExitCode.ROWS_IN_DOUBT), (3, ExitCode.COMPLETE)])
def test_doubt_counts_over_all_exports(allowed: int, said: ExitCode) -> None:
    """One here and two there are three."""
    assert code(counts(in_doubt=1), counts(delivered=5, in_doubt=2), max_in_doubt=allowed) is said


def test_unsent_rows_mean_stopped_early() -> None:
    """Whatever the reason: a scheduler must run again."""
    assert code(counts(delivered=5, unsent=1)) is ExitCode.STOPPED_EARLY


def test_the_worst_code_is_answered() -> None:
    """A stop goes before doubt, doubt before refused rows; the reason of a stop is kept."""
    refused, doubtful = counts(rejected=5), counts(in_doubt=5)
    assert code(refused, doubtful) is ExitCode.ROWS_IN_DOUBT
    assert code(refused, doubtful, counts(unsent=1)) is ExitCode.STOPPED_EARLY
    assert code(counts(unsent=1), stopped=ExitCode.CREDENTIALS_REFUSED) is ExitCode.CREDENTIALS_REFUSED
