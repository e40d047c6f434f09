"""`backfill check` as a user types it: values and their sources, columns, secrets, the token; nothing is sent."""

import json
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from backfill.core.config import SECTIONS
from tests.command import CLIENT_ID, SECRET, SITE_KEY, Ended, Job, Server, expect, serving, visits

NO_CREDENTIALS = {"BACKFILL_CLIENT_ID": None, "BACKFILL_CLIENT_SECRET": None}


def sent_to(server: Server) -> list[str]:
    """The paths of all calls but those for a token, wherever these were asked for."""
    return [call["path"] for call in server.calls() if "interaction" in call["path"]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One sandbox for all tests: `check` sends nothing to it, and asks for tokens at most."""
    with serving(tmp_path_factory.mktemp("server") / "log") as running:
        yield running
        assert sent_to(running) == []


@pytest.fixture
def job(tmp_path: Path, server: Server) -> Job:
    made = Job(tmp_path / "job", server.base_url)
    made.export("a.csv", visits(20))
    return made


def checked(job: Job, *arguments: str | Path, environment: Mapping[str, str | None] | None = None) -> Ended:
    return job.run("--config", "backfill.toml", *arguments, command="check", environment=environment)


def values(ended: Ended) -> dict[str, tuple[object, str]]:
    """By key, its value and where that came from."""
    return {each["key"]: (each["value"], each["from"]) for each in ended.object()["values"]}


def test_what_it_says_of_a_sound_job(job: Job) -> None:
    """The whole text, but for keys at their default: sources, secrets by name alone, columns, the way and the token."""
    said = checked(job, "a.csv", "--set", "csv.quote='", environment={"BACKFILL_BUDGET_CONCURRENCY": "4"})
    expect(said, 0)
    assert said.err == ""
    shown = [line.rstrip() for line in said.out.splitlines() if not line.endswith("  default")]
    assert "\n".join(shown).replace(job.base_url, "URL").replace(str(job.folder), "JOB") == (
        "Configuration  backfill.toml (--config)\n"
        "State          JOB/state (--state; no job there yet)\n"
        "\n"
        "Values\n"
        f'  api.base_url = "URL"{blanks(job, 16)}backfill.toml, line 2\n'
        '  api.site_key = "ONE-WHOLE00000-0001"                   backfill.toml, line 3\n'
        '  columns.tid = "tid"                                    backfill.toml, line 6\n'
        '  csv.quote = "\'"                                        --set\n'
        "  budget.requests_per_second = 200.0                     backfill.toml, line 9\n"
        "  budget.concurrency = 4                                 BACKFILL_BUDGET_CONCURRENCY\n"
        "  delivery.backoff_base_s = 0.02                         backfill.toml, line 13\n"
        "\n"
        "Secrets\n"
        "  BACKFILL_CLIENT_ID      present, from BACKFILL_CLIENT_ID\n"
        "  BACKFILL_CLIENT_SECRET  present, from BACKFILL_CLIENT_SECRET\n"
        "  BACKFILL_TOKEN          absent\n"
        "  BACKFILL_LEDGER_KEY     absent\n"
        "\n"
        "Exports\n"
        "  a.csv\n"
        '    timestamp          column "timestamp"\n'
        '    customer_key       column "customer_key"\n'
        '    customer_key_name  always "customerkey"\n'
        '    url                column "url"\n'
        '    tid                column "tid"\n'
        '    properties         "mark", "n"\n'
        "    unused columns     none\n"
        "\n"
        "Way to MXO\n"
        "  api.base_url   URL: directly, without TLS\n"
        "  api.token_url  URL/one/oauth2token: directly, without TLS\n"
        "  token          granted.\n"
        "\n"
        "Sound."
    )


def blanks(job: Job, quoted: int) -> str:
    """What aligns the line of an address, whose port may have four or five digits."""
    return " " * (57 - quoted - len(job.base_url) - 3)


def test_it_asks_for_one_token_and_leaves_nothing_behind(job: Job, server: Server) -> None:
    """No call, no state directory, no file: looking changes nothing."""
    before, asked = sorted(job.folder.iterdir()), server.tokens()
    expect(checked(job, "a.csv"), 0)
    assert server.tokens() == asked + 1
    assert not job.state.exists()
    written = {job.folder / "stdout.log", job.folder / "stderr.log"}
    assert set(job.folder.iterdir()) - written == set(before) - written


def test_every_key_is_shown_with_its_source(job: Job) -> None:
    """The stronger source wins and is the one that is named; a value inside another line has the file alone."""
    (job.folder / "backfill.toml").write_text(
        f'api = {{ base_url = "{job.base_url}", site_key = "{SITE_KEY}" }}\n\n[budget]\n'
        "concurrency = 2\nrequests_per_day = 7\n[columns]\nurl = { template = 'api://x/{mark}' }\n"
    )
    sets = ["--set", "budget.requests_per_day=9"]
    said = checked(job, *sets, "--json", environment={"BACKFILL_BUDGET_CONCURRENCY": "3"})
    expect(said, 0)
    shown = values(said)
    assert list(shown) == [f"{section}.{key}" for section, model in SECTIONS.items() for key in model.model_fields]
    assert shown["api.site_key"] == (SITE_KEY, "backfill.toml")
    assert shown["budget.concurrency"] == (3, "BACKFILL_BUDGET_CONCURRENCY")
    assert shown["budget.requests_per_day"] == (9, "--set")
    assert shown["columns.url"] == ({"template": "api://x/{mark}"}, "backfill.toml, line 7")
    assert shown["columns.tid"] == (None, "default")
    assert shown["budget.requests_per_second"] == (20.0, "default")


def test_which_configuration_and_state_were_chosen_and_why(job: Job) -> None:
    """Each of the places where they are looked for is named as the one that decided."""
    file = job.folder / "backfill.toml"
    elsewhere = job.folder / "exports"
    elsewhere.mkdir()
    (elsewhere / "a.csv").write_bytes((job.folder / "a.csv").read_bytes())

    def chosen(*arguments: str, **environment: str) -> list[str | None]:
        said = job.run("--json", *arguments, command="check", environment=environment).object()
        return [said["config"]["file"], said["config"]["by"]]

    assert chosen() == ["backfill.toml", "in the working directory"]
    assert chosen(BACKFILL_CONFIG=str(file)) == [str(file), "BACKFILL_CONFIG"]
    assert chosen("--config", "./backfill.toml", BACKFILL_CONFIG="nowhere") == ["backfill.toml", "--config"]
    file.rename(elsewhere / "backfill.toml")
    assert chosen("exports") == ["exports/backfill.toml", "in the EXPORT directory"]
    api = {"BACKFILL_API_BASE_URL": job.base_url, "BACKFILL_API_SITE_KEY": SITE_KEY}
    file_and_why = chosen("exports/a.csv", **api)
    assert file_and_why[0] is None
    assert "no --config, no BACKFILL_CONFIG, no backfill.toml" in str(file_and_why[1])


@pytest.mark.parametrize(
    ("config", "environment", "words"),
    [
        ("june.toml", {}, (".backfill/june", "beside the configuration, named by the configuration's name")),
        ("named.toml", {}, (".backfill/may", "beside the configuration, named by job.name")),
        ("june.toml", {"BACKFILL_STATE": "there"}, ("there", "BACKFILL_STATE")),
    ],
)
def test_where_the_state_is_and_why(
    job: Job, config: str, environment: dict[str, str], words: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --state it is the environment or the configuration that says."""
    text = (job.folder / "backfill.toml").read_text()
    (job.folder / "june.toml").write_text(text)
    (job.folder / "named.toml").write_text(f'job.name = "may"\n{text}')
    import click.testing

    from backfill.cli import commands

    monkeypatch.chdir(job.folder)
    clear = {"BACKFILL_CONFIG": None, "BACKFILL_STATE": None, **NO_CREDENTIALS}
    ended = click.testing.CliRunner().invoke(
        commands, ["check", "--config", config, "--json"], env={**clear, **environment}, standalone_mode=False
    )
    state = json.loads(ended.stdout)["state"]
    assert (state["directory"], state["by"], state["has_job"]) == (*words, False)


def test_a_job_that_is_there_is_told(job: Job) -> None:
    """After a run, `check` says so; it does not need the job's lock."""
    with serving(job.folder / "other-log") as other:
        job.base_url = other.base_url
        job.configure()
        expect(job.run("a.csv"), 0)
        expect(checked(job), 0, "a job is there")


# ------------------------------------------------------------------------------------------------------------ columns


def test_how_columns_are_matched(job: Job) -> None:
    """Constants, templates, renamed properties and identity are told apart, and what is left over is named."""
    said = checked(
        job,
        "a.csv",
        *("--set", "columns.url={ template = 'api://x/{mark}' }"),
        *("--set", "columns.properties={ n = 'event' }"),
        *("--set", "rows.identity=['n']"),
    )
    expect(
        said,
        0,
        'url                template "api://x/{mark}"',
        'properties         "n" as "event"',
        'identity           "n"',
        'unused columns     "url"',
    )


def test_exports_with_the_same_columns_are_told_once(job: Job) -> None:
    """Names first, then the columns they share; one that differs has a block of its own."""
    job.export("b.csv", visits(3))
    (job.folder / "c.csv").write_text("timestamp,customer_key,url,tid\n")
    said = checked(job, "a.csv", "b.csv", "c.csv")
    expect(said, 0, "a.csv, b.csv\n    timestamp", "c.csv\n    timestamp", "properties         none")
    assert said.out.count('customer_key       column "customer_key"') == 2


def test_every_export_that_cannot_be_read_is_told(job: Job) -> None:
    """78 with each of them and the nearest column; the sound one is shown all the same."""
    (job.folder / "b.csv").write_text("timestamp,customer_key,ulr,tid\n")
    (job.folder / "c.csv").write_bytes(b"")
    said = checked(job, "a.csv", "b.csv", "c.csv")
    expect(said, 78, "b.csv has no column 'url'", "Did you mean 'ulr'?", "c.csv", 'column "timestamp"', "Not sound")
    errors = [each["error"] for each in checked(job, "--json", "a.csv", "b.csv", "c.csv").object()["exports"]]
    assert [error is None for error in errors] == [True, False, False]


@pytest.mark.parametrize("command", ["check", "run"])
def test_an_anonymous_export_needs_no_customer_key_column(tmp_path: Path, command: str) -> None:
    """With rows.customer_key_required = false the default column may be missing, from check to delivery."""
    with serving(tmp_path / "log") as server:
        job = Job(
            tmp_path / "job", server.base_url, {"rows": {"customer_key_required": False}, "columns": {"tid": "t"}}
        )
        (job.folder / "anonymous.csv").write_text("timestamp,url,t\n2024-01-01T00:00:00Z,api://x/y,T1\n")
        if command == "check":
            expect(checked(job, "anonymous.csv"), 0, "customer_key       none")
            return
        expect(job.run("anonymous.csv"), 0, "delivered 1")
        assert server.applied()[0]["tid"] == "T1"
        assert "customerKey" not in server.applied()[0]["interactions"][0]


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        ([], ("no column 'customer_key'", "columns.customer_key")),
        (
            ["--set", "rows.customer_key_required=false", "--set", "columns.customer_key=customer_key"],
            ("no column 'customer_key'", "columns.customer_key"),
        ),
    ],
)
def test_a_key_column_that_is_required_or_chosen_must_be_there(
    job: Job, sets: list[str], words: tuple[str, ...]
) -> None:
    """Only the default column may be missing, and only where no key is required: else it is a typing error."""
    (job.folder / "anonymous.csv").write_text("timestamp,url,tid\n2024-01-01T00:00:00Z,api://x/y,T1\n")
    expect(checked(job, "anonymous.csv", *sets), 78, *words)


