"""From the name of a spec to its full tree: inheritance, settings and named couplings applied."""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from pydantic import BaseModel

from archspec.data import AnyData
from archspec.diagnostics import MAX_SHOWN, Diagnostic, Source, Span, SpecError, nearest
from archspec.dumping import dump, node_of
from archspec.finding import find
from archspec.merging import merge
from archspec.onekey import kinds_of
from archspec.spec import Coupling, Recipe, Spec, Stage
from archspec.tree import MAX_CHARACTERS, MAX_NODES, Node, read
from archspec.validation import validate

MAX_ANCESTORS = 16
SETTING = "--set"
"""What errors call a setting."""
PROGRAM = ("streams", "constants", "update", "output")
"""The keys of a coupling that a stage takes over."""
_FIRST = re.compile(r"([^=]*\.coupling|recipe)\s*=")
"""Settings that clear what others change."""
_NOT_AUGMENTED = {
    kind for m in get_args(AnyData) if "augment" not in m.model_fields for kind in kinds_of(m)
}
"""Data sets that no recipe's augmentation is for."""
_STAND_IN = read("{streams: {x: input}, update: [x = x], output: x}", "<stand-in>")
"""The program of a coupling that cannot be read: the rest of its stage is still validated."""


@dataclass(frozen=True)
class Loaded:
    """A spec with nothing left to look up, and the tree that says where each value stands."""

    spec: Spec
    tree: Node
    packages: tuple[str, ...] = ()
    """Where modules of the user's own may come from."""


def load(
    what: str | Path | Mapping[str, object] | Spec,
    settings: Sequence[str] = (),
    allow_modules: Sequence[str] = (),
) -> Loaded:
    """Load a spec: a path, the name of a shipped one, a dict, or a `Spec`.

    `settings` are texts `path.to.key=value`, applied after inheritance; `allow_modules` are the
    packages whose modules the spec may name, which runs their code. One of them may be given
    without a list. Raises `SpecError`.
    """
    settings = (settings,) if isinstance(settings, str) else settings
    allow_modules = (allow_modules,) if isinstance(allow_modules, str) else allow_modules
    if isinstance(what, Spec):
        what = what.model_dump(mode="json", exclude_unset=True)
    files = _Files()
    if isinstance(what, Mapping):
        folder = Path.cwd()
        tree = _inherit(read(dump(node_of(what)), "<dict>"), (), files)
    else:
        path = find(str(what), Path.cwd(), None)
        folder = path.parent
        file = files.read(path)
        if is_study(file):
            message = f"{path} is a study, and not a spec: it names specs to compare"
            help = f"`archspec compare {path}`, with no other spec, runs it"
            at = next(file.keys[key] for key in ("study", "specs") if key in file.keys)
            raise SpecError([Diagnostic("E501", message, at, help)])
        if "coupling" in file.map and "stages" not in file.map:
            message = f"{path} is a coupling, and not a spec: a stage names it by `coupling:`"
            help = f"`archspec show {path}` prints it, with its inverse"
            raise SpecError([Diagnostic("E501", message, file.keys["coupling"], help)])
        tree = _inherit(file, (path.resolve(),), files)
    tree = _with_recipe(_with_settings(tree, settings), folder, files)
    tree, errors = _expand_couplings(tree, folder, files)
    try:
        spec = validate(Spec, tree)
    except SpecError as error:
        raise SpecError([*errors, *error.diagnostics]) from None
    if errors:
        raise SpecError(errors)
    return Loaded(spec, tree, tuple(allow_modules))


def is_study(tree: Node) -> bool:
    """Whether a file is a study's, and no spec's."""
    return ("study" in tree.map or "specs" in tree.map) and "stages" not in tree.map


def read_file(path: Path) -> Node:
    """Read a YAML file. Raises `SpecError`."""
    try:
        if path.stat().st_size > 4 * MAX_CHARACTERS:
            start = Source(str(path), "").at(0)
            raise SpecError([Diagnostic("E101", "too long for a spec", start)])
        data = path.read_bytes().removeprefix(BOM_UTF8)
    except OSError as error:
        raise SpecError([Diagnostic("E501", f"cannot read {path}: {error.strerror}")]) from None
    try:
        return read(data.decode(), str(path))
    except UnicodeDecodeError as error:
        before = data[: error.start].decode()
        span = Source(str(path), f"{before}\N{REPLACEMENT CHARACTER}").at(len(before))
        raise SpecError([Diagnostic("E101", "this is not UTF-8 text", span)]) from None


