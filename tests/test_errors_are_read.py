"""Every message that stops a command is quoted by some test: nobody changes one, or adds one, unread.

Reads source files only. It sees that a test quotes words which only that message has, not that the test is a good
one; and of a message with several endings it asks for one.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "backfill"
TESTS = ROOT / "tests"

KINDS = {
    "BackfillError",
    "UsageError",
    "JobHeld",
    "StorageError",
    "StoppedEarly",
    "CredentialsRefused",
    "Unusable",
    "ConfigurationError",
    "ExportError",
    "BadParameter",
    "NoSuchOption",
}
"""The errors of `core/errors.py`, and click's."""

Words = tuple[str, ...]


class Site(NamedTuple):
    """Where a message is written, and its constant parts as words; a value interpolated ends a part."""

    where: str
    parts: tuple[Words, ...]

    def phrases(self) -> set[Words]:
        """Two or three words in a row."""
        return {phrase for part in self.parts for size in (2, 3) for phrase in rows_of(size, part)}


def rows_of(size: int, part: Words) -> Iterator[Words]:
    return (part[at : at + size] for at in range(len(part) - size + 1))


def words(text: str) -> Words:
    """Without punctuation, and without the backslashes of a regular expression."""
    return tuple(word for raw in text.replace("\\", "").split() if (word := raw.strip(".,:;!?()[]'\"`^$*|")))


# --------------------------------------------------------------------------------------------------- what is written


class Texts:
    """What an expression says, followed into the constants, variables and functions that it names."""

    def __init__(self, trees: Iterable[ast.Module]) -> None:
        self._named: dict[str, list[ast.expr]] = {}
        for tree in trees:
            for node in ast.walk(tree):
                match node:
                    case ast.FunctionDef(name=name):
                        returned = (n.value for n in ast.walk(node) if isinstance(n, ast.Return) and n.value)
                        self._named.setdefault(name, []).extend(returned)
                    case ast.Assign(targets=[ast.Name(name)], value=value) if tree.body.count(node):
                        self._named.setdefault(name, []).append(value)

    def of(self, said: ast.expr, within: ast.AST, depth: int = 3) -> Iterator[Words]:
        match said:
            case ast.Constant(str(text)):
                yield words(text)
            case ast.JoinedStr(values):
                yield from self._joined(values, within, depth)
            case ast.BinOp(left, _, right):
                yield from self.of(left, within, depth)
                yield from self.of(right, within, depth)
            case ast.IfExp(_, body, orelse):
                yield from self.of(body, within, depth)
                yield from self.of(orelse, within, depth)
            case ast.Name(name) if depth:
                for value in [*_assigned(name, within), *self._named.get(name, [])]:
                    yield from self.of(value, within, depth - 1)
            case ast.Call(ast.Attribute(ast.JoinedStr() | ast.Constant() as text, _)):
                yield from self.of(text, within, depth)
            case ast.Call(ast.Name(name) | ast.Attribute(_, name)) if depth:
                for value in self._named.get(name, []):
                    yield from self.of(value, value, depth - 1)

    def _joined(self, values: list[ast.expr], within: ast.AST, depth: int) -> Iterator[Words]:
        for before, value, after in zip([None, *values], values, [*values[1:], None], strict=False):
            match value:
                case ast.Constant(str(text)):
                    # A word that goes on in a value is no whole word.
                    text = re.sub(r"^\w+", "", text) if before else text
                    yield words(re.sub(r"\w+$", "", text) if after else text)
                case ast.FormattedValue(inner):
                    yield from self.of(inner, within, depth)


def _assigned(name: str, within: ast.AST) -> Iterator[ast.expr]:
    for node in ast.walk(within):
        match node:
            case ast.Assign(targets=[ast.Name(target)], value=value) if target == name:
                yield value
            case ast.Assign(targets=[ast.Tuple(targets)], value=ast.Tuple(values)):
                yield from (v for t, v in zip(targets, values, strict=True) if isinstance(t, ast.Name) and t.id == name)


