"""Checking takes bounded work: evaluations are counted, since a clock would measure the machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from one_stage import spec, stage_plan

import compiler.check
import compiler.constants
from archspec.diagnostics import SpecError
from archspec.expressions import Expression, Number, fold
from archspec.finding import zoo
from archspec.loading import load
from compiler.constants import Interval, LayerValues, fixed_values, interval
from compiler.places import MAX_WORK, Mistakes
from compiler.resolve import resolve

DEEP = 10_000
DRAWS = {f"d{i}": {"draw": [0.5, -0.5], "evaluate": 0.5} for i in range(8)}
CHAIN = {"c0": "layer/depth", **{f"c{i}": f"c{i - 1}*0.5 + 1" for i in range(1, 64)}}
SUM = " + ".join(DRAWS)


class Counter:
    """Counts the parts of expressions that the checker evaluates, and those it has asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.evaluated = self.asked = 0
        affords = Mistakes.affords

        def counted_fold(expression: Expression, values: Mapping[str, Expression]) -> Expression:
            self.evaluated += expression.size
            return fold(expression, values)

        def counted_interval(expression: Expression, known: Mapping[str, Interval]) -> Interval:
            self.evaluated += 0 if isinstance(expression, Number) else expression.size
            return interval(expression, known)

        def counted_affords(mistakes: Mistakes, work: int, path: tuple[str | int, ...]) -> bool:
            afforded = affords(mistakes, work, path)
            self.asked += work if afforded else 0
            return afforded

        monkeypatch.setattr(compiler.check, "fold", counted_fold)
        monkeypatch.setattr(compiler.constants, "fold", counted_fold)
        monkeypatch.setattr(compiler.check, "interval", counted_interval)
        monkeypatch.setattr(Mistakes, "affords", counted_affords)


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    return Counter(monkeypatch)


ABSURD: dict[str, tuple[list[str], dict[str, Any], dict[str, Any]]] = {
    "draws at every layer": ([f"x = ({SUM} + layer + 9)*x + F(y)"], DRAWS, {}),
    "a chain of layers": (["x += c63*F(y)"], CHAIN, {}),
    "a division by draws at every layer": ([f"x += F(y)/({SUM} + layer + 9)"], DRAWS, {}),
    "many layers in a list": (
        ["x += F(y)"],
        {},
        {"functions": {"F": ["gelu"] * 500 + [{"drop_path": "0.1*layer/depth"}]}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ABSURD)
def test_an_absurd_program_is_refused_before_it_is_evaluated(name: str, counter: Counter) -> None:
    update, constants, stage = ABSURD[name]
    with pytest.raises(SpecError, match="too much to check") as caught:
        stage_plan(update, constants, depth=DEEP, **stage)
    assert [d.code for d in caught.value.diagnostics] == ["E206"]
    assert counter.evaluated <= MAX_WORK


SENSIBLE: dict[str, tuple[list[str], dict[str, Any], dict[str, Any]]] = {
    "gamma by layer": (["x = gamma*x + F(y)"], {"gamma": "0.5 + 0.4*layer/depth"}, {}),
    "a draw in each update": ([f"x = {d}*x + F(y)" for d in DRAWS], DRAWS, {}),
    "draws in one factor": ([f"x = ({SUM} + 9)*x + F(y)"], DRAWS, {}),
    "drop_path by layer": (
        ["x += F(y)"],
        {},
        {"functions": {"F": ["layer_norm", "gelu", {"drop_path": "0.1*layer/depth"}]}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SENSIBLE)
def test_ten_thousand_layers_are_checked(name: str, counter: Counter) -> None:
    update, constants, stage = SENSIBLE[name]
    assert stage_plan(update, constants, depth=DEEP, **stage).depth == DEEP
    assert counter.evaluated <= 2 * counter.asked


@pytest.mark.parametrize("path", sorted((zoo() / "couplings").glob("*.yaml")), ids=lambda p: p.stem)
def test_no_more_is_evaluated_than_was_asked_for(path: Path, counter: Counter) -> None:
    functions = {name: ["tanh"] for name in "FGSTUV"}
    written = load(spec("x += F(y)")).tree.plain()
    assert isinstance(written, dict)
    coupling = {"coupling": path.stem, "depth": 20, "backward": "store"}
    needed = path.read_text(encoding="utf-8").split("functions: [")[1].split("]")[0].split(", ")
    used = {name: layers for name, layers in functions.items() if name in needed}
    resolve(load({**written, "stages": {"trunk": {**coupling, "functions": used}}}))
    assert 0 < counter.evaluated <= counter.asked


def test_what_is_the_same_in_all_layers_is_computed_once(counter: Counter) -> None:
    constants = stage_plan("x += g*F(y)", {"a": "1/3", "g": "a + layer"}).constants
    counter.evaluated = 0
    values = LayerValues(constants, 100)
    for layer in [*range(100), *range(100)]:
        assert values.at(layer) == fixed_values(constants, layer, 100)
    counter_of_fresh, of_one = 200 * (3 + 3), 3 + 100 * 3
    assert counter.evaluated == counter_of_fresh + of_one


def test_stages_share_what_a_spec_may_ask_for(tmp_path: Path) -> None:
    text = "+".join(f"({'+'.join(['y'] * 20)})" for _ in range(20))
    updates = ", ".join([f"x += F({text})"] * 20)
    program = f"streams: {{x: input, y: input}}, update: [{updates}], output: x"
    stage = f"{{depth: 1, {program}, functions: {{F: [tanh]}}}}"
    others = "".join(f"  s{i}: *s\n" for i in range(30))
    path = tmp_path / "spec.yaml"
    head = "archspec: 1\nname: a\nsummary: b\ninput: {features: [4]}\ntask: {classify: 4}\n"
    path.write_text(f"{head}stages:\n  s: &s {stage}\n{others}")
    with pytest.raises(SpecError, match="too much to check") as caught:
        resolve(load(path))
    assert 20 < len(caught.value.diagnostics) < 29


def test_many_unknown_names_are_told_without_many_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    guessed: list[str] = []
    nearest = compiler.places.nearest

    def counted(name: str, names: list[str]) -> str:
        guessed.append(name)
        return nearest(name, names)

    monkeypatch.setattr(compiler.places, "nearest", counted)
    update = [f"x += F({'+'.join(f'q{i}z{j}' for j in range(50))})" for i in range(60)]
    with pytest.raises(SpecError) as caught:
        stage_plan(update)
    assert len(caught.value.diagnostics) == 3000
    assert len(guessed) == 50
