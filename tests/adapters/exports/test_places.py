"""What arguments stand for: files, directories with their `key=value` folders, globs."""

import os
from pathlib import Path

import pytest

from backfill.adapters.exports import find
from backfill.core.errors import ExportError
from tests.adapters.exports.reading import written


def test_find_lists_files_directories_and_globs_once(tmp_path: Path) -> None:
    """In the order of the arguments, by name within each, each file a single time."""
    for name in ("b.csv", "a.CSV", "c.parquet", "notes.txt", ".hidden.csv"):
        written(tmp_path, "x", name)
    (tmp_path / "sub.csv").mkdir()
    inside = ["a.CSV", "b.csv", "c.parquet"]
    assert find([tmp_path]) == [tmp_path / name for name in inside]
    assert find([tmp_path / "c.parquet", tmp_path / "*.csv", tmp_path]) == [
        tmp_path / name for name in ("c.parquet", "b.csv", "a.CSV")
    ]
    assert find([tmp_path / "notes.txt"]) == [tmp_path / "notes.txt"]
    odd = written(tmp_path, "x", "june[1].csv")
    assert find([odd]) == [odd]


@pytest.mark.parametrize(
    ("name", "said"),
    [("gone.csv", "gone.csv"), ("empty", "without exports"), ("*.xls", "No file matches"), ("pipe", "no regular file")],
)
def test_find_says_what_names_no_export(tmp_path: Path, name: str, said: str) -> None:
    """Each with the path as it was given."""
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ExportError, match=said) as caught:
        find([tmp_path / name])
    assert str(tmp_path / name) in caught.value.message


def test_standard_input_is_refused() -> None:
    """After a crash it would be gone."""
    with pytest.raises(ExportError, match=r"Standard input cannot be staged: .* Write it to a file"):
        find([Path("-")])


def test_a_directory_stands_for_packed_exports_too(tmp_path: Path) -> None:
    """By name, in any case; other files must be named one by one."""
    taken = ["a.csv.gz", "b.CSV.ZST", "c.tsv", "d.tsv.gz", "e.zip", "f.parquet"]
    for name in (*taken, "backfill.toml", "g.json.gz", "h.csv.part", "i.gz", "_SUCCESS"):
        written(tmp_path, "x", name)
    assert find([tmp_path]) == [tmp_path / name for name in taken]


def test_only_folders_named_key_value_are_walked(tmp_path: Path) -> None:
    """As deep as they go, in the order of their names; a link that leads back up is no second export."""
    for folder in ("day=2", "day=1/shop=a", "day=1/old", "other", ".day=3"):
        (tmp_path / folder).mkdir(parents=True)
        written(tmp_path / folder, "x")
    (tmp_path / "day=1" / "up=1").symlink_to(tmp_path)
    inside = [tmp_path / "day=1/shop=a/export.csv", tmp_path / "day=2/export.csv"]
    assert {Path(str(path)).resolve() for path in find([tmp_path])} == {path.resolve() for path in inside}
    assert len(find([tmp_path])) == 2


@pytest.mark.parametrize(
    "address", ["s3://bucket/june.csv", "gcs://b/x.parquet", "abfss://c/*.csv", "https://host/x.csv?sig=SECRET"]
)
def test_an_address_of_elsewhere_is_refused_with_the_remedy(address: str) -> None:
    """Rather than called missing; without its query, which may be signed. One of a store, that lost its slash, too."""
    with pytest.raises(
        ExportError, match=r"only s3://, gs:// and az:// .*copy other exports to a local disk"
    ) as caught:
        find([Path(address)])
    assert address.split("?")[0] in caught.value.message
    assert "SECRET" not in caught.value.message
