"""Where configuration, state and secrets are found, with real files and a plain environment."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from backfill.adapters.interaction_api import Credentials
from backfill.adapters.state import StateDirectory
from backfill.cli.settings import Settings, choose, existing_state, find_config, locate_state, read_credentials
from backfill.core.errors import ConfigurationError, ExitCode, Unusable

API = '[api]\nbase_url = "https://mxo.example"\nsite_key = "{}"\n'


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test works in an empty directory."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


def write(path: str, text: str = API.format("ONE-1")) -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)
    return Path(path)


def chosen(
    config: str | None = None,
    state: str | None = None,
    environment: Mapping[str, str] | None = None,
    exports: Sequence[str] = (),
    sets: Sequence[str] = (),
    sandbox: bool = False,
) -> Settings:
    return choose(
        config_file=None if config is None else Path(config),
        state=None if state is None else Path(state),
        sets=sets,
        sandbox=sandbox,
        exports=[Path(export) for export in exports],
        environment=environment or {},
    )


# --------------------------------------------------------------------------------------------------- configuration


def test_the_configuration_is_looked_for_in_this_order() -> None:
    """--config, then BACKFILL_CONFIG, then ./backfill.toml, then backfill.toml in an EXPORT directory."""
    for name in ("a.toml", "b.toml", "backfill.toml", "data/backfill.toml"):
        write(name, API.format(name))
    environment = {"BACKFILL_CONFIG": "b.toml"}
    assert chosen("a.toml", environment=environment, exports=["data"]).config.api.site_key == "a.toml"
    assert chosen(environment=environment, exports=["data"]).config.api.site_key == "b.toml"
    assert chosen(environment={"BACKFILL_CONFIG": ""}, exports=["data"]).config.api.site_key == "backfill.toml"
    Path("backfill.toml").unlink()
    assert chosen(exports=["data/x.csv", "data"]).config.api.site_key == "data/backfill.toml"
    assert find_config(None, {}, [Path("data/x.csv")]) is None


def test_two_directories_with_a_configuration_each() -> None:
    """Which of two is meant is not guessed; the same directory twice is one."""
    write("a/backfill.toml")
    write("b/backfill.toml")
    assert find_config(None, {}, [Path("a"), Path("a/../a")]) == Path("a/backfill.toml")
    with pytest.raises(ConfigurationError, match=r"a/backfill\.toml and b/backfill\.toml.*--config"):
        find_config(None, {}, [Path("a"), Path("b")])


@pytest.mark.parametrize(
    ("flag", "environment", "said"),
    [
        ("gone.toml", {}, r"gone\.toml \(--config\) does not exist"),
        (None, {"BACKFILL_CONFIG": "gone.toml"}, r"gone\.toml \(BACKFILL_CONFIG\) does not exist"),
        (".", {}, r"is a directory"),
    ],
)
def test_a_named_configuration_must_be_there(flag: str | None, environment: dict[str, str], said: str) -> None:
    """A named file that is missing is an error; the next place is not tried instead."""
    write("backfill.toml")
    with pytest.raises(ConfigurationError, match=said):
        chosen(flag, environment=environment)


def test_without_a_file_the_environment_can_say_all() -> None:
    """A container may be configured by its environment alone."""
    environment = {"BACKFILL_API_BASE_URL": "https://mxo.example", "BACKFILL_API_SITE_KEY": "ONE-1"}
    found = chosen(environment=environment)
    assert (found.file, found.state) == (None, Path(".backfill/backfill"))


def test_without_anything_the_places_are_named() -> None:
    """Who forgot the configuration learns where it was looked for, and which keys are missing."""
    with pytest.raises(ConfigurationError, match=r"(?s)api\.base_url is missing.*No configuration file was found"):
        chosen()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[api]\nbase_url = https://x\n", r"june\.toml is no valid TOML: .*line 2"),
        (b"[api]\nsite_key = '\xff'\n", r"june\.toml is not UTF-8 \(byte 18\)"),
        (b'[api]\nsite_key = "a"\nsite_key = "b"\n', r"line 3"),
    ],
)
def test_a_broken_file_is_told_with_its_line(content: bytes, said: str) -> None:
    """Syntax errors name file and line, exit code 78."""
    Path("june.toml").write_bytes(content)
    with pytest.raises(ConfigurationError, match=said) as caught:
        chosen("june.toml")
    assert caught.value.exit_code is ExitCode.UNUSABLE


def test_a_mark_of_windows_editors_is_skipped() -> None:
    """A file saved with a byte order mark is read like any other."""
    Path("june.toml").write_bytes(b"\xef\xbb\xbf" + API.format("ONE-1").encode())
    assert chosen("june.toml").config.api.site_key == "ONE-1"


def test_a_wrong_value_is_told_with_its_line() -> None:
    """The place of a value is file and line, in dotted and nested spelling too."""
    write(
        "june.toml", '\n# comment\n[ api ]\nsite_key = "k"\n  call="x"\n\nbudget.concurrency = 1\n[columns.url]\nx = 1'
    )
    with pytest.raises(ConfigurationError) as caught:
        chosen("june.toml", sets=["csv.delimiter="])
    for said in ("api.call (june.toml, line 5)", "columns.url (june.toml, line 8)", "csv.delimiter (--set)"):
        assert said in caught.value.message


def test_a_ca_bundle_is_found_beside_the_file_that_names_it() -> None:
    """A path in the file counts from the file, one in the environment from the working directory."""
    write("conf/june.toml", API.format("k") + 'ca_bundle = "ca.pem"\n')
    with pytest.raises(ConfigurationError, match=r"line 4\) names no readable file: conf/ca\.pem"):
        chosen("conf/june.toml")
    write("conf/ca.pem", "x")
    assert chosen("conf/june.toml").config.api.ca_bundle == "conf/ca.pem"
    with pytest.raises(ConfigurationError, match=r"BACKFILL_API_CA_BUNDLE\) names no readable file: ca\.pem"):
        chosen("conf/june.toml", environment={"BACKFILL_API_CA_BUNDLE": "ca.pem"})


# ----------------------------------------------------------------------------------------------------------- state


def test_the_state_lies_beside_the_configuration() -> None:
    """.backfill/<job.name> beside the file; the name is job.name, else the file's stem."""
    write("conf/june.toml")
    assert chosen("conf/june.toml").state == Path("conf/.backfill/june")
    assert chosen("conf/june.toml", sets=["job.name=may"]).state == Path("conf/.backfill/may")
    environment = {"BACKFILL_STATE": "elsewhere/x"}
    assert chosen("conf/june.toml", environment=environment).state == Path("elsewhere/x")
    assert chosen("conf/june.toml", "mine", environment).state == Path("mine")


