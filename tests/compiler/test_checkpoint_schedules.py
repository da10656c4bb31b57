"""Checkpointed stages by every schedule: gradients bit for bit, evaluations and streams counted."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from checkpoint_passes import (
    DROPPING,
    SCHEDULES,
    Schedule,
    assert_same,
    by_schedule,
    calls_of,
    stored,
)
from exact_stages import exact_stage, forms
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_programs import given_to, programs
from small_networks import BRANCH, additive, network, outcome, streams_for
from torch import Tensor

from compiler.checkpointing import BinomialTape
from compiler.engine.handles import Handle, unpack
from compiler.engine.tape import Recorder
from compiler.engine.versions import Kept
from compiler.memory import LiveBytes
from compiler.schedules import advances, evaluations

# Gradients ----------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    programs(), st.integers(1, 7), st.sampled_from(["every", "slots"]), st.integers(1, 8),
    st.booleans(),
)  # fmt: skip
def test_random_programs(
    program: dict[str, Any], depth: int, name: str, number: int, training: bool
) -> None:
    stage_spec = {**program["stage"], "depth": depth, "backward": {"checkpoint": {name: number}}}
    head = ["flatten", {"linear": "classes"}]
    model = network(stage_spec, input=program["input"], head=head, side=program["side"])
    model.set_progress(0.25)
    stage = model.stages[0].train(training)
    streams = streams_for(stage, 3)
    given = given_to(stage, 3, streams[0])
    found = outcome(stage, streams, **given)
    assert_same(found, stored(stage, streams, **given))


@pytest.mark.parametrize("depth", [1, 2, 5, 9])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("coupling", ["momentum_pair", "bdia", "rk2", "residual_pair"])
def test_depths(coupling: str, schedule: Schedule, depth: int) -> None:
    names = "FG" if coupling.endswith("pair") else "F"
    stage = network(
        {
            "depth": depth,
            "coupling": coupling,
            "functions": dict.fromkeys(names, DROPPING),
            "backward": "checkpoint",
        }
    ).stages[0]
    streams = streams_for(stage)
    assert_same(by_schedule(stage, streams, schedule), stored(stage, streams))


EXACT: dict[str, dict[str, Any]] = {
    "Unit": {"coupling": "additive", "functions": {"F": BRANCH, "G": BRANCH}},
    "Parity": {
        "coupling": "momentum_pair",
        "functions": {"F": BRANCH, "G": BRANCH},
        "constants": {"gamma": 0.5},
    },
    "Gauge": {"coupling": "momentum", "functions": {"F": BRANCH}},
    "Remainder": {"coupling": "momentum_pair", "functions": {"F": BRANCH, "G": BRANCH}},
    "Monotone": {
        "coupling": "momentum_pair",
        "functions": {"F": DROPPING, "G": BRANCH},
        "constants": {"gamma": {"learn": 0.8, "within": [0.5, 0.95]}},
    },
}


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("form", EXACT)
def test_exact_arithmetic(form: str, schedule: Schedule) -> None:
    stage = exact_stage({**EXACT[form], "depth": 7})
    assert form in forms(stage)
    streams = streams_for(stage)
    wanted = stored(stage, streams)
    assert_same(by_schedule(stage, streams, schedule), wanted)
    stage.set_backward("reversible")
    assert_same(outcome(stage, streams), wanted)


# Counting evaluations -----------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "slots"), [(1, 1), (4, 1), (5, 2), (10, 3), (12, 4), (6, 9)])
@pytest.mark.parametrize(("coupling", "calls"), [("euler", 1), ("rk2", 2), ("rk4", 4)])
def test_the_binomial_optimum(coupling: str, calls: int, depth: int, slots: int) -> None:
    stage = {
        "depth": depth,
        "coupling": coupling,
        "functions": {"F": DROPPING},
        "share": True,
        "backward": {"checkpoint": {"slots": slots}},
    }
    model = network(stage)
    counts = calls_of(model)
    value = torch.randn(2, 5, 6, dtype=torch.float64)
    loss = model(value).square().sum()
    assert counts == {False: calls * depth, True: 0}
    loss.backward(retain_graph=True)
    assert sum(counts.values()) == calls * evaluations(depth, slots)
    loss.backward()  # from the stage's input alone, by the best schedule from there
    again = sum(counts.values()) - calls * evaluations(depth, slots)
    assert again == calls * (advances(depth, slots) + depth)


@pytest.mark.parametrize("every", [1, 2, 4, 7, 100])
def test_blocks_are_replayed_once(every: int) -> None:
    model = network({**additive(), "depth": 7, "backward": {"checkpoint": {"every": every}}})
    counts = calls_of(model)
    model(torch.randn(2, 5, 6, dtype=torch.float64)).sum().backward()
    assert counts == {False: 7, True: 7}


# Memory -------------------------------------------------------------------------------------------


TOKENS, WIDTH, BATCH = 4, 8, 8
STREAM = BATCH * TOKENS * WIDTH * 4
"""Bytes of one stream, of which there are two."""


def memory(schedule: Schedule, depth: int) -> tuple[int, int]:
    """Bytes alive after the forward pass, and at most."""
    stage = {**additive(), "depth": depth, "backward": {"checkpoint": schedule}}
    model = network(stage, torch.float32, input={"tokens": [TOKENS, WIDTH]})
    value = torch.randn(BATCH, TOKENS, WIDTH)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    with LiveBytes() as live:
        live.ignore([*model.parameters(), *gradients, value])
        out = model(value)
        loss = out.square().mean()
        kept = live.now
        loss.backward()
        assert live.now <= out.nbytes + loss.nbytes  # nothing else is left
        return kept, live.peak


@pytest.mark.parametrize("slots", [1, 3, 5])
def test_no_more_streams_are_kept_than_there_are_slots(slots: int) -> None:
    found = [memory({"slots": slots}, depth) for depth in (8, 20, 33)]
    one = [memory({"slots": 1}, depth) for depth in (8, 20, 33)]
    for (kept, peak), (least_kept, least_peak) in zip(found, one, strict=True):
        assert kept - least_kept == (slots - 1) * 2 * STREAM
        assert peak - least_peak <= (slots - 1) * 2 * STREAM
    assert found[1] == found[2]  # whatever the depth
    assert one[0][0] < 6 * STREAM


def test_streams_before_every_so_many_layers_are_kept() -> None:
    (six, _), (two, peak) = memory({"every": 2}, 12), memory({"every": 6}, 12)
    assert six - two == 4 * 2 * STREAM
    assert peak > memory({"every": 4}, 12)[1] > memory({"every": 3}, 12)[1]


def test_slots_are_filled_again_on_the_way_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """At any time during the backward pass, and more than the stage's input."""
    seen: list[int] = []
    keep = BinomialTape.keep

    def counted(self: BinomialTape, *arguments: Any) -> None:
        keep(self, *arguments)
        seen.append(len(self.checkpoints))

    monkeypatch.setattr(BinomialTape, "keep", counted)
    memory({"slots": 4}, 20)
    assert max(seen) == 4
    assert len(seen) > 8


