"""One tree laid over another: how a spec inherits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import get_args

from archspec.data import AnyData
from archspec.diagnostics import Diagnostic, SpecError
from archspec.onekey import kinds_of
from archspec.training import AnyTask
from archspec.tree import Node, Path

_INDEX = re.compile(r"[0-9]{1,6}\Z")
CHOICES: tuple[Path, ...] = (
    ("input",),
    ("data",),
    ("task",),
    ("train", "optimizer"),
    ("train", "schedule"),
)
"""Paths whose map is a choice of one kind, replaced as a whole when another kind is chosen."""
WRITTEN_SHORT: Mapping[Path, str] = {
    (section, kind): model.shorthand
    for section, models in (("data", get_args(AnyData)), ("task", get_args(AnyTask)))
    for model in models
    for kind in kinds_of(model)
    if model.shorthand
}
"""The key that a bare value at a path stands for."""


SCHEDULES = {"every", "slots"}
"""Of checkpoints: a stage has one."""


def merge(base: Node, over: Node, path: Path = ()) -> Node:
    """`over` laid over `base`: maps merge key by key, lists and scalars replace. Raises
    `SpecError`.

    A null takes a key away; a map with numbers as keys changes single entries of a list; another
    choice (of data set, optimizer, way to make a constant, backward strategy or schedule, or
    program of a stage) replaces the old.
    """
    if isinstance(base.value, list) and over.map and all(map(_INDEX.match, over.map)):
        return Node(_merged_entries(base.value, over, path), base.span)
    if isinstance(over.value, dict) and (key := WRITTEN_SHORT.get(path)) and base.value is not None:
        base = _written_out(base, key)
    if not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    if _is_another_choice(base, over, path):
        return over
    if len(path) == 4 and path[::2] == ("stages", "backward") and SCHEDULES & set(over.map):
        base = base.without(*SCHEDULES)  # of which a stage has one
    kept = _without_replaced_program(base, over, path)
    if path == () and "recipe" in over.map:
        kept = _without_recipe(kept)
    entries, keys = dict(kept.map), dict(kept.keys)
    for key, node in over.map.items():
        if node.value is None and key in entries:
            del entries[key], keys[key]
        else:
            entries[key] = merge(entries[key], node, (*path, key)) if key in entries else node
            keys[key] = over.keys[key]
    return Node(entries, over.span, keys)


def _written_out(base: Node, key: str) -> Node:
    """`cifar10: ../data` as `cifar10: {root: ../data}`, to which keys can be added."""
    if isinstance(base.value, dict):
        return base
    return Node({key: base}, base.span, {key: base.span})


def _merged_entries(entries: list[Node], over: Node, path: Path) -> list[Node]:
    """A list with single entries replaced or merged. Raises `SpecError` for one past its end."""
    merged = list(entries)
    for key, node in over.map.items():
        index = int(key)
        if index >= len(merged):
            message = f"there is no entry {index} in this list, which has {len(merged)}, from 0"
            raise SpecError([Diagnostic("E503", message, over.keys[key])])
        merged[index] = merge(merged[index], node, (*path, index))
    return merged


def _is_another_choice(base: Node, over: Node, path: Path) -> bool:
    if path in CHOICES:
        return set(over.map) != set(base.map)
    if len(path) == 3 and path[0] == "stages" and path[2] == "backward":
        return set(over.map) != set(base.map)
    is_constant = len(path) == 4 and path[0] == "stages" and path[2] == "constants"
    made = {"learn", "draw"}
    return (
        is_constant and bool(made & set(over.map)) and made & set(over.map) != made & set(base.map)
    )


def _without_recipe(spec: Node) -> Node:
    """A spec that names a recipe starts its training and augmentation afresh."""
    spec = spec.without("recipe", "train")
    data = spec.map.get("data")
    if data is None:
        return spec
    for kind, content in data.map.items():
        data = data.with_entry(kind, content.without("augment"), data.keys[kind])
    return spec.with_entry("data", data, spec.keys["data"])


def _without_replaced_program(base: Node, over: Node, path: Path) -> Node:
    """A stage that names a coupling, or writes an update, starts its program afresh."""
    if len(path) != 2 or path[0] != "stages":
        return base
    if "coupling" in over.map:
        return base.without("coupling", "streams", "constants", "update", "output")
    return base.without("coupling") if "update" in over.map else base
