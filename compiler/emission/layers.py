"""One layer of a stage as a class: its functions, its update and inverse as plain statements, and
the same update by update, as the engine takes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from textwrap import indent

from archspec.expressions import Expression, Name, fold, names, subexpressions
from archspec.spec import Drawn
from compiler.canonical import reads
from compiler.constants import NUMBERS, fixed_values
from compiler.emission.expressions import python
from compiler.emission.modules import made
from compiler.emission.numbers import Group, group, marked
from compiler.emission.writing import literal
from compiler.engine import Update
from compiler.exact import Form
from compiler.forms import Choice
from compiler.lower import affine, affine_inverse
from compiler.plan import Affine, Call, General, Mapped, Permutation, StagePlan, Step, Temporary
from compiler.self_check import TAKEN
from compiler.stage import LayerModule, Stage, channel_shape, learned, like
from compiler.summary import inverse_text

DOCS = {"forward": "One layer, written out.", "inverse": "What the layer made these of."}
Bound = tuple[list[str], Callable[[str], str]]
"""Lines before a statement, and the texts of names in it."""


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
        exact = plan.fraction_bits is not None
        self.grid = [f"grid = Grid({plan.fraction_bits})"] if exact else []

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
        given += ", kept: Information" if self.grid else ""
        parameters = ", ".join(f"{variable(s.name)}: Tensor" for s in self.plan.streams)
        keywords = f", *{given}" if given else ""
        used = [name for name in self.learned if self.is_read(name)]
        coefficients = [f'{variable(n)} = self.coefficients.value("{n}")' for n in used]
        body = "\n".join(
            [
                f'"""{DOCS[method]}"""',
                *self.grid,
                *coefficients,
                *lines,
                f"return {streams}" + self.comma(),
            ]
        )
        head = f"def {method}(self, {parameters}{keywords}) -> tuple[Tensor, ...]:"
        if len(head) > 92:
            inner = f"{parameters}{keywords}".replace(", ", ",\n    ")
            head = f"def {method}(\n    self,\n    {inner},\n) -> tuple[Tensor, ...]:"
        if self.grid:  # rounding has no gradient of its own
            head = f"@torch.no_grad()\n{head}"
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
        pairs = zip(self.plan.steps, self.layer.chosen, strict=True)
        return [line for step, choice in pairs for line in self.forward_step(step, choice)]

    def forward_step(self, step: Step, choice: Choice | None = None) -> list[str]:
        if isinstance(step, Permutation):
            targets, sources = (map(variable, side) for side in (step.targets, step.sources))
            return [f"{', '.join(targets)} = {', '.join(sources)}"]
        target = variable(_target(step))
        if isinstance(step, Mapped):
            method, grid = (".advance", ", grid, kept") if choice else ("", "")
            return [f"{target} = {self.owner}.{step.map}{method}({target}{grid})"]
        if choice is not None and isinstance(step, Affine):
            return self.exact_statement(step, choice.form, "advance")
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

        for step, choice in reversed([*zip(self.plan.steps, self.layer.chosen, strict=True)]):
            if not isinstance(step, Temporary):
                define(step)
                lines.extend(self.inverse_step(step, choice))
        return lines

    def inverse_step(self, step: Step, choice: Choice | None) -> list[str]:
        if isinstance(step, Permutation):
            targets, sources = (map(variable, side) for side in (step.targets, step.sources))
            return [f"{', '.join(sources)} = {', '.join(targets)}"]
        target = variable(_target(step))
        if isinstance(step, Mapped):
            method, grid = ("retreat", ", grid, kept") if choice else ("inverse", "")
            return [f"{target} = {self.owner}.{step.map}.{method}({target}{grid})"]
        assert isinstance(step, Affine)
        if choice is not None:
            return self.exact_statement(step, choice.form, "retreat")
        return self.statement(target, self.inverse_value(step), step)

    def value(self, step: Affine | General | Temporary) -> Expression:
        if isinstance(step, Affine):
            scale, rest = self.scale_and_rest(step)
            return affine(scale, step.target, rest)
        return fold(step.value, self.fixed)

    def inverse_value(self, step: Affine) -> Expression:
        scale, rest = self.scale_and_rest(step)
        return affine_inverse(scale, step.target, rest)

    def scale_and_rest(self, step: Affine) -> tuple[Expression, Expression]:
        return fold(step.scale, self.fixed), fold(step.rest, self.fixed)

    def statement(
        self, target: str, value: Expression, step: Affine | General | Temporary
    ) -> list[str]:
        """An assignment; what a general update gives an exact stream is rounded."""
        lines, named = self.bound(step, value)
        shaped = like(step.value, self.plan) if isinstance(step, Temporary) else _target(step)
        text = self.rounded(self.filled(python(value, named), value, named(shaped)), step)
        return [*lines, f"{target} = {text}"]

    def exact_statement(self, step: Affine, form: Form, method: str) -> list[str]:
        """An assignment as a form computes it."""
        target = variable(step.target)
        scale, rest = self.scale_and_rest(step)
        lines, named = self.bound(step, scale, rest)
        change = self.filled(python(rest, named), rest, target)
        given = f"{target}, {python(scale, named)}, {change}, grid, kept"
        return [*lines, f"{target} = {form_text(form)}.{method}({given})"]

    def rounded(self, text: str, step: Affine | General | Temporary) -> str:
        return f"on_grid({text}, grid)" if self.grid and isinstance(step, General) else text

    def bound(self, step: Affine | General | Temporary, *values: Expression) -> Bound:
        """Variables for the calls of a step whose results are read more than once."""
        uses = Counter(name for value in values for name in _results(value))
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
        return lines, named

    def filled(self, text: str, value: Expression, shape: str) -> str:
        """The text of a value in the shape of a stream: numbers and coefficients have none."""
        read = names(value)
        if not read:
            return f"torch.full_like({shape}, {text})"
        is_shaped = any(name not in self.plan.constants and name not in NUMBERS for name in read)
        return text if is_shaped else f"({text}).expand_as({shape})"

    # The engine's updates

    def updates(self) -> str:
        triples = zip(self.plan.steps, self.layer.steps, self.layer.chosen, strict=True)
        steps = "".join(f"{self.update(*triple)},\n" for triple in triples)
        doc = "The same for the engine; `at` holds streams, coefficients and results by name."
        grid = "".join(f"{line}\n" for line in self.grid)
        body = f'"""{doc}"""\n{grid}return (\n{indent(steps, "    ")})\n'
        return f"def updates(self) -> tuple[Step, ...]:\n{indent(body, '    ')}"

    def update(self, step: Step, run: object, choice: Choice | None) -> str:
        if isinstance(step, Permutation):
            return f"Permute({literal(step.targets)}, {literal(step.sources)})"
        if isinstance(step, Mapped):
            grid = ", grid=grid" if choice else ""
            return f"Map({literal(step.target)}, {literal(step.map)}{grid})"
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
        if choice is not None and isinstance(step, Affine):
            fields.append(f"exact={self.exact(step, choice.form)}")
        lines = "".join(f"{field},\n" for field in fields)
        return f"Update(\n{indent(lines, '    ')})"

    def exact(self, step: Affine, form: Form) -> str:
        """How the engine computes an update on the grid."""
        scale, rest = self.scale_and_rest(step)
        lines = (
            f"grid,\n{form_text(form)},\n"
            f"scale=lambda at: {python(scale, _looked_up)},\n"
            f"rest={self.lambda_of(rest, step.target)},\n"
        )
        return f"Exact(\n{indent(lines, '    ')})"

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
        return f"lambda at: {self.rounded(self.evaluated(value, shaped), step)}"

    def lambda_of(self, value: Expression, shaped: str) -> str:
        return f"lambda at: {self.evaluated(value, shaped)}"

    def evaluated(self, value: Expression, shaped: str) -> str:
        """The text of a value, as `compiler.lower.lower_stream` evaluates it."""
        text = python(value, _looked_up)
        if isinstance(value, Name):
            text = f"{text}.view_as({text})"
        return self.filled(text, value, _looked_up(shaped))


def _looked_up(name: str) -> str:
    """What a name stands for in an update of the engine's."""
    return f'at["{name}"]'


def form_text(form: Form) -> str:
    """The text that makes a form; its numbers may vary over layers."""
    fields = vars(form).values()
    texts = (literal(field) if isinstance(field, str) else marked(field) for field in fields)
    return f"{type(form).__name__}({', '.join(texts)})"


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
