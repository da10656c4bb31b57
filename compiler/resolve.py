"""A loaded spec into a plan: every text parsed, every name looked up, every shape inferred."""

from __future__ import annotations

from keyword import iskeyword

from archspec.diagnostics import SpecError
from archspec.expressions import RESERVED
from archspec.loading import Loaded
from archspec.shapes import Features, Image, Shape
from archspec.spec import Spec
from archspec.training import Density
from compiler.density import as_density
from compiler.layer_lists import plain_layers
from compiler.places import Mistakes
from compiler.plan import NetworkPlan, SidePlan
from compiler.stage_program import check_program
from compiler.stage_shapes import resolve_stage


def resolve(loaded: Loaded) -> NetworkPlan:
    """Resolve and check a spec. Raises `SpecError` with every mistake that can be told apart."""
    spec = loaded.spec
    mistakes = Mistakes(loaded.tree)
    known = spec.task.sizes
    side = {name: entry.shape for name, entry in spec.side.items()}
    _check_side(spec, mistakes)
    programs = {
        name: check_program(stage, side, ("stages", name), mistakes)
        for name, stage in spec.stages.items()
    }
    shape: Shape | None = spec.input.shape
    packages = loaded.packages
    stem, shape = plain_layers(spec.stem, shape, known, ("stem",), packages, mistakes)
    stages = []
    for name, stage in spec.stages.items():
        program = programs[name]
        if shape is None or program is None:
            shape = None
            continue
        place = ("stages", name)
        plan = resolve_stage(stage, program, shape, side, known, packages, place, mistakes)
        shape = plan.result if plan else None
        stages += [plan] if plan else []
    head, shape = plain_layers(spec.head, shape, known, ("head",), packages, mistakes)
    wanted = spec.task.output(spec.input.shape)
    if shape is not None and wanted is not None and shape != wanted:
        message = f"the network ends in {shape}, and the task needs {wanted}"
        help = _ending(wanted, next(iter(known), str(wanted.channels)))
        mistakes.key("E403", message, ("head",) if spec.head else ("stages",), help)
    for name in side:
        if not mistakes.found and not any(s.name == name for stage in stages for s in stage.side):
            mistakes.key("E203", f"the side input `{name}` is not used", ("side", name))
    if mistakes.found:
        raise SpecError(mistakes.found)
    assert shape is not None
    sides = tuple(SidePlan(name, shape) for name, shape in side.items())
    found = NetworkPlan(spec.name, spec.input.shape, sides, known, stem, tuple(stages), head, shape)
    return as_density(found, spec.task, mistakes) if isinstance(spec.task, Density) else found


def _ending(wanted: Shape, size: str) -> str:
    """How a head comes to a shape."""
    if isinstance(wanted, Features):
        return f"end the head with `pool: mean` and `linear: {size}`"
    if isinstance(wanted, Image):
        patches = f"patch_unembed: {{patch: …, channels: {wanted.channels}}}"
        return f"end the head with `{patches}` after tokens, with `conv` after an image"
    return "it ends in what it begins with"


def _check_side(spec: Spec, mistakes: Mistakes) -> None:
    for name, shape in spec.task.side.items():
        given = spec.side.get(name)
        if given is None or given.shape != shape:
            found = "" if given is None else f", found {given.shape}"
            message = f"the task {spec.task.kind} gives the side input `{name}`, {shape}{found}"
            help = f"write `side: {{{name}: {{features: [{shape.channels}]}}}}`"
            mistakes.key("E406", message, ("side", name) if given else ("task",), help)
    for name in spec.side:
        if name in RESERVED or iskeyword(name) or name in ("value", "draws", "self"):
            message = f"`{name}` has a meaning of its own"
            mistakes.key("E204", message, ("side", name), "choose another name")
