"""Shapes through functions, streams and stages: wrong ones name their line."""

from __future__ import annotations

import re
from typing import Any

import pytest
from one_stage import network, shown, spec, stage_plan

from archspec.diagnostics import SpecError
from archspec.loading import load
from archspec.shapes import Features, Tokens
from compiler.resolve import resolve

TOKENS, FEATURES = Tokens(5, 8), Features(8)


def said(*update: Any, **stage: Any) -> str:
    """What the errors say of a stage."""
    with pytest.raises(SpecError) as caught:
        network(*update, **stage)
    return shown(caught.value)


# Functions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("update", "functions", "message"),
    [
        ("x += H(x, y)", {"H": ["tanh"]}, "- tanh | E401 `tanh` does not fit here: no layer takes"),
        ("x += H(x, y)", {"H": [{"linear": 8}, "modulate"]}, "expected features, found 5 tokens"),
        ("x += H(y)", {"H": ["concat", {"linear": 8}]}, "there is only one argument to join"),
        ("x += H(x, y)", {"H": ["concat"]}, "`x` is 5 tokens × 8, `H(x, y)` is 5 tokens × 16"),
        ("x += H(x, y)", {"H": ["add", "add"]}, "there is only one argument to join"),
        ("x += F(G(y))", {"G": [{"linear": 4}], "F": [{"attention": 3}]}, "3 heads do not"),
        ("x += F(y); y += F(G(x))", {"G": [{"linear": 4}], "F": [{"linear": 8}]},
         "`F` takes 5 tokens × 8 in its first call, and 5 tokens × 4 here"),
        ("x += A(x, y); y += A(x)", {}, "`A` takes 5 tokens × 8, 5 tokens × 8 in its first"),
        ("x += F(2)", {}, "`2` is a number, and `F` takes streams"),
        ("x += F(layer/depth)", {}, "`layer/depth` is a number, and `F` takes streams"),
        ("x += A(y, G(y))", {"G": [{"linear": 4}]}, "cannot add 5 tokens × 8, 5 tokens × 4"),
        ("x += H(y, P(y))", {"P": [{"pool": "mean"}]}, "cannot concatenate 5 tokens × 8, 8 fea"),
        ("x += exp(y, y)", {}, "`exp` takes one value"),
        ("x = x*S(y)", {"S": [{"linear": 1}]}, "`x` is 5 tokens × 8, `S(y)` is 5 tokens × 1"),
        ("x = x*S(y) + F(y)", {"S": [{"linear": 1}]}, "`S(y)` is 5 tokens × 1"),
        ("x += P(y)", {"P": [{"pool": "mean"}]}, "`P(y)` is 8 features"),
        ("x = P(y)", {"P": [{"pool": "mean"}]}, "5 tokens × 8, and it would become 8 features"),
        ("k := P(y); x += k", {"P": [{"pool": "mean"}]}, "`x` is 5 tokens × 8, `k` is 8 features"),
        ("k := 2*layer; x += k", {}, "- k := 2*layer | E402 `k` is a number | write it"),
        ("x += F(y)", {"F": [{"linear": "channels + layer"}, {"linear": 8}]},
         "`linear` does not fit here: 5 tokens × 8 at layer 0 and 5 tokens × 9 at layer 1"),
        ("x += F(y)", {"F": [{"linear": "8 + (layer - 2)*layer"}]}, "5 tokens × 7 at layer 1"),
    ],
)  # fmt: skip
def test_functions_that_do_not_fit(update: str, functions: dict[str, Any], message: str) -> None:
    assert message in said(update, functions=functions, backward="store")


def test_a_broken_function_is_told_once_and_hides_no_other() -> None:
    functions = {"F": [{"attention": 3}], "G": [{"attention": 5}]}
    error = said("k := F(y); x += k; m := 2*k; x += m; x += F(y); y += G(x)", functions=functions)
    assert re.findall(r"\| (E\d+) ", error) == ["E401", "E401"]


def test_functions_are_planned_in_the_order_of_their_calls() -> None:
    plan = stage_plan(
        "x += H(y, P(y)); y += F(G(x))",
        streams={"x": "input", "y": "S(input)"},
        functions={"P": [{"linear": 3}], "G": [{"linear": 2}], "F": [{"linear": 8}]},
    )
    assert [(f.name, f.arguments, f.result) for f in plan.functions] == [
        ("P", (TOKENS,), Tokens(5, 3)),
        ("H", (TOKENS, Tokens(5, 3)), TOKENS),
        ("G", (TOKENS,), Tokens(5, 2)),
        ("F", (Tokens(5, 2),), TOKENS),
    ]
    assert [f.name for f in plan.start_functions] == ["S"]


