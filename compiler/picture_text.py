"""Pictures of layers as text: time runs down, and lanes lie side by side."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from textwrap import wrap

from compiler.picture import Arrow, Crossing, Lane, OnLane, Picture, Row

WIDTH = 98
"""Of a line: with `# ` before it, 100."""
SIGNS = {"+": "⊕", "−": "⊖", "×": "⊗", "=": "⊜"}
_LINES = {"stream": "│", "zeros": "│", "side": "┊", "temporary": "┆"}
_LEAST_TEXT = 30
"""Where fewer characters are left beside the lanes, updates stand on lines of their own."""


def draw(picture: Picture) -> list[str]:
    """The picture, line by line, at most `WIDTH` wide unless it has too many lanes."""
    columns = _columns(picture)
    side = columns[-1] + 3
    names = _Line(columns[-1])
    for lane in picture.lanes:
        if lane.first < 0:
            names.put(columns[lane.track], lane.name)
    lines = [names.text()]
    for index, row in enumerate(picture.rows):
        if row.text:
            lines.append(_lanes(picture, columns, index - 1, index).text())
        drawn = [line.text() for line in _row(row, index, picture, columns)]
        beside = WIDTH - side >= min(_LEAST_TEXT, len(row.text))
        said = wrap(row.text, WIDTH - (side if beside else 4)) if row.text else []
        if not beside:
            lines += [f"    {text}" for text in said]
            said = []
        drawn += [_lanes(picture, columns, index, index + 1).text()] * (len(said) - len(drawn))
        texts = said + [""] * (len(drawn) - len(said))
        lines += [f"{a:<{side}}{b}".rstrip() for a, b in zip(drawn, texts, strict=True)]
    ends = _Line(columns[-1])
    for lane in picture.lanes:
        if lane.kind in ("stream", "zeros"):
            ends.put(columns[lane.track], "▼")
    return [*lines, ends.text()]


def _columns(picture: Picture) -> list[int]:
    """Where each track stands, and behind the last one where the picture ends."""
    gaps = [0] + [3] * (picture.tracks - 1) + [0]
    for lane in picture.lanes:
        gaps[lane.track + 1] = max(gaps[lane.track + 1], len(_begins(lane)))
    for row in picture.rows:
        event = row.event
        if isinstance(event, Arrow) and event.function is not None:
            gaps[event.gap] = max(gaps[event.gap], len(event.function) + 6)
        if isinstance(event, OnLane):
            half = len(event.map) // 2 + 2
            for gap in (event.track, event.track + 1):
                gaps[gap] = max(gaps[gap], half)
    return list(accumulate(gap + (index > 0) for index, gap in enumerate(gaps)))


def _begins(lane: Lane) -> str:
    """The name of a lane where it begins; the results of calls have none."""
    return "" if "@" in lane.name else lane.name


class _Line:
    """One line of characters, which wires cross lanes on."""

    def __init__(self, width: int) -> None:
        self.characters = [" "] * (width + 1)

    def put(self, column: int, text: str) -> None:
        missing = column + len(text) - len(self.characters)
        self.characters += [" "] * missing
        self.characters[column : column + len(text)] = text

    def wire(self, start: int, end: int) -> None:
        """A wire between two columns, these not included."""
        for column in range(min(start, end) + 1, max(start, end)):
            crossed = self.characters[column] in _LINES.values()
            self.characters[column] = "┼" if crossed or self.characters[column] == "┼" else "─"

    def text(self) -> str:
        return "".join(self.characters).rstrip()


def _lanes(picture: Picture, columns: Sequence[int], after: int, before: int) -> _Line:
    """A line of the lanes that there are after one row and before another."""
    line = _Line(columns[-1])
    for lane in picture.lanes:
        if lane.first <= after and lane.last >= before:
            line.put(columns[lane.track], _LINES[lane.kind])
    return line


def _row(row: Row, index: int, picture: Picture, columns: Sequence[int]) -> list[_Line]:
    """What happens in a row, in one line or more."""
    line = _lanes(picture, columns, index - 1, index)
    if isinstance(row.event, OnLane):
        text = f"[{row.event.map}]"
        line.put(columns[row.event.track] - len(text) // 2, text)
        return [line]
    if isinstance(row.event, Crossing):
        return [_cycle(cycle, index, picture, columns) for cycle in row.event.cycles()]
    if row.event.function is None or row.event.straight:
        _straight(line, row.event, columns)
        return [line]
    after = _lanes(picture, columns, index, index + 1)
    _bent(line, after, row.event, columns)
    return [line, after]


def _cycle(cycle: tuple[int, ...], index: int, picture: Picture, columns: Sequence[int]) -> _Line:
    line = _lanes(picture, columns, index - 1, index)
    line.wire(columns[min(cycle)], columns[max(cycle)])
    for track in cycle:
        line.put(columns[track], "╳")
    return line


def _straight(line: _Line, arrow: Arrow, columns: Sequence[int]) -> None:
    """Sources, perhaps a box, and the target, on one line."""
    target = columns[arrow.target]
    for source in arrow.sources:
        line.wire(columns[source], target)
    if any(source < arrow.target for source in arrow.sources):
        line.put(target - 1, "▶")
    if any(source > arrow.target for source in arrow.sources):
        line.put(target + 1, "◀")
    for source in arrow.sources:
        line.put(columns[source], "●")
    if arrow.function is not None:
        _box(line, arrow, columns)
    line.put(target, SIGNS.get(arrow.mark, arrow.mark))


def _box(line: _Line, arrow: Arrow, columns: Sequence[int]) -> int:
    """The box of a function, in the middle of its gap. Returns where it begins."""
    text = f"[{arrow.function}]"
    left = columns[arrow.gap - 1]
    start = left + 1 + (columns[arrow.gap] - left - 1 - len(text)) // 2
    line.put(start, text)
    return start


def _bent(line: _Line, after: _Line, arrow: Arrow, columns: Sequence[int]) -> None:
    """Sources and the box on one line; from the box, back to the target, on the next."""
    start = _box(line, arrow, columns)
    end = start + len(f"[{arrow.function}]") - 1
    for source in arrow.sources:
        column = columns[source]
        line.wire(column, start if column < start else end)
        line.put(start - 1 if column < start else end + 1, "▶" if column < start else "◀")
    for source in arrow.sources:
        line.put(columns[source], "●")
    target, middle = columns[arrow.target], (start + end) // 2
    after.wire(target, middle)
    after.put(middle, "╯" if target < middle else "╰")
    after.put(target + 1 if target < middle else target - 1, "◀" if target < middle else "▶")
    after.put(target, SIGNS.get(arrow.mark, arrow.mark))
