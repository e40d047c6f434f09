"""The same interaction met again, within a load and in later ones: the whole command, held against the server's log."""

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import pytest

from backfill.verify import verify
from tests.command import PRIVATE, Job, Server, Visit, agree, discreet, expect, serving, visits

JUNE = visits(400)


def job_at(folder: Path, server: Server, **config: Mapping[str, object]) -> Job:
    return Job(folder / "job", server.base_url, config=config, budget=1_000)


def repeats(job: Job) -> dict[str, str]:
    """What each duplicate repeats, both as `file:row`."""
    lines = job.ledger().filter(outcome="duplicate").select("export", "row", "duplicate_of").iter_rows()
    return {f"{Path(export).name}:{row}": Path(of).name for export, row, of in lines}


def sent_times(server: Server) -> Counter[int]:
    """How often each interaction was applied, by its number, wherever it stood."""
    return Counter(
        int(each["value"])
        for call in server.applied()
        for interaction in call["interactions"]
        for each in interaction["properties"]
        if each["name"] == "n"
    )


# --------------------------------------------------------------------------------------------------- across loads


def test_rows_of_earlier_loads_are_not_sent_again(tmp_path: Path) -> None:
    """Renamed and partly edited, weeks later: only what is new is sent; the ledger names the row that each repeats."""
    with serving(tmp_path / "log") as server:
        job = job_at(tmp_path, server)
        job.export("june.csv", JUNE)
        expect(job.run("june.csv"), 0, "delivered 400")
        edited = [row._replace(n=row.n + 5_000, mark="mended") if row.n % 50 == 0 else row for row in JUNE]
        job.export("final_june(2).csv", [*visits(30, first=900), *edited])
        calls = server.count()
        expect(job.run("final_june(2).csv"), 0, "read 430 = delivered 38", "duplicate 392")
        assert server.count() - calls <= 2  # a token and 38 interactions of one lane
        assert repeats(job) == {
            f"final_june(2).csv:{row.n + 30}": f"june.csv:{row.n}" for row in JUNE if row.n % 50 != 0
        }
        job.export("third.csv", [JUNE[6], edited[49], visits(30, first=900)[5]])
        expect(job.run("third.csv"), 0, "read 3 = delivered 0", "duplicate 3")
        assert agree(job, server) == {"delivered": 438, "duplicate": 395}
        assert list(repeats(job).items())[-3:] == [
            ("third.csv:1", "june.csv:7"),
            ("third.csv:2", "final_june(2).csv:80"),
            ("third.csv:3", "final_june(2).csv:6"),
        ]


def test_nothing_new_costs_no_call(tmp_path: Path) -> None:
    """A load of nothing but repeats: no request, not even for a token; complete, and so when it is run again."""
    with serving(tmp_path / "log") as server:
        job = job_at(tmp_path, server)
        job.export("june.csv", JUNE)
        expect(job.run("june.csv"), 0)
        calls, tokens = server.count(), server.tokens()
        job.export("again.csv", JUNE[::-1])
        expect(job.run("again.csv"), 0, "read 400 = delivered 0", "duplicate 400")
        expect(job.run("again.csv"), 0, "duplicate 400")
        assert (server.count(), server.tokens()) == (calls, tokens)
        agree(job, server)


def test_the_same_content_under_another_name_is_known_also_where_duplicates_are_sent(tmp_path: Path) -> None:
    """`duplicates = "send"` is about interactions; an export that was staged is not staged again."""
    with serving(tmp_path / "log") as server:
        job = job_at(tmp_path, server, rows={"duplicates": "send"})
        june = job.export("june.csv", [*JUNE, JUNE[0]])
        expect(job.run("june.csv"), 0, "delivered 401")
        calls = server.count()
        (job.folder / "copy.csv").write_bytes(june.read_bytes())
        expect(job.run("copy.csv"), 0, "copy.csv has the same content as", "read 401 = delivered 401")
        assert server.count() == calls
        write(job.folder / "one more.csv", JUNE[:1])
        expect(job.run("one more.csv"), 0, "read 1 = delivered 1")
        assert sent_times(server)[1] == 3
        assert verify(job.state).ok


