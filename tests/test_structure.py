"""The shape of the package: docstrings, a test file for each module, a core that touches nothing, README's map.

Reads source files only. What may import what is `pyproject.toml`'s matter (import-linter).
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "backfill"
TESTS = ROOT / "tests"

MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

TESTED_ELSEWHERE = {
    "__init__.py": ("tests/adapters/test_interaction_api.py", "holds the version, which every call names"),
    "__main__.py": ("tests/cli/test_main.py", "calls cli.main and does nothing else"),
    "adapters/__init__.py": (None, "a docstring only"),
    "adapters/exports/__init__.py": ("tests/test_run_corpus.py", "opens each kind of export by its contents"),
    "adapters/exports/export.py": (
        "tests/adapters/exports/test_parquet.py",
        "values; every reader's tests speak in them",
    ),
    "core/__init__.py": (None, "a docstring only"),
    "core/events.py": (
        "tests/core/test_dispatch.py",
        "values without behaviour; every test of the dispatch speaks in them",
    ),
    "core/limits.py": ("tests/core/test_arrange.py", "constants; each is tested where it bounds something"),
    "core/stop.py": ("tests/test_deliver.py", "once and twice, before and while it is told"),
    "sandbox/__init__.py": (None, "a docstring only"),
    # The sandbox is a stand-in for a server, so it is tested as one: a process, spoken to over HTTP.
    "sandbox/checks.py": ("tests/sandbox/test_app.py", "each fault, as the client sees it"),
    "sandbox/connection.py": ("tests/sandbox/test_trouble.py", "connections dropped before and after applying"),
    "sandbox/handed_back.py": ("tests/sandbox/test_app.py", "what the reply to each call has"),
    "sandbox/log.py": ("tests/sandbox/test_app.py", "what it says was applied"),
    "sandbox/server.py": ("tests/sandbox/test_app.py", "start, announcement and end of the process"),
    "sandbox/tokens.py": ("tests/sandbox/test_app.py", "tokens asked for, expired, used up"),
    # The commands are tested as their user meets them: by arguments, output and exit code.
    "cli/__init__.py": ("tests/cli/test_main.py", "commands, help and exit codes"),
    "cli/check.py": ("tests/test_check.py", "the command"),
    "cli/checked.py": ("tests/test_check.py", "its text and --json"),
    "cli/embedded.py": ("tests/cli/test_main.py", "run --sandbox"),
    "cli/ledger.py": ("tests/cli/test_main.py", "the command"),
    "cli/options.py": ("tests/cli/test_main.py", "options that several commands share"),
    "cli/output.py": ("tests/cli/test_main.py", "text and --json"),
    "cli/plan.py": ("tests/test_plan.py", "the command"),
    "cli/planned.py": ("tests/test_plan.py", "its text and --json"),
    "cli/resolve.py": ("tests/test_resolve.py", "the command"),
    "cli/resolved.py": ("tests/test_resolve.py", "its text and --json"),
    "cli/run.py": ("tests/cli/test_main.py", "the command"),
    "cli/send.py": ("tests/test_send.py", "the command"),
    "cli/signals.py": ("tests/test_signals.py", "real signals to the real command, at any moment"),
    "cli/sandbox.py": ("tests/cli/test_main.py", "the command"),
    "cli/status.py": ("tests/cli/test_main.py", "the command"),
    "cli/verify.py": ("tests/cli/test_main.py", "the command"),
}
"""Modules without a test file of their own: where their tests are (None: there is nothing to test), and why there."""


# -------------------------------------------------------------------------------------------------- docstrings, tests


@pytest.mark.parametrize("module", MODULES)
def test_a_module_says_what_it_is_for(module: str) -> None:
    """Each has a docstring that begins with a sentence."""
    docstring = ast.get_docstring(ast.parse((PACKAGE / module).read_text(encoding="utf-8")))
    assert docstring
    assert re.match(r"[^\n]+[.:?]( |\n|$)", docstring), docstring.splitlines()[0]


def own_tests(module: str) -> list[Path]:
    """`core/arrange.py` is tested in tests/core/test_arrange.py, or in several files: test_arrange_*.py."""
    place = Path(module)
    return [
        path
        for pattern in (f"test_{place.stem}.py", f"test_{place.stem}_*.py")
        for path in (TESTS / place.parent).glob(pattern)
    ]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_tests_where_one_looks_for_them(module: str) -> None:
    """Beside its mirror image, or where the list of exceptions says; an exception that is none any more is told."""
    if module not in TESTED_ELSEWHERE:
        assert own_tests(module), f"tests/{Path(module).parent}/test_{Path(module).stem}.py is missing"
        return
    where, _ = TESTED_ELSEWHERE[module]
    assert not own_tests(module), "it has tests of its own now: take it out of TESTED_ELSEWHERE"
    if where is None:
        assert _is_empty(ast.parse((PACKAGE / module).read_text(encoding="utf-8")))
    else:
        assert (ROOT / where).is_file()


def _is_empty(tree: ast.Module) -> bool:
    return all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in tree.body)


def test_no_exception_outlives_its_module() -> None:
    """The list names modules that there are."""
    assert set(TESTED_ELSEWHERE) <= set(MODULES)


# ----------------------------------------------------------------------------------------------- core touches nothing

_CLOCK = {"now", "today", "utcnow", "localtime", "gmtime"}
_BUILTINS = {"open", "input", "print", "exec", "eval", "__import__"}
_OUTSIDE = {"time", "random", "secrets", "os", "io", "pathlib", "socket", "subprocess", "threading", "tempfile"}


def touches(source: str) -> Iterator[str]:
    """What in this source would touch a file, a clock, a socket or chance: by name, whether it is called or passed on.

    Imports of whole modules are import-linter's matter as well; here they also show a clock hidden in a function.
    """
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names):
                yield from (name.name for name in names if name.name.partition(".")[0] in _OUTSIDE)
            case ast.ImportFrom(module=str(module), names=names):
                if module.partition(".")[0] in _OUTSIDE:
                    yield module
                if module.partition(".")[0] == "polars":
                    yield from (name.name for name in names if _reads(name.name))
            case ast.Attribute(ast.Name("pl" | "polars"), name) if _reads(name):
                yield ast.unparse(node)
            case ast.Attribute(_, name) if name in _CLOCK or name.startswith(("write_", "sink_")):
                yield ast.unparse(node)
            case ast.Name(name) if name in _BUILTINS:
                yield name


def _reads(name: str) -> bool:
    return name.startswith(("read_", "scan_"))


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("core/")])
def test_core_touches_nothing(module: str) -> None:
    """No file read or written, no clock, no chance: time and jitter arrive as arguments."""
    assert list(touches((PACKAGE / module).read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        ("import polars as pl\npl.read_csv('a')", "pl.read_csv"),
        ("import polars as pl\nx = pl.scan_parquet", "pl.scan_parquet"),
        ("from polars import read_parquet as r\nr('a')", "read_parquet"),
        ("def f(frame):\n    frame.lazy().sink_parquet('a')", "frame.lazy().sink_parquet"),
        ("from datetime import UTC, datetime\nx = datetime.now(UTC)", "datetime.now"),
        ("import datetime as dt\nclass A:\n    at = dt.datetime.utcnow", "dt.datetime.utcnow"),
        ("from datetime import date as d\nx = [d.today() for _ in 'a']", "d.today"),
        ("def f():\n    import time\n    return time.monotonic()", "time"),
        ("from time import monotonic_ns as clock", "time"),
        ("import os.path", "os.path"),
        ("def f(path):\n    with open(path) as file:\n        return file", "open"),
    ],
)
def test_the_walk_sees(source: str, seen: str) -> None:
    """Negative control: each way to touch something is found, under another name and in the depth of a function too."""
    assert list(touches(source)) == [seen]


@pytest.mark.parametrize(
    "source",
    [
        "def wait_s(now_s, now):\n    return now_s + now.timestamp()",
        "time = rows['time']\ntime.cast(int)",
        "reader.read_head()",
        "from datetime import datetime\ndatetime.fromisoformat('2024-01-01')",
    ],
)
def test_the_walk_lets_values_be(source: str) -> None:
    """Time that arrives as an argument is a value like any other."""
    assert list(touches(source)) == []


# ------------------------------------------------------------------------------------------------------ README's map


def mapped(readme: str) -> set[str]:
    """The paths in README's map: the fenced block with many lines that begin with the path of a module or folder."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    found = [re.findall(r"^([a-z0-9_/]+(?:\.py|/))(?:  |$)", block, re.MULTILINE) for block in blocks]
    return {entry for entries in found if len(entries) > 5 for entry in entries}


