"""Errors of the command line as a person reads them: what happened, where, and what to do now."""

import errno
import os
from pathlib import Path

import pytest

from backfill.cli import main
from backfill.core.stop import Stop

API = '[api]\nbase_url = "https://mxo.example"\nsite_key = "k"\n'


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a sound configuration, an export of the default columns, and a few things to trip over."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "june.toml").write_text(API)
    (tmp_path / "a.csv").write_text("timestamp,customer_key,url\n2024-05-06T07:08:09Z,4711,api://a\n")
    (tmp_path / "locked" / "ledger").mkdir(parents=True)
    (tmp_path / "locked" / "lock").touch()
    (tmp_path / "locked" / "ledger" / "manifest.json").write_text("{")
    (tmp_path / "large.json").touch()
    os.truncate(tmp_path / "large.json", 21 << 20)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (
            ["run", "--config", "jun.toml", "a.csv"],
            78,
            "The configuration jun.toml (--config) does not exist. Name a TOML file.",
        ),
        (
            ["status", "--config", "."],
            78,
            "The configuration . (--config) is a directory. Name a TOML file.",
        ),
        (
            ["run", "--config", "june.toml", "--set", "api.ca_bundle=vendor.pem", "a.csv"],
            78,
            "api.ca_bundle (--set) names no readable file: vendor.pem. Name a PEM file.",
        ),
        (
            ["run", "--config", "june.toml"],
            78,
            ".backfill/june holds no job yet, so there is nothing to go on with. Name the exports to send.",
        ),
        (
            ["verify", "--state", "june"],
            78,
            "There is no job in june. Name the right one with --state, or the configuration it belongs to with "
            "--config.",
        ),
        (["resolve", "--state", "locked"], 78, "locked holds no rows yet, so there is nothing to decide."),
        (
            ["ledger", "--state", "locked"],
            74,
            "In locked: ledger/manifest.json cannot be read (JSONDecodeError). The next `backfill run` writes "
            "missing and damaged parts anew.",
        ),
        (["ledger", "--format", "parquet"], 2, "Parquet cannot be printed. Add --output FILE."),
        (
            ["send", "--call", "interaction-put", "--config", "june.toml"],
            2,
            "Say what shall be sent: --url and what belongs to it, or --file FILE.json.",
        ),
        (
            ["check", "--probe", "--yes", "--config", "june.toml"],
            2,
            "--probe delivers a row of an export: name one. Every row of it becomes part of the job.",
        ),
        (
            ["send", "--call", "interaction-post", "--config", "june.toml", "--file", "gone.json"],
            2,
            "gone.json cannot be read (No such file or directory). Name a JSON file, or - for standard input.",
        ),
        (
            ["send", "--call", "interaction-post", "--config", "june.toml", "--file", "large.json"],
            2,
            "large.json is larger than 16 MB. Exports are delivered by `backfill run`.",
        ),
        (
            ["sandbox", "--log", "a.csv"],
            78,
            "The sandbox cannot start: File exists (a.csv). Name another folder by --log.",
        ),
        (
            ["plan", "--config", "june.toml", "-"],
            2,
            "Standard input cannot be an export: `run` could not read it again. Write it to a file.",
        ),
        (
            ["run", "--config", "june.toml", "-"],
            2,
            "Standard input cannot be an export: after a crash it could not be read again. Write it to a file first.",
        ),
    ],
)
def test_a_mistake_is_told_whole(
    capsys: pytest.CaptureFixture[str], here: Path, words: list[str], code: int, said: str
) -> None:
    """One sentence on what is wrong and where, one on the remedy; nothing else but the usage."""
    answered = main(words)
    _, err = capsys.readouterr()
    assert (answered, err.splitlines()[-1]) == (code, f"Error: {said}")


def test_two_configurations_are_told_with_their_places(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    """Which of them is meant is for the user to say, and how."""
    for name in ("a", "b"):
        (here / name).mkdir()
        (here / name / "backfill.toml").write_text(API)
    assert main(["run", "a", "b"]) == 78
    assert capsys.readouterr().err == (
        "Error: Two configurations were found: a/backfill.toml and b/backfill.toml. Say which one with --config.\n"
    )


def test_a_mistake_in_the_syntax_is_told_with_its_line(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    """Never with what stands there: it may be a secret."""
    (here / "bad.toml").write_text(API + 'token = "SECRET\n')
    assert main(["run", "--config", "bad.toml", "a.csv"]) == 78
    err = capsys.readouterr().err
    assert err.startswith("Error: bad.toml is no valid TOML: ")
    assert "line 4" in err
    assert err.endswith("Mend that line.\n")
    assert "SECRET" not in err


def test_an_empty_secret_is_told_with_its_file(
    capsys: pytest.CaptureFixture[str], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mounted secret that was never filled is not taken for none."""
    (here / "token").write_text("\n")
    monkeypatch.setenv("BACKFILL_TOKEN_FILE", "token")
    assert main(["run", "--config", "june.toml", "a.csv"]) == 78
    assert (
        capsys.readouterr().err
        == "Error: The file that BACKFILL_TOKEN_FILE names is empty: token. Write the secret into it.\n"
    )


def test_an_interaction_that_is_no_json_is_told_with_its_line(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    """File, line and column, and not what stands there."""
    (here / "one.json").write_text('{\n  "url": PRIVATE\n}\n')
    assert main(["send", "--call", "interaction-put", "--config", "june.toml", "--file", "one.json"]) == 2
    err = capsys.readouterr().err
    assert "one.json is no JSON (line 2, column 10" in err
    assert "PRIVATE" not in err


def test_a_name_that_cannot_be_a_jobs_is_told_with_the_remedy(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    """The configuration's file name names the job, unless the file does."""
    (here / "...toml").write_text(API)
    assert main(["run", "--config", "...toml", "a.csv"]) == 78
    assert capsys.readouterr().err == (
        'Error: The file name of ...toml cannot name the job. Write name = "..." into its section [job].\n'
    )


def test_a_configuration_that_cannot_be_read_is_told_with_the_cause(
    capsys: pytest.CaptureFixture[str], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's file, for instance."""
    known = Path.read_bytes

    def read(self: Path) -> bytes:
        if self.name == "june.toml":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return known(self)

    monkeypatch.setattr(Path, "read_bytes", read)
    assert main(["run", "--config", "june.toml", "a.csv"]) == 78
    assert capsys.readouterr().err == "Error: june.toml cannot be read (Permission denied). Check its permissions.\n"


def test_a_stop_before_the_start_is_told(
    capsys: pytest.CaptureFixture[str], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal while the configuration is read: nothing was begun, so nothing is left behind."""
    monkeypatch.setattr(Stop, "requested", True)
    assert main(["run", "--config", "june.toml", "a.csv"]) == 75
    assert capsys.readouterr().err == (
        "Error: Stopped by a signal before anything was begun. Run the same command again.\n"
    )
    assert not (here / ".backfill").exists()


def test_what_lies_among_the_staged_loads_is_told_before_anything_is_sent(
    capsys: pytest.CaptureFixture[str], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that somebody left there is not ours to delete."""
    monkeypatch.setenv("BACKFILL_TOKEN", "T")
    (here / "june" / "staged").mkdir(parents=True)
    (here / "june" / "staged" / "notes").write_text("do not lose")
    assert main(["run", "--config", "june.toml", "--state", "june", "a.csv"]) == 74
    assert capsys.readouterr().err.splitlines()[-1] == (
        "Error: june/staged/notes cannot be removed (Not a directory). Remove it, then run again."
    )
    assert (here / "june" / "staged" / "notes").read_text() == "do not lose"
