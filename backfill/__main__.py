"""`python -m backfill`, and the `backfill` that pip installs: the process around a command."""

import signal
import sys


def entry() -> int:
    """Runs the command of this process and answers its exit code."""
    # Before anything else is imported: Ctrl-C ends us as it ends any program, not with the traceback of an import.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from backfill.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(entry())
