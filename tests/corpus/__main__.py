"""`python -m tests.corpus FOLDER` writes the corpus there, each case in a folder of its own, and lists the verdicts."""

import sys
from pathlib import Path

from tests.corpus.all import CASES

for case in CASES:
    path = Path(sys.argv[1]) / case.name / case.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(case.make())
    verdict = f"{len(case.rows)} rows" if case.rows is not None else "refused: " + ", ".join(case.refused or ())
    print(f"{path}  {dict(case.config) or ''}  {verdict}")
