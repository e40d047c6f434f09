"""A pseudo-terminal for whole commands, and what a person would see on it. Understands what progress may use: carriage
return, line end and text; anything else, a colour for instance, is told.
"""

import fcntl
import os
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.command import ROOT

GIVE_UP_S = 60.0


@dataclass
class Screen:
    """The lines of a terminal of some width. `wrapped` counts lines that the terminal broke by itself."""

    width: int
    lines: list[str] = field(default_factory=lambda: [""])
    wrapped: int = 0
    strange: set[str] = field(default_factory=set)
    _column: int = 0

    def write(self, text: str) -> None:
        for character in text:
            if character == "\r":
                self._column = 0
            elif character == "\n":
                self.lines.append("")
                self._column = 0
            elif character.isprintable():
                self._put(character)
            else:
                self.strange.add(character)

    def _put(self, character: str) -> None:
        if self._column == self.width:
            self.wrapped += 1
            self.lines.append("")
            self._column = 0
        line = self.lines[-1].ljust(self._column)
        self.lines[-1] = line[: self._column] + character + line[self._column + 1 :]
        self._column += 1

    @property
    def seen(self) -> list[str]:
        return [line.rstrip() for line in self.lines if line.strip()]


def resize(terminal: int, columns: int, lines: int = 24) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


def on_a_terminal(
    words: Sequence[str | Path],
    *,
    columns: int,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
    stdout_too: bool = False,
    meanwhile: Callable[[int, str], None] = lambda _, __: None,
    program: Sequence[str] = ("-m", "backfill"),
) -> tuple[int, str, str]:
    """Runs a command with standard error on a terminal (with `stdout_too` both): exit code, what the terminal got,
    what standard output got. `meanwhile` is called with the terminal and all that came, whenever more comes.
    """
    ours, theirs = os.openpty()
    resize(theirs, columns)
    ours_alone = ("BACKFILL_", "COLUMNS", "LINES", "NO_COLOR", "TERM")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours_alone)}
    process = subprocess.Popen(
        [sys.executable, *program, *map(str, words)],
        cwd=cwd,
        env=inherited | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "LANG": "C.UTF-8"} | dict(environment or {}),
        stdin=subprocess.DEVNULL,
        stdout=theirs if stdout_too else subprocess.PIPE,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    came = b""
    deadline_s = time.monotonic() + GIVE_UP_S
    try:
        while time.monotonic() < deadline_s:
            if not select.select([ours], [], [], 0.1)[0]:
                if process.poll() is not None:
                    break
                continue
            try:
                more = os.read(ours, 1 << 16)
            except OSError:  # EIO: the other end is closed
                break
            if not more:
                break
            came += more
            meanwhile(ours, came.decode(errors="replace"))
        out = process.stdout.read().decode() if process.stdout is not None else ""
        return process.wait(GIVE_UP_S), came.decode(), out
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
        os.close(ours)


def screen(text: str, width: int) -> Screen:
    """What a terminal of this width shows of all that came."""
    shown = Screen(width)
    shown.write(text)
    return shown
