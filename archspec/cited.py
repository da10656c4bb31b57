"""The papers that a spec comes from: its own, and those of its couplings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from archspec.citations import PAPERS, Paper
from archspec.diagnostics import Diagnostic, SpecError, nearest
from archspec.loading import SETTING, Loaded
from archspec.tree import Node, read


def cited(loaded: Loaded) -> Mapping[str, Paper]:
    """The papers that a spec cites, and then those that its couplings cite, by key. Raises
    `SpecError` for keys that are none of `PAPERS`."""
    trees = [loaded.tree, *_couplings(loaded.tree)]
    keys = [key for tree in trees for key in _entries(tree.map.get("cite"))]
    unknown = [_unknown(key) for key in keys if key.plain() not in PAPERS]
    if unknown:
        raise SpecError(unknown)
    return {str(key.plain()): PAPERS[str(key.plain())] for key in keys}


def _couplings(tree: Node) -> Iterator[Node]:
    """The files that the updates of stages stand in, where these are couplings."""
    stages = _entries(tree.map.get("stages"))
    sources = (stage.map["update"].span.source for stage in stages if "update" in stage.map)
    for source in dict.fromkeys(source for source in sources if source.name != SETTING):
        file = read(source.text, source.name)
        if "coupling" in file.map:
            yield file


def _entries(node: Node | None) -> list[Node]:
    if node is None:
        return []
    return node.value if isinstance(node.value, list) else list(node.map.values())


def _unknown(key: Node) -> Diagnostic:
    message = f"`{key.plain()}` is no paper that archspec knows"
    return Diagnostic("E107", message, key.span, nearest(key.plain(), PAPERS))
