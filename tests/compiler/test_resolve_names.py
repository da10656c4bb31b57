"""Names in programs, and where their mistakes are shown."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from one_stage import network, shown, spec, stage_plan

from archspec.diagnostics import SpecError
from archspec.expressions import (
    Number,
    show,
)
from archspec.loading import load
from archspec.spec import Drawn, Learned
from compiler.resolve import resolve

Explain = Callable[..., str]


def said(*update: Any, **stage: Any) -> str:
    with pytest.raises(SpecError) as caught:
        network(*update, **stage)
    return shown(caught.value)


@pytest.mark.parametrize(
    ("update", "stage", "message"),
    [
        ("x += F(z)", {}, "E202 unknown name `z` | names here: depth, layer, progress, x, y"),
        ("x += F(input)", {}, "E202 unknown name `input`"),
        ("x += F(progres)", {}, "E202 unknown name `progres` | did you mean `progress`"),
        ("x += k; k := F(y)", {}, "E202 unknown name `k`"),
        ("k := F(k); x += k", {}, "E202 unknown name `k`"),
        ("x += f(y)", {}, "E202 unknown function `f` | names here: cos, exp"),
        ("x += gelu(F(y))", {}, "E202 unknown function `gelu`"),
        ("x += y(x)", {}, "E202 unknown function `y`"),
        ("x += F", {"functions": {"F": ["tanh"]}}, "E202 unknown name `F`"),
        ("x += F(y)", {"streams": {"x": "inputs", "y": "input"}}, "did you mean `input`?"),
        ("x += F(y)", {"streams": {"x": "y", "y": "input"}}, "E202 unknown name `y` | names here"),
        ("x += F(y)", {"streams": {"x": "layer*input", "y": "input"}}, "unknown name `layer`"),
        ("x += F(y)", {"output": "input"}, "E202 unknown name `input` | names here: x, y"),
        ("k := F(y); x += k", {"output": "k"}, "E202 unknown name `k`"),
        ("x += F(y)", {"output": "z"}, "output: z | E202 unknown name `z`"),
        ("k := F(y); k := G(y); x += k", {}, "E204 `k` already has a meaning here"),
        ("F := G(y); x += F(y)", {}, "E204 `F` already has a meaning here"),
        ("k := F(y); x += k; k = G(y)", {}, "E205 `k` is a temporary, and only streams are"),
        ("k := F(y); x += k; k, x = x, k", {}, "E205 there is no stream `k`"),
        ("x, y = y, z", {}, "E205 a permutation has the same streams on both sides"),
        ("x, x = x, x", {}, "E205 a permutation has the same streams on both sides"),
        ("x, y, z = z, y, x", {}, "E205 there is no stream `z`"),
        ("x += F(y); y += P(x)", {"streams": {"x": "P(input)", "y": "input"}},
         "E205 `P` is called where a stream starts, and here in every layer"),
        ("x += chunk(y, 1, 2)", {}, "E205 `chunk` belongs in `streams` and `output`"),
        ("x += F(y)", {"streams": {"x": "input", "tanh": "input"}}, "E204 `tanh` has a meaning"),
        ("x += F(y)", {"streams": {"x": "input", "lambda": "input"}}, "E204 `lambda` has a mean"),
        ("x += F(y)", {"streams": {"x": "input", "layer": "input"}}, "E204 `layer` has a mean"),
    ],
)  # fmt: skip
def test_names_that_mean_nothing_here(update: str, stage: dict[str, Any], message: str) -> None:
    assert message in said(update, **{"backward": "store", **stage})


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"g": "h"}, "E202 unknown name `h` | names here: depth, g, layer"),
        ({"g": "x"}, "E202 unknown name `x`"),
        ({"g": "exp(1)"}, "E206 a constant is arithmetic on numbers alone"),
        ({"g": "F(1)"}, "E206 a constant is arithmetic on numbers alone"),
        ({"g": "g"}, "E206 `g` is defined by itself"),
        ({"g": "1 +"}, "E201 not readable"),
        ({"g": ""}, "E201 not readable"),
        ({"g": 1e300}, "E201 `1e+300` is too large or too small"),
        ({"g": 1, "x": 2}, "E204 `x` is already a stream"),
        ({"g": 1, "if": 2}, "E204 `if` has a meaning of its own"),
        ({"g": 1, "h": 2}, "E203 the constant `h` is not used"),
        ({"g": "h*k", "h": 2, "k": "h - 1"}, None),
        ({"g": "layer/depth"}, None),
    ],
)  # fmt: skip
def test_constants(constants: dict[str, Any], message: str | None) -> None:
    if message:
        assert message in said("x += g*F(y)", constants)
    else:
        assert set(stage_plan("x += g*F(y)", constants).constants) == set(constants)


@pytest.mark.parametrize("constant", [{"learn": 0.5}, {"draw": [1], "evaluate": 1}, "layer", "h*2"])
@pytest.mark.parametrize(
    "stage", [{"streams": {"x": "g*input", "y": "input"}}, {"output": "x + g*y"}]
)
def test_what_differs_between_layers_has_no_value_outside(
    constant: Any, stage: dict[str, Any]
) -> None:
    constants = {"g": constant, "h": {"learn": 1.0}} if constant == "h*2" else {"g": constant}
    assert "E205 `g` has a value of its own in every layer" in said(
        "x += g*F(y)", constants, **stage
    )
    stage_plan("x += g*F(y)", {"g": 0.5}, **stage)


def test_what_is_never_used_is_told() -> None:
    functions = {"G": ["tanh"], "P": ["tanh"]}
    update = "x += F(y); k := P(y)"
    error = said(update, {"g": 1}, streams="x y z", output="x", functions=functions)
    assert [line.split(" | ")[1] for line in error.splitlines()] == [
        "E203 the stream `z` has no part in the output",
        "E203 the function `G` is never called",
        "E203 the constant `g` is not used",
        "E203 the temporary `k` is not used",
    ]


@pytest.mark.parametrize(
    ("update", "output", "idle"),
    [
        ("x += F(y)", "x", ""),
        ("x += F(y)", "y", "x"),
        ("x += F(y); y += G(x)", "y", ""),
        ("y += G(x); x += F(y); z += P(y)", "x", "z"),
        ("x += F(y); y += G(y)", "y", "x"),
        ("k := F(y); x += k", "x", ""),
        ("k := F(y); x += F(x); z += k", "x", "yz"),
        ("x, y, z = y, z, x; x += F(x)", "z", ""),
        ("x, y = y, x; z += F(x)", "x", "z"),
        ("x = F(y); y = G(z); z = P(z)", "x", ""),
    ],
)
def test_every_stream_has_a_part_in_the_output(update: str, output: str, idle: str) -> None:
    names = sorted({*re.findall(r"\b[xyz]\b", update)})
    stage = {"streams": " ".join(names), "output": output, "backward": "store"}
    if idle:
        error = said(update, **stage)
        assert re.findall("E203 the stream `(.)` has no part", error) == list(idle)
    else:
        assert stage_plan(update, **stage)


def test_all_mistakes_of_a_program_are_told_at_once() -> None:
    error = said("x += F(z); w = G(y, q)", {"g": "h"}, output="v")
    assert [line.split(" | ")[1] for line in error.splitlines()] == [
        "E203 the constant `g` is not used",
        "E202 unknown name `h`",
        "E202 unknown name `z`",
        "E205 there is no stream `w`",
        "E202 unknown name `q`",
        "E202 unknown name `v`",
    ]


# Where a mistake is shown ------------------------------------------------------------------------

SPEC = """\
archspec: 1
name: spec
summary: s
input: {{tokens: [5, 8]}}
stages:
  trunk:
    depth: 2
    streams: {{x: input}}
    functions: {{F: [tanh]}}
    update:
{update}
    output: x
