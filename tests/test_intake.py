"""Taking exports in, with real files: new, known, changed, gone, twins, and the ways to name them."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from backfill.adapters import exports
from backfill.adapters.state import Export, JobFile, Load, Tenant
from backfill.core.errors import ExitCode, ExportError
from backfill.intake import Intake, take_in

TENANT = Tenant(base_url="https://mxo.example", site_key="ONE-1", call="interactions-offline")
NOTHING = JobFile(tenant=TENANT)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path.resolve()


def written(path: Path, content: str = "") -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(content or f"timestamp,url\n2024-03-01T00:00:00Z,api://{path.name}\n")
    return path


def knowing(*loads: Sequence[Path]) -> JobFile:
    """A job to which these exports were staged as they are now."""
    return JobFile(
        tenant=TENANT,
        loads=tuple(
            Load(load=number, config={}, exports=tuple(_staged(path) for path in paths))
            for number, paths in enumerate(loads, start=1)
        ),
    )


def _staged(path: Path) -> Export:
    seen = exports.fingerprint(path)
    return Export(path=str(path), size=seen.size, mtime_ns=seen.mtime_ns, sha256=seen.sha256, rows=1)


def refusal(given: Sequence[Path], job: JobFile) -> str:
    with pytest.raises(ExportError) as caught:
        take_in(given, job)
    assert caught.value.exit_code is ExitCode.UNUSABLE
    return caught.value.message


# -------------------------------------------------------------------------------------------------- new and known


def test_an_unknown_file_is_new(folder: Path) -> None:
    """It is staged, and the account is about it."""
    june = written(folder / "june.csv")
    assert take_in([june], NOTHING) == Intake(named=(june,), new=(june,), warnings=())


def test_a_known_file_is_not_staged_again(folder: Path) -> None:
    """Whichever load it was in; the account is about it all the same."""
    june, july = written(folder / "june.csv"), written(folder / "july.csv")
    job = knowing([june], [july])
    assert take_in([july, june], job) == Intake(named=(july, june), new=(), warnings=())


def test_new_files_among_known_ones(folder: Path) -> None:
    """The nightly case: only what came since is staged, all of it is accounted for, in the order given."""
    june = written(folder / "june.csv")
    job = knowing([june])
    july, august = written(folder / "july.csv"), written(folder / "august.csv")
    assert take_in([july, june, august], job) == Intake(named=(july, june, august), new=(july, august), warnings=())


def test_without_exports_there_is_nothing_to_take_in(folder: Path) -> None:
    """`run` without EXPORT goes on with what is unfinished; what is known is not looked for."""
    june = written(folder / "june.csv")
    job = knowing([june])
    june.unlink()
    assert take_in([], job) == Intake(named=(), new=(), warnings=())


def test_a_touched_file_with_the_same_content_is_known(folder: Path) -> None:
    """A copy that lost its mtime is no other export: the content decides."""
    june = written(folder / "june.csv")
    job = knowing([june])
    os.utime(june, (1, 1))
    assert take_in([june], job) == Intake(named=(june,), new=(), warnings=())


# ------------------------------------------------------------------------------------------------- changed and gone


FIRST = "2024-03-01T00:00:00Z,api://june.csv\n"


@pytest.mark.parametrize(
    ("content", "became"),
    [
        ("timestamp,url\n", "it has shrunk from 50 to 14 bytes."),
        (f"timestamp,url\n{FIRST}".upper(), "it still has 50 bytes, but not the same ones."),
        (
            f"timestamp,url\n{FIRST}{FIRST}",
            "it has grown by 36 bytes at its end; the 50 bytes before them, in which its 1 staged rows stand, are "
            "unchanged.",
        ),
        (f"timestamp,url\n\n{FIRST}", "it has grown from 50 to 51 bytes, and not only at its end."),
    ],
)
def test_a_known_file_with_other_content_is_refused(folder: Path, content: str, became: str) -> None:
    """Whatever its size now: staged rows would be sent a second time, so nothing is. It says what became of it."""
    june = written(folder / "june.csv")
    job = knowing([june])
    written(june, content)
    message = refusal([june], job)
    assert message.startswith(f"{june} was staged before with other content: {became} Nothing was sent.")
    assert "run with --changed" in message
    assert "without naming it" not in message


def test_a_large_file_that_has_grown_is_compared_to_its_known_size_only(folder: Path) -> None:
    """Over several blocks of reading, ending within one: what was appended has no part in it."""
    june = written(folder / "june.csv", "timestamp,url\n" + FIRST * 60_000)
    job = knowing([june])
    with june.open("a") as file:
        file.write(FIRST * 30_000)
    assert "it has grown by 1,080,000 bytes at its end" in refusal([june], job)
    content = june.read_bytes()
    june.write_bytes(content[:2_160_000] + b"?" + content[2_160_001:])
    assert "not only at its end" in refusal([june], job)


def test_of_an_unfinished_load_the_content_decides(folder: Path) -> None:
    """An edit that keeps size and mtime is found while rows are unsent; afterwards the file need not be read again."""
    june = written(folder / "june.csv")
    job = knowing([june])
    before = june.stat()
    june.write_text(june.read_text().replace("00:00:00", "23:59:59"))
    os.utime(june, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert take_in([june], job).new == ()
    with pytest.raises(ExportError, match=r"other content.*run without naming it"):
        take_in([june], job, unfinished={1})


def test_one_changed_file_stops_all_new_ones(folder: Path) -> None:
    """Before anything is sent, wherever in the list it stands."""
    june = written(folder / "june.csv")
    job = knowing([june])
    written(june, "other\n")
    july = written(folder / "july.csv")
    assert str(june) in refusal([july, june], job)
    assert str(june) in refusal([folder], job)


def test_a_known_file_that_is_gone_is_a_warning(folder: Path) -> None:
    """Its rows are staged, so the account can be given without it."""
    june = written(folder / "june.csv")
    job = knowing([june])
    june.unlink()
    july = written(folder / "july.csv")
    found = take_in([june, july], job)
    assert set(found.named) == {june, july}
    assert found.new == (july,)
    [warning] = found.warnings
    assert warning.startswith(f"{june} is gone.")


def test_an_unknown_file_that_is_missing_is_refused(folder: Path) -> None:
    """78 with the path: a typing error must not pass for an empty delivery."""
    june = written(folder / "june.csv")
    assert str(folder / "jnue.csv") in refusal([folder / "jnue.csv"], knowing([june]))


# -------------------------------------------------------------------------------------------------------------- twins


def test_a_known_file_under_another_name_is_known(folder: Path) -> None:
    """Moved aside after it was staged: the account is about the name under which it was staged."""
    june = written(folder / "june.csv")
    job = knowing([june])
    moved = june.rename(folder / "done-june.csv")
    found = take_in([moved], job)
    assert (found.named, found.new) == ((june,), ())
    [warning] = found.warnings
    assert str(moved) in warning
    assert str(june) in warning


def test_of_twins_among_the_new_ones_the_first_is_staged(folder: Path) -> None:
    """The same content twice in one delivery would be sent twice under `duplicates = "send"`."""
    first, second = written(folder / "a.csv", "url\nx\n"), written(folder / "b.csv", "url\nx\n")
    found = take_in([second, first], NOTHING)
    assert (found.named, found.new) == ((second,), (second,))
    [warning] = found.warnings
    assert warning.startswith(f"{first} has the same content as {second}")


def test_a_known_file_and_its_twin_count_once(folder: Path) -> None:
    """Both named: one account, nothing to stage."""
    june = written(folder / "june.csv")
    job = knowing([june])
    twin = written(folder / "copy.csv", june.read_text())
    found = take_in([twin, june], job)
    assert (found.named, found.new) == ((june,), ())


def test_equal_sizes_make_no_twins(folder: Path) -> None:
    """Only the content does: two files of one size, and one of a known file's size, are new."""
    june = written(folder / "june.csv", "url\n1\n")
    job = knowing([june])
    july, august = written(folder / "july.csv", "url\n2\n"), written(folder / "august.csv", "url\n3\n")
    assert take_in([july, august], job) == Intake(named=(july, august), new=(july, august), warnings=())


