"""The parameters, buffers and modes of a function: as they were, and in place of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compiler.engine.versions import Kept


class ModuleState:
    """The parameters, buffers and modes that a function had in the forward pass."""

    __slots__ = (
        "buffers",
        "constant",
        "counted",
        "is_followed",
        "needs_grad",
        "parameters",
        "training",
    )

    def __init__(self, function: nn.Module) -> None:
        modules = list(_modules(function, {}).values())
        self.parameters, self.buffers, self.training = _contents(modules)
        self.needs_grad = [p.requires_grad for p in self.parameters]
        self.counted = _statistics(modules) if self.buffers else set()
        shards = _shards(modules)
        self.is_followed = bool(shards) or any(module._forward_hooks for module in modules)
        """Whether anybody waits for the end of a call: hooks, or FSDP for what it shards."""
        given = (*self.parameters, *self.buffers, *shards)
        self.constant = [Kept(t) for t in given if id(t) not in self.counted]
        """Everything but what batch normalisation counts."""

    def has_changed(self) -> bool:
        """Whether anything was changed in place that must not be."""
        return any(kept.has_changed() for kept in self.constant)

    def uncounted(self) -> list[Tensor]:
        """The buffers for a replay: copies of those in which batch normalisation counts."""
        return [b.clone() if id(b) in self.counted else b for b in self.buffers]


def contents(function: nn.Module) -> tuple[list[Tensor], list[Tensor], list[bool]]:
    """The parameters, the buffers, and of every module whether it trains."""
    return _contents(list(_modules(function, {}).values()))


def _contents(modules: Sequence[nn.Module]) -> tuple[list[Tensor], list[Tensor], list[bool]]:
    parameters: list[Tensor] = [p for m in modules for p in _fixed(m).values() if p is not None]
    buffers = [b for m in modules for b in m._buffers.values() if b is not None]
    return parameters, buffers, [m.training for m in modules]


def _modules(function: nn.Module, found: dict[int, nn.Module]) -> dict[int, nn.Module]:
    """What `function.modules()` gives, in its order and faster."""
    if id(function) not in found:
        found[id(function)] = function
        for child in function._modules.values():
            if child is not None:
                _modules(child, found)
    return found


def _fixed(module: nn.Module) -> Mapping[str, Tensor | None]:
    """A module's parameters that stay the same tensors. FSDP puts whole ones in the place of its
    shards around every call, a replay's too: those cannot be substituted, and need not be."""
    return {} if _is_sharded(module) else module._parameters


def _buffers(module: nn.Module) -> Mapping[str, Tensor | None]:
    return module._buffers


def _is_sharded(module: nn.Module) -> bool:
    """Whether FSDP manages a module's parameters."""
    return "_is_fsdp_managed_module" in module.__dict__


def _shards(modules: Sequence[nn.Module]) -> list[Tensor]:
    """What an optimizer changes in place of the parameters that FSDP manages."""
    sharded = [module for module in modules if _is_sharded(module)]
    return [p for module in sharded for p in module._parameters.values() if p is not None]


def _statistics(modules: Sequence[nn.Module]) -> set[int]:
    """The ids of the buffers that batch normalisation updates in its forward pass, and does not
    read there."""
    return {
        id(buffer)
        for module in modules
        if isinstance(module, _BatchNorm) and module.training
        for buffer in module._buffers.values()
    }


swapping = threading.RLock()
"""Held while a function has other tensors than its own, which another thread must not take for
its own, and while batch normalisation counts in them."""


class Substituted(nn.Module):
    """A function with other parameters and buffers, for one call."""

    def __init__(self, function: nn.Module, tensors: Sequence[Tensor]) -> None:
        super().__init__()
        modules = list(function.named_modules())
        names = [
            f"{prefix}{'.' if prefix else ''}{name}"
            for part in (_fixed, _buffers)
            for prefix, module in modules
            for name, tensor in part(module).items()
            if tensor is not None
        ]
        self.function = [function]  # in a list, so that it does not become a submodule
        self.tensors = dict(zip(names, tensors, strict=True))

    def forward(self, *arguments: Tensor) -> Tensor:
        """Call the function with the tensors in place of its own. Those of every module are among
        them, so that there is nothing to tie."""
        with swapping:
            result: Tensor = torch.func.functional_call(
                self.function[0], self.tensors, arguments, tie_weights=False
            )
        return result


class Method(nn.Module):
    """A method of a map as a module with the same parameters."""

    def __init__(self, map: nn.Module, way: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.map, self.way = map, way

    def forward(self, value: Tensor) -> Tensor:
        """What the method gives."""
        return self.way(value)


def uncounted(function: nn.Module) -> nn.Module:
    """A function whose batch normalisation counts no statistics: they are the forward pass's."""
    parameters, buffers, _ = contents(function)
    if not buffers:
        return function
    return Substituted(function, [*parameters, *(buffer.clone() for buffer in buffers)])


@contextmanager
def needing_grad(leaves: Sequence[Tensor], flags: Sequence[bool]) -> Iterator[None]:
    """Let parameters require gradients as they did in the forward pass: one that was frozen, or
    thawed, since must not change what a replay saves."""
    changed = [
        (leaf, flag) for leaf, flag in zip(leaves, flags, strict=True) if leaf.requires_grad != flag
    ]
    try:
        for leaf, flag in changed:
            leaf.requires_grad_(flag)
        yield
    finally:
        for leaf, flag in changed:
            leaf.requires_grad_(not flag)


def set_training(function: nn.Module, modes: Sequence[bool]) -> None:
    """Give each module of a function its mode: whether it trains."""
    for module, mode in zip(function.modules(), modes, strict=True):
        module.training = mode
