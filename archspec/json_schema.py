"""The JSON schema of spec and coupling files, in draft 7, which editors understand."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from archspec.spec import Coupling, Spec

INHERITED = {"Spec": ("archspec", "name"), "Stage": (), "Train": ()}
"""Of these, only the named keys must be written in the file itself: the rest may be inherited."""
REMOVABLE = ("stages", "streams", "functions", "maps", "constants")
"""Maps of names, from which `name: null` takes away what is inherited."""


def spec_schema() -> dict[str, Any]:
    """The schema of a spec file."""
    return _draft7(Spec, "archspec spec, version 1")


def coupling_schema() -> dict[str, Any]:
    """The schema of a coupling file."""
    return _draft7(Coupling, "archspec coupling, version 1")


def _draft7(model: type[BaseModel], title: str) -> dict[str, Any]:
    schema: dict[str, Any] = _renamed(model.model_json_schema())
    for name, definition in (*schema.get("definitions", {}).items(), (model.__name__, schema)):
        if name in INHERITED and "required" in definition:
            definition["required"] = list(INHERITED[name])
        if name in INHERITED:
            _let_remove(definition["properties"])
    return {"$schema": "http://json-schema.org/draft-07/schema#", **schema, "title": title}


def _let_remove(properties: dict[str, Any]) -> None:
    """Allow null for what a map of names holds."""
    for part in REMOVABLE:
        held = properties.get(part, {})
        for key in ("additionalProperties", "patternProperties"):
            entries = held.get(key)
            if key == "patternProperties" and entries:
                held[key] = {name: _or_null(entry) for name, entry in entries.items()}
            elif isinstance(entries, dict):
                held[key] = _or_null(entries)


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _renamed(value: Any) -> Any:
    """Pydantic writes a later draft, whose one difference here is the name of definitions."""
    if isinstance(value, dict):
        return {"definitions" if k == "$defs" else k: _renamed(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_renamed(v) for v in value]
    return value.replace("#/$defs/", "#/definitions/") if isinstance(value, str) else value
