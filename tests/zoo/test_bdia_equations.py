"""BDIA transformers in training (Zhang, Lewis and Kleijn 2025): numbers against the equations,
written out in plain PyTorch. What they are in evaluation is in test_transformers.py and
test_convert_vit.py."""

from __future__ import annotations

import pytest
import torch
from by_hand import Streams, Weights, assert_stage, shaken
from rev_vit_equations import BASE, CIFAR, DIGITS, Layer, Reference, narrower

import archspec


@pytest.mark.parametrize("progress", [1.0, 0.9])
@pytest.mark.parametrize(
    ("name", "vit"),
    [("bdia_vit_cifar10", CIFAR), ("bdia_vit_digits", DIGITS), ("bdia_vit_b_finetune", BASE)],
)
def test_the_trunk_on_streams_that_differ(name: str, vit: Reference, progress: float) -> None:
    """In floats: the grid is not part of the equations. Gamma is drawn for every sample and layer;
    the fine-tuned network's grows with training."""
    torch.manual_seed(0)
    model = shaken(archspec.build(name, [*narrower(vit), "stages.trunk.arithmetic=float"]))
    model.set_progress(progress)
    stage = model.stages["trunk"]
    assert (stage.backward, len(stage.layers)) == ("reversible", vit.depth - 1)
    draws = stage.draw(torch.empty(3, 1, 1, dtype=torch.float64))
    grows = name.endswith("_finetune")
    gammas = [drawn["sign"] * progress if grows else drawn["gamma"] for drawn in draws]
    assert {abs(value) for gamma in gammas for value in gamma.flatten().tolist()} == {
        0.5 * progress if grows else 0.5
    }

    def layers(w: Weights, streams: Streams) -> Streams:
        """x_{k+1} = gamma x_{k-1} + (1 - gamma) x_k + (1 + gamma) h_k(x_k), where
        h(x) = attention(x) + mlp(x + attention(x))."""
        before, now = streams
        for index, gamma in enumerate(gammas):
            layer = Layer(w, f"stages.trunk.layers.{index}", vit.heads, gamma)
            attended = layer.attention(now)
            change = attended + layer.mlp(now + attended)
            before, now = now, gamma * before + (1 - gamma) * now + (1 + gamma) * change
        return before, now

    assert_stage(model, "trunk", layers, draws)