def missing_from(entries: set[str]) -> list[str]:
    """The modules that a map does not name, neither by a line of their own nor by one for their folder."""
    return [
        module
        for module in MODULES
        if module not in entries
        and not module.endswith("/__init__.py")
        and module != "__init__.py"
        and not any(f"{folder.as_posix()}/" in entries for folder in Path(module).parents)
    ]


def test_readmes_map_names_every_module() -> None:
    """Each has its line, or its folder has one."""
    assert missing_from(mapped((ROOT / "README.md").read_text(encoding="utf-8"))) == []


def test_readmes_map_names_nothing_else() -> None:
    """A line whose module was renamed is a wrong signpost."""
    entries = mapped((ROOT / "README.md").read_text(encoding="utf-8"))
    assert [entry for entry in entries if not (PACKAGE / entry).exists()] == []


def test_a_missing_line_is_seen() -> None:
    """Negative control: without its line a module is told, and so are all of a folder without one."""
    entries = mapped((ROOT / "README.md").read_text(encoding="utf-8"))
    for entry, modules in (("core/dispatch.py", {"core/dispatch.py"}), ("cli/", {"cli/run.py", "cli/status.py"})):
        assert entry in entries
        assert modules <= set(missing_from(entries - {entry})) - set(missing_from(entries))
