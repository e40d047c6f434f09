"""Exports change between two executions: each change, met in each stage of a job.

What is refused must cost no request and change nothing; all else must end with every row applied once.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.command import expect, visits, write_csv
from tests.stages import JUNE, LEFT, At, World, prepared_in


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[At]:
    """Brings a job to a stage, once for all cells."""
    with prepared_in(tmp_path_factory.mktemp("changed").resolve()) as at:
        yield at


def _cells(**changes: Iterable[Callable[..., object]]) -> list[Any]:
    """Stages with changes. All changes meet a job that was stopped in the middle, the others those that may differ."""
    return [
        pytest.param(stage, change, id=f"{stage}-{change.__name__}") for stage in changes for change in changes[stage]
    ]


# --------------------------------------------------------------------------------------- what is done to the exports

SENT_ROW, UNSENT_ROW = 10, 190


def _edit(path: Path, row: int) -> None:
    """One byte of a row, its length and the file's time kept: what only the content can tell."""
    known = path.stat()
    lines = path.read_bytes().splitlines(keepends=True)
    assert b"plain" in lines[row]
    lines[row] = lines[row].replace(b"plain", b"plaim")
    path.write_bytes(b"".join(lines))
    os.utime(path, ns=(known.st_atime_ns, known.st_mtime_ns))


def edited_where_sent(world: World) -> None:
    _edit(world.june, SENT_ROW)


def edited_where_unsent(world: World) -> None:
    _edit(world.june, UNSENT_ROW)


def edited_and_touched(world: World) -> None:
    _edit(world.june, SENT_ROW)
    os.utime(world.june)


def shuffled(world: World) -> None:
    write_csv(world.june, [*JUNE[100:], *JUNE[:100]])


def cut(world: World) -> None:
    write_csv(world.june, JUNE[:180])


def cut_in_a_row(world: World) -> None:
    os.truncate(world.june, world.june.stat().st_size - 7)


def grown_at_its_end(world: World) -> None:
    write_csv(world.june, [*JUNE, *visits(10, first=500)])


def grown_within(world: World) -> None:
    write_csv(world.june, [*visits(10, first=500), *JUNE])


def emptied(world: World) -> None:
    os.truncate(world.june, 0)


def led_elsewhere(world: World) -> None:
    """A link of the export's name to other content."""
    write_csv(world.job.folder / "other.csv", visits(200, first=3_000))
    world.june.unlink()
    world.june.symlink_to(world.job.folder / "other.csv")


REFUSED: dict[Callable[[World], None], str] = {
    edited_where_sent: "it still has",
    edited_where_unsent: "it still has",
    edited_and_touched: "not the same ones",
    shuffled: "it still has",
    cut: "it has shrunk from",
    cut_in_a_row: "it has shrunk from",
    emptied: "to 0 bytes",
    grown_at_its_end: "bytes at its end; the",
    grown_within: "and not only at its end",
    led_elsewhere: "bytes",
}
"""Each change, and what the message says of it."""


@pytest.mark.parametrize(
    ("stage", "change"),
    _cells(
        stopped=REFUSED,
        complete=[edited_where_sent, edited_and_touched, cut],
        unsent=[edited_where_unsent, grown_at_its_end],
    ),
)
def test_an_export_with_other_content_is_refused(prepared: At, stage: str, change: Callable[[World], None]) -> None:
    """78 naming the file, what became of it and what to do: no request, not even for a token, and nothing is changed.

    Only of a finished load equal size and time pass for equal content.
    """
    world = prepared(stage).again()
    before = world.frozen()
    change(world)
    ended = world.job.run("exports")
    if (stage, change) == ("complete", edited_where_sent):
        expect(ended, 0, "read 260 = delivered 260")
    else:
        expect(ended, 78, str(world.june), "other content", REFUSED[change], "Nothing was sent", "Put the old content")
        assert ("run without naming it" in ended.said) == (stage != "complete")
    assert world.requests() == 0
    assert world.frozen() == before


@pytest.mark.parametrize("stage", LEFT)
def test_put_back_all_goes_on(prepared: At, stage: str) -> None:
    """After two refusals in a row the old content is put back, with another time: the same command completes.

    Without naming the export it would have completed, too: what is frozen needs no file.
    """
    world = prepared(stage).again()
    content = world.june.read_bytes()
    for change in (cut_in_a_row, edited_and_touched):
        change(world)
        expect(world.job.run("exports"), 78)
        world.june.write_bytes(content)
    if stage == "stopped":
        grown_at_its_end(world)
        expect(world.job.run(), 0, "delivered 260")
        world.june.write_bytes(content)
    expect(world.job.run("exports"), 0, "read 260 = delivered 260")
    assert world.agrees() == {"delivered": 260}
    assert (world.requests() > 0) == (LEFT[stage] > 0)


