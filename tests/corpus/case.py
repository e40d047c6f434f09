"""What an entry of the corpus is: how to make the file, the configuration, and the expected verdict."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

KEY = "PRIVATE"
"""Begins every customer key, so that what the command says can be searched for values."""


@dataclass(frozen=True, kw_only=True)
class Sent:
    """A row that must reach the API: where it stands, whose it is, and its properties. `at` is looked at if given."""

    line: int | None
    key: str
    values: Mapping[str, str] = field(default_factory=dict)
    at: int | None = None
    """Epoch ms."""


@dataclass(frozen=True, kw_only=True)
class Invalid:
    """A row that must come out as invalid, with these reasons among others."""

    line: int | None
    reasons: Sequence[str]


Row = Sent | Invalid


@dataclass(frozen=True, kw_only=True)
class Case:
    """One export. Either `rows` (all of them, in order) or `refused` (78, nothing sent; words of the message)."""

    name: str
    make: Callable[[], bytes]
    config: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    file: str = "export.csv"
    """A path below the folder of the case."""
    rows: Sequence[Row] | None = None
    refused: Sequence[str] | None = None

    def __post_init__(self) -> None:
        assert (self.rows is None) != (self.refused is None), f"{self.name} needs rows or refused"
