"""From the name of a spec to its full tree: inheritance, settings and named couplings applied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from archspec.diagnostics import Diagnostic, Source, Span, SpecError, nearest
from archspec.dumping import dump, node_of
from archspec.merging import merge
from archspec.spec import Coupling, Spec, Stage
from archspec.tree import MAX_CHARACTERS, Node, read
from archspec.validation import validate

MAX_ANCESTORS = 16
PROGRAM = ("coupling", "streams", "constants", "update", "output")
"""The keys of a stage that say what its layers compute."""


@dataclass(frozen=True)
class Loaded:
    """A spec with nothing left to look up, and the tree that says where each value stands."""

    spec: Spec
    tree: Node


def zoo() -> Path:
    """The folder of the shipped specs: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "specs"
    return installed if installed.is_dir() else package.parent / "specs"


def load(what: str | Path | Mapping[str, object] | Spec, settings: Sequence[str] = ()) -> Loaded:
    """Load a spec: a path, the name of a shipped one, a dict, or a `Spec`.

    `settings` are texts `path.to.key=value`, applied after inheritance. Raises `SpecError`.
    """
    if isinstance(what, Spec):
        what = what.model_dump(mode="json", exclude_unset=True)
    if isinstance(what, Mapping):
        tree = _inherit(read(dump(node_of(dict(what))), "<dict>"), ())
    else:
        path = find(str(what), Path.cwd(), None)
        tree = _inherit(read_file(path), (path.resolve(),))
    for setting in settings:
        tree = merge(tree, setting_tree(setting))
    tree = _expand_couplings(tree)
    return Loaded(validate(Spec, tree), tree)


def read_file(path: Path) -> Node:
    """Read a YAML file. Raises `SpecError`."""
    try:
        if path.stat().st_size > 4 * MAX_CHARACTERS:
            raise SpecError([Diagnostic("E101", f"{path} is too long for a spec")])
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SpecError([Diagnostic("E501", f"cannot read {path}: {error.strerror}")]) from None
    except UnicodeDecodeError:
        raise SpecError([Diagnostic("E101", f"{path} is not UTF-8 text")]) from None
    return read(text, str(path))


def find(name: str, folder: Path, at: Span | None, kind: str = "") -> Path:
    """The file that `name` means: a path, a name beside `folder`, or a shipped one.

    `kind` is a subfolder to look in (`couplings`). Raises `SpecError`, with `at` as its place.
    """
    shipped = zoo() / kind
    given = Path(name)
    if at is None and (given.suffix in (".yaml", ".yml") or given.is_file()):
        if given.is_file():
            return given
        raise SpecError([Diagnostic("E501", f"there is no file {name}", at, _near(name, shipped))])
    asking = Path(at.source.name).resolve() if at else None
    for place in (folder / kind, folder, shipped):
        candidate = place / f"{name}.yaml"
        # A spec may extend the shipped one of its own name.
        if candidate.is_file() and candidate.resolve() != asking:
            return candidate
    what = kind.removesuffix("s") or "spec"
    raise SpecError([Diagnostic("E501", f"there is no {what} `{name}`", at, _near(name, shipped))])


def _near(name: str, folder: Path) -> str:
    return nearest(Path(name).stem, (path.stem for path in folder.glob("*.yaml")))


def _folder(span: Span) -> Path:
    return Path(span.source.name).parent


def _inherit(tree: Node, lineage: tuple[Path, ...]) -> Node:
    """Merge `tree` over what it extends."""
    parent = tree.map.get("extends")
    if parent is None or not isinstance(parent.value, str):
        return tree
    path = find(parent.value, _folder(parent.span), parent.span)
    if path.resolve() in lineage:
        names = " → ".join(p.stem for p in (*lineage, path))
        raise SpecError(
            [Diagnostic("E502", f"`extends` goes round in a circle: {names}", parent.span)]
        )
    if len(lineage) >= MAX_ANCESTORS:
        raise SpecError([Diagnostic("E502", f"more than {MAX_ANCESTORS} ancestors", parent.span)])
    inherited = _inherit(read_file(path), (*lineage, path.resolve()))
    return merge(inherited.without("extends", "name"), tree.without("extends"))


