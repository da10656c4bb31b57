"""What would make a gradient wrong is an error, and an error leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_networks import (
    BRANCH,
    STRATEGIES,
    LinearFunction,
    additive,
    assert_same_outputs,
    gradient_error,
    network,
    outcome,
    streams_for,
    with_functions,
)
from torch import Tensor, nn

import archspec

REPLAYED = ("checkpoint", "reversible")
CHANGED = "changed in place between the forward and the backward"
MOMENTUM = {
    "depth": 3,
    "coupling": "momentum_pair",
    "functions": {"F": BRANCH, "G": BRANCH},
    "constants": {"gamma": {"learn": 0.9, "within": [0.5, 0.99]}},
}


def value() -> Tensor:
    return torch.randn(4, 5, 6, dtype=torch.float64)


# Refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", REPLAYED)
@pytest.mark.parametrize(
    "which", ["F.mlp.expand.weight", "F.layer_norm.bias", "coefficients.gamma"]
)
def test_parameters_changed_before_backward(which: str, strategy: str) -> None:
    model = network(MOMENTUM).set_backward(strategy)
    loss = model(value()).square().sum()
    with torch.no_grad():
        model.stages[0].layers[1].get_parameter(which).mul_(1.5)
    with pytest.raises(RuntimeError, match=CHANGED):
        loss.backward()


@pytest.mark.parametrize("strategy", REPLAYED)
def test_an_optimizer_step_before_backward(strategy: str) -> None:
    model = network(MOMENTUM).set_backward(strategy)
    optimizer = torch.optim.SGD(model.stages.parameters(), lr=0.1)
    model(value()).square().sum().backward()
    loss = model(value()).square().sum()
    optimizer.step()
    with pytest.raises(RuntimeError, match=CHANGED):
        loss.backward()


@pytest.mark.parametrize("strategy", REPLAYED)
def test_weights_loaded_before_backward(strategy: str) -> None:
    model = network(MOMENTUM).set_backward(strategy)
    loss = model(value()).square().sum()
    model.stages.load_state_dict(network(MOMENTUM, seed=1).stages.state_dict())
    with pytest.raises(RuntimeError, match=CHANGED):
        loss.backward()


@pytest.mark.parametrize("strategy", REPLAYED)
def test_draws_changed_before_backward(strategy: str) -> None:
    stage = network({"depth": 3, "coupling": "bdia", "functions": {"F": BRANCH}}).stages[0]
    stage.backward = strategy  # type: ignore[assignment]
    streams = streams_for(stage)
    draws = stage.draw(streams[0])
    loss = sum(out.square().sum() for out in stage(*streams, draws=draws))
    draws[1]["gamma"].neg_()
    with pytest.raises(RuntimeError, match=CHANGED):
        loss.backward()


def test_final_streams_changed_before_backward() -> None:
    stage = network(additive()).stages[0]
    leaving = stage(*streams_for(stage))
    loss = sum(out.square().sum() for out in leaving)
    with pytest.raises(RuntimeError, match="being modified inplace"):
        leaving[0].add_(1)
    with torch.no_grad():
        leaving[1].add_(1)
    with pytest.raises(RuntimeError, match="modified inplace"):
        loss.backward()


def test_input_streams_changed_before_backward() -> None:
    stage = network(additive(backward="checkpoint")).stages[0]
    streams = streams_for(stage)
    loss = sum(out.square().sum() for out in stage(*streams))
    streams[0].mul_(2)
    with pytest.raises(RuntimeError, match=CHANGED):
        loss.backward()


def test_input_streams_may_change_where_they_are_rebuilt() -> None:
    stage = network(additive()).stages[0]
    streams = streams_for(stage)
    wanted = outcome(stage, streams)
    torch.manual_seed(2)
    leaves = [s.clone() for s in streams]
    leaving = stage(*leaves)
    for leaf in leaves:
        leaf.zero_()
    generator = torch.Generator().manual_seed(2)
    weights = [torch.randn(out.shape, generator=generator, dtype=out.dtype) for out in leaving]
    sum((o * w).sum() for o, w in zip(leaving, weights, strict=True)).backward()
    for name, parameter in stage.named_parameters():
        assert torch.equal(parameter.grad, wanted.gradients[name])  # type: ignore[arg-type]


class Capricious(LinearFunction):
    """Saves one tensor more, or one of another shape, when it is replayed."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        result = super().forward(x)
        if archspec.is_replaying() and self.how == "more":
            return result.tanh()
        if archspec.is_replaying() and self.how == "other":
            return super().forward(x.transpose(0, 1)).transpose(0, 1)
        return result


