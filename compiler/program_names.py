"""Every name of a program looked up."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from archspec.expressions import (
    ELEMENTWISE,
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
from archspec.maps import AS_MAP
from archspec.parsing import TIMES
from archspec.spec import Drawn, Learned, Stage
from archspec.tree import Path
from compiler.canonical import map_of
from compiler.constants import NUMBERS, leaves
from compiler.places import Mistakes
from compiler.plan import Constant
from compiler.program import Program


def check_names(
    stage: Stage, side: Collection[str], path: Path, mistakes: Mistakes, program: Program
) -> None:
    """Look up every name of the program of the stage at `path`, in which the names `side` stand for
    side inputs; note what means nothing, and what is not used."""
    _Names(stage, side, path, mistakes, program).check()


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
