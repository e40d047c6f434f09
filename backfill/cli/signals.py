"""SIGTERM, SIGINT and SIGHUP become a `Stop`: nothing new, then the end; a second one means now.

Python runs a handler in the main thread, between two of its own steps; while polars works on a large piece there is
none, maybe for many seconds. So a thread reads beside it, from a pipe that the interpreter fills as a signal comes,
what came: it answers the person at once, and sees to it that a second signal ends the process. It may, since every
instant is a safe one to die in. Nothing of the job is known here.
"""

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self

from backfill.cli import output
from backfill.core.errors import ExitCode
from backfill.core.stop import Stop

AT_ONCE_S = 1.5
"""How long a second signal leaves the execution to end in good order: what is in flight is written down as in doubt,
the ledger is brought up to that. With the end of the process it stays under two seconds."""

_NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

FIRST = b"\nStopping: nothing new is sent, what is in flight is waited for. Once more stops at once.\n"
LAST = (
    "Stopped at once by a second signal. What was sent is safe in the journal; run the same command again to go on and "
    "to bring the ledger up to it."
)


def as_an_exception() -> None:
    """Lets Ctrl-C be an exception, so that a command can clean up; `__main__` turned that off for the imports."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def as_the_end() -> None:
    """The command has answered, and only the interpreter's end is left: signals shall not change that answer, nor
    Ctrl-C show a traceback. Its end puts the default in place of every handler, and death with it; but it leaves what
    is ignored.
    """
    for number in _NUMBERS:
        handler = signal.getsignal(number)
        if handler is signal.default_int_handler:
            signal.signal(number, signal.SIG_DFL)
        elif callable(handler):
            signal.signal(number, signal.SIG_IGN)


class Watch:
    """Signals ask for a stop while this is entered; afterwards they mean again what they meant before.

    Whoever leaves the process anyhow need not leave this: a late signal then cannot turn an answer into a death.
    `as_json`: the last words (`last`, when a second signal ends the process) are one object on standard output, unless
    `answered` says that there was one.
    """

    def __init__(self, stop: Stop, *, as_json: bool, last: str = LAST) -> None:
        self.answered = False
        self._stop = stop
        self._as_json = as_json
        self._last = last
        # A dropped connection to the terminal (SIGHUP) would otherwise kill the run, and leave what is in flight in
        # doubt; under nohup it is no news.
        ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
        self._numbers = [number for number in _NUMBERS if number not in ignored]

    def __enter__(self) -> Self:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        with self._held_back():  # for ever in that thread, which inherits it: a signal is for the main one
            self._thread.start()
        self._wakeup_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._before: dict[signal.Signals, Any] = {
            number: signal.signal(number, self._requested) for number in self._numbers
        }
        return self

    @contextlib.contextmanager
    def importing(self) -> Iterator[None]:
        """To be entered while polars is imported. Its import puts a handler before ours, with which Ctrl-C breaks off
        what it computes by a KeyboardInterrupt, wherever that is: half a ledger, and the exit code of an accident.
        Signals wait until ours is back, or one that comes in between would be nobody's.
        """
        with self._held_back():
            yield
            for number in self._numbers:
                signal.signal(number, self._requested)

    @contextlib.contextmanager
    def _held_back(self) -> Iterator[None]:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, self._numbers)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._write)  # which ends the thread
        self._thread.join()
        os.close(self._read)

    def _requested(self, _: int, __: FrameType | None) -> None:
        self._stop.request()

    def _listen(self) -> None:
        came = 0
        ends_s: float | None = None
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        while True:
            rest_s = None if ends_s is None else ends_s - time.monotonic()
            if rest_s is not None and rest_s <= 0:
                self._end()
            if not poll.poll(None if rest_s is None else rest_s * 1000):
                continue
            numbers = os.read(self._read, 64)
            if not numbers:
                return
            for number in numbers:
                came += number in self._numbers
                if came == 1:
                    _tell(2, FIRST)
                elif came > 1 and ends_s is None:
                    ends_s = time.monotonic() + AT_ONCE_S

    def _end(self) -> None:
        if not self._as_json:
            _tell(2, f"Error: {self._last}\n".encode())
        elif not self.answered:
            _tell(1, output.error_line(self._last, ExitCode.STOPPED_EARLY).encode())
        os._exit(ExitCode.STOPPED_EARLY)


def _tell(descriptor: int, words: bytes) -> None:
    """Straight to the descriptor, past the buffer of whom we interrupt; and not to one that would make us wait."""
    poll = select.poll()
    with contextlib.suppress(OSError):
        poll.register(descriptor, select.POLLOUT)
        if poll.poll(0):
            os.write(descriptor, words)