# -------------------------------------------------------------------------------------------- secrets, token, network


def test_secrets_are_told_by_their_source_alone(job: Job, tmp_path: Path) -> None:
    """From a file they are read, too; what stands in it is nowhere, nor in --json."""
    (tmp_path / "secret").write_text(SECRET + "\n")
    environment = {"BACKFILL_CLIENT_SECRET": None, "BACKFILL_CLIENT_SECRET_FILE": str(tmp_path / "secret")}
    said = checked(job, environment=environment)
    expect(said, 0, "BACKFILL_CLIENT_SECRET  present, from BACKFILL_CLIENT_SECRET_FILE", "granted")
    as_json = checked(job, "--json", environment=environment)
    assert as_json.object()["secrets"] == {
        "BACKFILL_CLIENT_ID": "BACKFILL_CLIENT_ID",
        "BACKFILL_CLIENT_SECRET": "BACKFILL_CLIENT_SECRET_FILE",
        "BACKFILL_TOKEN": None,
        "BACKFILL_LEDGER_KEY": None,
    }
    for text in (said.said, as_json.said):
        assert SECRET not in text
        assert CLIENT_ID not in text


def test_without_credentials_nobody_is_asked(job: Job, server: Server) -> None:
    """0, since a configuration may be checked where no secret is; the text says what `run` would miss."""
    asked = server.tokens()
    said = checked(job, environment=NO_CREDENTIALS)
    expect(said, 0, "not asked for: there are no credentials", "Sound, but for the credentials")
    assert server.tokens() == asked
    assert checked(job, "--json", environment=NO_CREDENTIALS).object()["token"] is None