# -------------------------------------------------------------------------------- changes that change nothing to send


def touched(world: World) -> list[Path]:
    os.utime(world.june)
    return [world.june.parent]


def renamed(world: World) -> list[Path]:
    return [world.june.rename(world.june.with_name("renamed.csv")), world.july]


def renamed_in_its_directory(world: World) -> list[Path]:
    world.june.rename(world.june.with_name("renamed.csv"))
    return [world.june.parent]


def moved(world: World) -> list[Path]:
    (world.job.folder / "archive").mkdir()
    return [world.june.rename(world.job.folder / "archive" / "june.csv"), world.july]


def linked(world: World) -> list[Path]:
    (world.job.folder / "archive").mkdir()
    world.june.symlink_to(world.june.rename(world.job.folder / "archive" / "2024-06.csv"))
    return [world.june.parent]


def deleted(world: World) -> list[Path]:
    world.june.unlink()
    return [world.june, world.july]


def lost_from_its_directory(world: World) -> list[Path]:
    world.june.unlink()
    return [world.june.parent]


def beside_a_new_one(world: World) -> list[Path]:
    world.job.export("exports/august.csv", visits(40, first=5_000))
    return [world.june.parent]


SAME: dict[Callable[[World], list[Path]], str] = {
    touched: "read 260 = delivered 260",
    renamed: "renamed.csv has the same content as",
    renamed_in_its_directory: "renamed.csv has the same content as",
    moved: "has the same content as",
    linked: "read 260 = delivered 260",
    deleted: "june.csv is gone",
    lost_from_its_directory: "read 60 = delivered 60",
    beside_a_new_one: "read 300 = delivered 300",
}
"""Each change, and what the summary says; the account is about the named exports only."""


@pytest.mark.parametrize(
    ("stage", "change"),
    _cells(
        stopped=SAME,
        complete=[touched, renamed, linked],
        unsent=[renamed_in_its_directory, deleted, beside_a_new_one],
    ),
)
def test_the_same_content_goes_on_as_it_was(prepared: At, stage: str, change: Callable[[World], list[Path]]) -> None:
    """Whatever became of its name, place or time, an export is known by its content: every row is applied once."""
    world = prepared(stage).again()
    expect(world.job.run(*change(world)), 0, SAME[change])
    new = 40 if change is beside_a_new_one else 0
    assert world.agrees() == {"delivered": 260 + new}
    assert (world.requests() == 0) == (LEFT[stage] + new == 0)


@pytest.mark.parametrize("stage", LEFT)
def test_other_rows_under_another_name_are_a_new_load(prepared: At, stage: str) -> None:
    """The known export is gone from its directory and another one came: the first load is finished, then the other."""
    world = prepared(stage).again()
    world.june.rename(world.june.with_name("june-2.csv"))
    world.job.export("exports/june-2.csv", visits(200, first=7_000))
    expect(world.job.run("exports"), 0, "read 260 = delivered 260")
    assert world.agrees() == {"delivered": 460}
    assert world.job.ledger().filter(load=2)["export"].unique().to_list() == [str(world.june.with_name("june-2.csv"))]


# ----------------------------------------------------------------------------------------------- nothing was frozen yet


def unchanged(world: World) -> list[str]:
    return ["exports"]


def longer(world: World) -> list[str]:
    world.job.export("exports/june.csv", [*JUNE, *visits(10, first=500)])
    return ["exports"]


def under_another_name(world: World) -> list[str]:
    world.job.truth[str(world.june.rename(world.june.with_name("renamed.csv")))] = world.job.truth.pop(str(world.june))
    return ["exports"]


def without_june(world: World) -> list[str]:
    world.june.unlink()
    del world.job.truth[str(world.june)]
    return ["exports"]


def with_other_settings(world: World) -> list[str]:
    return [
        "exports",
        "--set",
        "columns.url={ value = 'api://shop/visit' }",
        "--set",
        "columns.properties=['mark', 'n']",
    ]


@pytest.mark.parametrize("change", [unchanged, longer, under_another_name, without_june, with_other_settings])
def test_what_was_not_frozen_may_change(prepared: At, change: Callable[[World], list[str]]) -> None:
    """Killed just before the freeze: tenant (the killed one had another site key), exports and settings are free.

    Nothing of what was spooled is left.
    """
    world = prepared("spooling").again()
    expect(world.job.run(*change(world)), 0)
    assert world.agrees() == {"delivered": sum(map(len, world.job.truth.values()))}
    assert {path.name for path in (world.job.state / "staged").iterdir()} == {"1"}


def test_what_was_not_frozen_and_is_gone_is_missing(prepared: At) -> None:
    """Named, never staged and not there: 78, unlike one that was staged."""
    world = prepared("spooling").again()
    world.june.unlink()
    expect(world.job.run(world.june, world.july), 78, str(world.june))
    assert world.requests() == 0
