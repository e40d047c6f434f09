"""Packed exports, files that are no exports, and exports in `key=value` folders."""

import bz2
import gzip

from backports import zstd

from tests.corpus.case import Case
from tests.corpus.text import plain, read, refused, sent, table, two, zipped

PAGE = "<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>Session expired</body></html>\n"
UTF16 = "utf-16"  # with its byte order mark

PACKED = [
    read("gzip", gzip.compress(two().encode()), plain(), file="export.csv.gz"),
    read("gzip-under-another-name", gzip.compress(two().encode()), plain()),
    read("gzip-in-two-members", gzip.compress(two().encode()[:50]) + gzip.compress(two().encode()[50:]), plain()),
    read("gzip-utf16", gzip.compress(two().encode(UTF16)), plain()),
    read("zstd", zstd.compress(two().encode()), plain(), file="export.csv.zst"),
    read("zip", zipped(("june/export.csv", two().encode())), plain(), file="export.zip"),
    read(
        "zip-from-a-mac",
        zipped(("export.csv", two().encode()), ("__MACOSX/._export.csv", b"\0")),
        plain(),
        file="export.zip",
    ),
    refused("gzip-cut", gzip.compress(table(*"x" * 25).encode())[:-20], "cut short"),
    refused(
        "gzip-damaged",
        bytes(byte ^ (at == 60) for at, byte in enumerate(gzip.compress(two().encode()))),
        "damaged",
        "cannot be unpacked",
    ),
    refused("gzip-and-rubbish", gzip.compress(two().encode()) + b"rubbish", "damaged"),
    refused("zstd-cut", zstd.compress(two().encode())[:-9], "cut short"),
    refused("zip-of-two", zipped(("a.csv", b"a\n"), ("b.csv", b"b\n")), "zip archive of 2 files", file="export.zip"),
    refused("zip-of-none", zipped(), "empty zip archive", file="export.zip"),
    refused("zip-cut", zipped(("a.csv", two().encode()))[:-9], "damaged", file="export.zip"),
    refused("packed-twice", gzip.compress(gzip.compress(two().encode())), "packed twice"),
    refused("gzip-of-nothing", gzip.compress(b""), "is empty"),
    refused("bzip2", bz2.compress(two().encode()), "packed by bzip2"),
]

FOREIGN = [
    refused("web-page", PAGE, "a web page", "Look into it"),
    refused("xml", '<?xml version="1.0"?>\n<rows/>\n', "a web page or XML"),
    refused("json", '[\n {"timestamp": "2024-03-01", "customer_key": "PRIVATE"}\n]\n', "is JSON"),
    refused("json-lines", '{"timestamp": "2024-03-01", "customer_key": "PRIVATE"}\n', "is JSON"),
    refused(
        "excel",
        zipped(("[Content_Types].xml", b"<x/>"), ("xl/workbook.xml", b"<x/>")),
        "Excel workbook",
        "Save its sheet as CSV",
    ),
    refused("old-excel", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 500, "old Excel workbook"),
    refused("pdf", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "PDF"),
    refused(
        "text-of-another-kind",
        "Dear colleague,\n\nthe export failed last night.\n",
        "column 2 has no name",
        "csv.skip_lines",
    ),
]

FOLDERS = [
    read(
        "key-value-folders",
        two(),
        [sent(1, 2, day="2024-03-01", shop="Z/A"), sent(2, 3, day="2024-03-01", shop="Z/A")],
        file="day=2024-03-01/shop=Z%2FA/export.csv",
    ),
    read("folder-without-value", two(), plain(), file="shop=__HIVE_DEFAULT_PARTITION__/export.csv"),
    read("folder-of-an-own-column", two(), plain(), file="note=other/export.csv"),
]

CASES: list[Case] = [*PACKED, *FOREIGN, *FOLDERS]
