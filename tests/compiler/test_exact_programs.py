"""Functions and programs of any kind in exact arithmetic."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exact_programs import FUNCTIONS, INPUTS, PROGRAMS, momentum
from exact_stages import (
    assert_exact,
    bfloat16,
    exact_stage,
    forms,
    one_pass,
    probe,
    streams_on_grid,
    unprobe,
)
from hypothesis import HealthCheck, assume, given, note, settings
from hypothesis import strategies as st
from random_programs import PROGRESS, given_to, programs

from compiler.exact import RangeError
from compiler.stage import Stage

RANDOM = settings(
    deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), max_examples=60
)


# Functions ----------------------------------------------------------------------------------------


IS_RANDOM = ("dropout", "drop path", "group norm")


@pytest.mark.parametrize("context", [None, bfloat16], ids=["float32", "autocast"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions(function: str, training: bool, context: Any) -> None:
    kind, layers = FUNCTIONS[function]
    stage = exact_stage(momentum(layers), input=INPUTS[kind]).train(training)
    keys = {} if context is None else {"context": context}
    # An inverse by hand has no statistics of a batch but its own: those are the same streams'.
    assert_exact(stage, inverse=not (training and function in IS_RANDOM), **keys)


@pytest.mark.parametrize("function", ["conv", "batch norm", "group norm"])
def test_channels_last(function: str) -> None:
    stage = exact_stage(momentum(FUNCTIONS[function][1]), input=INPUTS["image"])
    streams = [s.contiguous(memory_format=torch.channels_last) for s in streams_on_grid(stage)]
    assert_exact(stage, streams, inverse=function not in IS_RANDOM)
    other = one_pass(stage.eval(), streams)
    assert other.outputs[0].is_contiguous(memory_format=torch.channels_last)


def test_autocast_is_for_functions_alone() -> None:
    """Streams in bfloat16 would not hold the grid."""
    stage = exact_stage(momentum(FUNCTIONS["mlp"][1]), input=INPUTS["tokens"])
    found = one_pass(stage, streams_on_grid(stage), context=bfloat16)
    assert {out.dtype for out in found.outputs} == {torch.float32}
    half = [stream.bfloat16() for stream in streams_on_grid(stage)]
    with pytest.raises(RuntimeError, match="half precision"):
        stage(*half)


# Programs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 3, 12])
@pytest.mark.parametrize("share", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name: str, share: bool, depth: int) -> None:
    program = {"depth": depth, "share": share, **PROGRAMS[name]}
    entry = INPUTS["image" if "maps" in program else "tokens"]
    side = {"t": entry} if "side" in name else {}
    stage = exact_stage(program, input=entry, side=side)
    streams = streams_on_grid(stage)
    assert_exact(stage, streams, given_to(stage, 3, streams[0]))


def test_all_forms_are_among_them() -> None:
    found = set()
    for name, program in PROGRAMS.items():
        entry = INPUTS["image" if "maps" in program else "tokens"]
        side = {"t": entry} if "side" in name else {}
        found |= forms(exact_stage({"depth": 1, **program}, input=entry, side=side))
    assert found == {"Unit", "Parity", "Remainder", "Monotone", "Gauge"}


def built(program: dict[str, Any], bits: int) -> Stage:
    head = [] if "features" in program["input"] else [{"pool": "mean"}]
    entry, side = program["input"], program["side"]
    written = {**program["stage"], "arithmetic": {"exact": bits}}
    stage = exact_stage(written, input=entry, head=[*head, {"linear": "classes"}], side=side)
    stage.set_progress(PROGRESS)
    return stage


@RANDOM
@given(programs(), st.integers(1, 3), st.booleans(), st.booleans(), st.sampled_from([8, 12, 14]))
def test_random_programs(
    program: dict[str, Any], batch: int, training: bool, last: bool, bits: int
) -> None:
    note(str(program))
    stage = built(program, bits).train(training)
    streams = streams_on_grid(stage, batch)
    if last and "image" in program["input"]:
        streams = tuple(s.contiguous(memory_format=torch.channels_last) for s in streams)
    given = given_to(stage, batch, streams[0])
    stage.backward = "store"
    try:
        any_gradient = any(out.requires_grad for out in stage(*streams, **given))
    except RangeError:
        return
    functions = {str(f) for f in stage.plan.functions}
    is_random = training and any("drop" in text for text in functions)
    # Which layers are reconstructed depends on what gradients need.
    assume(any_gradient)
    assert_exact(stage, streams, given, inverse=not is_random, every_layer=False)


@RANDOM
@given(programs(), st.booleans())
def test_random_programs_at_every_layer(program: dict[str, Any], training: bool) -> None:
    """Where the backward pass reconstructs a stream, it is that of the forward pass."""
    note(str(program))
    stage = built(program, 10).train(training)
    streams = streams_on_grid(stage, 2)
    probes, keys = probe(stage), given_to(stage, 2, streams[0])
    try:
        one_pass(stage, streams, keys)
    except RangeError:
        return
    for of_layer in probes:
        for found in of_layer.values():
            assert found.back is None or torch.equal(found.back, found.ahead)  # type: ignore[arg-type]
    unprobe(stage)