# What a replay must do again, and what it must not ------------------------------------------------


def bfloat16() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("context", [nullcontext, bfloat16])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_autocast_statistics_and_generators(schedule: Schedule, context: Any) -> None:
    """Batch normalisation counts once, drawn numbers are drawn again, and both are left as by
    stored activations."""
    drawn = {"gamma": {"draw": [0.5, -0.5], "per": "sample", "evaluate": 0.0}}
    layers: list[Any] = [{"conv": {}}, "batch_norm", "relu", {"dropout": 0.3}]
    stage = {"depth": 5, "coupling": "bdia", "functions": {"F": layers}, "constants": drawn}
    found = []
    for strategy, keys in (("store", {}), ("checkpoint", schedule)):
        model = network(stage, torch.float32, input={"image": [4, 5, 5]})
        model.set_backward(strategy, **keys)
        torch.manual_seed(3)
        with context():
            loss = model(torch.randn(6, 4, 5, 5)).square().sum()
        model.eval()  # a replay is as the forward pass was
        loss.backward()
        after = [torch.rand(1), *model.buffers()]
        found.append([*after, *(p.grad for p in model.parameters())])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_a_graph_is_used_again(schedule: Schedule) -> None:
    model = network({**additive(DROPPING), "depth": 6}).set_backward("checkpoint", **schedule)
    value = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    weights = list(model.parameters())
    torch.manual_seed(1)
    loss = model(value).square().sum()
    first = torch.autograd.grad(loss, weights, retain_graph=True)
    some = torch.autograd.grad(loss, weights[5:8], retain_graph=True)
    second = torch.autograd.grad(loss, [*weights, value])
    assert all(map(torch.equal, first, second))
    assert all(map(torch.equal, some, first[5:8]))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, weights)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_gradients_of_gradients(schedule: Schedule) -> None:
    value = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    found = []
    for strategy, keys in (("store", {}), ("checkpoint", schedule)):
        model = network({**additive(DROPPING), "depth": 5}).set_backward(strategy, **keys)
        torch.manual_seed(1)
        loss = model(value).square().sum()
        (slope,) = torch.autograd.grad(loss, value, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), list(model.parameters())))
    assert all(map(torch.equal, *found))


@pytest.fixture
def handles(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Handle]]:
    """Every handle made."""
    made: list[Handle] = []
    pack = Recorder.pack

    def collect(self: Recorder, tensor: Tensor) -> Handle | Kept:
        packed = pack(self, tensor)
        if isinstance(packed, Handle):
            made.append(packed)
        return packed

    monkeypatch.setattr(Recorder, "pack", collect)
    yield made
    made.clear()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_handles_may_be_asked_for_in_any_order(schedule: Schedule, handles: list[Handle]) -> None:
    model = network({**additive(DROPPING), "depth": 6}).set_backward("checkpoint", **schedule)
    loss = model(torch.randn(2, 5, 6, dtype=torch.float64)).sum()
    wanted = {id(handle): unpack(handle).clone() for handle in reversed(handles)}
    shuffled = list(handles)
    random.Random(0).shuffle(shuffled)
    for handle in shuffled:
        assert torch.equal(unpack(handle), wanted[id(handle)])
    assert len(wanted) > 50
    del loss


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_an_input_changed_in_place_is_refused(schedule: Schedule) -> None:
    stage = network({**additive(), "depth": 4}).set_backward("checkpoint", **schedule).stages[0]
    streams = [stream.clone() for stream in streams_for(stage)]
    loss = sum(out.sum() for out in stage(*streams))
    streams[0].add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()
