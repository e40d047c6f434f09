"""The bytes of an export: told by their beginning, unpacked in a stream, and identified as they lie on disk."""

import gzip
import hashlib
import os
import threading
import zipfile
from pathlib import Path

import pytest
from backports import zstd

from backfill.adapters.exports import begins_as, fingerprint
from backfill.adapters.exports.content import Content
from backfill.core.errors import ExportError
from tests.adapters.exports.reading import read, written

TEXT = b"a,b\n" + b"".join(b"%d,x\n" % n for n in range(5_000))


def zipped(path: Path, *members: tuple[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def unpacked(path: Path, size: int = 1_000) -> bytes:
    with Content(path) as content:
        target, found = bytearray(size), b""
        while count := content.readinto(memoryview(target)):
            found += target[:count]
        assert content.fingerprint() == fingerprint(path)
    return found


def test_the_fingerprint_is_of_the_contents(tmp_path: Path) -> None:
    """SHA-256 of the bytes, whatever was skipped in reading them."""
    path = written(tmp_path, "\ufeffa,b\n\n1,2\n\n")
    found = fingerprint(path)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (found.size, found.mtime_ns) == (path.stat().st_size, path.stat().st_mtime_ns)


@pytest.mark.parametrize("size", [1_000, 4_096, 1 << 20])
def test_packed_bytes_come_out_whole(tmp_path: Path, size: int) -> None:
    """gzip (also of several members), zstd (also of several frames) and zip, whatever the name says."""
    halves = TEXT[:7_000], TEXT[7_000:]
    for packed in (
        TEXT,
        gzip.compress(TEXT),
        zstd.compress(TEXT),
        b"".join(map(gzip.compress, halves)),
        b"".join(map(zstd.compress, halves)),
    ):
        assert unpacked(written(tmp_path, packed, "odd.name"), size) == TEXT
    assert unpacked(zipped(tmp_path / "x.csv", ("folder/a.csv", TEXT), (".DS_Store", b"\0")), size) == TEXT


def test_the_fingerprint_is_of_the_packed_file(tmp_path: Path) -> None:
    """As it lies there, so that a known export need not be unpacked to be known."""
    path = written(tmp_path, gzip.compress(TEXT), "export.csv.gz")
    assert read(path)["row"] == list(range(1, 5_001))
    assert fingerprint(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_packed_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    """Also if what was changed had been unpacked already, or is no part of what is unpacked."""
    path = zipped(tmp_path / "export.zip", ("a.csv", TEXT))
    with Content(path) as content:
        os.utime(path, ns=(1, 1))
        with pytest.raises(ExportError, match="changed while it was read"):
            content.fingerprint()


def test_a_grown_file_begins_as_before(tmp_path: Path) -> None:
    """True only where the known bytes are all there, unchanged."""
    path = written(tmp_path, "a,b\n1,2\n")
    known = fingerprint(path)
    path.write_bytes(path.read_bytes() + b"3,4\n")
    assert begins_as(path, known.size, known.sha256)
    path.write_bytes(b"a,b\n1,3\n3,4\n")
    assert not begins_as(path, known.size, known.sha256)
    path.write_bytes(b"a,b\n")
    assert not begins_as(path, known.size, known.sha256)


def test_what_cannot_be_unpacked_says_so(tmp_path: Path) -> None:
    """Cut short, damaged, several files inside, a password: each with the file and what to do."""
    whole = gzip.compress(TEXT)
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0x55
    secret = zipped(tmp_path / "secret.zip", ("a.csv", TEXT)).read_bytes()
    # The flag of a password, in the member's own head and in the directory at the end.
    secret = secret.replace(b"PK\x03\x04\x14\x00\x00", b"PK\x03\x04\x14\x00\x01")
    secret = secret.replace(b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01")
    for packed, said in (
        (whole[:-9], "cut short"),
        (bytes(damaged), "damaged"),
        (zstd.compress(TEXT)[:-5], "cut short"),
        (zipped(tmp_path / "two.zip", ("a", b"1"), ("b", b"2")).read_bytes(), "of 2 files"),
        (secret, "password"),
    ):
        path = written(tmp_path, packed)
        with pytest.raises(ExportError, match=said) as caught:
            unpacked(path)
        assert str(path) in caught.value.message


def test_a_bomb_takes_no_memory(tmp_path: Path) -> None:
    """300 MB that are packed into some kilobytes are read in blocks; anonymous memory grows by less than 100 MB."""
    path = tmp_path / "bomb.csv.zst"
    with zstd.ZstdFile(path, "wb") as file:
        file.write(b"a,b\n")
        for _ in range(300):
            file.write(b"1234567,7654321\n" * (1 << 16))
    assert path.stat().st_size < 1 << 20
    before_kb, peak_kb, done = _anonymous_kb(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak_kb[0] = max(peak_kb[0], _anonymous_kb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with Content(path) as content:
            target, size = memoryview(bytearray(8 << 20)), 0
            while count := content.readinto(target):
                size += count
    finally:
        done.set()
        watcher.join()
    assert size == 4 + 300 * 16 * (1 << 16)
    assert peak_kb[0] - before_kb < 100 * 1024


def _anonymous_kb() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0])
