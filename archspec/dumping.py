"""Trees written as YAML that reads back the same."""

from __future__ import annotations

import json
from collections.abc import Callable

from archspec.diagnostics import Source, Span, SpecError
from archspec.tree import Node, Scalar, read

_NOWHERE = Span(Source("<value>", ""), 0, 0, 1)


def node_of(value: object) -> Node:
    """Plain Python (maps, lists, scalars) as a tree without places."""
    if isinstance(value, dict):
        entries = {str(k): node_of(v) for k, v in value.items()}
        return Node(entries, _NOWHERE, dict.fromkeys(entries, _NOWHERE))
    if isinstance(value, (list, tuple)):
        return Node([node_of(v) for v in value], _NOWHERE)
    if value is None or isinstance(value, (str, int, float, bool)):
        return Node(value, _NOWHERE)
    return Node(str(value), _NOWHERE)


def no_comment(node: Node) -> str:
    """Writes nothing behind a value."""
    del node
    return ""


def origin(node: Node) -> str:
    """Writes the place a value comes from behind it."""
    return f"  # {node.span}"


def dump(tree: Node, comment: Callable[[Node], str] = no_comment) -> str:
    """The tree as YAML, `comment(node)` behind each scalar."""
    return "\n".join(_lines(tree, comment)) + "\n"


def scalar_text(value: Scalar) -> str:
    """A scalar as YAML text, quoted where it would otherwise read back as something else."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return repr(value)
    try:
        plain = read(f"k: {value}", "<value>").plain() == {"k": value}
        listed = read(f"- {value}", "<value>").plain() == [value]
    except SpecError:
        plain = listed = False
    return value if plain and listed and "\n" not in value else json.dumps(value)


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