def test_a_sandbox_has_a_state_of_its_own() -> None:
    """--sandbox never takes the place of the real job, also where BACKFILL_STATE names it; --state is what it says."""
    write("june.toml")
    environment = {"BACKFILL_STATE": "elsewhere/x"}
    assert chosen("june.toml", sandbox=True).state == Path(".backfill/june.sandbox")
    assert chosen("june.toml", environment=environment, sandbox=True).state == Path("elsewhere/x.sandbox")
    assert chosen("june.toml", "mine", environment, sandbox=True).state == Path("mine")
    assert chosen(sandbox=True).state == Path(".backfill/backfill.sandbox")


def test_a_file_whose_name_cannot_name_a_job() -> None:
    """The remedy is job.name."""
    write("my.sandbox.toml")
    with pytest.raises(ConfigurationError, match=r"\[job\]"):
        chosen("my.sandbox.toml")
    assert chosen("my.sandbox.toml", sets=["job.name=my"]).state == Path(".backfill/my")


def test_commands_that_look_find_the_state_of_a_run() -> None:
    """status, ledger and verify come to the same directory as run, by the same rules."""
    write("conf/june.toml")
    write("backfill.toml", API.format("k") + '[job]\nname = "may"\n')
    for config in (None, "conf/june.toml"):
        for sandbox in (True, False):
            for environment in ({}, {"BACKFILL_STATE": "s"}, {"BACKFILL_JOB_NAME": "july"}):
                file = None if config is None else Path(config)
                looked = locate_state(config_file=file, state=None, sandbox=sandbox, environment=environment)
                assert looked == chosen(config, None, environment, sandbox=sandbox).state


