"""One layer as a picture: streams as lanes, functions as boxes, updates as arrows.

This is the layout alone: which lanes there are, and what happens on them, one thing after another.
`compiler.picture_text` and `compiler.picture_svg` draw it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import count
from typing import Literal

from archspec.expressions import (
    ONE,
    ZERO,
    Binary,
    Expression,
    Name,
    Negative,
    children,
    names,
)
from compiler.canonical import NotAffineError, split
from compiler.plan import (
    Affine,
    Call,
    General,
    Mapped,
    NetworkPlan,
    Permutation,
    StagePlan,
    Temporary,
)

Kind = Literal["stream", "zeros", "side", "temporary"]


@dataclass(frozen=True)
class Lane:
    """What stays the same from one arrow to the next: a stream, a side input, a temporary.

    `zeros` is a stream that starts from zeros, such as a velocity. Lanes lie side by side on
    tracks; temporaries that never meet may share one.
    """

    name: str
    kind: Kind
    track: int
    first: int
    """The row in which it begins; -1 for what a layer is given."""
    last: int
    """The row in which it is read last; for streams, the number of rows."""


@dataclass(frozen=True)
class Arrow:
    """What tracks hold, through a function or directly, onto a track."""

    sources: tuple[int, ...]
    """In ascending order."""
    function: str | None
    target: int
    mark: str
    """What happens there: "+", "−", "×" or "=" (any other form); or the name of the temporary that
    begins, "○" where it has none."""
    gap: int = 0
    """Where the function's box stands: gap i is the one before track i, from 1 on."""

    @property
    def straight(self) -> bool:
        """Whether the box lies between the target and all that it reads."""
        below = self.gap > self.target
        return all(
            source > self.target if below else source < self.target for source in self.sources
        )


@dataclass(frozen=True)
class Crossing:
    """Streams that change places: from a track to a track."""

    moves: tuple[tuple[int, int], ...]

    def cycles(self) -> Iterator[tuple[int, ...]]:
        """The tracks that change places among one another."""
        where, seen = dict(self.moves), set[int]()
        for start in where:
            cycle = []
            while start not in seen:
                seen.add(start)
                cycle.append(start)
                start = where[start]
            if len(cycle) > 1:
                yield tuple(cycle)


@dataclass(frozen=True)
class OnLane:
    """An invertible map of one stream."""

    track: int
    map: str


@dataclass(frozen=True)
class Row:
    """One thing that happens; `text` is the update that it is the first row of."""

    event: Arrow | Crossing | OnLane
    text: str


@dataclass(frozen=True)
class Picture:
    """One layer. Rows follow one another in time."""

    lanes: tuple[Lane, ...]
    rows: tuple[Row, ...]

    @property
    def tracks(self) -> int:
        """How many lanes lie side by side."""
        return 1 + max(lane.track for lane in self.lanes)


def pictures(plan: NetworkPlan) -> dict[str, Picture]:
    """A picture of each program of a network that differs from the others, by a title."""
    alike: dict[Picture, list[StagePlan]] = {}
    for stage in plan.stages:
        alike.setdefault(picture(stage), []).append(stage)
    return {_title(stages): picture for picture, stages in alike.items()}


def _title(stages: Sequence[StagePlan]) -> str:
    names: dict[int, list[str]] = {}
    for stage in stages:
        names.setdefault(stage.depth, []).append(stage.name)
    which = {depth: f"one of {depth} layers" if depth > 1 else "the layer" for depth in names}
    return "; ".join(f"{which[depth]} of {', '.join(names[depth])}" for depth in names)


def picture(plan: StagePlan) -> Picture:
    """The layout of one layer of a stage."""
    known = {stream.name for stream in plan.streams} | {side.name for side in plan.side}
    drawn: list[tuple[_Event, str]] = []
    for index, step in enumerate(plan.steps):
        if isinstance(step, (Permutation, Mapped)):
            drawn.append((step, step.text))
            continue
        known |= {step.name} if isinstance(step, Temporary) else set()
        arrows = [_unique(arrow, index) for arrow in _arrows(step, known)]
        drawn += zip(arrows, (step.text, *("" for _ in arrows[1:])), strict=True)
    lanes = _lanes(plan, [event for event, _ in drawn])
    tracks = {lane.name: lane.track for lane in lanes}
    rows = [Row(_placed(event, tracks), text) for event, text in drawn]
    return Picture(tuple(lanes), tuple(rows))


# Arrows between names -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Arrow:
    """An arrow before its lanes have places."""

    sources: tuple[str, ...]
    function: str | None
    target: str
    mark: str


def _unique(arrow: _Arrow, step: int) -> _Arrow:
    """The arrow with results of calls, which every update numbers from 0, as names of their own."""
    sources = tuple(f"{name}@{step}" if "@" in name else name for name in arrow.sources)
    target = f"{arrow.target}@{step}" if "@" in arrow.target else arrow.target
    return replace(arrow, sources=sources, target=target)


