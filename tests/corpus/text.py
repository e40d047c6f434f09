"""Small tables of text and what must come of them: the words in which cases of CSV are written."""

import io
import zipfile

from tests.corpus.case import KEY, Case, Row, Sent

HEADER = "timestamp,customer_key,url,note"


def key(number: int) -> str:
    return f"{KEY}-{number}"


def record(number: int, note: str = "x", delimiter: str = ",") -> str:
    """A good record. `note` stands there as it is, quotes and all."""
    return delimiter.join([f"2024-03-{number:02}T10:00:00Z", key(number), "api://shop/x", note])


def table(*notes: str, header: str | None = HEADER, end: str = "\n", delimiter: str = ",") -> str:
    """A header and a good record for each note."""
    lines = [] if header is None else [header.replace(",", delimiter)]
    lines += [record(number, note, delimiter) for number, note in enumerate(notes, start=1)]
    return "".join(line + end for line in lines)


def sent(number: int, line: int, note: str | None = "x", **more: str) -> Sent:
    return Sent(line=line, key=key(number), values=({} if note is None else {"note": note}) | more)


def plain(first_line: int = 2) -> list[Row]:
    """What must come of two notes "x"."""
    return [sent(1, first_line), sent(2, first_line + 1)]


def read(name: str, content: str | bytes, rows: list[Row], file: str = "export.csv", **csv: object) -> Case:
    made = content.encode() if isinstance(content, str) else content
    return Case(name=name, make=lambda: made, config={"csv": csv} if csv else {}, file=file, rows=rows)


def refused(name: str, content: str | bytes, *words: str, file: str = "export.csv", **csv: object) -> Case:
    made = content.encode() if isinstance(content, str) else content
    return Case(name=name, make=lambda: made, config={"csv": csv} if csv else {}, file=file, refused=words)


def two(*, header: str | None = HEADER, end: str = "\n", delimiter: str = ",") -> str:
    """A table of two good records with the note "x"."""
    return table("x", "x", header=header, end=end, delimiter=delimiter)


def zipped(*members: tuple[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members:
            archive.writestr(member, content)
    return made.getvalue()
