"""Where things stand in a file, and the errors that point there."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

MAX_WIDTH = 160
"""Longer lines are shown in part."""
MAX_MESSAGE = 500
MAX_SHOWN = 50
"""How many mistakes an error shows."""


@dataclass(frozen=True)
class Source:
    """A text and the name a person knows it by: a path, or `--set train.epochs`."""

    name: str
    text: str

    @cached_property
    def lines(self) -> list[str]:
        """The text, line by line."""
        return self.text.splitlines()

    def line(self, number: int) -> str:
        """The line `number` (from 0), or an empty one past the end."""
        return self.lines[number] if 0 <= number < len(self.lines) else ""

    def at(self, offset: int) -> Span:
        """The span of the one character at `offset`."""
        before = f"{self.text[:offset]}^".splitlines()
        column = len(before[-1]) - 1
        return Span(self, len(before) - 1, column, column + 1)


@dataclass(frozen=True)
class Span:
    """A stretch of one line of a source; line and columns count from 0."""

    source: Source
    line: int
    column: int
    end_column: int

    def __str__(self) -> str:
        return f"{self.source.name}:{self.line + 1}:{self.column + 1}"

    def narrow(self, start: int, end: int) -> Span:
        """The part between two offsets from this span's start."""
        return Span(self.source, self.line, self.column + start, self.column + end)


@dataclass(frozen=True)
class Diagnostic:
    """One mistake of the user's: a stable code, what is wrong, where, and what to do."""

    code: str
    message: str
    span: Span | None = None
    help: str = ""
    note: str = ""

    def __str__(self) -> str:
        where = f"{self.span}: " if self.span else ""
        lines = [f"{where}error[{self.code}] {_printable(self.message[:MAX_MESSAGE])}"]
        if self.span and self.span.source.line(self.span.line).strip():
            number = str(self.span.line + 1)
            text, carets = _excerpt(self.span)
            lines += [f"    {number} | {text}", f"    {' ' * len(number)} | {carets}"]
        if self.help:
            lines.append(f"  help: {_printable(self.help)}")
        if self.note:
            lines.append(f"  note: {_printable(self.note)}")
        return "\n".join(lines)


def _excerpt(span: Span) -> tuple[str, str]:
    """The line of a span, and carets that stand under its characters; of a long line, a part."""
    text = span.source.line(span.line)
    first = max(0, span.column - MAX_WIDTH // 2) if len(text) > MAX_WIDTH else 0
    shown = text[first : first + MAX_WIDTH]
    # Tabs are kept, so that the caret stands under its character.
    shown = "".join(
        c if c.isprintable() or c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in shown
    )
    start = span.column - first
    indent = "".join("\t" if c == "\t" else " " for c in shown[:start])
    carets = "^" * max(1, min(span.end_column - first, len(shown)) - start)
    before, after = "…" * (first > 0), "…" * (first + MAX_WIDTH < len(text))
    return f"{before}{shown}{after}", f"{' ' * len(before)}{indent}{carets}"


def _printable(text: str) -> str:
    """Text of a stranger's with its control characters written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class SpecError(ValueError):
    """A spec that cannot be used. Holds every mistake found, in the order of the file."""

    def __init__(self, diagnostics: Iterable[Diagnostic]) -> None:
        self.diagnostics = tuple(sorted(dict.fromkeys(diagnostics), key=_place))
        shown = [str(diagnostic) for diagnostic in self.diagnostics[:MAX_SHOWN]]
        if len(self.diagnostics) > MAX_SHOWN:
            shown.append(f"… and {len(self.diagnostics) - MAX_SHOWN} more")
        super().__init__("\n".join(shown))

    def __reduce__(self) -> tuple[type[SpecError], tuple[tuple[Diagnostic, ...]]]:
        """Pickled by its mistakes, not by its text."""
        return type(self), (self.diagnostics,)


def _place(diagnostic: Diagnostic) -> tuple[str, int, int]:
    span = diagnostic.span
    return (span.source.name, span.line, span.column) if span else ("", 0, 0)


ELSEWHERE = {"lr": "learning_rate", "bs": "batch", "batch_size": "batch", "wd": "weight_decay"}
"""Names that other programs have for some of ours."""


def nearest(name: object, names: Iterable[str]) -> str:
    """A help text that offers the nearest of `names`, then all of them."""
    known = sorted(set(names))
    if not known:
        return ""
    near = [each for each in known if each == ELSEWHERE.get(str(name))]
    near = near or difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    listed = ", ".join(known[:30]) + (", …" if len(known) > 30 else "")
    return (f"did you mean `{near[0]}`?  " if near else "") + f"names here: {listed}"
