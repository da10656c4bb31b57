"""Functions that streams start from: computed again in the backward pass, as layers are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_networks import network
from torch import Tensor, nn

from compiler.memory import LiveBytes

STARTED: dict[str, Any] = {
    "depth": 3,
    "streams": {"x": "input + B(input)", "v": "V(input, B(input))"},
    "functions": {
        "B": ["layer_norm", {"mlp": {"ratio": 2, "dropout": 0.3}}],
        "V": ["concat", {"linear": "channels/2"}, "tanh", {"drop_path": 0.4}],
        "F": ["layer_norm", {"mlp": 1}],
    },
    "update": ["v = 0.9*v + 0.1*F(x)", "x += v"],
    "output": "x",
}


@pytest.mark.parametrize("strategy", ["checkpoint", "reversible"])
def test_functions_that_streams_start_from_are_computed_again(strategy: str) -> None:
    """Their activations are not kept; what they draw is drawn again."""
    model = network(STARTED)
    tokens = torch.randn(3, 5, 6, dtype=torch.float64)

    def gradients(backward: str) -> tuple[list[Tensor], int]:
        model.set_backward(backward)
        torch.manual_seed(3)
        given = tokens.clone().requires_grad_()
        with LiveBytes() as live:
            streams = model.stages[0].split(given)
            kept = live.now
        loss = sum(stream.square().sum() for stream in streams)
        assert isinstance(loss, Tensor)
        wanted = [given, *model.stages[0].starts.parameters()]
        return [*torch.autograd.grad(loss, wanted)], kept

    stored, most = gradients("store")
    again, least = gradients(strategy)
    assert all(map(torch.equal, again, stored))
    assert least < most / 1.5


class Counting(nn.Module):
    """Changes a buffer in every call, as power iterations do."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, value: Tensor) -> Tensor:
        self.calls.add_(1)
        return value.sin()


def test_a_start_that_cannot_be_computed_again_is_named() -> None:
    model = network(STARTED)
    model.stages[0].starts["B"].add_module("counting", Counting())
    model.stages[0].starts["B"].takes = (*model.stages[0].starts["B"].takes, 0)
    tokens = torch.randn(3, 5, 6, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="residual function B changes one of its buffers"):
        model.stages[0].split(tokens)


HALF = {
    **STARTED,
    "constants": {"gamma": "0.2 + 0.7*progress"},
    "update": ["v = gamma*v + (1 - gamma)*F(x)", "x += v"],
    "backward": {"reversible": {"from": 0.5}},
}


@pytest.mark.parametrize("progress", [0.0, 0.4, 0.6])
def test_half_precision_is_refused_before_reversing_begins(progress: float) -> None:
    """And not in the middle of a training."""
    model = network(HALF, dtype=torch.bfloat16)
    model.set_progress(progress)
    with pytest.raises(RuntimeError, match="half precision"):
        model(torch.randn(3, 5, 6, dtype=torch.bfloat16))
