"""Small networks trained on halves of a batch, in many ways, and how far gradients and weights are
from those of one process with the whole batch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from small_networks import BRANCH, CONVOLUTION, additive, network
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import archspec
from compiler.network import Network
from compiler.stage import penalty

Weights = dict[str, Tensor]
Wrapped = Any
Wrap = Callable[[nn.Module], Wrapped]

STEPS = 2
MIX = [{"linear": "channels"}, "tanh"]


def momentum(**gamma: Any) -> dict[str, Any]:
    return {
        "depth": 3,
        "coupling": "momentum_pair",
        "functions": {"F": BRANCH, "G": BRANCH},
        "constants": {"gamma": {"learn": 0.9, "within": [0.5, 0.99], **gamma}},
    }


STAGES: dict[str, dict[str, Any]] = {
    "additive": additive(),
    "momentum": momentum(per="channel"),
    "scalar": momentum(),
    "affine": {
        "depth": 2,
        "coupling": "affine",
        "functions": {"S": MIX, "T": BRANCH, "U": MIX, "V": BRANCH},
    },
    "shared": additive(share=True),
    "maps": {
        "depth": 2,
        "streams": {"x": "input", "y": "input"},
        "functions": {"F": BRANCH, "G": BRANCH},
        "maps": {"A": "actnorm", "W": "invertible_linear"},
        "update": ["x = A(x)", "x += F(y)", "y = W(y)", "y += G(x)"],
        "output": "x + y",
    },
}

STAGES["smooth"] = additive(MIX, BRANCH, smoothness=0.3)
STAGES["started"] = {
    "depth": 2,
    "streams": {"x": "input + B(input)", "y": "C(input, B(input))"},
    "functions": {
        "B": BRANCH,
        "C": ["concat", {"linear": "channels/2"}, "tanh"],
        "F": BRANCH,
        "G": BRANCH,
    },
    "update": ["x += F(y)", "y += G(x)"],
    "output": "x + y",
}
STAGES["results"] = additive(MIX, BRANCH, backward={"reversible": {"stored": 1, "results": 6}})
STAGES["exact"] = {**STAGES["momentum"], "arithmetic": "exact"}
STAGES["exact_maps"] = {**STAGES["maps"], "arithmetic": "exact"}

# Ways to train -----------------------------------------------------------------------------------


def shard(model: nn.Module, **keys: Any) -> Wrapped:
    assert isinstance(model, Network)
    return archspec.shard(model, **keys)


def ddp(model: nn.Module, **keys: Any) -> Wrapped:
    return DistributedDataParallel(model, **keys)


class WithUnused(nn.Module):
    """A network beside a module that takes no part."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.unused = nn.Linear(2, 2, dtype=torch.float64)

    def forward(self, value: Tensor) -> Tensor:
        result: Tensor = self.model(value)
        return result


def whole(model: Wrapped, batches: list[tuple[Tensor, Tensor]]) -> None:
    """One forward and one backward pass."""
    value = torch.cat([value for value, _ in batches])
    wanted = torch.cat([wanted for _, wanted in batches])
    loss(model, value, wanted).backward()


def two_forwards(model: Wrapped, batches: list[tuple[Tensor, Tensor]]) -> None:
    """Two forward passes before one backward pass."""
    first, second = (loss(model, *batch) for batch in batches)
    ((first + second) / 2).backward()


def accumulated(model: Wrapped, batches: list[tuple[Tensor, Tensor]]) -> None:
    """Two backward passes; processes talk in the second."""
    first, second = batches
    with silent(model):
        (loss(model, *first) / 2).backward()
    (loss(model, *second) / 2).backward()


def silent(model: Wrapped) -> AbstractContextManager[None]:
    if isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return silent_shards(model) if isinstance(model, FSDPModule) else nullcontext()


class silent_shards:
    def __init__(self, model: FSDPModule) -> None:
        self.model = model

    def __enter__(self) -> None:
        self.model.set_requires_gradient_sync(False)

    def __exit__(self, *_: object) -> None:
        self.model.set_requires_gradient_sync(True)


