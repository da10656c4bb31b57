"""Where things stand in a file, and the errors that point there."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """A text and the name a person knows it by: a path, or `--set train.epochs`."""

    name: str
    text: str

    def line(self, number: int) -> str:
        """The line `number` (from 0), or an empty one past the end."""
        lines = self.text.splitlines()
        return lines[number] if 0 <= number < len(lines) else ""


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
        lines = [f"{where}error[{self.code}] {self.message}"]
        if self.span and (text := self.span.source.line(self.span.line)).strip():
            number = str(self.span.line + 1)
            carets = "^" * max(1, min(self.span.end_column, len(text)) - self.span.column)
            # Tabs are kept, so that the caret stands under its character.
            indent = "".join("\t" if c == "\t" else " " for c in text[: self.span.column])
            lines += [f"    {number} | {text}", f"    {' ' * len(number)} | {indent}{carets}"]
        if self.help:
            lines.append(f"  help: {self.help}")
        if self.note:
            lines.append(f"  note: {self.note}")
        return "\n".join(lines)


class SpecError(ValueError):
    """A spec that cannot be used. Holds every mistake found, in the order of the file."""

    def __init__(self, diagnostics: Iterable[Diagnostic]) -> None:
        self.diagnostics = tuple(diagnostics)
        super().__init__("\n".join(map(str, self.diagnostics)))


def nearest(name: object, names: Iterable[str]) -> str:
    """A help text that offers the nearest of `names`, then all of them."""
    known = sorted(names)
    if not known:
        return ""
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    listed = ", ".join(known[:30]) + (", …" if len(known) > 30 else "")
    return (f"did you mean `{near[0]}`?  " if near else "") + f"names here: {listed}"