# ------------------------------------------------------------------------------------------------- naming exports


@pytest.mark.parametrize("named", [["."], ["*"], ["*.csv", "*.parquet"], [".", "june.csv"]])
def test_directories_and_globs_stand_for_their_exports(
    folder: Path, monkeypatch: pytest.MonkeyPatch, named: list[str]
) -> None:
    """Each file once, however often it is named; paths are kept whole, so another working directory finds them."""
    june, july = written(folder / "june.csv"), written(folder / "july.parquet")
    monkeypatch.chdir(folder)
    found = take_in([Path(name) for name in named], NOTHING)
    assert set(found.new) == set(found.named) == {june, july}
    assert len(found.named) == 2


def test_a_job_is_known_from_another_working_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative name is resolved where it is given."""
    job = knowing([written(folder / "exports" / "june.csv")])
    monkeypatch.chdir(folder / "exports")
    assert take_in([Path("june.csv")], job).new == ()
    monkeypatch.chdir(folder)
    assert take_in([Path("exports/../exports/june.csv")], job).new == ()


@pytest.mark.parametrize("name", ["empty", "none-*.csv"])
def test_a_directory_or_glob_without_exports_is_refused(folder: Path, name: str) -> None:
    """78: most likely the wrong place."""
    (folder / "empty").mkdir()
    assert name in refusal([folder / name], NOTHING)


def test_a_directory_of_known_and_new_files(folder: Path) -> None:
    """The folder that grows every night: named by the folder, one file is gone, one is known, one is new."""
    june, july = written(folder / "june.csv"), written(folder / "july.csv")
    job = knowing([june, july])
    june.unlink()
    august = written(folder / "august.csv")
    assert take_in([folder], job) == Intake(named=(august, july), new=(august,), warnings=())


def test_a_link_keeps_the_name_that_the_user_chose(folder: Path) -> None:
    """`latest.csv` is the export's name, wherever it leads today; the same file by two names is staged once."""
    real = written(folder / "2024-06.csv")
    link = folder / "latest.csv"
    link.symlink_to(real)
    assert take_in([link], NOTHING) == Intake(named=(link,), new=(link,), warnings=())
    assert take_in([link, real], NOTHING).new == (link,)


