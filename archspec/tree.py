"""YAML read into a tree that remembers where every value stands.

The scanner and parser are PyYAML's; values follow the YAML 1.2 core schema (`1e-4` is a number,
`no` is a string), as `yaml.safe_load` would otherwise build them: maps, lists and scalars alone.
Duplicate keys, merge keys, tags, cyclic aliases and oversized files are errors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import yaml

from archspec.diagnostics import Diagnostic, Source, Span, SpecError

MAX_CHARACTERS = 100_000
MAX_NODES = 20_000
MAX_NESTING = 40

Scalar = str | int | float | bool | None
Path = tuple[str | int, ...]

_NULL = re.compile(r"(?:~|null|Null|NULL|)\Z")
_BOOLEAN = re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")
_INTEGER = re.compile(r"[-+]?[0-9]{1,300}\Z")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z")
_NOT_FINITE = re.compile(r"(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z")


@dataclass(frozen=True)
class Node:
    """A value with its place: a scalar, a list of nodes, or a map of names to nodes."""

    value: Scalar | list[Node] | dict[str, Node]
    span: Span
    keys: dict[str, Span] = field(default_factory=dict)  # where each key of a map stands

    @property
    def map(self) -> dict[str, Node]:
        """The entries of a map; of anything else, none."""
        return self.value if isinstance(self.value, dict) else {}

    def plain(self) -> object:
        """The value as plain Python: dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {name: node.plain() for name, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def find(self, path: Path) -> Node:
        """The deepest node on `path` that exists; steps that lead nowhere are passed over."""
        node = self
        for step in path:
            if isinstance(node.value, dict) and step in node.value:
                node = node.value[str(step)]
            elif isinstance(node.value, list) and isinstance(step, int) and step < len(node.value):
                node = node.value[step]
        return node

    def where(self, path: Path) -> Span:
        """The span of the key that `path` ends in, or else of the value found on it."""
        parent = self.find(path[:-1])
        return parent.keys.get(str(path[-1]), self.find(path).span) if path else self.span

    def walk(self, path: Path = ()) -> Iterator[tuple[Path, Node]]:
        """Every scalar below this node with its path, in order."""
        if isinstance(self.value, dict):
            for name, node in self.value.items():
                yield from node.walk((*path, name))
        elif isinstance(self.value, list):
            for index, node in enumerate(self.value):
                yield from node.walk((*path, index))
        else:
            yield path, self

    def with_entry(self, name: str, node: Node, at: Span) -> Node:
        """This map with one entry set."""
        return Node({**self.map, name: node}, self.span, {**self.keys, name: at})

    def without(self, *names: str) -> Node:
        """This map with some entries left out."""
        return Node({k: v for k, v in self.map.items() if k not in names}, self.span, self.keys)


def read(text: str, name: str) -> Node:
    """Parse `text`, which errors call `name`. Raises `SpecError` with the place of the mistake."""
    source = Source(name, text)
    if len(text) > MAX_CHARACTERS:
        raise SpecError([Diagnostic("E101", f"{name} is longer than {MAX_CHARACTERS} characters")])
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise SpecError([_syntax_error(source, error)]) from None
    except yaml.reader.ReaderError as error:
        message = f"{name} holds a character that YAML does not allow: {error.reason}"
        raise SpecError([Diagnostic("E101", message)]) from None
    except RecursionError:
        raise SpecError([Diagnostic("E101", f"{name} is nested too deeply")]) from None
    if root is None:
        raise SpecError([Diagnostic("E101", f"{name} is empty")])
    converter = _Converter(source)
    node = converter.convert(root, ())
    if converter.errors:
        raise SpecError(converter.errors)
    return node


def _syntax_error(source: Source, error: yaml.MarkedYAMLError) -> Diagnostic:
    mark = error.problem_mark or error.context_mark
    span = Span(source, mark.line, mark.column, mark.column + 1) if mark else None
    problem = (error.problem or "unreadable").replace("could not", "YAML could not")
    context = f" ({error.context})" if error.context else ""
    hint = "YAML indents with spaces, not tabs" if "\\t" in problem else ""
    if "mapping values are not allowed" in problem:
        hint = "a `:` inside a value needs quotes around the value"
    return Diagnostic("E101", f"not readable as YAML: {problem}{context}", span, hint)


class _Converter:
    """Turns PyYAML's nodes into ours, collecting errors."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.errors: list[Diagnostic] = []
        self.count = 0

    def convert(self, node: yaml.Node, parents: tuple[int, ...]) -> Node:
        self.count += 1
        span = self.span(node)
        if id(node) in parents:
            return self.error(span, "this alias contains itself")
        if len(parents) > MAX_NESTING:
            return self.error(span, f"nested deeper than {MAX_NESTING} levels")
        if self.count > MAX_NODES:
            if self.count == MAX_NODES + 1:
                self.error(span, f"more than {MAX_NODES} values, aliases counted where they stand")
            return Node(None, span)
        inner = (*parents, id(node))
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, span, inner)
        if not node.tag.startswith("tag:yaml.org,2002:"):
            return self.error(span, f"the tag `{node.tag}` is not used in specs")
        if isinstance(node, yaml.SequenceNode):
            return Node([self.convert(child, inner) for child in node.value], span)
        assert isinstance(node, yaml.ScalarNode)
        return self.scalar(node, span)

    def mapping(self, node: yaml.MappingNode, span: Span, inner: tuple[int, ...]) -> Node:
        entries: dict[str, Node] = {}
        keys: dict[str, Span] = {}
        for key_node, value_node in node.value:
            at = self.span(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self.error(at, "a key must be a plain name")
                continue
            key = key_node.value
            if key == "<<":
                self.error(at, "merge keys are not used in specs", "write `extends:` instead")
            elif key in entries:
                self.error(at, f"the key `{key}` stands twice", f"first at {keys[key]}", "E102")
            else:
                keys[key] = at
                entries[key] = self.convert(value_node, inner)
        return Node(entries, span, keys)

    def scalar(self, node: yaml.ScalarNode, span: Span) -> Node:
        text = node.value
        if node.style is not None:  # quoted or block: a string, whatever it looks like
            return Node(text, span)
        if _NULL.match(text):
            return Node(None, span)
        if _BOOLEAN.match(text):
            return Node(text.lower() == "true", span)
        if _INTEGER.match(text):
            return Node(int(text), span)
        if _FLOAT.match(text) and math.isfinite(float(text)):
            return Node(float(text), span)
        if _NOT_FINITE.match(text) or _FLOAT.match(text):
            return self.error(span, f"`{text[:40]}` is not a finite number")
        return Node(text, span)

    def span(self, node: yaml.Node) -> Span:
        start, end = node.start_mark, node.end_mark
        last = end.column if end.line == start.line else len(self.source.line(start.line))
        return Span(self.source, start.line, start.column, max(last, start.column + 1))

    def error(self, span: Span, message: str, help: str = "", code: str = "E101") -> Node:
        self.errors.append(Diagnostic(code, message, span, help))
        return Node(None, span)
