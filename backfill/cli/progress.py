"""Progress on standard error: a bar on a terminal, a line every few seconds elsewhere.

No colour anywhere, so NO_COLOR has nothing to turn off. A terminal that fails, or has hardly any room, never ends a
run. What a line says is decided in `render` and `meter`, from values alone.
"""

import os
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Never

from tqdm import tqdm

from backfill.cli import output
from backfill.cli.render import clock, duration, progress_line
from backfill.core.summary import Progress

LINE_EVERY_S = 5.0

DRAW_EVERY_S = 0.1
"""Ten times a second looks alive, and costs some 0.1% of a core."""

PACE_OVER_S = 30.0
"""Long enough to even out a push-back of the server, short enough to follow a rate that really changed."""

SHORTEST_BAR = 6
"""Columns below which a bar says less than the percentage beside it."""

_ALIGNED_FROM = 60
"""Columns from which there is room to write one phase's figures under those of another."""

_NO_END_S = 100 * 24 * 3600.0
"""A standstill: a time left beyond this would tell nobody anything."""

_UNKNOWN_WIDTH = 80


@contextmanager
def shown() -> Iterator[Callable[[Progress], None]]:
    """Yields the callable that `execute` reports to."""
    # A dumb terminal cannot go back to the beginning of its line.
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        bar = _Bar()
        try:
            yield bar.report
        finally:
            bar.close()
    else:
        yield Lines(output.log, time.monotonic).report


