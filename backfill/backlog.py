"""What is left to send of a load: staged requests less what the journal says of them.

Opens pieces one by one and gives out request bodies from a few row groups at a time, so memory does not grow
with the load. Decides nothing: `core.lifecycle` says what is unfinished.
"""

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import polars as pl

from backfill.adapters import staging
from backfill.adapters.journal import Journal
from backfill.core import encode
from backfill.core.arrange import Piece
from backfill.core.config import RunConfig
from backfill.core.events import Fetched, Ready
from backfill.core.lifecycle import Part, Standing, unfinished

GROUP = 64
"""Requests read at once: the row groups of the staged file, some 2 MB of JSON."""


class Body(NamedTuple):
    """What a request sends: `content` is the whole body, `tid` its query parameter."""

    content: bytes
    tid: str | None


class _Group(NamedTuple):
    fragments: list[bytes]
    sizes: list[list[int]]
    tids: list[str | None]


class Backlog:
    """The unsent requests of one load, in delivery order. Its methods may be called from several threads."""

    def __init__(self, folder: Path, load: int, config: RunConfig, journal: Journal) -> None:
        self._folder = folder
        self._load = load
        self._config = config
        self._journal = journal
        manifest = staging.read_manifest(folder)
        # Before the first request of the load: its rows must be accounted for, so it must be possible.
        staging.check_invalid(folder, manifest)
        self._pieces = manifest.pieces
        self._first_requests = [piece.first_request for piece in self._pieces]
        self._buckets = iter(_by_lanes(self._pieces))
        self._rest: dict[int, list[Piece]] = {}  # by lane: pieces not yet fetched
        self._groups: OrderedDict[tuple[int, int], _Group] = OrderedDict()
        # A lane walks through one group at a time, and lanes that go side by side mostly share groups.
        self._most_groups = config.budget.concurrency + 8
        self._reading: dict[tuple[int, int], threading.Lock] = {}
        self._lock = threading.Lock()

    def fetch(self, lane: int | None) -> Fetched:
        """The next bucket's work, or more of a lane's. Reads the disk."""
        if lane is not None:
            rest = self._rest[lane]
            ready = self._ready(rest.pop(0))
            return Fetched(lane, ready, frozenset({lane} if rest else ()), exhausted=False)
        bucket = next(self._buckets, None)
        if bucket is None:
            return Fetched(None, [], frozenset(), exhausted=True)
        first, *rest = bucket
        if rest:  # one lane fills the whole bucket and more
            self._rest[first.lane_from] = rest
        return Fetched(None, self._ready(first), frozenset({first.lane_from} if rest else ()), exhausted=False)

    def cached_body(self, part: Part) -> Body | None:
        """The body if it is in memory."""
        piece, group, place = self._locate(part)
        held = self._groups.get((piece, group))
        return None if held is None else self._cut(held, place, part)

    def body(self, part: Part) -> Body:
        """The body, read from disk where it is not in memory."""
        piece, group, place = self._locate(part)
        return self._cut(self._group(piece, group), place, part)

    def _ready(self, piece: Piece) -> list[Ready]:
        last_request = piece.first_request + piece.rows - 1
        by_request: dict[int, list[Standing]] = {}
        for standing in self._journal.standings(self._load, piece.first_request, last_request):
            by_request.setdefault(standing.part.request, []).append(standing)
        index = staging.request_index(self._folder, piece.piece)
        ready = []
        for request, lane, count in zip(
            index["request"].to_list(), index["lane"].to_list(), index["count"].to_list(), strict=True
        ):
            left = unfinished(Part(request, 0, count), by_request.get(request, []))
            ready += [Ready(lane, part, attempts, marked) for part, attempts, marked in left]
        if ready:  # bits that changed would be sent as they are now; each piece is read whole once more, which is cheap
            staging.check_piece(self._folder, piece.piece)
        return ready

    def _locate(self, part: Part) -> tuple[int, int, int]:
        """Piece, group in it, place in the group. Requests of a piece are numbered without a gap."""
        piece = bisect_right(self._first_requests, part.request) - 1
        group, place = divmod(part.request - self._first_requests[piece], GROUP)
        return piece, group, place

    def _group(self, piece: int, group: int) -> _Group:
        key = (piece, group)
        with self._lock:
            reading = self._reading.setdefault(key, threading.Lock())
        with reading:  # several lanes want the same group at once; it is read once
            held = self._groups.get(key)
            if held is None:
                held = self._read(piece, group)
            with self._lock:
                self._groups[key] = held
                self._groups.move_to_end(key)
                while len(self._groups) > self._most_groups:
                    self._groups.popitem(last=False)
                self._reading.pop(key, None)
        return held

    def _read(self, piece: int, group: int) -> _Group:
        frame = staging.request_bodies(self._folder, self._pieces[piece].piece, group * GROUP, GROUP)
        return _Group(
            frame["body"].cast(pl.Binary).to_list(),
            frame["sizes"].to_list(),
            frame["tid"].to_list(),
        )

    def _cut(self, group: _Group, place: int, part: Part) -> Body:
        fragment = group.fragments[place]
        sizes = group.sizes[place]
        if part.interactions != len(sizes):
            fragment = encode.cut(fragment, sizes, part.first, part.interactions)
        return Body(encode.request_body(fragment, self._config.wire, self._config.api.call), group.tids[place])


def _by_lanes(pieces: tuple[Piece, ...]) -> Iterator[list[Piece]]:
    """Pieces of the same lanes together: more than one where a single lane fills a bucket."""
    bucket: list[Piece] = []
    for piece in pieces:
        if bucket and piece.lane_from != bucket[0].lane_from:
            yield bucket
            bucket = []
        bucket.append(piece)
    if bucket:
        yield bucket


class Planned(NamedTuple):
    """What an arranged load sends in all."""

    requests: int
    interactions: int


def planned(folder: Path, manifest: staging.Manifest) -> Planned:
    """Counts the requests of an arranged load, and the interactions in them: its valid rows less the duplicates."""
    counts = [staging.request_index(folder, piece.piece)["count"] for piece in manifest.pieces]
    return Planned(sum(map(len, counts)), sum(int(count.sum()) for count in counts))
