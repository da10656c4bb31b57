"""Small stages built from dicts, unequal random streams for them, and their gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import archspec
from compiler.network import Network
from compiler.stage import Stage

STRATEGIES = ("store", "checkpoint", "reversible")

DENSE: list[Any] = [{"linear": "2*channels"}, "tanh", {"linear": "channels/2"}]
CONVOLUTION: list[Any] = [{"conv": {}}, "tanh", {"conv": {}}]
BRANCH: list[Any] = ["layer_norm", {"mlp": 2}]


def spec(
    stage: Mapping[str, Any],
    input: Mapping[str, Any] | None = None,
    stem: Sequence[Any] = (),
    head: Sequence[Any] | None = None,
    side: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A spec around one stage; by default on tokens 5×6, mapped to three classes."""
    entry = dict(input or {"tokens": [5, 6]})
    if head is None:
        head = (
            [{"linear": "classes"}]
            if "features" in entry
            else [{"pool": "mean"}, {"linear": "classes"}]
        )
    return {
        "archspec": 1,
        "name": "small",
        "summary": "A network for a test",
        "input": entry,
        "side": dict(side or {}),
        "stem": list(stem),
        "stages": {"trunk": dict(stage)},
        "head": list(head),
        "task": {"classify": {"classes": 3}},
    }


def network(
    stage: Mapping[str, Any], dtype: torch.dtype = torch.float64, seed: int = 0, **settings: Any
) -> Network:
    """The network of `spec`, its parameters all away from zero."""
    torch.manual_seed(seed)
    model = archspec.build(spec(stage, **settings)).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "coefficients" not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def additive(F: Sequence[Any] = BRANCH, G: Sequence[Any] = BRANCH, **keys: Any) -> dict[str, Any]:
    """A RevNet stage of depth 3."""
    return {"depth": 3, "coupling": "additive", "functions": {"F": list(F), "G": list(G)}, **keys}


def streams_for(stage: Stage, batch: int = 4, seed: int = 1) -> tuple[Tensor, ...]:
    """Random streams, all different."""
    generator = torch.Generator().manual_seed(seed)
    dtype = next((p.dtype for p in stage.parameters()), torch.float64)
    return tuple(
        torch.randn(batch, *stream.shape.sizes, generator=generator, dtype=torch.float64).to(dtype)
        for stream in stage.plan.streams
    )


@dataclass(frozen=True)
class Outcome:
    """What one forward and backward pass of a stage gave."""

    outputs: tuple[Tensor, ...]
    gradients: dict[str, Tensor | None]


def outcome(
    stage: Any,
    streams: Sequence[Tensor],
    module: nn.Module | None = None,
    seed: int = 2,
    **keys: Any,
) -> Outcome:
    """Outputs of `stage(*streams)`, and the gradients of a random projection of them to streams
    and to the parameters of `module` (by default of the stage). `.grad` is left alone."""
    module = stage if module is None else module
    leaves = [stream.detach().clone().requires_grad_() for stream in streams]
    torch.manual_seed(seed)
    outputs = stage(*leaves, **keys)
    generator = torch.Generator().manual_seed(seed)
    loss = sum(
        (out * torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out)).sum()
        for out in outputs
    )
    parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
    wanted = {**{f"stream {i}": leaf for i, leaf in enumerate(leaves)}, **parameters}
    found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    return Outcome(tuple(out.detach() for out in outputs), dict(zip(wanted, found, strict=True)))


def error(found: Tensor | None, wanted: Tensor | None, least: float = 1e-30) -> float:
    """The largest difference, relative to the largest element wanted, or to `least`."""
    if found is None or wanted is None:
        assert found is None or not found.any()
        assert wanted is None or not wanted.any()
        return 0.0
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    found, wanted = found.detach(), wanted.detach()
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=least))


def gradient_error(found: Outcome, wanted: Outcome) -> float:
    """The largest `error` of any gradient. One that all but vanishes (that of a bias before a
    normalisation is nothing but rounding) is measured against the others."""
    assert found.gradients.keys() == wanted.gradients.keys()
    known = [g for g in wanted.gradients.values() if g is not None]
    least = 1e-3 * max((float(g.abs().max()) for g in known), default=1.0)
    return max(error(found.gradients[n], g, least) for n, g in wanted.gradients.items())


def assert_same_outputs(found: Outcome, wanted: Outcome) -> None:
    """Bit for bit."""
    for a, b in zip(found.outputs, wanted.outputs, strict=True):
        assert torch.equal(a, b)


class LinearFunction(nn.Module):
    """A function to build odd ones from."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(x)
        return result


def with_functions(
    make: Callable[[], nn.Module], strategy: str, stage: dict[str, Any] | None = None
) -> Network:
    """A network, by default a RevNet, whose functions F are replaced."""
    model = network(stage or additive())
    torch.manual_seed(4)
    for layer in model.stages[0].layers:
        layer.F = make().double()
    return model.set_backward(strategy)
