"""A stage as a module: its streams, its layers, its derived inverse, its backward strategy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

from archspec.expressions import Expression, fold, names
from archspec.shapes import Shape, Sizes, channel_dimension, elements
from archspec.spec import Backward, Drawn, Learned
from compiler import engine
from compiler.canonical import call_reads, lift_calls, reads
from compiler.coefficients import Coefficients, draw
from compiler.constants import fixed_values
from compiler.functions import build_function, build_layers
from compiler.lower import affine, affine_inverse, lower, lower_stream
from compiler.plan import Affine, General, Permutation, StagePlan, Step, StreamPlan, Temporary


class LayerModule(nn.Module):
    """The modules of one layer: its functions by name, and its learned coefficients."""

    def __init__(self, plan: StagePlan, index: int, sizes: Sizes) -> None:
        super().__init__()
        for function in plan.functions:
            self.add_module(function.name, build_function(function, sizes))
        learned = {n: c for n, c in plan.constants.items() if isinstance(c, Learned)}
        shape = plan.streams[0].shape
        self.coefficients = Coefficients(
            learned, (shape.channels, *(1,) * (-1 - channel_dimension(shape)))
        )
        self.plan, self.index = plan, index
        self.program = lower_steps(plan, index)

    def steps(self) -> engine.Layer:
        """This layer as the engine runs it."""
        functions = {f.name: self.get_submodule(f.name) for f in self.plan.functions}
        coefficients = self.coefficients
        return engine.Layer(
            self.program, functions, coefficients.evaluators(), coefficients.leaves()
        )

    def __getstate__(self) -> dict[str, Any]:
        """Without the program, whose functions cannot be pickled and are made again."""
        return {name: value for name, value in self.__dict__.items() if name != "program"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make the program again."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.program = lower_steps(self.plan, self.index)


def lower_steps(plan: StagePlan, index: int) -> tuple[engine.Step, ...]:
    """The program of one layer, its fixed constants folded in."""
    values = fixed_values(plan.constants, index, plan.depth)
    return tuple(_lower_step(step, plan, values) for step in plan.steps)


def _lower_step(step: Step, plan: StagePlan, values: Mapping[str, Any]) -> engine.Step:
    if isinstance(step, Permutation):
        return engine.Permute(step.targets, step.sources)
    results = [call.result for call in step.calls]
    calls = tuple(
        engine.Call(
            call.result,
            call.function,
            tuple(lower_stream(fold(a, values), _like(a, plan)) for a in call.arguments),
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
    )


def _like(value: Expression, plan: StagePlan) -> str:
    """A stream, temporary or result of the shape that a value has, among those that it reads."""
    shaped = (name for name in sorted(names(value)) if name not in plan.constants)
    return next(name for name in shaped if name not in ("layer", "depth"))


def _both_ways(
    step: Affine | General | Temporary, plan: StagePlan, values: Mapping[str, Any]
) -> tuple[Any, Any]:
    if isinstance(step, Temporary):
        return lower_stream(fold(step.value, values), _like(step.value, plan)), None
    if isinstance(step, General):
        return lower_stream(fold(step.value, values), step.target), None
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


class Stage(nn.Module):
    """`depth` layers of one update program.

    `split` makes the streams from the stage's input, the stage itself maps streams to streams,
    `inverse` maps them back, and `merge` makes the stage's output from them. `backward` is the
    strategy: "reversible", "checkpoint" or "store"; it may be changed at any time.
    """

    def __init__(self, plan: StagePlan, classes: int) -> None:
        super().__init__()
        self.plan = plan
        self._backward: Backward = plan.backward
        self.transition = build_layers(plan.transition)
        starts = {
            f.name: build_function(f, Sizes.of(classes=classes)) for f in plan.start_functions
        }
        self.starts = nn.ModuleDict(starts)
        self.layers = nn.ModuleList(
            LayerModule(plan, i, Sizes.of(layer=i, depth=plan.depth)) for i in range(plan.depth)
        )

    @property
    def backward(self) -> Backward:
        """How the backward pass comes by activations. Setting it raises ValueError for a strategy
        that there is not, or that this program does not allow."""
        return self._backward

    @backward.setter
    def backward(self, strategy: str) -> None:
        self._backward = check_strategy(strategy, self.plan)

    def forward(self, *streams: Tensor, draws: Sequence[engine.Values] | None = None) -> Any:
        """Streams before the first layer → streams after the last, as tuples in the spec's order.

        `draws` gives the drawn coefficients layer by layer, as `draw` does; by default they are
        drawn here.
        """
        values = self._values(streams)
        layers = [layer.steps() for layer in self._layer_modules()]
        draws = self.draw(streams[0]) if draws is None else draws
        return tuple(self._strategy(streams)(layers, values, draws).values())

    def inverse(self, *streams: Tensor, draws: Sequence[engine.Values] | None = None) -> Any:
        """Streams after the last layer → streams before the first: the derived inverse.

        Drawn coefficients must be given where they are random. Raises RuntimeError for a program
        without an inverse, and where dropout makes the functions random.
        """
        plan = self.plan
        if not plan.invertible:
            raise RuntimeError(
                f"stage `{plan.name}` has no inverse:\n" + "\n".join(map(str, plan.obstacles))
            )
        if not self.training and not plan.invertible_in_evaluation:
            raise RuntimeError(
                f"stage `{plan.name}` has no inverse in evaluation: a factor of one of its streams "
                "is 0 there"
            )
        if draws is None and self.training and self._drawn():
            raise RuntimeError(
                "this stage draws coefficients at random in training: give forward and inverse the "
                "same `draws`, from stage.draw(stream)"
            )
        draws = self.draw(streams[0]) if draws is None else draws
        layers = [layer.steps() for layer in self._layer_modules()]
        random = engine.RandomState(streams[0].device)
        values = engine.invert(layers, self._values(streams), draws)
        if random.has_moved():
            raise RuntimeError(
                f"a function of stage `{self.plan.name}` drew random numbers, so that this is not "
                "the inverse of what it computed before: call eval() first"
            )
        return tuple(values.values())

    def draw(self, like: Tensor) -> list[engine.Values]:
        """The drawn coefficients of each layer, for a batch as large as that of `like` (B, …)."""
        drawn = self._drawn()
        return [
            {name: draw(constant, like, self.training) for name, constant in drawn.items()}
            for _ in range(self.plan.depth)
        ]

    def split(self, value: Tensor) -> tuple[Tensor, ...]:
        """The stage's input (B, …) → its streams."""
        entry: Tensor = self.transition(value)
        kind = entry.device.type
        half = entry.dtype in (torch.float16, torch.bfloat16)
        if half and torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            entry = entry.float()  # autocast is for residual functions; streams keep fp32
        return self.start(entry)

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
            scope[call.result] = engine.invoke(self.starts[call.function], arguments)
        return _filled(lower(expression, channels)(scope), entry, stream.shape)

    def merge(self, *streams: Tensor) -> Tensor:
        """Streams → the stage's output (B, …)."""
        fixed = fixed_values(self.plan.constants, 0, self.plan.depth)
        expression = fold(self.plan.output, fixed)
        value = lower(expression, channel_dimension(self.plan.input))(self._values(streams))
        return _filled(value, streams[0], self.plan.result)

    def extra_repr(self) -> str:
        """Shown when the module is printed."""
        elements_kept = sum(elements(s.shape) for s in self.plan.streams)
        return f"backward={self.backward!r}, elements of streams={elements_kept}"

    def _layer_modules(self) -> list[LayerModule]:
        return [layer for layer in self.layers if isinstance(layer, LayerModule)]

    def _drawn(self) -> dict[str, Drawn]:
        return {n: c for n, c in self.plan.constants.items() if isinstance(c, Drawn)}

    def _values(self, streams: Sequence[Tensor]) -> engine.Values:
        expected = self.plan.streams
        if len(streams) != len(expected):
            names = ", ".join(stream.name for stream in expected)
            raise ValueError(f"expected the streams {names}, found {len(streams)} tensors")
        for stream, tensor in zip(expected, streams, strict=True):
            if tuple(tensor.shape[1:]) != stream.shape.sizes:
                found = tuple(tensor.shape)
                raise ValueError(f"stream `{stream.name}` is {stream.shape}, found a batch {found}")
        return {stream.name: tensor for stream, tensor in zip(expected, streams, strict=True)}

    def _strategy(self, streams: Sequence[Tensor]) -> Any:
        if not torch.is_grad_enabled() or self.backward == "store":
            return engine.run
        if self.backward == "checkpoint":
            return engine.run_checkpointed
        if not self.training and not self.plan.invertible_in_evaluation:
            # The gradient is still wanted, and there is nothing to reconstruct from.
            return engine.run
        if any(stream.dtype in (torch.float16, torch.bfloat16) for stream in streams):
            raise RuntimeError(
                f"the streams of stage `{self.plan.name}` are in half precision, in which they "
                "cannot be reconstructed well enough for a gradient: keep the model in float32 and "
                "use torch.autocast, or set_backward('checkpoint')"
            )
        return engine.run_reversible


def _filled(value: Tensor | float, like: Tensor, shape: Shape) -> Tensor:
    """A value as a batch of `shape`, as large as `like` (expressions such as 0*x are numbers)."""
    if isinstance(value, Tensor):
        return value
    return like.new_full((like.shape[0], *shape.sizes), value)


def check_strategy(backward: str, plan: StagePlan) -> Backward:
    """`backward` if a stage can do it. Raises ValueError."""
    strategies = get_args(Backward)
    if backward not in strategies:
        raise ValueError(f"backward is one of {', '.join(strategies)}, found {backward!r}")
    if backward == "reversible" and not plan.invertible:
        raise ValueError(
            f"stage `{plan.name}` cannot be reversed:\n" + "\n".join(map(str, plan.obstacles))
        )
    return backward  # type: ignore[return-value]