@pytest.mark.parametrize("strategy", REPLAYED)
@pytest.mark.parametrize("how", ["more", "other"])
def test_replays_must_save_the_same(how: str, strategy: str) -> None:
    model = with_functions(lambda: Capricious(how), strategy)
    with pytest.raises(RuntimeError, match="did not do the same in the replay"):
        model(value()).sum().backward()


class Spoiling(LinearFunction):
    """Changes a tensor that its gradient needs."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = super().forward(x).tanh()
        result = hidden * 2
        hidden.add_(1)
        return result


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_saved_tensors_must_not_change_inside_a_function(strategy: str) -> None:
    model = with_functions(Spoiling, strategy)
    with pytest.raises(RuntimeError, match=r"changed in place|modified by an inplace operation"):
        model(value()).sum().backward()


class ReadTwice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        ctx.saved_tensors  # noqa: B018
        return ctx.saved_tensors[0].cos() * cotangent


class ReadingTwice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return ReadTwice.apply(x)


def test_saved_tensors_read_twice() -> None:
    model = with_functions(ReadingTwice, "reversible")
    inputs = value().requires_grad_()
    with pytest.raises(RuntimeError, match=r"read ctx.saved_tensors once"):
        model(inputs).square().sum().backward()
    found = []
    for strategy in STRATEGIES:
        inputs.grad = None
        model.set_backward(strategy)(inputs).square().sum().backward(retain_graph=True)
        found.append(inputs.grad)
    assert all(torch.allclose(grad, found[0], rtol=1e-12) for grad in found)


# Errors leave nothing behind ---------------------------------------------------------------------


class Failing(LinearFunction):
    fails = False

    def forward(self, x: Tensor) -> Tensor:
        if Failing.fails:
            raise KeyError("no")
        return super().forward(x)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("during", ["forward", "backward"])
def test_the_step_after_an_error(
    during: str, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = with_functions(Failing, strategy).stages[0]
    streams = streams_for(stage)
    wanted = outcome(stage, streams)
    state = torch.get_rng_state()
    if during == "forward":
        monkeypatch.setattr(Failing, "fails", True)
    with pytest.raises(KeyError):  # noqa: PT012
        loss = sum(out.square().sum() for out in stage(*streams))
        monkeypatch.setattr(Failing, "fails", True)
        loss.backward()
        raise KeyError  # stored activations need no replay
    monkeypatch.setattr(Failing, "fails", False)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    assert not archspec.is_replaying()
    found = outcome(stage, streams)
    assert_same_outputs(found, wanted)
    assert gradient_error(found, wanted) == 0


FAILING = """
import sys
sys.path.insert(0, "tests/compiler")
import archspec
from small_networks import network, streams_for
functions = {"F": [{"linear": "channels"}, "tanh"], "G": [{"linear": "channels"}, "tanh"]}
stage = {"depth": 3, "streams": {"x": "input", "y": "input"}, "functions": functions,
    "update": ["x += F(y) + G(y)"], "output": "x + y", "backward": "checkpoint"}
stage = network(stage).stages[0]
def fail(*_):
    if archspec.is_replaying():
        raise KeyError("no")
stage.layers[1].G.register_forward_pre_hook(fail)
streams = [stream.requires_grad_() for stream in streams_for(stage)]
sum(out.square().sum() for out in stage(*streams)).backward()
"""


def test_a_process_that_fails_in_backward_ends_with_its_traceback() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", FAILING], capture_output=True, text=True, cwd=root)
    assert done.stderr.strip().endswith("KeyError: 'no'")
    assert done.returncode == 1  # not a signal
