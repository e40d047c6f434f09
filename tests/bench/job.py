"""The whole job against a fast local sink (nginx), beside a plain httpx script that only reads and sends.

    python -m tests.bench job [--rows 1000000] [--concurrency 16] [--rounds 3]

Both meet the same nginx in turn. Needs nginx on the PATH; it listens on loopback only.
"""

import argparse
import contextlib
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import polars as pl

SINK = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log crit;
events {{ worker_connections 1024; }}
http {{
    access_log off; client_body_temp_path {folder}/body; client_max_body_size 0; client_body_buffer_size 1m;
    keepalive_requests 1000000; keepalive_timeout 60; default_type application/json;
    server {{
        listen 127.0.0.1:{port};
        location = /one/oauth2token {{ return 200 '{{"access_token": "made-up", "expires_in": 3600}}'; }}
        location / {{ return 200 '{{"statusCode": 200}}'; }}
    }}
}}
"""


def write_export(path: Path, rows: int) -> None:
    """Rows as they come out of a web shop: 140 bytes, a twentieth as many customers, six properties."""
    n = pl.int_range(rows, eager=True, dtype=pl.Int64)
    frame = pl.DataFrame({"n": n, "h": (n * 2_654_435_761) % 4_294_967_291}).with_columns(
        (1_500_000_000_000 + pl.col("n") * 7_919 % 200_000_000_000).alias("t")
    )
    frame.select(
        pl.from_epoch("t", "ms").dt.replace_time_zone("UTC").dt.to_string("%Y-%m-%dT%H:%M:%S%.3fZ").alias("timestamp"),
        pl.format("C{}", pl.col("h") % max(1, rows // 20) + 10_000_000).alias("customer_key"),
        pl.format("api://shop.example/{}/visit", pl.col("h") % 7).alias("url"),
        pl.format("order-{}", "n").alias("order_id"),
        (pl.col("h") % 90_000 / 100).cast(pl.String).alias("amount"),
        pl.format("sku-{}", pl.col("h") % 4_000).alias("product"),
        (pl.col("h") % 3 == 0).cast(pl.String).alias("newsletter"),
        pl.format("campaign {}", pl.col("h") % 50).alias("campaign"),
        pl.format("{}", pl.col("h") % 9).alias("channel"),
    ).write_csv(path)


@contextlib.contextmanager
def sink(folder: Path) -> Iterator[str]:
    """nginx that acknowledges everything."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    configuration = folder / "nginx.conf"
    configuration.write_text(SINK.format(folder=folder, port=port))
    command = [shutil.which("nginx") or "/usr/sbin/nginx", "-c", str(configuration), "-e", str(folder / "error.log")]
    process = subprocess.Popen(command)
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


class Figures(NamedTuple):
    wall_s: float
    cpu_s: float


def timed(command: list[str], environment: dict[str, str]) -> Figures:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began_s = time.perf_counter()
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    wall_s = time.perf_counter() - began_s
    if result.returncode:
        sys.exit(f"{command} ended with {result.returncode}: {result.stdout[-1000:]} {result.stderr[-1000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Figures(wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench job", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="bench-job-"))
    try:
        export = folder / "export.csv"
        write_export(export, options.rows)
        sys.stdout.write(f"{options.rows:,} rows, {export.stat().st_size / 1e6:.0f} MB\n")
        environment = os.environ | {"BACKFILL_CLIENT_ID": "bench", "BACKFILL_CLIENT_SECRET": "made-up"}
        with sink(folder) as url:
            (folder / "backfill.toml").write_text(
                f'[api]\nbase_url = "{url}"\nsite_key = "BENCH"\n'
                f"[budget]\nrequests_per_second = 100000\nconcurrency = {options.concurrency}\n"
            )
            for number in range(options.rounds):
                state = folder / f"state-{number}"
                run = [sys.executable, "-m", "backfill", "run", "--json", "--config", str(folder / "backfill.toml")]
                ours = timed([*run, "--state", str(state), str(export)], environment)
                plain = timed([sys.executable, "-m", "tests.bench", "plain", str(export), url], environment)
                sys.stdout.write(
                    f"backfill {ours.wall_s:.1f} s ({options.rows / ours.wall_s:,.0f} rows/s, "
                    f"{ours.cpu_s:.1f} core-s), "
                    f"plain script {plain.wall_s:.1f} s ({options.rows / plain.wall_s:,.0f} rows/s, "
                    f"{plain.cpu_s:.1f} core-s): {plain.wall_s / ours.wall_s:.2f} times as fast\n"
                )
                shutil.rmtree(state)
    finally:
        shutil.rmtree(folder)
