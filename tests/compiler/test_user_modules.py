"""Modules of the user's own: only where they are allowed from outside the spec."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from one_stage import shown
from one_stage import spec as one_spec
from small_networks import STRATEGIES, gradient_error, outcome, streams_for

import archspec
from archspec.diagnostics import SpecError
from compiler.verify import verify

BLOCKS = """
import torch
from torch import nn
from torch.nn import Linear
import archspec

open("imported", "a").close()


class Gated(nn.Module):
    def __init__(self, width, gate="tanh"):
        super().__init__()
        self.value, self.gate = nn.Linear(width, width), nn.Linear(width, width)
        self.apply_gate = getattr(torch, gate)

    def forward(self, tokens, *conditions):
        return self.value(tokens) * self.apply_gate(self.gate(tokens)) + sum(conditions)


class Wide(nn.Module):
    def forward(self, tokens):
        return torch.cat([tokens, tokens], -1)


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.stage = archspec.build("rev_vit_digits").stages[0]


class Broken(nn.Module):
    def forward(self, tokens):
        raise KeyError("no such thing")


class InPlace(nn.Module):
    def forward(self, tokens):
        return tokens.mul_(2)


function = torch.tanh
"""


@pytest.fixture(autouse=True)
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package `own_blocks`, with a module `gates` in it, and a neighbour `own_blocks_2`."""
    for name in ("own_blocks", "own_blocks_2"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        (folder / "gates.py").write_text(BLOCKS)
    (tmp_path / "own_blocks" / "lent.py").write_text("from own_blocks_2.gates import Gated\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [name for name in sys.modules if name.startswith("own_blocks")]:
        del sys.modules[name]


def spec(module: Any, update: str = "x += F(y); y += F(x)", **stage: Any) -> dict[str, Any]:
    return one_spec(update, functions={"F": ["layer_norm", {"module": module}]}, **stage)


GATED = {"name": "own_blocks.gates.Gated", "arguments": {"width": 8, "gate": "sigmoid"}}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradients(strategy: str) -> None:
    model = archspec.build(spec(GATED), allow_modules=["own_blocks"]).double()
    start = streams_for(model.stages[0])
    wanted = outcome(model.set_backward("store").stages[0], start)
    found = outcome(model.set_backward(strategy).stages[0], start)
    assert gradient_error(found, wanted) < 1e-12
    assert type(model.stages[0].layers[0].F.module).__name__ == "Gated"
    assert all(stage.passed for stage in verify(model))


def test_a_module_takes_all_arguments() -> None:
    model = archspec.build(spec(GATED, "x += F(y, y); y += x"), allow_modules=["own_blocks.gates"])
    assert model(torch.randn(2, 5, 8)).shape == (2, 3)


def test_another_size_is_declared() -> None:
    wide = {"name": "own_blocks.gates.Wide", "out": [5, 16]}
    functions = {"F": [{"module": wide}, {"linear": 8}]}
    one = one_spec("x += F(y); y += x", functions=functions)
    assert archspec.build(one, allow_modules=["own_blocks"])(torch.randn(2, 5, 8)).shape == (2, 3)


@pytest.mark.parametrize("allowed", [[], ["own_blocks_2"], ["own"], ["own_blocks.gates.Gated"]])
def test_nothing_is_imported_unless_it_is_allowed(allowed: list[str]) -> None:
    with pytest.raises(SpecError) as caught:
        archspec.build(spec(GATED), allow_modules=allowed)
    assert not Path("imported").exists()
    assert "own_blocks.gates" not in sys.modules
    assert "`own_blocks.gates.Gated`" in shown(caught.value)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("os.system", "E404 `os.system` would run code that this spec names | if you trust the"),
        ("torch.nn.Linear", "E404 `torch.nn.Linear` would run code"),
        ("own_blocks.gates.Linear", "is torch.nn.modules.linear.Linear, which is not in an"),
        ("own_blocks.lent.Gated", "is own_blocks_2.gates.Gated, which is not in an allowed pack"),
        (
            "own_blocks.gates.Gaited",
            "has no class `Gaited`; did you mean `Gated`?  names here: Broken, Gated, InPlace, "
            "Nested, Wide",
        ),
        ("own_blocks.gates.InPlace", "`own_blocks.gates.InPlace` edits its argument in place"),
        ("own_blocks.gats.Gated", "importing `own_blocks.gats` failed: ModuleNotFoundError"),
        ("own_blocks.gates.function", "is not a class of torch.nn.Module"),
        ("own_blocks.gates.torch", "is not a class of torch.nn.Module"),
        ("own_blocks.gates.Gated", "making `own_blocks.gates.Gated` failed: TypeError"),
        ("own_blocks.gates.Wide", "gave (2, 5, 16) for a batch of two, and (2, 5, 8) is expected"),
        ("own_blocks.gates.Broken", "calling `own_blocks.gates.Broken` failed: KeyError: 'no such"),
        ("own_blocks.gates.Nested", "has a stage in it: stages follow one another, and hold none"),
        ("Gated", "E108 `Gated` cannot be a name here | a class is named with"),
        ("own_blocks..Gated", "E108"),
        ("own_blocks.gates.Gated; import os", "E108"),
    ],
)
def test_what_is_refused(module: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        archspec.build(spec(module), allow_modules=["own_blocks"])
    assert message in shown(caught.value)


@pytest.mark.parametrize("strategy", ["checkpoint", "reversible"])
def test_a_stage_put_inside_a_function_is_refused(strategy: str) -> None:
    model = archspec.build(one_spec("x += F(y); y += F(x)")).set_backward(strategy)
    inner = archspec.build(one_spec("x += F(y); y += F(x)")).stages[0]

    class Inside(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stage = inner

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.stage(tokens, tokens)[0]
            return result

    model.stages[0].layers[0].F = Inside()
    with pytest.raises(RuntimeError, match="inside a residual function of another stage"):
        model(torch.randn(2, 5, 8))
    inner.backward = "store"
    model(torch.randn(2, 5, 8)).sum().backward()
