"""What every network does: stem, stages one after another, head.

This file imports torch and what stages are made of: `archspec build --emit` writes it out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from compiler.base_stage import BaseStage
from compiler.facts import check_checkpoints, check_counts, check_progress, check_strategy
from compiler.stage_inputs import check_side


class Stages(nn.Module):
    """The stages of a network, by name or by number."""

    def __init__(self, stages: Mapping[str, BaseStage]) -> None:
        super().__init__()
        # Set directly: a stage may bear the name of one of Module's own methods.
        self._modules.update(stages)

    def __getitem__(self, key: str | int) -> Any:
        name = list(self._modules)[key] if isinstance(key, int) else key
        return self._modules[name]

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Any]:
        return (self[name] for name in self._modules)


class BaseNetwork(nn.Module):
    """stem → stages → head: inputs (B, …) as the spec says → outputs (B, classes)."""

    stem: nn.Module
    stages: Stages
    head: nn.Module
    input: tuple[int, ...]
    """The sizes of one sample."""
    side: Mapping[str, tuple[int, ...]]
    """The sizes of the side inputs of one sample, by name."""

    def forward(self, value: Tensor, **side: Tensor) -> Tensor:
        """The network's output for a batch. Side inputs are given by name. Raises ValueError for
        inputs of another size, and what `check_side` raises."""
        result: Tensor = self.head(self.body(value, **side))
        return result

    def body(self, value: Tensor, **side: Tensor) -> Tensor:
        """The network's input (B, …) → what reaches its head (B, …). Raises as `forward` does."""
        self.check(value, side)
        value = self.stem(value)
        for stage in self.stages:
            read = {name: side[name] for name in stage.facts.side}
            value = stage.merge(*stage(*stage.split(value), **read))
        return value

    def check(self, value: Tensor, side: Mapping[str, Tensor]) -> None:
        """Raises ValueError for inputs of another size, and what `check_side` raises."""
        if tuple(value.shape[1:]) != self.input:
            found, wanted = tuple(value.shape), ", ".join(map(str, self.input))
            raise ValueError(f"this network takes (batch, {wanted}), found {found}")
        check_side(side, self.side, value.shape[0], "this network")

    def set_backward(
        self,
        backward: str,
        *,
        every: int | None = None,
        slots: int | None = None,
        stored: int | None = None,
        results: int | None = None,
    ) -> Any:
        """Let every stage come by its activations in this way: "reversible", "checkpoint" or
        "store". `every` and `slots` are a schedule for "checkpoint"; `stored` and `results` say
        how many calls of each stage store their activations, or keep their results, all the same:
        as `BaseStage.set_backward` has them. Weights stay as they are. Raises ValueError where
        a stage cannot."""
        check_checkpoints(backward, every, slots)
        check_counts(backward, stored, results)
        for stage in self.stages:
            check_strategy(backward, stage.facts)
        for stage in self.stages:
            stage.set_backward(backward, every=every, slots=slots, stored=stored, results=results)
        return self

    def set_progress(self, progress: float) -> None:
        """Say how far training is, from 0 to 1, to stages whose coefficients depend on it. Raises
        ValueError outside that range."""
        set_progress(self, progress)


def set_progress(model: nn.Module, progress: float) -> None:
    """Say how far training is, from 0 to 1, to the stages in `model` whose coefficients depend on
    it. Raises ValueError outside that range."""
    check_progress(progress)
    for stage in model.modules():
        if isinstance(stage, BaseStage):
            stage.set_progress(progress)
