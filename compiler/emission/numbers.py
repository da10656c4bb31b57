"""Numbers in emitted text that may be another in every layer.

The text of each layer is written with its numbers marked. Layers whose texts differ in marked
numbers alone become one class, in which a number that varies is looked up by the layer's index.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

_MARKED = re.compile("\x01([^\x02]*)\x02")


def marked(value: float) -> str:
    """A number that may vary over layers."""
    if not math.isfinite(value):
        return f"\x01float({str(value)!r})\x02"
    return f"\x01{value!r}\x02"


def unmarked(text: str) -> str:
    """The text with its numbers as they are."""
    return _MARKED.sub(r"\1", text)


@dataclass(frozen=True)
class Group:
    """Layers of one form: their text, and the numbers that they look up by name."""

    text: str
    tables: dict[str, tuple[str, ...]]
    layers: tuple[int, ...]


def group(texts: Sequence[str]) -> list[Group]:
    """Layers with texts alike but for marked numbers, together; in the order of their firsts."""
    forms: dict[str, list[int]] = {}
    for layer, text in enumerate(texts):
        forms.setdefault(_MARKED.sub("\x01\x02", text), []).append(layer)
    return [_one_group([texts[i] for i in layers], tuple(layers)) for layers in forms.values()]


def _one_group(texts: Sequence[str], layers: tuple[int, ...]) -> Group:
    columns = list(zip(*(_MARKED.findall(text) for text in texts), strict=True))
    tables: dict[tuple[str, ...], str] = {}
    for column in columns:
        if len(set(column)) > 1 and column not in tables:
            tables[column] = f"c{len(tables) + 1}"
    shown = iter(f"self.{tables[column]}" if column in tables else column[0] for column in columns)
    text = _MARKED.sub(lambda _: next(shown), texts[0])
    return Group(text, {name: column for column, name in tables.items()}, layers)
