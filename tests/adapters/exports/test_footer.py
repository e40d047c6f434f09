"""What a Parquet file says about itself: how columns are stored, and whether its pages are whole."""

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest

from backfill.adapters.exports import footer, open_export
from backfill.adapters.exports.footer import read_footer
from backfill.core.config import Csv
from backfill.core.errors import ExportError
from tests.adapters.exports.columnar import parquet, with_footer, without_logical_types, written
from tests.adapters.exports.reading import read

TABLE = pa.table({"k": [f"PRIVATE-{n}" for n in range(600)], "n": list(range(600))})


def test_the_kinds_that_polars_does_not_tell(tmp_path: Path) -> None:
    """INT96, timestamps of the older kind, dates, UUIDs, repeated columns, by the name of their top column."""
    moment = pa.array([0], pa.timestamp("us"))
    old = without_logical_types(parquet(pa.table({"old": moment, "new": pa.array([0])}), version="1.0"))
    assert [(leaf.column, leaf.is_legacy_utc) for leaf in read_footer(written(tmp_path, old)).leaves] == [
        ("old", True),
        ("new", False),
    ]
    table = pa.table(
        {
            "d": pa.array([0], pa.date64()),
            "u": pa.array([b"0123456789abcdef"], pa.uuid()),
            "s": [{"a": [1], "at": None}],
        }
    )
    leaves = read_footer(written(tmp_path, table)).leaves
    assert [(leaf.column, leaf.is_date, leaf.is_uuid, leaf.is_repeated) for leaf in leaves] == [
        ("d", True, False, False),
        ("u", False, True, False),
        ("s", False, False, True),
        ("s", False, False, False),
    ]
    path = written(tmp_path, pa.table({"at": moment}), use_deprecated_int96_timestamps=True)
    assert read_footer(path).leaves[0].is_int96


@pytest.mark.parametrize("options", [{}, {"data_page_version": "2.0"}, {"use_dictionary": False}])
def test_a_flipped_bit_never_passes_where_there_are_checksums(tmp_path: Path, options: dict[str, object]) -> None:
    """In pages and their headers, by 150 flips each: read equal or refused. polars alone reads most of them wrong."""
    raw = parquet(TABLE, write_page_checksum=True, row_group_size=200, **options)
    path = written(tmp_path, raw)
    whole = read(path)
    dice = random.Random(1)
    told = []
    for _ in range(150):
        damaged = bytearray(raw)
        damaged[dice.randrange(4, len(raw) - int.from_bytes(raw[-8:-4], "little") - 8)] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        try:
            assert read(path) == whole
        except ExportError as error:
            told.append(error.message)
    assert len(told) > 100
    assert not [message for message in told if "PRIVATE" in message]


def test_a_wrong_checksum_names_the_column(tmp_path: Path) -> None:
    """And only that column is refused."""
    raw = bytearray(parquet(TABLE, write_page_checksum=True, compression="none", use_dictionary=False))
    raw[raw.index(b"PRIVATE-17")] ^= 1
    path = written(tmp_path, bytes(raw))
    with pytest.raises(ExportError, match=r"a page of column 'k' does not fit its checksum.*copy it again"):
        list(open_export(path, Csv()).blocks(("k",)))
    assert len(list(open_export(path, Csv()).blocks(("n",)))) == 1


class _Kms(pe.KmsClient):  # type: ignore[misc]  # pyarrow has no types
    """Keeps keys where a test may: nowhere."""

    def __init__(self, config: object) -> None:
        super().__init__()

    def wrap_key(self, key: bytes, _: str) -> str:
        return key.hex()

    def unwrap_key(self, wrapped: str, _: str) -> bytes:
        return bytes.fromhex(wrapped)


def _encrypted(path: Path, **options: object) -> None:
    config = pe.EncryptionConfiguration(footer_key="f", column_keys={"c": ["k"]}, **options)
    properties = pe.CryptoFactory(_Kms).file_encryption_properties(pe.KmsConnectionConfig(), config)
    with pq.ParquetWriter(path, TABLE.schema, encryption_properties=properties) as writer:
        writer.write_table(TABLE)


@pytest.mark.parametrize("name", ["export.parquet", "export.csv"])
def test_an_encrypted_file_is_refused_as_such(tmp_path: Path, name: str) -> None:
    """Known by its first bytes, whatever it is called."""
    _encrypted(tmp_path / name)
    with pytest.raises(ExportError, match=r"is encrypted.*without encryption"):
        open_export(tmp_path / name, Csv())


def test_an_encrypted_column_is_refused_by_name(tmp_path: Path) -> None:
    """Where the footer is plain, other columns can be read."""
    path = tmp_path / "export.parquet"
    _encrypted(path, plaintext_footer=True)
    with pytest.raises(
        ExportError,
        match=r"column 'k' is encrypted\. Leave it out by listing the wanted columns in columns\.properties",
    ):
        list(open_export(path, Csv()).blocks(("k", "n")))


def test_damaged_footers_are_one_clear_error(tmp_path: Path) -> None:
    """Cut anywhere, a length beyond the file, counts that do not add up, names that are no text, rubbish inside."""
    raw = parquet(TABLE)
    length = int.from_bytes(raw[-8:-4], "little")
    broken = [raw[:size] for size in (4, 7, 11, 12, 500, len(raw) - 1, len(raw) - 9)]
    broken += [raw[:-8] + (len(raw)).to_bytes(4, "little") + b"PAR1", b"PAR1PAR1", raw[:-8] + bytes(4) + b"PAR1"]
    broken.append(raw[: -8 - length] + b"\x15" * length + raw[-8:])
    broken.append(with_footer(raw, lambda fields: fields.update({3: (6, 2 * 601)})))
    broken.append(with_footer(raw, lambda fields: fields[2][1][1][1].update({4: (8, b"\xff\xfe")})))
    broken.append(with_footer(raw, lambda fields: fields[2][1][1][0].update({5: (5, 2 * 99)})))
    for content in broken:
        path = written(tmp_path, content)
        with pytest.raises(ExportError, match=r"export\.parquet cannot be read as Parquet.*copy it again"):
            list(open_export(path, Csv()).blocks(("n",)))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"timestamp,customer_key\n", r"not Parquet.*ends in \.csv"),
        (b"", "not Parquet.*empty"),
        (b"<html><body>Sign in</body></html>", "not Parquet.*web page"),
        (b"\x1f\x8b" + bytes(50), "not Parquet.*Unpack it first"),
    ],
)
def test_what_is_only_named_parquet_is_refused_by_what_it_is(tmp_path: Path, content: bytes, said: str) -> None:
    """With the remedy."""
    with pytest.raises(ExportError, match=said):
        open_export(written(tmp_path, content), Csv())


def test_pages_that_would_not_fit_into_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what their headers announce, before one is unpacked."""
    path = written(tmp_path, pa.table({"a": ["x" * 5_000], "l": [[1] * 50]}))
    monkeypatch.setattr(footer, "MAX_PAGE_BYTES", 4_000)
    with pytest.raises(ExportError, match=r"column 'a' has a page of 5,0.. bytes.*leave the column out"):
        list(open_export(path, Csv()).blocks(("a",)))
    monkeypatch.setattr(footer, "MAX_PAGE_VALUES", 49)
    with pytest.raises(ExportError, match=r"column 'l' has a page of .* 50 values"):
        list(open_export(path, Csv()).blocks(("l",)))
