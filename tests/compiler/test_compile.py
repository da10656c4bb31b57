"""torch.compile around models and inside them, with the default backend where one can be built."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from plain_networks import LEARNED, Case, gradients, pair, trunk, value
from small_networks import STRATEGIES, error
from torch import Tensor, nn

import archspec

BACKEND = "inductor" if shutil.which("g++") else "aot_eager"
CASE = "momentum_pair"
pytestmark = [
    # PyTorch's own, of Dynamo looking at what it resumes with.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script"),
]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def step(model: Callable[[Tensor], Tensor], owner: nn.Module) -> list[Tensor]:
    """Outputs and gradients of one training step."""
    owner.zero_grad()
    inputs = value(dtype=torch.float32).requires_grad_()
    out = model(inputs)
    (out.square().sum() + out.sin().sum()).backward()
    assert inputs.grad is not None
    return [out.detach(), inputs.grad, *(g.clone() for g in gradients(owner) if g is not None)]


def assert_as_eager(found: list[Tensor], wanted: list[Tensor]) -> None:
    least = 1e-3 * max(float(w.abs().max()) for w in wanted)
    assert len(found) == len(wanted)
    assert max(error(a, b, least) for a, b in zip(found, wanted, strict=True)) < 1e-5


def model_of(strategy: str, **keys: Any) -> Any:
    return pair(Case(CASE, strategy), LEARNED, dtype=torch.float32, **keys)[1]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_whole_models(strategy: str) -> None:
    model = model_of(strategy, depth=1)
    wanted = step(model, model)
    compiled = torch.compile(model, backend=BACKEND)
    for _ in range(2):
        assert_as_eager(step(compiled, model), wanted)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_models_compiled_in_place(strategy: str) -> None:
    model = model_of(strategy)
    wanted = step(model, model)
    model.compile(backend="aot_eager")
    for _ in range(2):
        assert_as_eager(step(model, model), wanted)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_single_functions(strategy: str) -> None:
    model = model_of(strategy)
    wanted = step(model, model)
    graphs = 0

    def backend(graph: Any, inputs: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return torch._dynamo.backends.debugging.aot_eager(graph, inputs)

    for layer in trunk(model).layers:
        layer.F.compile(backend=backend)
        layer.G = torch.compile(layer.G, backend=backend)
    for _ in range(2):
        assert_as_eager(step(model, model), wanted)
    assert graphs > 0


def test_single_functions_by_the_default_backend() -> None:
    model = model_of("reversible")
    wanted = step(model, model)
    for layer in trunk(model).layers:
        layer.F.compile(backend=BACKEND)
    for _ in range(2):
        assert_as_eager(step(model, model), wanted)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_functions_compiled_inside_a_compiled_model(strategy: str) -> None:
    model = model_of(strategy)
    wanted = step(model, model)
    seen: list[bool] = []
    for layer in trunk(model).layers:
        layer.F.compile(backend="aot_eager")
        layer.G.register_forward_hook(lambda *_: seen.append(torch.compiler.is_compiling()))
    compiled = torch.compile(model, backend="aot_eager")
    assert_as_eager(step(compiled, model), wanted)
    if strategy != "store":
        assert seen
        assert not any(seen)  # the engine and what it calls are left alone


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_compiled_training_step(strategy: str) -> None:
    """Backward, and with it the replays, runs inside the compiled frame."""
    model = model_of(strategy)
    wanted = step(model, model)

    @torch.compile(backend="aot_eager")
    def training_step(inputs: Tensor) -> Tensor:
        out: Tensor = model(inputs)
        (out.square().sum() + out.sin().sum()).backward()
        return out.detach()

    for _ in range(2):
        model.zero_grad()
        inputs = value(dtype=torch.float32).requires_grad_()
        out = training_step(inputs)
        found = [out, inputs.grad, *gradients(model)]
        assert_as_eager([t for t in found if t is not None], wanted)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_compiled_autograd(strategy: str) -> None:
    model = model_of(strategy)
    wanted = step(model, model)

    @torch.compile(backend="eager")
    def training_step(inputs: Tensor) -> Tensor:
        out: Tensor = model(inputs)
        (out.square().sum() + out.sin().sum()).backward()
        return out.detach()

    model.zero_grad()
    inputs = value(dtype=torch.float32).requires_grad_()
    with torch._dynamo.config.patch(compiled_autograd=True):
        out = training_step(inputs)
    found = [out, inputs.grad, *gradients(model)]
    assert_as_eager([t for t in found if t is not None], wanted)


def test_a_graph_without_breaks_is_refused_with_a_reason() -> None:
    model = model_of("reversible")
    compiled = torch.compile(model, backend="eager")
    compiled(value(dtype=torch.float32))
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="hooks on saved tensors"):
        torch.compile(model, backend="eager", fullgraph=True)(value(dtype=torch.float32))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_export(strategy: str) -> None:
    model = model_of(strategy).eval()
    inputs = value(dtype=torch.float32)
    with torch.no_grad():
        exported = torch.export.export(model, (inputs,))
        assert error(exported.module()(inputs), model(inputs)) < 1e-6


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_dropout(strategy: str) -> None:
    """A compiled function draws the same numbers in its replay."""
    layers = ["layer_norm", {"mlp": {"ratio": 2, "dropout": 0.5}}]
    results = []
    for backward_strategy in ("store", strategy):
        model = model_of(backward_strategy, functions={"F": layers, "G": layers})
        torch._dynamo.reset()
        for layer in trunk(model).layers:
            layer.F.compile(backend="aot_eager")
        torch.manual_seed(3)
        results.append(step(model, model))
    assert_as_eager(results[1], results[0])


def test_nothing_is_imported_for_it_before() -> None:
    """Dynamo takes a second to import."""
    code = """
import sys
sys.path.insert(0, "tests/compiler")
from plain_networks import Case, backward, pair, value
for strategy in ("reversible", "checkpoint"):
    model = pair(Case("additive", strategy))[1]
    backward(model(value()))
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
    assert not archspec.is_replaying()
