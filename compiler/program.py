"""The texts of a stage parsed, and every name in them looked up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from archspec.diagnostics import nearest
from archspec.expressions import (
    ELEMENTWISE,
    RESERVED,
    STRUCTURAL,
    Assign,
    Call,
    Expression,
    ExpressionError,
    Let,
    Name,
    Number,
    Permute,
    Statement,
    calls,
    names,
    parse_expression,
    parse_statement,
    subexpressions,
)
from archspec.spec import Drawn, Learned, Stage
from archspec.tree import Path
from compiler.constants import MAX_COMBINATIONS, drawn_combinations, fixed_values
from compiler.places import Mistakes
from compiler.plan import Constant


@dataclass(frozen=True)
class Program:
    """A stage's texts as trees. Every name in them is known to mean something."""

    starts: Mapping[str, Expression]
    constants: Mapping[str, Constant]
    update: tuple[Statement, ...]
    output: Expression

    @property
    def start_functions(self) -> frozenset[str]:
        """The functions that streams start from."""
        return frozenset(c.function for start in self.starts.values() for c in calls(start))


def parse_program(stage: Stage, path: Path, mistakes: Mistakes) -> Program | None:
    """Parse the program of the stage at `path`; with any mistake, note it and return None."""
    before = len(mistakes.found)
    _check_distinct(stage, path, mistakes)
    starts = {
        name: _parsed(parse_expression, text, (*path, "streams", name), mistakes)
        for name, text in stage.streams.items()
    }
    constants = _constants(stage, path, mistakes)
    update = [
        _parsed(parse_statement, text, (*path, "update", i), mistakes)
        for i, text in enumerate(stage.update)
    ]
    output = _parsed(parse_expression, stage.output, (*path, "output"), mistakes)
    if len(mistakes.found) > before:
        return None
    program = Program(
        {name: start for name, start in starts.items() if start},
        constants,
        tuple(statement for statement in update if statement),
        output or Number(0),  # type: ignore[arg-type]
    )
    _Names(stage, path, mistakes, program).check()
    return program if len(mistakes.found) == before else None


AnyParsed = TypeVar("AnyParsed")


def _parsed(
    parse: Callable[[str], AnyParsed], text: str, path: Path, mistakes: Mistakes
) -> AnyParsed | None:
    try:
        return parse(text)
    except ExpressionError as error:
        mistakes.text("E201", error.message, path, (error.start, error.end), error.help)
        return None


def _check_distinct(stage: Stage, path: Path, mistakes: Mistakes) -> None:
    for part, declared in (("streams", stage.streams), ("constants", stage.constants)):
        for name in declared:
            if name in RESERVED:
                message = f"`{name}` has a meaning of its own in the update language"
                mistakes.key("E204", message, (*path, part, name), "choose another name")
    for name in stage.constants:
        if name in stage.streams:
            message = f"`{name}` is already a stream"
            mistakes.key("E204", message, (*path, "constants", name), "choose another name")


# Constants ----------------------------------------------------------------------------------------


def _constants(stage: Stage, path: Path, mistakes: Mistakes) -> dict[str, Constant]:
    """The constants as trees; each is checked at every layer."""
    before = len(mistakes.found)
    constants: dict[str, Constant] = {}
    for name, written in stage.constants.items():
        place = (*path, "constants", name)
        if isinstance(written, Learned):
            _check_learned(written, place, mistakes)
        if isinstance(written, (Learned, Drawn)):
            constants[name] = written
        elif parsed := _parsed(parse_expression, str(written), place, mistakes):
            constants[name] = parsed
    for name, constant in constants.items():
        if not isinstance(constant, (Learned, Drawn)):
            _check_constant(name, constant, constants, (*path, "constants", name), mistakes)
    if len(mistakes.found) > before:
        return constants
    try:
        for layer in range(stage.depth):
            fixed_values(constants, layer, stage.depth)
    except ArithmeticError as error:
        what = "divides by zero" if isinstance(error, ZeroDivisionError) else "grows too large"
        mistakes.key("E206", f"a constant {what} at layer {layer}", (*path, "constants"))
    if len(list(drawn_combinations(constants))) > MAX_COMBINATIONS:
        message = f"the draws here have more than {MAX_COMBINATIONS} combinations"
        mistakes.key("E206", message, (*path, "constants"))
    return constants


def _check_learned(learned: Learned, path: Path, mistakes: Mistakes) -> None:
    if learned.within is None:
        return
    low, high = learned.within
    if not low < learned.learn < high:
        message = f"{learned.learn} does not lie inside the range from {low} to {high}"
        mistakes.value("E206", message, (*path, "learn"))


def _check_constant(
    name: str, constant: Expression, known: Mapping[str, Constant], path: Path, mistakes: Mistakes
) -> None:
    for part in subexpressions(constant):
        if isinstance(part, Call):
            mistakes.text("E206", "a constant is arithmetic on numbers alone", path, part.at)
        elif isinstance(part, Name) and part.name not in (*known, "layer", "depth"):
            help = nearest(part.name, [*known, "layer", "depth"])
            mistakes.text("E202", f"unknown name `{part.name}`", path, part.at, help)
    if name in _reached(name, known):
        mistakes.value("E206", f"`{name}` is defined by itself", path)


