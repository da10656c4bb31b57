"""Coefficients that change over training, and functions that all layers share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from one_stage import shown, stage_plan
from one_stage import spec as one_spec
from small_networks import STRATEGIES, error, gradient_error, network, outcome, streams_for

import archspec
from archspec.diagnostics import SpecError
from compiler.growth import stability
from compiler.verify import verify

ANNEALED = {
    "depth": 3,
    "coupling": "momentum",
    "functions": {"F": ["layer_norm", {"mlp": 2}]},
    "constants": {"gamma": "0.5 + 0.4*progress*layer/depth"},
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_gradients(strategy: str, progress: float) -> None:
    model = network(ANNEALED).set_backward(strategy)
    model.set_progress(progress)
    stage = model.stages[0]
    start = streams_for(stage)

    def by_hand(x: Any, v: Any) -> Any:
        for index, layer in enumerate(stage.layers):
            gamma = 0.5 + 0.4 * progress * index / 3
            v = gamma * v + (1 - gamma) * layer.F(x)
            x = x + v
        return x, v

    wanted = outcome(by_hand, start, stage)
    # `progress` is kept in single precision.
    assert gradient_error(outcome(stage, start), wanted) < (1e-12 if progress in (0, 1) else 1e-6)
    with torch.no_grad():
        back = stage.inverse(*stage(*start))
    assert max(error(a, b) for a, b in zip(back, start, strict=True)) < 1e-12


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_training_may_move_on_before_backward(strategy: str) -> None:
    def run(moves: bool) -> list[Any]:
        model = network(ANNEALED).set_backward(strategy)
        model.set_progress(0.25)
        loss = model(torch.ones(2, 5, 6, dtype=torch.float64).cumsum(2).sin()).square().sum()
        if moves:
            model.set_progress(0.75)
        return list(torch.autograd.grad(loss, list(model.parameters())))

    for moved, stood in zip(run(True), run(False), strict=True):
        assert torch.equal(moved, stood)


def test_progress_is_saved_with_the_weights() -> None:
    model, other = network(ANNEALED), network(ANNEALED, seed=1)
    model.set_progress(0.5)
    assert float(model.state_dict()["stages.trunk.progress"]) == 0.5
    other.load_state_dict(model.state_dict())
    assert float(other.stages[0].progress) == 0.5
    assert "stages.trunk.progress" not in network({**ANNEALED, "constants": {}}).state_dict()
    with pytest.raises(ValueError, match=r"progress runs from 0 to 1, found 1\.5"):
        model.set_progress(1.5)


def test_growth_is_the_worst_over_training() -> None:
    def growth(gamma: Any) -> float:
        found = stability(stage_plan("x = gamma*x + F(y); y += x", {"gamma": gamma}))
        assert found is not None
        return found.growth

    assert growth("0.5 + 0.4*progress") == growth(0.5)
    assert growth("0.9 - 0.4*progress") == growth(0.5)


@pytest.mark.parametrize(
    ("constants", "update", "message"),
    [
        ({"gamma": "progress"}, "x = gamma*x + F(y)", "E303 the factor `gamma` of `x` must stay"),
        ({"gamma": "1 - progress"}, "x = gamma*x + F(y)", "E303"),
        ({"h": "1/progress"}, "x += h*F(y)", "E206 this divides by zero"),
        ({}, "x += F(y)/(1 - progress)", "E206 this divides by zero"),
        ({}, "k := progress; x += k*F(y)", "E402 `k` is a number"),
    ],
)
def test_what_progress_breaks(constants: Any, update: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        stage_plan(f"{update}; y += x", constants)
    assert message in shown(caught.value)


def test_an_annealed_scale_may_reach_zero_where_nothing_is_reversed() -> None:
    """Sander et al. 2021 anneal gamma from 0: checkpointed until then."""
    update = "x = progress*x + F(y); y += x"
    model = archspec.build(one_spec(update, backward="checkpoint"))
    (verified,) = verify(model)
    assert verified.passed
    with pytest.raises(ValueError, match="cannot be reversed"):
        model.set_backward("reversible")


# Shared functions --------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("coupling", ["additive", "momentum", "midpoint", "verlet", "affine"])
def test_layers_that_share_their_functions(strategy: str, coupling: str) -> None:
    halves = coupling == "affine"
    own = ["layer_norm", {"mlp": 2}] if not halves else [{"linear": "channels"}, "tanh"]
    names = {"additive": "FG", "momentum": "F", "midpoint": "F", "verlet": "FG", "affine": "STUV"}
    stage = {"depth": 3, "coupling": coupling, "functions": dict.fromkeys(names[coupling], own)}
    tied = network({**stage, "share": True}).set_backward(strategy)
    apart = network(stage).set_backward("store")
    for layer in apart.stages[0].layers:
        for name in names[coupling]:
            getattr(layer, name).load_state_dict(getattr(tied.stages[0].shared, name).state_dict())
    start = streams_for(tied.stages[0])
    found, wanted = outcome(tied.stages[0], start), outcome(apart.stages[0], start)
    for index in range(len(start)):
        key = f"stream {index}"
        assert error(found.gradients[key], wanted.gradients[key]) < 1e-12
    for name in (n for n in found.gradients if n.startswith("shared.")):
        parts = [wanted.gradients[f"layers.{i}.{name.removeprefix('shared.')}"] for i in range(3)]
        assert error(found.gradients[name], sum(parts[1:], parts[0]), 1e-3) < 1e-12  # type: ignore[arg-type]


def test_shared_functions_are_saved_once() -> None:
    stage = {"depth": 3, "coupling": "momentum", "functions": {"F": ["tanh", {"linear": 6}]}}
    gamma = {"gamma": {"learn": 0.9, "within": [0.5, 0.99]}}
    names = list(network({**stage, "share": True, "constants": gamma}).stages[0].state_dict())
    assert names == [
        "shared.F.linear.weight",
        "shared.F.linear.bias",
        *(f"layers.{i}.coefficients.gamma" for i in range(3)),
    ]


def test_shared_functions_have_no_layer() -> None:
    stage = {"F": ["tanh", {"drop_path": "0.1*layer/depth"}]}
    with pytest.raises(SpecError, match="`layer` has no value here"):
        archspec.build(one_spec("x += F(y); y += x", functions=stage, share=True))
