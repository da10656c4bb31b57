"""The texts of a stage parsed, and every name in them looked up."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from keyword import iskeyword
from typing import TypeVar

from archspec.expressions import (
    ELEMENTWISE,
    LARGEST,
    RESERVED,
    STRUCTURAL,
    Assign,
    Call,
    Expression,
    Let,
    Name,
    Permute,
    Range,
    Statement,
    calls,
    names,
    subexpressions,
)
from archspec.layers import Layer
from archspec.maps import AS_MAP
from archspec.parsing import (
    MAX_LENGTH,
    TIMES,
    ExpressionError,
    parse_expression,
    parse_statement,
)
from archspec.spec import Drawn, Learned, Stage
from archspec.tree import Path
from compiler.canonical import map_of
from compiler.constants import (
    MAX_COMBINATIONS,
    NUMBERS,
    LayerValues,
    count_combinations,
    leaves,
)
from compiler.places import Mistakes
from compiler.plan import Constant


@dataclass(frozen=True)
class Program:
    """A stage's texts as trees. Every name in them is known to mean something."""

    starts: Mapping[str, Expression]
    constants: Mapping[str, Constant]
    update: tuple[Statement, ...]
    output: Expression
    smoothness: Expression | None = None
    """Of the penalty on weights that change with depth."""

    @property
    def start_functions(self) -> frozenset[str]:
        """The functions that streams start from."""
        return frozenset(c.function for start in self.starts.values() for c in calls(start))


def parse_program(
    stage: Stage, side: Collection[str], path: Path, mistakes: Mistakes
) -> Program | None:
    """Parse the program of the stage at `path`, in which the names `side` stand for side inputs;
    with any mistake, note it and return None, unless something is only not used."""
    before = len(mistakes.found)
    if not mistakes.affords(_work(stage), path):
        return None
    _check_distinct(stage, side, path, mistakes)
    starts = {
        name: _parsed(parse_expression, text, (*path, "streams", name), mistakes)
        for name, text in stage.streams.items()
    }
    constants = {
        name: written
        if isinstance(written, (Learned, Drawn))
        else _parsed(parse_expression, str(written), (*path, "constants", name), mistakes)
        for name, written in stage.constants.items()
    }
    update = [
        _parsed(parse_statement, text, (*path, "update", i), mistakes)
        for i, text in enumerate(stage.update)
    ]
    output = _parsed(parse_expression, stage.output, (*path, "output"), mistakes)
    smoothness = None
    if stage.smoothness is not None:
        written = str(stage.smoothness)
        smoothness = _parsed(parse_expression, written, (*path, "smoothness"), mistakes)
    if output is None or len(mistakes.found) > before:
        return None
    program = Program(
        {name: start for name, start in starts.items() if start},
        {name: constant for name, constant in constants.items() if constant},
        tuple(statement for statement in update if statement),
        output,
        smoothness,
    )
    _check_constants(program.constants, stage.depth, (*path, "constants"), mistakes)
    names = _Names(stage, side, path, mistakes, program)
    names.check()
    # What is not used hides no other mistakes.
    only_unused = all(mistake.code == "E203" for mistake in mistakes.found[before:])
    return program if only_unused else None


def _work(stage: Stage) -> int:
    """What it takes to read the texts of a stage, and the lists of layers that differ by layer, in
    parts of an expression."""
    texts = (*stage.streams.values(), *map(str, stage.constants.values()), *stage.update)
    lists = [list(layers) for layers in stage.functions.values()]
    differing = [layers for layers in lists if any("layer" in w for w in map(_written, layers))]
    length = sum(min(len(text), MAX_LENGTH) for text in texts)
    return 3 * length + 5 * stage.depth * sum(map(len, differing))


def _written(layer: Layer) -> str:
    return " ".join(str(value) for field, value in layer if field != "kind")


AnyParsed = TypeVar("AnyParsed")


