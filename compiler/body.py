"""From a network's input to what reaches its head, and back.

A stage's layers have the derived inverse. Here is that of all between them: of the stem, of
transitions, and of how streams start and leave a stage. Where these keep all that there is, the
whole body inverts, as that of an i-RevNet does (Jacobsen et al. 2018).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn

from archspec.expressions import show
from archspec.shapes import channel_dimension
from compiler.bijections import INVERTIBLE_LAYERS, names_in_output, whole_input
from compiler.forms import choices, needs_information
from compiler.functions.maps import Flatten, Squeeze, Unsqueeze
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
        streams = stage.inverse(*streams_of(stage.plan, features), **read)
        features = invert_layers(stage.transition, entry_of(stage.plan, streams))
    return invert_layers(model.stem, features)


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


def streams_of(
    plan: StagePlan, output: Tensor, others: Mapping[str, Tensor] = MappingProxyType({})
) -> tuple[Tensor, ...]:
    """A stage's output (B, …), and the streams that it leaves out by name → its streams after the
    last layer, in the spec's order."""
    names = names_in_output(plan)
    shapes = {s.name: shape for s, shape in zip(plan.streams, plan.final, strict=True)}
    channels = [shapes[name].channels for name in names]
    parts = torch.split(output, channels, channel_dimension(plan.result))
    found = {**others, **dict(zip(names, parts, strict=True))}
    return tuple(found[stream.name] for stream in plan.streams)


def entry_of(plan: StagePlan, streams: Sequence[Tensor]) -> Tensor:
    """A stage's streams before the first layer → its input after the transition (B, …)."""
    parts = whole_input(plan)
    assert parts is not None
    return torch.cat([streams[part] for part in parts], channel_dimension(plan.input))


def invert_layers(layers: nn.Module, value: Tensor) -> Tensor:
    """What invertible layers made of a tensor (B, …) → that tensor."""
    for layer in reversed(list(layers.children())):
        assert isinstance(layer, (Flatten, Squeeze, Unsqueeze))
        value = layer.inverse(value)
    return value
