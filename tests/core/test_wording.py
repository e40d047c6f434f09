"""Messages repeat a value as one would write it, and join names as one would say them."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backfill.core.wording import listed, spelled

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    texts | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
)


@given(value=values)
def test_a_spelled_value_can_be_copied_into_the_file(value: object) -> None:
    """TOML reads it as the same value."""
    assert tomllib.loads(f"value = {spelled(value)}") == {"value": value}


def test_an_unset_key_is_called_so() -> None:
    """None has no spelling in TOML."""
    assert spelled(None) == "not set"


@pytest.mark.parametrize(
    ("names", "said"),
    [(["a"], "a"), (["a", "b"], "a or b"), (["a", "b", "c"], "a, b or c"), ({"a": 1, "b": 2}, "a or b")],
)
def test_names_are_joined_as_one_says_them(names: list[str], said: str) -> None:
    """Commas, and a word before the final name."""
    assert listed(names, "or") == said
