"""Compiled networks beside ones written by hand: outputs, gradients and inverses, to rounding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from compiler.functions.pointwise import DropPath
from compiler.network import Network

Weights = Mapping[str, Tensor]
Streams = tuple[Tensor, ...]

OUTPUT = 1e-11
GRADIENT = 1e-10
"""Of the largest element, in float64."""


def shaken(model: Network) -> Network:
    """In float64 and in training, its parameters all random, dropping no path."""
    for module in model.double().train().modules():
        if isinstance(module, DropPath):
            module.rate = 0.0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def assert_network(
    model: Network,
    value: Tensor,
    by_hand: Callable[[Weights, Tensor], Tensor],
    side: Weights = MappingProxyType({}),
) -> None:
    """Outputs, and gradients of every weight and of what goes in (B, …). Side inputs are among the
    weights."""
    given = leaves({"input": value, **side})
    own = {**dict(model.named_parameters()), **given}
    copies = leaves(own)
    found = model(given["input"], **{name: given[name] for name in side})
    _assert_same((found,), (by_hand(copies, copies["input"]),), own, copies)


def assert_stage(
    model: Network,
    name: str,
    by_hand: Callable[[Weights, Streams], Streams],
    draws: Sequence[Mapping[str, Tensor]] | None = None,
) -> None:
    """All layers of a stage on random streams, no two of which are equal. Published code evaluates
    F on one stream on the way, and on the other on the way back, which streams that start equal
    hide. A reversible stage leads back to them. `draws` are coefficients of three samples."""
    stage, prefix = model.stages[name], f"stages.{name}."
    before_layers = (f"{prefix}transition.", f"{prefix}starts.")
    weights = {
        key: parameter
        for key, parameter in model.named_parameters()
        if key.startswith(prefix) and not key.startswith(before_layers)
    }
    streams = {
        stream: torch.randn(3, *sizes, dtype=torch.float64).requires_grad_()
        for stream, sizes in stage.facts.streams.items()
    }
    own = {**weights, **streams}
    copies = leaves(own)
    outputs = stage(*streams.values(), draws=draws)
    _assert_same(outputs, by_hand(copies, tuple(copies[s] for s in streams)), own, copies)
    if stage.backward == "reversible":
        back = stage.inverse(*(output.detach() for output in outputs), draws=draws)
        for stream, recovered in zip(streams.values(), back, strict=True):
            assert relative(recovered, stream) < 1e-10


def leaves(tensors: Weights) -> dict[str, Tensor]:
    """Copies, which gradients are asked of."""
    return {name: value.detach().clone().requires_grad_() for name, value in tensors.items()}


def relative(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, against the largest element."""
    found, wanted = found.detach(), wanted.detach()
    return float((found - wanted).abs().max() / wanted.abs().max())


def projected(outputs: Streams) -> Tensor:
    """A number that every element of the outputs has a share of its own in."""
    generator = torch.Generator().manual_seed(2)
    parts = [
        (out * torch.randn(out.shape, generator=generator, dtype=out.dtype)).sum()
        for out in outputs
    ]
    return torch.stack(parts).sum()


def _assert_same(found: Streams, wanted: Streams, own: Weights, copies: Weights) -> None:
    """Outputs, and the gradients of all that they are computed from. What vanishes, as a key's
    bias may, is measured against the largest gradient."""
    for ours, theirs in zip(found, wanted, strict=True):
        assert relative(ours, theirs) < OUTPUT
    our_gradients = torch.autograd.grad(projected(found), list(own.values()))
    gradients = torch.autograd.grad(projected(wanted), list(copies.values()))
    largest = max(float(gradient.abs().max()) for gradient in gradients)
    for name, ours, theirs in zip(own, our_gradients, gradients, strict=True):
        scale = max(float(theirs.abs().max()), 1e-3 * largest)
        assert float((ours - theirs).abs().max()) < GRADIENT * scale, name
