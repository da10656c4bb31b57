"""The program of a stage as data: layers of steps.

A *step* rewrites one stream of a layer, or permutes several.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from compiler.exact import Exact, Grid

Values = dict[str, Tensor]
"""Streams, temporaries, coefficients and results of calls, by name."""


@dataclass(frozen=True)
class Call:
    """One call of a residual function. `after` lists the calls of the same step whose results its
    arguments read."""

    result: str
    function: str
    arguments: tuple[Callable[[Values], Tensor], ...]
    after: tuple[int, ...] = ()


@dataclass(frozen=True)
class Update:
    """`target` is rewritten by `forward`; `inverse` gives its old value from its new one and all
    else that `forward` read. A temporary is an update of a name that is no stream."""

    target: str
    calls: tuple[Call, ...]
    forward: Callable[[Values], Tensor]
    inverse: Callable[[Values], Tensor] | None
    coefficients: tuple[str, ...] = ()
    temporaries: tuple[str, ...] = ()
    is_temporary: bool = False
    exact: Exact | None = None
    """How it is computed instead, both ways, where the stage's arithmetic is exact."""
    rounds: bool = False
    """It has no inverse, and its value is rounded to the grid of exact arithmetic."""


@dataclass(frozen=True)
class Permute:
    """`targets[i]` gets what `sources[i]` held."""

    targets: tuple[str, ...]
    sources: tuple[str, ...]

    def apply(self, values: Values) -> None:
        """Forward, in place on `values`."""
        values.update(zip(self.targets, [values[s] for s in self.sources], strict=True))

    def undo(self, values: Values) -> None:
        """The inverse, in place on `values`."""
        values.update(zip(self.sources, [values[t] for t in self.targets], strict=True))


@dataclass(frozen=True)
class Map:
    """`target` goes through an invertible map: a module with an `inverse` of its own, which is
    named among the functions of the layer."""

    target: str
    map: str
    coefficients: tuple[str, ...] = ()
    temporaries: tuple[str, ...] = ()
    grid: Grid | None = None
    """Where the stage's arithmetic is exact, and the map not exact by itself: then the module has
    `advance` and `retreat`, which are."""

    @property
    def calls(self) -> tuple[Call, ...]:
        """The one call, at the old value of the target."""
        return (Call(self.map, self.map, (lambda values: values[self.target],)),)


Step = Update | Permute | Map


@dataclass(frozen=True)
class Layer:
    """The steps of one layer, with its own functions and coefficients."""

    steps: tuple[Step, ...]
    functions: Mapping[str, nn.Module]
    coefficients: Mapping[str, Callable[[], Tensor]]
    leaves: Mapping[str, Tensor] = field(default_factory=dict)
    """The parameter that each coefficient is computed from."""


def calls_of(layers: Sequence[Layer]) -> list[tuple[int, int]]:
    """The calls of functions and maps in some layers: the number of each one's step, as counted
    through all layers, and its own in that step."""
    steps = [step for layer in layers for step in layer.steps]
    return [
        (number, index)
        for number, step in enumerate(steps)
        if not isinstance(step, Permute)
        for index in range(len(step.calls))
    ]


def definition_of(layer: Layer, name: str) -> tuple[int, Update]:
    """The step that defines a temporary, with its place in the layer."""
    for index, step in enumerate(layer.steps):
        if isinstance(step, Update) and step.is_temporary and step.target == name:
            return index, step
    raise AssertionError(f"no temporary {name}")
