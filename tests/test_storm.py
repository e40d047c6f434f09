"""The storm in its short form, and the proof that its checker sees."""

from pathlib import Path

import pytest

from tests.broken import VARIANTS
from tests.storm import storm


@pytest.mark.timeout(600)
def test_20_kills_change_nothing(tmp_path: Path) -> None:
    """I1 to I10 hold after kills in every phase, with a server that misbehaves."""
    stormy, findings = storm(tmp_path / "storm", kills=20, seed=20)
    assert findings.violations == []
    assert stormy.kills == 20
    assert set(stormy.kills_by_phase) == {"spooling", "arranging", "delivering", "settling"}
    assert findings.doubted_rows > 0, "no kill met a request in flight: the storm was too mild to prove anything"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_broken_variant_is_caught(tmp_path: Path, variant: str) -> None:
    """The checker finds what each mistake does to the account. A storm may miss the moment; three do not."""
    module = ("tests.broken", variant)
    assert any(storm(tmp_path / str(seed), kills=6, seed=seed, module=module)[1].violations for seed in range(3))
