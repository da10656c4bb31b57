"""What a network's program has to be for a density: a bijection, of a known change of volume."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from archspec.diagnostics import SpecError
from archspec.expressions import show
from archspec.training import Density
from archspec.tree import Path
from compiler.bijections import INVERTIBLE_LAYERS, names_in_output, whole_input
from compiler.determinant import with_log_determinant
from compiler.places import Mistakes
from compiler.plan import LayerPlan, NetworkPlan, StagePlan

HELP = "a density needs a map that keeps all of its input, and can be undone"


def as_density(plan: NetworkPlan, task: Density, mistakes: Mistakes) -> NetworkPlan:
    """The plan of a network with the log-determinant of each stage among its streams. Raises
    `SpecError`, with everything that keeps it from being a bijection."""
    _check(plan, mistakes)
    if mistakes.found:
        raise SpecError(mistakes.found)
    stages = tuple(with_log_determinant(stage) for stage in plan.stages)
    return replace(plan, stages=stages, prior=task.prior)


def _check(plan: NetworkPlan, mistakes: Mistakes) -> None:
    _check_layers(plan.stem, ("stem",), mistakes)
    for stage in plan.stages:
        path = ("stages", stage.name)
        _check_layers(stage.transition, (*path, "transition"), mistakes)
        for key, message, help in _of_stage(stage):
            mistakes.key("E405", message, (*path, *key), help)
    if plan.head:
        message = "a density has no head: what leaves the last stage is a latent"
        mistakes.key("E405", message, ("head",), "leave it out")


def _check_layers(layers: tuple[LayerPlan, ...], path: Path, mistakes: Mistakes) -> None:
    for place, plan in enumerate(layers):
        if not isinstance(plan.layer, INVERTIBLE_LAYERS):
            kind = getattr(plan.layer, "kind")  # noqa: B009  (declared by each kind)
            message = f"`{kind}` has no inverse, and a density needs one"
            mistakes.key(
                "E405", message, (*path, place), "`squeeze`, `unsqueeze` and `flatten` have one"
            )


def _of_stage(plan: StagePlan) -> Iterator[tuple[Path, str, str]]:
    """Key, message and help of each mistake of a stage."""
    if plan.obstacles:
        message = f"this update has no inverse: {plan.obstacles[0].message}"
        yield ("update",), message, HELP
    elif not plan.invertible_in_evaluation:
        yield ("update",), "this update has no inverse in evaluation", HELP
    elif plan.invertible_from > 0:
        message = f"this update has no inverse before progress {plan.invertible_from:g}"
        yield ("update",), message, HELP
    parts = whole_input(plan)
    if parts is None or len(parts) < len(plan.streams):
        starts = ", ".join(f"{stream.name}: {show(stream.start)}" for stream in plan.streams)
        help = 'start them as the chunks of the input: {x1: "chunk(input, 1, 2)", x2: …}'
        yield ("streams",), f"the streams are more, or less, than the input: {starts}", help
    if not names_in_output(plan):
        help = "a stream, or `concat(x1, x2)`; streams that it leaves out are latents"
        yield ("output",), f"`{show(plan.output)}` cannot be undone", help
