"""A stage's plan as a module."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from archspec.expressions import LOG_DETERMINANT, Expression, fold, names
from archspec.shapes import Shape, Sizes, channel_dimension
from archspec.spec import Drawn, Learned
from compiler import engine
from compiler.base_stage import BaseStage
from compiler.bijections import parts_of
from compiler.canonical import call_reads, lift_calls, reads
from compiler.coefficients import Coefficient, Coefficients
from compiler.constants import NUMBERS, fixed_values
from compiler.exact import Exact, Grid, Remainder, on_grid
from compiler.facts import NO_PARTS, Facts
from compiler.forms import Choice, Choices, choices, needs_information
from compiler.functions import build_function, build_layers, build_map
from compiler.lower import affine, affine_inverse, lower, lower_stream
from compiler.plan import (
    Affine,
    FunctionPlan,
    General,
    Mapped,
    MapPlan,
    Permutation,
    StagePlan,
    Step,
    StreamPlan,
    Temporary,
)
from compiler.shards import to_shards, whole
from compiler.stage_inputs import named


class Functions(nn.Module):
    """The residual functions and the invertible maps of a layer, by name."""

    def __init__(
        self, functions: Sequence[FunctionPlan], maps: Sequence[MapPlan], sizes: Sizes
    ) -> None:
        super().__init__()
        for function in functions:
            self.add_module(function.name, build_function(function, sizes))
        for map in maps:
            self.add_module(map.name, build_map(map))

    def by_name(self) -> dict[str, nn.Module]:
        """All of them."""
        return {name: m for name, m in self._modules.items() if m and name[0].isupper()}


class LayerModule(Functions):
    """One layer: its functions, unless all layers share them, and its learned coefficients."""

    def __init__(self, plan: StagePlan, index: int, chosen: Choices) -> None:
        own = ((), ()) if plan.share else (plan.functions, plan.maps)
        super().__init__(*own, Sizes.of(layer=index, depth=plan.depth))
        self.coefficients = Coefficients(learned(plan), channel_shape(plan))
        self.plan, self.index, self.chosen = plan, index, chosen
        self.steps = lower_steps(plan, index, chosen)

    def run_with(self, functions: Mapping[str, nn.Module]) -> engine.Layer:
        """This layer as the engine runs it."""
        coefficients = self.coefficients
        return engine.Layer(self.steps, functions, coefficients.evaluators(), coefficients.leaves())

    def __getstate__(self) -> dict[str, Any]:
        """Without the steps, whose functions cannot be pickled and are made again."""
        return {name: value for name, value in self.__dict__.items() if name != "steps"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make the steps again."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.steps = lower_steps(self.plan, self.index, self.chosen)


def learned(plan: StagePlan) -> dict[str, Coefficient]:
    """The coefficients that a layer learns."""
    return {
        name: Coefficient(constant.learn, constant.within, constant.per == "channel")
        for name, constant in plan.constants.items()
        if isinstance(constant, Learned)
    }


def channel_shape(plan: StagePlan) -> tuple[int, ...]:
    """The shape of coefficients learned per channel, to go with the first stream."""
    shape = plan.streams[0].shape
    return (shape.channels, *(1,) * (-1 - channel_dimension(shape)))


def lower_steps(plan: StagePlan, index: int, chosen: Choices) -> tuple[engine.Step, ...]:
    """The program of one layer, its fixed constants folded in."""
    values = fixed_values(plan.constants, index, plan.depth)
    return tuple(
        _lower_step(step, plan, values, choice)
        for step, choice in zip(plan.steps, chosen, strict=True)
    )


def _lower_step(
    step: Step, plan: StagePlan, values: Mapping[str, Any], choice: Choice | None
) -> engine.Step:
    if isinstance(step, Permutation):
        return engine.Permute(step.targets, step.sources)
    if isinstance(step, Mapped):
        return engine.Map(step.target, step.map, grid=_grid(plan) if choice else None)
    results = [call.result for call in step.calls]
    calls = tuple(
        engine.Call(
            call.result,
            call.function,
            tuple(lower_stream(fold(a, values), like(a, plan)) for a in call.arguments),
            tuple(results.index(name) for name in call_reads((call,)) if name in results),
        )
        for call in step.calls
    )
    forward, inverse = _both_ways(step, plan, values)
    read = _read_names(step, values)
    return engine.Update(
        target=step.name if isinstance(step, Temporary) else step.target,
        calls=calls,
        forward=forward,
        inverse=inverse,
        coefficients=tuple(n for n in read if isinstance(plan.constants.get(n), Learned)),
        temporaries=tuple(
            other.name
            for other in plan.steps
            if isinstance(other, Temporary) and other.name in read
        ),
        is_temporary=isinstance(step, Temporary),
        exact=_exact(step, plan, values, choice),
        rounds=isinstance(step, General) and plan.fraction_bits is not None,
    )


def _exact(
    step: Affine | General | Temporary,
    plan: StagePlan,
    values: Mapping[str, Any],
    choice: Choice | None,
) -> Exact | None:
    """How an update is computed on the grid, where there is one."""
    if choice is None or not isinstance(step, Affine):
        return None
    scale, rest = fold(step.scale, values), fold(step.rest, values)
    return Exact(_grid(plan), choice.form, lower(scale), lower_stream(rest, step.target))


def _grid(plan: StagePlan) -> Grid:
    assert plan.fraction_bits is not None
    return Grid(plan.fraction_bits)


def like(value: Expression, plan: StagePlan) -> str:
    """A stream, side input, temporary or result of the shape that a value has, among those that
    it reads."""
    shaped = (name for name in sorted(names(value)) if name not in plan.constants)
    return next(name for name in shaped if name not in NUMBERS)


def _both_ways(
    step: Affine | General | Temporary, plan: StagePlan, values: Mapping[str, Any]
) -> tuple[Any, Any]:
    if isinstance(step, Temporary):
        return lower_stream(fold(step.value, values), like(step.value, plan)), None
    if isinstance(step, General):
        value = lower_stream(fold(step.value, values), step.target)
        if plan.fraction_bits is None:
            return value, None
        grid = _grid(plan)
        return lambda scope: on_grid(value(scope), grid), None
    scale, rest = fold(step.scale, values), fold(step.rest, values)
    forward = lower_stream(affine(scale, step.target, rest), step.target)
    if not plan.invertible:
        return forward, None
    return forward, lower_stream(affine_inverse(scale, step.target, rest), step.target)


def _read_names(step: Step, values: Mapping[str, Any]) -> list[str]:
    """The names a step reads, fixed constants replaced by what they are made of."""
    read = set(reads(step))
    for name in list(read):
        if name in values:
            read |= names(values[name])
    return sorted(read)


class Stage(BaseStage):
    """A stage whose program is a plan."""

    def __init__(self, plan: StagePlan, sizes: Mapping[str, int]) -> None:
        chosen = choices(plan)
        super().__init__(facts(plan, chosen), plan.backward)
        self.plan = plan
        self.transition = build_layers(plan.transition)
        starts = {f.name: build_function(f, Sizes.of(**sizes)) for f in plan.start_functions}
        self.starts = nn.ModuleDict(starts)
        if plan.share:
            self.shared = Functions(plan.functions, plan.maps, Sizes.of(depth=plan.depth))
        self.layers = nn.ModuleList(LayerModule(plan, i, c) for i, c in enumerate(chosen))

    def program(self) -> list[engine.Layer]:
        """The layers as the engine runs them."""
        layers = [layer for layer in self.layers if isinstance(layer, LayerModule)]
        if self.plan.share:
            return [layer.run_with(self.shared.by_name()) for layer in layers]
        return [layer.run_with(layer.by_name()) for layer in layers]

    def start(self, entry: Tensor) -> tuple[Tensor, ...]:
        """What has passed the transition (B, …) → the stage's streams."""
        return tuple(self._start(stream, entry) for stream in self.plan.streams)

    def _start(self, stream: StreamPlan, entry: Tensor) -> Tensor:
        channels = channel_dimension(self.plan.input)
        fixed = fixed_values(self.plan.constants, 0, self.plan.depth)
        scope = {"input": entry, "zeros": torch.zeros_like(entry)}
        expression, calls = lift_calls(fold(stream.start, fixed))
        for call in calls:
            (function,) = (f for f in self.plan.start_functions if f.name == call.function)
            arguments = [
                _filled(lower(argument, channels)(scope), entry, shape)
                for argument, shape in zip(call.arguments, function.arguments, strict=True)
            ]
            scope[call.result] = self.begin(call.function, *arguments)
        return _filled(lower(expression, channels)(scope), entry, stream.shape)

    def merge(self, *streams: Tensor) -> Tensor:
        """Streams → the stage's output (B, …)."""
        fixed = fixed_values(self.plan.constants, 0, self.plan.depth)
        expression = fold(self.plan.output, fixed)
        values = named(streams, self.facts.final)
        value = lower(expression, channel_dimension(self.plan.input))(values)
        return _filled(value, streams[0], self.plan.result)

    def penalty(self) -> Tensor:
        """smoothness*Σ ½|K' - K|², (), where K are the weights of a layer's functions, of two or
        more dimensions, and K' those of the same names and shapes in the next layer (Chang et al.
        2018). It is 0 where the spec has no `smoothness`. Of a sharded network it is that of all
        processes, in each of them, and so is its gradient."""
        layers = self.layers if self.plan.smoothness else ()
        changes = [
            (weights[name] - weight).square().sum()
            for before, weights in pairwise(map(self._weights, layers))
            for name, weight in before.items()
            if name in weights and weights[name].shape == weight.shape
        ]
        if not changes:
            return torch.zeros(())
        return self.plan.smoothness / 2 * whole(torch.stack(changes).sum())

    def _weights(self, layer: nn.Module) -> dict[str, Tensor]:
        """The weights of a layer's functions, by name; those that are sharded as shards."""
        functions = {plan.name: layer.get_submodule(plan.name) for plan in self.plan.functions}
        for function in functions.values():
            to_shards(function)
        return {
            f"{name}.{part}": parameter
            for name, function in functions.items()
            for part, parameter in function.named_parameters()
            if parameter.dim() >= 2
        }


