"""Random reversible programs: the inverse, and gradients by each strategy."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from random_programs import PROGRESS, given_to, interpret, programs
from small_networks import (
    STRATEGIES,
    Outcome,
    assert_same_outputs,
    error,
    gradient_error,
    network,
    outcome,
    streams_for,
)
from torch import Tensor

from compiler.stage import Stage

RANDOM = settings(
    deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), max_examples=150
)


def build(program: dict[str, Any]) -> Stage:
    head = [] if "features" in program["input"] else [{"pool": "mean"}]
    head = [*head, {"linear": "classes"}]
    model = network(program["stage"], input=program["input"], head=head, side=program["side"])
    model.set_progress(PROGRESS)
    stage: Stage = model.stages[0]
    return stage


def gain(stage: Stage, outputs: tuple[Tensor, ...], given: Any) -> float:
    """How much the inverse amplifies a small perturbation."""
    with torch.no_grad():
        outputs = tuple(out.detach() for out in outputs)
        small = [1e-7 * torch.randn_like(out) for out in outputs]
        plain = stage.inverse(*outputs, **given)
        other = stage.inverse(*(o + s for o, s in zip(outputs, small, strict=True)), **given)
    size = max(float(s.abs().max()) for s in small)
    return max(float((a - b).abs().max()) for a, b in zip(plain, other, strict=True)) / size


def evaluated(stage: Stage) -> Stage:
    """Without dropout and drop path, which the inverse cannot draw again."""
    return stage.eval()


@RANDOM
@given(programs(), st.integers(1, 3))
def test_inverse(program: dict[str, Any], batch: int) -> None:
    note(str(program))
    stage = evaluated(build(program))
    streams = streams_for(stage, batch)
    given = given_to(stage, batch, streams[0])
    with torch.no_grad():
        outputs = stage(*streams, **given)
        back = stage.inverse(*outputs, **given)
    limit = max(1e-12, 1e-13 * gain(stage, outputs, given))
    largest = max(float(o.abs().max()) for o in outputs)
    assert max(error(b, s) for b, s in zip(back, streams, strict=True)) < limit * max(1, largest)


@RANDOM
@given(programs(), st.integers(1, 3), st.booleans(), st.booleans())
def test_gradients(program: dict[str, Any], batch: int, training: bool, last: bool) -> None:
    note(str(program))
    stage = build(program).train(training)
    streams = streams_for(stage, batch)
    if last and "image" in program["input"]:
        streams = tuple(s.contiguous(memory_format=torch.channels_last) for s in streams)
    found: dict[str, Outcome] = {}
    given = given_to(stage, batch, streams[0])
    for strategy in STRATEGIES:
        stage.backward = strategy
        found[strategy] = outcome(stage, streams, **given)

    def reference(*leaves: Tensor) -> tuple[Tensor, ...]:
        result: tuple[Tensor, ...] = interpret(stage, leaves, **given)
        return result

    wanted = outcome(reference, streams, module=stage)
    stored = found["store"]
    assert_same_outputs(found["checkpoint"], stored)
    assert_same_outputs(found["reversible"], stored)
    for a, b in zip(stored.outputs, wanted.outputs, strict=True):
        assert error(a, b) < 1e-11
    assert gradient_error(stored, wanted) < 1e-10
    assert gradient_error(found["checkpoint"], stored) < 1e-13
    limit = 1e-10
    if stage.training is False:
        limit = max(limit, 1e-13 * gain(stage, stored.outputs, given))
    assert gradient_error(found["reversible"], stored) < limit


def gradients_of_some(stage: Stage, streams: Any, given: Any, chosen: Sequence[bool]) -> Any:
    """Gradients where some streams and parameters want none, and the loss reads some outputs."""
    bits = itertools.cycle(chosen)
    leaves = [s.clone().requires_grad_(next(bits)) for s in streams]
    for parameter in stage.parameters():
        parameter.requires_grad_(next(bits)).grad = None
    torch.manual_seed(2)
    outputs = stage(*leaves, **given)
    used = [out for out in outputs if next(bits)] or [outputs[-1]]
    loss = sum(out.square().sum() for out in used)
    if not loss.requires_grad:
        return []
    loss.backward()
    return [t.grad for t in (*leaves, *stage.parameters())]


@RANDOM
@given(programs(), st.lists(st.booleans(), min_size=1, max_size=40), st.booleans())
def test_some_gradients(program: dict[str, Any], chosen: list[bool], training: bool) -> None:
    note(str(program))
    stage = build(program).train(training)
    streams = streams_for(stage, 2)
    given = given_to(stage, 2, streams[0])
    found = {}
    for strategy in STRATEGIES:
        stage.backward = strategy
        found[strategy] = gradients_of_some(stage, streams, given, chosen)
    stored = found.pop("store")
    least = 1e-3 * max((float(g.abs().max()) for g in stored if g is not None), default=1.0)
    limit = 1e-10
    if not training:
        limit = max(limit, 1e-13 * gain(stage, stage(*streams, **given), given))
    for gradients in found.values():
        for a, b in zip(gradients, stored, strict=True):
            assert (a is None) == (b is None)
            assert error(a, b, least) < limit


@settings(RANDOM, max_examples=15)
@given(programs())
def test_gradcheck(program: dict[str, Any]) -> None:
    """Against finite differences, by streams and side inputs."""
    note(str(program))
    stage = evaluated(build(program))
    streams = [s.requires_grad_() for s in streams_for(stage, 1)]
    given = given_to(stage, 1, streams[0])
    draws = given.pop("draws")
    side = {name: value.requires_grad_() for name, value in given.items()}

    def run(*leaves: Tensor) -> tuple[Tensor, ...]:
        values, others = leaves[: len(streams)], leaves[len(streams) :]
        named = dict(zip(side, others, strict=True))
        result: tuple[Tensor, ...] = stage(*values, draws=draws, **named)
        return tuple(out for out in result if out.requires_grad)

    assert torch.autograd.gradcheck(run, (*streams, *side.values()), atol=1e-4, rtol=1e-3)
