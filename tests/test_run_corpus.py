"""The corpus: each small export through the real command, read right or refused with the place and the reason."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tomli_w

from tests.account import AGENT
from tests.command import Ended, Job, Server, expect, serving
from tests.corpus.all import CASES
from tests.corpus.case import Case, Invalid


class Ran(NamedTuple):
    ended: Ended
    job: Job


class Corpus(NamedTuple):
    server: Server
    ran: dict[str, Future[Ran]]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Corpus]:
    """All chosen cases, two at a time, against one sandbox. Each has a site key of its own: the log has it."""
    wanted = {name for item in request.session.items if (name := _case_name(item))}
    folder = tmp_path_factory.mktemp("corpus")
    with serving(folder / "log", site_key=None) as server, ThreadPoolExecutor(2) as pool:
        yield Corpus(
            server, {case.name: pool.submit(_run, case, folder, server) for case in CASES if case.name in wanted}
        )


def _case_name(item: pytest.Item) -> str | None:
    case = getattr(getattr(item, "callspec", None), "params", {}).get("case")
    return case.name if isinstance(case, Case) else None


def _run(case: Case, folder: Path, server: Server) -> Ran:
    job = Job(folder / case.name, server.base_url)
    config: dict[str, dict[str, object]] = {
        "api": {"base_url": server.base_url, "site_key": case.name},
        "budget": {"requests_per_second": 100},
    }
    for section, keys in case.config.items():
        config.setdefault(section, {}).update(keys)
    (job.folder / "backfill.toml").write_text(tomli_w.dumps(config))
    path = job.folder / "exports" / case.file
    path.parent.mkdir(parents=True)
    path.write_bytes(case.make())
    return Ran(job.run(path), job)


@pytest.mark.parametrize("case", [case for case in CASES if case.refused is not None], ids=lambda case: case.name)
def test_refused_with_place_and_remedy(corpus: Corpus, case: Case) -> None:
    """78, the words of the verdict and no value; nothing is sent and nothing stays behind."""
    ended, job = corpus.ran[case.name].result()
    expect(ended, 78, *(case.refused or ()))
    assert [line for line in corpus.server.applied() if line["sk"] == case.name] == []
    assert not list(job.state.glob("staged/*"))


@pytest.mark.parametrize("case", [case for case in CASES if case.rows is not None], ids=lambda case: case.name)
def test_read_right(corpus: Corpus, case: Case) -> None:
    """Every row once with its number, line, key and values, as the API got them; the others invalid for the reason."""
    ended, job = corpus.ran[case.name].result()
    rows = list(case.rows or ())
    expect(ended, 0 if all(not isinstance(row, Invalid) for row in rows) or "max_rejected" in str(case.config) else 3)
    got = _interactions(corpus.server, case.name)
    lines = job.ledger().sort("row").to_dicts() if rows else []
    assert [line["row"] for line in lines] == list(range(1, len(rows) + 1))
    for line, row in zip(lines, rows, strict=True):
        assert line["line"] == row.line
        if isinstance(row, Invalid):
            assert line["outcome"] == "invalid"
            assert all(any(reason in told for told in line["reasons"]) for reason in row.reasons), line["reasons"]
            continue
        assert (line["outcome"], line["customer_key"]) == ("delivered", row.key)
        interaction = got.pop((line["load"], line["request"], line["position"]))
        assert interaction["customerKey"] == row.key
        assert {one["name"]: one["value"] for one in interaction.get("properties", [])} == row.values
        assert row.at in (None, interaction["timestamp"])
    assert got == {}, "the API got more than the export holds"


def _interactions(server: Server, site_key: str) -> dict[tuple[int, int, int], dict[str, Any]]:
    """What a case's job had applied, by load, request and position."""
    found = {}
    for request in server.applied():
        if request["sk"] == site_key:
            agent = AGENT.search(request["user_agent"])
            assert agent is not None
            load, number, first, *_ = map(int, agent.groups())
            for position, interaction in enumerate(request["interactions"], start=first):
                found[load, number, position] = interaction
    return found


def test_the_corpus_is_whole() -> None:
    """Names are unique; every key of [csv] is set by some case that is read."""
    assert len({case.name for case in CASES}) == len(CASES)
    used = {key for case in CASES if case.rows is not None for key in case.config.get("csv", {})}
    assert used == {"delimiter", "quote", "encoding", "header", "skip_lines", "skip_footer", "comment", "null_values"}
