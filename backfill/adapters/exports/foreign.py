"""Files that are no export, known by their first bytes: what they are, and what to do instead.

Looks at bytes only; decides nothing about a file that is not on its list.
"""

import re

_BINARY = (
    (b"BZh", "packed by bzip2. Unpack it first"),
    (b"\xfd7zXZ\x00", "packed by xz. Unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive. Unpack it first"),
    (b"Rar!", "a RAR archive. Unpack it first"),
    (b"\x1f\x8b", "packed twice. Unpack it first"),
    (b"\x28\xb5\x2f\xfd", "packed twice. Unpack it first"),
    (b"PK\x03\x04", "packed twice, or an office document in an archive. Unpack it first, or save it as CSV"),
    (b"PK\x05\x06", "an empty zip archive. Export it again"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel workbook. Save its sheet as CSV (UTF-8) first"),
    (b"%PDF-", "a PDF document. Export the data as CSV"),
    (b"PAR1", "a packed Parquet file. Unpack it first: Parquet is compressed by itself"),
    (b"ORC", "an ORC file. Export it as Parquet or CSV"),
    (b"Obj\x01", "an Avro file. Export it as Parquet or CSV"),
    (b"ARROW1", "an Arrow file. Export it as Parquet or CSV"),
    (b"SQLite format 3\x00", "an SQLite database. Export the table as CSV"),
)

_PAGE = re.compile(rb"<(?:!doctype|html|head|body|\?xml|!--)[\s>\-]", re.IGNORECASE)
_JSON = re.compile(rb"(?:\[\s*[\[{\"\]]|\{\s*[\"}])")


def recognised(head: bytes, *, may_be_json: bool) -> str | None:
    """What a file is that begins with `head`, after "it is ...", with what to do; None if it may be an export.

    `may_be_json`: whether a first line that looks like JSON may be a record all the same.
    """
    for magic, what in _BINARY:
        if head.startswith(magic):
            return what
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if _PAGE.match(text):
        return (
            "a web page or XML, not a table: perhaps the page of a login or of an error, saved under the name of an "
            "export. Look into it, and export again"
        )
    if not may_be_json and _JSON.match(text):
        return "JSON, not a table. Export it as CSV or Parquet"
    return None