def test_a_rate_may_differ_from_layer_to_layer() -> None:
    stage_plan("x += F(y)", functions={"F": [{"drop_path": "0.9*layer/depth"}, {"linear": 8}]})
    error = said("x += F(y)", functions={"F": [{"drop_path": "(layer + 1)/depth"}]})
    assert "expected a rate from 0 to below 1" in error


def test_a_function_of_a_start_has_no_layer() -> None:
    error = said(
        "x += F(y)",
        streams={"x": "input", "y": "P(input)"},
        functions={"P": [{"drop_path": "layer/4"}]},
    )
    assert "`layer` has no value here" in error


# Streams, permutations, output -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("streams", "message"),
    [
        ({"x": "2", "y": "input"}, "x: \"2\" | E402 `x` starts as a number"),
        ({"x": "chunk(input, 1, 3)", "y": "input"}, "8 channels do not divide into 3 chunks"),
        ({"x": "chunk(input, 3, 2)", "y": "input"}, "a chunk is written `chunk(input, i, n)`"),
        ({"x": "chunk(input, 0, 2)", "y": "input"}, "a chunk is written `chunk(input, i, n)`"),
        ({"x": "chunk(input, 1)", "y": "input"}, "a chunk is written `chunk(input, i, n)`"),
        ({"x": "chunk(input, 0.5, 2)", "y": "input"}, "a chunk is written `chunk(input, i, n)`"),
        ({"x": "chunk(input, 1.5, 2)", "y": "input"}, "the parts of a chunk are whole numbers"),
        ({"x": "chunk(2, 1, 2)", "y": "input"}, "only a stream has chunks"),
        ({"x": "chunk(input, input, 2)", "y": "input"}, "a chunk is written"),
        ({"x": "chunk(input, 1, 2)", "y": "input"}, "`x` is 5 tokens × 4, `F(y)` is 5 tokens × 8"),
        ({"x": "concat(input, 2)", "y": "input"}, "`2` is a number, and `concat` takes streams"),
        ({"x": "input + chunk(input, 1, 2)", "y": "input"}, "both sides need one shape"),
        ({"x": "P(input)", "y": "P(input)"}, "3 heads do not divide 8 channels"),
        ({"x": "P(2)", "y": "input"}, "`2` is a number, and `P` takes streams"),
    ],
)  # fmt: skip
def test_streams_that_cannot_start_so(streams: dict[str, str], message: str) -> None:
    error = said(
        "x += F(y)",
        streams=streams,
        functions={"P": [{"attention": 3}]} if "P(" in str(streams) else {},
    )
    assert message in error
    assert error.count(" | E4") == 1


def test_streams_of_different_shapes() -> None:
    streams = {"x": "input", "y": "concat(input, input)", "z": "chunk(input, 1, 4)"}
    functions = {"F": [{"linear": 8}], "G": [{"linear": 16}], "T": ["add", {"linear": 2}]}
    plan = stage_plan("x += F(y); y += G(x); z += T(x, F(y))", streams=streams, functions=functions)
    assert [s.shape.channels for s in plan.streams] == [8, 16, 2]
    assert plan.result == Tokens(5, 26)


def test_only_streams_of_one_shape_change_places() -> None:
    streams = {"x": "input", "y": "chunk(input, 1, 2)"}
    assert "- x, y = y, x | E402 `x` is 5 tokens × 8, and `y` is 5 tokens × 4" in said(
        "x, y = y, x", streams=streams
    )


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("2", "the output is a number"),
        ("exp(2)", "the output is a number"),
        ("chunk(x, 1, 3)", "8 channels do not divide into 3 chunks"),
        ("concat(x, P(y))", "functions are called in `update` and where streams start"),
        ("x + chunk(y, 1, 2)", "both sides need one shape"),
    ],
)
def test_outputs_that_are_none(output: str, message: str) -> None:
    update = "x += F(y); y += P(x)" if "P" in output else "x += F(y)"
    assert message in said(update, output=output)


