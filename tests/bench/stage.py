"""Staging against polars' own sort of the same export: CPU seconds and peak of anonymous memory.

`python -m tests.bench stage [--rows 5000000] [--hot 0.2] [--keep FOLDER]`. Both sides run in processes of their own,
one after the other, on one generated export. The reference reads every column as text, sorts by customer and time,
and writes Parquet: the least that any staging has to do.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from backfill import stage
from backfill.core.config import Api, RunConfig
from backfill.core.lifecycle import Standing
from backfill.repeats import Repeats

_SLICE = 250_000
_GOAL_RATIO, _GOAL_MB = 1.5, 500


def main(argv: Sequence[str]) -> None:
    options = argparse.ArgumentParser(prog="python -m tests.bench stage", description=__doc__)
    options.add_argument("--rows", type=int, default=5_000_000)
    options.add_argument("--hot", type=float, default=0.0, help="share of the rows that one customer owns")
    options.add_argument("--keep", type=Path, help="leave the export and the staged files here")
    options.add_argument("--side", choices=_SIDES, help=argparse.SUPPRESS)
    chosen = options.parse_args(argv)
    if chosen.side:
        _measured(chosen.side, chosen.keep)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        export = folder / "export.csv"
        write_export(export, chosen.rows, chosen.hot)
        print(f"{chosen.rows:,} rows, {export.stat().st_size / 1e6:,.0f} MB, hottest customer {chosen.hot:.0%}")
        figures = {side: _run(side, folder) for side in _SIDES}
    for side, figure in figures.items():
        cpu_s, wall_s, peak_mb = figure["cpu_s"], figure["wall_s"], figure["peak_mb"]
        print(f"{side:10} {cpu_s:7.2f} CPU s   {wall_s:7.2f} s   {peak_mb:6.0f} MB anonymous")
    ratio = figures["ours"]["cpu_s"] / figures["reference"]["cpu_s"]
    print(f"ratio {ratio:.2f} (goal {_GOAL_RATIO}), peak {figures['ours']['peak_mb']:.0f} MB (goal {_GOAL_MB})")


def write_export(path: Path, rows: int, hot: float) -> None:
    """An export of `rows` rows, some 140 bytes each, the same on every machine: whole numbers only, no randomness."""
    with path.open("wb") as file:
        for start in range(0, rows, _SLICE):
            _slice(start, min(_SLICE, rows - start), rows, hot).write_csv(file, include_header=start == 0)


def _slice(start: int, size: int, rows: int, hot: float) -> pl.DataFrame:
    def mixed(factor: int, below: int) -> pl.Expr:
        # Multiplication modulo a prime walks through all residues in an order that looks like chance.
        return (pl.col("i") * factor + factor // 7) % 2_147_483_647 % below

    customers = max(1, rows // 20)
    customer = pl.when(mixed(48_271, 10_000) < round(hot * 10_000)).then(0).otherwise(1 + mixed(69_621, customers))
    second = 1_700_000_000 + mixed(16_807, 31_536_000)
    channel = pl.Series(["web", "store", "app", "call centre"])
    return pl.DataFrame({"i": pl.int_range(start, start + size, dtype=pl.Int64, eager=True)}).select(
        timestamp=pl.from_epoch(second).dt.to_string("%Y-%m-%dT%H:%M:%SZ"),
        customer_key=pl.format("C{}", customer.cast(pl.String).str.zfill(9)),
        url=pl.format("api://shop.example/{}/page/{}", mixed(39_373, 7), mixed(742_938_285, 500)),
        channel=pl.lit(channel).gather(mixed(950_706_376, 4)),
        amount=pl.format("{}.{}", mixed(1_226_874_159, 900), (10 + mixed(62_089_911, 90)).cast(pl.String)),
        product=pl.format("SKU-{}-{}", mixed(1_343_714_438, 9_000), mixed(630_360_016, 97)),
        campaign=pl.when(mixed(1_078_318_381, 3) > 0).then(pl.format("spring sale {}", mixed(1_203_248_318, 40))),
        message=pl.format("{}-{}", pl.col("i") * 7_919 + 1_000_000_007, mixed(397_204_094, 1_000_000_000)),
        note=pl.format("order {} of basket {}", mixed(2_027_812_808, 100_000), mixed(1_323_257_245, 1_000_000)),
    )


class Unsent:
    """A journal in which nothing ever moved."""

    def standings(self, load: int, first_request: int, last_request: int) -> list[Standing]:
        return []


def _ours(folder: Path) -> None:
    config = RunConfig(api=Api(base_url="https://mxo.example", site_key="bench"))
    load = folder / "staged" / "1"
    now = datetime.now(UTC)
    stage.spool([folder / "export.csv"], config, load, load=1, now=now, report=lambda _: None, stopped=lambda: False)
    repeats = Repeats(folder, 1, Unsent())
    stage.arrange(load, config, repeats=repeats, report=lambda _: None, stopped=lambda: False)


def _reference(folder: Path) -> None:
    pl.scan_csv(folder / "export.csv", infer_schema=False).with_columns(
        (pl.col("customer_key").hash() % 4096).alias("slot")
    ).sort("slot", "timestamp").sink_parquet(folder / "reference.parquet")


_SIDES = {"reference": _reference, "ours": _ours}


def _run(side: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.bench", "stage", "--side", side, "--keep", str(folder)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    figures: dict[str, float] = json.loads(answer.stdout)
    return figures


def _measured(side: str, folder: Path) -> None:
    """Run one side in this process and print its figures. The imports before it count for neither."""
    peak = PeakMemory()
    before, start_s = os.times(), time.perf_counter()
    _SIDES[side](folder)
    after = os.times()
    figures = {
        "cpu_s": after.user + after.system - before.user - before.system,
        "wall_s": time.perf_counter() - start_s,
        "peak_mb": peak.stop(),
    }
    print(json.dumps(figures))


class PeakMemory:
    """The peak of anonymous memory, looked at every 10 ms. Mapped files do not count: the kernel may drop them."""

    def __init__(self) -> None:
        self._peak_kb = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        self._done.set()
        self._thread.join()
        return self._peak_kb / 1024

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    self._peak_kb = max(self._peak_kb, int(line.split()[1]))