def _parsed(
    parse: Callable[[str], AnyParsed], text: str, path: Path, mistakes: Mistakes
) -> AnyParsed | None:
    try:
        return parse(text)
    except ExpressionError as error:
        mistakes.text("E201", error.message, path, (error.start, error.end), error.help)
        return None


def _check_distinct(stage: Stage, side: Collection[str], path: Path, mistakes: Mistakes) -> None:
    for part, declared in (("streams", stage.streams), ("constants", stage.constants)):
        for name in declared:
            if name in RESERVED or iskeyword(name):
                message = f"`{name}` has a meaning of its own in the update language"
                mistakes.key("E204", message, (*path, part, name), "choose another name")
    for place in (path, *((*path, "constants", name) for name in stage.constants)):
        if place[-1] == "training":
            message = "`training` has a meaning of its own in PyTorch's modules"
            mistakes.key("E204", message, place, "choose another name")
    taken: tuple[tuple[str, Iterable[str], Collection[str], str], ...] = (
        ("constants", stage.constants, stage.streams, "stream"),
        ("maps", stage.maps, stage.functions, "function"),
        ("streams", stage.streams, side, "side input"),
        ("constants", stage.constants, side, "side input"),
    )
    for part, these, others, what in taken:
        for name in these:
            if name in others:
                message = f"`{name}` is already a {what}"
                mistakes.key("E204", message, (*path, part, name), "choose another name")


# Constants ----------------------------------------------------------------------------------------


def _check_constants(
    constants: Mapping[str, Constant], depth: int, path: Path, mistakes: Mistakes
) -> None:
    """Check every constant at every layer."""
    before = len(mistakes.found)
    for name, constant in constants.items():
        if isinstance(constant, (Learned, Drawn)):
            _check_size(constant, (*path, name), mistakes)
        if isinstance(constant, Learned):
            _check_learned(constant, (*path, name), mistakes)
        elif isinstance(constant, Expression):
            _check_constant(name, constant, constants, (*path, name), mistakes)
    if len(mistakes.found) > before:
        return
    if count_combinations(constants) > MAX_COMBINATIONS:
        message = f"the draws here have more than {MAX_COMBINATIONS} combinations"
        mistakes.key("E206", message, path)
    layer = 0
    try:
        values = LayerValues(constants, depth)
        if values.work and mistakes.affords(values.work * depth, path):
            for layer in range(depth):
                values.at(layer)
    except ArithmeticError as error:
        what = "divides by zero" if isinstance(error, ZeroDivisionError) else "grows too large"
        mistakes.key("E206", f"a constant {what} at layer {layer}", path)


def _check_size(constant: Learned | Drawn, path: Path, mistakes: Mistakes) -> None:
    """Coefficients are tensors of float32, which end soon after the largest constant."""
    if isinstance(constant, Learned):
        values = {"learn": (constant.learn,), "within": constant.within or ()}
    else:
        values = {"draw": constant.draw, "evaluate": (constant.evaluate,)}
    for key, found in values.items():
        if any(abs(value) > LARGEST for value in found):
            message = f"a coefficient is at most {LARGEST:g}, on either side of zero"
            mistakes.value("E206", message, (*path, key))


def _check_learned(learned: Learned, path: Path, mistakes: Mistakes) -> None:
    if learned.within is None:
        return
    low, high = learned.within
    # The parameter is the logit of this place, which float32 must tell from the ends.
    place = (learned.learn - low) / (high - low) if low < high else 0.0
    if not 1e-6 <= place <= 1 - 1e-6:
        message = f"{learned.learn} does not lie inside the range from {low} to {high}"
        help = "the range is written from low to high" if low >= high else ""
        if low <= learned.learn <= high and not help:
            help = "it must lie strictly inside, a millionth of the range from either end"
        mistakes.value("E206", message, (*path, "learn"), help)


