"""Whole commands as a person meets them: on a terminal of any width, in a pipe whose reader goes away, and with Tab."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from backfill.cli import COMMANDS
from tests.command import CLIENT_ID, ROOT, SECRET, Job, serving, visits
from tests.terminal import on_a_terminal, resize, screen

CREDENTIALS = {"BACKFILL_CLIENT_ID": CLIENT_ID, "BACKFILL_CLIENT_SECRET": SECRET}


@pytest.fixture(scope="module")
def settled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """A job with some of everything that commands print, and a server that still listens."""
    with serving(tmp_path_factory.mktemp("server"), "drop=after,every=4") as server:
        job = Job(tmp_path_factory.mktemp("job"), server.base_url, {"rows": {"max_rejected": "50%"}})
        job.export("a.csv", [*visits(600, customers=200), visits(1)[0]._replace(customer="")])
        assert job.run("a.csv").code == 4
        yield job


# ------------------------------------------------------------------------------------------------------- progress


@pytest.mark.parametrize(("columns", "width"), [(80, 80), (40, 40), (20, 20), (0, 80)])
def test_a_run_on_a_terminal_of_any_width(tmp_path: Path, columns: int, width: int) -> None:
    """One line for each phase, redrawn in place; nothing wraps, and nothing but text and returns is written."""
    with serving(tmp_path / "log") as server:
        job = Job(tmp_path / "job", server.base_url, budget=10)
        job.export("a.csv", visits(1_500))
        words = ("run", "a.csv", "--config", "backfill.toml", "--state", "state")
        code, came, out = on_a_terminal(words, columns=columns, cwd=job.folder, environment=CREDENTIALS)
    shown = screen(came, width)
    assert (code, shown.wrapped, shown.strange) == (0, 0, set()), came
    assert [line.split()[0] for line in shown.seen] == ["spooling", "arranging", "delivering", "settling"]
    assert "delivering 100%" in shown.seen[2].replace("  ", " ")
    if width == 80:
        assert re.search(r"\d/s", came)
        assert re.search(r"\d+% budget", came)
        assert re.search(r"\d\d:\d\d left", came)
    assert out.startswith("Complete")


def test_doubt_and_rejections_are_seen_while_they_come(tmp_path: Path) -> None:
    """A person sees that something is wrong before the run is over."""
    with serving(tmp_path / "log", "drop=after,every=4") as server:
        job = Job(tmp_path / "job", server.base_url, budget=10)
        job.export("a.csv", visits(1_500))
        words = ("run", "a.csv", "--config", "backfill.toml", "--state", "state")
        code, came, _ = on_a_terminal(words, columns=80, cwd=job.folder, environment=CREDENTIALS)
    assert code == 4
    assert re.search(r"\| \d.* in doubt, .*left", came)
    assert re.search(r"delivering 100%.*[1-9]\d* in doubt, in ", screen(came, 80).seen[2])


def test_a_terminal_that_becomes_narrower(tmp_path: Path) -> None:
    """From the next drawing on nothing reaches beyond the new width, also not the blanks that cover the old line."""
    narrowed = ""

    def meanwhile(terminal: int, came: str) -> None:
        nonlocal narrowed
        if not narrowed and re.search("delivering.*left", came):
            resize(terminal, 30)
            narrowed = came

    with serving(tmp_path / "log") as server:
        job = Job(tmp_path / "job", server.base_url, budget=10)
        job.export("a.csv", visits(2_500))
        words = ("run", "a.csv", "--config", "backfill.toml", "--state", "state")
        code, came, _ = on_a_terminal(words, columns=100, cwd=job.folder, environment=CREDENTIALS, meanwhile=meanwhile)
    assert (code, bool(narrowed)) == (0, True)
    drawn = re.split("[\r\n]+", came[len(narrowed) :])
    after = drawn[2:]  # one may have been on its way
    assert len(after) > 5
    assert max(map(len, after)) <= 29


def test_colour_is_not_a_question(settled: Job) -> None:
    """NO_COLOR changes nothing, and neither does a terminal that has colours: there are none."""
    plain, bare = (
        on_a_terminal(
            ("status", "--state", settled.state), columns=80, cwd=settled.folder, environment=names, stdout_too=True
        )[1]
        for names in ({"NO_COLOR": "1"}, {"TERM": "xterm-256color", "FORCE_COLOR": "1"})
    )
    assert plain == bare
    assert "\x1b" not in plain


@pytest.mark.parametrize("words", [["status"], ["verify"], ["resolve"]])
@pytest.mark.parametrize("columns", [80, 40])
def test_results_break_between_words(settled: Job, words: list[str], columns: int) -> None:
    """On a terminal a sentence goes on under its label; only a path or a command that is too long is left to wrap."""
    code, came, _ = on_a_terminal([*words, "--state", "state"], columns=columns, cwd=settled.folder, stdout_too=True)
    assert code == 0
    for line in came.replace("\r\n", "\n").splitlines():
        assert len(line) <= columns or re.fullmatch(r"(\S+ {2,}| *)(`[^`]+`\S*|\S+)", line), line


def test_the_account_is_whole_in_a_pipe(settled: Job) -> None:
    """What a program or a file gets stays one line a fact."""
    ended = settled.run(command="verify")
    assert re.search(r"^Account  read 601 = delivered .* \+ unsent 0$", ended.out, re.MULTILINE)


# ------------------------------------------------------------------------------------------------ readers that leave


def printing(name: str, job: Job) -> list[str]:
    """A command line that prints."""
    state, config = ["--state", str(job.state)], ["--config", str(job.folder / "backfill.toml")]
    return {
        "run": ["run", "a.csv", *config, *state],
        "plan": ["plan", "a.csv", *config],
        "check": ["check", *config],
        "status": ["status", *state],
        "ledger": ["ledger", *state],
        "verify": ["verify", *state],
        "resolve": ["resolve", *state],
        "send": [
            *("send", "--call", "interaction-put", "--url", "api://shop/a", "--customer-key", "4711", "--sandbox"),
            *config,
        ],
        "sandbox": ["sandbox", "--log", str(job.folder / "sandbox.log")],
    }[name]


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_reader_that_is_gone_is_141_and_silent(settled: Job, name: str, as_json: bool) -> None:
    """`backfill COMMAND | head -0`: no complaint beside the progress, no success, and no sandbox that nobody knows."""
    read, write = os.pipe()
    os.close(read)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("BACKFILL_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "backfill", *printing(name, settled), *(["--json"] if as_json else [])],
        cwd=settled.folder,
        env=environment | CREDENTIALS | {"PYTHONPATH": str(ROOT)},
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write)
    try:
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, [line for line in err.splitlines() if not re.match(r"\d\d:\d\d:\d\d ", line)]) == (
        141,
        [],
    )


# --------------------------------------------------------------------------------------------------------- completion


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH with a `backfill` that starts this very code."""
    program = tmp_path / "bin" / "backfill"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m backfill "$@"\n')
    program.chmod(0o755)
    return f"{program.parent}:{os.environ['PATH']}"


