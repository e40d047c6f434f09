"""The sandbox's own truth: what it received and what it applied, as JSON lines that tests compare the client with.

`applied.jsonl`   one line per applied request, written before the reply is sent:
                  {"at", "call", "sk", "tid", "user_agent", "interactions": [... as received ...]}, and "positions"
                  (from 0, of its interactions) where only some of them were applied
`requests.jsonl`  one line per request whose head arrived, written when its fate is known, just before it is answered:
                  {"at", "answered_at", "method", "path", "call", "status", "rule", "applied", "interactions",
                   "sha256", "user_agent"}

Times are epoch seconds. `call` is one of the four calls, "token", or null. `status` is null where no whole reply was
sent; `rule` is the text of the misbehaviour that decided, or null. `sha256` is of the body, null where it was not
read to its end. Lines are never rewritten; a sandbox started again on the same folder goes on below them.
Holds customers' values, so only the owner may read it. Never holds a token.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(kw_only=True, slots=True)
class Received:
    """One request as the log will tell it; filled in while it is handled."""

    at_s: float
    method: str
    path: str
    user_agent: str
    call: str | None = None
    status: int | None = None
    rule: str | None = None
    applied: bool = False
    interactions: int | None = None
    sha256: str | None = None


class Log:
    """Appends to the two files of one folder."""

    def __init__(self, folder: Path) -> None:
        """Opens the files and makes the folder. Raises: OSError."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder
        self._applied = _append_to(folder / "applied.jsonl")
        self._requests = _append_to(folder / "requests.jsonl")

    def applied(
        self,
        *,
        at_s: float,
        call: str,
        sk: str,
        tid: str | None,
        user_agent: str,
        interactions: bytes,
        positions: Sequence[int] | None = None,
    ) -> None:
        """Remembers an applied request; `interactions` is a JSON array on one line. Raises: OSError.

        `positions`: where in the request they stood, from 0, if only some were applied.
        """
        fields = {"at": at_s, "call": call, "sk": sk, "tid": tid, "user_agent": user_agent}
        if positions is not None:
            fields["positions"] = positions
        head = json.dumps(fields)
        _write(self._applied, b'%b, "interactions": %b}\n' % (head[:-1].encode(), interactions))

    def received(self, request: Received, answered_at_s: float) -> None:
        """Remembers a request and how it ended. Raises: OSError."""
        line = json.dumps(
            {
                "at": request.at_s,
                "answered_at": answered_at_s,
                "method": request.method,
                "path": request.path,
                "call": request.call,
                "status": request.status,
                "rule": request.rule,
                "applied": request.applied,
                "interactions": request.interactions,
                "sha256": request.sha256,
                "user_agent": request.user_agent,
            }
        )
        _write(self._requests, line.encode() + b"\n")

    def close(self) -> None:
        os.close(self._applied)
        os.close(self._requests)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _append_to(path: Path) -> int:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.fchmod(descriptor, 0o600)  # whatever the umask
    return descriptor


def _write(descriptor: int, line: bytes) -> None:
    # One call per line: a reader, or a kill, finds whole lines only.
    written = os.write(descriptor, line)
    if written != len(line):
        os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
        raise OSError("The sandbox's log could not be written whole. Is the disk full?")
