"""Lookups against what is remembered of earlier loads: seconds, anonymous memory, disk.

`python -m tests.bench seen [--rows 10000000] [--merged] [--stage ROWS]`. Fills a `seen` folder with made-up
fingerprints in pieces of 150,000, as one large load leaves them, then looks into it as a nightly load of 10,000 rows
does, which has all slots, and as one piece of a large load. `--merged`: 33 loads, merged, and how long that took.
`--stage`: arranges a real export of so many rows without and with all that, one after the other. 20 bytes a row, on the
disk of the temporary files.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
from polars_hash import NonCryptographicHashingNameSpace as Hash

from backfill import stage
from backfill.adapters.seen import Seen
from backfill.core.config import Api, RunConfig
from backfill.core.identity import halves
from backfill.core.limits import BUCKET_ROWS, SLOTS
from backfill.repeats import Repeats
from tests.bench.stage import PeakMemory, Unsent, write_export

_NIGHTLY, _KNOWN, _LOADS = 10_000, 1_000, 33


def main(argv: Sequence[str]) -> None:
    options = argparse.ArgumentParser(prog="python -m tests.bench seen", description=__doc__)
    options.add_argument("--rows", type=int, default=10_000_000)
    options.add_argument("--merged", action="store_true")
    options.add_argument("--stage", type=int, metavar="ROWS")
    options.add_argument("--arrange", type=Path, help=argparse.SUPPRESS)
    chosen = options.parse_args(argv)
    if chosen.arrange:
        _arranged(chosen.arrange)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if chosen.stage:
            _spool(folder, chosen.stage)
            print(f"arranging {chosen.stage:,} rows, nothing remembered: {_arrange(folder)}")
        began_s = time.perf_counter()
        seen = Seen(folder)
        pieces = max(1, chosen.rows // BUCKET_ROWS)
        loads = min(pieces, _LOADS if chosen.merged else 1)
        for piece in range(pieces):
            slots = _share(piece // loads, -(-pieces // loads))
            seen.remember(1 + piece % loads, piece // loads, slots, _interactions(piece, slots))
        print(f"remembered {pieces * BUCKET_ROWS:,} rows in {time.perf_counter() - began_s:.1f} s, {_disk(folder)}")
        if chosen.merged:
            with_peak = PeakMemory()
            began_s = time.perf_counter()
            seen.merge(loads, at=0)
            files = len(list(seen.folder.rglob("*.parquet")))
            print(f"merged into {files} files in {time.perf_counter() - began_s:.1f} s, {with_peak.stop():.0f} MB")
        load = loads + 1
        began_s = time.perf_counter()
        seen.check(load)
        print(f"all checksums in {time.perf_counter() - began_s:.2f} s")
        middle = pieces // 2
        slots = _share(middle // loads, -(-pieces // loads))
        known = _interactions(middle, slots)
        _look(seen, load, "a load of 10,000 rows", (0, SLOTS), _NIGHTLY, known)
        _look(seen, load, "a piece of a large load", slots, BUCKET_ROWS, known)
        if chosen.stage:
            print(f"arranging {chosen.stage:,} rows beside all these: {_arrange(folder)}")


def _share(piece: int, pieces: int) -> tuple[int, int]:
    first = piece * SLOTS // pieces
    return first, max(first + 1, (piece + 1) * SLOTS // pieces)


def _interactions(seed: int, slots: tuple[int, int]) -> pl.DataFrame:
    first, end = slots
    row = pl.int_range(BUCKET_ROWS, dtype=pl.UInt32, eager=True).alias("place")
    return pl.DataFrame({"place": row}).select(
        (pl.col("place") % (end - first) + first).cast(pl.UInt16).alias("slot"),
        Hash(pl.format("{}-{}", pl.lit(seed), "place")).xxh3_128().alias("fingerprint"),
        "place",
    )


def _look(seen: Seen, load: int, what: str, slots: tuple[int, int], rows: int, known: pl.DataFrame) -> None:
    """Looks for `rows` interactions, some of them known."""
    old = known.head(_KNOWN)
    new = _interactions(random.Random(rows).getrandbits(40), slots).head(rows - old.height)
    wanted = pl.concat([old, new]).select(halves("fingerprint"))
    peak, began_s = PeakMemory(), time.perf_counter()
    found = seen.find(load, slots, wanted)
    print(f"{what}: {time.perf_counter() - began_s:.2f} s, {peak.stop():.0f} MB anonymous, {found.height:,} found")
    assert found.height == old.height


def _disk(folder: Path) -> str:
    return f"{sum(path.stat().st_size for path in folder.rglob('seen/**/*.parquet')) / 1e6:,.0f} MB of disk"


def _config() -> RunConfig:
    return RunConfig(api=Api(base_url="https://mxo.example", site_key="bench"))


def _spool(folder: Path, rows: int) -> None:
    write_export(folder / "export.csv", rows, 0.0)


def _arrange(folder: Path) -> str:
    """Spools the export as a load beyond all others, and arranges it in a process of its own."""
    load = folder / "staged" / "99999"
    now = datetime.now(UTC)
    paths = [folder / "export.csv"]
    stage.spool(paths, _config(), load, load=99_999, now=now, report=lambda _: None, stopped=lambda: False)
    command = [sys.executable, "-m", "tests.bench", "seen", "--arrange", str(load)]
    figures = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    Seen(folder).forget_after(99_998)
    return f"{figures['cpu_s']:.2f} CPU s, {figures['wall_s']:.2f} s, {figures['peak_mb']:.0f} MB anonymous"


def _arranged(load: Path) -> None:
    peak, cpu_s, wall_s = PeakMemory(), time.process_time(), time.perf_counter()
    repeats = Repeats(load.parent.parent, int(load.name), Unsent())
    stage.arrange(load, _config(), repeats=repeats, report=lambda _: None, stopped=lambda: False)
    figures = {"cpu_s": time.process_time() - cpu_s, "wall_s": time.perf_counter() - wall_s, "peak_mb": peak.stop()}
    print(json.dumps(figures))
