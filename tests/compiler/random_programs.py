"""Random reversible programs, and an interpreter for them that knows nothing of the compiler."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from archspec.spec import Drawn, Learned
from compiler.stage import Stage

CONSTANTS: dict[str, Any] = {
    "h": 0.3,
    "a": "0.6 + 0.3*layer/depth",
    "b": "1 - g/2",
    "g": {"learn": 0.8, "within": [0.5, 0.95]},
    "c": {"learn": -0.7, "within": [-1.2, -0.6], "per": "channel"},
    "w": {"learn": 0.4},
    "u": {"learn": 0.2, "per": "channel"},
    "d": {"draw": [0.7, -1.25], "per": "sample", "evaluate": 1.0},
    "p": "0.6 + 0.3*progress",
}
PROGRESS = 0.25
MAPS = {"A": "actnorm", "W": "invertible_linear"}
SCALES = (
    "1",
    "1",
    "-1",
    "g",
    "c",
    "d",
    "a",
    "b",
    "a*g",
    "-c/2",
    "(1 + g**2)/2",
    "1/(g + 0.4)",
    "p",
)
FACTORS = (
    "0.5",
    "h",
    "-a",
    "g",
    "c",
    "w",
    "u",
    "d",
    "(1 - g)",
    "w*u",
    "h**2",
    "-u",
    "layer/depth",
    "p",
    "progress",
)
ONE_ARGUMENT = ("F", "G", "S")
TWO_ARGUMENTS = ("J", "P")

LAYERS: dict[str, dict[str, list[Any]]] = {
    "tokens": {
        "F": ["layer_norm", {"mlp": 1}],
        "G": [{"linear": "channels"}, "tanh"],
        "S": ["layer_norm", {"attention": {"heads": 1}}],
        "J": ["concat", {"linear": "channels/2"}, "silu"],
        "P": ["add", "tanh"],
    },
    "features": {
        "F": [{"transpose_pair": {"activation": "tanh"}}],
        "G": [{"linear": "channels"}, "tanh", {"dropout": 0.3}],
        "S": ["layer_norm", {"mlp": {"ratio": 2, "dropout": 0.2}}, {"drop_path": 0.3}],
        "J": ["concat", {"linear": "channels/2"}, "softplus"],
        "P": ["add", {"linear": "channels"}],
    },
    "image": {
        "F": [{"conv": {}}, "batch_norm", "silu"],
        "G": [{"transpose_pair": {}}, {"scale": 0.3}],
        "S": [{"group_norm": 1}, {"conv": {"kernel": 1}}, "tanh"],
        "J": ["concat", {"conv": {"out": "channels/2"}}, {"drop_path": 0.3}],
        "P": ["add", "relu", {"conv": {"kernel": 1}}],
    },
}
INPUTS = {"tokens": [[3, 4], [1, 2]], "features": [[5], [1]], "image": [[2, 3, 3], [1, 4, 2]]}


class _Writer:
    """Writes the updates of one layer, keeping to the rules of invertibility."""

    def __init__(self, choose: Any, streams: Sequence[str]) -> None:
        self.choose, self.streams = choose, list(streams)
        self.version = dict.fromkeys(streams, 0)
        self.read: dict[str, set[tuple[str, int]]] = {}

    def one(self, options: Sequence[Any]) -> Any:
        return self.choose(st.sampled_from(list(options)))

    def readable(self, target: str | None) -> list[str]:
        """The streams and temporaries that an update of `target` may read."""
        current = set(self.version.items())
        temporaries = [
            name
            for name, read in self.read.items()
            if read <= current and target not in {stream for stream, _ in read}
        ]
        return [s for s in self.streams if s != target] + temporaries + ["t"]

    def argument(self, names: Sequence[str], depth: int = 0) -> str:
        x, y = self.one(names), self.one(names)
        forms = [x, x, f"{x} + {self.one(FACTORS)}*{y}", f"0.5*{x} - {y}", f"sin({x})", f"-{x}"]
        if depth == 0:
            forms += [self.call(names, 1), f"{x} + h*{self.call(names, 1)}"]
        return str(self.one(forms))

    def call(self, names: Sequence[str], depth: int = 0) -> str:
        if self.choose(st.booleans()):
            return f"{self.one(ONE_ARGUMENT)}({self.argument(names, depth)})"
        first, second = self.argument(names, depth), self.argument(names, depth)
        return f"{self.one(TWO_ARGUMENTS)}({first}, {second})"

    def rest(self, names: Sequence[str]) -> str:
        terms = []
        for _ in range(self.choose(st.integers(1, 2))):
            value = self.one([self.call(names), self.call(names), self.one(names)])
            terms.append(f"{self.one(FACTORS)}*{value}")
        if self.choose(st.integers(0, 5)) == 0:
            terms.append(f"{self.call(names)} * tanh({self.one(names)})")
        return " + ".join(terms)

    def update(self) -> str:
        target = self.one(self.streams)
        names = self.readable(target)
        scale = self.one(SCALES)
        if self.choose(st.integers(0, 3)) == 0:
            scale = f"exp(tanh({self.call(names)})/2)"
        rest, map = self.rest(names), self.one(list(MAPS))
        text = self.one(
            [
                f"{target} += {rest}",
                f"{target} -= {rest}",
                f"{target} = {scale}*{target} + {rest}",
                f"{target} = {rest} - {target}*{scale}",
                f"{target} = {scale}*({target} + {rest})",
                f"{target} *= {scale}",
                f"{target} = {map}({target})",
            ]
        )
        self.version[target] += 1
        return str(text)

    def temporary(self, name: str) -> str:
        names = self.readable(None)
        text = self.rest(names)
        read: set[tuple[str, int]] = set()
        for other in (name for name in names if name != "t"):  # side inputs do not change
            if re.search(rf"\b{other}\b", text):
                own = {(other, self.version[other])} if other in self.version else set()
                read |= self.read.get(other, own)
        self.read[name] = read
        return f"{name} := {text}"

    def permutation(self) -> str:
        order = self.choose(st.permutations(self.streams))
        for target in self.streams:
            self.version[target] += 1
        return f"{', '.join(self.streams)} = {', '.join(order)}"


def _used(name: str, texts: Sequence[str]) -> bool:
    return any(re.search(rf"\b{name}\b", text) for text in texts)


def _without_unused(update: list[str]) -> list[str]:
    """The updates without temporaries that nobody reads."""
    for index, line in enumerate(update):
        name = line.split(" := ")[0]
        if " := " in line and not _used(name, [*update[:index], *update[index + 1 :]]):
            return _without_unused([*update[:index], *update[index + 1 :]])
    return update


@st.composite
def programs(draw: Any) -> dict[str, Any]:
    """A stage with everything that the update language has, the `input` it goes with, and the side
    input `t`, of the same shape, where it is read."""
    kind = draw(st.sampled_from(list(LAYERS)))
    streams = ["x", "y", "z", "v", "w1"][: draw(st.integers(1, 5))]
    writer = _Writer(draw, streams)
    update = []
    for index in range(draw(st.integers(1, 6))):
        what = draw(st.integers(0, 5))
        if what == 0 and len(streams) > 1:
            update.append(writer.permutation())
        elif what <= 2 and index:
            update.append(writer.temporary(f"k{index}"))
        else:
            update.append(writer.update())
    update = _without_unused(update) or ["x = -x"]
    constants = {n: c for n, c in CONSTANTS.items() if _used(n, update)}
    if "b" in constants:
        constants["g"] = CONSTANTS["g"]
    functions = {n: f for n, f in LAYERS[kind].items() if _used(rf"{n}(?=\()", update)}
    maps = {n: m for n, m in MAPS.items() if _used(rf"{n}(?=\()", update)}
    entry = {kind: draw(st.sampled_from(INPUTS[kind]))}
    return {
        "input": entry,
        "side": {"t": entry} if _used("t", update) else {},
        "stage": {
            "depth": draw(st.integers(1, 3)),
            "streams": dict.fromkeys(streams, "input"),
            "functions": functions,
            "maps": maps,
            "share": draw(st.booleans()),
            "constants": constants,
            "update": update,
            "output": " + ".join(streams),
        },
    }


BUILTIN = {
    "exp": torch.exp,
    "tanh": torch.tanh,
    "sin": torch.sin,
    "cos": torch.cos,
    "sigmoid": torch.sigmoid,
}


def given_to(stage: Stage, batch: int, like: Tensor) -> dict[str, Any]:
    """What a stage is called with besides its streams: draws, and its side inputs."""
    generator = torch.Generator().manual_seed(8)
    side = {
        name: torch.randn(batch, *sizes, generator=generator, dtype=torch.float64).to(like.dtype)
        for name, sizes in stage.facts.side.items()
    }
    return {"draws": stage.draw(like), **side}


def interpret(
    stage: Stage,
    streams: Sequence[Tensor],
    draws: Sequence[Mapping[str, Tensor]],
    **side: Tensor,
) -> Any:
    """Run a stage's program by Python itself, under plain autograd."""
    values = {s.name: value for s, value in zip(stage.plan.streams, streams, strict=True)}
    names, depth = list(values), stage.plan.depth
    for index, (layer, drawn) in enumerate(zip(stage.layers, draws, strict=True)):
        owner = stage.shared if stage.plan.share else layer
        scope: dict[str, Any] = {**BUILTIN, **dict(owner.named_children()), **values, **drawn}
        scope |= {"progress": PROGRESS, **side}
        scope |= {"layer": Fraction(index), "depth": Fraction(depth)}
        for name, constant in stage.plan.constants.items():
            if isinstance(constant, Learned):
                parameter = layer.coefficients._parameters[name]
                if constant.per == "channel" and streams[0].dim() == 4:
                    parameter = parameter[:, None, None]
                scope[name] = _learned(constant, parameter)
        for name, constant in stage.plan.constants.items():
            if not isinstance(constant, (Learned, Drawn)):
                scope[name] = eval(str(CONSTANTS[name]), scope)
        for step in stage.plan.steps:
            exec(_statement(step.text), scope)
        values = {name: scope[name] for name in names}
    return tuple(values.values())


def _learned(constant: Learned, parameter: Tensor) -> Tensor:
    if constant.within is None:
        return parameter
    low, high = constant.within
    return low + (high - low) / (1 + torch.exp(-parameter))


def _statement(text: str) -> str:
    """The update as Python, not in place; fractions become floats."""
    text = text.replace(":=", "=").replace("layer/depth", "float(layer/depth)")
    return re.sub(r"^(\w+) ([-+*/])= (.*)$", r"\1 = \1 \2 (\3)", text)
