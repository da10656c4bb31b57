"""What a replay must do again, and what it must not: random numbers, autocast, statistics."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_networks import (
    BRANCH,
    STRATEGIES,
    additive,
    assert_same_outputs,
    error,
    gradient_error,
    network,
    outcome,
    streams_for,
)
from torch import Tensor, nn

import archspec
from compiler.network import Network
from compiler.stage import Stage

REPLAYED = ("checkpoint", "reversible")
RANDOM_BRANCHES = {
    "dropout": ["layer_norm", {"mlp": {"ratio": 2, "dropout": 0.3}}],
    "attention dropout": ["layer_norm", {"attention": {"heads": 2, "dropout": 0.3}}],
    "drop path": ["layer_norm", {"mlp": 2}, {"drop_path": 0.5}],
}
DRAWN = {"gamma": {"draw": [0.5, -0.5], "per": "sample", "evaluate": 0.0}}


def calls(model: nn.Module) -> list[tuple[str, bool, Tensor]]:
    """A list that will hold each call of F and G: its name, whether it is a replay, its result."""
    made: list[tuple[str, bool, Tensor]] = []
    for name, module in model.named_modules():
        if name.split(".")[-1] in ("F", "G"):
            module.register_forward_hook(
                lambda module, given, result, name=name: made.append(
                    (name, archspec.is_replaying(), result.detach().clone())
                )
            )
    return made


# Random numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", REPLAYED)
@pytest.mark.parametrize("kind", RANDOM_BRANCHES)
def test_random_numbers_are_drawn_again(kind: str, strategy: str) -> None:
    stage = network(additive(RANDOM_BRANCHES[kind], RANDOM_BRANCHES[kind])).stages[0]
    streams = streams_for(stage)
    stage.backward = "store"
    stored = outcome(stage, streams)
    stage.backward = strategy  # type: ignore[assignment]
    found = outcome(stage, streams)
    assert_same_outputs(found, stored)
    assert gradient_error(found, stored) < 1e-12
    assert gradient_error(outcome(stage, streams, seed=5), stored) > 1e-3  # not one fixed mask


@pytest.mark.parametrize("kind", RANDOM_BRANCHES)
def test_the_generator_is_left_as_by_stored_activations(kind: str) -> None:
    branch = RANDOM_BRANCHES[kind]
    model = network(additive(branch, branch, coupling="bdia", functions={"F": branch}))
    value = torch.randn(4, 5, 6, dtype=torch.float64)
    states = []
    for strategy in STRATEGIES:
        model.set_backward(strategy)
        torch.manual_seed(3)
        loss = model(value).square().sum()
        states.append(torch.get_rng_state())
        loss.backward()
        assert torch.equal(torch.get_rng_state(), states[-1])
    assert all(torch.equal(state, states[0]) for state in states)


def test_the_generator_may_move_between_forward_and_backward() -> None:
    branch = RANDOM_BRANCHES["dropout"]
    model = network(additive(branch, branch))
    value = torch.randn(4, 5, 6, dtype=torch.float64)
    results = []
    for strategy in STRATEGIES:
        model.set_backward(strategy).zero_grad()
        torch.manual_seed(3)
        loss = model(value).square().sum()
        torch.rand(11)
        loss.backward()
        results.append((next(model.parameters()).grad, torch.rand(3)))
    for gradient, after in results[1:]:
        assert error(gradient, results[0][0]) < 1e-12
        assert torch.equal(after, results[0][1])


def test_branches_and_layers_draw_different_masks() -> None:
    stage = network(additive([{"dropout": 0.5}], [{"dropout": 0.5}]), input={"features": [512]})
    made = calls(stage)
    ones = torch.ones(1, 512, dtype=torch.float64)
    for layer in stage.stages[0].layers:
        layer.F(ones), layer.G(ones)  # type: ignore[operator]
    stage.stages[0](ones, ones)
    masks = [result != 0 for _, _, result in made]
    assert len(masks) == 12
    for index, mask in enumerate(masks):
        assert all(not torch.equal(mask, other) for other in masks[:index])


def test_drop_path_drops_whole_samples() -> None:
    model = network(additive(RANDOM_BRANCHES["drop path"], RANDOM_BRANCHES["drop path"]))
    made = calls(model)
    model(torch.randn(64, 5, 6, dtype=torch.float64)).sum().backward()
    first, replayed = ([r for _, replay, r in made if replay is which] for which in (False, True))
    for result in first:
        dropped = (result == 0).flatten(1)
        assert torch.equal(dropped.all(1), dropped.any(1))
        assert 10 < int(dropped.all(1).sum()) < 54
    for result, again in zip(first, reversed(replayed), strict=True):
        assert torch.equal(result == 0, again == 0)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", RANDOM_BRANCHES)
def test_nothing_is_dropped_in_evaluation(kind: str, strategy: str) -> None:
    branch = RANDOM_BRANCHES[kind]
    model = network(additive(branch, branch, backward=strategy)).eval()
    made = calls(model)
    state = torch.get_rng_state()
    value = torch.randn(4, 5, 6, dtype=torch.float64)
    torch.set_rng_state(state)
    out = model(value)
    out.sum().backward()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(result.ne(0).any() for _, _, result in made)
    assert torch.equal(model(value), out)


@pytest.mark.parametrize("strategy", REPLAYED)
def test_modes_may_change_between_forward_and_backward(strategy: str) -> None:
    branch = RANDOM_BRANCHES["dropout"]
    model = network(additive(branch, branch))
    value = torch.randn(4, 5, 6, dtype=torch.float64)
    found = []
    for backward in ("store", strategy):
        model.set_backward(backward).zero_grad()
        torch.manual_seed(3)
        loss = model.train()(value).square().sum()
        model.eval()
        loss.backward()
        assert not any(module.training for module in model.modules())
        found.append(next(model.parameters()).grad)
    assert error(found[1], found[0]) < 1e-12


# Replays -----------------------------------------------------------------------------------------

REPLAY_STAGES: dict[str, dict[str, Any]] = {
    "additive": additive(),
    "affine": {"coupling": "affine", "functions": dict.fromkeys("STUV", BRANCH)},
    "temporaries": {
        "streams": {"x": "input", "y": "input"},
        "functions": {"F": ["layer_norm", {"mlp": 1}], "G": [{"linear": "channels"}, "tanh"]},
        "constants": {"g": {"learn": 0.3}},
        "update": ["k := F(G(y))", "x += g*k", "j := G(x + g*x)", "y += j + F(j)"],
        "output": "x + y",
    },
}


@pytest.mark.parametrize("strategy", REPLAYED)
@pytest.mark.parametrize("name", REPLAY_STAGES)
def test_every_call_is_replayed_once(name: str, strategy: str) -> None:
    model = network({"depth": 4, **REPLAY_STAGES[name], "backward": strategy})
    counts: dict[bool, int] = {True: 0, False: 0}

    def count(module: nn.Module, given: Any, result: Any) -> None:
        counts[archspec.is_replaying()] += 1

    for layer in model.stages[0].layers:
        for function in layer.children():
            function.register_forward_hook(count)
    loss = model(torch.randn(4, 5, 6, dtype=torch.float64)).square().sum()
    assert counts[False] > 0
    assert counts[True] == 0
    assert not archspec.is_replaying()
    loss.backward()
    assert counts[True] == counts[False]
    assert not archspec.is_replaying()


# Autocast ----------------------------------------------------------------------------------------

ATTENTION = ["layer_norm", {"attention": {"heads": 2}}]


@pytest.mark.parametrize("strategy", REPLAYED)
def test_autocast(strategy: str) -> None:
    gamma = {"gamma": {"learn": 0.9, "within": [0.5, 0.99]}}
    stage = {
        "depth": 3,
        "coupling": "momentum_pair",
        "functions": {"F": ATTENTION, "G": ["layer_norm", {"mlp": {"ratio": 2, "dropout": 0.1}}]},
        "constants": gamma,
    }
    model = network(stage, torch.float32)
    value = torch.randn(4, 5, 6)
    dtypes: list[torch.dtype] = []
    for layer in model.stages[0].layers:
        layer.F.register_forward_hook(  # type: ignore[union-attr]
            lambda module, given, result: dtypes.extend((given[0].dtype, result.dtype))
        )
    found = []
    for backward in ("store", strategy):
        model.set_backward(backward).zero_grad()
        torch.manual_seed(3)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            streams = model.stages[0].split(value.bfloat16())
            assert {s.dtype for s in streams} == {torch.float32}
            leaving = model.stages[0](*streams)
        assert {s.dtype for s in leaving} == {torch.float32}
        sum(s.square().sum() for s in leaving).backward()
        assert not torch.is_autocast_enabled("cpu")
        found.append([p.grad for p in model.stages[0].parameters()])
    assert set(dtypes[::2]) == {torch.float32}
    assert set(dtypes[1::2]) == {torch.bfloat16}
    least = 1e-3 * max(float(g.abs().max()) for g in found[0])
    assert max(error(a, b, least) for a, b in zip(found[1], found[0], strict=True)) < 1e-5


@pytest.mark.parametrize("strategy", REPLAYED)
def test_backward_inside_another_autocast_context(strategy: str) -> None:
    model = network(additive(), torch.float32)
    value = torch.randn(4, 5, 6)
    found = []
    for backward in ("store", strategy):
        model.set_backward(backward).zero_grad()
        loss = model(value).square().sum()
        with torch.autocast("cpu", dtype=torch.bfloat16):  # the forward pass was in full precision
            loss.backward()
            assert torch.is_autocast_enabled("cpu")
        found.append([p.grad for p in model.parameters()])
    assert max(error(a, b) for a, b in zip(found[1], found[0], strict=True)) < 1e-5


# Batch normalisation -----------------------------------------------------------------------------

NORMALISED = [{"conv": {}}, "batch_norm", "relu"]
TWICE = {
    "depth": 3,
    "coupling": "reversible_heun",
    "functions": {"F": NORMALISED},
    "constants": {"h": 0.3},
}


def image_network(stage: dict[str, Any], training: bool, dtype: torch.dtype) -> Network:
    model = network(stage, dtype, input={"image": [4, 5, 5]})
    model(torch.randn(8, 4, 5, 5, dtype=dtype))  # statistics that are not the initial ones
    return model.train(training)


def statistics(stage: Stage) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in stage.named_buffers()}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("strategy", REPLAYED)
@pytest.mark.parametrize("stage", [additive(NORMALISED, NORMALISED), TWICE])
def test_batch_normalisation_counts_once(
    stage: dict[str, Any], strategy: str, training: bool
) -> None:
    results = []
    for backward in ("store", strategy):
        built = image_network(stage, training, torch.float64).set_backward(backward).stages[0]
        before = statistics(built)
        found = outcome(built, streams_for(built))
        results.append((found, statistics(built)))
        changed = [not torch.equal(before[name], results[-1][1][name]) for name in before]
        assert all(changed) if training else not any(changed)
    (stored, counted), (found, counted_here) = results
    assert all(torch.equal(counted[name], counted_here[name]) for name in counted)
    assert_same_outputs(found, stored)
    assert gradient_error(found, stored) < 1e-10


@pytest.mark.parametrize("strategy", REPLAYED)
def test_batch_normalisation_in_two_forwards_before_one_backward(strategy: str) -> None:
    results = []
    for backward in ("store", strategy):
        model = image_network(additive(NORMALISED, NORMALISED), True, torch.float64)
        model.set_backward(backward)
        value = torch.randn(8, 4, 5, 5, dtype=torch.float64)
        loss = model(value).square().sum() + model(2 * value).sum()
        model.eval()
        loss.backward()
        results.append([p.grad for p in model.parameters()] + list(model.buffers()))
    least = 1e-3 * max(float(g.abs().max()) for g in results[0])
    assert max(error(a, b, least) for a, b in zip(*results[::-1], strict=True)) < 1e-10


@pytest.mark.parametrize("strategy", REPLAYED)
def test_statistics_that_were_read_must_not_change_before_backward(strategy: str) -> None:
    model = image_network(additive(NORMALISED, NORMALISED), False, torch.float64)
    model.set_backward(strategy)
    value = torch.randn(8, 4, 5, 5, dtype=torch.float64)
    loss = model(value).sum()
    model.train()(value)
    with pytest.raises(RuntimeError, match="changed in place between the forward and the backward"):
        loss.backward()