def sites(sources: dict[str, str]) -> list[Site]:
    """All messages in these files that have words of their own; one that passes on another's text has none."""
    trees = {name: ast.parse(source) for name, source in sources.items()}
    texts = Texts(trees.values())
    found = []
    for name, tree in trees.items():
        for call, within in _errors(tree, tree):
            site = Site(f"{name}:{call.lineno}", tuple(texts.of(call.args[0], within)))
            if site.phrases():
                found.append(site)
    return found


def _errors(node: ast.AST, within: ast.AST) -> Iterator[tuple[ast.Call, ast.AST]]:
    """With the function they stand in."""
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.Call(ast.Name(kind) | ast.Attribute(_, kind), [_, *_]) if kind in KINDS:
                yield child, within
        yield from _errors(child, child if isinstance(child, ast.FunctionDef) else within)


# ---------------------------------------------------------------------------------------------------- what is quoted


def quoted(source: str) -> Iterator[Words]:
    """The strings in a test, without its docstrings."""
    tree = ast.parse(source)
    spoken = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in spoken:
            for line in re.split(r"\.\*|\|", node.value):
                yield words(line)


def unread(written: list[Site], read: Iterable[Words]) -> list[Site]:
    """The messages of which no test has a phrase that only they have (or any, where they share all with another).

    Two words count if the test says nothing else or the message has no three, for two words meet by chance too often.
    """
    known: set[Words] = set()
    short: set[Words] = set()
    for part in read:
        known.update(rows_of(3, part))
        known.update([part] if len(part) == 2 else [])
        short.update(rows_of(2, part))
    owners = Counter(phrase for site in written for phrase in site.phrases())
    return [
        site
        for site in written
        if not (own := {p for p in site.phrases() if owners[p] == 1} or site.phrases()) & known
        and not (all(len(phrase) == 2 for phrase in own) and own & short)
    ]


def test_every_message_is_quoted_by_a_test() -> None:
    """Whoever adds a message, or words one anew, has a test that reads it."""
    written = sites({path.relative_to(ROOT).as_posix(): _text(path) for path in sorted(PACKAGE.rglob("*.py"))})
    read = [part for path in TESTS.rglob("*.py") if path != Path(__file__) for part in quoted(_text(path))]
    assert len(written) > 100
    assert [(site.where, " ... ".join(map(" ".join, site.parts))) for site in unread(written, read)] == []


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


FIRST = 'raise Unusable(f"{place} holds {n} files, so it is no state. Choose another --state.")'


@pytest.mark.parametrize(
    ("source", "test"),
    [
        (FIRST, 'said = r"holds 3 files, so it is no state\\."'),
        (FIRST, 'assert "files, so" in told'),
        ('raise e.Unusable(WHAT + "there")\nWHAT = "Nothing was found "', 'said = "Nothing was found there"'),
        ('def f():\n    what = "a web page"\n    raise Unusable(f"{path} is {what}.")', 'said = "a web page"'),
        (
            'def said(path):\n    return f"{path} holds no job"\nraise Unusable(said(path))',
            'said = "june holds no job"',
        ),
        ('raise Unusable(f"{a} {what}." if a else "Nothing is there")', 'said = "Nothing is there"'),
        ('raise Unusable(f"{a} is torn to pieces. {hint}".rstrip())', 'said = "is torn.*to|is torn to pieces"'),
    ],
)
def test_a_quoted_message_is_taken_as_read(source: str, test: str) -> None:
    """Wherever its words stand, and by a part of it or as a regular expression."""
    written = sites({"a.py": source})
    assert len(written) == 1
    assert unread(written, quoted(test)) == []


@pytest.mark.parametrize(
    "test",
    [
        "",
        '"""Holds 3 files, so it is no state."""',
        'assert "state" in told',
        'assert "Choose another --state" in told',
        'assert "it holds more files than one, so what" in told',
    ],
)
def test_an_unquoted_message_is_found(test: str) -> None:
    """Negative control: neither docstrings, nor single words, nor what another message says too, nor chance."""
    written = sites({"a.py": FIRST, "b.py": 'raise StorageError("The disk is full. Choose another --state.")'})
    assert "a.py:1" in [site.where for site in unread(written, quoted(test))]


def test_a_message_that_only_passes_on_another_is_none() -> None:
    """Its words are read where they were written."""
    assert sites({"a.py": 'raise UsageError(str(error))\nraise ExportError(f"{path}: {error}.")'}) == []
