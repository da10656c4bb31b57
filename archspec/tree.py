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
from typing import Any

import yaml

from archspec.diagnostics import Diagnostic, Source, Span, SpecError
from archspec.parsing import COMMA

MAX_CHARACTERS = 100_000
MAX_NODES = 6_000
MAX_NESTING = 40
MAX_ERRORS = 100

Scalar = str | int | float | bool | None
Path = tuple[str | int, ...]

_NULL = re.compile(r"(?:~|null|Null|NULL|)\Z")
_BOOLEAN = re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")
_INTEGER = re.compile(r"[-+]?[0-9]{1,300}\Z")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z")
_SURROGATE = re.compile("[\ud800-\udfff]")
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

    def count(self) -> int:
        """How many values there are, this one counted."""
        inner = self.value if isinstance(self.value, list) else self.map.values()
        return 1 + sum(node.count() for node in inner)

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
        entries = {name: node for name, node in self.map.items() if name not in names}
        return Node(entries, self.span, {name: self.keys[name] for name in entries})


def read(text: str, name: str, shown: str | None = None) -> Node:
    """Parse `text`, which errors call `name` and show as `shown`. Raises `SpecError` with the
    place of the mistake."""
    source = Source(name, text if shown is None else shown)
    if len(text) > MAX_CHARACTERS:
        raise _error(source.at(0), f"longer than {MAX_CHARACTERS} characters")
    try:
        root = _Composer(text, source).get_single_node()
    except yaml.MarkedYAMLError as error:
        raise SpecError([_syntax_error(source, error)]) from None
    except yaml.reader.ReaderError as error:
        message = f"the character {chr(error.character)!r} is not allowed in YAML"
        raise _error(source.at(error.position), message) from None
    if root is None:
        raise _error(source.at(0), f"{name} is empty")
    converter = _Converter(source)
    node = converter.convert(root, ())
    if converter.errors:
        raise SpecError(converter.errors)
    return node


_HINTS = (
    (r"no `: ` after", "a line of a map is written `key: value`, and an entry of a list `- entry`"),
    (r"but found '(<block|\?|-)", "lines that belong together begin in the same column"),
    (r"\\t", "YAML indents with spaces, not tabs"),
    (r"start any token|alias", "a text that begins with this character is written in quotes"),
)
"""What to write instead, where PyYAML has only said what it expects."""


def _syntax_error(source: Source, error: yaml.MarkedYAMLError) -> Diagnostic:
    """What PyYAML says, or a plainer word for it, and what to write instead."""
    context, mark = error.context_mark, error.problem_mark or error.context_mark
    problem = ", ".join(filter(None, (error.context, error.problem))) or "unknown mistake"
    if "could not find expected ':'" in problem:
        mark, problem = context, "there is no `: ` after the key"
    elif "unexpected end of stream" in problem:
        mark, problem = context, "this quote is never closed"
    hint = next((hint for pattern, hint in _HINTS if re.search(pattern, problem)), "")
    if "mapping values are not allowed" in problem and mark:
        hint = "a `:` inside a value needs quotes around the value"
        if ": " not in source.line(mark.line)[: mark.column]:
            hint = "the line before has no `: ` after its key, or this one is indented too far"
    elif "but got" in problem and context:
        at = Span(source, context.line, context.column, context.column + 1)
        hint = f"the `{source.line(at.line)[at.column]}` at {at} is not closed"
    span = Span(source, mark.line, mark.column, mark.column + 1) if mark else None
    return Diagnostic("E101", f"not readable as YAML: {problem}", span, hint)


def _error(span: Span, message: str) -> SpecError:
    return SpecError([Diagnostic("E101", message, span)])


def is_text(written: str) -> bool:
    """Whether YAML takes a bare word for text, and for no number, truth value or null."""
    return not any(kind.match(written) for kind in (_NULL, _BOOLEAN, _INTEGER, _FLOAT))


def is_cut(key: str) -> bool:
    """Whether a key looks like what is left of a text that YAML has cut at its commas."""
    return key.endswith(")") or key.isdigit()


class _Composer(yaml.SafeLoader):
    """PyYAML's, without tags and no deeper than `MAX_NESTING`."""

    def __init__(self, text: str, source: Source) -> None:
        super().__init__(text)
        self.source, self.nesting, self.count = source, 0, 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        at = Span(self.source, event.start_mark.line, event.start_mark.column, 0)
        if tag := getattr(event, "tag", None):
            written = tag.replace("tag:yaml.org,2002:", "!!")
            raise _error(at, f"the tag `{written}` is not used in specs")
        if self.nesting > MAX_NESTING:
            raise _error(at, f"nested deeper than {MAX_NESTING} levels")
        self.count += 1
        if self.count > 2 * MAX_NODES:  # keys are nodes too
            raise _error(at, f"more than {MAX_NODES} values")
        self.nesting += 1
        node = super().compose_node(parent, index)
        self.nesting -= 1
        return node


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
            if _SURROGATE.search(key):
                self.error(at, "a key must be a plain name")
            elif key == "<<":
                self.error(at, "merge keys are not used in specs", "write `extends:` instead")
            elif key in entries:
                help = COMMA if is_cut(key) else f"first at {keys[key]}"
                self.error(at, f"the key `{key}` stands twice", help, "E102")
            else:
                keys[key] = at
                entries[key] = self.convert(value_node, inner)
        return Node(entries, span, keys)

    def scalar(self, node: yaml.ScalarNode, span: Span) -> Node:
        text = node.value
        if odd := _SURROGATE.search(text):
            return self.error(span, f"the character {odd[0]!r} is not allowed in YAML")
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
        if len(self.errors) < MAX_ERRORS:
            self.errors.append(Diagnostic(code, message, span, help))
        return Node(None, span)