@pytest.mark.parametrize(
    ("environment", "code", "words"),
    [
        ({"BACKFILL_CLIENT_SECRET": "wrong"}, 77, ("refused", "Check BACKFILL_CLIENT_ID", "Not sound: no token")),
        ({"BACKFILL_CLIENT_SECRET": None}, 78, ("There are no credentials", "Not sound")),
        (NO_CREDENTIALS | {"BACKFILL_TOKEN": "given"}, 0, ("given by BACKFILL_TOKEN; only a call shows",)),
        ({"BACKFILL_API_TOKEN_URL": "/elsewhere"}, 78, ("answers HTTP 404", "Check api.token_url")),
    ],
)
def test_what_became_of_the_token(
    job: Job, environment: dict[str, str | None], code: int, words: tuple[str, ...]
) -> None:
    """Refused 77, a misplaced endpoint and half of the credentials 78; a token that is given is not tried."""
    expect(checked(job, environment=environment), code, *words)


def test_an_endpoint_that_cannot_be_reached(job: Job) -> None:
    """75: try again later; everything else is told all the same."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{taken.getsockname()[1]}"
        said = checked(job, "a.csv", "--set", f"api.base_url={closed}")
        expect(said, 75, "not granted", "could not be asked", 'column "timestamp"', "Not sound: no token")


def test_the_worst_of_several_is_the_exit_code(job: Job) -> None:
    """Refused credentials (77) rank above a column that is missing (78), and both are told."""
    environment = {"BACKFILL_CLIENT_SECRET": "wrong"}
    expect(checked(job, "a.csv", "--set", "columns.url=ulr", environment=environment), 77, "no column 'ulr'", "refuses")


def test_proxy_and_authorities_are_told_without_the_proxys_password(job: Job, tmp_path: Path) -> None:
    """Which proxy leads where, and who is trusted; of a proxy's URL only host, port and variable."""
    (tmp_path / "ca.pem").write_text("")
    api = [
        f"--set=api.{key}={value}"
        for key, value in {"base_url": "https://mxo.example", "ca_bundle": tmp_path / "ca.pem"}.items()
    ]
    environment = NO_CREDENTIALS | {"HTTPS_PROXY": "http://me:hunter2@proxy.example:3128"}
    said = checked(job, *api, environment=environment)
    expect(
        said,
        0,
        "api.base_url   https://mxo.example: through the proxy proxy.example:3128 (HTTPS_PROXY), "
        f"TLS trusting the authorities in {tmp_path / 'ca.pem'}",
        "api.token_url  https://mxo.example/one/oauth2token: through the proxy",
    )
    assert "hunter2" not in said.said


