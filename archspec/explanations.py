"""The long form of each error: `explanations.md`, a section for each code, taken apart."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_HEADING = re.compile(r"^## (E\d{3}) (.+)\n", re.MULTILINE)
_EXAMPLE = re.compile(
    r"^```(yaml|console) (wrong|right)(?: (\S+))?\n(.+?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Example:
    """A piece of a spec, or command lines, that give the error, or that do not."""

    language: str
    """`yaml` or `console`."""
    right: bool
    file: str
    """The name of the file that `text` is the whole of, where that matters."""
    text: str


@dataclass(frozen=True)
class Explanation:
    """What a code means: prose and examples, in the order in which they are read."""

    code: str
    title: str
    parts: tuple[str | Example, ...]

    @property
    def examples(self) -> tuple[Example, ...]:
        """The examples alone."""
        return tuple(part for part in self.parts if isinstance(part, Example))


@cache
def explanations() -> Mapping[str, Explanation]:
    """Every explanation by its code, in order."""
    text = Path(__file__).with_suffix(".md").read_text(encoding="utf-8")
    return {explanation.code: explanation for explanation in parse(text)}


def parse(text: str) -> Iterator[Explanation]:
    """The sections of a text, as they stand in it."""
    _, *sections = _HEADING.split(text)
    for code, title, body in zip(sections[::3], sections[1::3], sections[2::3], strict=True):
        yield Explanation(code, title, tuple(_parts(body)))


def _parts(body: str) -> Iterator[str | Example]:
    end = 0
    for found in _EXAMPLE.finditer(body):
        if prose := body[end : found.start()].strip():
            yield prose
        language, mark, file, text = found.groups(default="")
        yield Example(language, mark == "right", file, text)
        end = found.end()
    if prose := body[end:].strip():
        yield prose
