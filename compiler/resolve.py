"""A loaded spec into a plan: every text parsed, every name looked up, every shape inferred."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from keyword import iskeyword

from archspec.diagnostics import Diagnostic, SpecError
from archspec.expressions import RESERVED, Assign, Call, Expression, Let, Name, Permute, names
from archspec.layers import Layer, Residual
from archspec.loading import Loaded
from archspec.shapes import Shape, ShapeError, Sizes
from archspec.spec import (
    CheckpointBackward,
    Drawn,
    ExactArithmetic,
    Learned,
    ReversibleBackward,
    Spec,
    Stage,
)
from archspec.tree import Path
from compiler.canonical import canonical, map_of, reads
from compiler.check import check_arithmetic, check_exact, check_invertible, invertible_in_evaluation
from compiler.constants import NUMBERS, leaves
from compiler.places import Mistakes
from compiler.plan import (
    Constant,
    FunctionPlan,
    LayerPlan,
    MapPlan,
    NetworkPlan,
    SidePlan,
    StagePlan,
    Step,
    StreamPlan,
)
from compiler.program import Program, parse_program
from compiler.schedules import Checkpoints
from compiler.shapes import (
    BadLayer,
    Coefficient,
    ExpressionShapeError,
    ModuleNotAllowedError,
    Scalar,
    ShapeOrScalar,
    infer_expression,
    infer_layers,
)
from compiler.smoothness import smoothness_factor


def resolve(loaded: Loaded) -> NetworkPlan:
    """Resolve and check a spec. Raises `SpecError` with every mistake that can be told apart."""
    spec = loaded.spec
    mistakes = Mistakes(loaded.tree)
    known = spec.task.sizes
    side = {name: entry.shape for name, entry in spec.side.items()}
    _check_side(spec, mistakes)
    programs = {
        name: _check_program(stage, side, ("stages", name), mistakes)
        for name, stage in spec.stages.items()
    }
    shape: Shape | None = spec.input.shape
    packages = loaded.packages
    stem, shape = _plain_layers(spec.stem, shape, known, ("stem",), packages, mistakes)
    stages = []
    for name, stage in spec.stages.items():
        program = programs[name]
        if shape is None or program is None:
            shape = None
            continue
        resolver = _StageResolver(stage, program, side, known, packages, ("stages", name), mistakes)
        plan = resolver.resolve(shape)
        shape = plan.result if plan else None
        stages += [plan] if plan else []
    head, shape = _plain_layers(spec.head, shape, known, ("head",), packages, mistakes)
    wanted = spec.task.output(spec.input.shape)
    if shape is not None and shape != wanted:
        message = f"the network ends in {shape}, and the task needs {wanted}"
        size = next(iter(known), str(wanted.channels))
        help = f"end the head with `pool: mean` and `linear: {size}`"
        mistakes.key("E403", message, ("head",) if spec.head else ("stages",), help)
    for name in side:
        if not mistakes.found and not any(s.name == name for stage in stages for s in stage.side):
            mistakes.key("E203", f"the side input `{name}` is not used", ("side", name))
    if mistakes.found:
        raise SpecError(mistakes.found)
    assert shape is not None
    sides = tuple(SidePlan(name, shape) for name, shape in side.items())
    return NetworkPlan(spec.name, spec.input.shape, sides, known, stem, tuple(stages), head, shape)


def _check_side(spec: Spec, mistakes: Mistakes) -> None:
    for name in spec.side:
        if name in RESERVED or iskeyword(name) or name in ("value", "draws", "self"):
            message = f"`{name}` has a meaning of its own"
            mistakes.key("E204", message, ("side", name), "choose another name")


def _plain_layers(
    layers: Sequence[Layer],
    shape: Shape | None,
    known: Mapping[str, int],
    path: Path,
    packages: tuple[str, ...],
    mistakes: Mistakes,
) -> tuple[tuple[LayerPlan, ...], Shape | None]:
    """The layers of a stem, a transition or a head."""
    if shape is None:
        return (), None

    def sizes(before: Shape) -> Sizes:
        return Sizes.of(channels=before.channels, **known)

    found = infer_layers(layers, (shape,), sizes, packages)
    if isinstance(found, BadLayer):
        _bad_layer(layers, found, path, mistakes)
        return (), None
    return found


def _bad_layer(layers: Sequence[Layer], bad: BadLayer, path: Path, mistakes: Mistakes) -> None:
    place = (*path, bad.index, *bad.inside)
    if isinstance(bad.error, ModuleNotAllowedError):
        mistakes.value("E404", bad.error.message, place, bad.error.help)
        return
    kind = getattr(_layer_at(layers[bad.index], bad.inside), "kind", "layer")
    message = f"`{kind}` does not fit here: {bad.error.message}"
    mistakes.value("E401", message, place, bad.error.help)


def _layer_at(layer: Layer, inside: Path) -> Layer:
    """The layer at a path of `residual`, a list's name and an index, again and again."""
    for name, index in zip(inside[1::3], inside[2::3], strict=True):
        layer = getattr(layer, str(name))[index]
    return layer