class _Files:
    """Reads the files that a spec names: each once, and all together no more than one may hold."""

    def __init__(self) -> None:
        self.known: dict[Path, Node] = {}
        self.full = False

    def read(self, path: Path, at: Span | None = None) -> Node:
        """A file's tree; errors about its size stand at `at`. Raises `SpecError`."""
        if path not in self.known and not self.full:
            self.known[path] = read_file(path)
            files = self.known.values()
            characters = sum(len(file.span.source.text) for file in files)
            values = sum(file.count() for file in files)
            self.full = characters > MAX_CHARACTERS or values > MAX_NODES
        if self.full:
            message = f"this and the files before it have more than {MAX_CHARACTERS} characters"
            raise SpecError([Diagnostic("E101", f"{message} or {MAX_NODES} values", at)])
        return self.known[path]


def _folder(span: Span) -> Path:
    return Path(span.source.name).parent


def _inherit(tree: Node, lineage: tuple[Path, ...], files: _Files) -> Node:
    """Merge `tree` over what it extends."""
    if not isinstance(tree.value, dict):
        raise SpecError([Diagnostic("E105", "expected a map of keys", tree.span)])
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
    inherited = _inherit(files.read(path, parent.span), (*lineage, path.resolve()), files)
    return merge(inherited.without("extends", "name"), tree.without("extends"))


def _with_settings(tree: Node, settings: Iterable[str]) -> Node:
    """A tree with settings laid over it in turn, those that choose a coupling or a recipe first."""
    errors: list[Diagnostic] = []
    for setting in sorted(settings, key=lambda s: not _FIRST.match(s)):
        try:
            over = setting_tree(setting)
            _check_setting(tree, over)
            tree = merge(tree, over)
        except SpecError as error:
            errors += error.diagnostics
    if errors:
        raise SpecError(errors)
    return tree


def _check_setting(tree: Node, over: Node) -> None:
    """Refuse what merging would take without a word."""
    if "extends" in over.map:
        message = "`extends` cannot be set: settings come after inheritance"
        raise SpecError([Diagnostic("E503", message, over.keys["extends"])])
    if "stages" in tree.map and "stages" in over.map:
        known, stages = tree.map["stages"].map, over.map["stages"]
        for name, stage in stages.map.items():
            parts = {"functions", "maps"} & set(stage.map)
            if name not in known and not ("depth" in stage.map and parts):
                help = nearest(name, known)
                message = f"there is no stage `{name}`"
                raise SpecError([Diagnostic("E503", message, stages.keys[name], help)])


def setting_tree(setting: str) -> Node:
    """`a.b=value` as the tree {a: {b: value}}. Raises `SpecError`."""
    path, equals, value = setting.partition("=")
    whole = Span(Source(SETTING, setting), 0, 0, len(setting))
    steps = path.strip().split(".")
    if not equals or not all(steps):
        message = f"`{setting}` is not of the form path.to.key=value"
        raise SpecError([Diagnostic("E503", message, whole, "for example: train.epochs=5")])
    # Blanks in place of the path keep the columns of the value right.
    text = " " * (len(path) + 1) + value
    node = read(text, SETTING, shown=setting) if value.strip() else Node(None, whole)
    start = len(path.rstrip()) + 1
    for step in reversed(steps):
        start -= len(step) + 1
        at = whole.narrow(start, start + len(step))
        node = Node({step: node}, at, {step: at})
    return node


def _with_recipe(tree: Node, folder: Path, files: _Files) -> Node:
    """A tree over the recipe that it names, which is then no longer named. Raises `SpecError`."""
    named = tree.map.get("recipe")
    if named is None or not isinstance(named.value, str):
        return tree
    beside = folder if named.span.source.name == SETTING else _folder(named.span)
    file = files.read(find(named.value, beside, named.span, "recipes"), named.span)
    validate(Recipe, file)
    tree = tree.without("recipe")
    recipe = Node({"train": file.map["train"]}, file.span, {"train": file.keys["train"]})
    own = tree.map.get("train")
    if own is not None and own.value is None:  # no training, whatever the recipe
        return tree
    merged = merge(recipe, tree)
    return _augmented(merged, file, named)