def test_a_rejected_row_can_be_sent_again(tmp_path: Path) -> None:
    """Only what may have been applied is met again: the server refuses some, is mended, and gets exactly those."""
    with serving(tmp_path / "log", "status=400,when=property:mark=bad") as server:
        job = job_at(tmp_path, server, rows={"max_rejected": "10%"})
        rows = visits(200, mark=lambda place: "bad" if place % 40 == 7 else "plain")
        job.export("june.csv", rows)
        expect(job.run("june.csv"), 0, "delivered 195", "rejected 5")
    with serving(tmp_path / "log", port=server.base_url.rpartition(":")[2]) as server:
        job.export("again.csv", rows[::-1])
        expect(job.run("again.csv"), 0, "read 200 = delivered 5", "duplicate 195")
        assert repeats(job)["again.csv:200"] == "june.csv:1"
        job.export("third.csv", rows[5:10])
        expect(job.run("third.csv"), 0, "delivered 0", "duplicate 5")
        assert repeats(job)["third.csv:3"] == "again.csv:193"
        assert accounted(job, {1: rows, 2: rows[::-1], 3: rows[5:10]}, server) == {
            1: {"delivered": 195, "rejected": 5},
            2: {"delivered": 5, "duplicate": 195},
            3: {"duplicate": 5},
        }


def test_an_abandoned_row_can_be_sent_again(tmp_path: Path) -> None:
    """A wrong export is given up half sent; the right one, with the same rows, sends the other half."""
    with serving(tmp_path / "log") as server:
        job = job_at(tmp_path, server)
        job.export("june.csv", JUNE)
        expect(job.run("june.csv", "--limit", "150"), 75)
        expect(job.run("--abandon", "--yes", command="resolve"), 0, "abandoned 250")
        job.export("right.csv", JUNE[::-1])
        expect(job.run("right.csv"), 0, "read 400 = delivered 250", "duplicate 150")
        assert accounted(job, {1: JUNE, 2: JUNE[::-1]}, server) == {
            1: {"delivered": 150, "abandoned": 250},
            2: {"delivered": 250, "duplicate": 150},
        }


def test_an_invalid_row_can_be_mended_and_sent(tmp_path: Path) -> None:
    """What our own rules refused was never an interaction."""
    with serving(tmp_path / "log") as server:
        job = job_at(tmp_path, server, rows={"max_rejected": "10%"})
        job.export("june.csv", [row._replace(customer="") if row.n == 9 else row for row in JUNE])
        expect(job.run("june.csv"), 0, "delivered 399", "invalid 1")
        job.export("mended.csv", JUNE[5:10])
        expect(job.run("mended.csv"), 0, "read 5 = delivered 1", "duplicate 4")
        accounted(job, {1: JUNE, 2: JUNE[5:10]}, server)


@pytest.mark.parametrize("applied", ["drop=after,after=1,until=3", "drop=read,after=1,until=3"])
def test_a_row_in_doubt_is_met_again(tmp_path: Path, applied: str) -> None:
    """It may have been applied, so its repeat is not sent on a guess; once it is decided, it is sent itself."""
    with serving(tmp_path / "log", applied) as server:
        job = job_at(tmp_path, server)
        job.export("june.csv", JUNE)
        expect(job.run("june.csv"), 4, "in doubt 200")
        job.export("again.csv", JUNE[::-1])
        expect(job.run("again.csv"), 0, "read 400 = delivered 0", "duplicate 400")
        assert max(sent_times(server).values()) == 1
        if "read" in applied:
            expect(job.run("--not-delivered", "--yes", command="resolve"), 0)
            expect(job.run(), 0, "delivered 400")
            assert set(sent_times(server).values()) == {1}
        agree(job, server)


def test_a_key_without_a_name_is_the_same_customer_as_under_the_apis_default_name(tmp_path: Path) -> None:
    """One export names the kind of its keys, another leaves it to the API: the same interactions."""
    with serving(tmp_path / "log") as server:
        job = job_at(tmp_path, server, columns={"customer_key_name": "kind"})
        job.export("named.csv", JUNE[:20])
        write(job.folder / "named.csv", JUNE[:20], kind="customerkey")
        expect(job.run("named.csv"), 0, "delivered 20")
        write(job.folder / "nameless.csv", JUNE[:20], kind="")
        write(job.folder / "email.csv", JUNE[:20], kind="email")
        expect(job.run("nameless.csv"), 0, "delivered 0", "duplicate 20")
        expect(job.run("email.csv"), 0, "delivered 20")


def test_fingerprints_that_were_damaged_or_lost_stop_the_job(tmp_path: Path) -> None:
    """74 before anything is sent of the new load, naming the file and what to do; restored, it goes on."""
    with serving(tmp_path / "log") as server:
        job = job_at(tmp_path, server)
        job.export("june.csv", JUNE)
        expect(job.run("june.csv"), 0)
        (file,) = (job.state / "seen").rglob("*.parquet")
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        job.export("again.csv", [*JUNE, *visits(10, first=900)])
        calls = server.count()
        expect(job.run("again.csv"), 74, str(file), "sent twice", "Restore it from a backup")
        assert server.count() == calls
        file.rename(job.folder / "lost")
        expect(job.run("again.csv"), 74, "does not know load 1", "sent again", "Restore the folder from a backup")
        assert server.count() == calls
        (job.folder / "lost").rename(file)
        file.write_bytes(content)
        expect(job.run("again.csv"), 0, "delivered 10", "duplicate 400")
        agree(job, server)