class Pace:
    """Rows a second over the last half minute of one phase. What earlier executions did does not count."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque()

    def note(self, now_s: float, rows: int) -> None:
        self._marks.append((now_s, rows))
        # One mark beyond the edge stays, so that rare reports still span the whole time.
        while len(self._marks) > 2 and self._marks[1][0] <= now_s - PACE_OVER_S:
            self._marks.popleft()

    @property
    def rows_per_s(self) -> float | None:
        """None in the first half second, of which nothing can be concluded."""
        if not self._marks:
            return None
        (from_s, before), (until_s, after) = self._marks[0], self._marks[-1]
        return (after - before) / (until_s - from_s) if until_s - from_s >= 0.5 else None


class Lines:
    """For log files: one line when a phase begins, then one every few seconds."""

    def __init__(self, write: Callable[[str], None], now_s: Callable[[], float]) -> None:
        self._write = write
        self._now_s = now_s
        self._began_s = now_s()
        self._phase = ""
        self._due_s = 0.0
        self._pace = Pace()

    def report(self, progress: Progress) -> None:
        now_s = self._now_s()
        if progress.phase != self._phase:
            self._pace = Pace()
        self._pace.note(now_s, progress.rows_done)
        if progress.phase == self._phase and now_s < self._due_s:
            return
        self._phase = progress.phase
        self._due_s = now_s + LINE_EVERY_S
        self._write(progress_line(progress, now_s - self._began_s, self._pace.rows_per_s))


def meter(
    progress: Progress, *, width: int, rows_per_s: float | None = None, ended_after_s: float | None = None
) -> str:
    """One line of at most `width` columns; `{bar}` in it stands where a bar fills what is left.

    Where there is no room for all, what is least needed is left out first, and nothing is cut in the middle: the bar,
    the share of the budget, the rows, the rate, the rows rejected, the time left, those in doubt.
    """
    done, total = progress.rows_done, progress.rows_total
    rows = f"{_short(done)} rows" if not total else f"{_short(done)}/{_short(total)} rows"
    share = f"{min(done, total) * 100 // total}%" if total else ""
    left_s = (total - done) / rows_per_s if total and rows_per_s and done < total else None
    ended = ended_after_s is not None
    # In the order of the line, each with how much it is needed (1: most).
    pieces = [
        (5, rows if share else ""),
        (4, f"{_short(round(rows_per_s))}/s" if rows_per_s and not ended else ""),
        (6, f"{progress.budget_share:.0%} budget" if progress.budget_share is not None and not ended else ""),
        (1, f"{_short(progress.in_doubt)} in doubt" if progress.in_doubt else ""),
        (3, f"{_short(progress.rejected)} rejected" if progress.rejected else ""),
        (2, f"in {duration(ended_after_s)}" if ended_after_s is not None else _left(left_s)),
    ]
    headings = [f"{progress.phase:<10} {share or rows:>4}", f"{progress.phase} {share or rows}", share or rows]
    head = next(
        (text for text in headings[width < _ALIGNED_FROM :] if len(text) <= width), headings[1][:width].rstrip()
    )
    told = [head]
    for needed in range(1, len(pieces) + 1):
        more = [head, *(text for rank, text in pieces if text and rank <= needed)]
        if len(", ".join(more)) > width:
            break
        told = more
    line = ", ".join(told)
    barred = f"{head}|{{bar}}| {', '.join(told[1:])}".rstrip()
    return barred if share and len(barred.replace("{bar}", "")) + SHORTEST_BAR <= width else line


def _left(left_s: float | None) -> str:
    if left_s is None or left_s > _NO_END_S:
        return ""
    return f"{clock(left_s)} left" if left_s >= 3600 else f"{clock(left_s)[3:]} left"


def _short(count: int) -> str:
    """Up to five digits as they are, larger ones as 123k, 1.23M."""
    return f"{count:,}" if count < 100_000 else tqdm.format_sizeof(count)


class _Tqdm(tqdm):  # type: ignore[type-arg]  # an iterator of nothing: we move it ourselves
    """Covers what stood on the line before as far as the line reaches now: tqdm's own padding would wrap in a
    terminal that has become narrower."""

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        def show(text: str) -> None:
            file.write("\r" + text.ljust(_width()))
            file.flush()

        return show


class _Bar:
    """For people: one bar per phase, the last state of each left standing."""

    def __init__(self) -> None:
        # tqdm would otherwise make a lock for several processes, which may start a helper process, and a thread
        # that watches the bar; neither has anything to do here.
        tqdm.set_lock(threading.RLock())
        tqdm.monitor_interval = 0
        self._bar: tqdm[Never] | None = None
        self._progress = Progress("", 0, None)
        self._pace = Pace()
        self._began_s = 0.0
        self._drawn_s = 0.0

    def report(self, progress: Progress) -> None:
        now_s = time.monotonic()
        begins = progress.phase != self._progress.phase
        if begins:
            self.close()
            self._pace = Pace()
            self._began_s = now_s
        self._progress = progress
        self._pace.note(now_s, progress.rows_done)
        if begins or now_s - self._drawn_s >= DRAW_EVERY_S:
            self._drawn_s = now_s
            self._draw(meter(progress, width=_width(), rows_per_s=self._pace.rows_per_s))

    def _draw(self, line: str) -> None:
        total, width = self._progress.rows_total, _width()
        if self._bar is None:
            # TQDM_* of the environment are overruled where they would change what stands here.
            self._bar = _Tqdm(
                total=total,
                initial=self._progress.rows_done,
                bar_format=line,
                ncols=width,
                dynamic_ncols=False,
                colour=None,
                leave=True,
                position=0,
                file=output.unbreakable_stderr(),
            )
            return
        self._bar.total, self._bar.n = total, self._progress.rows_done
        self._bar.bar_format, self._bar.ncols = line, width
        self._bar.refresh()

    def close(self) -> None:
        """Leaves the phase's last state standing, with how long it took."""
        if self._bar is not None:
            took_s = time.monotonic() - self._began_s
            self._draw(meter(self._progress, width=_width(), ended_after_s=took_s))
            self._bar.close()
            self._bar = None


def _width() -> int:
    """Columns that may be written: one less than there are, since some terminals wrap as the last one is filled."""
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        columns = 0
    # A terminal may not know its own width (a container's, say): then COLUMNS, or what most have.
    return max(1, (columns or shutil.get_terminal_size((_UNKNOWN_WIDTH, 24)).columns) - 1)
