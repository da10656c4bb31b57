"""The texts of a stage parsed, and what they say looked over."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from keyword import iskeyword
from typing import TypeVar

from archspec.expressions import RESERVED
from archspec.layers import Layer
from archspec.parsing import MAX_LENGTH, ExpressionError, parse_expression, parse_statement
from archspec.spec import Drawn, Learned, Stage
from archspec.tree import Path
from compiler.places import Mistakes
from compiler.program import Program
from compiler.program_constants import check_constants
from compiler.program_names import check_names


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
    check_constants(program.constants, stage.depth, (*path, "constants"), mistakes)
    check_names(stage, side, path, mistakes, program)
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
