"""The simulated disk: what of the journal is durable, and how each part stands by that alone.

Moves become durable in the order in which they were handed over, commit by commit; a crash keeps a first part of what
was under way. It holds every move against the table of moves, as the journal does.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from backfill.core.lifecycle import STATE_OF_PARTS, Move, Part, Recorded, Standing, State, after
from tests.simulation.scenario import Plan, Row


class Violation(Exception):
    """Something that must always hold did not."""


@dataclass(slots=True)
class Entry:
    """How a part stands."""

    state: State = State.PLANNED
    attempts: int = 0
    marked: bool = False
    assumed: bool = False  # delivered by decision


_DOUBTS = frozenset({Move.UNCLEAR, Move.LOST, Move.DECIDED_DOUBT})


class Disk:
    """The durable journal of one job."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.entries: dict[Part, Entry] = {}
        self.by_request: dict[int, list[Part]] = {}
        self.history: list[tuple[float, Recorded]] = []
        self.doubted: set[Row] = set()

    def write(self, moves: Sequence[Recorded], now_s: float) -> None:
        """These moves are durable, all of them or, after a crash, none."""
        for move in moves:
            self._apply(move)
            self.history.append((now_s, move))
        for move in moves:
            for part in move.into:
                if move.move is Move.SORTED and self.entries[part].state is State.IN_FLIGHT:
                    raise Violation(f"{part} was sorted out and its fate is not in the same commit")

    def _apply(self, recorded: Recorded) -> None:
        part = recorded.part
        entry = self.entries.get(part)
        if entry is None:
            if part != self._whole(part.request):
                raise Violation(f"{part} is {recorded.move}, but neither the plan nor a split made it")
            entry = self._add(part, Entry())
        try:
            entry.state = after(entry.state, recorded.move)
        except Exception as error:
            raise Violation(f"{part}: {error}") from error
        match recorded.move:
            case Move.INTENT:
                if recorded.attempt != entry.attempts + 1:
                    raise Violation(f"{part} has attempt {recorded.attempt} after attempt {entry.attempts}")
                entry.attempts = recorded.attempt
            case Move.DECIDED_RESEND:
                entry.marked = True
            case Move.DECIDED_NOT_DELIVERED:
                entry.marked = False
            case Move.DECIDED_DELIVERED:
                entry.assumed = True
        if recorded.move in _DOUBTS:
            self.doubted.update(rows_of(part))
        end = part.first
        for child in recorded.into:
            if child.request != part.request or child.first != end or child.interactions < 1:
                raise Violation(f"{part} was {recorded.move} into {recorded.into}")
            end += child.interactions
            if child in self.entries:
                raise Violation(f"{child} came out of {part}, and was there before")
            self._add(child, Entry(STATE_OF_PARTS[recorded.move], entry.attempts, entry.marked))
        if (entry.state is State.SPLIT) != bool(recorded.into) or (
            recorded.into and end != part.first + part.interactions
        ):
            raise Violation(f"{part} was {recorded.move} into {recorded.into}: its rows are not all there")

    def _add(self, part: Part, entry: Entry) -> Entry:
        self.entries[part] = entry
        self.by_request.setdefault(part.request, []).append(part)
        return entry

    def _whole(self, request: int) -> Part:
        return Part(request, 0, len(self._plan.requests[request].customers))

    def standings(self, request: int) -> list[Standing]:
        """As the journal gives them out: what `backlog` asks for."""
        found = []
        for part in self.by_request.get(request, ()):
            entry = self.entries[part]
            found.append(
                Standing(part, entry.state, entry.attempts, None, None, None, None, entry.marked, None, None, None)
            )
        return found

    def leaves(self) -> Iterator[tuple[Part, Entry]]:
        """Every part that answers for rows, those that never moved included."""
        for request in self._plan.requests:
            parts = self.by_request.get(request)
            if parts is None:
                yield self._whole(request), Entry()
                continue
            for part in parts:
                if self.entries[part].state is not State.SPLIT:
                    yield part, self.entries[part]

    def in_state(self, state: State) -> list[Part]:
        return sorted(part for part, entry in self.leaves() if entry.state is state)


def rows_of(part: Part) -> Iterator[Row]:
    """The rows of a part."""
    return ((part.request, position) for position in range(part.first, part.first + part.interactions))
