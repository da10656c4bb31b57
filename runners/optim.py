"""The optimizer of a recipe and its learning rate at each step."""

from __future__ import annotations

import math
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from archspec import training


def learning_rate(recipe: training.Train, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step, counted from 0 over the whole run.

    It rises linearly over the warm-up and reaches its height at the warm-up's last step. A cosine
    would meet `final_learning_rate` one step after the last.
    """
    # At most half of the run, so that one cut short by `train.epochs` still falls.
    warmup = round(min(recipe.warmup, recipe.epochs / 2) * steps_per_epoch)
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    if isinstance(recipe.schedule, training.Steps):
        passed = sum(step >= round(epoch * steps_per_epoch) for epoch in recipe.schedule.at)
        return recipe.learning_rate * float(recipe.schedule.factor**passed)
    fallen = (step - warmup) / (recipe.epochs * steps_per_epoch - warmup)
    height = recipe.learning_rate - recipe.final_learning_rate
    return recipe.final_learning_rate + height * (1 + math.cos(math.pi * fallen)) / 2


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters, those that decay first: matrices, kernels, position embeddings.

    Biases, norms, layer scales and learned coefficients do not decay: towards zero is no
    simpler a network for them.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trainable if p.ndim > 1]
    rest = [p for p in trainable if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, recipe: training.Train) -> Optimizer:
    """The optimizer that a recipe names."""
    groups = parameter_groups(model, recipe.weight_decay)
    # One kernel for all parameters: a quarter of a small network's step otherwise. Fused optimizers
    # undo the scaling of fp16 gradients themselves, out of the clipping's sight.
    fused = recipe.precision != "fp16"
    setting = recipe.optimizer
    if isinstance(setting, training.AdamW):
        first, second = setting.betas
        return AdamW(groups, recipe.learning_rate, (first, second), setting.eps, fused=fused)
    return SGD(
        groups,
        recipe.learning_rate,
        momentum=setting.momentum,
        nesterov=setting.nesterov,
        fused=fused,
    )


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Give every group the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