@dataclass(frozen=True)
class _Checked:
    program: Program
    steps: tuple[Step, ...]
    obstacles: tuple[Diagnostic, ...]


def _check_program(
    stage: Stage, side: Collection[str], path: Path, mistakes: Mistakes
) -> _Checked | None:
    program = parse_program(stage, side, path, mistakes)
    if program is None:
        return None
    steps: list[Step] = []
    for index, statement in enumerate(program.update):
        try:
            steps.append(canonical(statement, stage.maps))
        except ArithmeticError:
            message = "this divides by zero, or by a number too large or small"
            mistakes.value("E206", message, (*path, "update", index))
    if len(steps) < len(program.update):
        return None
    before = len(mistakes.found)
    check_arithmetic(program, steps, stage.depth, path, mistakes)
    if len(mistakes.found) > before:
        return None
    obstacles = Mistakes(mistakes.tree)
    check_invertible(program, steps, stage.depth, path, obstacles, reversed_from(stage))
    if stage.backward.kind == "reversible":
        mistakes.found += obstacles.found
    if fraction_bits(stage) is not None and not obstacles.found:
        check_exact(program, steps, stage.depth, path, mistakes, reversed_from(stage))
    _check_backward(stage, "progress" in all_read(steps, program.constants), path, mistakes)
    return _Checked(program, tuple(steps), tuple(obstacles.found))


def _check_backward(stage: Stage, changes: bool, path: Path, mistakes: Mistakes) -> None:
    """Settings that do not go with one another; `changes` is whether the program does, over
    training."""
    if reversed_from(stage) > 0 and not changes:
        message = "no coefficient of this stage changes over training"
        help = "leave out `from`, which is for coefficients that read `progress`"
        mistakes.value("E305", message, (*path, "backward", "reversible", "from"), help)
    if stage.store_every is not None and stage.backward.kind != "reversible":
        message = f"`backward: {stage.backward.kind}` keeps what it needs in every layer"
        help = "leave out `store_every`, which goes with `backward: reversible`"
        mistakes.key("E305", message, (*path, "store_every"), help)
    elif fraction_bits(stage) is not None and stage.store_every is not None:
        message = "streams of exact arithmetic come back as they were, from the end of the stage"
        help = "leave out `store_every`, which is for `arithmetic: float`"
        mistakes.key("E305", message, (*path, "store_every"), help)


class _StageResolver:
    """Shapes through one stage."""

    def __init__(
        self,
        stage: Stage,
        checked: _Checked,
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
        transition, entry = _plain_layers(
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
            backward=stage.backward.kind,
            checkpoints=checkpoints(stage),
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
                _bad_layer(layers, found, path, self.mistakes)
                return None
            if bad := _other_shapes(plans, found[0], known.get("layer", 0)):
                _bad_layer(layers, bad, path, self.mistakes)
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


def all_read(steps: Sequence[Step], constants: Mapping[str, Constant]) -> frozenset[str]:
    """All that updates read, constants looked into."""
    found = frozenset(name for step in steps for name in reads(step))
    return found | {leaf for name in found for leaf in leaves(Name(name), constants)}


def reversed_from(stage: Stage) -> float:
    """The progress of training from which on a stage is reversed; 0 for one that never is."""
    backward = stage.backward
    return backward.since if isinstance(backward, ReversibleBackward) else 0.0


def checkpoints(stage: Stage) -> Checkpoints:
    """Where a checkpointed stage keeps its streams."""
    backward = stage.backward
    if isinstance(backward, CheckpointBackward):
        return Checkpoints(backward.every, backward.slots)
    return Checkpoints()


def fraction_bits(stage: Stage) -> int | None:
    """Of the grid of a stage's streams; None where its arithmetic is that of floats."""
    arithmetic = stage.arithmetic
    return arithmetic.fraction_bits if isinstance(arithmetic, ExactArithmetic) else None
