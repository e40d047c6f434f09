"""The reference of `job`: what a capable engineer writes in an afternoon. It reads and sends, and accounts for nothing.

python -m tests.bench plain EXPORT URL
"""

import asyncio
import csv
import json
import sys
from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import httpx


def interactions(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            yield {
                "timestamp": int(datetime.fromisoformat(row.pop("timestamp")).timestamp() * 1000),
                "customerKey": row.pop("customer_key"),
                "customerKeyName": "customerkey",
                "url": row.pop("url"),
                "properties": [{"name": name, "value": value} for name, value in row.items() if value],
            }


async def send(path: Path, url: str, connections: int = 4) -> int:
    rows = interactions(path)
    sent = 0
    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=connections)) as client:

        async def worker() -> None:
            nonlocal sent
            while batch := list(islice(rows, 100)):
                reply = await client.put(
                    f"{url}/one/oauth2/rt/api/2.0/interactions/offline?sk=BENCH",
                    content=json.dumps(batch),
                    headers={"content-type": "application/json", "authorization": "Bearer made-up"},
                )
                reply.raise_for_status()
                sent += len(batch)

        await asyncio.gather(*(worker() for _ in range(connections)))
    return sent


def main(argv: list[str]) -> None:
    sent = asyncio.run(send(Path(argv[0]), argv[1]))
    sys.stdout.write(f"{sent:,} rows sent\n")
