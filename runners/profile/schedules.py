"""How a network may come by its activations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from compiler.base_stage import BaseStage
from compiler.engine.steps import calls_of
from compiler.network import Network
from compiler.stage import Stage


@dataclass(frozen=True)
class Kept:
    """What calls of functions keep, the last ones of a network first."""

    stored: int = 0
    """So many store their activations."""
    results: int = 0
    """So many keep their results, those that store all counted."""

    def parted(self, calls: int) -> tuple[Kept, Kept]:
        """Those among the last so many calls, and those before them."""
        last = Kept(min(self.stored, calls), min(self.results, calls))
        return last, Kept(self.stored - last.stored, self.results - last.results)


def keeping(more: int, calls: int) -> Kept:
    """What so many calls keep, in the order in which it pays: the activations of the last one cost
    nothing, since they are let go before others are computed again; then the results of all, which
    are the smallest for what they spare; then the activations of all. `more` is from 0 to
    `most_kept(calls)`."""
    if more <= calls:
        return Kept(min(more, 1), more)
    return Kept(more - calls + 1, calls)


def most_kept(calls: int) -> int:
    """With which number so many calls store all."""
    return max(0, 2 * calls - 1)


@dataclass(frozen=True)
class Schedule:
    """One strategy for all stages that it is possible for; the others keep that of their spec."""

    name: str
    strategy: str
    root: bool = False
    """Checkpoints lie about the square root of the depth apart, and else before every layer."""
    kept: Kept = Kept()

    def apply(self, network: Network) -> None:
        """Let a network come by its activations in this way."""
        left = self.kept
        for stage in reversed(list(network.stages)):
            leaves = self.strategy == "reversible" and bool(stage.facts.obstacles)
            strategy = stage.plan.backward if leaves else self.strategy
            if strategy == "store":
                stage.set_backward(strategy)
                continue
            own, left = left.parted(count_calls(stage))
            if leaves:  # no call keeps less than its spec says
                stored = max(own.stored, stage.facts.stored)
                results = max(own.results, stage.facts.results)
                stage.set_backward(strategy, stored=stored, results=results)
                continue
            every = self._every(stage)
            stage.set_backward(strategy, every=every, stored=own.stored, results=own.results)

    def _every(self, stage: BaseStage) -> int | None:
        if self.strategy != "checkpoint":
            return None
        return round(math.sqrt(stage.facts.depth)) if self.root else 1


STORE = Schedule("stored", "store")
CHECKPOINT = Schedule("checkpoint", "checkpoint")
ROOT = Schedule("checkpoint √", "checkpoint", root=True)
REVERSIBLE = Schedule("reversible", "reversible")
SCHEDULES = {"store": STORE, "checkpoint": CHECKPOINT, "root": ROOT, "reversible": REVERSIBLE}
"""By the names that `archspec profile --strategies` takes."""


def schedules_of(network: Network, names: Sequence[str]) -> list[Schedule]:
    """Those of some names that a network can do."""
    can_reverse = any(not stage.facts.obstacles for stage in network.stages)
    return [SCHEDULES[name] for name in names if name != "reversible" or can_reverse]


def count_calls(stage: BaseStage) -> int:
    """Of functions, in all layers of a stage."""
    return len(calls_of(stage.program()))


def all_calls(stages: Iterable[BaseStage]) -> int:
    """The calls of functions in some stages, those left out that store their activations anyway."""
    return sum(count_calls(stage) for stage in stages if stage.backward != "store")


class Way(Protocol):
    """A schedule of any kind."""

    def apply(self, network: Network) -> None:
        """Let a network come by its activations in this way."""


@dataclass(frozen=True)
class AtStart:
    """Another schedule, while stages that are reversed from some progress of training on are still
    checkpointed."""

    later: Way

    def apply(self, network: Network) -> None:
        """Let a network come by its activations in this way."""
        self.later.apply(network)
        for stage in network.stages:
            if stage.plan.invertible_from > 0 and stage.backward == "reversible":
                stage.backward = "checkpoint"


def phases(network: Network, schedule: Way) -> list[Way]:
    """A schedule as it is at the start of training and at its end, where that differs."""
    differs = any(stage.plan.invertible_from > 0 for stage in network.stages)
    return [AtStart(schedule), schedule] if differs else [schedule]


@dataclass(frozen=True)
class Planned:
    """What the spec says, and in the stages that are planned by a budget, what calls keep."""

    kept: Kept = Kept()

    def apply(self, network: Network) -> None:
        """Let a network come by its activations in this way."""
        left = self.kept
        for stage in reversed(list(network.stages)):
            if stage.plan.budget is None:
                stage.set_backward(stage.plan.backward)
                continue
            own, left = left.parted(count_calls(stage))
            stage.set_backward(stage.plan.backward, stored=own.stored, results=own.results)


@dataclass(frozen=True)
class AsWritten(Schedule):
    """What the spec says; `kept` is what its budget comes to."""

    def apply(self, network: Network) -> None:
        """Let a network come by its activations in this way."""
        Planned(self.kept).apply(network)


def planned_stages(network: Network) -> list[Stage]:
    """Those that are planned by a budget."""
    return [stage for stage in network.stages if stage.plan.budget is not None]
