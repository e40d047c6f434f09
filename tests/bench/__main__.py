"""`python -m tests.bench NAME [ARGUMENT...]`: measures one station against its reference, in the same run.

Each module beside this one is a NAME and offers `main(argv)`. Nothing here asserts: machines differ.
"""

import importlib
import sys
from pathlib import Path


def main(argv: list[str]) -> None:
    names = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))
    if not argv or argv[0] not in names:
        sys.exit(f"usage: python -m tests.bench {{{','.join(names)}}} [ARGUMENT...]")
    importlib.import_module(f"tests.bench.{argv[0]}").main(argv[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