def test_unlike_grids_are_not_joined() -> None:
    stage: dict[str, Any] = {
        "streams": {"x": "input", "y": "P(input)"},
        "functions": {"P": [{"conv": {"stride": 2}}], "F": ["conv"], "G": ["conv"]},
        "update": "x += F(x); y += G(y)",
    }
    text = {**spec(**stage), "input": {"image": [3, 8, 8]}}
    with pytest.raises(SpecError, match="cannot concatenate image 3×8×8, image 3×4×4"):
        resolve(load(text))


# Coefficients that have a shape ------------------------------------------------------------------

PER_CHANNEL = {"learn": 0.9, "within": [0.5, 1], "per": "channel"}
PER_SAMPLE = {"draw": [1, 2], "evaluate": 1}
UNLIKE = {"x": "input", "y": "chunk(input, 1, 2)"}
POOLED = {"x": "input", "y": "P(input)"}
POOL = {"P": [{"pool": "mean"}]}


@pytest.mark.parametrize(
    ("update", "gamma", "stage", "message"),
    [
        ("x += F(g*x)", PER_CHANNEL, {}, None),
        ("y = g*y + x", PER_CHANNEL, {"streams": UNLIKE}, "`g` is learned per channel for"),
        ("y *= g", PER_CHANNEL, {"streams": UNLIKE}, "does not go with 5 tokens × 4"),
        ("y = y/(1 + g)", PER_CHANNEL, {"streams": UNLIKE}, "`1 + g` is learned per channel"),
        ("y = g", PER_CHANNEL, {"streams": UNLIKE}, "`y` is 5 tokens × 4, and it would become 5"),
        ("x = g*x; y += F(y)", PER_CHANNEL, {"streams": UNLIKE}, None),
        ("y = g*y", PER_SAMPLE, {"streams": UNLIKE}, None),
        ("y = g*y", PER_SAMPLE, {"streams": POOLED, "functions": POOL},
         "`g` is drawn per sample for 5 tokens × 8, and does not go with 8 features"),
        ("y = h*y", PER_SAMPLE, {"streams": POOLED, "functions": POOL}, "`h` is drawn per sample"),
        ("x += F(g*G(x))", PER_CHANNEL, {"functions": {"G": [{"linear": 4}], "F": [{"linear": 8}]}},
         "`g` is learned per channel for 5 tokens × 8, and does not go with 5 tokens × 4"),
        ("x += F(g*G(x))", PER_SAMPLE, {"functions": {"G": [{"linear": 4}], "F": [{"linear": 8}]}},
         None),
        ("k := g**2; x += k", PER_CHANNEL, {}, "`k` is a number"),
        ("x += F(g)", PER_SAMPLE, {}, "`g` is a number, and `F` takes streams"),
    ],
)  # fmt: skip
def test_a_coefficient_goes_with_streams_of_its_shape(
    update: str, gamma: Any, stage: dict[str, Any], message: str | None
) -> None:
    constants = {"g": gamma, "h": "2*g"} if "h" in update else {"g": gamma}
    stage = {"streams": {"x": "input"}, "backward": "store", **stage}
    if message is None:
        assert stage_plan(update, constants, **stage)
    else:
        assert message in said(update, constants, **stage)


# Networks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ([], "the network ends in 5 tokens × 16, and the task needs 3 features"),
        ([{"pool": "mean"}], "the network ends in 16 features, and the task needs 3 features"),
        (
            [{"linear": "classes"}],
            "the network ends in 5 tokens × 3, and the task needs 3 features",
        ),
    ],
)
def test_a_network_ends_in_its_classes(head: list[Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        resolve(load({**spec("x += F(y)"), "head": head}))
    assert message in str(caught.value)
    assert [d.code for d in caught.value.diagnostics] == ["E403"]


def test_a_mistake_in_one_stage_hides_no_program_of_the_next() -> None:
    text = spec("x += F(y)", functions={"F": [{"attention": 3}]})
    text["stages"]["later"] = spec("x += F(x)")["stages"]["trunk"]
    with pytest.raises(SpecError) as caught:
        resolve(load(text))
    assert [d.code for d in caught.value.diagnostics] == ["E401", "E301"]


def test_stages_follow_one_another() -> None:
    text = spec("x += F(y)")
    text["stages"]["later"] = {
        **spec("x += F(y)")["stages"]["trunk"],
        "transition": [{"linear": 4}],
    }
    plan = resolve(load(text))
    assert [stage.input for stage in plan.stages] == [TOKENS, Tokens(5, 4)]
    assert [layer.before for layer in plan.head] == [(TOKENS,), (FEATURES,)]
