"""One layer of a stage as a class: its functions, its update and inverse as plain statements, and
the same update by update, as the engine takes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from textwrap import indent

from archspec.expressions import Expression, Name, fold, names, subexpressions
from archspec.spec import Drawn
from compiler.canonical import reads
from compiler.constants import NUMBERS, fixed_values
from compiler.emission.expressions import python
from compiler.emission.modules import made
from compiler.emission.numbers import Group, group
from compiler.emission.writing import literal
from compiler.engine import Update
from compiler.lower import affine, affine_inverse
from compiler.plan import Affine, Call, General, Mapped, Permutation, StagePlan, Step, Temporary
from compiler.self_check import TAKEN
from compiler.stage import LayerModule, Stage, channel_shape, learned, like
from compiler.summary import inverse_text

DOCS = {"forward": "One layer, written out.", "inverse": "What the layer made these of."}


def variable(name: str) -> str:
    """The variable that holds a stream, temporary, coefficient or side input."""
    return f"_{name}" if name in TAKEN else name


def layer_classes(stage: Stage) -> list[Group]:
    """The texts of the classes of a stage's layers, without their `class` lines, and which layers
    are of which class."""
    layers = [layer for layer in stage.layers if isinstance(layer, LayerModule)]
    return group([_Layer(stage.plan, layer).text() for layer in layers])


class _Layer:
    """Writes one layer, its numbers marked."""

    def __init__(self, plan: StagePlan, layer: LayerModule) -> None:
        self.plan, self.layer = plan, layer
        self.fixed = fixed_values(plan.constants, layer.index, plan.depth)
        self.learned = learned(plan)
        self.owner = "self.shared[0]" if plan.share else "self"
        self.given = [name for name, c in plan.constants.items() if isinstance(c, Drawn)]
        self.given += ["progress"] if plan.reads_progress else []
        self.given += [side.name for side in plan.side]

    def text(self) -> str:
        methods = [self.init(), self.plain("forward", self.forward_lines())]
        if self.plan.invertible:
            methods.append(self.plain("inverse", self.inverse_lines()))
        methods.append(self.updates())
        return "\n".join(methods)

    # The modules

    def init(self) -> str:
        """The constructor, but for the tables of its group."""
        own = {} if self.plan.share else self.layer.by_name()
        shared = ", shared: nn.Module" if self.plan.share else ""
        lines = ["super().__init__()", "TABLES"]
        if self.plan.share:
            lines.append("self.shared = [shared]  # the stage's; in a list, not this layer's own")
        lines += [f"self.{name} = {made(module)}" for name, module in own.items()]
        lines.append(f"self.coefficients = {self.coefficients()}")
        body = indent("\n".join(lines), "    ")
        return f"def __init__(self, index: int{shared}) -> None:\n{body}\n"

    def coefficients(self) -> str:
        parts = []
        for name, c in self.learned.items():
            within = f", within={tuple(c.within)!r}" if c.within else ""
            channel = ", per_channel=True" if c.per_channel else ""
            parts.append(f'"{name}": Coefficient({c.start!r}{within}{channel})')
        return f"Coefficients({{{', '.join(parts)}}}, {channel_shape(self.plan)!r})"

    # Plain statements

    def plain(self, method: str, lines: Sequence[str]) -> str:
        streams = ", ".join(variable(s.name) for s in self.plan.streams)
        given = "".join(f", {variable(name)}: Tensor" for name in self.given)
        parameters = ", ".join(f"{variable(s.name)}: Tensor" for s in self.plan.streams)
        keywords = f", *{given}" if given else ""
        used = [name for name in self.learned if self.is_read(name)]
        coefficients = [f'{variable(n)} = self.coefficients.value("{n}")' for n in used]
        body = "\n".join(
            [f'"""{DOCS[method]}"""', *coefficients, *lines, f"return {streams}" + self.comma()]
        )
        head = f"def {method}(self, {parameters}{keywords}) -> tuple[Tensor, ...]:"
        if len(head) > 92:
            inner = f"{parameters}{keywords}".replace(", ", ",\n    ")
            head = f"def {method}(\n    self,\n    {inner},\n) -> tuple[Tensor, ...]:"
        return f"{head}\n{indent(body, '    ')}\n"

    def comma(self) -> str:
        return "," if len(self.plan.streams) == 1 else ""

    def is_read(self, name: str) -> bool:
        return any(name in self.read_by(step) for step in self.plan.steps)

    def read_by(self, step: Step) -> frozenset[str]:
        """What a step reads, fixed constants looked into."""
        found = reads(step)
        inner = [names(self.fixed[name]) for name in found if name in self.fixed]
        return found.union(*inner)

    def forward_lines(self) -> list[str]:
        return [line for step in self.plan.steps for line in self.forward_step(step)]

    def forward_step(self, step: Step) -> list[str]:
        if isinstance(step, Permutation):
            targets, sources = (map(variable, side) for side in (step.targets, step.sources))
            return [f"{', '.join(targets)} = {', '.join(sources)}"]
        target = variable(_target(step))
        if isinstance(step, Mapped):
            return [f"{target} = {self.owner}.{step.map}({target})"]
        return self.statement(target, self.value(step), step)

    def inverse_lines(self) -> list[str]:
        """In the order in which the inverse runs: a temporary before the first that needs it."""
        temporaries = {step.name: step for step in self.plan.steps if isinstance(step, Temporary)}
        lines: list[str] = []
        given: set[str] = set()

        def define(step: Step) -> None:
            for name in sorted(reads(step) & set(temporaries) - given):
                define(temporaries[name])
                given.add(name)
                lines.extend(self.forward_step(temporaries[name]))

        for step in reversed(self.plan.steps):
            if not isinstance(step, Temporary):
                define(step)
                lines.extend(self.inverse_step(step))
        return lines

    def inverse_step(self, step: Step) -> list[str]:
        if isinstance(step, Permutation):
            targets, sources = (map(variable, side) for side in (step.targets, step.sources))
            return [f"{', '.join(sources)} = {', '.join(targets)}"]
        target = variable(_target(step))
        if isinstance(step, Mapped):
            return [f"{target} = {self.owner}.{step.map}.inverse({target})"]
        assert isinstance(step, Affine)
        return self.statement(target, self.inverse_value(step), step)

    def value(self, step: Affine | General | Temporary) -> Expression:
        if isinstance(step, Affine):
            scale, rest = fold(step.scale, self.fixed), fold(step.rest, self.fixed)
            return affine(scale, step.target, rest)
        return fold(step.value, self.fixed)

    def inverse_value(self, step: Affine) -> Expression:
        scale, rest = fold(step.scale, self.fixed), fold(step.rest, self.fixed)
        return affine_inverse(scale, step.target, rest)

    def statement(
        self, target: str, value: Expression, step: Affine | General | Temporary
    ) -> list[str]:
        """An assignment, and before it the calls whose results it reads more than once."""
        uses = Counter(_results(value))
        arguments = {c.result: [fold(a, self.fixed) for a in c.arguments] for c in step.calls}
        for call in step.calls:
            uses.update(name for a in arguments[call.result] for name in _results(a))
        texts: dict[str, str] = {}

        def named(name: str) -> str:
            return texts.get(name) or variable(name)

        lines = []
        for call in step.calls:
            pairs = zip(arguments[call.result], call.arguments, strict=True)
            given = ", ".join(
                self.filled(python(a, named), a, named(like(written, self.plan)))
                for a, written in pairs
            )
            texts[call.result] = f"{self.owner}.{call.function}({given})"
            if uses[call.result] > 1:
                local = call.result.replace("@", "_")
                lines.append(f"{local} = {texts[call.result]}")
                texts[call.result] = local
        shaped = like(step.value, self.plan) if isinstance(step, Temporary) else _target(step)
        return [*lines, f"{target} = {self.filled(python(value, named), value, named(shaped))}"]

    def filled(self, text: str, value: Expression, shape: str) -> str:
        """The text of a value in the shape of a stream: numbers and coefficients have none."""
        read = names(value)
        if not read:
            return f"torch.full_like({shape}, {text})"
        is_shaped = any(name not in self.plan.constants and name not in NUMBERS for name in read)
        return text if is_shaped else f"({text}).expand_as({shape})"

    # The engine's updates

    def updates(self) -> str:
        steps = "".join(
            f"{self.update(step, run)},\n"
            for step, run in zip(self.plan.steps, self.layer.steps, strict=True)
        )
        doc = "The same for the engine; `at` holds streams, coefficients and results by name."
        body = f'"""{doc}"""\nreturn (\n{indent(steps, "    ")})\n'
        return f"def updates(self) -> tuple[Step, ...]:\n{indent(body, '    ')}"

    def update(self, step: Step, run: object) -> str:
        if isinstance(step, Permutation):
            return f"Permute({literal(step.targets)}, {literal(step.sources)})"
        if isinstance(step, Mapped):
            return f"Map({literal(step.target)}, {literal(step.map)})"
        assert isinstance(run, Update)
        fields = [literal(run.target), f"calls={self.calls(step.calls, run)}"]
        fields.append(f"forward={self.function(self.value(step), step)}")
        inverse = "None"
        if isinstance(step, Affine) and self.plan.invertible:
            inverse = self.function(self.inverse_value(step), step)
        fields.append(f"inverse={inverse}")
        fields += [f"coefficients={literal(run.coefficients)}"] if run.coefficients else []
        fields += [f"temporaries={literal(run.temporaries)}"] if run.temporaries else []
        fields += ["is_temporary=True"] if run.is_temporary else []
        lines = "".join(f"{field},\n" for field in fields)
        return f"Update(\n{indent(lines, '    ')})"

    def calls(self, calls: Sequence[Call], run: Update) -> str:
        texts = []
        for call, made_call in zip(calls, run.calls, strict=True):
            arguments = [fold(a, self.fixed) for a in call.arguments]
            lambdas = ", ".join(
                self.lambda_of(a, like(b, self.plan))
                for a, b in zip(arguments, call.arguments, strict=True)
            )
            after = f", after={made_call.after!r}" if made_call.after else ""
            texts.append(f'Call("{call.result}", "{call.function}", ({lambdas},){after})')
        return f"({', '.join(texts)},)" if texts else "()"

    def function(self, value: Expression, step: Affine | General | Temporary) -> str:
        shaped = like(step.value, self.plan) if isinstance(step, Temporary) else step.target
        return self.lambda_of(value, shaped)

    def lambda_of(self, value: Expression, shaped: str) -> str:
        text = python(value, lambda name: f'at["{name}"]')
        if isinstance(value, Name):
            text = f"{text}.view_as({text})"  # as `compiler.lower.lower_stream` does
        return f"lambda at: {self.filled(text, value, f'at[{chr(34)}{shaped}{chr(34)}]')}"


def _results(value: Expression) -> Iterator[str]:
    """The results of calls in an expression, as often as it reads them."""
    for part in subexpressions(value):
        if isinstance(part, Name) and "@" in part.name:
            yield part.name


def _target(step: Affine | General | Temporary | Mapped) -> str:
    return step.name if isinstance(step, Temporary) else step.target


def equations(plan: StagePlan) -> str:
    """The update beside the inverse that the compiler derived."""
    update = [step.text for step in plan.steps]
    if not plan.invertible:
        return "\n".join(update)
    inverse = inverse_text(plan)
    # Beside each line the one that undoes it, from the bottom up, unless there are temporaries.
    aligned = len(inverse) == len(update) and not any(":=" in line for line in inverse)
    width = max(map(len, ("forward, downwards", *update))) + 4
    heads = ("forward, downwards", f"inverse, {'up' if aligned else 'down'}wards")
    inverse = inverse[::-1] if aligned else inverse
    rows = max(len(update), len(inverse))
    update, inverse = (lines + [""] * (rows - len(lines)) for lines in (update, inverse))
    pairs = [heads, *zip(update, inverse, strict=True)]
    return "\n".join(f"{left:<{width}}{right}".rstrip() for left, right in pairs)


def table(values: Sequence[str]) -> str:
    """A tuple over layers, several to a line."""
    rows = [", ".join(values[i : i + 6]) for i in range(0, len(values), 6)]
    lines = "".join(f"{row},\n" for row in rows)
    return f"(\n{indent(lines, '    ')})" if len(rows) > 1 else f"({rows[0]},)"
