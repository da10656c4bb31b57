"""A stage as classes: one for each form that its layers have, and one for itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from textwrap import fill, indent

from torch import nn

from archspec.expressions import Expression, fold, names
from archspec.shapes import Shape, channel_dimension
from compiler.canonical import lift_calls
from compiler.constants import fixed_values
from compiler.emission.expressions import python
from compiler.emission.layers import equations, layer_classes, table, variable
from compiler.emission.modules import made
from compiler.emission.numbers import Group, unmarked
from compiler.emission.writing import ClassNames, block, camel, docstring, entries, literal, method
from compiler.plan import FunctionPlan, StagePlan
from compiler.stage import Stage


def stage_classes(stage: Stage, known: ClassNames) -> tuple[list[str], str]:
    """The classes of a stage's layers, then that of the stage itself; and the latter's name."""
    plan, groups = stage.plan, layer_classes(stage)
    titles = [known.new(f"{camel(plan.name)}Layer") for _ in groups]
    layers = [_layer(stage, title, group) for title, group in zip(titles, groups, strict=True)]
    title = known.new(f"{camel(plan.name)}Stage")
    methods = [
        _init(stage, titles, groups),
        _program(plan),
        _start(stage),
        _merge(plan),
    ]
    doc = docstring(f"Stage `{plan.name}`: {plan.depth} layers; its input is {plan.input}.")
    return [*layers, block(f"class {title}(BaseStage):", doc, "", *methods)], title


def _layer(stage: Stage, title: str, group: Group) -> str:
    plan = stage.plan
    which = "" if len(group.layers) == plan.depth else f" ({_ranges(group.layers)})"
    text = f"One layer of stage `{plan.name}`{which}.\n\n{indent(equations(plan), '    ')}\n"
    text += "".join(f"\n{fill(note, 90)}\n" for note in _notes(stage))
    tables = [f"self.{name} = {table(values)}[index]" for name, values in group.tables.items()]
    inside = indent("".join(f"{line}\n" for line in tables), "    ")
    methods = group.text.replace("    TABLES\n", inside, 1)
    return block(f"class {title}(nn.Module):", docstring(text), "", methods)


def _notes(stage: Stage) -> Iterator[str]:
    """What the equations do not say."""
    plan = stage.plan
    if plan.obstacles:
        yield f"It has no inverse: {_why(plan)}."
    if plan.fraction_bits is not None:
        loses = (
            " What an update loses of its stream goes into `kept`, where the inverse finds it."
            if stage.facts.needs_information
            else ""
        )
        grid = f"multiples of 2^-{plan.fraction_bits}"
        yield f"Streams are {grid}: what is added to one is rounded to these first.{loses}"


def _why(plan: StagePlan) -> str:
    """Why a program has no inverse, without the places in files that `build` tells."""
    return "; ".join(dict.fromkeys(obstacle.message for obstacle in plan.obstacles))


def _ranges(layers: Sequence[int]) -> str:
    """[0, 2, 3, 4] as `layers 0, 2 to 4`."""
    runs = [[n for _, n in run] for _, run in groupby(enumerate(layers), lambda p: p[1] - p[0])]
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(texts)}"


# The stage itself --------------------------------------------------------------------------------


def _init(stage: Stage, titles: Sequence[str], groups: Sequence[Group]) -> str:
    plan = stage.plan
    found = replace(stage.facts, obstacles=_why(plan))
    known = entries([f"{name}={literal(value)}" for name, value in vars(found).items()])
    lines = [
        f"super().__init__(Facts({known}), {literal(plan.backward)})",
        f"self.transition = {unmarked(made(stage.transition))}",
        f"self.starts = {_module_dict(dict(stage.starts.items()))}",
    ]
    if plan.share:
        lines.append(f"self.shared = {_module_dict(stage.shared.by_name())}")
    layers = entries(_all_layers(plan, titles, groups))
    lines.append(f"self.layers = nn.ModuleList([{layers}])")
    return method("__init__(self) -> None", lines)


def _module_dict(modules: Mapping[str, nn.Module]) -> str:
    texts = [f'"{name}": {unmarked(made(module))}' for name, module in modules.items()]
    return f"nn.ModuleDict({{{entries(texts)}}})"


def _all_layers(plan: StagePlan, titles: Sequence[str], groups: Sequence[Group]) -> list[str]:
    """What makes the layers, in order: runs of one class together."""
    form = {n: (title, i) for title, g in zip(titles, groups, strict=True)
            for i, n in enumerate(g.layers)}  # fmt: skip
    shared = ", self.shared" if plan.share else ""
    texts = []
    for title, run in groupby(range(plan.depth), lambda n: form[n][0]):
        places = [form[n][1] for n in run]
        if len(places) == 1:
            texts.append(f"{title}({places[0]}{shared})")
        else:
            span = f"{places[0]}, {places[-1] + 1}" if places[0] else f"{places[-1] + 1}"
            texts.append(f"*({title}(i{shared}) for i in range({span}))")
    return texts


def _program(plan: StagePlan) -> str:
    functions = "self.shared" if plan.share else "layer"
    lines = [
        "return [",
        "    Layer(",
        "        layer.updates(),",
        f"        dict({functions}.named_children()),",
        "        layer.coefficients.evaluators(),",
        "        layer.coefficients.leaves(),",
        "    )",
        "    for layer in self.layers",
        "]",
    ]
    return method("program(self) -> list[Layer]", lines, "The layers as the engine runs them.")


def _start(stage: Stage) -> str:
    """The method that makes streams from what has passed the transition."""
    plan = stage.plan
    fixed = fixed_values(plan.constants, 0, plan.depth)
    functions = {function.name: function for function in plan.start_functions}
    lines = []
    for stream in plan.streams:
        expression, calls = lift_calls(fold(stream.start, fixed))
        texts = {"input": "input", "zeros": "torch.zeros_like(input)"}
        for call in calls:
            given = _arguments(call.arguments, functions[call.function], texts, plan)
            name = f"_{stream.name}_{call.result.replace('@', '_')}"  # streams begin with letters
            lines.append(f"{name} = self.begin({literal(call.function)}, {given})")
            texts[call.result] = name
        lines.append(f"{variable(stream.name)} = {_whole(expression, texts, stream.shape, plan)}")
    returned = ", ".join(variable(s.name) for s in plan.streams)
    lines.append(f"return ({returned},)" if len(plan.streams) == 1 else f"return {returned}")
    doc = "What has passed the transition → the streams."
    return method("start(self, input: Tensor) -> tuple[Tensor, ...]", lines, doc)


def _arguments(
    arguments: Sequence[Expression],
    function: FunctionPlan,
    texts: Mapping[str, str],
    plan: StagePlan,
) -> str:
    pairs = zip(arguments, function.arguments, strict=True)
    return ", ".join(_whole(argument, texts, shape, plan) for argument, shape in pairs)


def _whole(expression: Expression, texts: Mapping[str, str], shape: Shape, plan: StagePlan) -> str:
    """The text of an expression; a number fills the shape."""
    text = unmarked(python(expression, lambda n: texts[n], channel_dimension(plan.input)))
    if names(expression):
        return text
    return f"input.new_full((input.shape[0], {', '.join(map(str, shape.sizes))}), {text})"


def _merge(plan: StagePlan) -> str:
    """The method that makes the stage's output."""
    output = fold(plan.output, fixed_values(plan.constants, 0, plan.depth))
    first = variable(plan.streams[0].name)
    text = unmarked(python(output, variable, channel_dimension(plan.input)))
    if not names(output):
        sizes = ", ".join(map(str, plan.result.sizes))
        text = f"{first}.new_full(({first}.shape[0], {sizes}), {text})"
    parameters = ", ".join(f"{variable(s.name)}: Tensor" for s in plan.streams)
    doc = "The streams → the stage's output."
    return method(f"merge(self, {parameters}) -> Tensor", [f"return {text}"], doc)