def test_a_proxy_that_cannot_be_used_is_told_beside_the_rest(job: Job) -> None:
    """78 with the remedy; the values are shown all the same."""
    said = checked(
        job,
        *("--set", "api.base_url=https://mxo.example"),
        environment=NO_CREDENTIALS | {"HTTPS_PROXY": "socks5://proxy.example"},
    )
    expect(said, 78, "Problems", "HTTPS_PROXY names a proxy that is spoken to by socks5", "api.site_key")


def test_a_ledger_key_that_run_would_miss_is_told(job: Job) -> None:
    """78 where customers are to be named by hmac and there is no key; 0 with one."""
    sets = ("--set", "ledger.customer_key=hmac")
    expect(checked(job, *sets), 78, "Set BACKFILL_LEDGER_KEY", "Not sound: the problems above")
    expect(
        checked(job, *sets, environment={"BACKFILL_LEDGER_KEY": "0123456789abcdef"}),
        0,
        "BACKFILL_LEDGER_KEY     present",
    )


def test_an_export_that_is_not_there(job: Job) -> None:
    """78 naming it, beside the values."""
    expect(checked(job, "gone.csv"), 78, "gone.csv does not exist", "api.site_key")


def test_a_configuration_that_cannot_be_used(job: Job) -> None:
    """78 with every problem, as `run` tells it; as JSON one error object."""
    said = checked(job, "--set", "budget.concurency=3", "--json")
    assert said.object()["error"]["exit_code"] == said.code == 78
    assert "budget.concurency (--set) is no known key. Did you mean concurrency?" in said.object()["error"]["message"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--yes", "a.csv"), "needs that option"),
        (("--probe", "--yes"), "name one"),
        (("--probe", "a.csv"), "no terminal to ask on. Add --yes"),
        (("--probe", "a.csv", "--json"), "no terminal to ask on. Add --yes"),
    ],
)
def test_a_probe_needs_an_export_and_someone_who_agrees(
    job: Job, server: Server, arguments: tuple[str, ...], words: str
) -> None:
    """2, and nothing is sent."""
    expect(checked(job, *arguments), 2, words)
    assert sent_to(server) == []
