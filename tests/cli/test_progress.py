"""Progress by plain values: what a line has room for, how the pace is taken, and one bar in a real terminal."""

import io
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backfill.cli import output
from backfill.cli.progress import SHORTEST_BAR, Lines, Pace, meter
from backfill.core.summary import Progress
from tests.terminal import on_a_terminal, screen

BUSY = Progress("delivering", 520_000, 1_000_000, requests=5_300, in_doubt=300, rejected=2, budget_share=0.98)


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (
            119,
            "delivering  52%|{bar}| 520k/1.00M rows, 1,950/s, 98% budget, 300 in doubt, 2 rejected, 04:06 left",
        ),
        (79, "delivering  52%, 520k/1.00M rows, 1,950/s, 300 in doubt, 2 rejected, 04:06 left"),
        (60, "delivering  52%|{bar}| 300 in doubt, 2 rejected, 04:06 left"),
        (42, "delivering 52%, 300 in doubt, 04:06 left"),
        (39, "delivering 52%|{bar}| 300 in doubt"),
        (19, "delivering 52%"),
        (5, "52%"),
        (2, "de"),
    ],
)
def test_what_there_is_room_for(width: int, line: str) -> None:
    """The narrower the terminal, the fewer figures, doubt last; none is cut in the middle."""
    assert meter(BUSY, width=width, rows_per_s=1_950) == line


def test_while_the_end_is_unknown() -> None:
    """Spooling knows rows and rate, but no share and no time left."""
    assert meter(Progress("spooling", 1_234_567, None), width=79, rows_per_s=400_000) == (
        "spooling   1.23M rows, 400k/s"
    )


def test_a_phase_that_is_over() -> None:
    """It keeps its rows and its faults, and says how long it took instead of how long it will."""
    assert meter(BUSY, width=79, rows_per_s=1_950, ended_after_s=725) == (
        "delivering  52%, 520k/1.00M rows, 300 in doubt, 2 rejected, in 12 min 05 s"
    )


def test_a_long_way_to_go_has_hours() -> None:
    """From an hour on the time left is told with hours, below without."""
    line = meter(Progress("delivering", 1, 72_001), width=79, rows_per_s=10)
    assert line == "delivering   0%|{bar}| 1/72,001 rows, 10/s, 02:00:00 left"


def test_a_phase_of_no_rows() -> None:
    """Nothing is divided by zero."""
    assert meter(Progress("settling", 0, 0), width=79, rows_per_s=0) == "settling   0 rows"


@given(
    st.builds(
        Progress,
        st.sampled_from(["spooling", "arranging", "delivering", "settling"]),
        st.integers(0, 10**10),
        st.none() | st.integers(0, 10**10),
        in_doubt=st.integers(0, 10**10),
        rejected=st.integers(0, 10**10),
        budget_share=st.none() | st.floats(0, 3),
    ),
    st.integers(1, 250),
    st.none() | st.floats(0, 1e9),
    st.none() | st.floats(0, 1e7),
)
def test_it_never_wraps(progress: Progress, width: int, rows_per_s: float | None, ended_after_s: float | None) -> None:
    """Whatever the figures: at most as many columns as there are, and a bar only where it can be seen."""
    line = meter(progress, width=width, rows_per_s=rows_per_s, ended_after_s=ended_after_s)
    assert len(line.replace("{bar}", "#" * SHORTEST_BAR)) <= width
    assert line == line.rstrip()


def test_the_pace_is_that_of_the_last_half_minute() -> None:
    """A server that slowed down a minute ago is not told as fast; what was done before counts for nothing."""
    pace = Pace()
    assert pace.rows_per_s is None
    pace.note(0, 1_000_000)
    assert pace.rows_per_s is None
    for second in range(1, 61):
        pace.note(second, 1_000_000 + second * 1_000)
    assert pace.rows_per_s == pytest.approx(1_000)
    for second in range(61, 121):
        pace.note(second, 1_060_000 + (second - 60) * 10)
    assert pace.rows_per_s == pytest.approx(10)


