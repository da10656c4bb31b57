"""What training changes: the network, its average, the optimizer; on their device."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from lightning_fabric.wrappers import _FabricModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from archspec.training import Train
from runners.optim import build_optimizer


@dataclass(frozen=True)
class Parts:
    """What training changes, and the device and precision that it runs in."""

    fabric: Fabric
    model: nn.Module
    """As built; its weights are those of `wrapped`."""
    wrapped: _FabricModule
    """As Fabric calls it, under autocast."""
    optimizer: Optimizer
    average: AveragedModel | None = None
    """Of the weights over the steps, where the recipe has `ema`."""
    template: nn.Module | None = None
    """Where processes share the weights: the network on the CPU, into which they are gathered."""

    @property
    def bare_optimizer(self) -> Optimizer:
        """As PyTorch has it."""
        found: Optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return found

    @property
    def evaluated(self) -> nn.Module:
        """The network that is validated, tested and kept."""
        return self.model if self.average is None else self.average.module


def set_up(fabric: Fabric, model: nn.Module, recipe: Train) -> Parts:
    """Model and optimizer on their device, as the recipe and the number of processes have it."""
    if recipe.compile:
        model.compile()
    shared = isinstance(fabric.strategy, ModelParallelStrategy)
    template = copy.deepcopy(model) if shared else None
    wrapped = fabric.setup_module(model)
    optimizer: Any = fabric.setup_optimizers(build_optimizer(model, recipe))
    return Parts(fabric, model, wrapped, optimizer, _average(model, recipe), template)


def _average(model: nn.Module, recipe: Train) -> AveragedModel | None:
    if recipe.ema is None:
        return None
    decay = recipe.ema

    @torch.no_grad()
    def step(averages: list[Tensor], weights: list[Tensor], steps: Tensor | int) -> None:
        done = int(average.n_averaged)  # on the CPU; of `steps`, which is a GPU's, one would wait
        kept = min(decay, (1 + done) / (10 + done))
        torch._foreach_lerp_(averages, weights, 1 - kept)

    # Batch statistics are averages already, and are copied.
    average = AveragedModel(model, multi_avg_fn=step)  # type: ignore[arg-type]
    return average.requires_grad_(False)
