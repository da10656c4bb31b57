"""What a network costs to train and to test: operations, and bytes of live tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from archspec.loading import Loaded
from archspec.training import Train
from compiler.catalogue import entry
from compiler.memory import LiveBytes
from compiler.network import Network, build
from compiler.plan import NetworkPlan
from compiler.resolve import resolve
from runners.optim import build_optimizer
from runners.profile.step import DTYPES, Side, loss_like


@dataclass(frozen=True)
class Usage:
    """Bytes of live tensors: the most, and the mean over operations."""

    peak: int
    average: int


@dataclass(frozen=True)
class Costs:
    """Of one network, at the batch that it is trained with."""

    parameters: int
    macs: int | None
    """Of one input, forward."""
    training: Usage | None
    """Of a step: weights, gradients, the optimizer's state, activations of a part of the batch,
    where it is taken in parts; without an average of the weights. None where values that
    are not there are asked for, as exact arithmetic does and modules of the user's own may."""
    testing: Usage | None
    """Of a batch in evaluation."""


def costs(loaded: Loaded, recipe: Train) -> Costs:
    """Count what a spec costs, on tensors that hold nothing. Raises `SpecError`."""
    known = entry(loaded)
    try:
        training, testing = _usage(resolve(loaded), recipe)
    except (RuntimeError, NotImplementedError, TypeError):  # fake tensors have no values to give
        return Costs(known.parameters, known.macs, None, None)
    return Costs(known.parameters, known.macs, training, testing)


def _usage(plan: NetworkPlan, recipe: Train) -> tuple[Usage, Usage]:
    """A second training step, when gradients and the optimizer's state are there, and a test."""
    with torch.device("meta"):
        network = build(plan).train()
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake, torch.random.fork_rng(devices=[]), LiveBytes() as live:
        network.to_empty(device="cpu")
        for stage in network.stages:
            if stage.backward == "reversible" and stage.facts.invertible_from > 0:
                stage.backward = "checkpoint"  # as it begins, which takes more
        optimizer = build_optimizer(network, recipe)
        count = math.ceil(recipe.batch / recipe.accumulate)
        inputs = torch.empty(count, *plan.input.sizes)
        side = {each.name: torch.empty(count, *each.shape.sizes) for each in plan.side}
        for _ in range(2):
            live.restart()
            _step(network, optimizer, inputs, side, recipe)
        training = Usage(live.peak, live.average)
        optimizer.zero_grad()
        del optimizer
        live.restart()
        with torch.no_grad():
            network.eval()(inputs, **side)
        return training, Usage(live.peak, live.average)


def _step(
    network: Network,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    side: Side,
    recipe: Train,
) -> None:
    dtype = DTYPES.get(recipe.precision)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        loss = loss_like(network.plan, network(inputs, **side), recipe)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad()
