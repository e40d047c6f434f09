"""What a command says: results on standard output, everything else on standard error.

Nothing here knows what it is told. Errors never show a value of a customer: a bug is reported by its place alone.
"""

import contextlib
import json
import os
import re
import sys
import textwrap
import threading
import traceback
from collections.abc import Mapping
from typing import Any, TextIO, cast

from backfill.core.errors import ExitCode


class CannotWrite(OSError):
    """Standard output takes no more, for another reason than that its reader went away."""


def make_forgiving() -> None:
    """Lets a name that the terminal's encoding does not know be shown escaped, instead of ending the command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def plain(text: str) -> str:
    """The text with what would move a cursor, change a colour or a direction, or hide, spelled out: `\\x1b`.

    Names of files are in what we say, and whoever made them is not always a friend. Lines stay.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character == "\n" else character.encode("unicode_escape").decode()
        for character in text
    )


def result(text: str) -> None:
    """Writes to standard output, at once. Raises: BrokenPipeError, CannotWrite."""
    _to_stdout(plain(text if text.endswith("\n") else text + "\n"))


def account(text: str) -> None:
    """Like `result`, for labelled sentences: on a terminal they are broken between words, under their labels.

    Raises: BrokenPipeError, CannotWrite.
    """
    width = 0
    if sys.stdout.isatty():
        with contextlib.suppress(OSError, ValueError):
            width = os.get_terminal_size(sys.stdout.fileno()).columns
    result(fitted(text, width) if width else text)


_LABEL = re.compile(r"\S+(?: \d+)? {2,}| *")
_COMMAND = re.compile(r"`[^`]*`")
_KEPT = "\0"


def fitted(text: str, width: int) -> str:
    """The text in lines of at most `width` columns; what continues stands under what it continues.

    Words and commands (in backticks) stay whole, so that they can be copied: a longer one is left to the terminal.
    """
    lines = []
    for line in text.splitlines():
        label = _LABEL.match(line)
        indent = " " * (label.end() if label is not None and label.end() * 2 <= width else 0)
        whole = _COMMAND.sub(lambda found: found[0].replace(" ", _KEPT), line)
        if label is not None:  # no label shall stand alone
            whole = label[0].replace(" ", _KEPT) + whole[label.end() :]
        broken = textwrap.wrap(
            whole,
            max(width, len(indent) + 1),
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
            drop_whitespace=True,
        )
        lines += [part.replace(_KEPT, " ") for part in broken] if len(line) > width else [line]
    return "\n".join(lines) + "\n"


def result_bytes(content: bytes) -> None:
    """Writes bytes to standard output: as they are, but for a terminal. Raises: BrokenPipeError, CannotWrite."""
    binary = getattr(sys.stdout, "buffer", None)
    if binary is None or sys.stdout.isatty():
        content = plain(content.decode(errors="backslashreplace")).encode(errors="backslashreplace")
    if binary is None:
        _to_stdout(content.decode())
        return
    with _telling():
        binary.write(content)


def result_object(value: Mapping[str, Any]) -> None:
    """Writes one JSON object on one line to standard output. Raises: BrokenPipeError, CannotWrite."""
    _to_stdout(_json_line(value))


def log(text: str) -> None:
    """Writes a line to standard error. That nobody listens there is no reason to stop."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(plain(text) + "\n")
        sys.stderr.flush()


def tell_error(message: str, exit_code: int, *, as_json: bool, before: str = "") -> None:
    """Tells why the command ended: a sentence on standard error, or with `as_json` one object on standard output."""
    if as_json:
        _to_stdout(error_line(message, exit_code))
        return
    if before:
        log(before + "\n")
    log(f"Error: {message}")


def tell_bug(error: BaseException, *, as_json: bool) -> None:
    """Tells where the program broke. Not what the exception says, since that may quote a row; `python -X dev` does."""
    log(_trace(error))
    tell_error(
        f"This is a bug in backfill ({type(error).__name__}); please report it with the traceback. What was sent is "
        "safe in the journal, so running the same command again continues. The exception's own words are left out, "
        "since they may quote a row: `python -X dev -m backfill ...` shows them.",
        ExitCode.BUG,
        as_json=as_json,
    )


def make_discreet() -> None:
    """Lets an error that nobody catches, in a thread or while something is thrown away, tell its place alone too."""
    if not sys.flags.dev_mode:
        sys.unraisablehook = lambda told: log(_trace(told.exc_value))
        threading.excepthook = lambda told: log(_trace(told.exc_value))


def _trace(error: BaseException | None) -> str:
    if error is None:
        return "An error of which nothing is known."
    if sys.flags.dev_mode:
        return "".join(traceback.format_exception(error)).rstrip()
    # Frames quote our own source lines, which hold no data.
    frames = traceback.format_list(traceback.extract_tb(error.__traceback__))
    kind = f"{type(error).__module__}.{type(error).__qualname__}"
    return f"Traceback (most recent call last):\n{''.join(frames)}{kind}"


def error_line(message: str, exit_code: int) -> str:
    """The one JSON object, on one line, that says why a command ended."""
    return _json_line({"error": {"message": message, "exit_code": int(exit_code)}})


def _json_line(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, ensure_ascii=False)
    if not text.isprintable():  # JSON escapes what is below a blank, and leaves the other invisible characters
        text = "".join(character if character.isprintable() else json.dumps(character)[1:-1] for character in text)
    return text + "\n"


class Unbreakable:
    """A text stream that swallows a failing terminal: progress must never end a run."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            return self._stream.write(text)
        return 0

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def unbreakable_stderr() -> TextIO:
    return cast("TextIO", Unbreakable(sys.stderr))


def _to_stdout(text: str) -> None:
    with _telling():
        sys.stdout.write(text)
        sys.stdout.flush()


@contextlib.contextmanager
def _telling() -> Any:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CannotWrite(error.errno, error.strerror) from error
