"""What publications say of shipped specs, settings.yaml, and the settings of a spec."""

from __future__ import annotations

from pathlib import Path

from archspec.loading import load
from archspec.tree import Node, read

FILE = Path(__file__).with_name("settings.yaml")
TOLD = ("archspec", "name", "summary", "cite", "family")
"""Keys of a spec that say what it is called, and set nothing."""

Settings = dict[str, object]


def settings_of(tree: Node) -> Settings:
    """A resolved spec as dotted paths: whole values outside of stages and `train`, in which every
    key, function and constant has its own path. `stages` are their names, in order."""
    found: Settings = {}
    for key, node in tree.map.items():
        if key == "train":
            found.update({f"train.{name}": inner.plain() for name, inner in node.map.items()})
        elif key == "stages":
            found["stages"] = list(node.map)
            for stage, inner in node.map.items():
                found.update(_settings_of_stage(f"stages.{stage}", inner))
        elif key not in TOLD and node.value is not None:
            found[key] = node.plain()
    return found


def _settings_of_stage(path: str, stage: Node) -> Settings:
    found: Settings = {}
    for key, node in stage.map.items():
        if key in ("functions", "constants"):
            found.update({f"{path}.{key}.{name}": each.plain() for name, each in node.map.items()})
        else:
            found[f"{path}.{key}"] = node.plain()
    return found


def pinned() -> dict[str, Settings]:
    """Of each spec, the settings of all entries that name it; `stages.*` are all its stages.
    Raises ValueError where an entry has no source, or two entries set one path."""
    text = FILE.read_text(encoding="utf-8")
    entries = read(text, FILE.name).plain()
    found: dict[str, Settings] = {}
    assert isinstance(entries, list)
    for entry in entries:
        if not entry["source"]:
            raise ValueError(f"no source: {entry}")
        for name in entry["specs"]:
            spec = found.setdefault(name, {})
            if twice := spec.keys() & entry["settings"].keys():
                raise ValueError(f"{name}: twice {', '.join(twice)}")
            spec.update(entry["settings"])
    return {name: _expanded(name, settings) for name, settings in found.items()}


def _expanded(name: str, settings: Settings) -> Settings:
    """With `stages.*` written out."""
    stages = load(name).spec.stages
    found: Settings = {}
    for path, value in settings.items():
        for stage in stages if path.startswith("stages.*.") else [""]:
            found[path.replace("stages.*.", f"stages.{stage}.")] = value
    return found