def test_a_standstill_is_no_pace() -> None:
    """While nothing moves no time left is promised."""
    pace = Pace()
    for second in range(120):
        pace.note(second, 7)
    assert pace.rows_per_s == 0
    assert "left" not in meter(BUSY, width=200, rows_per_s=pace.rows_per_s)


def test_lines_tell_the_rate_and_the_time_left() -> None:
    """A log has the same figures as the bar, in words."""
    now, lines = [0.0], list[str]()
    shown = Lines(lines.append, lambda: now[0])
    for second in range(11):
        now[0] = float(second)
        shown.report(Progress("delivering", second * 100, 10_000, requests=second, in_doubt=1, budget_share=0.5))
    assert lines == [
        "00:00:00 delivering 0 of 10,000 rows (0%), 50% of the budget, 1 in doubt",
        "00:00:05 delivering 500 of 10,000 rows (5%), 100 rows/s, 5 calls, 50% of the budget, 1 in doubt, "
        "1 min 35 s left",
        "00:00:10 delivering 1,000 of 10,000 rows (10%), 100 rows/s, 10 calls, 50% of the budget, 1 in doubt, "
        "1 min 30 s left",
    ]


# ------------------------------------------------------------------------------------------------ on a real terminal

SHOW = (
    "-c",
    "import time\n"
    "from backfill.cli.progress import shown\n"
    "from backfill.core.summary import Progress\n"
    "with shown() as report:\n"
    "    report(Progress('spooling', 5, None))\n"
    "    report(Progress('delivering', 0, 200))\n"
    "    for done in range(0, 101, 10):\n"
    "        time.sleep(0.12)\n"
    "        report(Progress('delivering', done, 200, requests=3, in_doubt=1, budget_share=0.5))\n",
)


@pytest.mark.parametrize(("columns", "width"), [(100, 100), (40, 40), (20, 20), (3, 3), (0, 80)])
def test_a_terminal_gets_a_bar(tmp_path: Path, columns: int, width: int) -> None:
    """Each phase has a line of its own that is redrawn in place and never wraps, of whatever width; unknown: 80."""
    code, came, _ = on_a_terminal([], columns=columns, cwd=tmp_path, program=SHOW)
    shown = screen(came, width)
    assert (code, shown.wrapped, shown.strange) == (0, 0, set())
    assert len(shown.seen) == 2
    if width >= 40:
        assert re.fullmatch(r"spooling +5 rows, in 0\.\d s", shown.seen[0])
        assert re.fullmatch(r"delivering +50%.*1 in doubt, in \d\.\d s", shown.seen[1])
    if width >= 80:
        assert "█" in shown.seen[1]
        assert "50% budget" in came


def test_columns_tell_the_width_where_the_terminal_does_not(tmp_path: Path) -> None:
    """As the shell and other tools have it."""
    _, came, _ = on_a_terminal([], columns=0, cwd=tmp_path, program=SHOW, environment={"COLUMNS": "30"})
    assert max(len(part) for part in re.split("[\r\n]", came)) == 29


def test_a_terminal_without_unicode_gets_plain_signs(tmp_path: Path) -> None:
    """The bar is drawn with what the terminal's encoding has."""
    _, came, _ = on_a_terminal([], columns=100, cwd=tmp_path, program=SHOW, environment={"PYTHONIOENCODING": "ascii"})
    assert came.isascii()
    assert "###" in came


def test_a_dumb_terminal_gets_lines(tmp_path: Path) -> None:
    """One that cannot go back to the beginning of its line is treated like a file."""
    _, came, _ = on_a_terminal([], columns=80, cwd=tmp_path, program=SHOW, environment={"TERM": "dumb"})
    assert "00:00:00 spooling 5 rows" in came
    assert "|" not in came


def test_a_failing_terminal_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress on a terminal that is gone is swallowed; the run goes on."""

    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(5, "Input/output error")

        def flush(self) -> None:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    output.log("delivering")
    stream = output.unbreakable_stderr()
    assert stream.write("x") == 0
    stream.flush()
