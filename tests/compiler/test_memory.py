"""Memory of a training step, counted in bytes of live tensors."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from small_networks import BRANCH, DENSE, STRATEGIES, additive, network
from torch import Tensor

from compiler.engine.tape import Tape
from compiler.memory import LiveBytes, StepMemory, step_memory
from compiler.network import Network

WIDTH, TOKENS, BATCH = 8, 4, 8
STREAM = BATCH * TOKENS * WIDTH * 4
"""Bytes of one stream."""

GAMMA = {"learn": 0.9, "within": [0.5, 0.99]}
PAIR = {"coupling": "momentum_pair", "functions": {"F": BRANCH, "G": BRANCH}}
STAGES: dict[str, dict[str, Any]] = {
    "additive": additive(),
    "fixed gamma": PAIR,
    "learned gamma": {**PAIR, "constants": {"gamma": GAMMA}},
    "learned gamma per channel": {**PAIR, "constants": {"gamma": {**GAMMA, "per": "channel"}}},
    "affine": {"coupling": "affine", "functions": dict.fromkeys("STUV", DENSE)},
    "temporaries": {
        "streams": {"x": "input", "y": "input"},
        "functions": {"F": BRANCH, "G": BRANCH},
        "constants": {"gamma": GAMMA},
        "update": ["k := gamma*F(y)", "j := F(y + k)", "x += k + j", "y += G(x)"],
        "output": "x + y",
    },
}


def build(stage: dict[str, Any], depth: int, backward: str) -> Network:
    settings = {"input": {"tokens": [TOKENS, WIDTH]}}
    return network({**stage, "depth": depth, "backward": backward}, torch.float32, **settings)


def parameters_and_gradients(model: Network) -> list[Tensor]:
    """All of them; gradients are there from now on."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return [t for p in model.parameters() for t in (p, p.grad) if t is not None]


def measure(stage: dict[str, Any], depth: int, backward: str) -> StepMemory:
    value = torch.randn(BATCH, TOKENS, WIDTH)
    return step_memory(build(stage, depth, backward), lambda out: out.square().mean(), value)


@pytest.mark.parametrize("name", STAGES)
def test_reversible_memory_does_not_grow_with_depth(name: str) -> None:
    shallow, deep = (measure(STAGES[name], depth, "reversible") for depth in (12, 96))
    assert abs(deep.kept / shallow.kept - 1) < 0.01
    assert abs(deep.peak / shallow.peak - 1) < 0.01


@pytest.mark.parametrize("name", ["additive", "learned gamma"])
@pytest.mark.parametrize("backward", ["store", "checkpoint"])
def test_other_strategies_grow_with_depth(name: str, backward: str) -> None:
    shallow, deep = (measure(STAGES[name], depth, backward) for depth in (3, 12))
    assert deep.kept > 3 * shallow.kept
    assert deep.peak > 1.5 * shallow.peak


@pytest.mark.parametrize("name", STAGES)
def test_checkpointing_keeps_a_layer_s_streams_and_no_more(name: str) -> None:
    model = build(STAGES[name], 1, "store")
    shallow, deep = (measure(STAGES[name], depth, "checkpoint") for depth in (3, 12))
    streams = len(model.stages[0].plan.streams)
    assert deep.kept - shallow.kept <= 9 * streams * STREAM


def test_reversible_keeps_the_final_streams() -> None:
    kept = measure(additive(), 12, "reversible").kept
    # The final streams, their concatenation, its mean over tokens, and small change.
    assert kept < 5 * STREAM


@pytest.mark.parametrize("backward", STRATEGIES)
@pytest.mark.parametrize("name", STAGES)
def test_nothing_is_left_after_backward(name: str, backward: str) -> None:
    model = build(STAGES[name], 4, backward)
    value = torch.randn(BATCH, TOKENS, WIDTH)
    known = parameters_and_gradients(model)
    with LiveBytes() as live:
        live.ignore([*known, value])
        out = model(value)
        loss = out.square().mean()
        loss.backward()
        assert live.now <= out.nbytes + loss.nbytes  # both are still here


