"""What the matrix is made of: rows, what each expects of a strategy, and how they are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from plain_networks import Case
from small_networks import STRATEGIES


@dataclass(frozen=True)
class Refusal:
    """A clear error in place of a wrong gradient."""

    words: str
    """For the table."""
    message: str
    """A regular expression of what the error says."""
    kind: type[BaseException] = RuntimeError


@dataclass(frozen=True)
class Row:
    """One behaviour, checked for a coupling and a strategy against plain autograd."""

    theme: str
    name: str
    check: Callable[[Case], None]
    refused: Mapping[str, Refusal] = field(default_factory=dict)
    """By strategy; what is not refused is right."""
    only: Sequence[str] = STRATEGIES
    """The strategies to which the row applies."""

    def cell(self, strategy: str) -> str:
        """What the table says."""
        if strategy not in self.only:
            return "–"
        refusal = self.refused.get(strategy)
        if refusal is None:
            return "✓"
        return f"refused: {refusal.words}" if refusal.words else "refused"


ROWS: list[Row] = []


def row(
    theme: str,
    name: str,
    refused: Mapping[str, Refusal] | None = None,
    only: Sequence[str] = STRATEGIES,
) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Make a row of a check."""

    def add(check: Callable[[Case], None]) -> Callable[[Case], None]:
        ROWS.append(Row(theme, name, check, refused or {}, only))
        return check

    return add


def replayed(words: str, message: str) -> dict[str, Refusal]:
    """Refused wherever activations are computed again."""
    return dict.fromkeys(("checkpoint", "reversible"), Refusal(words, message))


def everywhere(words: str, message: str) -> dict[str, Refusal]:
    """Refused with stored activations too, by PyTorch itself."""
    return dict.fromkeys(STRATEGIES, Refusal(words, message))


def table(rows: Sequence[Row], couplings: int) -> str:
    """The page docs/matrix.md."""
    columns = ("store", "checkpoint", "reversible")
    lines = [
        "# The matrix",
        "",
        "What holds for which strategy. Every row is checked for each of the "
        f"{couplings} shipped couplings against plain autograd over the same functions, by the "
        "coupling's equations written by hand, on unequal streams, to 1e-12 in float64. ✓ is the "
        "right gradient; *refused* is an error in place of a wrong one; – does not apply. "
        "Couplings without an inverse have no reversible column.",
        "",
        "Generated from `tests/compiler/matrix_rows.py`; `tests/compiler/test_matrix.py` runs it.",
    ]
    for theme in dict.fromkeys(row.theme for row in rows):
        lines += ["", f"## {theme}", "", f"| | {' | '.join(columns)} |", "| --- " * 4 + "|"]
        lines += [
            f"| {row.name} | {' | '.join(row.cell(strategy) for strategy in columns)} |"
            for row in rows
            if row.theme == theme
        ]
    return "\n".join(lines) + "\n"
