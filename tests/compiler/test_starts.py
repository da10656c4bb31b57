"""Functions that streams start from: computed again in the backward pass, as layers are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_networks import network
from torch import Tensor, nn

from compiler.memory import LiveBytes
from compiler.network import Network

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


def tokens() -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(3, 5, 6, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("strategy", ["checkpoint", "reversible"])
def test_functions_that_streams_start_from_are_computed_again(strategy: str) -> None:
    """Their activations are not kept; what they draw is drawn again."""
    model = network(STARTED)

    def gradients(backward: str) -> tuple[list[Tensor], int]:
        model.set_backward(backward)
        torch.manual_seed(3)
        given = tokens().requires_grad_()
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
    with pytest.raises(RuntimeError, match="residual function B changes one of its buffers"):
        model.stages[0].split(tokens())


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


# What a replay must do again, and what it must not -----------------------------------------------

IMAGES: dict[str, Any] = {
    "depth": 2,
    "streams": {"x": "input + B(input)", "y": "V(B(input))"},
    "functions": {
        "B": [{"conv": {}}, "batch_norm", "relu", {"conv": {}}],
        "V": ["batch_norm", "tanh"],
        "F": [{"conv": {}}, "tanh"],
        "G": [{"conv": {}}, "tanh"],
    },
    "update": ["x += F(y)", "y += G(x)"],
    "output": "x + y",
}
REPLAYED = ["checkpoint", "reversible"]


def on_images(strategy: str, dtype: torch.dtype = torch.float64) -> Network:
    return network(IMAGES, dtype, input={"image": [2, 6, 6]}).set_backward(strategy)


def images(dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(4, 2, 6, 6, generator=generator, dtype=torch.float64).to(dtype)


def started(model: Network, value: Tensor) -> list[Tensor]:
    """The streams that a stage starts with, and the gradients of what they come from."""
    given = value.clone().requires_grad_()
    torch.manual_seed(3)
    streams = model.stages[0].split(given)
    loss = torch.stack([stream.square().sum() for stream in streams]).sum()
    wanted = [given, *(p for p in model.stages[0].starts.parameters() if p.requires_grad)]
    return [*streams, *torch.autograd.grad(loss, wanted)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("strategy", REPLAYED)
def test_batch_normalisation_counts_once(strategy: str, training: bool) -> None:
    found, wanted = (on_images(backward).train(training) for backward in (strategy, "store"))
    for _ in range(2):
        assert all(map(torch.equal, started(found, images()), started(wanted, images())))
    buffers = dict(wanted.named_buffers())
    assert {n for n, b in found.named_buffers() if not torch.equal(b, buffers[n])} == set()
    counts = [b for n, b in found.stages[0].starts.named_buffers() if "num_batches" in n]
    # `B` is called twice.
    assert [int(count) for count in counts] == ([4, 2] if training else [0, 0])


@pytest.mark.parametrize("strategy", REPLAYED)
def test_autocast_is_entered_again(strategy: str) -> None:
    """Backward runs outside of it; streams stay in single precision."""
    dtypes = []

    def under_autocast(backward: str) -> list[Tensor]:
        model, given = on_images(backward, torch.float32), images(torch.float32).requires_grad_()
        hook = model.stages[0].starts["B"].register_forward_hook
        hook(lambda module, inputs, output: dtypes.append(output.dtype))
        with torch.autocast("cpu", torch.bfloat16):
            streams = model.stages[0].split(given)
        loss = torch.stack([stream.square().sum() for stream in streams]).sum()
        wanted = [given, *model.stages[0].starts.parameters()]
        return [*streams, *torch.autograd.grad(loss, wanted)]

    found, wanted = under_autocast(strategy), under_autocast("store")
    assert all(map(torch.equal, found, wanted))
    assert {stream.dtype for stream in found[:2]} == {torch.float32}
    assert set(dtypes) == {torch.bfloat16}


@pytest.mark.parametrize("frozen", ["B", "V", "BV"])
@pytest.mark.parametrize("strategy", REPLAYED)
def test_frozen_functions(strategy: str, frozen: str) -> None:
    """Gradients flow through them, and past them."""
    models = [on_images(strategy), on_images("store")]
    for model in models:
        for name in frozen:
            model.stages[0].starts[name].requires_grad_(False)
    found, wanted = (started(model, images()) for model in models)
    assert len(found) == len(wanted)
    assert all(map(torch.equal, found, wanted))
    gradients = []
    for model in models:
        model(images()).square().sum().backward()  # whose input needs no gradient
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for name, gradient in gradients[1].items():
        other = gradients[0][name]
        is_frozen = any(f".starts.{function}." in name for function in frozen)
        assert (other is None) == (gradient is None) == is_frozen, name
        if other is not None and gradient is not None:
            torch.testing.assert_close(other, gradient, rtol=1e-9, atol=1e-11)


def test_all_that_is_frozen_keeps_nothing() -> None:
    model = on_images("checkpoint").requires_grad_(False)
    streams = model.stages[0].split(images())
    assert not any(stream.requires_grad for stream in streams)


@pytest.mark.parametrize("strategy", REPLAYED)
def test_gradients_of_gradients(strategy: str) -> None:
    def second(backward: str) -> list[Tensor]:
        model, given = network(STARTED).set_backward(backward), tokens().requires_grad_()
        streams = model.stages[0].split(given)
        loss = torch.stack([stream.square().sum() for stream in streams]).sum()
        (first,) = torch.autograd.grad(loss, given, create_graph=True)
        wanted = [given, *model.stages[0].starts.parameters()]
        return [first, *torch.autograd.grad(first.square().sum(), wanted, allow_unused=True)]

    assert all(map(torch.equal, second(strategy), second("store")))


@pytest.mark.parametrize("strategy", REPLAYED)
def test_a_graph_is_used_again(strategy: str) -> None:
    model, given = network(STARTED).set_backward(strategy), tokens().requires_grad_()
    streams = model.stages[0].split(given)
    loss = torch.stack([stream.square().sum() for stream in streams]).sum()
    wanted = [given, *model.stages[0].starts.parameters()]
    first = torch.autograd.grad(loss, wanted, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(loss, wanted)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("strategy", REPLAYED)
def test_under_torch_compile(strategy: str) -> None:
    torch._dynamo.reset()

    def gradients(run: Any, model: Network) -> list[Tensor]:
        torch.manual_seed(3)
        return [*torch.autograd.grad(run(tokens()).square().sum(), list(model.parameters()))]

    found, wanted = network(STARTED).set_backward(strategy), network(STARTED).set_backward("store")
    compiled = torch.compile(found, backend="aot_eager")
    for one, other in zip(gradients(compiled, found), gradients(wanted, wanted), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
