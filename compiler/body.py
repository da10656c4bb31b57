"""From a network's input to what reaches its head, and back.

A stage's layers have the derived inverse. Here is that of all between them: of the stem, of
transitions, and of how streams start and leave a stage. Where these keep all that there is, the
whole body inverts, as that of an i-RevNet does (Jacobsen et al. 2018).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from archspec.expressions import show
from compiler.base_flow import input_of_streams, streams_of_output, undone
from compiler.bijections import INVERTIBLE_LAYERS, names_in_output, parts_of, whole_input
from compiler.forms import choices, needs_information
from compiler.network import Network
from compiler.plan import LayerPlan, NetworkPlan, StagePlan
from compiler.stage_inputs import check_side


def body(model: Network, value: Tensor, **side: Tensor) -> Tensor:
    """The network's input (B, …) → what reaches its head (B, …).

    Side inputs are given by name, as the network takes them. Raises what the network raises for
    inputs that it does not take.
    """
    return model.body(value, **side)


def reach(model: Network, name: str, value: Tensor, **side: Tensor) -> Tensor:
    """The network's input (B, …) → what the streams of a stage start from (B, …). Raises what the
    network raises for inputs that it does not take."""
    model.check(value, side)
    value = model.stem(value)
    for stage in model.stages:
        if stage.plan.name == name:
            break
        read = {each: side[each] for each in stage.facts.side}
        value = stage.merge(*stage(*stage.split(value), **read))
    found: Tensor = model.stages[name].transition(value)
    return found


def invert_body(model: Network, features: Tensor, **side: Tensor) -> Tensor:
    """What reaches the head (B, …) → the network's input (B, …): the inverse of `body`.

    Exact to rounding; with exact arithmetic, the input on the grid of the first stage. Raises
    ValueError, with every reason, for a body without an inverse, or without one as it stands, and
    for features of another size; TypeError for side inputs that are missing or unknown; and what
    `BaseStage.inverse` raises: a network with dropout must be in evaluation.
    """
    if reasons := (*body_obstacles(model.plan), *_as_it_stands(model)):
        raise ValueError("\n".join((f"the body of {model.plan.name} has no inverse:", *reasons)))
    _check_features(features, model)
    check_side(side, model.side, features.shape[0], "this network")
    for stage in reversed(list(model.stages)):
        read = {name: side[name] for name in stage.facts.side}
        parts = parts_of(stage.plan)
        streams = stage.inverse(*streams_of_output(parts, features, {}), **read)
        features = undone(stage.transition, input_of_streams(parts, streams))
    return undone(model.stem, features)


def _check_features(features: Tensor, model: Network) -> None:
    sizes = model.plan.stages[-1].result.sizes
    if tuple(features.shape[1:]) != sizes:
        found, wanted = tuple(features.shape), ", ".join(map(str, sizes))
        raise ValueError(f"what reaches the head is (batch, {wanted}), found {found}")


def body_obstacles(plan: NetworkPlan) -> tuple[str, ...]:
    """Why a network's body has no inverse, however far it is trained, a line for each reason; none
    if it has one."""
    reasons = [f"stem: {reason}" for reason in _of_layers(plan.stem)]
    for stage in plan.stages:
        reasons += [f"stage `{stage.name}`: {reason}" for reason in _of_stage(stage)]
    return tuple(reasons)


def _as_it_stands(model: Network) -> Iterator[str]:
    """What training's progress, and the network's mode, have against an inverse."""
    for stage in model.stages:
        facts = stage.facts
        if not facts.obstacles and not stage.has_inverse:
            yield stage.no_inverse_yet()
        if facts.drawn and stage.training:
            yield f"stage `{facts.name}`: its coefficients are drawn in training: call eval()"


def _of_stage(plan: StagePlan) -> Iterator[str]:
    yield from (f"transition: {reason}" for reason in _of_layers(plan.transition))
    if plan.obstacles:
        yield f"its update has no inverse: {plan.obstacles[0].message}"
    elif not plan.invertible_in_evaluation:
        yield "its update has no inverse in evaluation"
    elif needs_information(choices(plan)):
        yield "its exact inverse reads what updates have kept, and features do not hold that"
    if whole_input(plan) is None:
        starts = ", ".join(f"{stream.name}: {show(stream.start)}" for stream in plan.streams)
        yield f"no stream starts as `input`, nor do all of its chunks; found {starts}"
    if missing := [s.name for s in plan.streams if s.name not in names_in_output(plan)]:
        yield f"{', '.join(missing)} cannot be told from the output `{show(plan.output)}`"


def _of_layers(plans: Sequence[LayerPlan]) -> Iterator[str]:
    for plan in plans:
        if not isinstance(plan.layer, INVERTIBLE_LAYERS):
            kind = getattr(plan.layer, "kind")  # noqa: B009  (declared by each kind)
            yield f"`{kind}` has no inverse; `squeeze`, `unsqueeze` and `flatten` have"
