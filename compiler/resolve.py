"""A loaded spec into a plan: every text parsed, every name looked up, every shape inferred."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from archspec.diagnostics import Diagnostic, SpecError
from archspec.expressions import Call, Expression
from archspec.layers import Layer
from archspec.loading import Loaded
from archspec.shapes import Features, Shape, Sizes
from archspec.spec import Learned, Stage
from archspec.tree import Path
from compiler.canonical import canonical
from compiler.check import check_invertible, invertible_in_evaluation
from compiler.places import Mistakes
from compiler.plan import (
    Affine,
    FunctionPlan,
    General,
    LayerPlan,
    NetworkPlan,
    Permutation,
    StagePlan,
    Step,
    StreamPlan,
    Temporary,
)
from compiler.plan import Call as LiftedCall
from compiler.program import Program, parse_program
from compiler.shapes import (
    BadLayer,
    ExpressionShapeError,
    ShapeOrScalar,
    infer_expression,
    infer_layers,
)


def resolve(loaded: Loaded) -> NetworkPlan:
    """Resolve and check a spec. Raises `SpecError` with every mistake that can be told apart."""
    spec = loaded.spec
    mistakes = Mistakes(loaded.tree)
    classes = spec.task.classes
    programs = {
        name: _check_program(stage, ("stages", name), mistakes)
        for name, stage in spec.stages.items()
    }
    shape: Shape | None = spec.input.shape
    stem, shape = _plain_layers(spec.stem, shape, classes, ("stem",), mistakes)
    stages = []
    for name, stage in spec.stages.items():
        program = programs[name]
        if shape is None or program is None:
            shape = None
            continue
        plan = _StageResolver(stage, program, classes, ("stages", name), mistakes).resolve(shape)
        shape = plan.result if plan else None
        stages += [plan] if plan else []
    head, shape = _plain_layers(spec.head, shape, classes, ("head",), mistakes)
    if shape is not None and shape != Features(classes):
        message = f"the network ends in {shape}, and the task needs {classes} features"
        help = "end the head with `pool: mean` and `linear: classes`"
        mistakes.key("E403", message, ("head",) if spec.head else ("stages",), help)
    if mistakes.found:
        raise SpecError(mistakes.found)
    assert shape is not None
    return NetworkPlan(spec.name, spec.input.shape, classes, stem, tuple(stages), head, shape)


def _plain_layers(
    layers: Sequence[Layer], shape: Shape | None, classes: int, path: Path, mistakes: Mistakes
) -> tuple[tuple[LayerPlan, ...], Shape | None]:
    """The layers of a stem, a transition or a head."""
    if shape is None:
        return (), None

    def sizes(before: Shape) -> Sizes:
        return Sizes.of(channels=before.channels, classes=classes)

    found = infer_layers(layers, (shape,), sizes)
    if isinstance(found, BadLayer):
        _bad_layer(layers, found, path, mistakes)
        return (), None
    return found


def _bad_layer(layers: Sequence[Layer], bad: BadLayer, path: Path, mistakes: Mistakes) -> None:
    kind = getattr(layers[bad.index], "kind", "layer")
    message = f"`{kind}` does not fit here: {bad.error.message}"
    mistakes.value("E401", message, (*path, bad.index), bad.error.help)


@dataclass(frozen=True)
class _Checked:
    program: Program
    steps: tuple[Step, ...]
    obstacles: tuple[Diagnostic, ...]


def _check_program(stage: Stage, path: Path, mistakes: Mistakes) -> _Checked | None:
    program = parse_program(stage, path, mistakes)
    if program is None:
        return None
    steps: list[Step] = []
    for index, statement in enumerate(program.update):
        try:
            steps.append(canonical(statement))
        except ArithmeticError:
            message = "this update divides by zero, or by a number too large or small"
            mistakes.value("E201", message, (*path, "update", index))
    if len(steps) < len(program.update):
        return None
    obstacles = Mistakes(mistakes.tree)
    check_invertible(program, steps, stage.depth, path, obstacles)
    if stage.backward == "reversible":
        mistakes.found += obstacles.found
    return _Checked(program, tuple(steps), tuple(obstacles.found))


class _StageResolver:
    """Shapes through one stage."""

    def __init__(
        self, stage: Stage, checked: _Checked, classes: int, path: Path, mistakes: Mistakes
    ) -> None:
        self.stage, self.checked, self.classes = stage, checked, classes
        self.path, self.mistakes = path, mistakes
        self.functions: dict[str, FunctionPlan | None] = {}

    def resolve(self, shape: Shape) -> StagePlan | None:
        before = len(self.mistakes.found)
        program, stage = self.checked.program, self.stage
        transition, entry = _plain_layers(
            stage.transition, shape, self.classes, (*self.path, "transition"), self.mistakes
        )
        if entry is None:
            return None
        streams = self.streams(entry)
        started = dict(self.functions)
        scope = {s.name: s.shape for s in streams}
        self.steps(scope)
        output = self.shape_of(program.output, (*self.path, "output"), self.scope(scope))
        if output is None and len(self.mistakes.found) == before:
            message = "the output is a number, and a stage gives a stream or several"
            self.mistakes.value("E402", message, (*self.path, "output"))
        if output is None or len(self.mistakes.found) > before:
            return None
        functions = [plan for plan in self.functions.values() if plan]
        in_evaluation = invertible_in_evaluation(self.checked.steps, program.constants, stage.depth)
        return StagePlan(
            name=str(self.path[-1]),
            depth=stage.depth,
            backward=stage.backward,
            transition=transition,
            input=entry,
            streams=streams,
            start_functions=tuple(f for f in functions if f.name in started),
            functions=tuple(f for f in functions if f.name not in started),
            constants=program.constants,
            steps=self.checked.steps,
            output=program.output,
            result=output,
            obstacles=self.checked.obstacles,
            invertible_in_evaluation=not self.checked.obstacles and in_evaluation,
        )

    def streams(self, entry: Shape) -> tuple[StreamPlan, ...]:
        scope = self.scope({"input": entry, "zeros": entry})
        plans = []
        for name, start in self.checked.program.starts.items():
            place, before = (*self.path, "streams", name), len(self.mistakes.found)
            shape = self.shape_of(start, place, scope)
            if shape is not None:
                plans.append(StreamPlan(name, start, shape))
            elif len(self.mistakes.found) == before:
                message = f"`{name}` starts as a number, and a stream has the shape of its input"
                self.mistakes.value("E402", message, place, "start it from `input` or `zeros`")
        self.check_channels(plans)
        return tuple(plans)

    def check_channels(self, plans: Sequence[StreamPlan]) -> None:
        """A coefficient per channel goes with streams of one shape."""
        if len({plan.shape for plan in plans}) < 2:
            return
        for name, constant in self.checked.program.constants.items():
            if isinstance(constant, Learned) and constant.per == "channel":
                message = f"`{name}` is learned per channel, and the streams have different shapes"
                self.mistakes.value("E402", message, (*self.path, "constants", name), "per: layer")

    def scope(self, shapes: Mapping[str, Shape]) -> dict[str, ShapeOrScalar]:
        scalars = dict.fromkeys((*self.checked.program.constants, "layer", "depth"))
        return {**scalars, **shapes}

    def shape_of(
        self, expression: Expression, place: Path, scope: Mapping[str, ShapeOrScalar]
    ) -> ShapeOrScalar:
        """An expression's shape; None for a number, or after noting a mistake."""
        try:
            return infer_expression(expression, scope, self.call)
        except ExpressionShapeError as error:
            self.mistakes.text("E402", error.message, place, error.at, error.help)
        except _Noted:
            pass
        return None

    def steps(self, streams: dict[str, Shape]) -> None:
        scope = self.scope(streams)
        for index, step in enumerate(self.checked.steps):
            place = (*self.path, "update", index)
            if isinstance(step, Permutation):
                self.permutation(step, streams, place)
                continue
            before = len(self.mistakes.found)
            shape = self.step_shape(step, place, scope)
            if len(self.mistakes.found) > before:
                continue
            if isinstance(step, Temporary):
                scope[step.name] = shape
                if shape is None:
                    help = "write it under `constants`"
                    self.mistakes.value("E402", f"`{step.name}` is a number", place, help)
            elif shape not in (None, streams[step.target]):
                message = f"`{step.target}` is {streams[step.target]}, and it would become {shape}"
                self.mistakes.value("E402", message, place)

    def step_shape(
        self,
        step: Affine | General | Temporary,
        place: Path,
        scope: Mapping[str, ShapeOrScalar],
    ) -> ShapeOrScalar:
        local = dict(scope)
        for call in step.calls:
            local[call.result] = self.shape_of(_as_expression(call), place, local)
            if local[call.result] is None:
                return None
        if not isinstance(step, Affine):
            return self.shape_of(step.value, place, local)
        scale = self.shape_of(step.scale, place, local)
        rest = self.shape_of(step.rest, place, local)
        return rest or scale

    def permutation(self, step: Permutation, streams: Mapping[str, Shape], place: Path) -> None:
        for target, source in zip(step.targets, step.sources, strict=True):
            if streams[target] != streams[source]:
                message = (
                    f"`{target}` is {streams[target]}, and `{source}` is {streams[source]}: "
                    "only streams of one shape change places"
                )
                self.mistakes.value("E402", message, place)
                return

    def call(self, call: Call, arguments: tuple[Shape, ...]) -> Shape:
        """The shape of a function's result; its layers are inferred at its first call."""
        name = call.function
        if name not in self.functions:
            self.functions[name] = self.function(name, arguments)
        plan = self.functions[name]
        if plan is None:
            raise _Noted
        if plan.arguments != arguments:
            first, now = (", ".join(map(str, shapes)) for shapes in (plan.arguments, arguments))
            message = f"`{name}` takes {first} in its first call, and {now} here"
            help = "a function is one module a layer; give this call a function of its own"
            raise ExpressionShapeError(message, call.at, help)
        return plan.result

    def function(self, name: str, arguments: tuple[Shape, ...]) -> FunctionPlan | None:
        layers = self.stage.functions[name]
        path = (*self.path, "functions", name)
        for layer_index in self.distinct_layers(layers):

            def sizes(before: Shape, at: int = layer_index) -> Sizes:
                return Sizes.of(
                    channels=before.channels,
                    classes=self.classes,
                    layer=at,
                    depth=self.stage.depth,
                )

            found = infer_layers(layers, arguments, sizes)
            if isinstance(found, BadLayer):
                _bad_layer(layers, found, path, self.mistakes)
                return None
        return FunctionPlan(name, arguments, *found)

    def distinct_layers(self, layers: Sequence[Layer]) -> Iterator[int]:
        """The layer numbers at which a list of layers has to be checked."""
        written = [str(value) for layer in layers for _, value in layer]
        yield from range(self.stage.depth if any("layer" in w for w in written) else 1)


class _Noted(Exception):
    """A mistake that has been noted already."""


def _as_expression(call: LiftedCall) -> Call:
    return Call(call.function, call.arguments)
