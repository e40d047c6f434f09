"""Makes `sample_data/`: two exports as companies write them, a configuration, and what a run must find.

    python -m tests.make_sample_data [DIR]

Seeded: every run writes the same bytes. Keeps its own books of the dirt it plants and imports nothing of
`backfill`, so that `expected.json` can be held against a run. All customers are invented.
"""

import csv
import io
import itertools
import json
import random
import sys
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import TypeVar

import polars as pl

SEED = 20_260_101
CUSTOMERS = 3_000
WEB = "web_and_app.csv"
BRANCH = "branch_visits.parquet"

T = TypeVar("T")
Values = dict[str, object]


@dataclass(frozen=True)
class Record:
    """One row of an export and what is known about it."""

    at: datetime
    values: Values
    reasons: tuple[str, ...] = ()
    twin: int | None = None
    """Set on a row and on its exact repetitions: what they have in common."""


@dataclass
class Customer:
    """An invented person; a few are known to the web shop by a tid as well."""

    key: str
    tid: str | None


@dataclass
class Books:
    """What was planted into one export, row by row."""

    rows: int = 0
    invalid: list[dict[str, object]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    duplicates: list[dict[str, object]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    tids: int = 0


class Dice(random.Random):
    """Only `random()` is promised to stay the same across versions of Python, so everything is made from it."""

    def below(self, end: int) -> int:
        return int(self.random() * end)

    def pick(self, things: Sequence[T]) -> T:
        return things[self.below(len(things))]

    def chance(self, share: float) -> bool:
        return self.random() < share


PAGES = (
    "api://web.nordhaus.example/home",
    "api://web.nordhaus.example/product/view",
    "api://web.nordhaus.example/product/view",
    "api://web.nordhaus.example/search?q=winter%20coat",
    "api://web.nordhaus.example/basket/add",
    "api://web.nordhaus.example/checkout/complete",
    "api://mail.nordhaus.example/newsletter/click",
)
SCREENS = (
    "api://app.nordhaus.example/login",
    "api://app.nordhaus.example/product/view",
    "api://app.nordhaus.example/push/opened",
    "api://app.nordhaus.example/checkout/complete",
)
DESKS = (
    "api://branch.nordhaus.example/visit/advice",
    "api://branch.nordhaus.example/visit/pickup",
    "api://branch.nordhaus.example/visit/return",
)
COMMENTS = (
    "Call back, please",
    'Asked for the "oak" table',
    "Delivered to the neighbour\nNo 12, second floor",
    "Größe passt nicht",
    "Très satisfaite, merci!",
    "Zurückgeschickt;\nGrund: zu klein, Farbe falsch",
    "素敵なお店でした",
    "Ring twice, dog barks 🐕",
)
CAMPAIGNS = ("spring-sale", "spring-sale", "back-to-school", "Frühling 2024", "black-friday", "loyalty, gold")
BRANCHES = ("Aachen", "Köln-Mülheim", "Düsseldorf", "Liège", "Venlo", "München, Altstadt")
PURPOSES = ("advice", "pickup", "return", "complaint", "contract")

WEB_COLUMNS = (
    "timestamp", "customer_key", "url", "tid", "event_id", "channel", "campaign", "order_value", "currency",
    "items", "newsletter", "delivery_date", "comment",
)  # fmt: skip

BRANCH_SCHEMA = pl.Schema(
    {
        "timestamp": pl.Datetime("us", "UTC"),
        "customer_key": pl.String(),
        "url": pl.String(),
        "tid": pl.String(),
        "visit_id": pl.Int64(),
        "branch": pl.String(),
        "purpose": pl.String(),
        "amount": pl.Float64(),
        "contract_signed": pl.Boolean(),
        "waiting_minutes": pl.Int32(),
        "next_appointment": pl.Date(),
        "note": pl.String(),
    }
)


def customers(dice: Dice) -> list[Customer]:
    """Keys of eight digits with leading zeros, some with a country, some as an older system wrote them."""
    numbers: dict[int, None] = {}
    while len(numbers) < CUSTOMERS:
        numbers[1 + dice.below(900_000)] = None
    made = []
    for place, number in enumerate(numbers):
        key = f"NL-{number:07d}" if place % 20 == 7 else f"{number:08d}"
        made.append(Customer(key, str(uuid.UUID(int=dice.getrandbits(128), version=4)) if place % 75 == 30 else None))
    for place in range(100, 112):
        # The same digits without their zeros are somebody else.
        made[place].key = made[place - 100].key.lstrip("0")
    return made


def visitors(dice: Dice, everyone: Sequence[Customer], rows: int, once: Iterable[Customer]) -> list[Customer]:
    """Who made each row: everyone of `once` at least once, then a few very often and most rarely (Zipf)."""
    weights = list(itertools.accumulate(1 / (rank + 3) ** 1.05 for rank in range(len(everyone))))
    found = list(once)
    while len(found) < rows:
        drawn = dice.random() * weights[-1]
        found.append(everyone[next(place for place, weight in enumerate(weights) if weight > drawn)])
    return found


def moment(dice: Dice, *, micro: bool) -> datetime:
    """Some instant of 2019 to 2025, more of them in later years."""
    first, last = datetime(2019, 1, 1, 6, tzinfo=UTC), datetime(2025, 12, 30, 20, tzinfo=UTC)
    seconds = dice.random() ** 0.7 * (last - first).total_seconds()
    return first + timedelta(seconds=int(seconds), microseconds=1000 * dice.below(1000) if micro else 0)


def local(at: datetime) -> str:
    """As a web shop in Central Europe writes it: with the offset of the day (roughly: summer is April to October)."""
    return at.astimezone(timezone(timedelta(hours=2 if 4 <= at.month <= 10 else 1))).isoformat()


def utc(at: datetime) -> str:
    """As an app writes it: UTC with milliseconds."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def web_record(dice: Dice, who: Customer, number: int) -> Record:
    """One page view or app screen; every value is text, as in any CSV."""
    app = dice.chance(0.35)
    at = moment(dice, micro=app)
    url = dice.pick(SCREENS if app else PAGES)
    bought = url.endswith("complete")
    return Record(
        at,
        {
            "timestamp": utc(at) if app else local(at),
            "customer_key": who.key,
            "url": url,
            "tid": who.tid or "",
            "event_id": f"E{number:06d}",
            "channel": "app" if app else "mail" if "mail." in url else "web",
            "campaign": dice.pick(CAMPAIGNS) if dice.chance(0.3) else "",
            "order_value": f"{5 + dice.below(60_000) / 100:.2f}" if bought else "",
            "currency": ("EUR", "EUR", "CHF")[dice.below(3)] if bought else "",
            "items": str(1 + dice.below(6)) if bought else "",
            "newsletter": dice.pick(("true", "false", "false", "")),
            "delivery_date": (at + timedelta(days=2 + dice.below(5))).date().isoformat() if bought else "",
            "comment": dice.pick(COMMENTS) if dice.chance(0.06) else "",
        },
    )


def branch_record(dice: Dice, who: Customer, number: int) -> Record:
    """One visit to a branch; typed, as a warehouse exports it."""
    at = moment(dice, micro=False)
    signed = dice.chance(0.2)
    return Record(
        at,
        {
            "timestamp": at,
            "customer_key": who.key,
            "url": dice.pick(DESKS),
            "tid": None,
            "visit_id": 700_000_000_000 + number,
            "branch": dice.pick(BRANCHES),
            "purpose": dice.pick(PURPOSES),
            "amount": round(20 + dice.random() * 3000, 2) if signed else None,
            "contract_signed": signed if dice.chance(0.9) else None,
            "waiting_minutes": dice.below(45),
            "next_appointment": at.date() + timedelta(days=7 + dice.below(60)) if dice.chance(0.25) else None,
            "note": dice.pick(COMMENTS) if dice.chance(0.05) else None,
        },
    )


FUTURE = datetime(2099, 12, 31, 23, 0, tzinfo=UTC)  # the favourite placeholder for "open end"


@dataclass(frozen=True)
class Dirt:
    """The damage to one row, and what a run must say about it."""

    reasons: tuple[str, ...]
    change: Values
    without_zone: bool = False
    """The row's own timestamp loses its offset."""


def web_dirt() -> list[Dirt]:
    """The damage for the CSV."""
    unreadable = (
        "n/a",
        "2024-02-30T10:15:00+01:00",
        "31.12.2023 10h15",
        "0000-00-00T00:00:00Z",
        "2023-13-01T08:00:00Z",
    )
    no_uri = ("/checkout/complete", "www.nordhaus.example", "home", "/product/view")
    controls = ("0004711\t", "00\x0781512", "0081\n5123")
    return [
        *[Dirt(("timestamp_missing",), {"timestamp": ""})] * 6,
        *[Dirt(("timestamp_unreadable",), {"timestamp": text}) for text in unreadable + unreadable[:4]],
        # One server of the shop wrote its own local time, without saying so.
        *[Dirt(("timestamp_without_zone",), {}, without_zone=True)] * 8,
        *[Dirt(("timestamp_in_future",), {"timestamp": utc(FUTURE)})] * 5,
        *[Dirt(("customer_key_missing",), {"customer_key": ""})] * 8,
        *[Dirt(("customer_key_blank",), {"customer_key": key}) for key in (" ", "    ", "\u00a0")],
        *[Dirt(("customer_key_control_characters",), {"customer_key": key}) for key in controls],
        Dirt(("customer_key_too_long",), {"customer_key": "0" * 1_001}),
        *[Dirt(("url_missing",), {"url": ""})] * 5,
        *[Dirt(("url_not_a_uri",), {"url": text}) for text in no_uri],
        Dirt(("timestamp_missing", "url_missing"), {"timestamp": "", "url": ""}),
        Dirt(("customer_key_missing", "url_not_a_uri"), {"customer_key": "", "url": "home"}),
    ]


def branch_dirt() -> list[Dirt]:
    """The damage for the Parquet file, whose timestamps cannot be unreadable."""
    return [
        *[Dirt(("timestamp_missing",), {"timestamp": None})] * 4,
        *[Dirt(("timestamp_in_future",), {"timestamp": FUTURE})] * 3,
        *[Dirt(("customer_key_missing",), {"customer_key": None})] * 4,
        *[Dirt(("customer_key_blank",), {"customer_key": "  "})] * 2,
        *[Dirt(("url_missing",), {"url": None})] * 3,
        *[Dirt(("url_not_a_uri",), {"url": "branch/visit"})] * 2,
    ]


def spoil(dice: Dice, records: list[Record], dirt: Sequence[Dirt]) -> list[Record]:
    """Damages one record for each piece of dirt, each at another place."""
    places: dict[int, None] = {}
    while len(places) < len(dirt):
        places[dice.below(len(records))] = None
    spoilt = list(records)
    for place, one in zip(places, dirt, strict=True):
        record = spoilt[place]
        change = {"timestamp": f"{record.at:%Y-%m-%dT%H:%M:%S}"} if one.without_zone else one.change
        spoilt[place] = replace(record, values=record.values | change, reasons=one.reasons)
    return spoilt


def repeat(dice: Dice, records: list[Record], times: int, respelt: int) -> list[Record]:
    """Adds repetitions of valid rows further down, as an export does whose pages overlap.

    The first `respelt` of them write the same instant with another offset, where it is text.
    """
    repeated = list(records)
    for twin in range(times):
        places = [place for place, record in enumerate(repeated) if not record.reasons and record.twin is None]
        place = dice.pick(places)
        original = replace(repeated[place], twin=twin)
        repeated[place] = original
        values = dict(original.values)
        if twin < respelt:
            values["timestamp"] = original.at.astimezone(timezone(-timedelta(hours=5))).isoformat()
        further = min(len(repeated), place + 1 + dice.below(400))
        repeated.insert(further, replace(original, values=values))
    return repeated


def book(export: str, records: Sequence[Record], lines: Sequence[int | None]) -> Books:
    """Writes down what stands in which row; rows count from 1."""
    books = Books()
    first: dict[int, int] = {}
    for row, (record, line) in enumerate(zip(records, lines, strict=True), start=1):
        books.rows += 1
        place: dict[str, object] = {"export": export, "row": row, "line": line}
        if record.reasons:
            books.invalid.append(place | {"reasons": sorted(record.reasons)})
            books.reasons.update(record.reasons)
            continue
        books.keys.add(str(record.values["customer_key"]))
        books.tids += bool(record.values["tid"])
        if record.twin is not None:
            if record.twin in first:
                books.duplicates.append(place | {"duplicate_of": f"{export}:{first[record.twin]}"})
            first.setdefault(record.twin, row)
    return books


def write_csv(path: Path, records: Sequence[Record]) -> list[int | None]:
    """Writes the CSV; returns the physical line where each record starts, the header being line 1."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(WEB_COLUMNS)
    lines: list[int | None] = []
    line = 2
    for record in records:
        lines.append(line)
        start = text.tell()
        writer.writerow([record.values[name] for name in WEB_COLUMNS])
        line += text.getvalue()[start:].count("\n") if _breaks(record) else 1
    path.write_text(text.getvalue(), encoding="utf-8", newline="")
    return lines


def _breaks(record: Record) -> bool:
    return any("\n" in str(value) for value in record.values.values())


def write_parquet(path: Path, records: Sequence[Record]) -> list[int | None]:
    """Writes the Parquet file in two row groups; its rows have no lines."""
    frame = pl.DataFrame([record.values for record in records], schema=BRANCH_SCHEMA, orient="row")
    frame.write_parquet(path, row_group_size=1_500)
    return [None] * len(records)


def summary(books: Books) -> dict[str, object]:
    """The figures of one export."""
    valid = books.rows - len(books.invalid)
    return {
        "read": books.rows,
        "valid": valid,
        "invalid": len(books.invalid),
        "invalid_by_reason": dict(sorted(books.reasons.items())),
        "duplicate": len(books.duplicates),
        "delivered": valid - len(books.duplicates),
    }


def expected(all_books: dict[str, Books]) -> dict[str, object]:
    """What a run on both exports must find, against an API that refuses nothing."""
    everything = Books()
    for books in all_books.values():
        everything.rows += books.rows
        everything.invalid += books.invalid
        everything.reasons += books.reasons
        everything.duplicates += books.duplicates
        everything.keys |= books.keys
        everything.tids += books.tids
    return {
        "about": (
            "What `backfill run` must find in these exports, by the books of the script that made them"
            " (tests/make_sample_data.py). read = delivered + invalid + duplicate. Two reasons of a row count twice."
        ),
        "total": summary(everything) | {"customers": len(everything.keys), "valid_rows_with_tid": everything.tids},
        "exports": {name: summary(books) for name, books in sorted(all_books.items())},
        "invalid_rows": everything.invalid,
        "duplicate_rows": everything.duplicates,
    }


CONFIG = """\
# What `backfill` must know to move the two exports in this folder.
# Everything else has a default; the names of sections and keys are checked, so a typing error is told, not ignored.

[job]
name = "sample"                          # the job's memory lies beside this file, in .backfill/<name>

[api]
base_url = "https://mxo.example.com"     # your tenant's address; `backfill run --sandbox` uses a local stand-in instead
site_key = "ONE-SAMPLE0000-0001"         # the site key of your Space (made up here)
# The client's credentials never stand in a file like this. Set BACKFILL_CLIENT_ID and BACKFILL_CLIENT_SECRET.

[columns]
# Which column of the exports says what. These are the defaults but for `tid`.
timestamp = "timestamp"                  # when it happened
customer_key = "customer_key"            # read as text: leading zeros stay
customer_key_name = { value = "customerkey" }   # a constant; a column name works too
url = "url"                              # the touchpoint; { template = "api://shop/{channel}" } builds it from columns
tid = "tid"                              # few rows have one
# properties = ["campaign", "order_value"]      # else: every other column; empty cells are left out

[time]
# Timestamps without an offset are invalid unless you say which clock wrote them:
# zone = "Europe/Berlin"
# not_before = "2019-01-01T00:00:00Z"    # refuse what is older

[rows]
max_rejected = "1%"                      # an export with more invalid rows than this sends nothing

[budget]
requests_per_second = 20                 # what your contract allows; each request carries up to 100 interactions
concurrency = 16
"""


def make(folder: Path, seed: int = SEED) -> None:
    """Writes all four files into `folder`."""
    dice = Dice(seed)
    everyone = customers(dice)

    web = [
        web_record(dice, who, number)
        for number, who in enumerate(visitors(dice, everyone, 7_360, everyone[: CUSTOMERS - 400]), start=1)
    ]
    web.sort(key=lambda record: (record.at, str(record.values["event_id"])))
    web = repeat(dice, spoil(dice, web, web_dirt()), times=40, respelt=5)

    branch = [
        branch_record(dice, who, number)
        for number, who in enumerate(visitors(dice, everyone, 2_588, everyone[CUSTOMERS - 700 :]), start=1)
    ]
    # A warehouse exports in no order worth the name.
    branch = repeat(dice, spoil(dice, branch, branch_dirt()), times=12, respelt=0)

    folder.mkdir(parents=True, exist_ok=True)
    books = {
        BRANCH: book(BRANCH, branch, write_parquet(folder / BRANCH, branch)),
        WEB: book(WEB, web, write_csv(folder / WEB, web)),
    }
    text = json.dumps(expected(books), indent=1, ensure_ascii=False)
    (folder / "expected.json").write_text(text + "\n", encoding="utf-8")
    (folder / "backfill.toml").write_text(CONFIG, encoding="utf-8")


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "sample_data"
    make(target)
    print(f"Written: {target}")
