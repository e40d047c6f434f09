"""The embedded sandbox of `run --sandbox`: a process of its own that lives as long as the execution.

Started as a program, never forked, so it cannot keep the job's lock; in a session of its own, so that Ctrl-C, which
a terminal sends to a whole group, does not take it away while requests are in flight.
"""

import contextlib
import json
import os
import selectors
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from backfill.core.errors import Unusable

START_TIMEOUT_S = 30.0
"""A cold start on a busy machine takes some seconds."""

END_TIMEOUT_S = 5.0


@contextlib.contextmanager
def sandbox(folder: Path) -> Iterator[str]:
    """Runs a sandbox that remembers in `folder` what it applies, and yields its base URL.

    Raises: Unusable where it does not start, with its own words.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    words = folder / "stderr.log"
    command = [sys.executable, "-m", "backfill", "sandbox", "--json", "--exit-with-parent", "--port", "0"]
    # The real tenant's settings and secrets are none of its business.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BACKFILL_")}
    with open(words, "wb", opener=_private) as stderr:
        process = subprocess.Popen(  # noqa: S603  # our own program
            [*command, "--log", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
            start_new_session=True,
        )
    try:
        yield _base_url(process, words)
    finally:
        _end(process)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _base_url(process: "subprocess.Popen[bytes]", words: Path) -> str:
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        line = process.stdout.readline() if selector.select(START_TIMEOUT_S) else b""
    try:
        said = json.loads(line)
        return str(said["base_url"])
    except (ValueError, KeyError, TypeError):
        pass
    reason = _told(line) or next(iter(reversed(words.read_text(errors="replace").split("\n")[:-1])), "it said nothing")
    raise Unusable(f"The sandbox did not start: {reason}")


def _told(line: bytes) -> str | None:
    """The message of an `{"error": ...}` object."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(line)["error"]["message"])
    return None


def _end(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(OSError):
        process.stdin.close()  # which it takes for our end
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_TIMEOUT_S)
    if process.poll() is None:
        process.kill()
        process.wait()
    process.stdout.close()
