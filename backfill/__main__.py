"""`python -m backfill`."""

import sys

from backfill.cli import main

if __name__ == "__main__":
    sys.exit(main())
