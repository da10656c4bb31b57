"""Trees written as YAML that reads back the same."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from os import PathLike, fspath

from archspec.diagnostics import Diagnostic, Source, Span, SpecError
from archspec.tree import MAX_NESTING, Node, Scalar, read

_NOWHERE = Span(Source("<value>", ""), 0, 0, 1)
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z")
_RESERVED = frozenset({"null", "true", "false"})


def node_of(value: object, nesting: int = 0) -> Node:
    """Plain Python (maps, lists, scalars) as a tree without places. Raises `SpecError`."""
    if nesting > MAX_NESTING:
        raise SpecError([Diagnostic("E101", f"nested deeper than {MAX_NESTING} levels")])
    if isinstance(value, Mapping):
        entries = {str(k): node_of(v, nesting + 1) for k, v in value.items()}
        if len(entries) < len(value):
            raise SpecError([Diagnostic("E102", "two keys of a map are the same as text")])
        return Node(entries, _NOWHERE, dict.fromkeys(entries, _NOWHERE))
    if isinstance(value, (list, tuple)):
        return Node([node_of(v, nesting + 1) for v in value], _NOWHERE)
    return Node(_scalar(value), _NOWHERE)


def _scalar(value: object) -> Scalar:
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, PathLike):
        return str(fspath(value))
    if isinstance(value, Integral) and abs(int(value)) < 10**300:
        return int(value)
    if isinstance(value, Real) and not isinstance(value, Integral):
        return float(value)
    kind = type(value).__name__
    message = f"a spec holds maps, lists, texts and numbers, found a value of type {kind}"
    raise SpecError([Diagnostic("E105", message)])


def no_comment(node: Node) -> str:
    """Writes nothing behind a value."""
    del node
    return ""


def dump(tree: Node, comment: Callable[[Node], str] = no_comment) -> str:
    """The tree as YAML, `comment(node)` behind each scalar."""
    return "\n".join(_lines(tree, comment)) + "\n"


def scalar_text(value: Scalar) -> str:
    """A scalar as YAML text, quoted where it would otherwise read back as something else."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        return f".{value}".replace(".-", "-.")  # .inf: the reader says what is wrong with it
    if not isinstance(value, str):
        return repr(value)
    if _WORD.match(value):
        return f'"{value}"' if value.lower() in _RESERVED else value
    try:
        plain = (
            read(f"k: {value}", "<value>").plain() == {"k": value}
            and read(f"- {value}", "<value>").plain() == [value]
            and read(f"{value}: 0", "<value>").plain() == {value: 0}
        )
    except SpecError:
        plain = False
    return value if plain and "\n" not in value else _quoted(value)


def _quoted(value: str) -> str:
    """A text in double quotes, as JSON writes it but for high characters."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else _escape(ord(c)) for c in text)


def _escape(code: int) -> str:
    return (
        f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
    )


def _lines(node: Node, comment: Callable[[Node], str]) -> list[str]:
    if isinstance(node.value, dict) and node.value:
        lines = []
        for key, child in node.value.items():
            lines += _entry(f"{scalar_text(key)}:", child, comment)
        return lines
    if isinstance(node.value, list) and node.value:
        return [line for child in node.value for line in _item(child, comment)]
    return [_leaf(node) + comment(node)]


def _leaf(node: Node) -> str:
    if isinstance(node.value, dict):
        return "{}"
    return "[]" if isinstance(node.value, list) else scalar_text(node.value)


def _entry(head: str, child: Node, comment: Callable[[Node], str]) -> list[str]:
    inner = _lines(child, comment)
    if isinstance(child.value, (dict, list)) and child.value:
        return [head, *(f"  {line}" for line in inner)]
    return [f"{head} {inner[0]}"]


def _item(child: Node, comment: Callable[[Node], str]) -> list[str]:
    first, *rest = _lines(child, comment)
    return [f"- {first}", *(f"  {line}" for line in rest)]