def test_a_link_that_leads_elsewhere_now_is_refused(folder: Path) -> None:
    """The name is known with other content."""
    link = folder / "latest.csv"
    link.symlink_to(written(folder / "2024-06.csv"))
    job = knowing([link])
    link.unlink()
    link.symlink_to(written(folder / "2024-07.csv", "url\nx\n"))
    assert str(link) in refusal([link], job)


def test_a_known_link_that_leads_nowhere_is_gone(folder: Path) -> None:
    """Its rows are staged, like those of a file that is gone."""
    link = folder / "latest.csv"
    link.symlink_to(written(folder / "2024-06.csv"))
    job = knowing([link])
    (folder / "2024-06.csv").unlink()
    found = take_in([link], job)
    assert (found.named, found.new, len(found.warnings)) == ((link,), (), 1)


# ------------------------------------------------------------------------------------------- changed and said to be


def test_a_changed_export_is_new_where_the_order_says_so(folder: Path) -> None:
    """Beside what was staged of it; what has not changed stays known."""
    june, july = written(folder / "june.csv"), written(folder / "july.csv")
    job = knowing([june, july])
    written(june, "other\n")
    found = take_in([folder], job, unfinished={1}, changed=True)
    assert (set(found.named), found.new, found.changed) == ({june, july}, (june,), (june,))


def test_an_export_is_known_by_any_content_that_it_had(folder: Path) -> None:
    """Its path stands in two loads: newer and older content are both known; a third is compared with the newest."""
    june = written(folder / "june.csv", "timestamp,url\n" + FIRST)
    first = knowing([june])
    written(june, "timestamp,url\n" + FIRST * 2)
    job = JobFile(tenant=TENANT, loads=(*first.loads, Load(load=2, config={}, exports=(_staged(june),))))
    for times in (1, 2):
        written(june, "timestamp,url\n" + FIRST * times)
        assert take_in([june], job).new == take_in([june], job, changed=True).new == ()
    written(june, "timestamp,url\n" + FIRST * 3)
    assert "it has grown by 36 bytes at its end" in refusal([june], job)
    assert take_in([june], job, changed=True).new == (june,)


def test_a_changed_export_with_the_content_of_another_is_that_one(folder: Path) -> None:
    """Two files that swapped names hold nothing new."""
    june, july = written(folder / "june.csv"), written(folder / "july.csv")
    job = knowing([june, july])
    content = june.read_text()
    june.write_text(july.read_text())
    july.write_text(content)
    found = take_in([june, july], job, changed=True)
    assert (found.new, found.changed, len(found.warnings)) == ((), (), 2)


def test_a_refusal_says_what_changed_would_do(folder: Path) -> None:
    """In the order in which it would happen."""
    june = written(folder / "june.csv")
    job = knowing([june])
    written(june, "other\n")
    assert "run with --changed: it is taken as a new export, and" in refusal([june], job)
    with pytest.raises(ExportError, match="after the old content, of which rows are unsent, is finished; and"):
        take_in([june], job, unfinished={1})
