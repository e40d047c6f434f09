"""Progress on standard error: a bar on a terminal, a line every few seconds elsewhere.

No colour anywhere, so NO_COLOR has nothing to turn off. A terminal that fails never ends a run.
"""

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Never

from tqdm import tqdm

from backfill.cli import output
from backfill.cli.render import counters, progress_line
from backfill.core.summary import Progress

LINE_EVERY_S = 5.0


@contextmanager
def shown() -> Iterator[Callable[[Progress], None]]:
    """Yields the callable that `execute` reports to."""
    if sys.stderr.isatty():
        bar = _Bar()
        try:
            yield bar.report
        finally:
            bar.close()
    else:
        yield Lines(output.log, time.monotonic).report


class Lines:
    """For log files: one line when a phase begins, then one every few seconds."""

    def __init__(self, write: Callable[[str], None], now_s: Callable[[], float]) -> None:
        self._write = write
        self._now_s = now_s
        self._began_s = now_s()
        self._phase = ""
        self._due_s = 0.0

    def report(self, progress: Progress) -> None:
        now_s = self._now_s()
        if progress.phase == self._phase and now_s < self._due_s:
            return
        self._phase = progress.phase
        self._due_s = now_s + LINE_EVERY_S
        self._write(progress_line(progress, now_s - self._began_s))


class _Bar:
    """For people: one bar per phase, the last state of each left standing."""

    def __init__(self) -> None:
        # tqdm would otherwise make a lock for several processes, which may start a helper process, and a thread
        # that watches the bar; neither has anything to do here.
        tqdm.set_lock(threading.RLock())
        tqdm.monitor_interval = 0
        self._bar: tqdm[Never] | None  # an iterator of nothing: we move it ourselves
        self._bar = None
        self._phase = ""
        # A terminal may not know its own width (a container's, say): tqdm would draw a bar of no width.
        self._width = None if _columns() else shutil.get_terminal_size().columns

    def report(self, progress: Progress) -> None:
        if self._bar is None or progress.phase != self._phase:
            self.close()
            self._phase = progress.phase
            self._bar = tqdm(
                desc=f"{progress.phase:<10}",
                total=progress.rows_total,
                initial=progress.rows_done,
                unit=" rows",
                unit_scale=True,
                file=output.unbreakable_stderr(),
                dynamic_ncols=self._width is None,
                ncols=self._width,
            )
        self._bar.total = progress.rows_total
        self._bar.set_postfix_str(counters(progress), refresh=False)
        self._bar.update(progress.rows_done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except OSError:
        return 0
