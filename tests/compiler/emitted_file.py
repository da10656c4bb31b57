"""Emitted files as modules, and what they compute beside what `build` makes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from archspec.loading import load
from compiler.emission import emit
from compiler.resolve import resolve

BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("archspec", "compiler", "runners"):
            raise ImportError(f"{name} is not to be imported here")

sys.meta_path.insert(0, Blocker())
"""
"""Makes archspec unimportable in a process that runs an emitted file."""


def emitted_text(spec: Any, settings: tuple[str, ...] = ()) -> str:
    loaded = load(spec, settings)
    return emit(resolve(loaded), loaded.spec)


def as_module(text: str, name: str = "emitted") -> Any:
    """The module of an emitted text, in this process."""
    module = ModuleType(name)
    sys.modules[name] = module  # dataclasses look their module up
    exec(compile(text, f"<{name}>", "exec"), module.__dict__)
    return module


def network_of(module: Any) -> Any:
    """The one network of an emitted module, freshly made."""
    found = [c for c in vars(module).values() if isinstance(c, type)]
    bases = [getattr(module, name, None) for name in ("BaseNetwork", "BaseFlow")]
    (made,) = (c for c in found if issubclass(c, module.BaseNetwork) and c not in bases)
    return made()


def computed(
    network: Any, value: Tensor, side: Mapping[str, Tensor], seed: int = 5
) -> dict[str, Tensor]:
    """Outputs and gradients of a training step for every strategy that there is, and the inverse
    of every stage, all by name."""
    found: dict[str, Tensor | None] = {}
    strategies = ["store", "checkpoint"]
    if not any(stage.facts.obstacles for stage in network.stages):
        strategies.append("reversible")
    for stage in network.stages:
        stage.reach_inverse()
    for strategy in strategies:
        network.set_backward(strategy)
        network.train()
        network.zero_grad()
        torch.manual_seed(seed)
        entry = value.clone().requires_grad_()
        output = network(entry, **side)
        output.square().sum().backward()
        found[f"{strategy}: output"] = output.detach()
        found |= {f"{strategy}: {n}": p.grad for n, p in network.named_parameters()}
        found[f"{strategy}: input"] = entry.grad
    network.eval()
    for stage in network.stages:
        if stage.facts.fraction_bits is not None:
            found |= computed_exactly(stage, len(value), side, seed)
            continue
        if stage.facts.obstacles or not stage.facts.invertible_in_evaluation:
            continue
        generator = torch.Generator().manual_seed(seed)
        final = [
            torch.randn(len(value), *sizes, generator=generator).to(value)
            for sizes in stage.facts.final.values()
        ]
        own = {name: side[name] for name in stage.facts.side}
        with torch.no_grad():
            back = stage.inverse(*final, **own)
        found |= {f"{stage.facts.name} inverse {i}": b for i, b in enumerate(back)}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


@torch.no_grad()
def computed_exactly(
    stage: Any, batch: int, side: Mapping[str, Tensor], seed: int
) -> dict[str, Tensor | None]:
    """What a stage of exact arithmetic makes of random streams, all that it keeps, and its
    inverse; where only the training program has an inverse, of that."""
    stage.training = not stage.facts.invertible_in_evaluation
    generator = torch.Generator().manual_seed(seed)
    dtype = next((p.dtype for p in stage.parameters()), torch.float32)
    streams = [
        torch.randn(batch, *sizes, generator=generator, dtype=torch.float64).to(dtype)
        for sizes in stage.facts.streams.values()
    ]
    torch.manual_seed(seed)
    own = {name: side[name] for name in stage.facts.side}
    make = sys.modules[type(stage).forward.__module__].Information
    information = make(keeps=not stage.facts.obstacles)
    given = {**own, "draws": stage.draw(streams[0]), "information": information}
    final = stage(*streams, **given)
    back = () if stage.facts.obstacles else stage.inverse(*final, **given)
    lists = {"final": final, "kept": information.tensors(), "inverse": back}
    name = stage.facts.name
    return {f"{name} {what} {i}": t for what, ts in lists.items() for i, t in enumerate(ts)}


def inputs(network: nn.Module, sizes: tuple[int, ...], batch: int = 2) -> Tensor:
    """Random inputs, in the dtype of the network's parameters."""
    generator = torch.Generator().manual_seed(9)
    dtype = next((p.dtype for p in network.parameters()), torch.float32)
    return torch.randn(batch, *sizes, generator=generator, dtype=torch.float64).to(dtype)


def side_inputs(network: Any, batch: int = 2) -> dict[str, Tensor]:
    """Random side inputs by name."""
    generator = torch.Generator().manual_seed(8)
    return {
        name: torch.rand(batch, *sizes, generator=generator) for name, sizes in network.side.items()
    }


def disturb(network: nn.Module) -> None:
    """Move every parameter away from where it starts."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.05 * noise.to(parameter))
