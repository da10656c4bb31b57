"""Whether a network with published weights computes what the published model does."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from compiler.base_network import set_progress
from compiler.conversion.namings import HEAD
from compiler.network import Network

SAME = 1e-8
"""In float64, rounding leaves outputs apart by a much smaller share of the largest, and another
activation, norm or number of heads by a larger one."""
SAME_ON_A_GRID = 0.03
"""Where streams are rounded to the grid of exact arithmetic."""


@dataclass(frozen=True)
class Comparison:
    """Outputs of two networks for the same random images, in evaluation, as training begins."""

    apart: float
    """The largest difference of two numbers."""
    largest: float
    """The largest of the model's numbers."""
    tolerance: float

    @property
    def same(self) -> bool:
        """Whether rounding explains the difference. Numbers that are none are not the same."""
        return self.apart <= self.tolerance * self.largest


@torch.no_grad()
def compare(model: nn.Module, network: Network, classifier: str | None = None) -> Comparison:
    """Run copies of both in float64, in evaluation, on two images of a standard normal. Where the
    network's classifier is new, that of the model is called `classifier`, and what comes before the
    two is compared. Raises `RangeError` where values leave the range of exact arithmetic."""
    ours = copy.deepcopy(network) if classifier is None else without(network, HEAD)
    theirs = copy.deepcopy(model) if classifier is None else without(model, classifier)
    set_progress(ours, 0.0)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *network.input, generator=generator, dtype=torch.float64)
    wanted, found = (each.double().eval()(images) for each in (theirs, ours))
    exact = any(stage.facts.fraction_bits is not None for stage in network.stages)
    apart, largest = float((found - wanted).abs().max()), float(wanted.abs().max())
    return Comparison(apart, largest, SAME_ON_A_GRID if exact else SAME)


def without(network: nn.Module, classifier: str) -> nn.Module:
    """A copy of a network that ends before its classifier."""
    headless = copy.deepcopy(network)
    headless.set_submodule(classifier, nn.Identity())
    return headless
