"""Networks of one stage, written as a few updates."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from archspec.diagnostics import SpecError
from archspec.loading import load
from compiler.plan import NetworkPlan, StagePlan
from compiler.resolve import resolve

LAYERS: Mapping[str, list[Any]] = {
    **{name: ["layer_norm", {"linear": "channels"}] for name in "FGPST"},
    "H": ["concat", {"linear": 8}],
    "A": ["add", "tanh"],
}


def spec(
    update: str | Sequence[str],
    constants: Mapping[str, Any] | None = None,
    *,
    streams: Mapping[str, str] | str = "x y",
    functions: Mapping[str, Any] | None = None,
    **stage: Any,
) -> dict[str, Any]:
    """A spec on 5 tokens of 8 channels. `update` is a list, or lines divided by `;`; functions
    that it calls are given layers."""
    lines = re.split(r"\s*;\s*", update) if isinstance(update, str) else list(update)
    if isinstance(streams, str):
        streams = dict.fromkeys(streams.split(), "input")
    called = re.findall(r"([A-Z])\(", " ".join([*lines, *streams.values()]))
    trunk = {
        "depth": 4,
        "streams": streams,
        "functions": {name: LAYERS[name] for name in called if name in LAYERS}
        | dict(functions or {}),
        "constants": constants or {},
        "update": lines,
        "output": f"concat({', '.join(streams)})",
        **stage,
    }
    return {
        "archspec": 1,
        "name": "one",
        "summary": "One stage",
        "input": {"tokens": [5, 8]},
        "stages": {"trunk": trunk},
        "head": [{"pool": "mean"}, {"linear": "classes"}],
        "task": {"classify": 3},
    }


def network(*update: Any, **stage: Any) -> NetworkPlan:
    """The plan of such a spec. Raises `SpecError`."""
    return resolve(load(spec(*update, **stage)))


def stage_plan(*update: Any, **stage: Any) -> StagePlan:
    """The plan of the one stage. Raises `SpecError`."""
    return network(*update, **stage).stages[0]


def shown(error: SpecError) -> str:
    """Each mistake on a line: the line of the spec, the code and message, the help."""
    return "\n".join(
        f"{d.span.source.line(d.span.line).strip()} | {d.code} {d.message} | {d.help}"
        for d in error.diagnostics
        if d.span
    )
