"""A plan of a density as a module."""

from __future__ import annotations

from torch import nn

from archspec.shapes import Image, Shape, channel_dimension
from compiler.base_flow import BaseFlow
from compiler.bijections import parts_of
from compiler.network import Network
from compiler.plan import NetworkPlan
from compiler.priors import ConditionalPrior, LearnedPrior, Prior, PriorKind


class Flow(BaseFlow, Network):
    """A normalising flow whose program is a plan."""

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__(plan)
        assert plan.prior is not None
        kind = plan.prior
        self.priors = nn.ModuleList(build_prior(kind, *shapes) for shapes in latent_shapes(plan))


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