def _arrows(step: Affine | General | Temporary, known: Set[str]) -> list[_Arrow]:
    """The arrows of an update, in the order in which they are drawn: calls inside calls first, then
    what scales the target, then what is added to it. `known` are the names that have lanes."""
    target = step.name if isinstance(step, Temporary) else step.target
    calls = {call.result: call for call in step.calls}
    inner = {name for call in step.calls for a in call.arguments for name in names(a)} & set(calls)
    known = known | inner
    found = [_through(call, name, "○", known) for name, call in calls.items() if name in inner]
    for leaves, mark in _leaves(step):
        direct = tuple(sorted(name for name in leaves if name in known and name != target))
        found += [_Arrow(direct, None, target, mark)] if direct else []
        outer = [calls[name] for name in calls if name in leaves]
        found += [_through(call, target, mark, known) for call in outer]
    if not any(arrow.target == target for arrow in found):
        alone = "×" if isinstance(step, Affine) and step.rest == ZERO else "="
        found.append(_Arrow((), None, target, alone))
    if isinstance(step, Temporary):
        first = next(i for i, arrow in enumerate(found) if arrow.target == target)
        found[first] = replace(found[first], mark=step.name)
    return found


def _through(call: Call, target: str, mark: str, known: Set[str]) -> _Arrow:
    read = {name for argument in call.arguments for name in names(argument)}
    return _Arrow(tuple(sorted(read & known)), call.function, target, mark)


def _leaves(step: Affine | General | Temporary) -> list[tuple[frozenset[str], str]]:
    """The names that an update reads outside of calls, with what they do to its target."""
    if isinstance(step, Affine):
        scale, rest = step.scale, step.rest
    elif isinstance(step, Temporary):
        scale, rest = ONE, step.value
    else:
        try:
            scale, rest = split(step.value, step.target)
        except NotAffineError:
            return [(names(step.value), "=")]
    if scale == ZERO:  # nothing of the old value is left
        return [(names(rest), "=")]
    scaling, signs = names(scale), _signs(rest)
    less = frozenset(name for name, found in signs.items() if found == {-1}) - scaling
    return [
        (scaling - set(signs), "×"),
        (scaling & set(signs), "="),
        (frozenset(signs) - scaling - less, "+"),
        (less, "−"),
    ]


def _signs(expression: Expression, sign: int = 1) -> dict[str, set[int]]:
    """The signs with which names stand in a sum."""
    if isinstance(expression, Name):
        return {expression.name: {sign}}
    found: dict[str, set[int]] = {}
    for index, child in enumerate(children(expression)):
        subtracted = isinstance(expression, Binary) and expression.operator == "-" and index == 1
        turned = -sign if subtracted or isinstance(expression, Negative) else sign
        for name, signs in _signs(child, turned).items():
            found[name] = found.get(name, set()) | signs
    return found


# Places -------------------------------------------------------------------------------------------

_Event = _Arrow | Permutation | Mapped


def _lanes(plan: StagePlan, events: Sequence[_Event]) -> list[Lane]:
    """The lanes with their tracks: streams, then side inputs, then temporaries."""
    zeros = {stream.name for stream in plan.streams if stream.start == Name("zeros")}
    last = _last_reads(events)
    lanes = [
        Lane(s.name, "zeros" if s.name in zeros else "stream", track, -1, len(events))
        for track, s in enumerate(plan.streams)
    ]
    for side in plan.side:
        lanes.append(Lane(side.name, "side", len(lanes), -1, last.get(side.name, -1)))
    given, behind = {lane.name for lane in lanes}, len(lanes)
    busy: dict[int, int] = {}
    for row, event in enumerate(events):
        if isinstance(event, _Arrow) and event.target not in given:
            given.add(event.target)
            track = next(t for t in count(behind) if busy.get(t, -1) < row)
            busy[track] = last[event.target]
            lanes.append(Lane(event.target, "temporary", track, row, busy[track]))
    return lanes


def _last_reads(events: Iterable[_Event]) -> dict[str, int]:
    """The last row in which each name is read or made."""
    return {
        name: row
        for row, event in enumerate(events)
        if isinstance(event, _Arrow)
        for name in (*event.sources, event.target)
    }


def _placed(event: _Event, tracks: Mapping[str, int]) -> Arrow | Crossing | OnLane:
    if isinstance(event, Mapped):
        return OnLane(tracks[event.target], event.map)
    if isinstance(event, Permutation):
        pairs = zip(event.sources, event.targets, strict=True)
        return Crossing(tuple((tracks[source], tracks[target]) for source, target in pairs))
    sources, target = sorted(tracks[name] for name in event.sources), tracks[event.target]
    below = sum(sources) >= target * len(sources)
    gap = target + 1 if below else target
    return Arrow(tuple(sources), event.function, target, event.mark, gap)
