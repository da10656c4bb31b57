"""Pictures of layers: what is read, through what, onto what; and both ways to draw them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archspec.loading import load
from compiler.picture import Arrow, Crossing, OnLane, Picture, picture, pictures
from compiler.picture_svg import svg
from compiler.picture_text import WIDTH, draw
from compiler.plan import StagePlan
from compiler.resolve import resolve

SVG = "{http://www.w3.org/2000/svg}"


def stage(*update: str, streams: str = "x y v", **more: object) -> StagePlan:
    """A stage of these updates, its functions looked up in them."""
    called = set(re.findall(r"([A-Z]\w*)\(", " ".join(update)))
    maps: Mapping[str, object] = more.get("maps", {})  # type: ignore[assignment]
    names = streams.split()
    spec = {
        "archspec": 1,
        "name": "drawn",
        "summary": "A picture",
        "input": {"features": [4]},
        "side": {name: {"features": [4]} for name in ("mask",) if "mask" in " ".join(update)},
        "stages": {
            "s": {
                "depth": 2,
                "streams": {n: "zeros" if n.startswith("v") else "input" for n in names},
                "functions": {name: ["tanh"] for name in sorted(called - set(maps))} or {},
                "update": list(update),
                "output": f"concat({', '.join(names)})",
                "backward": "store",
                **more,
            }
        },
        "head": [{"linear": "classes"}],
        "task": {"classify": {"classes": 2}},
    }
    return resolve(load(spec)).stages[0]


def arrows(drawn: Picture) -> list[tuple[list[str], str | None, str, str]]:
    """Names instead of tracks, of pictures whose tracks are not used twice."""
    names = {lane.track: lane.name.partition("@")[0] for lane in drawn.lanes}
    return [
        ([names[s] for s in e.sources], e.function, names[e.target], e.mark)
        for e in (row.event for row in drawn.rows)
        if isinstance(e, Arrow)
    ]


@pytest.mark.parametrize(
    ("update", "expected"),
    [
        ("x += F(y)", [(["y"], "F", "x", "+")]),
        ("x -= 2*F(y + v)", [(["y", "v"], "F", "x", "−")]),
        ("x = x - (y - F(v))", [(["v"], "F", "x", "+"), (["y"], None, "x", "−")]),
        ("x = 2*y - x", [(["y"], None, "x", "+")]),
        ("x = x*exp(tanh(F(y))) + v", [(["y"], "F", "x", "×"), (["v"], None, "x", "+")]),
        ("x = y*x + y", [(["y"], None, "x", "=")]),
        ("x = x/2", [([], None, "x", "×")]),
        ("x += F(x)", [(["x"], "F", "x", "+")]),
        ("x = x*y*x", [(["y"], None, "x", "=")]),
        ("x += F(G(y) + v)", [(["y"], "G", "G", "○"), (["v", "G"], "F", "x", "+")]),
        ("x += F(y + mask)", [(["y", "mask"], "F", "x", "+")]),
    ],
)
def test_the_arrows_of_an_update(update, expected) -> None:
    drawn = picture(stage(update))
    assert arrows(drawn) == expected
    assert [row.text for row in drawn.rows] == [update] + [""] * (len(expected) - 1)


def test_temporaries_have_lanes_while_they_are_read() -> None:
    drawn = picture(stage("k := F(x)", "y += k", "m := G(y)", "x += m*2", streams="x y"))
    k, m = (lane for lane in drawn.lanes if lane.kind == "temporary")
    assert (k.name, k.track, k.first, k.last) == ("k", 2, 0, 1)
    assert (m.name, m.track, m.first, m.last) == ("m", 2, 2, 3)


def test_streams_that_change_places() -> None:
    drawn = picture(stage("x, y, v, w = y, x, w, v", streams="x y v w"))
    (event,) = (row.event for row in drawn.rows)
    assert isinstance(event, Crossing)
    assert list(event.cycles()) == [(1, 0), (3, 2)]
    assert draw(drawn)[2:4] == [
        "╳───╳   │   │    x, y, v, w = y, x, w, v",
        "│   │   ╳───╳",
    ]


def test_an_invertible_map_lies_on_its_lane() -> None:
    drawn = picture(stage("x = W(x)", "y += F(x)", maps={"W": "invertible_linear"}))
    assert drawn.rows[0].event == OnLane(0, "W")
    assert "[W]" in "\n".join(draw(drawn))


def test_a_function_of_streams_on_both_sides_turns_back() -> None:
    assert draw(picture(stage("y += F(x + v)"))) == [
        "x   y       v",
        "│   │       │",
        "●───┼─▶[F]◀─●    y += F(x + v)",
        "│   ⊕◀──╯   │",
        "▼   ▼       ▼",
    ]


def test_stages_of_one_program_share_a_picture() -> None:
    (title,) = pictures(resolve(load("revnet_digits")))
    assert title == "one of 3 layers of fine, coarse"


def test_what_a_stranger_writes_is_text_in_a_picture() -> None:
    drawn = svg({"<a> & b": picture(stage("x += F(y)"))}, "x < y & z")
    root = ElementTree.fromstring(drawn)
    assert root.findtext(f"{SVG}title") == "x < y & z"
    assert "<a> & b" in [element.text for element in root.iter(f"{SVG}text")]


# Any program --------------------------------------------------------------------------------------

STREAMS = ["x", "y", "v", "w"]


@st.composite
def programs(choose) -> list[str]:
    """Updates of all kinds on four streams."""
    lines, known = [], [*STREAMS]
    for index in range(choose(st.integers(1, 6))):
        target = choose(st.sampled_from(STREAMS))
        a, b, c = (choose(st.sampled_from(known)) for _ in range(3))
        form = choose(st.sampled_from("+-=*tpn"))
        if form in "+-":
            lines.append(f"{target} {form}= {a} + F({b} + {c})")
        elif form == "=":
            lines.append(f"{target} = {a}*tanh(G({b})) - {target}/2 + {c}")
        elif form == "*":
            lines.append(f"{target} *= exp(tanh({a})) + F({b})")
        elif form == "n":
            lines.append(f"{target} += LongName(F({a}) + {b})*{c}")
        elif form == "p":
            order = choose(st.permutations(STREAMS))
            lines.append(f"{', '.join(STREAMS)} = {', '.join(order)}")
        else:
            lines.append(f"k{index} := G({a}) + {b}")
            known.append(f"k{index}")
    used = [f"{k}" for k in known if k not in STREAMS]
    return [*lines, *(f"x += {name}" for name in used)]


@given(programs())
def test_every_program_can_be_drawn(update) -> None:
    drawn = picture(stage(*update, streams=" ".join(STREAMS)))
    lines = draw(drawn)
    shown = " ".join(" ".join(lines).split())
    assert all(len(line) <= WIDTH for line in lines) or drawn.tracks > 4
    assert sum(len(re.findall(r"\[\w+\]", line)) for line in lines) == sum(
        isinstance(row.event, Arrow) and row.event.function is not None for row in drawn.rows
    )
    assert all(word in shown for line in update for word in line.split())
    no_overlap(svg({"s, one of 2 layers": drawn}, "any"))


def no_overlap(text: str) -> None:
    """Boxes, nodes and updates keep apart."""
    root = ElementTree.fromstring(text)
    boxes = []
    for element in root.iter(f"{SVG}rect"):
        if element.get("class") == "node":
            x, y, w, h = (float(element.get(k, "")) for k in ("x", "y", "width", "height"))
            boxes.append((x, y, x + w, y + h))
    for element in root.iter(f"{SVG}circle"):
        if element.get("class") == "node":
            x, y, r = (float(element.get(k, "")) for k in ("cx", "cy", "r"))
            boxes.append((x - r, y - r, x + r, y + r))
    for element in root.iter(f"{SVG}text"):
        if element.get("class") == "update":
            x, y = float(element.get("x", "")), float(element.get("y", ""))
            half = len(element.text or "") * 7.9 / 2
            boxes.append((x - half, y - 10, x + half, y + 4))
    width, height = map(float, root.get("viewBox", "").split()[2:])
    for i, (left, top, right, bottom) in enumerate(boxes):
        assert left >= 0
        assert top >= 0
        assert right <= width
        assert bottom <= height
        for other in boxes[:i]:
            apart = right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
            assert apart, (boxes[i], other)


def test_what_replaces_a_stream_is_not_added_to_it() -> None:
    def marks(update: str) -> list[str]:
        plan = resolve(load("lista", [f"stages.trunk.update=[{update!r}]"])).stages[0]
        return [row.event.mark for row in picture(plan).rows if isinstance(row.event, Arrow)]

    assert marks("x = F(x, y)") == ["="]
    assert marks("x = F(x, y) - x") != marks("x = F(x, y)")
    assert marks("x += F(x, y)") == ["+"]