def _augmented(tree: Node, recipe: Node, named: Node) -> Node:
    """With the recipe's augmentation, where the data has none of its own. Raises `SpecError` at
    the recipe's name for data that takes none."""
    augment, data = recipe.map.get("augment"), tree.map.get("data")
    if augment is None or not augment.value or data is None:
        return tree
    if isinstance(data.value, str):
        data = Node({data.value: Node({}, data.span)}, data.span, {data.value: data.span})
    for kind, content in data.map.items():
        takes = content.value is None or isinstance(content.value, dict)
        if kind in _NOT_AUGMENTED and "augment" not in content.map:
            message = f"the recipe {named.value} has `augment`, but {kind} data takes none"
            help = "name a recipe without it, or write `recipe: null` and all of `train`"
            raise SpecError([Diagnostic("E107", message, named.span, help)])
        if takes and "augment" not in content.map:
            entries = Node(content.map, content.span, content.keys)
            with_it = entries.with_entry("augment", augment, recipe.keys["augment"])
            data = data.with_entry(kind, with_it, data.keys[kind])
    return tree.with_entry("data", data, tree.keys["data"])


def _expand_couplings(tree: Node, folder: Path, files: _Files) -> tuple[Node, list[Diagnostic]]:
    """A tree whose stages have their couplings' programs written out, and the mistakes in that.
    A coupling that a setting names is looked for beside `folder`."""
    stages = tree.map.get("stages")
    errors: list[Diagnostic] = []
    broken: set[Path] = set()
    if stages is None or not stages.map:
        return tree, errors
    expanded = dict(stages.map)
    for name, stage in stages.map.items():
        coupling = stage.map.get("coupling")
        if coupling is None or not isinstance(coupling.value, str) or len(errors) > MAX_SHOWN:
            continue
        program = _STAND_IN
        beside = folder if coupling.span.source.name == SETTING else _folder(coupling.span)
        path = None
        try:
            path = find(coupling.value, beside, coupling.span, "couplings")
            if path not in broken:  # the mistakes of a file are told once
                file = files.read(path, coupling.span)
                errors += _misuses(stage, validate(Coupling, file))
                program = file
        except SpecError as error:
            errors += error.diagnostics
            broken |= {path} if path else set()
        program = program.without(*(set(program.map) - set(PROGRAM)))
        expanded[name] = merge(program, stage.without("coupling"), ("stages", name))
    stages = Node(expanded, stages.span, stages.keys)
    return tree.with_entry("stages", stages, tree.keys["stages"]), errors


def _misuses(stage: Node, coupling: Coupling) -> Iterator[Diagnostic]:
    """What a stage gives its coupling that the coupling has no place for, or does not give."""
    if "update" in stage.map:
        message = f"a stage has either `update` or `coupling: {coupling.coupling}`, not both"
        yield Diagnostic("E504", message, stage.keys["update"])
    for part, known in (("streams", coupling.streams), ("constants", coupling.constants)):
        overrides = stage.map.get(part)
        yield from _unknown(overrides, known, f"{part} of coupling {coupling.coupling}")
    given = stage.map.get("functions")
    for function in coupling.functions:
        if given is None or function not in given.map:
            message = f"coupling {coupling.coupling} needs the function `{function}`"
            yield Diagnostic("E505", message, stage.keys["functions" if given else "coupling"])
    maps = stage.map.get("maps")
    for name in coupling.maps:
        if maps is None or name not in maps.map:
            message = f"coupling {coupling.coupling} needs the invertible map `{name}`"
            yield Diagnostic("E505", message, stage.keys["maps" if maps else "coupling"])


def _unknown(overrides: Node | None, known: Iterable[str], where: str) -> list[Diagnostic]:
    if overrides is None:
        return []
    unknown = [(key, at) for key, at in overrides.keys.items() if key not in known]
    return [
        Diagnostic(
            "E103",
            f"unknown key `{key}` in the {where}",
            at,
            nearest(key, known) if index < MAX_SHOWN else "",
        )
        for index, (key, at) in enumerate(unknown)
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
