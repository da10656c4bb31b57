"""Random edits of legal programs: each is refused or still right, none accepted and wrong."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from random_programs import CONSTANTS, PROGRESS, given_to, interpret, programs
from small_networks import error, gradient_error, outcome, spec, streams_for
from torch import Tensor

import archspec
from archspec.diagnostics import SpecError
from compiler.stage import Stage

WORDS = ["x", "y", "z", "k1", "k2", "t", "g", "a", "h", "w", "u", "layer", "0.5", "F(y)", "G(x)",
         "S(x)", "A(x)", "exp(tanh(x))", "tanh(y)", "sigmoid(x)", "(x - y)", "0", "1"]  # fmt: skip
TOKEN = re.compile(r"[A-Za-z]\w*\(|[A-Za-z]\w*|[0-9.]+|:=|\*\*|[-+*/=(),]")
OUTCOMES: Counter[str] = Counter()


@st.composite
def edited(draw: Any) -> dict[str, Any]:
    """A legal program after one to three edits of its update."""
    program = draw(programs())
    update = list(program["stage"]["update"])
    for _ in range(draw(st.integers(1, 3))):
        update = _edit(draw, update)
    program["stage"]["update"] = update
    text = " ".join(update)
    known = {name: CONSTANTS[name] for name in CONSTANTS if re.search(rf"\b{name}\b", text)}
    known |= {"g": CONSTANTS["g"]} if "b" in known else {}
    program["stage"]["constants"] = known
    for part in ("functions", "maps"):
        used = program["stage"][part]
        program["stage"][part] = {n: f for n, f in used.items() if f"{n}(" in text}
    program["side"] = program["side"] if re.search(r"\bt\b", text) else {}
    return dict(program)


def _edit(draw: Any, update: list[str]) -> list[str]:
    kind = draw(st.sampled_from(["token", "token", "swap", "move", "drop", "double"]))
    place = draw(st.integers(0, len(update) - 1))
    if len(update) == 1 and kind in ("swap", "drop", "move"):
        kind = "token"
    if kind == "drop" and len(update) > 1:
        return [*update[:place], *update[place + 1 :]]
    if kind == "double":
        return [*update[:place], update[place], *update[place:]]
    if kind == "swap":
        other = draw(st.integers(0, len(update) - 1))
        update[place], update[other] = update[other], update[place]
        return update
    if kind == "move":
        line = update.pop(place)
        update.insert(draw(st.integers(0, len(update))), line)
        return update
    tokens = [t for t in TOKEN.finditer(update[place]) if t[0] not in ("(", ")", ",", "=")]
    token = draw(st.sampled_from(tokens))
    same = [t[0] for line in update for t in TOKEN.finditer(line)]
    # Mostly to another of its kind: most other edits are refused as unreadable.
    kinds = [
        [word for word in same if word.isidentifier()],
        [word for word in same if word.endswith("(") and word[0].isupper()],
        list("+-*/"),
        [word for word in same if word[0].isdigit()],
    ]
    alike = next((words for words in kinds if token[0] in words), [])
    anything = [*same, *WORDS, *"+-*/", ""]
    new = draw(st.sampled_from(alike if alike and draw(st.integers(0, 5)) else anything))
    line = update[place][: token.start()] + str(new) + update[place][token.end() :]
    return [*update[:place], line, *update[place + 1 :]]


def build(program: dict[str, Any]) -> Stage:
    head: list[Any] = [] if "features" in program["input"] else [{"pool": "mean"}]
    network = archspec.build(
        spec(
            {**program["stage"], "backward": "reversible"},
            program["input"],
            head=[*head, {"linear": "classes"}],
            side=program["side"],
        )
    ).double()
    network.set_progress(PROGRESS)
    stage: Stage = network.stages[0]
    return stage


def check(stage: Stage) -> str:
    """What came of an accepted program."""
    stage.eval()
    streams = streams_for(stage, 2)
    given = given_to(stage, 2, streams[0])
    with torch.no_grad():
        outputs = stage(*streams, **given)
        if not all(math.isfinite(float(o.abs().max())) for o in outputs):
            return "not finite"
        back = stage.inverse(*outputs, **given)
        moved = stage.inverse(*(o * (1 + 1e-9) for o in outputs), **given)
    if not all(torch.isfinite(b).all() for b in (*back, *moved)):
        return "not finite"
    gain = max(error(m, b) for m, b in zip(moved, back, strict=True)) / 1e-9
    if gain > 1e5 or max(float(o.abs().max()) for o in outputs) > 1e5:
        return "grown too large to compare"
    assert max(error(b, s) for b, s in zip(back, streams, strict=True)) < 1e-9

    def reference(*leaves: Tensor) -> tuple[Tensor, ...]:
        result: tuple[Tensor, ...] = interpret(stage, leaves, **given)
        return result

    wanted = outcome(reference, streams, module=stage)
    found = outcome(stage, streams, **given)
    for a, b in zip(found.outputs, wanted.outputs, strict=True):
        assert error(a, b) < 1e-10
    assert gradient_error(found, wanted) < 1e-8
    return "right"


@settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck),
          max_examples=400)  # fmt: skip
@given(edited())
def try_edit(program: dict[str, Any]) -> None:
    note(str(program))
    try:
        stage = build(program)
    except SpecError as refusal:
        OUTCOMES.update({diagnostic.code for diagnostic in refusal.diagnostics})
        OUTCOMES["refused"] += 1
        return
    OUTCOMES[check(stage)] += 1


def test_edits_are_refused_or_right() -> None:
    OUTCOMES.clear()
    try_edit()
    assert OUTCOMES["right"] > 40
    assert OUTCOMES["refused"] > 60
    assert "E301" in OUTCOMES
