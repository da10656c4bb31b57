"""Checkpointed stages by every schedule: gradients bit for bit, evaluations and streams counted."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from emitted_file import as_module, computed, disturb, emitted_text, inputs, network_of
from exact_stages import SMALL, exact_stage, forms
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_programs import given_to, programs
from small_networks import (
    BRANCH,
    Outcome,
    additive,
    assert_same_outputs,
    network,
    outcome,
    streams_for,
)
from small_networks import spec as small_spec
from torch import Tensor, nn

import archspec
from archspec.dumping import dump
from archspec.loading import load
from compiler import engine
from compiler.checkpointing import BinomialTape
from compiler.memory import LiveBytes
from compiler.schedules import Checkpoints, advances, evaluations
from compiler.stage import Stage

Schedule = dict[str, int]
SCHEDULES: tuple[Schedule, ...] = (
    {"every": 2},
    {"every": 3},
    {"every": 50},
    {"slots": 1},
    {"slots": 2},
    {"slots": 3},
    {"slots": 50},
)
DROPPING: list[Any] = ["layer_norm", {"mlp": {"ratio": 2, "dropout": 0.3}}, {"drop_path": 0.2}]


def assert_same(found: Outcome, wanted: Outcome) -> None:
    """Outputs and gradients, bit for bit."""
    assert_same_outputs(found, wanted)
    assert found.gradients.keys() == wanted.gradients.keys()
    assert [n for n, g in found.gradients.items() if not same(g, wanted.gradients[n])] == []


def same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


def by_schedule(stage: Stage, streams: Any, schedule: Schedule, **keys: Any) -> Outcome:
    stage.set_backward("checkpoint", **schedule)
    return outcome(stage, streams, **keys)


def stored(stage: Stage, streams: Any, **keys: Any) -> Outcome:
    stage.set_backward("store")
    return outcome(stage, streams, **keys)


# Gradients ---------------------------------------------------------------------------------------


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


# Counting evaluations ----------------------------------------------------------------------------


def calls_of(model: nn.Module, name: str = "F") -> dict[bool, int]:
    """Counts the calls of a function of every layer: forward, and in replays."""
    counts = {False: 0, True: 0}

    def count(module: nn.Module, given: Any, result: Any) -> None:
        counts[archspec.is_replaying()] += 1

    for path, module in model.named_modules():
        if path.split(".")[-1] == name:
            module.register_forward_hook(count)
    return counts


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


# Memory ------------------------------------------------------------------------------------------

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


# What a replay must do again, and what it must not -----------------------------------------------


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
def handles(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[engine.Handle]]:
    """Every handle made."""
    made: list[engine.Handle] = []
    pack = engine.Recorder.pack

    def collect(self: engine.Recorder, tensor: Tensor) -> engine.Handle | engine.Kept:
        packed = pack(self, tensor)
        if isinstance(packed, engine.Handle):
            made.append(packed)
        return packed

    monkeypatch.setattr(engine.Recorder, "pack", collect)
    yield made
    made.clear()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_handles_may_be_asked_for_in_any_order(
    schedule: Schedule, handles: list[engine.Handle]
) -> None:
    model = network({**additive(DROPPING), "depth": 6}).set_backward("checkpoint", **schedule)
    loss = model(torch.randn(2, 5, 6, dtype=torch.float64)).sum()
    wanted = {id(handle): engine.unpack(handle).clone() for handle in reversed(handles)}
    shuffled = list(handles)
    random.Random(0).shuffle(shuffled)
    for handle in shuffled:
        assert torch.equal(engine.unpack(handle), wanted[id(handle)])
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


# Settings ----------------------------------------------------------------------------------------


def test_settings_in_python() -> None:
    model = network({**additive(), "backward": {"checkpoint": {"slots": 2}}})
    stage = model.stages[0]
    assert (stage.backward, stage.checkpoints) == ("checkpoint", Checkpoints(slots=2))
    model.set_backward("checkpoint", every=4)
    stage.backward = "store"
    stage.backward = "checkpoint"
    assert stage.checkpoints == Checkpoints(every=4)
    assert "backward='checkpoint' (every: 4)" in repr(stage)
    model.set_backward("checkpoint")  # as the spec has it
    assert stage.checkpoints == Checkpoints(slots=2)
    for keys in ({"every": 2, "slots": 2}, {"slots": 0}, {"every": True}):
        with pytest.raises(ValueError, match=r"`every`|`slots`"):
            model.set_backward("checkpoint", **keys)
    with pytest.raises(ValueError, match="go with 'checkpoint', found 'reversible'"):
        stage.set_backward("reversible", slots=2)
    with pytest.raises(ValueError, match="backward is one of reversible, checkpoint, store"):
        model.set_backward("slots")
    assert stage.checkpoints == Checkpoints(slots=2)


@pytest.mark.parametrize(
    "backward",
    [
        "checkpoint",
        {"checkpoint": {"every": 3}},
        {"checkpoint": {"slots": 3}},
        {"reversible": {"from": 0.25}},
        {"reversible": {}},
    ],
    ids=str,
)
def test_a_resolved_spec_loads_again(backward: Any) -> None:
    constants = {"gamma": "0.5 + 0.4*progress"}
    functions = {"F": BRANCH, "G": BRANCH}
    stage = {"depth": 3, "coupling": "momentum_pair", "functions": functions}
    loaded = load(small_spec({**stage, "constants": constants, "backward": backward}))
    from_text = archspec.build(load(_dumped(loaded.tree)))
    from_spec = archspec.build(loaded.spec)
    built = archspec.build(loaded)
    for other in (from_text, from_spec):
        assert other.stages[0].backward == built.stages[0].backward
        assert other.stages[0].facts == built.stages[0].facts


def _dumped(tree: Any) -> Any:
    from archspec.tree import read

    return read(dump(tree), "<dumped>").plain()


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ({"checkpoint": {"every": 4}}, {"checkpoint": {"slots": 2}}, Checkpoints(slots=2)),
        ({"checkpoint": {"every": 4}}, {"checkpoint": {"every": 2}}, Checkpoints(every=2)),
        ({"checkpoint": {"every": 4}}, {"reversible": {}}, Checkpoints()),
        ("store", {"checkpoint": {"slots": 2}}, Checkpoints(slots=2)),
        ({"checkpoint": {"every": 4}}, "checkpoint", Checkpoints()),
    ],
)
def test_another_schedule_replaces_the_inherited_one(old: Any, new: Any, found: Any) -> None:
    text = str(new).replace("'", "")
    model = archspec.build(
        load(small_spec({**additive(), "backward": old}), [f"stages.trunk.backward={text}"])
    )
    assert model.stages[0].checkpoints == found


# In an emitted file ------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [{"every": 2}, {"slots": 2}], ids=str)
@pytest.mark.parametrize("arithmetic", ["float", "exact"])
def test_emitted_files_carry_the_schedule(schedule: Schedule, arithmetic: str) -> None:
    functions = {"F": DROPPING, "G": BRANCH}
    stage = {"depth": 5, "coupling": "momentum_pair", "functions": functions}
    spec = small_spec(
        {**stage, "arithmetic": arithmetic, "backward": {"checkpoint": schedule}}, **SMALL
    )
    model = archspec.build(spec)
    disturb(model)
    module = as_module(emitted_text(spec))
    other = network_of(module)
    other.load_state_dict(model.state_dict())
    assert str(other.stages[0].checkpoints) == str(Checkpoints(**schedule))
    assert other.stages[0].backward == "checkpoint"
    value = inputs(model, model.input)
    found, wanted = computed(other, value, {}), computed(model, value, {})
    assert [n for n in wanted if not torch.equal(found[n], wanted[n])] == []
    assert module.self_check(network_of(module))
    counts = calls_of(other.train().set_backward("checkpoint"))
    other(value).sum().backward()
    total = evaluations(5, schedule["slots"]) if "slots" in schedule else 10
    assert sum(counts.values()) == total


# Reversed from a progress on ---------------------------------------------------------------------

WARMING = {
    "depth": 5,
    "coupling": "momentum_pair",
    "functions": {"F": DROPPING, "G": BRANCH},
    "constants": {"gamma": "0.9*progress"},
    "backward": {"reversible": {"from": 0.25}},
}


@pytest.mark.parametrize("arithmetic", ["float", "exact"])
@pytest.mark.parametrize("progress", [0.0, 0.1, 0.25, 0.6, 1.0])
def test_checkpointed_until_then(progress: float, arithmetic: str) -> None:
    model = network({**WARMING, "arithmetic": arithmetic}, torch.float32, **SMALL)
    model.set_progress(progress)
    stage = model.stages[0]
    streams = streams_for(stage)
    found = outcome(stage, streams)
    wanted = stored(stage, streams)
    if arithmetic == "exact" or progress < 0.25:
        assert_same(found, wanted)
    else:
        assert_same_outputs(found, wanted)
        assert any(not same(g, wanted.gradients[n]) for n, g in found.gradients.items())
    assert stage.has_inverse == (progress >= 0.25)


@pytest.mark.parametrize("arithmetic", ["float", "exact"])
def test_there_is_no_inverse_before(arithmetic: str) -> None:
    model = network({**WARMING, "arithmetic": arithmetic}, torch.float32, **SMALL).eval()
    stage = model.stages[0]
    streams = streams_for(stage)
    with torch.no_grad():
        final = stage(*streams)
        with pytest.raises(RuntimeError, match=r"no inverse before training's progress is 0\.25"):
            stage.inverse(*final, information=archspec.Information())
        model.set_progress(0.25)
        information = archspec.Information()
        final = stage(*streams, information=information)
        back = stage.inverse(*final, information=information)
    off = max(float((a - b).abs().max()) for a, b in zip(back, streams, strict=True))
    assert off < (1e-4 if arithmetic == "exact" else 1e-1)


def test_nothing_is_kept_for_an_inverse_that_there_is_not() -> None:
    stage = network({**WARMING, "arithmetic": "exact"}, torch.float32, **SMALL).stages[0]
    with pytest.raises(ValueError, match="no inverse before"):
        stage(*streams_for(stage), information=archspec.Information())


@pytest.mark.parametrize("arithmetic", ["float", "exact"])
def test_emitted_files_and_builds_start_where_reversing_does(arithmetic: str) -> None:
    from compiler.drift import drift, given_by
    from compiler.summary import summarise
    from compiler.verify import verify

    spec = small_spec({**WARMING, "arithmetic": arithmetic}, **SMALL)
    model = archspec.build(spec)
    assert model.plan.stages[0].ends_of_training == (0.25, 1.0)
    (verified,) = verify(model)
    assert verified.passed
    assert summarise(model, [verified]).kept_bytes is not None
    drifted = drift(model.stages[0], given_by(model, torch.randn(2, 3, 4))["trunk"])
    assert all(0 <= error < 1e3 for error in drifted.float32)
    module = as_module(emitted_text(spec))
    assert module.self_check(network_of(module))
