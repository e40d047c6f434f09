"""What the help texts say, and what wrong usage is answered with, walked over every command and option there is."""

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import pytest

from backfill.cli import COMMANDS, commands, main
from tests.command import ROOT

GROUP = click.Context(commands, info_name="backfill", terminal_width=80)


def command(name: str) -> click.Command:
    found = commands.get_command(GROUP, name)
    assert found is not None
    return found


def options() -> Iterator[tuple[str, click.Option]]:
    """Every option of every command, with the command's name."""
    for name in COMMANDS:
        yield from ((name, each) for each in command(name).params if isinstance(each, click.Option))


OPTIONS = list(options())
SPELLINGS = sorted({(name, max(option.opts, key=len)) for name, option in OPTIONS})


def help_of(name: str) -> str:
    return command(name).get_help(click.Context(command(name), GROUP, info_name=name, terminal_width=80))


def examples(name: str) -> list[str]:
    """The command lines that its help shows, with those joined that go on after a backslash."""
    text = (command(name).help or "").partition("Example")[2].replace("\\\n", " ")
    return [" ".join(line.split()) for line in text.splitlines() if line.strip().startswith("backfill ")]


# ------------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_can_be_typed(name: str) -> None:
    """Each help has an example of its own command, and the parser takes it as it stands."""
    assert examples(name)
    for line in examples(name):
        program, called, *words = shlex.split(line)
        assert (program, called) == ("backfill", name)
        command(name).make_context(name, words, parent=GROUP).close()


def test_the_first_help_has_an_example_and_every_command() -> None:
    """`backfill --help` leads a newcomer to a command that works without anything prepared."""
    text = commands.get_help(GROUP)
    assert "    backfill run --sandbox sample_data" in text
    for name in COMMANDS:
        assert re.search(rf"^  {name} +\S", text, re.MULTILINE), name


@pytest.mark.parametrize("name", [*COMMANDS, ""])
def test_it_fits_a_terminal(name: str) -> None:
    """At 80 columns nothing wraps but what has to stay one line: an example, the choices of an option, and the lines
    of the sandbox's own description.
    """
    text = (help_of(name) if name else commands.get_help(GROUP)).partition("  RULES")[0]
    whole = re.compile(r" +(backfill |--[a-z-]+ \[[a-z_|-]+\]$)")
    assert [line for line in text.splitlines() if len(line) > 80 and not whole.match(line)] == []


@pytest.mark.parametrize(("name", "option"), OPTIONS, ids=[f"{name} {each.opts[-1]}" for name, each in OPTIONS])
def test_every_option_is_explained(name: str, option: click.Option) -> None:
    """By a sentence that is more than its own name, and says what its value is called."""
    assert option.help
    assert len(option.help.split()) >= 3
    assert option.help[0].isupper() or option.help[0] in "-["
    if not option.is_flag:
        assert option.make_metavar(click.Context(command(name))) not in ("PATH", "INTEGER", "FLOAT")


def test_options_that_several_commands_share_mean_the_same() -> None:
    """--json, --config, --state and --set are explained in one way; only where one means something else it says so."""
    for spelling in ("--config", "--state", "--set"):
        assert len({option.help for _, option in OPTIONS if spelling in option.opts}) == 1, spelling


USED_IN = {
    path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "tests").rglob("*.py")) if path != Path(__file__)
}


@pytest.mark.parametrize(("name", "spelling"), SPELLINGS)
def test_every_option_is_used_by_a_test(name: str, spelling: str) -> None:
    """In a file that also names the command; `serving(...)` of tests/command.py spells the sandbox's as arguments."""
    argument = spelling.removeprefix("--").replace("-", "_")
    spelled = re.compile(rf"""["' ]{re.escape(spelling)}["'= ]""")
    given = re.compile(rf"""\b{argument}(=|":)""")
    calls = re.compile(rf"""["' ]{name}["' ]""")
    assert any(
        (spelled.search(text) and (calls.search(text) or (name == "run" and "Job(" in text)))
        or (name == "sandbox" and "serving(" in text and given.search(text))
        for text in USED_IN.values()
    ), f"no test uses backfill {name} {spelling}"


