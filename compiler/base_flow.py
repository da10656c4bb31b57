"""What every normalising flow does: data to latents that have a simple density, and back.

Data go through the stages to *latents* that have a simple density, the prior. A stage's output
goes on to the next; streams that the output leaves out are latents from there on (the multi-scale
architecture of Dinh et al. 2017), and so is the last output. The log-determinant is one of the
streams, so that none of this stores activations.

This file imports torch, networks and priors: `archspec build --emit` writes it out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from compiler.base_network import BaseNetwork
from compiler.base_stage import BaseStage
from compiler.engine import Map
from compiler.facts import Parts
from compiler.functions.maps import ActNorm
from compiler.information import Information
from compiler.priors import Prior

NOTHING: Mapping[str, Information] = MappingProxyType({})


@dataclass(frozen=True)
class Encoded:
    """What a flow makes of data."""

    latents: tuple[Tensor, ...]
    """The streams that stages leave behind, in their order, and the last output, each (B, …)."""
    contexts: tuple[Tensor, ...]
    """For each latent what its prior reads: the output of its stage (B, …)."""
    log_determinant: Tensor
    """Of the map from data to latents, in nats, (B)."""


class BaseFlow(BaseNetwork):
    """A network whose program is a density. As a module it maps data (B, …) to their log-density
    (B), in nats."""

    priors: nn.ModuleList
    """Of the latents, in their order."""

    def forward(self, value: Tensor, **side: Tensor) -> Tensor:
        """log p(z) + log|det dz/dx| of data x (B, …), (B) (Dinh et al. 2017, equation 2). Raises
        what `BaseNetwork.forward` raises."""
        return self.log_density(self.encode(value, NOTHING, **side))

    def log_density(self, encoded: Encoded) -> Tensor:
        """Of data by what `encode` has made of them, in nats, (B)."""
        densities = [
            prior.log_density(latent, context)
            for prior, latent, context in zip(
                self._priors(), encoded.latents, encoded.contexts, strict=True
            )
        ]
        return torch.stack(densities).sum(0) + encoded.log_determinant

    def encode(
        self, value: Tensor, kept: Mapping[str, Information] = NOTHING, **side: Tensor
    ) -> Encoded:
        """Data (B, …) → latents. What exact stages lose goes into `kept`, by their names, where
        `decode` finds it. Raises what `BaseNetwork.forward` raises."""
        self.check(value, side)
        value = self.stem(value)
        latents: list[Tensor] = []
        contexts: list[Tensor] = []
        total = value.new_zeros(value.shape[0])
        for stage in self.stages:
            facts = stage.facts
            read = {name: side[name] for name in facts.side}
            streams = stage(*stage.split(value), information=kept.get(facts.name), **read)
            value = stage.merge(*streams)
            by_name = dict(zip(facts.final, streams, strict=True))
            left = [by_name[name] for name in facts.parts.left]
            latents, contexts = [*latents, *left], [*contexts, *[value] * len(left)]
            counted = by_name[facts.parts.log_determinant].squeeze(1)
            total = total + counted + map_log_determinant(stage)
        return Encoded((*latents, value), (*contexts, value), total)

    def decode(
        self,
        latents: Sequence[Tensor],
        kept: Mapping[str, Information] = NOTHING,
        **side: Tensor,
    ) -> Tensor:
        """Latents, as `encode` gives them with what it has kept → data (B, …): the derived
        inverse. Raises what `BaseStage.inverse` raises: a flow with dropout must be in
        evaluation."""
        *left, value = latents
        waiting = list(left)
        return self._back(value, lambda context: waiting.pop(), kept, side)

    def informations(self) -> dict[str, Information]:
        """Empty ones for `encode`, of the stages whose exact inverse reads them."""
        needing = (stage.facts for stage in self.stages if stage.facts.needs_information)
        return {facts.name: Information() for facts in needing}

    @torch.no_grad()
    def sample(
        self,
        count: int,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        **side: Tensor,
    ) -> Tensor:
        """So many samples of the density, (count, …). Noise, and so the scale of the prior, is
        multiplied by `temperature`. Raises as `decode` does."""
        weight = next(self.parameters())
        size = (count, self.dimensions)
        noise = torch.randn(size, generator=generator, dtype=weight.dtype, device=weight.device)
        return self.from_noise(temperature * noise, **side)

    def from_noise(self, noise: Tensor, **side: Tensor) -> Tensor:
        """Standard normal numbers, (B, `dimensions`) → data (B, …) of the density. Raises as
        `decode` does."""
        priors = self._priors()
        parts = list(torch.split(noise, [prior.dimensions for prior in priors], 1))

        def latent(context: Tensor) -> Tensor:
            return priors.pop().from_noise(parts.pop(), context)

        return self._back(latent(noise), latent, NOTHING, side)

    @property
    def dimensions(self) -> int:
        """How many numbers a sample of data has, and so of latents."""
        return math.prod(self.input)

    def _back(
        self,
        value: Tensor,
        latent: Callable[[Tensor], Tensor],
        kept: Mapping[str, Information],
        side: Mapping[str, Tensor],
    ) -> Tensor:
        """The last output (B, …) → data. `latent` gives what stages have left behind, the last of
        it first, from the output of the stage."""
        for stage in reversed(list(self.stages)):
            facts = stage.facts
            others = {name: latent(value) for name in reversed(facts.parts.left)}
            others[facts.parts.log_determinant] = value.new_zeros(value.shape[0], 1)
            read = {name: side[name] for name in facts.side}
            after = streams_of_output(facts.parts, value, others)
            streams = stage.inverse(*after, information=kept.get(facts.name), **read)
            value = undone(stage.transition, input_of_streams(facts.parts, streams))
        return undone(self.stem, value)

    def _priors(self) -> list[Prior]:
        return [prior for prior in self.priors if isinstance(prior, Prior)]

    @torch.no_grad()
    def initialise(self, value: Tensor, **side: Tensor) -> None:
        """Let every actnorm start as what gives its channels mean 0 and variance 1 for these data
        (B, …) and side inputs, one after another (Kingma and Dhariwal 2018, section 3.1)."""
        with ExitStack() as stack:
            for module in self.modules():
                if isinstance(module, ActNorm):
                    stack.callback(module.register_forward_pre_hook(_standardise).remove)
            self.encode(value, NOTHING, **side)


def _standardise(module: nn.Module, given: Any) -> None:
    assert isinstance(module, ActNorm)
    module.standardise(given[0])


def map_log_determinant(stage: BaseStage) -> Tensor:
    """What the maps of all layers of a stage add to the log-determinant, (): their weights alone
    say it, and the stream leaves it out."""
    positions, found = stage.facts.parts.positions, torch.zeros(())
    for layer in stage.program():
        for step in layer.steps:
            if isinstance(step, Map) and step.map in positions:
                weighted: Any = layer.functions[step.map]
                found = found + positions[step.map] * weighted.log_determinant()
    return found


# A stage's input and output, and its streams ------------------------------------------------------


def input_of_streams(parts: Parts, streams: Sequence[Tensor]) -> Tensor:
    """A stage's streams before the first layer → its input after the transition (B, …)."""
    by_name = dict(zip(parts.streams, streams, strict=True))
    return torch.cat([by_name[name] for name in parts.input], parts.input_dimension)


def streams_of_output(
    parts: Parts, output: Tensor, others: Mapping[str, Tensor]
) -> tuple[Tensor, ...]:
    """A stage's output (B, …), and the streams that it leaves out by name → its streams after the
    last layer."""
    split = torch.split(output, list(parts.output.values()), parts.output_dimension)
    found = {**others, **dict(zip(parts.output, split, strict=True))}
    return tuple(found[name] for name in parts.streams)


def undone(layers: nn.Module, value: Tensor) -> Tensor:
    """What invertible layers made of a tensor (B, …) → that tensor."""
    for layer in reversed(list(layers.children())):
        value = layer.inverse(value)  # type: ignore[operator]
    return value
