"""A whole network as a module."""

from __future__ import annotations

from torch import Tensor

from compiler.base_network import BaseNetwork, Stages
from compiler.functions import build_layers
from compiler.plan import NetworkPlan
from compiler.stage import Stage, penalty


class Network(BaseNetwork):
    """A network whose program is a plan."""

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        self.plan = plan
        self.input = plan.input.sizes
        self.side = {side.name: side.shape.sizes for side in plan.side}
        self.stem = build_layers(plan.stem)
        self.stages = Stages({stage.name: Stage(stage, plan.sizes) for stage in plan.stages})
        self.head = build_layers(plan.head)

    def penalty(self) -> Tensor:
        """What training adds to the loss, (), 0 without `smoothness` in a stage."""
        return penalty(self)


def build(plan: NetworkPlan) -> Network:
    """The modules of a plan, freshly initialised from torch's global generator."""
    from compiler.flow import Flow  # which is a network

    return Network(plan) if plan.prior is None else Flow(plan)
