"""The shapes of streams, temporaries and results through a stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from archspec.expressions import Assign, Call, Expression, Let, Name, Permute, names
from archspec.layers import Layer, Residual
from archspec.shapes import Shape, ShapeError, Sizes
from archspec.spec import Drawn, Learned, Stage
from archspec.tree import Path
from compiler.canonical import map_of
from compiler.check import invertible_in_evaluation
from compiler.constants import NUMBERS, leaves
from compiler.layer_lists import note_bad_layer, plain_layers
from compiler.places import Mistakes
from compiler.plan import FunctionPlan, LayerPlan, MapPlan, SidePlan, StagePlan, StreamPlan
from compiler.shapes import (
    BadLayer,
    Coefficient,
    ExpressionShapeError,
    Scalar,
    ShapeOrScalar,
    infer_expression,
    infer_layers,
)
from compiler.smoothness import smoothness_factor
from compiler.stage_program import Checked, all_read
from compiler.stage_settings import (
    budget,
    checkpoints,
    fraction_bits,
    results,
    reversed_from,
    stored,
    strategy,
)


def resolve_stage(
    stage: Stage,
    checked: Checked,
    shape: Shape,
    side: Mapping[str, Shape],
    known: Mapping[str, int],
    packages: tuple[str, ...],
    path: Path,
    mistakes: Mistakes,
) -> StagePlan | None:
    """The plan of the stage at `path` whose input is of `shape`; None after noting a mistake. Sizes
    are written with those `known`, and modules come from `packages`."""
    return _StageResolver(stage, checked, side, known, packages, path, mistakes).resolve(shape)


class _StageResolver:
    """Shapes through one stage."""

    def __init__(
        self,
        stage: Stage,
        checked: Checked,
        side: Mapping[str, Shape],
        known: Mapping[str, int],
        packages: tuple[str, ...],
        path: Path,
        mistakes: Mistakes,
    ) -> None:
        self.stage, self.checked, self.side, self.known = stage, checked, side, known
        self.packages, self.path, self.mistakes = packages, path, mistakes
        self.functions: dict[str, FunctionPlan | None] = {}
        self.maps: dict[str, MapPlan] = {}

    def resolve(self, shape: Shape) -> StagePlan | None:
        before = len(self.mistakes.found)
        program, stage = self.checked.program, self.stage
        transition, entry = plain_layers(
            stage.transition,
            shape,
            self.known,
            (*self.path, "transition"),
            self.packages,
            self.mistakes,
        )
        if entry is None:
            return None
        streams = self.streams(entry)
        if len(self.mistakes.found) > before:
            return None
        started = dict(self.functions)
        shapes = {s.name: s.shape for s in streams}
        self.steps(shapes)
        self.check_kept(streams, shapes)
        output = self.output(shapes)
        smoothness = smoothness_factor(stage, program, self.path, self.mistakes)
        if output is None or len(self.mistakes.found) > before:
            return None
        functions = [plan for plan in self.functions.values() if plan]
        read = all_read(self.checked.steps, program.constants)
        in_evaluation = invertible_in_evaluation(
            self.checked.steps, program.constants, stage.depth, reversed_from(stage)
        )
        return StagePlan(
            name=str(self.path[-1]),
            depth=stage.depth,
            backward=strategy(stage, not self.checked.obstacles),
            checkpoints=checkpoints(stage),
            stored=stored(stage),
            results=results(stage),
            budget=budget(stage),
            invertible_from=reversed_from(stage),
            store_every=min(stage.store_every or stage.depth, stage.depth),
            transition=transition,
            input=entry,
            streams=streams,
            final=tuple(shapes.values()),
            side=tuple(SidePlan(n, s) for n, s in self.side.items() if n in read),
            start_functions=tuple(f for f in functions if f.name in started),
            functions=tuple(f for f in functions if f.name not in started),
            maps=tuple(self.maps[name] for name in stage.maps if name in self.maps),
            share=stage.share,
            constants=program.constants,
            fraction_bits=fraction_bits(stage),
            smoothness=smoothness,
            steps=self.checked.steps,
            output=program.output,
            result=output,
            obstacles=self.checked.obstacles,
            invertible_in_evaluation=not self.checked.obstacles and in_evaluation,
            reads_progress="progress" in read,
        )

    def check_kept(self, streams: Sequence[StreamPlan], final: Mapping[str, Shape]) -> None:
        """A stage of several layers has streams of the same shape after each of them."""
        for stream in streams:
            if self.stage.depth > 1 and final[stream.name] != stream.shape:
                message = (
                    f"`{stream.name}` is {stream.shape} before a layer and {final[stream.name]} "
                    f"after it, and the stage has {self.stage.depth} layers"
                )
                help = "give a map that changes shapes a stage of depth 1"
                self.mistakes.key("E402", message, (*self.path, "streams", stream.name), help)

    def streams(self, entry: Shape) -> tuple[StreamPlan, ...]:
        scope = self.scope({"input": entry, "zeros": entry})
        plans = []
        for name, start in self.checked.program.starts.items():
            place = (*self.path, "streams", name)
            message = f"`{name}` starts as a number, and a stream has the shape of its input"
            if shape := self.stream_shape(start, place, scope, message):
                plans.append(StreamPlan(name, start, shape))
        return tuple(plans)

    def output(self, streams: Mapping[str, Shape]) -> Shape | None:
        place = (*self.path, "output")
        message = "the output is a number, and a stage gives a stream or several"
        return self.stream_shape(self.checked.program.output, place, self.scope(streams), message)

    def stream_shape(
        self, text: Expression, place: Path, scope: Mapping[str, ShapeOrScalar], message: str
    ) -> Shape | None:
        """The shape of what must be a stream; None after noting a mistake."""
        try:
            shape = self.shape_of(text, place, scope)
        except _Noted:
            return None
        if shape is None or isinstance(shape, Coefficient):
            self.mistakes.value("E402", message, place)
            return None
        return shape

    def scope(self, shapes: Mapping[str, Shape]) -> dict[str, ShapeOrScalar]:
        numbers: dict[str, ShapeOrScalar] = dict.fromkeys(NUMBERS, Scalar)
        constants = self.checked.program.constants
        first = next(iter(shapes.values()))
        for name in constants:
            leaf = [constants.get(n) for n in leaves(Name(name), constants)]
            per_channel = any(isinstance(c, Learned) and c.per == "channel" for c in leaf)
            varies = per_channel or any(isinstance(c, Drawn) for c in leaf)
            numbers[name] = Coefficient(first, per_channel) if varies else Scalar
        return {**numbers, **self.side, **shapes}

    def shape_of(
        self, expression: Expression, place: Path, scope: Mapping[str, ShapeOrScalar]
    ) -> ShapeOrScalar:
        """An expression's shape; None for a plain number. Raises `_Noted`."""
        try:
            return infer_expression(expression, scope, self.call)
        except ExpressionShapeError as error:
            self.mistakes.text("E402", error.message, place, error.at, error.help)
            raise _Noted from None

    def steps(self, streams: dict[str, Shape]) -> None:
        scope, maps = self.scope(streams), self.stage.maps
        unknown: set[str] = set()  # temporaries whose shape a mistake hides
        for index, statement in enumerate(self.checked.program.update):
            place = (*self.path, "update", index)
            if isinstance(statement, Permute):
                self.permutation(statement, streams, place)
                continue
            if map := map_of(statement, maps):
                assert isinstance(statement, Assign)
                after = self.mapped(map, streams[statement.target], place)
                streams[statement.target] = scope[statement.target] = after
                continue
            try:
                if names(statement.value) & unknown:
                    raise _Noted
                shape = self.shape_of(statement.value, place, scope)
            except _Noted:
                unknown |= {statement.name} if isinstance(statement, Let) else set()
                continue
            if isinstance(statement, Assign):
                self.assignment(statement.target, streams[statement.target], shape, place)
            elif shape is None or isinstance(shape, Coefficient):
                message, help = f"`{statement.name}` is a number", "write it under `constants`"
                self.mistakes.value("E402", message, place, help)
                unknown.add(statement.name)
            else:
                scope[statement.name] = shape

    def assignment(self, target: str, old: Shape, new: ShapeOrScalar, place: Path) -> None:
        fits = new.goes_with(old) if isinstance(new, Coefficient) else new in (None, old)
        if not fits:
            shape = new.like if isinstance(new, Coefficient) else new
            message = f"`{target}` is {old}, and it would become {shape}"
            self.mistakes.value("E402", message, place)

    def mapped(self, name: str, before: Shape, place: Path) -> Shape:
        """The shape after an invertible map."""
        plan = self.maps.get(name)
        if plan is not None and plan.before != before:
            message = f"`{name}` takes {plan.before} in its first call, and {before} here"
            help = "a map is one module a layer; give this call a map of its own"
            self.mistakes.value("E402", message, place, help)
            return before
        map = self.stage.maps[name]
        try:
            after = map.infer(before)
        except ShapeError as error:
            message = f"`{map.kind}` does not fit here: {error.message}"
            self.mistakes.value("E401", message, place, error.help)
            after = before
        self.maps[name] = MapPlan(name, map, before, after)
        return after

    def permutation(self, step: Permute, streams: Mapping[str, Shape], place: Path) -> None:
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
        plans: tuple[LayerPlan, ...] = ()
        for known in self.distinct_sizes(name, layers):

            def sizes(before: Shape, known: Mapping[str, int] = known) -> Sizes:
                return Sizes.of(channels=before.channels, **self.known, **known)

            found = infer_layers(layers, arguments, sizes, self.packages)
            if isinstance(found, BadLayer):
                note_bad_layer(layers, found, path, self.mistakes)
                return None
            if bad := _other_shapes(plans, found[0], known.get("layer", 0)):
                note_bad_layer(layers, bad, path, self.mistakes)
                return None
            plans = found[0]
        return FunctionPlan(name, arguments, plans, plans[-1].after)

    def distinct_sizes(self, name: str, layers: Sequence[Layer]) -> Iterator[Mapping[str, int]]:
        """What sizes may be written with in each layer of the stage that has to be checked."""
        if name in self.checked.program.start_functions:
            yield {}
            return
        if self.stage.share:
            yield {"depth": self.stage.depth}
            return
        reads_layer = any("layer" in written for written in _settings(layers))
        for index in range(self.stage.depth if reads_layer else 1):
            yield {"layer": index, "depth": self.stage.depth}


def _other_shapes(
    plans: Sequence[LayerPlan], others: Sequence[LayerPlan], number: int
) -> BadLayer | None:
    """The first layer of a list that has another shape in another layer of the stage, looked for
    inside those that have lists of their own too."""
    for index, (first, now) in enumerate(zip(plans, others, strict=False)):
        pairs = zip(("body", "shortcut"), first.branches, now.branches, strict=False)
        for name, branch, other in pairs:
            if bad := _other_shapes(branch, other, number):
                return BadLayer(index, bad.error, ("residual", name, bad.index, *bad.inside))
        if first.after != now.after:
            message = f"{first.after} at layer 0 and {now.after} at layer {number}"
            return BadLayer(index, ShapeError(message, "every layer has the same shapes"))
    return None


def _settings(layers: Sequence[Layer]) -> Iterator[str]:
    """The settings of layers, as texts, with those of lists inside them."""
    for layer in layers:
        for field, value in layer:
            if isinstance(layer, Residual):
                yield from _settings(value if field != "kind" else ())
            elif field != "kind":
                yield str(value)


class _Noted(Exception):
    """A mistake that has been noted already."""