def loss(model: Wrapped, value: Tensor, wanted: Tensor) -> Tensor:
    return (model(value) - wanted).square().mean() + penalty(model)


WAYS: dict[str, tuple[Wrap, Callable[..., None]]] = {
    "ddp": (ddp, whole),
    "ddp_static": (lambda m: ddp(m, static_graph=True), whole),
    "ddp_unused": (lambda m: ddp(WithUnused(m), find_unused_parameters=True), whole),
    "ddp_two_forwards": (ddp, two_forwards),
    "ddp_accumulated": (ddp, accumulated),
    "ddp_static_two_forwards": (lambda m: ddp(m, static_graph=True), two_forwards),
    "ddp_unused_two_forwards": (
        lambda m: ddp(WithUnused(m), find_unused_parameters=True),
        two_forwards,
    ),
    "fsdp": (lambda m: shard(m, reshard_after_forward=True), whole),
    "fsdp_kept": (lambda m: shard(m, reshard_after_forward=False), whole),
    "fsdp_two_forwards": (shard, two_forwards),
    "fsdp_kept_two_forwards": (lambda m: shard(m, reshard_after_forward=False), two_forwards),
    "fsdp_accumulated": (shard, accumulated),
}

# Comparing ---------------------------------------------------------------------------------------


def batches_for(input: tuple[int, ...], share: slice) -> list[tuple[Tensor, Tensor]]:
    """This process's part of two batches."""
    generator = torch.Generator().manual_seed(3)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float64)

    return [(draw(4, *input)[share], draw(4, 3)[share]) for _ in range(2)]


def train(model: Wrapped, backward: Callable[..., None], batches: Any) -> Iterator[Weights]:
    """The gradients of the last step, then the weights."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(STEPS):
        optimizer.zero_grad()
        backward(model, batches)
        optimizer.step()
    yield {n: p.grad for n, p in parameters(model) if p.grad is not None}
    yield dict(parameters(model))


def parameters(model: Wrapped) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        if "unused" not in name:
            yield name.replace("module.", "").removeprefix("model."), parameter


def gathered(found: Iterator[Weights]) -> list[Weights]:
    return [{name: full(tensor) for name, tensor in weights.items()} for weights in found]


def full(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


def error(found: list[Weights], wanted: list[Weights]) -> float:
    """The largest difference relative to each tensor's largest element, or to a thousandth of the
    largest of all where a tensor all but vanishes."""
    worst = 0.0
    for some, others in zip(found, wanted, strict=True):
        assert some.keys() == others.keys()
        least = 1e-3 * max(float(tensor.abs().max()) for tensor in others.values())
        for name, tensor in others.items():
            difference = (some[name].view(tensor.shape) - tensor).abs().max()
            worst = max(worst, float(difference / tensor.abs().max().clamp(min=least)))
    return worst


def own_share() -> slice:
    rank = dist.get_rank()
    return slice(2 * rank, 2 * rank + 2)


def compare(stage: dict[str, Any], strategy: str, way: str, **settings: Any) -> Callable[[], float]:
    """A case: the error against one process, stored activations and the whole batch."""

    def run() -> float:
        wrap, backward = WAYS[way]
        model = wrap(network(stage, **settings).set_backward(strategy))
        input = INPUTS.get(next(iter(settings.get("input", {})), ""), (5, 6))
        found = gathered(train(model, backward, batches_for(input, own_share())))
        return error(found, alone(json.dumps((stage, settings)), input))

    return run


@lru_cache
def alone(text: str, input: tuple[int, ...]) -> list[Weights]:
    """What one process finds."""
    stage, settings = json.loads(text)
    model = network(stage, **settings).set_backward("store")
    return gathered(train(model, whole, batches_for(input, slice(None))))


INPUTS = {"image": (2, 8, 8)}
IMAGES = {"input": {"image": [2, 8, 8]}}


def convolutions() -> dict[str, Any]:
    return {
        **additive(CONVOLUTION, CONVOLUTION),
        "transition": [{"conv": {"out": 6}}, "tanh"],
    }
