"""What `archspec list --couplings` and `archspec show COUPLING` print."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from archspec.diagnostics import SpecError
from archspec.expressions import Permute, calls
from archspec.finding import zoo
from archspec.loading import load, read_file
from archspec.parsing import ExpressionError, parse_statement
from archspec.spec import Coupling
from archspec.validation import validate

if TYPE_CHECKING:
    from rich.table import Table

    from compiler.plan import NetworkPlan

WIDTH = 2520
"""Of the stand-in's vectors: as many chunks as ten divide it."""


def shipped() -> list[Coupling]:
    """The couplings of the zoo, by name."""
    paths = sorted((zoo() / "couplings").glob("*.yaml"))
    return [validate(Coupling, read_file(path)) for path in paths]


def table(couplings: list[Coupling]) -> Table:
    """Names, updates, papers."""
    from rich.table import Table
    from rich.text import Text

    found = Table(box=None, header_style="dim", pad_edge=False)
    for name in ("name", "streams", "update"):
        found.add_column(name, no_wrap=True)
    found.add_column("citation")
    for each in couplings:
        updates = Text("\n".join(each.update))
        found.add_row(each.coupling, " ".join(each.streams), updates, Text(", ".join(each.cite)))
    return found


def shown(path: Path) -> str:
    """A coupling's file, and as comments a picture of one layer, its derived inverse, and its
    papers: what is printed is the coupling still. Raises `SpecError`."""
    coupling = validate(Coupling, read_file(path))
    comments = [*_layer(coupling), *_papers(coupling)]
    text = path.read_text(encoding="utf-8-sig").rstrip("\n")
    return "\n".join([text, *(f"# {line}".rstrip() for line in comments)])


def _layer(coupling: Coupling) -> Iterator[str]:
    """The picture and the inverse; or why there are none, as where the update reads what a spec is
    to give, its side inputs."""
    from compiler.picture import picture
    from compiler.picture_text import draw
    from compiler.summary import inverse_text

    try:
        (stage,) = _stand_in(coupling).stages
    except SpecError as error:
        yield from ("", f"not drawn: {error.diagnostics[0].message}")
        return
    except ExpressionError as error:
        yield from ("", f"not drawn: {error}")
        return
    yield from ("", "one layer:", "", *draw(picture(stage)), "")
    if stage.invertible:
        yield from ("its inverse, derived:", *(f"  {line}" for line in inverse_text(stage)))
    else:
        yield "it has no inverse: `backward: checkpoint` and `store` take it"


def _stand_in(coupling: Coupling) -> NetworkPlan:
    """The smallest network of a coupling. Raises `SpecError` and `ExpressionError`."""
    from compiler.resolve import resolve

    given = coupling.model_dump(mode="json", include={"streams", "constants", "update", "output"})
    spec = {
        "archspec": 1,
        "name": coupling.coupling,
        "summary": coupling.summary,
        "input": {"features": [WIDTH]},
        "stages": {
            "layer": {
                **given,
                "depth": 1,
                "functions": _functions(coupling),
                "maps": dict.fromkeys(coupling.maps, "invertible_linear"),
                "backward": "store",
            }
        },
        "head": [{"linear": "classes"}],
        "task": {"classify": 2},
    }
    return resolve(load(spec))


def _functions(coupling: Coupling) -> dict[str, list[str]]:
    """A function for each name, of as many arguments as it is called with."""
    statements = map(parse_statement, coupling.update)
    values = [each.value for each in statements if not isinstance(each, Permute)]
    arguments = {call.function: len(call.arguments) for value in values for call in calls(value)}
    return {
        name: ["tanh"] if arguments.get(name, 1) == 1 else ["add", "tanh"]
        for name in coupling.functions
    }


def _papers(coupling: Coupling) -> Iterator[str]:
    from archspec.papers import PAPERS

    known = [PAPERS[key].reference for key in coupling.cite if key in PAPERS]
    if known:
        yield from ("", "from:", *(f"  {reference}" for reference in known))
