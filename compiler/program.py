"""The program of a stage: its texts as trees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from archspec.expressions import Expression, Statement, calls
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