@pytest.mark.parametrize("variant", ["dies_after_remembering", "dies_when_arranged"])
def test_a_piece_is_remembered_before_it_can_be_sent(tmp_path: Path, variant: str) -> None:
    """Killed between the two or right after, a later load knows its rows."""
    with serving(tmp_path / "log") as server:
        job = job_at(tmp_path, server)
        forgotten_or_not(job, variant)
        expect(job.run("again.csv"), 0, "read 410 = delivered")
        assert max(sent_times(server).values()) == 1
        assert agree(job, server) == {"delivered": 410, "duplicate": 400}


def test_a_piece_that_was_remembered_too_late_is_noticed(tmp_path: Path) -> None:
    """A broken variant, killed between sending and remembering: the next load is refused instead of sent twice."""
    with serving(tmp_path / "log") as server:
        job = job_at(tmp_path, server)
        forgotten_or_not(job, "remembers_late")
        expect(job.run("again.csv"), 74, "does not know load 1")
        assert max(sent_times(server).values()) == 1


def forgotten_or_not(job: Job, variant: str) -> None:
    """A load whose first execution dies as the variant does, then an export that repeats its rows."""
    job.export("june.csv", JUNE)
    assert job.run("june.csv", module=("tests.broken", variant)).code == -9
    expect(job.run("june.csv"), 0, "delivered 400")
    job.export("again.csv", [*JUNE, *visits(10, first=900)])


# ------------------------------------------------------------------------------------------------- rows.identity


def write(path: Path, rows: Iterable[Visit], **more: str | Callable[[Visit], str]) -> None:
    """As tests.command.write_csv, with these columns more or instead."""
    with path.open("w", newline="") as file:
        header = ["n", "timestamp", "customer_key", "url", "mark", "tid"]
        writer = csv.DictWriter(file, list(dict.fromkeys([*header, *more])))
        writer.writeheader()
        for row in rows:
            values = [row.n, row.at.isoformat(), row.customer, "api://shop/visit", row.mark, row.tid]
            added = {name: value if isinstance(value, str) else value(row) for name, value in more.items()}
            writer.writerow(dict(zip(header, map(str, values), strict=True)) | added)


def test_identity_tells_interactions_apart_whose_content_is_equal_or_not(tmp_path: Path) -> None:
    """Times are only dates: equal content under two message ids is two interactions, one id with other content is one.

    Of one identity the earliest stays. Another customer's row with the same id is another interaction.
    """
    rows = [
        ("1", "2024-02-01", "a", "plain"),
        ("2", "2024-02-01", "a", "plain"),
        ("1", "2024-02-02", "a", "changed"),
        ("1", "2024-01-31", "a", "changed"),
        ("1", "2024-02-01", "b", "plain"),
        ("", "2024-02-01", "c", "plain"),
        ("", "2024-02-02", "c", "plain"),
        ("", "2024-02-02", "c", "plain"),
    ]
    with serving(tmp_path / "log") as server:
        job = job_at(
            tmp_path,
            server,
            columns={"properties": ["mark"]},
            rows={"identity": ["message_id"]},
            time={"zone": "UTC"},
        )
        write_rows(job.folder / "june.csv", rows)
        expect(job.run("june.csv"), 0, "read 8 = delivered 5", "duplicate 3")
        assert repeats(job) == {"june.csv:1": "june.csv:4", "june.csv:3": "june.csv:4", "june.csv:8": "june.csv:7"}
        write_rows(job.folder / "july.csv", [("2", "2025-01-01", "a", "other"), ("3", "2024-02-01", "a", "plain")])
        expect(job.run("july.csv"), 0, "delivered 1", "duplicate 1")
        assert repeats(job)["july.csv:1"] == "june.csv:2"
        properties = [one for call in server.applied() for each in call["interactions"] for one in each["properties"]]
        assert {each["name"] for each in properties} == {"mark"}  # the id is not sent: it is no property here
        assert verify(job.state).ok


def write_rows(path: Path, rows: Sequence[tuple[str, str, str, str]]) -> None:
    header = "message_id,timestamp,customer_key,url,mark,tid\n"
    lines = (f"{one},{day},{PRIVATE}-{who},api://shop,{mark},\n" for one, day, who, mark in rows)
    path.write_text(header + "".join(lines))


