"""Collecting mistakes, each at its place in the tree."""

from __future__ import annotations

from collections.abc import Iterable

from archspec.diagnostics import MAX_SHOWN, Diagnostic, Span, nearest
from archspec.expressions import Range
from archspec.tree import Node, Path

MAX_WORK = 400_000
"""How many parts of expressions are evaluated to check one spec: half a second or so."""


class Mistakes:
    """The mistakes found so far in one spec."""

    def __init__(self, tree: Node) -> None:
        self.tree = tree
        self.found: list[Diagnostic] = []
        self.work = 0

    def affords(self, work: int, path: Path) -> bool:
        """Whether so many more parts may be evaluated; if not, that is noted at the key that
        `path` ends in."""
        if self.work + work > MAX_WORK:
            total = self.work + work
            message = f"too much to check: {total:,} values, and {MAX_WORK:,} are the most"
            help = "use fewer layers, fewer combinations of draws, or less that reads `layer`"
            self.key("E206", message, path, help)
            return False
        self.work += work
        return True

    def nearest(self, name: str, names: Iterable[str]) -> str:
        """The help that offers the nearest of `names`, as long as it will be shown."""
        return nearest(name, names) if len(self.found) < MAX_SHOWN else ""

    def key(self, code: str, message: str, path: Path, help: str = "") -> None:
        """A mistake at the key that `path` ends in."""
        self.found.append(Diagnostic(code, message, self.tree.where(path), help))

    def value(self, code: str, message: str, path: Path, help: str = "", note: str = "") -> None:
        """A mistake at the value on `path`."""
        self.found.append(Diagnostic(code, message, self.tree.find(path).span, help, note))

    def text(
        self, code: str, message: str, path: Path, at: Range, help: str = "", note: str = ""
    ) -> None:
        """A mistake at the offsets `at` of the text on `path`."""
        span = _within(self.tree.find(path), at)
        self.found.append(Diagnostic(code, message, span, help, note))


def _within(node: Node, at: Range) -> Span:
    """The part of a scalar's span that two offsets into its text stand for; all of it where the
    text is not written as it reads, but with escapes or over several lines."""
    span, text = node.span, node.value
    written = span.source.line(span.line)[span.column : span.end_column]
    quote = 1 if written[:1] in ("'", '"') else 0
    if not isinstance(text, str) or written[quote : quote + len(text)] != text:
        return span
    return span.narrow(at[0] + quote, max(at[1], at[0] + 1) + quote)
