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


def parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Trainable parameters by whether they decay, and by the share of the learning rate that their
    layer has, which stands in `share`.

    Matrices, kernels and position embeddings decay. Biases, norms, layer scales and learned
    coefficients do not: towards zero is no simpler a network for them.
    """
    heights = layer_heights(model) if layer_decay < 1 else {}
    top = max(heights.values(), default=0)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            share = layer_decay ** (top - heights.get(name, top))
            groups.setdefault((share, parameter.ndim > 1), []).append(parameter)
    return [
        {"params": found, "weight_decay": weight_decay if decays else 0.0, "share": share}
        for (share, decays), found in sorted(groups.items(), key=lambda item: item[0], reverse=True)
    ]


def layer_heights(model: nn.Module) -> dict[str, int]:
    """How many layers stand below each parameter, by name: 0 for the stem's, the number of all
    layers and one more for the head's. A stage's own are as high as its first layer."""
    heights: dict[str, int] = {}
    begun = dict.fromkeys(stage_names(model), 0)
    height = 1
    for stage in begun:
        begun[stage] = height
        height += len(model.get_submodule(f"stages.{stage}.layers"))  # type: ignore[arg-type]
    for name, _ in model.named_parameters():
        part, *rest = name.split(".")
        if part == "stages":
            layer = int(rest[2]) if rest[1] == "layers" else 0
            heights[name] = begun[rest[0]] + layer
        else:
            heights[name] = 0 if part == "stem" else height
    return heights


def stage_names(model: nn.Module) -> list[str]:
    """Of a network, from its input on; none for another module."""
    stages = getattr(model, "stages", None)
    return [name for name, _ in stages.named_children()] if isinstance(stages, nn.Module) else []


def build_optimizer(model: nn.Module, recipe: training.Train) -> Optimizer:
    """The optimizer that a recipe names."""
    groups = parameter_groups(model, recipe.weight_decay, recipe.layer_decay)
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
        fused=fused and recipe.parallel == "ddp",  # PyTorch has none for weights that are shared
    )


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Give every group its share of a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]