def test_the_readme_names_every_command() -> None:
    """In the table of commands, with what it does."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if not re.search(rf"^\| `backfill {name}[` \[]", readme, re.MULTILINE)] == []


# ------------------------------------------------------------------------------------------------------ wrong usage


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stats"], "No such command 'stats'. Did you mean 'status'?"),
        (["frobnicate"], f"No such command 'frobnicate'. There are: {', '.join(COMMANDS)}."),
        (["--versoin"], "No such option '--versoin'. Did you mean '--version'?"),
        (["run", "--confg", "x"], "No such option '--confg'. Did you mean '--config'?"),
        (["run", "--limt", "3"], "No such option '--limt'. Did you mean '--limit'?"),
        (["run", "--quiet"], "No such option '--quiet'. See --help."),
        (["run", "--limit"], "Option '--limit' requires an argument."),
        (["run", "--limit", "many"], "Invalid value for '--limit': 'many' is no whole number."),
        (["run", "--limit", "0"], "Invalid value for '--limit': 0 is not in the range x>=1."),
        (["sandbox", "--token-lifetime", "x"], "Invalid value for '--token-lifetime': 'x' is no number."),
        (
            ["run", "--set", "budget.concurrency"],
            "Invalid value for '--set': write it as SECTION.KEY=VALUE, for example budget.concurrency=8",
        ),
        (
            ["ledger", "--outcome", "in-doubt"],
            "Invalid value for '--outcome': 'in-doubt' is not one of 'delivered', 'invalid', 'rejected', 'duplicate', "
            "'in_doubt', 'abandoned', 'unsent'. Did you mean 'in_doubt'?",
        ),
        (
            ["ledger", "--format", "xml"],
            "Invalid value for '--format': 'xml' is not one of 'csv', 'jsonl', 'parquet'.",
        ),
        (
            ["resolve", "--cause", "no-reply"],
            "Invalid value for '--cause': 'no-reply' is not one of 'crash', 'no_reply', 'server_error', "
            "'unrecognised', 'redirect', 'refused_after_doubt'. Did you mean 'no_reply'?",
        ),
        (
            ["resolve", "--request", "4711"],
            "Invalid value for '--request': '4711' is not LOAD/REQUEST, such as 1/4711: the ledger's columns load and "
            "request.",
        ),
        (
            ["resolve", "--since", "yesterday"],
            "Invalid value for '--since': 'yesterday' is not ISO 8601. Write it as \"2024-01-31T22:00:00Z\".",
        ),
        (
            ["resolve", "--until", "2024-01-31T22:00:00"],
            "Invalid value for '--until': '2024-01-31T22:00:00' has no offset. Add \"Z\" or one such as \"+01:00\".",
        ),
        (["verify", "june"], "Got unexpected extra argument (june)"),
    ],
)
def test_wrong_usage_says_what_would_be_right(
    capsys: pytest.CaptureFixture[str], words: Sequence[str], said: str
) -> None:
    """The whole sentence: what was wrong and the nearest command, option or value; as JSON the same."""
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert (out, err.splitlines()[-1]) == ("", f"Error: {said}")
    assert main([*words[:1], "--json", *words[1:]]) == 2
    assert json.loads(capsys.readouterr().out) == {"error": {"message": said, "exit_code": 2}}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["budget.concurency=3"], "budget.concurency (--set) is no known key. Did you mean concurrency?"),
        (["budgt.concurrency=3"], "[budgt] (--set) is no known section. Did you mean [budget]?"),
        (["delivery.in_doubt=hodl"], 'delivery.in_doubt (--set) = "hodl" must be "hold" or "resend".'),
        (["api.concurrency=3"], "api.concurrency (--set) is no known key of [api]: it belongs into [budget]."),
        (["budget.concurrency=lots"], 'budget.concurrency (--set) = "lots" must be a whole number.'),
    ],
)
def test_a_wrong_key_says_what_would_be_right(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: Sequence[str], said: str
) -> None:
    """Of --set: the nearest key, section or value, and where the wrong one came from."""
    monkeypatch.chdir(tmp_path)
    told = [word for text in words for word in ("--set", text)]
    assert main(["run", "--sandbox", *told, "x.csv"]) == 78
    assert f"\n  {said}\n" in capsys.readouterr().err
