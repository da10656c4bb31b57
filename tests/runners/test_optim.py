"""The learning rate at each step, and which parameters decay."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from archspec.training import AdamW, Sgd, Steps, Train
from runners.optim import build_optimizer, learning_rate, parameter_groups

RECIPE = Train(epochs=10, batch=4, learning_rate=1.0, warmup=2, final_learning_rate=0.1)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 1 / 8),
        (3, 4 / 8),
        (7, 1.0),  # the last step of the warm-up
        (8, 1.0),
        (24, 0.55),  # half-way down
        (40, 0.1),  # one past the last
    ],
)
def test_warm_up_and_cosine(step: int, expected: float) -> None:
    assert learning_rate(RECIPE, step, 4) == pytest.approx(expected)


def test_steps_divide_the_rate() -> None:
    recipe = RECIPE.model_copy(update={"schedule": Steps(at=(5, 7.5), factor=0.2)})
    rates = [learning_rate(recipe, step, 4) for step in (7, 8, 19, 20, 29, 30, 39)]
    assert rates == pytest.approx([1, 1, 1, 0.2, 0.2, 0.04, 0.04])


def test_the_rate_only_falls_after_the_warm_up() -> None:
    rates = [learning_rate(RECIPE, step, 4) for step in range(8, 40)]
    assert rates == sorted(rates, reverse=True)
    assert min(rates) > 0.1


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 10.0, 99.0])
def test_any_warm_up_gives_positive_finite_rates(warmup: float) -> None:
    recipe = RECIPE.model_copy(update={"warmup": warmup, "final_learning_rate": 0.0})
    rates = [learning_rate(recipe, step, 3) for step in range(30)]
    assert all(math.isfinite(rate) and 0 < rate <= 1 for rate in rates)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(16, 8))
        self.conv = nn.Conv2d(1, 8, 2)
        self.norm = nn.LayerNorm(8)
        self.linear = nn.Linear(8, 8)
        self.layer_scale = nn.Parameter(torch.ones(8))
        self.gamma = nn.Parameter(torch.tensor(0.9))
        self.frozen = nn.Parameter(torch.zeros(8, 8), requires_grad=False)


def test_only_matrices_kernels_and_embeddings_decay() -> None:
    network = Network()
    names = {parameter: name for name, parameter in network.named_parameters()}
    decayed, rest = parameter_groups(network, 0.05)
    assert decayed["weight_decay"] == 0.05
    assert rest["weight_decay"] == 0.0
    assert {names[p] for p in decayed["params"]} == {"embedding", "conv.weight", "linear.weight"}
    assert {names[p] for p in rest["params"]} == {
        "conv.bias", "norm.weight", "norm.bias", "linear.bias", "layer_scale", "gamma"
    }  # fmt: skip


def test_optimizers_have_the_recipes_settings() -> None:
    adamw = RECIPE.model_copy(update={"optimizer": AdamW(betas=(0.8, 0.9), eps=1e-6)})
    group = build_optimizer(Network(), adamw).param_groups[0]
    assert (group["betas"], group["eps"], group["lr"]) == ((0.8, 0.9), 1e-6, 1.0)
    sgd = RECIPE.model_copy(update={"optimizer": Sgd(momentum=0.7, nesterov=True)})
    group = build_optimizer(Network(), sgd).param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0.7, True)
