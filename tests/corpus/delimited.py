"""CSV: shapes, quotes, encodings, headers, and what stands around the table."""

from tests.corpus.case import Case, Invalid
from tests.corpus.text import HEADER, plain, read, record, refused, sent, table, two

NAMES = ["timestamp", "customer_key", "url", "note"]
QUOTED = '"a\n# b"'
UTF16 = "utf-16"  # with its byte order mark

SHAPES = [
    read("plain", two(), plain()),
    read("crlf", two(end="\r\n"), plain()),
    read("no-last-line-end", two().removesuffix("\n"), plain()),
    read("header-only", HEADER + "\n", []),
    read(
        "blank-lines",
        f"\n{HEADER}\n\n{record(1)}\r\n\r\n\n{record(2)}\n\n",
        [sent(1, 4), sent(2, 7)],
    ),
    read(
        "line-breaks-in-values",
        table('"a\nb\n\nc"', "x", '"d\r\ne"', "x"),
        [
            sent(1, 2, "a\nb\n\nc"),
            sent(2, 6),
            sent(3, 7, "d\r\ne"),
            sent(4, 9),
        ],
    ),
    refused(
        "short-row",
        table("x") + "2024-03-02T10:00:00Z,PRIVATE-short\n" + two(),
        "line 3",
        "2 fields where the header has 4",
    ),
    refused("long-row", table("x", "x,y", "x"), "line 3", "5 fields where the header has 4"),
    refused("long-and-short", table("x,y") + "a,b,c\n", "line 2", "5 fields"),
    refused("cut-off-row", table("x") + "2024-03-02T10:00:00Z,PRIV", "line 3", "2 fields", "cut off"),
    refused("lines-end-in-cr", two(end="\r"), "line 1", "carriage return (CR)", "LF or CRLF"),
    refused("one-line-ends-in-cr", two().replace("x\n", "x\r", 1), "line 2", "carriage return (CR)"),
    refused("nul", table("x", "a\0b"), "line 3", "NUL"),
    refused("nul-tail", two() + "\0" * 4096, "line 4", "NUL", "damaged"),
    refused("empty", "", "is empty"),
    refused("only-blank-lines", "\n\r\n\n", "no header", "blank lines"),
]

QUOTES = [
    read(
        "quoted",
        table('"a,b"', '"say ""x"""', '""', '"x"'),
        [
            sent(1, 2, "a,b"),
            sent(2, 3, 'say "x"'),
            sent(3, 4, None),
            sent(4, 5),
        ],
    ),
    read("other-quote", table("'a,b'", "it"), [sent(1, 2, "a,b"), sent(2, 3, "it")], quote="'"),
    read("inches", table('19" rack, 5" deep'.replace(",", "")), [sent(1, 2, '19" rack 5" deep')]),
    refused("unclosed-quote", table("x", '"open', "x"), "line 3", "never closes", 'csv.quote = ""'),
    refused("unclosed-quote-in-header", '"timestamp,customer_key\n' + two(header=None), "line 1", "never closes"),
    refused("stray-quote", table("x", '"a"b', "x"), "line 3", "a quote inside a field", 'csv.quote = ""'),
    refused("two-unbalanced", table('5" x', '6" y'), "line 2", "a quote inside a field. It must be doubled"),
    refused("backslash-escapes", table(r'"say \"x\", twice"'), "line 2", "quote inside a field"),
    read("quotes-off", table('5" screen', '"', "x"), [sent(1, 2, '5" screen'), sent(2, 3, '"'), sent(3, 4)], quote=""),
]

ENCODINGS = [
    read("utf8", table("Zürich €"), [sent(1, 2, "Zürich €")]),
    read("utf8-bom", "\ufeff" + table("Zürich"), [sent(1, 2, "Zürich")]),
    read(
        "bom-and-quoted-header",
        '\ufeff"timestamp","customer_key","url","note"\n' + table("x", header=None),
        [sent(1, 2)],
    ),
    read("utf16", table("Zürich 😀", '"a\nb"').encode(UTF16), [sent(1, 2, "Zürich 😀"), sent(2, 3, "a\nb")]),
    read("utf16-be", b"\xfe\xff" + two(end="\r\n").encode("utf-16-be"), plain()),
    read("utf16-declared", two().encode("utf-16-le"), plain(), encoding="utf-16-le"),
    refused("utf16-without-bom", two().encode("utf-16-le"), "line 1", "NUL", 'csv.encoding = "utf-16-le"'),
    refused("utf16-vague", two().encode("utf-16-le"), "no byte order mark", "utf-16-le", encoding="utf-16"),
    refused("utf16-cut", two().encode(UTF16)[:-1], "line 3", "middle of a character"),
    read("latin1", table("Zürich").encode("latin-1"), [sent(1, 2, "Zürich")], encoding="latin-1"),
    read("windows-1252", table("Zürich 5 €").encode("cp1252"), [sent(1, 2, "Zürich 5 €")], encoding="windows-1252"),
    refused(
        "latin1-undeclared",
        table("x", "Zürich").encode("latin-1"),
        "line 3",
        "byte 46",
        "0xFC",
        'csv.encoding = "windows-1252"',
        "latin-1",
    ),
    refused(
        "latin1-is-windows",
        table("x", "5 €").encode("cp1252"),
        "line 3",
        "byte 47",
        "0x80",
        "Latin-1",
        'csv.encoding = "windows-1252"',
        encoding="latin-1",
    ),
    refused(
        "windows-undefined",
        table("x").encode() + record(2).encode() + b"\x81\n",
        "line 3",
        "0x81",
        "cp1252",
        encoding="windows-1252",
    ),
    refused(
        "bad-byte-in-header",
        b"timestamp,customer_key,url,not\xe9\n" + two(header=None).encode(),
        "line 1",
        "byte 31",
        "0xE9",
        "csv.encoding",
    ),
    refused("utf8-cut", table("é").encode()[:-2], "line 2", "0xC3", "not UTF-8"),
]

