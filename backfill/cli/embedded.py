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
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from backfill.core.errors import StoppedEarly, Unusable

START_TIMEOUT_S = 30.0
"""A cold start on a busy machine takes some seconds."""

LOOK_EVERY_S = 0.05
"""How often the wait for the start looks whether it shall go on."""

END_TIMEOUT_S = 5.0


@contextlib.contextmanager
def sandbox(folder: Path, *, stopped: Callable[[], bool] = lambda: False) -> Iterator[str]:
    """Runs a sandbox that remembers in `folder` what it applies, and yields its base URL.

    Raises: Unusable where it does not start, with its own words; StoppedEarly where `stopped()` before it has.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)  # whatever the umask
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
        try:
            base_url = _base_url(process, words, stopped)
        except StoppedEarly:
            process.kill()  # it is still starting, and would not see before it has started that it need not
            raise
        yield base_url
    finally:
        _end(process)


def _private(path: str, flags: int) -> int:
    descriptor = os.open(path, flags, 0o600)
    os.fchmod(descriptor, 0o600)  # whatever the umask
    return descriptor


def _base_url(process: "subprocess.Popen[bytes]", words: Path, stopped: Callable[[], bool]) -> str:
    assert process.stdout is not None
    give_up_s = time.monotonic() + START_TIMEOUT_S
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while not (said_something := bool(selector.select(LOOK_EVERY_S))) and time.monotonic() < give_up_s:
            if stopped():
                raise StoppedEarly(
                    "Stopped by a signal while the sandbox started; nothing was sent. Run the same command again."
                )
        line = process.stdout.readline() if said_something else b""
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