def test_a_mistake_elsewhere_does_not_hide_how_a_job_stands() -> None:
    """To look at a job, only its name is read from the configuration."""
    write("june.toml", '[api]\nsite_kee = "x"\n[job]\nname = "may"\n')
    assert locate_state(config_file=Path("june.toml"), state=None, sandbox=False, environment={}) == Path(
        ".backfill/may"
    )


def test_where_no_job_is_the_sandboxs_is_pointed_out() -> None:
    """`status` after `run --sandbox` says what to add."""
    with pytest.raises(Unusable, match="Name the right one"):
        existing_state(Path("june"))
    with StateDirectory(Path("june.sandbox")).lock("backfill run"):
        pass
    with pytest.raises(Unusable, match="add --sandbox"):
        existing_state(Path("june"))
    assert existing_state(Path("june.sandbox")).path == Path("june.sandbox")


# --------------------------------------------------------------------------------------------------------- sandbox


def test_nothing_of_the_real_tenant_is_reached_from_a_sandbox_run() -> None:
    """Base URL, token URL and CA are replaced whatever the file says; the rest is kept."""
    text = API.format("ONE-1") + 'token_url = "https://login.example/t"\nca_bundle = "ca.pem"\ntimeout_s = 5\n'
    write("june.toml", text)
    api = chosen("june.toml", sandbox=True, environment={"BACKFILL_API_BASE_URL": "https://real.example"}).config.api
    assert api.base_url == "https://sandbox.invalid"
    assert (api.token_url, api.ca_bundle) == ("/one/oauth2token", None)
    assert (api.site_key, api.timeout_s) == ("ONE-1", 5)


def test_a_sandbox_needs_no_configuration() -> None:
    """Column names are the default ones, the site key is made up."""
    config = chosen(sandbox=True).config
    assert config.api.site_key == "SANDBOX"
    assert config.columns == type(config.columns)()


# --------------------------------------------------------------------------------------------------------- secrets

SECRET = "hunter2"


def test_secrets_come_from_names_or_from_files() -> None:
    """NAME and NAME_FILE are equal; one line end at the end of a file is no part of the secret."""
    write("secret", SECRET + "\r\n")
    by_file = read_credentials({"BACKFILL_CLIENT_ID": "me", "BACKFILL_CLIENT_SECRET_FILE": "secret"})
    assert by_file == Credentials(client_id="me", client_secret=SECRET, token=None)
    assert read_credentials({"BACKFILL_TOKEN_FILE": "secret"}) == Credentials(token=SECRET)
    assert read_credentials({"BACKFILL_CLIENT_ID": "", "BACKFILL_TOKEN": SECRET}) == Credentials(token=SECRET)
    assert read_credentials({}) == Credentials()


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"BACKFILL_TOKEN": SECRET, "BACKFILL_CLIENT_ID": "me"}, "Both a token"),
        (
            {"BACKFILL_TOKEN": SECRET, "BACKFILL_TOKEN_FILE": "secret"},
            "Both BACKFILL_TOKEN and BACKFILL_TOKEN_FILE are set. Unset one of them",
        ),
        (
            {"BACKFILL_TOKEN_FILE": "gone"},
            r"BACKFILL_TOKEN_FILE names cannot be read: gone \(No such file.*Check its name",
        ),
        ({"BACKFILL_TOKEN_FILE": "empty"}, "BACKFILL_TOKEN_FILE names is empty: empty. Write"),
        ({"BACKFILL_TOKEN_FILE": "binary"}, "BACKFILL_TOKEN_FILE names is not UTF-8: binary. Save it"),
        ({"BACKFILL_TOKEN_FILE": "lines"}, "control character"),
        ({"BACKFILL_TOKEN": SECRET + "\n"}, "BACKFILL_TOKEN holds a line end or another control character"),
    ],
)
def test_a_doubtful_secret_is_refused_and_never_shown(environment: dict[str, str], said: str) -> None:
    """The message names the variable; it never repeats what was in it."""
    write("secret", SECRET)
    write("empty", "\n")
    write("lines", f"{SECRET}\n{SECRET}\n")
    Path("binary").write_bytes(b"\xff")
    with pytest.raises(ConfigurationError, match=said) as caught:
        read_credentials(environment)
    assert SECRET not in caught.value.message
