"""The whole file: a network, the couplings of its stages, the engine, and a check of itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from textwrap import fill
from types import ModuleType

import torch

from archspec.citations import reference
from archspec.spec import Spec
from compiler import (
    base_flow,
    base_network,
    base_stage,
    coefficients,
    engine,
    exact,
    facts,
    information,
    kernels,
    priors,
    self_check,
    stage_inputs,
)
from compiler.base_flow import BaseFlow
from compiler.emission.modules import CannotEmitError, made
from compiler.emission.numbers import unmarked
from compiler.emission.sources import ENGINE, FUNCTIONS, MAPS, body, definitions, imports
from compiler.emission.stages import stage_classes
from compiler.emission.writing import ClassNames, block, camel, docstring, entries, literal, method
from compiler.network import Network, build
from compiler.plan import NetworkPlan
from compiler.signing import MARK, signed
from compiler.signing import is_as_written as is_as_emitted

ARITHMETIC = (kernels, information, exact)
STAGES = (facts, stage_inputs, base_stage, base_network)
FLOW = (priors, base_flow)
"""Of densities."""
TAKEN_OVER = (*ARITHMETIC, *ENGINE, coefficients, *STAGES, *FLOW, self_check)


def emit(plan: NetworkPlan, spec: Spec) -> str:
    """The text of a Python file that imports torch alone, whose network has the names of weights,
    the outputs, inverses and gradients of the one that `build` makes. Raises `CannotEmitError` for
    a spec with modules of the user's own."""
    with torch.device("meta"):
        network = build(plan)
    flow = FLOW if isinstance(network, BaseFlow) else ()
    taken_over = (*ARITHMETIC, *ENGINE, coefficients, *STAGES, *flow, self_check)
    names = ClassNames("\n".join(body(module) for module in TAKEN_OVER))
    stages = [stage_classes(stage, names) for stage in network.stages]
    title = names.new(f"{camel(spec.name)}Network")
    own = "\n\n".join(text for texts, _ in stages for text in texts)
    whole = _network(title, network, [name for _, name in stages])
    used = set(re.findall(r"\w+", "\n".join([own, whole, *map(body, flow)])))
    layers_first = [text for texts, _ in stages for text in texts[:-1]]
    stages_last = [texts[-1] for texts, _ in stages]
    text = "\n\n".join(
        [
            _heading("The layers: update and inverse"),
            *layers_first,
            _heading("What functions are made of"),
            definitions(used, FUNCTIONS),
            *map(_section, ARITHMETIC),
            *_maps(definitions(used, MAPS)),
            _chapter(engine),
            *map(_section, taken_over[len(ARITHMETIC) :]),
            _heading("The stages and the network"),
            *stages_last,
            whole,
            _MAIN.format(title=title),
        ]
    )
    sources = (*taken_over, *FUNCTIONS, *MAPS)
    whole = f"{_title(plan, spec, title)}\n\n{imports(sources, text)}\n\n{text}".rstrip() + "\n"
    return signed(re.sub(r"\n{4,}", "\n\n\n", whole))


_MAIN = """
if __name__ == "__main__":
    torch.manual_seed(0)
    raise SystemExit(not self_check({title}()))
"""


def _heading(text: str) -> str:
    return f"# {text} {'-' * (97 - len(text))}"


def _maps(text: str) -> list[str]:
    """The section of invertible maps, where there are any. They come after exact arithmetic, of
    which they take a form as they are defined."""
    return [_heading("Invertible maps"), text] if text else []


def _section(module: ModuleType) -> str:
    """A module taken over, its docstring as a comment."""
    return f"{_chapter(module)}\n\n{body(module)}"


def _chapter(module: ModuleType) -> str:
    """The docstring of a module, or of a package whose modules follow, as a comment."""
    title, _, more = (module.__doc__ or "").strip().partition("\n\n")
    heading = re.sub(r"\s+", " ", title).partition(":")[0].rstrip(".")
    comment = "\n".join(f"# {line}".rstrip() for line in (title + "\n\n" + more).splitlines())
    return f"{_heading(heading)}\n\n{comment}"


def _title(plan: NetworkPlan, spec: Spec, title: str) -> str:
    cited = "\n".join(f"    {reference(key)}" for key in spec.cite)
    text = f"""{spec.name}: {spec.summary}

{MARK}; imports torch alone.
Run this file to check it, or:

    model = {title}()
    model.load_state_dict(...)      # weights of archspec.build("{spec.name}") have the same names
    model.set_backward("store")     # or "checkpoint", or "reversible" where there is an inverse

The layers, with their inverses, come first, then what their functions are made of, the engine, and
at the end the stages and the network. The engine runs a layer's `updates`; `forward` and `inverse`
are the same, written out to be read, and compared when the file is run.
"""
    text += _EXACT if any(stage.fraction_bits is not None for stage in plan.stages) else ""
    text += "".join(f"\n{fill(note, 96)}\n" for note in left_out(plan))
    return docstring(text + (f"\n{cited}\n" if cited else ""))


_EXACT = """
In exact arithmetic a stage, forward and inverse, takes the same `information`, at first an empty
`Information()`: what updates lose of the streams, which its layers call `kept`.
"""


def left_out(plan: NetworkPlan) -> list[str]:
    """What `build` makes of a spec and its file has not, in sentences."""
    smooth = [f"`{stage.name}`" for stage in plan.stages if stage.smoothness]
    if not smooth:
        return []
    named = f"stage{'s' if len(smooth) > 1 else ''} {', '.join(smooth)}"
    return [
        f"The penalty by `smoothness` of {named}, which training adds to the loss, is not in this "
        "file: outputs and their gradients are the same without it."
    ]


def _network(title: str, network: Network, stages: Sequence[str]) -> str:
    """The class of the whole network."""
    plan = network.plan
    made_stages = [f'"{s.name}": {stage}(),' for s, stage in zip(plan.stages, stages, strict=True)]
    init = [
        "super().__init__()",
        f"self.input = {literal(network.input)}",
        f"self.side = {literal(network.side)}",
        f"self.stem = {unmarked(made(network.stem))}",
        "self.stages = Stages(",
        "    {",
        *(f"        {stage}" for stage in made_stages),
        "    }",
        ")",
        f"self.head = {unmarked(made(network.head))}",
    ]
    base, result = "BaseNetwork", str(plan.output)
    if isinstance(network, BaseFlow):
        base, result = "BaseFlow", "its log-density"
        latents = entries([made(prior) for prior in network.priors])
        init.append(f"self.priors = nn.ModuleList([{latents}])")
    doc = docstring(f"{plan.input} → {result}.")
    return block(f"class {title}({base}):", doc, "", method("__init__(self) -> None", init))


__all__ = ["CannotEmitError", "emit", "is_as_emitted", "left_out"]
