"""A network as a normalising flow: a density with an exact inverse.

Data go through the stages to *latents* that have a simple density, the prior. A stage's output
goes on to the next; streams that the output leaves out are latents from there on (the multi-scale
architecture of Dinh et al. 2017), and so is the last output. The log-determinant is one of the
streams (`compiler.determinant`), so that none of this stores activations.
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

from archspec.expressions import LOG_DETERMINANT
from archspec.shapes import Shape
from compiler.bijections import names_in_output
from compiler.body import entry_of, invert_layers, streams_of
from compiler.functions.maps import ActNorm
from compiler.information import Information
from compiler.network import Network
from compiler.plan import NetworkPlan, StagePlan
from compiler.priors import Prior, build_prior

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


class Flow(Network):
    """A network whose program is a density. As a module it maps data (B, …) to their log-density
    (B), in nats."""

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__(plan)
        assert plan.prior is not None
        kind = plan.prior
        self.priors = nn.ModuleList(build_prior(kind, *shapes) for shapes in latent_shapes(plan))

    def forward(self, value: Tensor, **side: Tensor) -> Tensor:
        """log p(z) + log|det dz/dx| of data x (B, …), (B) (Dinh et al. 2017, equation 2). Raises
        what `Network.forward` raises."""
        encoded = self.encode(value, NOTHING, **side)
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
        `decode` finds it. Raises what `Network.forward` raises."""
        self.check(value, side)
        value = self.stem(value)
        latents: list[Tensor] = []
        contexts: list[Tensor] = []
        total = value.new_zeros(value.shape[0])
        for stage in self.stages:
            read = {name: side[name] for name in stage.facts.side}
            streams = stage(*stage.split(value), information=kept.get(stage.plan.name), **read)
            value = stage.merge(*streams)
            by_name = dict(zip(stage.facts.final, streams, strict=True))
            left = [by_name[name] for name in left_behind(stage.plan)]
            latents, contexts = [*latents, *left], [*contexts, *[value] * len(left)]
            total = total + by_name[LOG_DETERMINANT].squeeze(1) + stage.map_log_determinant()
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
        needing = (stage for stage in self.stages if stage.facts.needs_information)
        return {stage.plan.name: Information() for stage in needing}

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
            names = left_behind(stage.plan)
            others = {name: latent(value) for name in reversed(names)}
            others[LOG_DETERMINANT] = value.new_zeros(value.shape[0], 1)
            read = {name: side[name] for name in stage.facts.side}
            after = streams_of(stage.plan, value, others)
            streams = stage.inverse(*after, information=kept.get(stage.plan.name), **read)
            value = invert_layers(stage.transition, entry_of(stage.plan, streams))
        return invert_layers(self.stem, value)

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


def left_behind(plan: StagePlan) -> tuple[str, ...]:
    """The streams that a stage's output leaves out, the log-determinant aside."""
    kept = (*names_in_output(plan), LOG_DETERMINANT)
    return tuple(stream.name for stream in plan.streams if stream.name not in kept)


def latent_shapes(plan: NetworkPlan) -> list[tuple[Shape, Shape | None]]:
    """The shapes of a flow's latents, as `Flow.encode` gives them, each with the shape of the
    output that its prior may read."""
    found: list[tuple[Shape, Shape | None]] = []
    for stage in plan.stages:
        final = {s.name: shape for s, shape in zip(stage.streams, stage.final, strict=True)}
        found += [(final[name], stage.result) for name in left_behind(stage)]
    return [*found, (plan.stages[-1].result, None)]
