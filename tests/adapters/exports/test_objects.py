"""Objects against a real S3 server on loopback: found, fetched once, read as files are, or refused with the remedy."""

import gzip
import resource
import stat
import threading
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import polars as pl
import pytest
from backports import zstd

from backfill.adapters.exports import find, look, objects, opened
from backfill.core.address import Address, parse_address
from backfill.core.config import Csv
from backfill.core.errors import BackfillError, ExitCode, ExportError, StoppedEarly, StorageError
from tests.objects import BUCKET, SECRET_KEY, Store, store

CSV = b"n,name\n1,Anna\n2,Bo\n"


@pytest.fixture(scope="module")
def running() -> Iterator[Store]:
    with store() as made:
        yield made


@pytest.fixture
def s3(running: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The server with the environment that leads to it; nothing held, nothing written down yet."""
    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)
    running.asked.clear()
    running.before = lambda method, path: None
    return running


def at(key: str, bucket: str = BUCKET) -> Address:
    return parse_address(f"s3://{bucket}/{key}")


def parquet() -> bytes:
    file = BytesIO()
    pl.DataFrame({"n": ["1", "2"], "name": ["Anna", "Bo"]}).write_parquet(file)
    return file.getvalue()


def zipped() -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inside.csv", CSV)
    return file.getvalue()


@pytest.mark.parametrize(
    ("key", "content"),
    [
        ("read/plain.csv", CSV),
        ("read/a b+c&d%20=ä.csv", CSV),
        ("read/packed.csv.gz", gzip.compress(CSV)),
        ("read/packed.csv.zst", zstd.compress(CSV)),
        ("read/packed.zip", zipped()),
        ("read/typed.parquet", parquet()),
    ],
)
def test_an_object_is_read_as_a_file_is(s3: Store, tmp_path: Path, key: str, content: bytes) -> None:
    """Every format, under any name; known by size and ETag afterwards, and nothing of it stays on the disk."""
    s3.put(key, content)
    (found,) = find([at(key)])
    with opened(found, Csv(), folder=tmp_path) as export:
        (copy,) = tmp_path.iterdir()
        assert stat.S_IMODE(copy.stat().st_mode) == 0o600
        frames = [block.frame for block in export.blocks(export.header)]
        seen = export.fingerprint()
    assert pl.concat(frames).to_dict(as_series=False) == {"n": ["1", "2"], "name": ["Anna", "Bo"]}
    assert isinstance(found, Address)
    assert found.seen is not None
    assert seen == (at(key), len(content), 0, found.seen.identity)
    assert found.seen.identity.startswith("etag:")
    assert list(tmp_path.iterdir()) == []


def test_a_large_object_comes_in_pieces_of_one_etag(s3: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So memory does not grow with it, and the pieces fit together to the byte."""
    content = b"".join(b"%07d\n" % number for number in range(10_000))
    s3.put("large.csv", content)
    monkeypatch.setattr(objects, "PIECE_BYTES", 30_000)
    objects.fetch(at("large.csv"), tmp_path / "copy", objects.never)
    assert (tmp_path / "copy").read_bytes() == content
    assert s3.fetched() == ["large.csv"] * 3


@pytest.mark.parametrize("after", [b"n\n" + b"2\n" * 500, b"n\n" + b"1\n" * 400], ids=["edited", "shrunk"])
def test_an_object_that_changes_while_it_is_fetched_is_refused(
    s3: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bytes
) -> None:
    """Two halves of two versions are never read as one export."""
    s3.put("changing.csv", b"n\n" + b"1\n" * 500)
    monkeypatch.setattr(objects, "PIECE_BYTES", 400)

    def change(method: str, _: str) -> None:
        if method == "GET" and len(s3.fetched()) == 2:
            s3.put("changing.csv", after)

    s3.before = change
    with (
        pytest.raises(ExportError, match=rf"s3://{BUCKET}/changing\.csv changed while it was fetched"),
        opened(at("changing.csv"), Csv(), folder=tmp_path),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_empty_object_is_refused_by_its_own_name(s3: Store, tmp_path: Path) -> None:
    """What a reader finds is told of the object, not of its copy."""
    s3.put("empty.csv", b"")
    with (
        pytest.raises(ExportError, match=rf"s3://{BUCKET}/empty\.csv is empty"),
        opened(at("empty.csv"), Csv(), folder=tmp_path) as export,
    ):
        list(export.blocks(export.header))


def test_a_bad_record_is_told_with_address_and_line(s3: Store, tmp_path: Path) -> None:
    """While blocks are read, too."""
    s3.put("short.csv", CSV + b"3\n")
    with (
        pytest.raises(ExportError, match=rf"s3://{BUCKET}/short\.csv, line 4") as caught,
        opened(at("short.csv"), Csv(), folder=tmp_path) as export,
    ):
        list(export.blocks(export.header))
    assert str(tmp_path) not in caught.value.message


def test_folders_named_key_value_add_their_columns(s3: Store, tmp_path: Path) -> None:
    """Those of the key, as of a path; never those of the folder that the copy lies in."""
    s3.put("hive/country=UK/x.csv", CSV)
    folder = tmp_path / "day=1"
    folder.mkdir()
    with opened(at("hive/country=UK/x.csv"), Csv(), folder=folder) as export:
        assert export.header == ("n", "name", "country")
        (block,) = export.blocks(export.header)
        assert block.frame["country"].to_list() == ["UK", "UK"]


@pytest.fixture(scope="module")
def tree(running: Store) -> None:
    for key in (
        "tree/b.csv",
        "tree/a.csv",
        "tree/.hidden.csv",
        "tree/notes.txt",
        "tree/c.parquet",
        "tree/day=1/d.csv.gz",
        "tree/other/e.csv",
        "tree/other/deep/f.csv",
        "tree/odd[1].csv",
        "treetop.csv",
    ):
        running.put(key, key.encode())


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize(
    ("key", "keys"),
    [
        ("tree/", ["a.csv", "b.csv", "c.parquet", "day=1/d.csv.gz", "odd[1].csv"]),
        ("tree/*.csv", ["a.csv", "b.csv", "odd[1].csv"]),
        ("tree/[ab].csv", ["a.csv", "b.csv"]),
        ("tree/?.*", ["a.csv", "b.csv", "c.parquet"]),
        ("tree/*/?.csv", ["other/e.csv"]),
        ("tree/**/?.csv", ["a.csv", "b.csv", "other/deep/f.csv", "other/e.csv"]),
        ("tree/odd[1].csv", ["odd[1].csv"]),
        ("tr*/other/e.csv", ["other/e.csv"]),
        ("tr??/b.csv", ["b.csv"]),
        ("tree/other/**", ["other/deep/f.csv", "other/e.csv"]),
    ],
)
def test_prefixes_and_globs_stand_for_the_same_as_directories_and_globs(s3: Store, key: str, keys: list[str]) -> None:
    """A slash at the end: the exports directly under it; a star stays between slashes, hidden names are not meant."""
    found = find([at(key), at(key)])
    assert [str(each) for each in found] == [f"s3://{BUCKET}/tree/{name}" for name in keys]
    assert all(isinstance(each, Address) and each.seen == _seen(each) for each in found)
    assert s3.fetched() == []


def _seen(address: Address) -> object:
    looked = look(address)
    assert looked is not None
    return looked.seen


@pytest.mark.usefixtures("tree", "s3")
@pytest.mark.parametrize(
    ("address", "said"),
    [
        (at("tree/none.csv"), r"tree/none\.csv does not exist\. Check the key"),
        (at("tree"), r"All exports under a prefix .*s3://exports-of-june/tree/"),
        (at("tree/*.tsv"), r"No object matches s3://exports-of-june/tree/\*\.tsv"),
        (at("nothing/"), r"holds no \*\.csv.* object, itself or in folders named key=value\. Check the prefix"),
        (at("x.csv", "no-such-bucket"), r"s3://no-such-bucket does not exist"),
        (at("", "no-such-bucket"), r"s3://no-such-bucket does not exist"),
    ],
)
def test_what_names_no_object_is_refused_with_place_and_remedy(address: Address, said: str) -> None:
    """A missing bucket is told from a missing key."""
    with pytest.raises(ExportError, match=said):
        find([address])


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize(
    ("status", "error", "said"),
    [
        (403, ExportError, "may not be read with these credentials.*AWS_ACCESS_KEY_ID"),
        (401, ExportError, "may not be read with these credentials.*AWS_ACCESS_KEY_ID"),
        (301, ExportError, "another region or store.*AWS_REGION"),
        (400, ExportError, "refuses it .HTTP 400"),
        (503, StoppedEarly, "answered HTTP 503, .*Run the same command again later"),
    ],
)
def test_what_a_store_refuses_says_what_to_change(
    s3: Store, status: int, error: type[BackfillError], said: str
) -> None:
    """What a person must mend answers 78; what may pass by itself 75. The secret is never told."""
    s3.before = lambda method, path: status
    with pytest.raises(error, match=f"(?s){said}") as caught:
        find([at("tree/a.csv")])
    assert SECRET_KEY not in repr(caught.value)
    assert caught.value.__cause__ is None


def test_what_a_bucket_is_called_does_not_change_what_is_told(s3: Store) -> None:
    """The library's words are looked through for what is wrong, and they name bucket and key."""
    s3.before = lambda method, path: 503
    with pytest.raises(StoppedEarly, match=r"s3://credential/token request\.csv .*answered HTTP 503"):
        find([at("token request.csv", "credential")])


def test_a_store_that_is_not_there_is_tried_again_later(s3: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """75, like an API that is not there: nothing has to be changed."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(StoppedEarly, match="did not answer") as caught:
        find([at("tree/a.csv")])
    assert caught.value.exit_code is ExitCode.STOPPED_EARLY


@pytest.mark.parametrize("missing", [["AWS_ACCESS_KEY_ID"], ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]])
def test_without_credentials_the_variables_are_named(
    s3: Store, monkeypatch: pytest.MonkeyPatch, missing: list[str]
) -> None:
    """With neither of them the library asks the machine for its role, and that answer helps nobody."""
    for name in missing:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"{s3.url}/no-role")
    s3.before = lambda method, path: 404 if "latest" in path else None
    with pytest.raises(ExportError, match=r"no credentials for s3://.*Set AWS_ACCESS_KEY_ID"):
        find([at("tree/a.csv")])


def test_plain_http_must_be_meant(s3: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else credentials' signatures and customers' rows would go in the open."""
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(ExportError, match="AWS_ALLOW_HTTP=true"):
        find([at("tree/a.csv")])
    assert s3.asked == []


def test_a_store_without_etags_is_refused() -> None:
    """Nothing would tell a changed object from the one that was staged."""
    with pytest.raises(ExportError, match=r"the store gives no ETag, so nobody could tell .* Copy it to a local disk"):
        objects._found(at("a.csv"), {"path": "a.csv", "size": 1, "e_tag": None, "version": None, "last_modified": NOW})


def test_a_setting_that_is_no_address_is_told(s3: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting would not mend it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://")
    with pytest.raises(ExportError, match=r"or a setting of the store, is malformed\. Check AWS_"):
        find([at("tree/a.csv")])
    assert s3.asked == []


def test_a_stop_is_noticed_while_the_store_is_silent(s3: Store, tmp_path: Path, held: Callable[[], None]) -> None:
    """A held answer does not hold the command."""
    s3.put("silent.csv", CSV)
    asked: list[str] = []

    def hold(method: str, path: str) -> None:
        if method == "GET":
            asked.append(path)
            held()

    s3.before = hold
    with pytest.raises(StoppedEarly, match="Stopped by a signal while an export was fetched"):
        objects.fetch(at("silent.csv"), tmp_path / "copy", lambda: bool(asked))


NOW = datetime(2024, 6, 1, tzinfo=UTC)


@pytest.fixture
def held() -> Iterator[Callable[[], None]]:
    """Waits until the test is over."""
    over = threading.Event()
    yield lambda: (over.wait(60), None)[1]
    over.set()


def test_a_full_disk_is_told_as_such(s3: Store, tmp_path: Path) -> None:
    """74, with the address and the folder that needs space; nothing of the object stays."""
    s3.put("full.csv", CSV * 1000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with (
            pytest.raises(StorageError, match=rf"s3://{BUCKET}/full\.csv cannot be fetched to .* Free some space"),
            opened(at("full.csv"), Csv(), folder=tmp_path),
        ):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