def setting_tree(setting: str) -> Node:
    """`a.b=value` as the tree {a: {b: value}}. Raises `SpecError`."""
    path, equals, value = setting.partition("=")
    source = Source("--set", setting)
    whole = Span(source, 0, 0, len(setting))
    steps = path.strip().split(".")
    if not equals or not all(steps):
        message = f"`{setting}` is not of the form path.to.key=value"
        raise SpecError([Diagnostic("E503", message, whole, "for example: train.epochs=5")])
    # Blanks in place of the path keep the columns of the value right.
    text = " " * (len(path) + 1) + value
    node = _moved(read(text, "--set"), source) if value.strip() else Node(None, whole)
    start = len(path)
    for step in reversed(steps):
        start -= len(step)
        at = whole.narrow(start, start + len(step))
        start -= 1
        node = Node({step: node}, at, {step: at})
    return node


def _moved(node: Node, source: Source) -> Node:
    span = Span(source, node.span.line, node.span.column, node.span.end_column)
    keys = {k: Span(source, s.line, s.column, s.end_column) for k, s in node.keys.items()}
    if isinstance(node.value, dict):
        return Node({k: _moved(v, source) for k, v in node.value.items()}, span, keys)
    if isinstance(node.value, list):
        return Node([_moved(v, source) for v in node.value], span)
    return Node(node.value, span)


def _expand_couplings(tree: Node) -> Node:
    stages = tree.map.get("stages")
    if stages is None or not stages.map:
        return tree
    errors: list[Diagnostic] = []
    for name, stage in stages.map.items():
        coupling = stage.map.get("coupling")
        if coupling is None or not isinstance(coupling.value, str):
            continue
        try:
            path = find(coupling.value, _folder(coupling.span), coupling.span, "couplings")
            expanded = _expand(stage, read_file(path))
        except SpecError as error:
            errors += error.diagnostics
            continue
        stages = stages.with_entry(name, expanded, stages.keys[name])
    if errors:
        raise SpecError(errors)
    return tree.with_entry("stages", stages, tree.keys["stages"])


def _expand(stage: Node, file: Node) -> Node:
    """A stage with its coupling's streams, constants, update and output written out."""
    coupling = validate(Coupling, file)
    errors = []
    if "update" in stage.map:
        message = f"a stage has either `update` or `coupling: {coupling.coupling}`, not both"
        errors.append(Diagnostic("E504", message, stage.keys["update"]))
    for part, known in (("streams", coupling.streams), ("constants", coupling.constants)):
        overrides = stage.map.get(part)
        errors += _unknown(overrides, known, f"{part} of coupling {coupling.coupling}")
    given = stage.map.get("functions")
    for function in coupling.functions:
        if given is not None and function not in given.map:
            message = f"coupling {coupling.coupling} needs the function `{function}`"
            errors.append(Diagnostic("E505", message, stage.keys["functions"]))
    if errors:
        raise SpecError(errors)
    program = Node(
        {key: node for key, node in file.map.items() if key in PROGRAM and key != "coupling"},
        file.span,
        file.keys,
    )
    return merge(program, stage.without("coupling"))


def _unknown(overrides: Node | None, known: Iterable[str], where: str) -> list[Diagnostic]:
    if overrides is None:
        return []
    return [
        Diagnostic("E103", f"unknown key `{key}` in the {where}", at, nearest(key, known))
        for key, at in overrides.keys.items()
        if key not in known
    ]


def ordered(tree: Node) -> Node:
    """A spec's tree with the keys of the spec and of its stages in their documented order."""
    stages = tree.map.get("stages")
    if stages is not None:
        for name, stage in stages.map.items():
            stages = stages.with_entry(name, _in_order(stage, Stage), stages.keys[name])
        tree = tree.with_entry("stages", stages, tree.keys["stages"])
    return _in_order(tree, Spec)


def _in_order(tree: Node, model: type[BaseModel]) -> Node:
    rank = {name: index for index, name in enumerate(model.model_fields)}
    keys = sorted(tree.map, key=lambda key: rank.get(key, len(rank)))
    return Node({key: tree.map[key] for key in keys}, tree.span, tree.keys)