def _check_constant(
    name: str, constant: Expression, known: Mapping[str, Constant], path: Path, mistakes: Mistakes
) -> None:
    for part in subexpressions(constant):
        if isinstance(part, Call):
            mistakes.text("E206", "a constant is arithmetic on numbers alone", path, part.at)
        elif isinstance(part, Name) and part.name not in (*known, *NUMBERS):
            help = mistakes.nearest(part.name, [*known, *NUMBERS])
            mistakes.text("E202", f"unknown name `{part.name}`", path, part.at, help)
    if name in leaves(constant, known):
        mistakes.value("E206", f"`{name}` is defined by itself", path)


# Names --------------------------------------------------------------------------------------------


class _Names:
    """Looks up every name of a parsed program."""

    def __init__(
        self,
        stage: Stage,
        side: Collection[str],
        path: Path,
        mistakes: Mistakes,
        program: Program,
    ) -> None:
        self.stage, self.path, self.mistakes, self.program = stage, path, mistakes, program
        self.side = side
        self.used: set[str] = set()
        self.called: set[str] = set()
        self.varying = {name for name in program.constants if _varies(name, program.constants)}

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
        if self.program.smoothness is not None:
            place, numbers = (*self.path, "smoothness"), ("depth", *self.stage.constants)
            self.expression(self.program.smoothness, place, numbers, ())
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
        known = (*self.stage.streams, *self.stage.constants, *self.side, *temporaries, *NUMBERS)
        if map := map_of(statement, self.stage.maps):
            self.called.add(map)
            if isinstance(statement, Assign) and statement.target not in self.stage.streams:
                self.not_a_stream(statement, place, temporaries)
            return None
        # Of a target that is no stream, only that is told.
        target = (statement.target,) if isinstance(statement, Assign) else ()
        self.expression(statement.value, place, (*known, *target), self.stage.functions)
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
                at = self.first(statement.name, place)
                self.mistakes.text(
                    "E204", message, place, at, "a temporary is a new name, given once"
                )
        elif statement.target not in self.stage.streams:
            self.not_a_stream(statement, place, temporaries)
        return None

    def not_a_stream(self, statement: Assign, place: Path, temporaries: Iterable[str]) -> None:
        name = statement.target
        help = self.mistakes.nearest(name, self.stage.streams)
        if name in self.stage.constants:
            message = f"`{name}` is a constant, and only streams are rewritten"
        elif name in temporaries:
            message = f"`{name}` is a temporary, and only streams are rewritten"
        elif name in self.side:
            message = f"`{name}` is a side input, and only streams are rewritten"
        else:
            message = f"there is no stream `{name}`"
            help += f"  (a temporary is written `{name} := …`)"
        self.mistakes.text("E205", message, place, self.first(name, place), help)

    def first(self, name: str, place: Path) -> Range:
        """Where an update begins with a name."""
        start = self.stage.update[int(place[-1])].index(name)
        return start, start + len(name)

    def permutation(self, statement: Permute, place: Path) -> None:
        streams = set(self.stage.streams)
        once = len(set(statement.targets)) == len(statement.targets)
        if not once or sorted(statement.targets) != sorted(statement.sources):
            message = "a permutation has the same streams on both sides, each once"
            self.mistakes.value("E205", message, place)
        for name in sorted({*statement.targets, *statement.sources} - streams):
            help = self.mistakes.nearest(name, streams)
            self.mistakes.value("E205", f"there is no stream `{name}`", place, help)

    def expression(
        self, expression: Expression, place: Path, known: tuple[str, ...], functions: object
    ) -> None:
        structural = place[-2] != "update"
        declared = tuple(functions) if isinstance(functions, dict) else ()
        for part in subexpressions(expression):
            if isinstance(part, Name):
                self.name(part, place, known, structural)
            elif isinstance(part, Call) and part.function in STRUCTURAL:
                if not structural:
                    message = (
                        f"`{part.function}` belongs in `streams` and `output`, not in an update"
                    )
                    self.mistakes.text("E205", message, place, part.at)
            elif isinstance(part, Call) and part.function not in ELEMENTWISE:
                self.called.add(part.function)
                if part.function in self.stage.maps:
                    message = f"`{part.function}` is an invertible map, which rewrites one stream"
                    help = f"an update of its own: `x = {part.function}(x)`"
                    self.mistakes.text("E205", message, place, part.at, help)
                elif part.function in self.stage.functions and not declared:
                    message = "functions are called in `update` and where streams start"
                    self.mistakes.text("E205", message, place, part.at)
                elif part.function not in declared:
                    help = self.mistakes.nearest(part.function, (*declared, *ELEMENTWISE))
                    help = AS_MAP.get(part.function, TIMES if part.function in known else help)
                    message = f"unknown function `{part.function}`"
                    self.mistakes.text("E202", message, place, part.at, help)

    def name(self, part: Name, place: Path, known: tuple[str, ...], structural: bool) -> None:
        self.used.add(part.name)
        if part.name not in known:
            help = self.mistakes.nearest(part.name, known)
            self.mistakes.text("E202", f"unknown name `{part.name}`", place, part.at, help)
        elif structural and part.name in self.varying:
            message = f"`{part.name}` has a value of its own in every layer, and none here"
            help = "where streams start and leave, constants are plain numbers"
            self.mistakes.text("E205", message, place, part.at, help)

    def unused(self, temporaries: Mapping[str, int]) -> None:
        defined = {n for c in self.program.constants.values() for n in _names_of(c)}
        for name in self.stage.constants:
            if name not in self.used | defined:
                message = f"the constant `{name}` is not used"
                self.never("constants", name, message)
        streams = frozenset(self.stage.streams)
        reaching = _reaching(self.program)
        for name in self.stage.streams:
            # An output of no stream at all is another mistake.
            if streams & names(self.program.output) and name not in reaching:
                message = f"the stream `{name}` has no part in the output"
                self.mistakes.key("E203", message, (*self.path, "streams", name))
        parts = dict.fromkeys(self.stage.functions, "functions")
        parts |= dict.fromkeys(self.stage.maps, "maps")
        for name in sorted(parts.keys() - self.called):
            message = f"the {parts[name].removesuffix('s')} `{name}` is never called"
            self.never(parts[name], name, message)
        for name, index in temporaries.items():
            if name not in self.used:
                message = f"the temporary `{name}` is not used"
                place = (*self.path, "update", index)
                self.mistakes.text("E203", message, place, self.first(name, place))

    def never(self, part: str, name: str, message: str) -> None:
        """Note what is not used, which a spec may have from the one that it extends."""
        place, tree = (*self.path, part, name), self.mistakes.tree
        inherited = tree.where(place).source != tree.span.source
        help = f"take it away with `{name}: null` under `{part}`" if inherited else ""
        self.mistakes.key("E203", message, place, help)


def _names_of(constant: Constant) -> frozenset[str]:
    return frozenset() if isinstance(constant, (Learned, Drawn)) else names(constant)


def _reaching(program: Program) -> frozenset[str]:
    """The streams and temporaries that the output depends on, over any number of layers."""
    reaching = names(program.output)
    while True:
        found = set(reaching)
        for statement in program.update:
            if isinstance(statement, Permute):
                moved = zip(statement.targets, statement.sources, strict=False)
                found |= {source for target, source in moved if target in reaching}
            elif (statement.name if isinstance(statement, Let) else statement.target) in reaching:
                found |= names(statement.value)
        if found == reaching:
            return reaching
        reaching = frozenset(found)


def _varies(name: str, constants: Mapping[str, Constant]) -> bool:
    """Whether a constant is learned, drawn, made of such constants, or another in every layer."""
    found = leaves(Name(name), constants)
    return bool(found & {"layer", "progress"}) or any(
        isinstance(constants.get(leaf), (Learned, Drawn)) for leaf in found
    )
