"""How a network may come by its activations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from compiler.base_network import BaseNetwork
from compiler.base_stage import BaseStage
from compiler.network import Network
from compiler.stage import Stage


@dataclass(frozen=True)
class Schedule:
    """One strategy for all stages that it is possible for; the others keep that of their spec."""

    name: str
    strategy: str
    root: bool = False
    """Checkpoints lie about the square root of the depth apart, and else before every layer."""
    stored: int = 0
    """So many calls of functions store their activations, the last ones of the network."""

    def apply(self, network: BaseNetwork) -> None:
        """Let a network come by its activations in this way."""
        left = self.stored
        for stage in reversed(list(network.stages)):
            own = stage.facts.obstacles and self.strategy == "reversible"
            strategy = stage.backward if own else self.strategy
            if strategy == "store":
                stage.set_backward(strategy)
                continue
            calls = calls_of(stage)
            stage.set_backward(
                strategy, every=self._every(stage, strategy), stored=min(left, calls)
            )
            left -= min(left, calls)

    def _every(self, stage: BaseStage, strategy: str) -> int | None:
        if strategy != "checkpoint":
            return None
        return round(math.sqrt(stage.facts.depth)) if self.root else 1


STORE = Schedule("stored", "store")
CHECKPOINT = Schedule("checkpoint", "checkpoint")
ROOT = Schedule("checkpoint √", "checkpoint", root=True)
REVERSIBLE = Schedule("reversible", "reversible")
SCHEDULES = {"store": STORE, "checkpoint": CHECKPOINT, "root": ROOT, "reversible": REVERSIBLE}
"""By the names that `archspec profile --strategies` takes."""


def schedules_of(network: BaseNetwork, names: Sequence[str]) -> list[Schedule]:
    """Those of some names that a network can do."""
    can_reverse = any(not stage.facts.obstacles for stage in network.stages)
    return [SCHEDULES[name] for name in names if name != "reversible" or can_reverse]


def calls_of(stage: BaseStage) -> int:
    """The calls of functions in all layers of a stage."""
    return sum(len(getattr(step, "calls", ())) for layer in stage.program() for step in layer.steps)


def all_calls(stages: Iterable[BaseStage]) -> int:
    """The calls of functions in some stages, those left out that store their activations anyway."""
    return sum(calls_of(stage) for stage in stages if stage.backward != "store")


class Way(Protocol):
    """A schedule of any kind."""

    @property
    def stored(self) -> int:
        """So many calls of functions store their activations, the last ones."""

    def apply(self, network: Network) -> None:
        """Let a network come by its activations in this way."""


@dataclass(frozen=True)
class Planned:
    """What the spec says, and of the stages that are planned by a budget the last calls stored."""

    stored: int = 0

    def apply(self, network: Network) -> None:
        """Let a network come by its activations in this way."""
        left = self.stored
        for stage in reversed(planned_stages(network)):
            taken = min(left, calls_of(stage))
            stage.set_backward(stage.plan.backward, stored=taken)
            left -= taken


def planned_stages(network: Network) -> list[Stage]:
    """Those that are planned by a budget."""
    return [stage for stage in network.stages if stage.plan.budget is not None]
