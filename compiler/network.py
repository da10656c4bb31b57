"""A whole network as a module."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from compiler.functions import build_layers
from compiler.plan import NetworkPlan
from compiler.stage import Stage, check_strategy


class Stages(nn.Module):
    """The stages of a network, by name or by number."""

    def __init__(self, stages: dict[str, Stage]) -> None:
        super().__init__()
        # Set directly: a stage may bear the name of one of Module's own methods.
        self._modules.update(stages)

    def __getitem__(self, key: str | int) -> Stage:
        name = list(self._modules)[key] if isinstance(key, int) else key
        stage = self._modules[name]
        assert isinstance(stage, Stage)
        return stage

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Stage]:
        return (self[name] for name in self._modules)


class Network(nn.Module):
    """stem → stages → head: inputs (B, …) as the spec says → outputs (B, classes)."""

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        self.plan = plan
        self.stem = build_layers(plan.stem)
        self.stages = Stages({stage.name: Stage(stage, plan.classes) for stage in plan.stages})
        self.head = build_layers(plan.head)

    def forward(self, value: Tensor) -> Tensor:
        """The network's output for a batch."""
        value = self.stem(value)
        for stage in self.stages:
            value = stage.merge(*stage(*stage.split(value)))
        result: Tensor = self.head(value)
        return result

    def set_backward(self, backward: str) -> Network:
        """Let every stage come by its activations in this way: "reversible", "checkpoint" or
        "store". Weights stay as they are. Raises ValueError where a stage cannot."""
        strategies = [check_strategy(backward, stage.plan) for stage in self.stages]
        for stage, strategy in zip(self.stages, strategies, strict=True):
            stage.backward = strategy
        return self


def build(plan: NetworkPlan) -> Network:
    """The modules of a plan, freshly initialised from torch's global generator."""
    return Network(plan)
