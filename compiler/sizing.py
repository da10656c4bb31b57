"""How large a network is: parameters, and MACs of one input, with nothing of it allocated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from archspec.shapes import Shape
from compiler.canonical import lift_calls
from compiler.catalogue import Size
from compiler.counting import costs, has_user_modules, parameters
from compiler.network import Network, build
from compiler.plan import (
    Call,
    FunctionPlan,
    LayerPlan,
    Mapped,
    NetworkPlan,
    Permutation,
)
from compiler.stage import Functions, Stage


def size_of(plan: NetworkPlan) -> Size:
    """Count the network of a plan on the meta device."""
    with torch.device("meta"):
        network = build(plan).eval()
    return Size(parameters(network), _macs(plan, network))


def _macs(plan: NetworkPlan, network: Network) -> int | None:
    """The MACs of a network on the meta device: those of its functions, each run once, and not in
    every layer."""
    if has_user_modules(plan) or not all(map(_alike, network.stages)):
        return _sum(cost.macs for cost in costs(plan).values())
    stem, head = _of_list(network.stem, plan.stem), _of_list(network.head, plan.head)
    return stem + sum(map(_of_stage, network.stages)) + head


def _alike(stage: Stage) -> bool:
    """Whether all layers of a stage cost the same, which is that of their functions alone."""
    shapes = {tuple(p.shape for p in layer.parameters()) for layer in stage.layers}
    return len(shapes) == 1 and not stage.plan.maps


def _of_stage(stage: Stage) -> int:
    plan = stage.plan
    starts = [call for stream in plan.streams for call in lift_calls(stream.start)[1]]
    first = _of_calls(starts, plan.start_functions, dict(stage.starts))
    updates = (step for step in plan.steps if not isinstance(step, (Permutation, Mapped)))
    holder = stage.shared if plan.share else stage.layers[0]
    assert isinstance(holder, Functions)
    calls = (call for step in updates for call in step.calls)
    layer = _of_calls(calls, plan.functions, holder.by_name())
    return _of_list(stage.transition, plan.transition) + first + plan.depth * layer


def _of_calls(
    calls: Iterable[Call], plans: Iterable[FunctionPlan], modules: Mapping[str, nn.Module]
) -> int:
    cost = {plan.name: _run(modules[plan.name], plan.arguments) for plan in plans}
    return sum(cost[call.function] for call in calls)


def _of_list(module: nn.Module, plans: Sequence[LayerPlan]) -> int:
    return _run(module, plans[0].before) if plans else 0


def _run(module: nn.Module, shapes: Iterable[Shape]) -> int:
    """The MACs of a module for one input."""
    arguments = [torch.empty(1, *shape.sizes, device="meta") for shape in shapes]
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        module(*arguments)
    total: int = flops.get_total_flops() // 2  # which counts a multiply and an add as two
    return total


def _sum(counts: Iterable[int | None]) -> int | None:
    found = list(counts)
    known = [count for count in found if count is not None]
    return sum(known) if len(known) == len(found) else None
