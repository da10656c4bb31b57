"""Pydantic models written in YAML as a bare name or a map of one key.

`layer_norm`, `linear: 10` and `mlp: {ratio: 4}` all name a kind; the models are told apart by
their field `kind`, and a class variable `shorthand` names the field that a bare value sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import (
    CoreSchema,
    ErrorDetails,
    InitErrorDetails,
    PydanticCustomError,
    core_schema,
)
from typing_extensions import Self

from archspec.diagnostics import nearest


class Model(BaseModel):
    """A part of a spec: immutable, and strict about keys and types."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )

    @model_validator(mode="wrap")
    @classmethod
    def _suggest_keys(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Adds to each unknown key the names that it may have meant."""
        try:
            return handler(value)
        except ValidationError as error:
            keys = keys_of(cls)
            details = [_with_suggestion(detail, keys) for detail in error.errors(include_url=False)]
            raise ValidationError.from_exception_data(cls.__name__, details) from None


def keys_of(model: type[BaseModel]) -> list[str]:
    """The keys that a model is written with."""
    fields = model.model_fields.items()
    return [field.alias or name for name, field in fields if name != "kind"]


_OWN_ERRORS = ("unknown_key", "unknown_kind", "one_key", "no_shorthand", "kind_written")


def _with_suggestion(detail: ErrorDetails, keys: list[str]) -> InitErrorDetails:
    kind: str | PydanticCustomError = detail["type"]
    context: dict[str, Any] = detail.get("ctx", {})
    if kind == "extra_forbidden" and len(detail["loc"]) == 1:
        key = str(detail["loc"][0])
        nested = key in NESTED and "stages" not in keys
        help = NO_NESTING if nested else nearest(key, keys)
        kind = _custom("unknown_key", f"unknown key `{key}`", {"help": help})
    elif kind in _OWN_ERRORS:
        kind = _custom(kind, detail["msg"], context)
    return InitErrorDetails(type=kind, loc=detail["loc"], input=detail["input"], ctx=context)


def _custom(kind: str, message: str, context: dict[str, Any]) -> PydanticCustomError:
    # As a value, put in last, so that braces in it are left alone.
    parts = {name: value for name, value in context.items() if name != "message"}
    return PydanticCustomError(kind, "{message}", {**parts, "message": message})


class Kind(Model):
    """A model chosen by name. Subclasses have a field `kind: Literal[...]`."""

    shorthand: ClassVar[str] = ""
    """The field that `kind: value` sets, where value is no map."""

    @model_serializer(mode="wrap")
    def _as_one_key(self, handler: SerializerFunctionWrapHandler) -> object:
        fields = dict(handler(self))
        kind = getattr(self, "kind")  # noqa: B009  (subclasses declare it)
        if list(fields) == [kind]:
            return fields  # pydantic asks twice for a model that lists of its own kind are in
        fields.pop("kind", None)
        return {kind: fields} if fields else kind


def kinds_of(model: type[Kind]) -> tuple[str, ...]:
    """The names a model answers to."""
    names: tuple[str, ...] = get_args(model.model_fields["kind"].annotation)
    return names


def _unwrapped(schema: CoreSchema) -> CoreSchema:
    """Of a model that has lists of its own kind, a reference to it alone: with the definitions
    that it comes with, describing it would never end."""
    return schema["schema"] if schema["type"] == "definitions" else schema


MAX_CHOICES = 8
"""So many kinds are named where one is missing."""
NESTED = ("stage", "stages")
NO_NESTING = "a stage holds no stages: they follow one another under `stages`"


class OneKey:
    """Annotation for a discriminated union of `Kind`s: reads and describes the one-key form.

    `elsewhere` has names that belong in another place, with what is said of them.
    """

    def __init__(
        self, what: str, *models: type[Kind], elsewhere: Mapping[str, str] | None = None
    ) -> None:
        self.what, self.elsewhere = what, elsewhere or {}
        self.models = {kind: model for model in models for kind in kinds_of(model)}

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        schema = handler(source)
        if len(self.models) == 1:  # a union all the same, so that errors name the kind
            schema = core_schema.tagged_union_schema(dict.fromkeys(self.models, schema), "kind")
        return core_schema.no_info_before_validator_function(self._read, schema)

    def _read(self, value: object) -> object:
        if isinstance(value, Kind):
            return value
        if isinstance(value, str):
            kind, content = value, None
        elif isinstance(value, dict) and len(value) == 1:
            ((kind, content),) = value.items()
        else:
            message = f"expected one {self.what}: its name, or its name with its settings"
            few = len(self.models) <= MAX_CHOICES
            choices = ", ".join(f"`{kind}`" for kind in self.models)
            raise _custom("one_key", message, {"help": f"one of {choices}"} if few else {})
        if kind not in self.models:
            help = NO_NESTING if kind in NESTED else nearest(kind, self.models)
            help = self.elsewhere.get(kind, help)
            raise _custom("unknown_kind", f"there is no {self.what} `{kind}`", {"help": help})
        if content is None:
            return {"kind": kind}
        if isinstance(content, dict):
            if "kind" in content:
                raise _custom("kind_written", "no `kind` is written here", {})
            return {**content, "kind": kind}
        shorthand = self.models[kind].shorthand
        if not shorthand:
            fields = keys_of(self.models[kind])
            takes = f"settings: {', '.join(fields)}" if fields else "no settings"
            raise _custom("no_shorthand", f"`{kind}` takes {takes}", {})
        return {"kind": kind, shorthand: content}

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        handler(schema)  # registers the models among the definitions
        properties: dict[str, Any] = {}
        bare = []
        for kind, model in self.models.items():
            definition = handler(_unwrapped(model.__pydantic_core_schema__))
            body = handler.resolve_ref_schema(definition)
            body.get("properties", {}).pop("kind", None)
            forms: list[Any] = [definition]
            if model.shorthand:
                forms.insert(0, body["properties"][model.shorthand])
            body["required"] = [name for name in body.get("required", []) if name != "kind"]
            if not body["required"]:
                del body["required"]
                bare.append(kind)
                forms.append({"type": "null"})
            properties[kind] = {"anyOf": forms, "description": (model.__doc__ or "").strip()}
        one_key = {
            "type": "object",
            "properties": properties,
            "additionalProperties": False,
            "minProperties": 1,
            "maxProperties": 1,
        }
        return {"anyOf": [{"enum": bare}, one_key] if bare else [one_key]}
