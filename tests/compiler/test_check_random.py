"""What the checks say of random programs is true: whatever resolves is built and runs, and what is
called invertible is inverted."""

from __future__ import annotations

import re
from collections import Counter
from random import Random
from typing import Any

import pytest
import torch
from one_stage import spec
from torch import nn

from archspec.diagnostics import SpecError
from archspec.loading import load
from compiler.network import build
from compiler.plan import NetworkPlan
from compiler.resolve import resolve

CONSTANTS: list[Any] = [
    0.5, -0.9, 2, "0.5 + 0.4*layer/depth", "1/(1 + layer)", "layer - 1", "1/layer", "g*g + 1",
    "h - 1", {"learn": 0.9, "within": [0.5, 1.0]},
    {"learn": 0.9, "within": [0.5, 1.0], "per": "channel"}, {"learn": 0.9},
    {"learn": 0.1, "within": [-0.2, 0.3]}, {"draw": [0.5, -0.5], "evaluate": 0},
    {"draw": [0.5, 2.0], "evaluate": 1},
]  # fmt: skip
FUNCTIONS: list[Any] = [
    ["layer_norm", {"linear": "channels"}], ["tanh"], [{"linear": 8}, {"dropout": 0.1}],
    [{"linear": 4}], [{"mlp": {"ratio": 1, "dropout": 0.1}}],
    [{"linear": 8}, {"drop_path": "0.1*layer/depth"}], ["class_token", {"linear": 8}],
    [{"linear": "8 + layer"}, {"linear": 8}], [{"pool": "mean"}],
]  # fmt: skip
STARTS = ["input"] * 6 + ["zeros", "chunk(input, 1, 2)", "input + 0.5*input", "P(input)"]
FACTORS = [
    "", "g*", "-", "2*", "exp(tanh(F({o})))*", "(1.5 + sin({o}))*", "(g + h)*", "{o}*",
    "(2 - g*h)*", "sigmoid({o})*", "k*", "(2 + tanh(k))*",
]  # fmt: skip


class Programs(Random):
    """Random programs on the streams a, b and c."""

    def expression(self, names: list[str], depth: int) -> str:
        if depth == 0 or self.random() < 0.25:
            return self.choice([*names, *names, "g", "h", "2", "layer"])
        inner = [self.expression(names, depth - 1) for _ in range(2)]
        forms = ["{} + {}", "{} - {}", "({})*({})", "-({})", "({})**2", "tanh({})", "exp(-({})**2)"]
        forms += ["({})/(g)", "F({})", "F({})", "G({})", "H({}, {})"]
        return self.choice(forms).format(*inner)

    def update(self, names: list[str], temporaries: list[str]) -> str:
        target = self.choice(names)
        others = [name for name in names if name != target] or names
        kind = self.random()
        if kind < 0.15 and not temporaries:
            temporaries.append("k")
            return f"k := {self.expression(names, 2)}"
        if kind < 0.25:
            return f"{', '.join(names)} = {', '.join(self.sample(names, len(names)))}"
        if kind < 0.9:
            factor = self.choice(FACTORS).format(o=self.choice(others))
            return f"{target} = {factor}{target} + {self.expression([*others, *temporaries], 2)}"
        return f"{target} = {self.expression([*names, *temporaries], 2)}"

    def spec(self) -> dict[str, Any]:
        names = ["a", "b", "c"][: self.choice([1, 2, 2, 2, 3])]
        temporaries: list[str] = []
        update = [self.update(names, temporaries) for _ in range(self.choice([1, 2, 2, 3]))]
        streams = {name: self.choice(STARTS) for name in names}
        used = set(re.findall(r"[A-Za-z]\w*", " ".join([*update, *streams.values()])))
        constants = {name: self.choice(CONSTANTS) for name in "gh" if name in used}
        for name in re.findall(r"\b[gh]\b", str(constants.values())):
            constants.setdefault(name, 0.9)
        functions = {name: self.choice(FUNCTIONS) for name in "FGP" if name in used}
        backward = self.choice(["store", "checkpoint", "reversible"])
        stage: dict[str, Any] = {"functions": functions, "depth": 3, "backward": backward}
        return spec(update, constants, streams=streams, **stage)


def run(plan: NetworkPlan, training: bool) -> str:
    """Build, run and, where it is called invertible, invert a network: what came of it."""
    network = build(plan).double().train(training)
    inputs = torch.randn(4, 5, 8, dtype=torch.float64)
    outputs = network(inputs)
    assert outputs.shape == (4, 3)
    outputs.square().sum().backward()
    stage = plan.stages[0]
    if not (stage.invertible if training else stage.invertible_in_evaluation):
        return "run"
    for module in network.modules():
        if not isinstance(module, nn.Sequential) and type(module).__name__.startswith("Drop"):
            module.eval()
    with torch.no_grad():
        before = network.stages[0].split(network.stem(inputs))
        draws = network.stages[0].draw(before[0])
        after = network.stages[0](*before, draws=draws)
        back = network.stages[0].inverse(*after, draws=draws)
    if not max(float(stream.abs().max()) for stream in (*before, *after)) < 1e3:
        return "grown too large to compare"
    for stream, expected in zip(back, before, strict=True):
        torch.testing.assert_close(stream, expected, rtol=0, atol=1e-6)
    return "inverted"


@pytest.mark.parametrize("seed", range(3))
def test_random_programs(seed: int) -> None:
    programs, seen = Programs(seed), Counter[str]()
    torch.manual_seed(seed)
    for _ in range(200):
        text = programs.spec()
        try:
            plan = resolve(load(text))
        except SpecError as error:
            seen.update(d.code for d in error.diagnostics)
            continue
        seen.update(run(plan, training) for training in (True, False))
    assert seen["run"] > 10
    assert seen["inverted"] > 10
    assert {"E206", "E301", "E302", "E303", "E402"} <= set(seen)
