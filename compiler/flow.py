"""A plan of a density as a module."""

from __future__ import annotations

from copy import copy
from dataclasses import replace

from torch import Tensor, nn

from archspec.shapes import Image, Shape, channel_dimension
from compiler.base_flow import BaseFlow
from compiler.base_network import Stages
from compiler.bijections import parts_of
from compiler.network import Network
from compiler.plan import NetworkPlan
from compiler.priors import ConditionalPrior, LearnedPrior, Prior, PriorKind
from compiler.stage import with_plan


class Flow(BaseFlow, Network):
    """A normalising flow whose program is a plan."""

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__(plan)
        assert plan.prior is not None
        kind = plan.prior
        self.priors = nn.ModuleList(build_prior(kind, *shapes) for shapes in latent_shapes(plan))

    def from_noise(self, noise: Tensor, **side: Tensor) -> Tensor:
        """As `BaseFlow.from_noise`; what is exact, in floating point: an exact inverse goes back
        where the way there has been, and noise comes from nowhere."""
        flow = self.in_floating_point()
        return super().from_noise(noise, **side) if flow is self else flow.from_noise(noise, **side)

    def in_floating_point(self) -> Flow:
        """The same modules, with stages without exact arithmetic, where its inverse does not go
        back alone."""
        if not any(stage.facts.needs_information for stage in self.stages):
            return self
        twin = copy(self)
        plans = {s.plan.name: replace(s.plan, fraction_bits=None) for s in self.stages}
        stages = {s.plan.name: with_plan(s, plans[s.plan.name]) for s in self.stages}
        twin._modules = {**self._modules, "stages": Stages(stages)}
        return twin


def latent_shapes(plan: NetworkPlan) -> list[tuple[Shape, Shape | None]]:
    """The shapes of a flow's latents, as `Flow.encode` gives them, each with the shape of the
    output that its prior may read."""
    found: list[tuple[Shape, Shape | None]] = []
    for stage in plan.stages:
        final = {s.name: shape for s, shape in zip(stage.streams, stage.final, strict=True)}
        found += [(final[name], stage.result) for name in parts_of(stage).left]
    return [*found, (plan.stages[-1].result, None)]


def build_prior(kind: PriorKind, latent: Shape, context: Shape | None) -> Prior:
    """The prior of a latent; `context` is the shape of the output of the stage that has left it
    behind, and None for the last output."""
    dimension = channel_dimension(latent)
    if kind == "gaussian":
        return Prior(latent.sizes)
    if context is None or not _alike(latent, context):
        return LearnedPrior(latent.sizes, dimension)
    return ConditionalPrior(latent.sizes, dimension, context.channels)


def _alike(latent: Shape, context: Shape) -> bool:
    """Whether a layer leads from one to the other: tokens and features by channels alone, images
    on one grid."""
    if type(latent) is not type(context) or len(latent.sizes) == 4:
        return False
    return (
        latent.sizes[1:] == context.sizes[1:]
        if isinstance(latent, Image)
        else (latent.sizes[:-1] == context.sizes[:-1])
    )