HEADERS = [
    read("headerless", two(header=None), plain(1), header=NAMES),
    refused(
        "missing-header",
        two(header=None),
        "'timestamp'",
        "looks like data",
        "9999-99-99A99:99:99A",
        "4 columns",
        "csv.header = [...]",
    ),
    refused(
        "missing-header-repeats",
        "2024-03-01T10:00:00Z,PRIVATE-x,PRIVATE-x,x\n",
        "columns 2 and 3 have the same name",
        "looks like data",
        "csv.header",
    ),
    refused("header-after-all", two(), "line 1", "first record is a header", "csv.skip_lines = 1", header=NAMES),
    refused("too-many-names", two(header=None), "line 1", "4 fields where csv.header names 5", header=[*NAMES, "more"]),
    refused("repeated-name", two(header="timestamp,customer_key,url,url"), "columns 3 and 4 are named 'url'"),
    refused("empty-name", two(header="timestamp,customer_key,,note"), "column 3 has no name"),
    refused(
        "misspelled-name", two(header="timestamp,custmer_key,url,note"), "'customer_key'", "Did you mean 'custmer_key'?"
    ),
    refused(
        "blank-in-name",
        two(header="timestamp, customer_key, url, note"),
        "'customer_key'",
        "Did you mean ' customer_key'?",
    ),
]

DELIMITERS = [
    *(
        read(f"delimiter-{word}", two(delimiter=char), plain(), delimiter=char)
        for word, char in (("semicolon", ";"), ("bar", "|"), ("tab", "\t"))
    ),
    *(
        refused(f"undeclared-{word}", two(delimiter=char), "'timestamp'", f"csv.delimiter = {said}")
        for word, char, said in (("semicolon", ";", '";"'), ("bar", "|", '"|"'), ("tab", "\t", '"\\t"'))
    ),
    refused("other-names-and-delimiter", "when;who;where\n1;2;3\n", "single column", 'csv.delimiter = ";"'),
    refused("two-characters", two(), "csv.delimiter", "one ASCII character", delimiter="||"),
    refused(
        "decimal-commas",
        "timestamp;customer_key;url;amount\n2024-03-01T10:00:00Z;PRIVATE-d;api://x;1,5\n",
        'csv.delimiter = ";"',
    ),
]

AROUND = [
    read("preamble", "Report of March\n\n" + two(), plain(4), skip_lines=2),
    refused(
        "undeclared-preamble",
        'Report "March"\nmade by PRIVATE,on Monday\n\n' + two(),
        "'timestamp'",
        "Line 4 reads like the header",
        "csv.skip_lines = 3",
    ),
    refused(
        "preamble-and-delimiter", "sep=;\n" + two(delimiter=";"), "Line 2", 'csv.delimiter = ";"', "csv.skip_lines = 1"
    ),
    refused("skips-all", two(), "csv.skip_lines = 9", "no more than 3 lines", skip_lines=9),
    read("footer", two() + "Total,2\n(end)\n\n", plain(), skip_footer=2),
    refused("undeclared-footer", two() + "Total,2\nPRIVATE end\n", "line 4", "2 fields", "csv.skip_footer = 2"),
    read(
        "comments",
        f"# it's made by night\n{HEADER}\n#\n{record(1)}\n# \"\n{record(2, QUOTED)}\n#end",
        [sent(1, 4), sent(2, 6, "a\n# b")],
        comment="#",
    ),
    refused("undeclared-comment", f"{HEADER}\n{record(1)}\n# a, b\n{record(2)}\n", "line 3", "2 fields"),
    read(
        "everything",
        (
            "\ufeffMade; by night\n"
            + f"// note\n{HEADER}\n// x\n".replace(",", ";")
            + table("'a\nb'", "n/a", header=None, delimiter=";", end="\r\n")
            + "Total\n"
        ).encode("utf-16"),
        [sent(1, 5, "a\nb"), sent(2, 7, None)],
        delimiter=";",
        quote="'",
        comment="//",
        skip_lines=1,
        skip_footer=1,
        null_values=["n/a"],
    ),
    read(
        "null-words",
        table("NULL", "null", '"-"', "NULL "),
        [sent(1, 2, None), sent(2, 3, "null"), sent(3, 4, None), sent(4, 5, "NULL ")],
        null_values=["NULL", "-"],
    ),
    Case(
        name="null-word-as-key",
        make=lambda: f"{HEADER}\n2024-03-01T10:00:00Z,?,api://shop/x,x\n{record(2)}\n".encode(),
        config={"csv": {"null_values": ["?"]}, "rows": {"max_rejected": "100%"}},
        rows=[Invalid(line=2, reasons=["customer_key"]), sent(2, 3)],
    ),
]


CASES: list[Case] = [*SHAPES, *QUOTES, *ENCODINGS, *HEADERS, *DELIMITERS, *AROUND]