def _reached(name: str, known: Mapping[str, Constant]) -> set[str]:
    """The constants that the definition of `name` leads to."""
    reached: set[str] = set()
    frontier = {name}
    while frontier:
        constant = known.get(frontier.pop())
        if constant is None or isinstance(constant, (Learned, Drawn)):
            continue
        new = {n for n in names(constant) if n in known} - reached
        reached |= new
        frontier |= new
    return reached


# Names --------------------------------------------------------------------------------------------


class _Names:
    """Looks up every name of a parsed program."""

    def __init__(self, stage: Stage, path: Path, mistakes: Mistakes, program: Program) -> None:
        self.stage, self.path, self.mistakes, self.program = stage, path, mistakes, program
        self.used: set[str] = set()
        self.called: set[str] = set()

    def check(self) -> None:
        for name, start in self.program.starts.items():
            known = ("input", "zeros", *self.stage.constants)
            self.expression(start, (*self.path, "streams", name), known, self.stage.functions)
        started = frozenset(self.called)
        temporaries: dict[str, int] = {}
        for index, statement in enumerate(self.program.update):
            place = (*self.path, "update", index)
            self.statement(statement, place, temporaries, started)
            if isinstance(statement, Let):
                temporaries[statement.name] = index
        output = (*self.path, "output")
        self.expression(
            self.program.output, output, (*self.stage.streams, *self.stage.constants), ()
        )
        self.unused(temporaries)

    def statement(
        self,
        statement: Statement,
        place: Path,
        temporaries: Mapping[str, int],
        started: frozenset[str],
    ) -> None:
        if isinstance(statement, Permute):
            return self.permutation(statement, place)
        known = (*self.stage.streams, *self.stage.constants, *temporaries, "layer", "depth")
        self.expression(statement.value, place, known, self.stage.functions)
        for call in calls(statement.value):
            if call.function in started:
                message = (
                    f"`{call.function}` is called where a stream starts, and here in every layer"
                )
                help = "these would be different modules: give the start a function of its own"
                self.mistakes.text("E205", message, place, call.at, help)
        if isinstance(statement, Let):
            if statement.name in known or statement.name in self.stage.functions:
                message = f"`{statement.name}` already has a meaning here"
                at = (0, len(statement.name))
                self.mistakes.text(
                    "E204", message, place, at, "a temporary is a new name, given once"
                )
        elif statement.target not in self.stage.streams:
            self.not_a_stream(statement, place)
        return None

    def not_a_stream(self, statement: Assign, place: Path) -> None:
        name, at = statement.target, (0, len(statement.target))
        help = nearest(name, self.stage.streams)
        if name in self.stage.constants:
            message = f"`{name}` is a constant, and only streams are rewritten"
        else:
            message = f"there is no stream `{name}`"
            help += f"  (a temporary is written `{name} := …`)"
        self.mistakes.text("E205", message, place, at, help)

    def permutation(self, statement: Permute, place: Path) -> None:
        streams = set(self.stage.streams)
        once = len(set(statement.targets)) == len(statement.targets)
        if not once or sorted(statement.targets) != sorted(statement.sources):
            message = "a permutation has the same streams on both sides, each once"
            self.mistakes.text("E205", message, place, (0, len(statement.text)))
        for name in set(statement.targets) | set(statement.sources):
            if name not in streams:
                at = (0, len(statement.text))
                help = nearest(name, streams)
                self.mistakes.text("E205", f"there is no stream `{name}`", place, at, help)

    def expression(
        self, expression: Expression, place: Path, known: tuple[str, ...], functions: object
    ) -> None:
        structural = place[-2] != "update"
        declared = tuple(functions) if isinstance(functions, dict) else ()
        for part in subexpressions(expression):
            if isinstance(part, Name):
                self.used.add(part.name)
                if part.name not in known:
                    help = nearest(part.name, known)
                    self.mistakes.text("E202", f"unknown name `{part.name}`", place, part.at, help)
            elif isinstance(part, Call) and part.function in STRUCTURAL:
                if not structural:
                    message = (
                        f"`{part.function}` belongs in `streams` and `output`, not in an update"
                    )
                    self.mistakes.text("E205", message, place, part.at)
            elif isinstance(part, Call) and part.function not in ELEMENTWISE:
                self.called.add(part.function)
                if part.function not in declared:
                    help = nearest(part.function, (*declared, *ELEMENTWISE))
                    message = f"unknown function `{part.function}`"
                    self.mistakes.text("E202", message, place, part.at, help)

    def unused(self, temporaries: Mapping[str, int]) -> None:
        defined = {n for c in self.program.constants.values() for n in _names_of(c)}
        for name in self.stage.constants:
            if name not in self.used | defined:
                message = f"the constant `{name}` is not used"
                self.mistakes.key("E203", message, (*self.path, "constants", name))
        for name in self.stage.functions:
            if name not in self.called:
                message = f"the function `{name}` is never called"
                self.mistakes.key("E203", message, (*self.path, "functions", name))
        for name, index in temporaries.items():
            if name not in self.used:
                message = f"the temporary `{name}` is not used"
                at = (0, len(name))
                self.mistakes.text("E203", message, (*self.path, "update", index), at)


def _names_of(constant: Constant) -> frozenset[str]:
    return frozenset() if isinstance(constant, (Learned, Drawn)) else names(constant)
