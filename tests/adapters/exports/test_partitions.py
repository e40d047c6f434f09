"""What `key=value` folders say about the exports below them."""

from pathlib import Path

import pytest

from backfill.adapters.exports import open_export
from backfill.adapters.exports.partitions import partitions
from backfill.core.config import Csv
from tests.adapters.exports.reading import read


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/data/x.csv", {}),
        ("/data/day=1/x.csv", {"day": "1"}),
        ("/data/year=2024/month=03/x.csv", {"year": "2024", "month": "03"}),
        ("/data/year=2024/raw/x.csv", {}),
        ("/data/shop=Z%2FA%3D1/x.csv", {"shop": "Z/A=1"}),
        ("/data/shop=__HIVE_DEFAULT_PARTITION__/x.csv", {"shop": None}),
        ("/data/shop=/x.csv", {"shop": ""}),
        ("/data/=1/x.csv", {}),
        ("/data/1=1/x.csv", {}),
    ],
)
def test_folders_right_above_the_file_count(path: str, found: dict[str, str | None]) -> None:
    """An unbroken chain of them, the outermost first; a name that no column could have is a folder like any other."""
    assert partitions(Path(path)) == found
    assert list(partitions(Path(path))) == list(found)


def test_columns_are_added_to_every_row(tmp_path: Path) -> None:
    """As text, behind the file's own; one that the file has itself stays as it is there."""
    folder = tmp_path / "day=2024-03-01" / "b=other"
    folder.mkdir(parents=True)
    path = folder / "export.csv"
    path.write_text("a,b\n1,2\n3,4\n")
    assert open_export(path, Csv()).header == ("a", "b", "day")
    assert read(path) == {"a": ["1", "3"], "b": ["2", "4"], "day": ["2024-03-01"] * 2, "row": [1, 2], "line": [2, 3]}
