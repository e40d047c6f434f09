"""Errors that stop a command, each with the exit code a scheduler reads.

    BackfillError
    ├── UsageError            2   the command line is wrong
    ├── JobHeld              11   another execution holds the job
    ├── StorageError         74   journal or disk failed
    ├── StoppedEarly         75   a rerun continues
    ├── CredentialsRefused   77
    └── Unusable             78   configuration or input cannot be used
        ├── ConfigurationError
        └── ExportError

A message says what happened, where, and what to do next. What happens to single rows is never an
error: it is a value in the ledger.
"""

from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """What the process answers; several at once are ranked by `worst`."""

    COMPLETE = 0
    BUG = 1
    USAGE = 2
    ROWS_REFUSED = 3
    ROWS_IN_DOUBT = 4
    JOB_HELD = 11
    STORAGE_FAILED = 74
    STOPPED_EARLY = 75
    CREDENTIALS_REFUSED = 77
    UNUSABLE = 78


_RANK = (
    ExitCode.BUG,
    ExitCode.STORAGE_FAILED,
    ExitCode.CREDENTIALS_REFUSED,
    ExitCode.UNUSABLE,
    ExitCode.STOPPED_EARLY,
    ExitCode.ROWS_IN_DOUBT,
    ExitCode.ROWS_REFUSED,
    ExitCode.COMPLETE,
)


def worst(*codes: ExitCode) -> ExitCode:
    """The code to answer where several apply. Usage and a held job never meet others: they end a command at once."""
    return min(codes, key=_RANK.index)


class BackfillError(Exception):
    """Stops the command with a sentence for a person and a code for a scheduler."""

    exit_code: ClassVar[ExitCode] = ExitCode.BUG

    @property
    def message(self) -> str:
        return str(self.args[0])


class UsageError(BackfillError):
    exit_code = ExitCode.USAGE


class JobHeld(BackfillError):
    exit_code = ExitCode.JOB_HELD


class StorageError(BackfillError):
    exit_code = ExitCode.STORAGE_FAILED


class StoppedEarly(BackfillError):
    exit_code = ExitCode.STOPPED_EARLY


class CredentialsRefused(BackfillError):
    exit_code = ExitCode.CREDENTIALS_REFUSED


class Unusable(BackfillError):
    exit_code = ExitCode.UNUSABLE


class ConfigurationError(Unusable):
    """The configuration names something that is not there, or contradicts itself."""


class ExportError(Unusable):
    """An export cannot be read as the configuration says."""