@pytest.mark.parametrize("backward", STRATEGIES)
def test_nothing_is_kept_where_no_gradient_is_wanted(backward: str) -> None:
    model = build(STAGES["learned gamma"], 8, backward)
    value = torch.randn(BATCH, TOKENS, WIDTH)
    with torch.no_grad(), LiveBytes() as live:
        live.ignore([*model.parameters(), value])
        out = model(value)
        assert live.now == out.nbytes
        # Four streams, one function at work.
        assert live.peak < 16 * STREAM


def test_retained_graphs_hold_one_replay_at_most() -> None:
    model = build(STAGES["learned gamma"], 12, "reversible")
    known = parameters_and_gradients(model)
    with LiveBytes() as live:
        live.ignore(known)
        loss = model(torch.randn(BATCH, TOKENS, WIDTH)).square().mean()
        before = live.now
        for _ in range(2):
            loss.backward(retain_graph=True)
            assert live.now < before + STREAM


# Life times --------------------------------------------------------------------------------------


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[weakref.ref[Tape]]]:
    """Every tape made, with the garbage collector off."""
    made: list[weakref.ref[Tape]] = []
    initialise = Tape.__init__

    def record(self: Tape, *arguments: Any) -> None:
        initialise(self, *arguments)
        made.append(weakref.ref(self))

    monkeypatch.setattr(Tape, "__init__", record)
    gc.disable()
    yield made
    gc.enable()


def alive(tapes: list[weakref.ref[Tape]]) -> int:
    return sum(tape() is not None for tape in tapes)


@pytest.mark.parametrize("backward", ["checkpoint", "reversible"])
@pytest.mark.parametrize("name", STAGES)
def test_tapes_end_with_their_graph(
    name: str, backward: str, tapes: list[weakref.ref[Tape]]
) -> None:
    model = build(STAGES[name], 3, backward)
    loss = model(torch.randn(BATCH, TOKENS, WIDTH)).square().mean()
    assert alive(tapes) == len(tapes) == (1 if backward == "reversible" else 3)
    loss.backward(retain_graph=True)
    assert alive(tapes) == len(tapes)
    loss.backward()
    assert alive(tapes) == 0  # though the loss is still here


@pytest.mark.parametrize("backward", ["checkpoint", "reversible"])
def test_tapes_end_with_a_graph_that_is_never_run(
    backward: str, tapes: list[weakref.ref[Tape]]
) -> None:
    model = build(STAGES["learned gamma"], 3, backward)
    loss = model(torch.randn(BATCH, TOKENS, WIDTH)).square().mean()
    assert alive(tapes)
    del loss
    assert not alive(tapes)


@pytest.mark.parametrize("backward", ["checkpoint", "reversible"])
def test_tapes_end_after_a_second_derivative(backward: str, tapes: list[weakref.ref[Tape]]) -> None:
    model = build(STAGES["affine"], 2, backward)
    value = torch.randn(BATCH, TOKENS, WIDTH, requires_grad=True)
    (slope,) = torch.autograd.grad(model(value).square().mean(), value, create_graph=True)
    slope.square().sum().backward()
    del slope
    assert alive(tapes) == 0


@pytest.mark.parametrize("backward", STRATEGIES)
def test_no_tape_without_gradients(backward: str, tapes: list[weakref.ref[Tape]]) -> None:
    model = build(STAGES["learned gamma"], 3, backward)
    value = torch.randn(BATCH, TOKENS, WIDTH)
    with torch.no_grad():
        model(value)
    with torch.inference_mode():
        model(value)
        model.eval()(value)
    model.requires_grad_(False)(value)
    assert alive(tapes) == 0


def test_live_bytes_counts_storages_once() -> None:
    with LiveBytes() as live:
        a = torch.zeros(100)
        views = [a[:50], a.view(10, 10)]
        assert live.now == 400
        b = a + 1
        assert (live.now, live.peak) == (800, 800)
        del a, views
        assert live.now == 400
        b.add_(1)
        assert (live.now, live.peak) == (400, 800)