def test_a_column_of_the_identity_that_is_missing_is_named(tmp_path: Path) -> None:
    """78 with the export, the key of the configuration and the nearest column; nothing is sent."""
    with serving(tmp_path / "log") as server:
        job = job_at(tmp_path, server, rows={"identity": ["n", "mrak"]})
        job.export("june.csv", JUNE)
        expect(job.run("june.csv"), 78, "june.csv has no column 'mrak'", "rows.identity names", "Did you mean 'mark'?")
        assert server.count() == 0


def test_the_identity_is_frozen_with_its_load(tmp_path: Path) -> None:
    """Changed in the middle of a load: refused, naming both; put back, it goes on."""
    with serving(tmp_path / "log") as server:
        job = job_at(tmp_path, server, rows={"identity": ["n"]})
        job.export("june.csv", JUNE)
        expect(job.run("june.csv", "--limit", "150"), 75)
        job.configure(rows={"identity": ["n", "mark"]})
        expect(job.run(), 78, "rows.identity was", "is now", "Put the settings back")
        job.configure(rows={"identity": ["n"]})
        expect(job.run(), 0, "delivered 400")
        agree(job, server)


def test_other_settings_before_anything_was_sent_leave_nothing_of_the_first_staging(tmp_path: Path) -> None:
    """The load is spooled again, perhaps into fewer pieces; what the first staging remembered must be gone."""
    with serving(tmp_path / "log") as server:
        job = job_at(tmp_path, server)
        job.export("june.csv", JUNE)
        expect(job.run("june.csv", environment={"BACKFILL_CLIENT_SECRET": "wrong"}), 77, "unsent 400")
        (file,) = (job.state / "seen").rglob("*.parquet")
        file.with_name(file.name.replace("00000-", "00007-", 1)).write_bytes(file.read_bytes())
        job.configure(rows={"identity": ["n"]})
        expect(job.run("june.csv"), 0, "staged again", "delivered 400")
        assert len(list((job.state / "seen").rglob("*.parquet"))) == 1
        job.export("again.csv", [row._replace(mark="other") for row in JUNE[:10]])
        expect(job.run("again.csv"), 0, "delivered 0", "duplicate 10")
        agree(job, server)


# --------------------------------------------------------------------------------------------------- run --changed


def accounted(job: Job, versions: Mapping[int, Sequence[Visit]], server: Server) -> dict[int, dict[str, int]]:
    """Asserts that each load has a line for each of its rows, that nothing was applied twice, and that every duplicate
    names a row of the same interaction; returns the outcomes by load."""
    lines = job.ledger()
    outcomes: dict[int, dict[str, int]] = {}
    for load, rows in versions.items():
        of_load = lines.filter(load=load).sort("row")
        assert of_load["row"].to_list() == list(range(1, len(rows) + 1))
        outcomes[load] = dict(of_load["outcome"].value_counts().iter_rows())
        for of in of_load.filter(outcome="duplicate").iter_rows(named=True):
            row = int(of["duplicate_of"].rpartition(":")[2])
            known = {versions[each][row - 1].n for each in range(1, load + 1) if row <= len(versions[each])}
            assert rows[of["row"] - 1].n in known
    times = sent_times(server)
    assert set(times.values()) == {1}
    assert set(times) == {row.n for rows in versions.values() for row in rows}
    verdict = verify(job.state)
    assert verdict.ok, verdict.checks
    return outcomes


def grown(rows: list[Visit]) -> list[Visit]:
    return [*rows, *visits(20, first=900)]


def shrunk(rows: list[Visit]) -> list[Visit]:
    return [*visits(5, first=900), *rows[100:300]]


def edited(rows: list[Visit]) -> list[Visit]:
    return [row._replace(n=row.n + 3_000) if row.n in (1, 200, 400) else row for row in rows]


