"""Source text taken over into an emitted file, word for word."""

from __future__ import annotations

import ast
import functools
import inspect
import re
from collections.abc import Iterable, Mapping
from types import ModuleType

from compiler import checkpointing, schedules, storing, volumes
from compiler.engine import (
    contexts,
    errors,
    forward,
    handles,
    inversion,
    modules,
    replay,
    reversible,
    states,
    steps,
    tape,
    versions,
)
from compiler.functions import (
    attention,
    build,
    convolution,
    maps,
    pointwise,
    pooled_attention,
    tokens,
)

FUNCTIONS = (tokens, attention, pooled_attention, convolution, pointwise, build)
"""What functions are made of, and what makes them."""
MAPS = (maps, volumes)
PROGRAM = (schedules, errors, steps, forward)
REPLAY = (versions, modules, states, contexts, handles, replay, tape)
STRATEGIES = (inversion, reversible, checkpointing, storing)
ENGINE = (*PROGRAM, *REPLAY, *STRATEGIES)
"""In an order in which each comes after what it imports."""
OWN = ("archspec", "compiler")


@functools.cache
def body(module: ModuleType) -> str:
    """A module's text without its docstring and its imports. In one file with those that it
    imports, their names are no prefixes."""
    text = inspect.getsource(module)
    lines, tree = text.splitlines(), ast.parse(text)
    _drop_prefixes(lines, tree)
    for node in tree.body:
        is_docstring = node is tree.body[0] and isinstance(node, ast.Expr)
        if is_docstring or isinstance(node, (ast.Import, ast.ImportFrom)):
            lines[node.lineno - 1 : node.end_lineno] = [""] * _length(node)
    return "\n".join(lines).strip() + "\n"


def _drop_prefixes(lines: list[str], tree: ast.Module) -> None:
    """Write `name` for `module.name`, in place, where `module` is one of the package's own."""
    own = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module in OWN
        for alias in node.names
    }
    prefixes = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in own
    ]
    for prefix in sorted(prefixes, key=lambda name: (name.lineno, name.col_offset), reverse=True):
        line = lines[prefix.lineno - 1].encode()  # columns count bytes
        start = prefix.col_offset
        rest = line[start + len(f"{prefix.id}.") :]
        lines[prefix.lineno - 1] = (line[:start] + rest).decode()


def _length(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def definitions(wanted: Iterable[str], modules: Iterable[ModuleType]) -> str:
    """The parts of these names that modules define, with all of theirs that they need."""
    known = _known(modules)
    needed = {name for name in wanted if name in known}
    while more := {n for name in needed for n in _words(known[name]) & set(known)} - needed:
        needed |= more
    return "\n\n".join(source for name, source in known.items() if name in needed)


def _known(modules: Iterable[ModuleType]) -> Mapping[str, str]:
    """What is defined in modules, in order."""
    found: dict[str, str] = {}
    for module in modules:
        lines = inspect.getsource(module).splitlines()
        tree = ast.parse("\n".join(lines))
        for index, node in enumerate(tree.body):
            name = _defined(node)
            if name is None or (module is build and name != "Function"):
                continue
            after = tree.body[index + 1] if index + 1 < len(tree.body) else None
            # A string under an assignment describes it.
            described = isinstance(node, ast.Assign) and isinstance(after, ast.Expr)
            end = after.end_lineno if described and after is not None else node.end_lineno
            found[name] = "\n".join(lines[node.lineno - 1 : end]) + "\n"
    return found


def _defined(node: ast.stmt) -> str | None:
    if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
        return node.name
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    return None


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


def imports(modules: Iterable[ModuleType], text: str) -> str:
    """The imports that `text`, taken from these modules, needs."""
    used, plain, named = _words(text), set(), {"collections": {"OrderedDict"}}
    for module in modules:
        for node in ast.parse(inspect.getsource(module)).body:
            if isinstance(node, ast.Import):
                plain |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = {alias.name for alias in node.names}
                named.setdefault(node.module, set()).update(names & used)
    lines = [f"import {name}" for name in sorted(plain) if name in used]
    for module_name, names in sorted(named.items()):
        if module_name.partition(".")[0] not in (*OWN, "__future__") and names:
            lines.append(f"from {module_name} import {', '.join(sorted(names))}")
    is_torch = [("torch" in line.split()[1].split(".")[0], line) for line in lines]
    standard, torch = ([line for t, line in is_torch if t is is_it] for is_it in (False, True))
    return "\n".join(["from __future__ import annotations\n", *standard, "", *torch])