head: [pool: mean, linear: classes]
task: {{classify: 3}}
"""


@pytest.mark.parametrize(
    ("written", "carets"),
    [
        ("    - x += F(zz)", "             ^^"),
        ("    - 'x += F(zz)'", "              ^^"),
        ('    - "x += F(zz)"', "              ^^"),
        ("    - '  x += F(zz) '", "                ^^"),
        ("    -   x   +=   F(zz)   # why", "                   ^^"),
        ("     [x += F(zz)]", "             ^^"),
        ('    - "x \\x2b= F(zz)"', "      ^^^^^^^^^^^^^^^"),
        ("    - x +=\n        F(zz)", "      ^^^^"),
        ("    - |\n      x += F(zz)", "      ^"),
        ("    - >-\n      x += F(zz)", "      ^^"),
    ],
)
def test_the_caret_stands_under_the_name(written: str, carets: str, explain: Explain) -> None:
    said = explain(SPEC.format(update=written)).splitlines()
    assert said[0].startswith("spec.yaml:11:")
    assert said[0].endswith("error[E202] unknown name `zz`")
    assert said[1:3] == [f"    11 | {written.splitlines()[0]}", f"       | {carets}"]


def test_mistakes_in_a_coupling_are_shown_in_its_file(explain: Explain) -> None:
    Path("couplings").mkdir()
    head = "archspec: 1\ncoupling: mine\nsummary: s\nstreams: {x: input}\nfunctions: [F]\n"
    Path("couplings/mine.yaml").write_text(f"{head}update:\n  - x += F(x)\noutput: x\n")
    text = SPEC.format(update="").replace("    update:\n\n    output: x\n", "    coupling: mine\n")
    said = explain(text.replace("    streams: {x: input}\n", ""))
    assert said.splitlines()[:3] == [
        "couplings/mine.yaml:7:10: error[E301] F reads x, the stream that this update rewrites, "
        "so x cannot be recovered",
        "    7 |   - x += F(x)",
        "      |          ^^^^",
    ]


def test_what_is_inherited_and_not_used_is_taken_away_with_a_null(explain: Explain) -> None:
    base = SPEC.format(update="    - x += G(x)").replace("F:", "G:")
    Path("base.yaml").write_text(base, encoding="utf-8")
    trunk = "{constants: {h: 1}, functions: {H: [tanh]}, update: [x = H(x)], backward: store}"
    child = f"archspec: 1\nname: child\nextends: base\nstages: {{trunk: {trunk}}}\n"
    said = explain(child)
    assert said.count("error[E203]") == 2
    assert said.count("  help: ") == 1
    assert "  help: take it away with `G: null` under `functions`" in said
    assert explain(child.replace("h: 1", "").replace("{H:", "{G: null, H:")) == ""


def test_what_is_not_used_hides_no_other_mistake() -> None:
    constants = {"h": 0.1}
    mistakes = said("x += F(x); y += G(x)", constants, functions={"P": ["relu"]})
    assert re.findall("E[0-9]+", mistakes) == ["E203", "E203", "E301"]
    mistakes = said("x += F(y); y += G(x)", constants, functions={"F": [{"attention": 3}]})
    assert re.findall("E[0-9]+", mistakes) == ["E401", "E203"]
    mistakes = said("x += F(y); y += G(x)", maps={"W": "actnorm", "V": "squeeze"})
    assert re.findall("E[0-9]+", mistakes) == ["E203", "E203"]


def test_a_stage_may_have_maps_alone() -> None:
    text = spec("x = W(x)", streams="x", maps={"W": "actnorm"}, output="x")
    del text["stages"]["trunk"]["functions"]
    (stage,) = resolve(load(text)).stages
    assert (stage.functions, len(stage.maps)) == ((), 1)


def test_plans_keep_how_constants_are_made() -> None:
    constants = {
        "a": 0.1,
        "b": "1 - a",
        "c": {"learn": 0.9, "within": [0.5, 1]},
        "d": {"draw": [1, 2], "evaluate": 1},
    }
    plan = stage_plan("x += a*b*c*d*F(y)", constants)
    assert plan.constants["a"] == Number(Fraction(1, 10))
    assert show(plan.constants["b"]) == "1 - a"  # type: ignore[arg-type]
    assert isinstance(plan.constants["c"], Learned)
    assert isinstance(plan.constants["d"], Drawn)
