"""The papers that a spec comes from: its own, and those of its couplings."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

from archspec.loading import SETTING, Loaded
from archspec.paper import Paper
from archspec.papers import PAPERS
from archspec.tree import Node, read


def cited(loaded: Loaded) -> Mapping[str, Paper]:
    """The papers that a spec cites, and then those that its couplings cite, by key; keys of the
    user's own are left out."""
    known = [str(key.plain()) for key in _keys(loaded) if key.plain() in PAPERS]
    return {key: PAPERS[key] for key in known}


def unknown(loaded: Loaded) -> list[str]:
    """What there is to say of the keys that are none of `PAPERS`, with their places."""
    return [_unknown(key) for key in _keys(loaded) if key.plain() not in PAPERS]


def with_all_keys(loaded: Loaded) -> Node:
    """The tree of a spec that cites, beside its own, what its couplings cite."""
    tree, keys = loaded.tree, {str(key.plain()): key for key in _keys(loaded)}
    if not keys:
        return tree
    at = tree.where(("cite",))
    return tree.with_entry("cite", Node(list(keys.values()), at), at)


def _keys(loaded: Loaded) -> list[Node]:
    trees = [loaded.tree, *_couplings(loaded.tree)]
    return [key for tree in trees for key in _entries(tree.map.get("cite"))]


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


def _unknown(key: Node) -> str:
    near = difflib.get_close_matches(str(key.plain()), PAPERS, n=1, cutoff=0.6)
    offered = f"; did you mean `{near[0]}`?" if near else ""
    return f"{key.span}: `{key.plain()}` is no paper that archspec knows{offered}"
