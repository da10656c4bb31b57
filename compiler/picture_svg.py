"""Pictures of layers as SVG: time runs to the right, and lanes lie above one another.

A file of its own: no script, no font of its own, and colours for light and for dark.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from xml.sax.saxutils import escape

from compiler.picture import Arrow, Crossing, Lane, OnLane, Picture, Row
from compiler.signing import MARK, signed

LETTER, SMALL = 10.5, 7.9
"""How wide a character is at most: of names, and of updates. All lengths are in pixels."""
MARGIN, HEADING, CAPTION = 18, 44, 44
NODE, BOX, DOT = 11, 32, 3.5
"""Radius of a node, height of a box, radius of a dot."""
NEAR, FAR, EDGE = 46, 88, 60
"""Between lanes; where a box stands between them; where it stands behind the last one."""
SIGNS = ("+", "−", "×", "=")

STYLE = """\
text { font: 15px ui-sans-serif, system-ui, sans-serif; fill: #223; }
.title { font-size: 13px; fill: #556; }
.name { font-weight: 600; }
.box, .sign { text-anchor: middle; }
.box { font-weight: 700; }
.update { font: 13px ui-monospace, monospace; fill: #445; text-anchor: middle; }
.page { fill: #fbfbfd; stroke: #d8dbe2; }
.node { fill: #fff; stroke: #445; stroke-width: 1.6; }
.dot, .tip { fill: #445; }
.wire { fill: none; stroke: #445; stroke-width: 1.6; }
.lane { fill: none; stroke-width: 2.5; }
.stream { stroke: #6b7cf0; }
.zeros { stroke: #e8912d; }
.side { stroke: #3a9a6b; stroke-dasharray: 2 4; }
.temporary { stroke: #8a8f9c; stroke-dasharray: 6 4; }
@media (prefers-color-scheme: dark) {
text { fill: #e6e8ee; }
.title, .update { fill: #b4b9c6; }
.page { fill: #15171c; stroke: #343843; }
.node { fill: #22252d; stroke: #c3c8d4; }
.dot, .tip { fill: #c3c8d4; }
.wire { stroke: #c3c8d4; }
}"""


def svg(pictures: Mapping[str, Picture], label: str) -> str:
    """Pictures with their titles, one below the other. `label` is what a screen reader says. The
    text is signed (`compiler.signing`)."""
    drawn = [_Drawing(picture, title) for title, picture in pictures.items()]
    width = max(drawing.width for drawing in drawn)
    tops = list(accumulate((drawing.height for drawing in drawn), initial=0.0))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {tops[-1]:g}" role="img">',
        f"<!--\n{MARK}: archspec show\n-->",
        f"<title>{escape(label)}</title>",
        f"<style>\n{STYLE}\n</style>",
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="11" '
        'markerHeight="11" markerUnits="userSpaceOnUse" orient="auto">'
        '<path class="tip" d="M0 0L10 5L0 10z"/></marker></defs>',
        f'<rect class="page" x="0.5" y="0.5" width="{width - 1:g}" height="{tops[-1] - 1:g}" '
        'rx="10"/>',
    ]
    for top, drawing in zip(tops, drawn, strict=False):
        lines += [f'<g transform="translate(0 {top:g})">', *drawing.lines(width), "</g>"]
    return signed("\n".join([*lines, "</svg>"]) + "\n")


@dataclass(frozen=True)
class _Place:
    """Where a row begins, where its middle is, and how wide it is."""

    start: float
    width: float

    @property
    def middle(self) -> float:
        return self.start + self.width / 2


class _Drawing:
    """One picture. Lines are drawn first, so that nodes and boxes lie upon them."""

    def __init__(self, picture: Picture, title: str) -> None:
        self.picture, self.title = picture, title
        self.heights = _heights(picture)
        names = max(len(lane.name) for lane in picture.lanes if lane.first < 0)
        self.left = MARGIN + names * LETTER + 10
        self.groups = _groups(picture.rows)
        self.places = _places(picture.rows, self.groups, self.left + 16)
        self.right = self.places[-1].start + self.places[-1].width
        self.right = max(self.right, *(start + width for start, width in self.spans()))
        self.width = max(self.right + 40, MARGIN * 2 + len(title) * SMALL)
        self.height = self.heights[-1] + CAPTION

    def spans(self) -> Iterator[tuple[float, float]]:
        """Where each update's rows begin, and how much room they have."""
        for group in self.groups:
            start = self.places[group[0]].start
            width = sum(_row_width(self.picture.rows[index]) for index in group)
            yield start, max(width, _text_width(self.picture.rows[group[0]].text))

    def lines(self, width: float) -> Iterator[str]:
        """The elements, from the back to the front."""
        yield _text("title", MARGIN, 24, self.title)
        for lane in self.picture.lanes:
            yield from self.lane(lane, width)
        events = [(r.event, p) for r, p in zip(self.picture.rows, self.places, strict=True)]
        for event, place in events:
            yield from self.wires(event, place)
        for event, place in events:
            yield from self.nodes(event, place)
        for (start, room), group in zip(self.spans(), self.groups, strict=True):
            text = self.picture.rows[group[0]].text
            yield _text("update", start + room / 2, self.height - 18, text)

    def lane(self, lane: Lane, width: float) -> Iterator[str]:
        """A lane, in the pieces that crossings leave of it."""
        y, end = self.y(lane.track), self.right + 20
        start, tip = self.left, ' marker-end="url(#tip)"'
        if lane.first < 0:
            yield _text("name", MARGIN, y + 5, lane.name)
        else:
            start = self.target_x(lane.first)
        if lane.kind in ("side", "temporary"):
            end, tip = self.source_x(lane.last, lane), ""
        for row, place in zip(self.picture.rows, self.places, strict=True):
            if isinstance(row.event, Crossing) and lane.track in dict(row.event.moves):
                yield _path(f"lane {lane.kind}", f"M{start:g} {y:g}H{place.start:g}")
                start = place.start + place.width
        yield _path(f"lane {lane.kind}", f"M{start:g} {y:g}H{end:g}", tip)

    def y(self, track: int) -> float:
        return self.heights[track]

    def source_x(self, index: int, lane: Lane) -> float:
        """Where a row reads a lane, or writes it."""
        event = self.picture.rows[index].event
        bent = isinstance(event, Arrow) and lane.track == event.target
        return self.target_x(index) if bent else _read_x(event, self.places[index])

    def target_x(self, index: int) -> float:
        return _target_x(self.picture.rows[index].event, self.places[index])

    def box_y(self, arrow: Arrow) -> float:
        """The middle of an arrow's box."""
        if arrow.gap == self.picture.tracks:
            return self.heights[-2] + EDGE / 2 + 4
        return (self.heights[arrow.gap - 1] + self.heights[arrow.gap]) / 2

    def wires(self, event: Arrow | Crossing | OnLane, place: _Place) -> Iterator[str]:
        """The lines of a row."""
        if isinstance(event, Crossing):
            yield from self.crossing(event, place)
        if not isinstance(event, Arrow):
            return
        x, out, target = _read_x(event, place), _target_x(event, place), self.y(event.target)
        room = NODE + 2 if event.mark in SIGNS else DOT + 1
        if event.function is None:
            for y in _outermost([self.y(source) for source in event.sources], target):
                yield _wire(f"M{x:g} {y:g}V{_short(y, target, room):g}")
            return
        middle, half = self.box_y(event), BOX / 2
        for y in _outermost([self.y(source) for source in event.sources], middle):
            yield _wire(f"M{x:g} {y:g}V{_short(y, middle, half + 1):g}")
        if event.straight:
            yield _wire(f"M{x:g} {middle:g}V{_short(middle, target, room):g}")
        else:
            yield _wire(f"M{x:g} {middle:g}H{out:g}V{_short(middle, target, room):g}")

    def crossing(self, event: Crossing, place: _Place) -> Iterator[str]:
        kinds = {lane.track: lane.kind for lane in self.picture.lanes if lane.first < 0}
        start, end, middle = place.start, place.start + place.width, place.middle
        for source, target in event.moves:
            a, b = self.y(source), self.y(target)
            curve = f"M{start:g} {a:g}C{middle:g} {a:g} {middle:g} {b:g} {end:g} {b:g}"
            yield _path(f"lane {kinds[source]}", curve)

    def nodes(self, event: Arrow | Crossing | OnLane, place: _Place) -> Iterator[str]:
        """What lies on the lines of a row."""
        if isinstance(event, OnLane):
            yield from _box(place.middle, self.y(event.track), event.map)
        if not isinstance(event, Arrow):
            return
        for source in event.sources:
            yield _dot(_read_x(event, place), self.y(source))
        if event.function is not None:
            yield from _box(_read_x(event, place), self.box_y(event), event.function)
        x, y = _target_x(event, place), self.y(event.target)
        if event.mark in SIGNS:
            yield f'<circle class="node" cx="{x:g}" cy="{y:g}" r="{NODE}"/>'
            yield _text("sign", x, y + 5, event.mark)
        else:
            yield _dot(x, y)
            named = event.mark if event.mark != "○" else ""
            yield _text("name", x + 8, y - 7, named) if named else ""


# Room ---------------------------------------------------------------------------------------------


def _heights(picture: Picture) -> list[float]:
    """The height of each track, and behind the last where the picture ends."""
    boxes = {r.event.gap for r in picture.rows if isinstance(r.event, Arrow) and r.event.function}
    inner = [FAR if gap in boxes else NEAR for gap in range(1, picture.tracks)]
    return list(accumulate([HEADING + 20, *inner, EDGE if picture.tracks in boxes else 20]))


def _groups(rows: Sequence[Row]) -> list[list[int]]:
    """The rows of each update."""
    groups: list[list[int]] = []
    for index, row in enumerate(rows):
        if row.text:
            groups.append([])
        groups[-1].append(index)
    return groups


def _places(rows: Sequence[Row], groups: Sequence[Sequence[int]], start: float) -> list[_Place]:
    """Rows side by side, an update's in the middle of the room that its text takes."""
    places: list[_Place] = []
    for group in groups:
        widths = [_row_width(rows[index]) for index in group]
        spare = max(0.0, _text_width(rows[group[0]].text) - sum(widths)) / len(group)
        for width in widths:
            places.append(_Place(start, width + spare))
            start += width + spare
    return places


def _text_width(text: str) -> float:
    return len(text) * SMALL + 22


def _row_width(row: Row) -> float:
    event = row.event
    if isinstance(event, Crossing):
        return 70
    if isinstance(event, OnLane):
        return _box_width(event.map) + 28
    begins = 0 if event.mark in SIGNS else len(event.mark) * LETTER
    if event.function is None:
        return 46 + begins
    return _box_width(event.function) + (26 if event.straight else 76) + begins


def _box_width(name: str) -> float:
    return max(44, len(name) * 10 + 22)


def _read_x(event: Arrow | Crossing | OnLane, place: _Place) -> float:
    """Where a row reads its sources."""
    bent = isinstance(event, Arrow) and event.function is not None and not event.straight
    return place.middle - 20 if bent else place.middle


def _target_x(event: Arrow | Crossing | OnLane, place: _Place) -> float:
    """Where a row writes its target."""
    if isinstance(event, Arrow) and event.function is not None and not event.straight:
        return place.middle - 20 + _box_width(event.function) / 2 + 26
    return place.middle


def _outermost(heights: Sequence[float], middle: float) -> list[float]:
    """The highest of those above and the lowest of those below: wires to the middle pass the
    others."""
    above, below = [y for y in heights if y < middle], [y for y in heights if y > middle]
    return ([min(above)] if above else []) + ([max(below)] if below else [])


def _short(start: float, end: float, by: float) -> float:
    """A little before the end."""
    return end - by if start < end else end + by


# Elements -----------------------------------------------------------------------------------------


def _text(kind: str, x: float, y: float, text: str) -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{escape(text)}</text>'


def _path(kind: str, d: str, more: str = "") -> str:
    return f'<path class="{kind}" d="{d}"{more}/>'


def _wire(d: str) -> str:
    return _path("wire", d, ' marker-end="url(#tip)"')


def _dot(x: float, y: float) -> str:
    return f'<circle class="dot" cx="{x:g}" cy="{y:g}" r="{DOT}"/>'


def _box(x: float, y: float, name: str) -> Iterator[str]:
    width = _box_width(name)
    yield (
        f'<rect class="node" x="{x - width / 2:g}" y="{y - BOX / 2:g}" width="{width:g}" '
        f'height="{BOX}" rx="7"/>'
    )
    yield _text("box", x, y + 5, name)
