"""The storm in its short form, and the proof that its checker sees each mistake that the storm is there to find."""

from pathlib import Path

import pytest

from tests.account import Findings
from tests.storm import BUSY, FAIR, LOSING, PHASES, PLANS, Kill, Storm, Weather, storm

# A slow journal makes no difference to phases that write little or nothing into it.
TELLING = [[kill for kill in plan if not (kill.slow and kill.at in PHASES)] for plan in PLANS]


@pytest.mark.timeout(600)
def test_each_kind_of_kill_changes_nothing(tmp_path: Path) -> None:
    """I1 to I10 hold after a kill of each kind, with a server that loses replies and one that is busy."""
    kills = sum(map(len, TELLING))
    stormy, findings = storm(
        tmp_path / "storm", kills=kills, seed=20, weather=(LOSING, BUSY), plans=TELLING, rows=5_000
    )
    assert findings.violations == []
    assert stormy.kills.total() == kills
    # On a stuttering machine a phase may be over before its kill comes; the server misses no instant of a request.
    assert {str(kill) for plan in TELLING for kill in plan if kill.at not in PHASES} <= stormy.kills.keys()
    assert findings.doubted_rows > 0, "no kill met a request in flight: the storm was too mild to prove anything"
    assert findings.proven_durable > 0, "no call was held against the instant its intent was durable"


def seen(tmp_path: Path, variant: str, weather: Weather, *plan: Kill, slow: tuple[float, float] | None = None) -> str:
    """One round of a broken variant; all violations that the checker found, as one text."""
    stormy = Storm(tmp_path / "storm", seed=1, rows=2_000, variant=variant)
    stormy.round(weather, plan, slow=slow)
    findings: Findings = stormy.findings()
    return "\n".join(findings.violations)


@pytest.mark.timeout(600)
def test_an_intent_written_with_the_outcome_is_seen(tmp_path: Path) -> None:
    """After a kill while the server has the head, nothing in the journal is older than the call."""
    assert "calls that came before their intent" in seen(tmp_path, "no_intent", FAIR, Kill("head", slow=True))


@pytest.mark.timeout(600)
def test_an_intent_that_is_not_awaited_is_seen_by_a_kill(tmp_path: Path) -> None:
    """With slow commits a kill while the server has the head comes before an intent that is only on its way."""
    assert "calls that came before their intent" in seen(tmp_path, "not_awaited", FAIR, Kill("head", slow=True))


@pytest.mark.timeout(600)
def test_an_intent_that_is_late_by_one_commit_is_seen(tmp_path: Path) -> None:
    """Without any delay or kill, the instant of the commit is later than the server's: that suffices."""
    assert "before their intent was durable" in seen(tmp_path, "not_awaited", FAIR, slow=(0.0, 0.0))


@pytest.mark.timeout(600)
def test_a_restart_that_forgets_what_was_in_flight_is_seen(tmp_path: Path) -> None:
    """A kill after the server has applied a request, and it is applied again: I3."""
    assert "I3" in seen(tmp_path, "forget_in_flight", FAIR, Kill("applied"))


@pytest.mark.timeout(600)
def test_an_interaction_forgotten_between_two_loads_is_seen(tmp_path: Path) -> None:
    """The second export has some rows of the first; where nobody looks for them, they are sent again: I3."""
    stormy = Storm(tmp_path / "storm", seed=1, rows=1_000, variant="forgetful")
    for _ in range(2):
        stormy.round(FAIR, ())
    assert "I3" in "\n".join(stormy.findings().violations)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("variant", "violated"), [("resend", "I3"), ("optimism", "I2")])
def test_a_missing_reply_taken_for_something_is_seen(tmp_path: Path, variant: str, violated: str) -> None:
    """Lost replies taken for not sent are applied twice; taken for acknowledged, the ledger tells what is not so."""
    losing = Weather("losing", ("drop=after,every=7", "drop=read,every=5"))
    assert violated in seen(tmp_path, variant, losing)