def penalty(model: nn.Module) -> Tensor:
    """What the stages in `model` add to the loss in training, (): the sum of their penalties."""
    found = (stage.penalty() for stage in model.modules() if isinstance(stage, Stage))
    return sum(found, torch.zeros(()))  # a number on the CPU goes with those of any device


def with_plan(stage: Stage, plan: StagePlan) -> Stage:
    """A stage with the same modules, whose updates are computed as another plan says: one of other
    arithmetic."""
    chosen, twin = choices(plan), copy.copy(stage)
    twin.plan, twin.facts = plan, facts(plan, chosen)
    layers = []
    for layer, choice in zip(stage.layers, chosen, strict=True):
        assert isinstance(layer, LayerModule)
        layers.append(copy.copy(layer))
        layers[-1].plan, layers[-1].chosen = plan, choice
        layers[-1].steps = lower_steps(plan, layer.index, choice)
    twin._modules = {**stage._modules, "layers": nn.ModuleList(layers)}
    return twin


def facts(plan: StagePlan, chosen: Sequence[Choices]) -> Facts:
    """What a stage has to know of its plan."""
    drawn = {n: c for n, c in plan.constants.items() if isinstance(c, Drawn)}
    counts = any(stream.name == LOG_DETERMINANT for stream in plan.streams)
    return Facts(
        name=plan.name,
        streams={s.name: s.shape.sizes for s in plan.streams},
        final={s.name: shape.sizes for s, shape in zip(plan.streams, plan.final, strict=True)},
        depth=plan.depth,
        side={side.name: side.shape.sizes for side in plan.side},
        drawn={name: (constant.draw, constant.evaluate) for name, constant in drawn.items()},
        reads_progress=plan.reads_progress,
        obstacles="\n".join(map(str, plan.obstacles)),
        invertible_in_evaluation=plan.invertible_in_evaluation,
        invertible_from=plan.invertible_from,
        checkpoints=plan.checkpoints,
        stored=plan.stored,
        results=plan.results,
        store_every=plan.store_every if plan.store_every < plan.depth else None,
        fraction_bits=plan.fraction_bits,
        reads_information=any(isinstance(c.form, Remainder) for f in chosen for c in f if c),
        needs_information=plan.invertible and needs_information(chosen),
        parts=parts_of(plan) if counts else NO_PARTS,
    )


def _filled(value: Tensor | float, like: Tensor, shape: Shape) -> Tensor:
    """A value as a batch of `shape`, as large as `like` (expressions such as 0*x are numbers)."""
    if isinstance(value, Tensor):
        return value
    return like.new_full((like.shape[0], *shape.sizes), value)
