"""What the first lines of a CSV say, and what is advised."""

import pytest

from backfill.core.config import Csv
from backfill.core.errors import ExportError
from backfill.core.header import advice, check, looks_like_data, shape, shown

WANTED = ("timestamp", "customer_key", "url")
LINES = ("Report of March;", "", "timestamp;customer_key;url;note", "2024-03-01;C1;api://x;y")


@pytest.mark.parametrize(
    "name", ["2024-03-01", "01.03.24", "17", "-1,5", "a@b.example", "api://shop", "C000123", "12:30"]
)
def test_dates_numbers_addresses_and_ids_are_data(name: str) -> None:
    """One of them is enough: such a record is shown by its shape."""
    assert looks_like_data(["timestamp", name])
    assert name not in shown(["timestamp", name])


def test_names_of_columns_are_no_data() -> None:
    """Digits and signs in them do not make them values."""
    names = ["timestamp", "q1_2023", "Kunde-Nr.", "utm source", "größe (cm)"]
    assert not looks_like_data(names)
    assert shown(names, 2) == "'timestamp', 'q1_2023' and 3 more"


def test_a_shape_tells_nothing_but_the_shape() -> None:
    """Letters and digits are masked, and it is short."""
    assert shape("Änne-17/b") == "Aaaa-99/a"
    assert shape("x" * 100) == "a" * 24 + "..."


@pytest.mark.parametrize(
    ("names", "said", "unsaid"),
    [
        (["a", ""], ["column 2 has no name in the header", "csv.skip_lines"], "None"),
        (["a", "b", "a"], ["columns 1 and 3 are named 'a'"], "data"),
        (["2024-03-01", "Meyer", "Meyer"], ["columns 2 and 3 have the same name", "csv.header"], "Meyer"),
    ],
)
def test_columns_need_a_name_each(names: list[str], said: list[str], unsaid: str) -> None:
    """A record of data is not shown."""
    with pytest.raises(ExportError) as caught:
        check(names, "june.csv")
    assert all(part in caught.value.message for part in ("june.csv", *said))
    assert unsaid not in caught.value.message


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (Csv(), 'Line 3 reads like the header: set csv.delimiter = ";" and csv.skip_lines = 2.'),
        (Csv(delimiter=";"), "Line 3 reads like the header: set csv.skip_lines = 2."),
        (Csv(skip_lines=2), 'Line 3 reads like the header: set csv.delimiter = ";".'),
        (Csv(delimiter=";", skip_lines=3), "Line 3 reads like the header: set csv.skip_lines = 2."),
        (Csv(header=["a", "b"]), ""),
    ],
)
def test_the_line_that_reads_like_the_header_is_found(options: Csv, said: str) -> None:
    """With what makes it the header; who declared the names is told nothing."""
    header = [field for field in LINES[min(options.skip_lines, 3)].split(options.delimiter) if field]
    assert advice(WANTED, header, LINES, options) == said


def test_a_likely_delimiter_is_told_by_its_count() -> None:
    """Where no line has the wanted columns."""
    said = advice(WANTED, ["a|b|c;d"], ["a|b|c;d", "1|2|3;4"], Csv())
    assert 'holds "|" 2 times' in said
    assert 'csv.delimiter = "|"' in said


def test_nothing_is_said_where_nothing_is_known() -> None:
    """Other names than expected are no matter of the first lines."""
    assert advice(WANTED, ["when", "who"], ["when,who", "x,y"], Csv()) == ""