@pytest.mark.parametrize(
    ("change", "new", "again"),
    [(grown, 20, 400), (shrunk, 5, 200), (edited, 3, 397)],
    ids=["grown", "shrunk", "edited"],
)
def test_of_a_changed_export_only_what_is_new_is_sent(
    tmp_path: Path, change: Callable[[list[Visit]], list[Visit]], new: int, again: int
) -> None:
    """Without --changed it is refused, saying what that would do; with it the rows sent before are duplicates.

    Run again, with or without: known. The account of the named export is that of all its contents.
    """
    with serving(tmp_path / "log") as server:
        job = job_at(tmp_path, server)
        write(job.folder / "june.csv", JUNE)
        expect(job.run("june.csv"), 0, "delivered 400")
        later = change(JUNE)
        write(job.folder / "june.csv", later)
        calls = server.count()
        expect(job.run("june.csv"), 78, "with other content", "--changed", "come out as duplicates")
        assert server.count() == calls
        read = f"read {400 + len(later)} = delivered {400 + new}"
        expect(job.run("june.csv", "--changed"), 0, read, f"duplicate {again}")
        calls = server.count()
        for words in (["june.csv"], ["june.csv", "--changed"], []):
            expect(job.run(*words), 0, read)
        assert server.count() == calls
        assert accounted(job, {1: JUNE, 2: later}, server) == {
            1: {"delivered": 400},
            2: {"delivered": new, "duplicate": again},
        }
        status = job.run(command="status")
        expect(status, 0, "Load 1", "Load 2")
        write(job.folder / "june.csv", JUNE)  # an older content comes back: known as well
        expect(job.run("june.csv"), 0, read)
        assert server.count() == calls


def test_an_unfinished_load_is_finished_first(tmp_path: Path) -> None:
    """Its rows are staged with their old content: they are sent, then of the new content what is new. Nothing is lost.

    Stopped before the new content is taken, the account says that it still is to be taken.
    """
    with serving(tmp_path / "log") as server:
        job = job_at(tmp_path, server)
        write(job.folder / "june.csv", JUNE)
        expect(job.run("june.csv", "--limit", "150"), 75, "delivered 150")
        later = edited(JUNE)[10:]
        write(job.folder / "june.csv", later)
        expect(job.run("june.csv"), 78, "--changed", "after the old content, of which rows are unsent, is finished")
        stopped = job.run("june.csv", "--changed", "--limit", "50")
        expect(stopped, 75, "delivered 200", "june.csv: not taken yet")
        expect(job.run("june.csv", "--changed"), 0, "read 790 = delivered 402", "duplicate 388")
        assert accounted(job, {1: JUNE, 2: later}, server) == {
            1: {"delivered": 400},
            2: {"delivered": 2, "duplicate": 388},
        }


def test_a_changed_export_among_others(tmp_path: Path) -> None:
    """A directory with a changed, an unchanged, a renamed and a new file: each taken for what it is."""
    with serving(tmp_path / "log") as server:
        job = job_at(tmp_path, server)
        (job.folder / "in").mkdir()
        for name, rows in {"a": JUNE[:100], "b": JUNE[100:200], "c": JUNE[200:300]}.items():
            write(job.folder / "in" / f"{name}.csv", rows)
        expect(job.run("in"), 0, "delivered 300")
        write(job.folder / "in" / "a.csv", JUNE[50:150])
        (job.folder / "in" / "c.csv").rename(job.folder / "in" / "d.csv")
        write(job.folder / "in" / "e.csv", JUNE[300:])
        expect(
            job.run("in", "--changed"), 0, "d.csv has the same content as", "read 500 = delivered 400", "duplicate 100"
        )
        assert set(sent_times(server).values()) == {1}
        assert verify(job.state).ok


def test_changed_is_refused_where_it_would_send_rows_again(tmp_path: Path) -> None:
    """78 with the remedy: where duplicates are sent, and where it is not known any more what was."""
    with serving(tmp_path / "log") as server:
        job = job_at(tmp_path, server)
        write(job.folder / "june.csv", JUNE)
        expect(job.run("june.csv"), 0)
        write(job.folder / "june.csv", grown(JUNE))
        calls = server.count()
        expect(
            job.run("june.csv", "--changed", "--set", "rows.duplicates=send"),
            78,
            'rows.duplicates = "send"',
            "all of its rows again",
        )
        (job.state / "seen").rename(job.folder / "seen")
        expect(job.run("june.csv", "--changed"), 78, "load 1", "Restore seen from a backup")
        assert server.count() == calls
        (job.folder / "seen").rename(job.state / "seen")
        expect(job.run("june.csv", "--changed"), 0, "delivered 420", "duplicate 400")


def test_nobody_is_named_where_fingerprints_are_kept(tmp_path: Path) -> None:
    """What is remembered are hashes, readable by the owner only."""
    with serving(tmp_path / "log") as server:
        job = job_at(tmp_path, server)
        job.export("june.csv", JUNE)
        ended = job.run("june.csv")
        expect(ended, 0)
        discreet(ended.said)
        kept = list((job.state / "seen").rglob("*"))
        assert {path.stat().st_mode & 0o777 for path in kept} == {0o600, 0o700}
        assert all(PRIVATE.encode() not in path.read_bytes() for path in kept if path.is_file())
