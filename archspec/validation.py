"""Trees into Pydantic models, and Pydantic's errors into diagnostics that point into the tree."""

from __future__ import annotations

import re
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from archspec.diagnostics import Diagnostic, Span, SpecError, nearest
from archspec.layers import MODULE_NAME
from archspec.onekey import NESTED, NO_NESTING
from archspec.parsing import COMMA
from archspec.spec import FILE_NAME
from archspec.tree import Node, Path, is_cut, is_text

AnyModel = TypeVar("AnyModel", bound=BaseModel)

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a map",
    "model_type": "a map",
    "model_attributes_type": "a map",
}


def validate(model: type[AnyModel], tree: Node) -> AnyModel:
    """Read `tree` as `model`. Raises `SpecError` with every mistake, in the order of the file."""
    if not isinstance(tree.value, dict):
        raise SpecError([Diagnostic("E105", "expected a map of keys", tree.span)])
    try:
        return model.model_validate(tree.plain())
    except ValidationError as error:
        details = error.errors(include_url=False)
    groups: dict[tuple[Span, bool], list[ErrorDetails]] = {}
    meant = {(*detail["loc"][:-1], _meant(detail)) for detail in details}
    lists = {detail["loc"][:i] for detail in details for i in range(len(detail["loc"]))}
    named = {detail["loc"][:-1] for detail in details if detail["loc"][-1:] == ("[key]",)}
    for detail in details:
        if detail["type"] == "too_short" and detail["loc"] in lists:
            continue  # its bad entries are told of, and were not counted
        if detail["type"] == "missing" and detail["loc"] in meant:
            continue  # an unknown key is told of, with this one as what it may mean
        if detail["input"] is None and detail["loc"] in named:
            continue  # a key that is no name, where YAML has cut a text at its commas
        groups.setdefault((_span(detail, tree), detail["type"] == "missing"), []).append(detail)
    raise SpecError(_diagnose(span, group) for (span, _), group in groups.items())


def _span(detail: ErrorDetails, tree: Node) -> Span:
    path = detail["loc"]
    if detail["type"] == "missing":
        return _owner(path[:-1], tree)
    if detail["type"] == "unknown_key" or path[-1:] == ("[key]",):
        keys = tree.find(path[:-1] if path[-1] != "[key]" else path[:-2]).keys
        name = str(path[-1] if path[-1] != "[key]" else path[-2])
        return keys.get(name, tree.find(path).span)
    node = tree.find(path)
    if detail["type"] == "unknown_kind" and node.keys:
        return next(iter(node.keys.values()))
    if detail["type"] == "kind_written":
        return next(iter(node.map.values())).keys["kind"]
    return node.span


def _meant(detail: ErrorDetails) -> str:
    """The key that an unknown one is offered for."""
    offered = re.match(r"did you mean `(\w+)`", detail.get("ctx", {}).get("help", ""))
    return offered[1] if offered and detail["type"] == "unknown_key" else ""


def _owner(path: Path, tree: Node) -> Span:
    """Where a map begins that lacks a key: its own name, or the name that stands for it."""
    node, span = tree, tree.span
    for step in path:
        if step in node.map:
            node, span = node.map[str(step)], node.keys[str(step)]
        elif isinstance(step, int) and isinstance(node.value, list):
            node = node.value[step]
            span = node.span
    return node.span if isinstance(node.value, str) else span


def _diagnose(span: Span, group: list[ErrorDetails]) -> Diagnostic:
    """One diagnostic for all that Pydantic says of one place."""
    first = group[0]
    kind, context = first["type"], first.get("ctx", {})
    if kind == "missing":
        names = ", ".join(f"`{detail['loc'][-1]}`" for detail in group)
        verb = "is" if len(group) == 1 else "are"
        return Diagnostic("E104", f"{names} {verb} missing here", span, _program_help(group))
    if kind == "unknown_key":
        return Diagnostic("E103", first["msg"], span, context.get("help", ""))
    if kind == "unknown_kind":
        return Diagnostic("E106", first["msg"], span, context.get("help", ""))
    if kind in ("one_key", "no_shorthand", "kind_written"):
        return Diagnostic("E105", first["msg"], span, context.get("help", ""))
    if kind == "literal_error":
        choices = context.get("expected", "").replace(" or ", ", ").replace("'", "")
        message = f"{_describe(first['input'])} is not one of the choices here"
        return Diagnostic("E107", message, span, nearest(first["input"], choices.split(", ")))
    if kind == "string_pattern_mismatch":
        return Diagnostic(
            "E108", f"{_describe(first['input'])} cannot be a name here", span, _naming(first)
        )
    expected = list(dict.fromkeys(_EXPECTED[d["type"]] for d in group if d["type"] in _EXPECTED))
    if expected:
        found, help = _describe(first["input"]), ""
        if isinstance(first["input"], str) and not is_text(first["input"]):
            found, help = f'text, `"{first["input"][:60]}"`', "leave out the quotes"
        elif isinstance(first["input"], dict) and not first["input"].keys().isdisjoint(NESTED):
            help = NO_NESTING
        return Diagnostic("E105", f"expected {' or '.join(expected)}, found {found}", span, help)
    return Diagnostic("E107", _plain_message(first), span)


def _program_help(missing: list[ErrorDetails]) -> str:
    """Why a stage that seems to inherit its program lacks a part of it."""
    keys = {detail["loc"][-1] for detail in missing if detail["loc"][:1] == ("stages",)}
    if keys & {"streams", "output"} and "update" not in keys:
        return (
            "a stage with an `update` of its own also says its `streams` and `output`: those of a "
            "coupling, inherited or not, are the coupling's"
        )
    if "update" in keys:
        return "`coupling: NAME` stands for `streams`, `update` and `output`; or write all three"
    return ""


def _naming(detail: ErrorDetails) -> str:
    context = detail.get("ctx", {})
    if is_cut(str(detail["input"])):
        return COMMA
    pattern = str(context.get("pattern", ""))
    if pattern == FILE_NAME:
        return "names of files have letters, digits, `_`, `-` and `.`"
    if pattern == MODULE_NAME:
        return "a class is named with the modules that it is in: `package.module.Class`"
    if pattern.startswith("^[A-Z]"):
        return "functions are named by a capital and then letters or digits: F, G, F0"
    return "names begin with a small letter and have letters, digits and `_`"


def _plain_message(detail: ErrorDetails) -> str:
    if detail["type"] in ("too_short", "too_long"):
        context = detail["ctx"]
        limit = context.get("min_length", context.get("max_length"))
        bound = "least" if detail["type"] == "too_short" else "most"
        entries = "entry" if limit == 1 else "entries"
        return f"expected at {bound} {limit} {entries}, found {context['actual_length']}"
    message = detail["msg"].removeprefix("Value error, ")
    if message.startswith("Input should be "):
        wanted = message.removeprefix("Input should be ")
        return f"expected a value {wanted}, found {_describe(detail['input'])}"
    return message[:1].lower() + message[1:]


def _describe(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, (dict, list)):
        return "a map" if isinstance(value, dict) else "a list"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{text[:60]}`"
