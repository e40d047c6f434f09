"""What a command says: results on standard output, everything else on standard error.

Nothing here knows what it is told. Errors never show a value of a customer: a bug is reported by its place alone.
"""

import contextlib
import json
import sys
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


def result(text: str) -> None:
    """Writes to standard output, at once. Raises: BrokenPipeError, CannotWrite."""
    _to_stdout(text if text.endswith("\n") else text + "\n")


def result_bytes(content: bytes) -> None:
    """Writes bytes as they are to standard output. Raises: BrokenPipeError, CannotWrite."""
    binary = getattr(sys.stdout, "buffer", None)
    if binary is None:
        _to_stdout(content.decode())
        return
    with _telling():
        binary.write(content)


def result_object(value: Mapping[str, Any]) -> None:
    """Writes one JSON object on one line to standard output. Raises: BrokenPipeError, CannotWrite."""
    _to_stdout(json.dumps(value, ensure_ascii=False) + "\n")


def log(text: str) -> None:
    """Writes a line to standard error. That nobody listens there is no reason to stop."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def tell_error(message: str, exit_code: int, *, as_json: bool, before: str = "") -> None:
    """Tells why the command ended: a sentence on standard error, or with `as_json` one object on standard output."""
    if as_json:
        result_object({"error": {"message": message, "exit_code": int(exit_code)}})
        return
    if before:
        log(before + "\n")
    log(f"Error: {message}")


def tell_bug(error: BaseException, *, as_json: bool) -> None:
    """Tells where the program broke. Not what the exception says, since that may quote a row; `python -X dev` does."""
    if sys.flags.dev_mode:
        trace = "".join(traceback.format_exception(error))
    else:
        frames = traceback.format_list(traceback.extract_tb(error.__traceback__))
        # Frames quote our own source lines, which hold no data.
        kind = f"{type(error).__module__}.{type(error).__qualname__}"
        trace = f"Traceback (most recent call last):\n{''.join(frames)}{kind}"
    log(trace.rstrip())
    tell_error(
        f"This is a bug in backfill ({type(error).__name__}); please report it with the traceback. What was sent is "
        "safe in the journal, so running the same command again continues. The exception's own words are left out, "
        "since they may quote a row: `python -X dev -m backfill ...` shows them.",
        ExitCode.BUG,
        as_json=as_json,
    )


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