def bash(path: str, script: str) -> list[str]:
    done = subprocess.run(
        ["bash", "--norc", "-c", script], capture_output=True, text=True, check=True, env={**os.environ, "PATH": path}
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("backfill ver", ["verify"]),
        ("backfill run --sand", ["--sandbox"]),
        ("backfill ledger --outcome in", ["invalid", "in_doubt"]),
        ("backfill send --call interaction-p", ["interaction-post", "interaction-put"]),
    ],
)
def test_bash_completes(path: str, words: str, completed: list[str]) -> None:
    """The line of the README, in a real bash: commands, options and their values."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    line = next(line.split(maxsplit=2)[2] for line in readme.splitlines() if line.startswith("bash  (~/.bashrc)"))
    last = len(words.split()) - 1
    script = f"{line}\nCOMP_WORDS=({words}); COMP_CWORD={last}; _backfill_completion backfill; echo ${{COMPREPLY[@]}}"
    assert bash(path, script) == completed


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_of_the_readme_gets_its_script(path: str, shell: str) -> None:
    """click writes one for each, under the name that the README tells."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"_BACKFILL_COMPLETE={shell}_source backfill" in readme
    assert "_BACKFILL_COMPLETE" in " ".join(bash(path, f"_BACKFILL_COMPLETE={shell}_source backfill"))


def test_completing_does_not_wait_for_polars() -> None:
    """Tab answers at once: nothing heavy is imported for it."""
    code = (
        "import sys; from backfill.cli import main; code = main(['run']);"
        "print(code, [name for name in ('polars', 'pydantic', 'httpx', 'tqdm') if name in sys.modules])"
    )
    environment = {"_BACKFILL_COMPLETE": "bash_complete", "COMP_WORDS": "backfill run --li", "COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    assert done.stdout.splitlines() == ["plain,--limit", "0 []"]
